"""Drawing many pictures through a running WebUI, and scoring them with FID and CLIP."""
