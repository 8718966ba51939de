"""Prompts for an evaluation, from a text file or from COCO's captions."""

from __future__ import annotations

import json
import re
from pathlib import Path

__all__ = ["captions_of_coco", "literal", "prompts_of"]


class EvaluationError(Exception):
    """Nothing more can be drawn; the message is for people."""


def captions_of_coco(text: str) -> list[str]:
    """Of COCO's ``captions_*.json``: one caption for each picture, the first by its id, in the order of the pictures'.

    Raises:
        ValueError: not such a file.
    """
    try:
        chosen: dict[int, tuple[int, str]] = {}
        for each in json.loads(text)["annotations"]:
            image, caption = each["image_id"], (each["id"], " ".join(each["caption"].split()))
            chosen[image] = min(chosen.get(image, caption), caption)
        return [chosen[image][1] for image in sorted(chosen)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("not COCO captions: annotations of image_id, id and caption are wanted") from None


def literal(caption: str) -> str:
    """A caption with the WebUI's prompt syntax taken out: a bracket or a capital AND in it is part of the sentence."""
    escaped = re.sub(r"([\\()\[\]])", r"\\\1", caption)
    return re.sub(r"\b(?:AND|BREAK)\b", lambda found: found[0].lower(), escaped).replace("<", " ").replace(">", " ")


def prompts_of(path: Path) -> tuple[list[str], bool]:
    """The prompts in a file, and whether they are sentences rather than the WebUI's prompt syntax (COCO's are).

    Raises:
        EvaluationError: it cannot be read, or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        coco = path.suffix.lower() == ".json"
        found = captions_of_coco(text) if coco else [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not found:
        raise EvaluationError(f"{path}: no prompts in it")
    return found, coco
