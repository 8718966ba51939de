"""Evaluation: many pictures are drawn through a running WebUI and scored with FID and CLIP."""
