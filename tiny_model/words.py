"""The words the tiny model knows, with their numbers in CLIP's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .description import CONTEXT, Vocabulary

__all__ = ["CLIP_ROWS", "CONTEXT", "VOCABULARY", "WORDS", "tokens", "unknown_words"]

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

VOCABULARY = Vocabulary(WORDS)
CLIP_ROWS, tokens, unknown_words = VOCABULARY.clip_rows, VOCABULARY.tokens, VOCABULARY.unknown
