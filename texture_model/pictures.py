"""The pictures the texture model learns: one to three small objects over a texture of two colours, each with a caption.

A picture is told by eight words (:class:`Picture`); place, tilt, shades, phases and the texture's waves vary beside
them. Everything follows from a NumPy generator, so the same seed gives the same pictures on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

__all__ = ["COLOURS", "DARK", "DIRECTIONS", "LIGHT", "NUMBERS", "SCALES", "SHAPES", "SIDE", "TEXTURES", "Picture"]

SIDE = 64
"""Height and width in pixels."""

Colour = tuple[float, float, float]

DARK: Mapping[str, Colour] = MappingProxyType(
    {"slate": (0.27, 0.34, 0.42), "moss": (0.30, 0.36, 0.20), "plum": (0.38, 0.22, 0.34), "rust": (0.56, 0.28, 0.17)}
)
"""Of the texture, its one colour, RGB from 0 to 1."""

LIGHT: Mapping[str, Colour] = MappingProxyType(
    {"cream": (0.93, 0.88, 0.72), "sage": (0.66, 0.74, 0.60), "blush": (0.87, 0.68, 0.66), "mist": (0.68, 0.76, 0.83)}
)
"""Of the texture, its other colour."""

COLOURS: Mapping[str, Colour] = MappingProxyType(
    {
        "amber": (0.88, 0.64, 0.16),
        "ink": (0.11, 0.11, 0.17),
        "coral": (0.90, 0.40, 0.33),
        "ivory": (0.97, 0.95, 0.89),
        "jade": (0.18, 0.60, 0.48),
        "indigo": (0.31, 0.27, 0.66),
    }
)
"""Of the objects: none of them is a texture's."""

DIRECTIONS: Mapping[str, float] = MappingProxyType({"level": 0.0, "rising": 0.25, "upright": 0.5, "falling": 0.75})
"""How the texture's lines run, in half turns."""

SCALES: Mapping[str, tuple[float, float]] = MappingProxyType({"fine": (0.17, 0.21), "broad": (0.35, 0.43)})
"""Period of the texture, in widths of the picture."""

NUMBERS: Mapping[str, tuple[int, tuple[float, float], float]] = MappingProxyType(
    {"one": (1, (0.25, 0.30), 0.0), "two": (2, (0.18, 0.205), 0.23), "three": (3, (0.155, 0.175), 0.265)}
)
"""How many objects, their radius, and their distance from the middle, in widths of the picture."""


@dataclass(frozen=True)
class Picture:
    """What is told about a picture. ``colour`` and ``shape`` are what the classifier must find again."""

    number: str
    colour: str
    shape: str
    scale: str
    direction: str
    texture: str
    dark: str
    light: str

    def caption(self, rng: np.random.Generator | None = None) -> str:
        """The caption; with a generator, words about the texture are left out at random, as people do."""
        texture, scale, direction, colours = (rng is None or rng.uniform() < 0.75 for _ in range(4))
        words = [self.number, self.colour, self.shape if self.number == "one" else PLURALS[self.shape]]
        if texture:
            words += ["over"] + [self.scale] * scale + [self.direction] * direction + [self.texture]
        if colours:
            words += ["of" if texture else "over", self.dark, "and", self.light]
        return " ".join(words)

    def tells(self, name: str, caption: str) -> bool:
        """Whether a caption of this picture says that word of it."""
        word = getattr(self, name)
        return not {word, PLURALS.get(word)}.isdisjoint(caption.split())


# ---- drawing ---------------------------------------------------------------------------------------------------------


def draw(picture: Picture, rng: np.random.Generator) -> torch.Tensor:
    """The picture, (3, SIDE, SIDE), values from 0 to 1."""
    axis = (torch.arange(SIDE) + 0.5) / SIDE
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    dark, light = (_shade(colours[name], rng) for colours, name in ((DARK, picture.dark), (LIGHT, picture.light)))
    image = dark + (light - dark) * _texture(picture, x, y, rng)

    count, radii, reach = NUMBERS[picture.number]
    colour = _shade(COLOURS[picture.colour], rng)
    rim = colour * 0.45 if colour.mean() > 0.45 else colour * 0.4 + 0.6
    first, middle = rng.uniform(0, 2 * math.pi), 0.5 + rng.uniform(-0.07, 0.07, 2) * (2.0 if count == 1 else 0.6)
    for index in range(count):
        radius, turn = rng.uniform(*radii), first + 2 * math.pi * index / count
        left, top = middle + reach * np.array([math.cos(turn), math.sin(turn)])
        u, v = _turned((x - left) / radius, (y - top) / radius, rng.uniform(-0.25, 0.25))
        distance = SHAPES[picture.shape](u, v) * radius
        image = image + (rim - image) * _inside(distance - 1.4 / SIDE)
        light_from_above = colour * (1.0 - 0.12 * (y - top) / radius)
        image = image + (light_from_above - image) * _inside(distance)
    return image.clamp(0, 1).float()


def _texture(picture: Picture, x: torch.Tensor, y: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The light colour's share at every point, (SIDE, SIDE)."""
    angle = DIRECTIONS[picture.direction] * math.pi + rng.uniform(-0.12, 0.12)
    # y runs down: along the lines, and across them
    along, across = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
    period = rng.uniform(*SCALES[picture.scale])
    shift, other = rng.uniform(0, 1, 2)

    def wave(t: torch.Tensor, period: float, shift: float) -> torch.Tensor:
        return torch.sin(2 * math.pi * (t / period + shift))

    def edged(height: torch.Tensor) -> torch.Tensor:
        return _inside(-height * period / (2 * math.pi))

    if picture.texture == "stripes":
        return edged(wave(across, period, shift))
    if picture.texture == "checks":
        return edged(wave(across, period, shift) * wave(along, 2.2 * period, other))
    if picture.texture == "waves":
        return edged(wave(across + 0.3 * period * wave(along, 2.0 * period, other), period, shift))
    if picture.texture == "fade":
        return 0.5 + 0.5 * wave(across, 2.4 * period, shift)
    # clouds: many waves at once, longer along than across
    height = torch.zeros_like(x)
    for _ in range(10):
        high, wide = rng.normal(0, 1 / period, 2) * (0.75, 0.3)
        height = height + torch.cos(2 * math.pi * (across * high + along * wide + rng.uniform()))
    return torch.sigmoid(1.1 * height)


def _shade(colour: Colour, rng: np.random.Generator) -> torch.Tensor:
    """The colour, a little lighter or darker, as a column over points."""
    by = rng.uniform(-0.03, 0.03) + rng.uniform(-0.02, 0.02, 3)
    return (torch.tensor(colour) + torch.from_numpy(by)).clamp(0, 1)[:, None, None]


def _inside(distance: torch.Tensor) -> torch.Tensor:
    """1 where the signed distance is negative, with a border one pixel wide."""
    return (0.5 - distance * SIDE).clamp(0, 1)


def _turned(u: torch.Tensor, v: torch.Tensor, angle: float) -> tuple[torch.Tensor, torch.Tensor]:
    return u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle)


# Signed distances (negative inside) of shapes of about unit radius; y down.


def _polygon(*corners: tuple[float, float]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The exact signed distance to a polygon (Inigo Quilez's construction)."""

    def distance(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        nearest, sign = torch.full_like(u, math.inf), torch.ones_like(u)
        for (au, av), (bu, bv) in zip(corners, [*corners[1:], corners[0]]):
            eu, ev = bu - au, bv - av
            pu, pv = u - au, v - av
            share = ((pu * eu + pv * ev) / (eu * eu + ev * ev)).clamp(0, 1)
            nearest = torch.minimum(nearest, torch.hypot(pu - eu * share, pv - ev * share))
            # a ray from the point to the right crosses the edge
            crossed = ((av > v) != (bv > v)) & (pu < eu * pv / (ev or math.inf))
            sign = torch.where(crossed, -sign, sign)
        return nearest * sign

    return distance


def _leaf(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Where two circles overlap, its tips at the corners, with a stalk."""
    along, across = _turned(u, v, -math.pi / 4)
    blade = torch.maximum(torch.hypot(along - 0.1, across - 0.72), torch.hypot(along - 0.1, across + 0.72)) - 1.2
    stalk = torch.maximum((along + 0.9).abs() - 0.25, across.abs() - 0.09)
    return torch.minimum(blade, stalk)


def _fish(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    body = torch.maximum(torch.hypot(u + 0.22, v - 0.4), torch.hypot(u + 0.22, v + 0.4)) - 0.88
    return torch.minimum(body, _tail(u, v))


def _cup(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    handle = (torch.hypot(u - 0.45, v + 0.05) - 0.38).abs() - 0.12
    return torch.minimum(_bowl(u, v), handle)


_tail = _polygon((0.25, 0.0), (1.0, -0.6), (1.0, 0.6))
_bowl = _polygon((-0.85, -0.7), (0.45, -0.7), (0.3, 0.75), (-0.7, 0.75))
_arrow = _polygon(
    (0.0, -1.0), (0.85, -0.1), (0.28, -0.1), (0.28, 0.95), (-0.28, 0.95), (-0.28, -0.1), (-0.85, -0.1)
)  # fmt: skip
_bolt = _polygon((0.35, -1.0), (-0.7, 0.2), (-0.1, 0.2), (-0.35, 1.0), (0.7, -0.25), (0.1, -0.25))
_house = _polygon(
    (0.0, -0.95), (0.95, -0.15), (0.7, -0.15), (0.7, 0.85), (0.2, 0.85), (0.2, 0.25), (-0.2, 0.25), (-0.2, 0.85),
    (-0.7, 0.85), (-0.7, -0.15), (-0.95, -0.15),
)  # fmt: skip

SHAPES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = MappingProxyType(
    {"leaf": _leaf, "fish": _fish, "arrow": _arrow, "house": _house, "bolt": _bolt, "cup": _cup}
)

PLURALS: Mapping[str, str] = MappingProxyType(
    {"leaf": "leaves", "fish": "fishes", "arrow": "arrows", "house": "houses", "bolt": "bolts", "cup": "cups"}
)

TEXTURES = ("stripes", "checks", "waves", "fade", "clouds")
