"""Folders of the host."""

models_path = "models"
