"""The words the texture model knows, with their numbers in CLIP's vocabulary: each is one token of its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["WORDS"]

WORDS: Mapping[str, int] = MappingProxyType(
    {
        "over": 962,
        "of": 539,
        "and": 537,
        "one": 637,
        "two": 1237,
        "three": 2097,
        "fine": 3797,
        "broad": 12623,
        "level": 2931,
        "rising": 5448,
        "upright": 29818,
        "falling": 7293,
        "stripes": 14239,
        "checks": 13737,
        "waves": 7882,
        "fade": 20486,
        "clouds": 6244,
        "slate": 17919,
        "moss": 12815,
        "plum": 16202,
        "rust": 14212,
        "cream": 3867,
        "sage": 7509,
        "blush": 22889,
        "mist": 11946,
        "amber": 9986,
        "ink": 967,
        "coral": 12054,
        "ivory": 16776,
        "jade": 14513,
        "indigo": 21002,
        "leaf": 7232,
        "leaves": 5579,
        "fish": 2759,
        "fishes": 35470,
        "arrow": 11149,
        "arrows": 24768,
        "house": 1212,
        "houses": 7791,
        "bolt": 13131,
        "bolts": 26028,
        "cup": 1937,
        "cups": 11463,
    }
)  # fmt: skip
