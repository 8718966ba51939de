"""Prompts for an evaluation, from a text file or from COCO's captions."""

from __future__ import annotations

import json
import re
from pathlib import Path

__all__ = ["captions_of_coco", "literal", "prompts_of"]


class EvaluationError(Exception):
    """The evaluation cannot continue; the message is meant for the user."""


def captions_of_coco(text: str) -> list[str]:
    """One caption per picture from COCO's ``captions_*.json``, the one with the smallest id, ordered by picture id.

    Raises:
        ValueError: the text is not such a file.
    """
    try:
        chosen: dict[int, tuple[int, str]] = {}
        for entry in json.loads(text)["annotations"]:
            image, caption = entry["image_id"], (entry["id"], " ".join(entry["caption"].split()))
            chosen[image] = min(chosen.get(image, caption), caption)
        return [chosen[image][1] for image in sorted(chosen)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("not COCO captions: annotations with image_id, id and caption are required") from None


def literal(caption: str) -> str:
    """A caption without the WebUI's prompt syntax: brackets and a capital AND in it are part of the sentence."""
    escaped = re.sub(r"([\\()\[\]])", r"\\\1", caption)
    return re.sub(r"\b(?:AND|BREAK)\b", lambda match: match[0].lower(), escaped).replace("<", " ").replace(">", " ")


def prompts_of(path: Path) -> tuple[list[str], bool]:
    """The prompts in a file, and whether they are plain sentences (as COCO's) rather than in the WebUI's prompt syntax.

    Raises:
        EvaluationError: the file cannot be read, or has no prompts.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        is_coco = path.suffix.lower() == ".json"
        prompts = captions_of_coco(text) if is_coco else [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not prompts:
        raise EvaluationError(f"{path}: no prompts in it")
    return prompts, is_coco
