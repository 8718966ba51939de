"""The words the tiny model knows, with their numbers in CLIP's vocabulary.

The checkpoint for the WebUI carries the standard tokenizer's 49408 rows; all that were not trained share the row of the
unknown word. Here only the trained rows are kept, and a prompt is read word by word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

__all__ = ["CLIP_ROWS", "CONTEXT", "WORDS", "tokens", "unknown_words"]

CONTEXT = 77
"""Tokens of a prompt, start and end included, as in Stable Diffusion."""

START, END, UNKNOWN = 0, 1, 2

WORDS: Mapping[str, int] = MappingProxyType(
    {
        "a": 320,
        "at": 536,
        "in": 530,
        "on": 525,
        "the": 518,
        "background": 5994,
        "left": 1823,
        "right": 1155,
        "top": 1253,
        "bottom": 5931,
        "middle": 3694,
        "small": 2442,
        "large": 3638,
        "plain": 10709,
        "striped": 22192,
        "dotted": 47950,
        "checked": 10387,
        "red": 736,
        "orange": 4287,
        "yellow": 4481,
        "green": 1901,
        "blue": 1746,
        "purple": 5496,
        "pink": 3360,
        "white": 1579,
        "black": 1449,
        "grey": 5046,
        "brown": 2866,
        "teal": 22821,
        "navy": 5598,
        "beige": 26677,
        "circle": 7117,
        "square": 3999,
        "triangle": 14615,
        "star": 1565,
        "heart": 1936,
        "cross": 3417,
        "ring": 2540,
        "moon": 3293,
    }
)  # fmt: skip
"""Each is one token of CLIP's tokenizer (with its end-of-word mark)."""

CLIP_ROWS: tuple[int, ...] = (49406, 49407, -1, *WORDS.values())
"""Row i of the small embedding is this row of CLIP's; -1 is every row not named."""

_ROW = {word: row for row, word in enumerate(WORDS, start=3)}


def tokens(prompts: Sequence[str]) -> torch.Tensor:
    """Rows of the small embedding, (n, CONTEXT); ended and filled up with the end token, as SD 1.x does it.

    A prompt is cut after ``CONTEXT - 2`` words.
    """
    rows = torch.full((len(prompts), CONTEXT), END)
    for row, prompt in zip(rows, prompts):
        known = [_ROW.get(word, UNKNOWN) for word in _split(prompt)][: CONTEXT - 2]
        row[: len(known) + 1] = torch.tensor([START, *known])
    return rows


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that the model was not trained on."""
    return [word for word in _split(prompt) if word not in WORDS]


def _split(prompt: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", prompt.lower())
