"""What tells one small latent diffusion model from another: its pictures and their words, its sizes, what it predicts.

Networks, denoiser and training are the same code for every model and read everything else from its
:class:`Description`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Protocol

import numpy as np
import torch

__all__ = ["CONTEXT", "END", "START", "UNKNOWN", "Captioned", "Description", "Pictures", "Vocabulary"]

CONTEXT = 77
"""Tokens of a prompt, start and end included, as in Stable Diffusion."""

START, END, UNKNOWN = 0, 1, 2


class Captioned(Protocol):
    """What is told about a picture: an attribute for each of its words, and the caption they make."""

    def caption(self, rng: Optional[np.random.Generator] = None) -> str:
        """The whole caption; with a generator, some of it is left out at random."""

    def tells(self, name: str, caption: str) -> bool:
        """Whether that caption of this picture says its word of that name."""


@dataclass(frozen=True)
class Pictures:
    """The pictures a model learns.

    Attributes:
        side: height and width in pixels.
        make: a picture's words, by name, as what is told about it.
        lists: for each thing told, the words there are for it.
        subject: which of them a caption cannot do without; a sample must show these to count as right.
        draw_one: draws a picture, (3, side, side), values from 0 to 1.
    """

    side: int
    make: Callable[..., Any]
    lists: Mapping[str, Sequence[str]]
    subject: tuple[str, ...]
    draw_one: Callable[[Any, np.random.Generator], torch.Tensor]

    def random(self, rng: np.random.Generator) -> Any:
        return self.make(**{name: words[int(rng.integers(len(words)))] for name, words in self.lists.items()})

    def captioned(self, count: int, seed: int = 77) -> list[Any]:
        """Pictures to ask for, always the same ones."""
        rng = np.random.default_rng(seed)
        return [self.random(rng) for _ in range(count)]

    def answers(self) -> dict[str, int]:
        """The things told about a picture, each with how many words there are for it."""
        return {name: len(words) for name, words in self.lists.items()}

    def truth(self, told: Sequence[Captioned]) -> dict[str, torch.Tensor]:
        """For each of :meth:`answers`, the index of every picture's word."""
        return {
            name: torch.tensor([list(words).index(getattr(picture, name)) for picture in told])
            for name, words in self.lists.items()
        }

    def draw(self, told: Sequence[Captioned], rng: np.random.Generator) -> torch.Tensor:
        """Draw them: (n, 3, side, side), values from 0 to 1."""
        return torch.stack([self.draw_one(picture, rng) for picture in told])

    def chunk(self, count: int, seed: int, index: int) -> tuple[list[Any], np.ndarray]:
        """A piece of a data set: the same for the same seed and index. Pictures as bytes, (count, 3, side, side)."""
        torch.set_num_threads(1)
        rng = np.random.default_rng((seed, index))
        told = [self.random(rng) for _ in range(count)]
        return told, (self.draw(told, rng) * 255).round().byte().numpy()


@dataclass(frozen=True)
class Vocabulary:
    """The words a model knows, with their numbers in CLIP's vocabulary.

    The checkpoint for the WebUI carries the standard tokenizer's 49408 rows; all that were not trained share the row
    of the unknown word. Here only the trained rows are kept, and a prompt is read word by word.
    """

    words: Mapping[str, int]

    @property
    def clip_rows(self) -> tuple[int, ...]:
        """Row i of the small embedding is this row of CLIP's; -1 is every row not named."""
        return (49406, 49407, -1, *self.words.values())

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Rows of the small embedding, (n, CONTEXT); ended and filled up with the end token, as SD 1.x does it.

        A prompt is cut after ``CONTEXT - 2`` words.
        """
        numbers = {word: row for row, word in enumerate(self.words, start=UNKNOWN + 1)}
        rows = torch.full((len(prompts), CONTEXT), END)
        for row, prompt in zip(rows, prompts):
            known = [numbers.get(word, UNKNOWN) for word in _split(prompt)][: CONTEXT - 2]
            row[: len(known) + 1] = torch.tensor([START, *known])
        return rows

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that the model was not trained on."""
        return [word for word in _split(prompt) if word not in self.words]


@dataclass(frozen=True)
class Description:
    """A small latent diffusion model.

    Attributes:
        name: as a command line and a table say it.
        weights: the folder of its trained weights.
        unet, vae: arguments of ldm's ``UNetModel``, and of its ``Encoder`` and ``Decoder``.
        prediction: what the UNet's output means, ``"eps"`` or ``"v"``.
        groups: of every normalization. Stable Diffusion has 32, which all widths must be multiples of.
    """

    name: str
    weights: Path
    pictures: Pictures
    vocabulary: Vocabulary
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    prediction: str = "eps"
    groups: int = 32

    @property
    def latent(self) -> tuple[int, int, int]:
        """Shape of a latent."""
        return 4, self.pictures.side // 8, self.pictures.side // 8


def _split(prompt: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", prompt.lower())
