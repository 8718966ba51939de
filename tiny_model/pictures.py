"""The pictures the tiny model learns: one shape on a patterned ground, each with a caption, drawn by signed distances.

A picture is told by six words (:class:`Picture`); place, tilt, shades, light and pattern vary beside them. Everything
follows from a NumPy generator, so the same seed gives the same pictures on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from .description import Pictures

__all__ = [
    "COLOURS",
    "GROUNDS",
    "PATTERNS",
    "PICTURES",
    "PLACES",
    "SHAPES",
    "SIDE",
    "SIZES",
    "Picture",
    "answers",
    "captioned",
    "draw",
    "random_picture",
    "truth",
]

SIDE = 96
"""Height and width in pixels."""

OVERSAMPLING = 2

COLOURS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "red": (0.86, 0.10, 0.12),
        "orange": (0.98, 0.55, 0.08),
        "yellow": (0.98, 0.90, 0.20),
        "green": (0.13, 0.68, 0.22),
        "blue": (0.14, 0.33, 0.92),
        "purple": (0.55, 0.18, 0.75),
        "pink": (0.98, 0.56, 0.78),
        "white": (0.97, 0.97, 0.97),
    }
)
"""Of the shape, RGB from 0 to 1."""

GROUNDS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "black": (0.09, 0.09, 0.11),
        "grey": (0.50, 0.50, 0.52),
        "brown": (0.42, 0.27, 0.16),
        "teal": (0.10, 0.47, 0.48),
        "navy": (0.08, 0.13, 0.36),
        "beige": (0.80, 0.72, 0.58),
    }
)
"""Of the ground: none of them is a shape's colour, so the caption's colour is the shape's alone."""

SIZES: Mapping[str, tuple[float, float]] = MappingProxyType({"small": (0.17, 0.21), "large": (0.28, 0.34)})
"""Radius, in widths of the picture."""

PATTERNS = ("plain", "striped", "dotted", "checked")

PLACES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"left": (-1.0, 0.0), "right": (1.0, 0.0), "top": (0.0, -1.0), "bottom": (0.0, 1.0), "middle": (0.0, 0.0)}
)


@dataclass(frozen=True)
class Picture:
    """What is told about a picture. ``colour`` and ``shape`` are what the classifier must find again."""

    colour: str
    shape: str
    size: str
    pattern: str
    ground: str
    place: str

    def caption(self, rng: np.random.Generator | None = None) -> str:
        """The caption; with a generator, words beside colour and shape are left out at random, as people do."""
        size, pattern, ground, place = (rng is None or rng.uniform() < 0.7 for _ in range(4))
        words = ["a"] + [self.size] * size + [self.colour, self.shape]
        if pattern or ground:
            words += ["on", "a"] + [self.pattern] * pattern + [self.ground] * ground + ["background"]
        if place:
            words += ["in", "the", "middle"] if self.place == "middle" else ["at", "the", self.place]
        return " ".join(words)

    def tells(self, name: str, caption: str) -> bool:
        """Whether a caption of this picture says that word of it."""
        return getattr(self, name) in caption.split()


def _draw(picture: Picture, rng: np.random.Generator) -> torch.Tensor:
    points = SIDE * OVERSAMPLING
    axis = (torch.arange(points) + 0.5) / points
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    edge = 1.0 / SIDE

    image = _ground(picture, x, y, edge, rng)
    radius = rng.uniform(*SIZES[picture.size])
    # a place is as far out as the shape still stays inside
    reach = np.array(PLACES[picture.place]) * max(0.47 - radius, 0.12) * rng.uniform(0.8, 1.0)
    centre = 0.5 + reach + rng.uniform(-0.025, 0.025, 2)
    u, v = _turned((x - centre[0]) / radius, (y - centre[1]) / radius, rng.uniform(-0.2, 0.2))
    distance = SHAPES[picture.shape](u, v) * radius

    fall = rng.uniform(0.015, 0.03)
    su, sv = _turned((x - centre[0] - fall) / radius, (y - centre[1] - 1.5 * fall) / radius, 0.0)
    shadow = _inside(SHAPES[picture.shape](su, sv) * radius, 3 * edge) * rng.uniform(0.35, 0.55)
    image = image * (1 - shadow)

    colour = _shade(COLOURS[picture.colour], rng, 0.05)
    light = 1.06 - 0.16 * ((x - centre[0]) + (y - centre[1])) / radius
    rim = 1 - 0.4 * _inside(-distance - 0.018, 2 * edge)  # 0.6 inside, 1 at the border
    rim = 1 - 0.45 * (rim - 0.6) / 0.4
    body = torch.tensor(colour)[:, None, None] * (light * rim)
    cover = _inside(distance, edge)
    image = image * (1 - cover) + body * cover
    return torch.nn.functional.avg_pool2d(image[None].float(), OVERSAMPLING)[0].clamp(0, 1)


def _ground(picture: Picture, x: torch.Tensor, y: torch.Tensor, edge: float, rng: np.random.Generator) -> torch.Tensor:
    base = torch.tensor(_shade(GROUNDS[picture.ground], rng, 0.03))[:, None, None]
    width, phase = rng.uniform(0.11, 0.15), rng.uniform(0, 1, 2)

    def wave(t: torch.Tensor, shift: float) -> torch.Tensor:
        return torch.sin(2 * math.pi * (t / (2 * width) + shift)) * width / math.pi

    if picture.pattern == "plain":
        mask = torch.zeros_like(x)
    elif picture.pattern == "striped":
        mask = _inside(wave(*_stripe(x, y, rng, phase)), edge)
    elif picture.pattern == "checked":
        mask = _inside(wave(x, phase[0]) * wave(y, phase[1]) * 8, edge)
    else:
        cell = 1.5 * width
        du, dv = ((t / cell + shift) % 1 - 0.5 for t, shift in ((x, phase[0]), (y, phase[1])))
        mask = _inside(torch.hypot(du, dv) * cell - 0.42 * width, edge)
    dark = sum(GROUNDS[picture.ground]) < 1.2
    other = 1.25 * base + 0.1 if dark else 0.7 * base
    glow = 1 + rng.uniform(0.05, 0.25) * (0.5 - y) + rng.uniform(-0.15, 0.15) * (x - 0.5)
    return ((base + (other - base) * mask) * glow).float()


def _stripe(
    x: torch.Tensor, y: torch.Tensor, rng: np.random.Generator, phase: np.ndarray
) -> tuple[torch.Tensor, float]:
    angle = rng.choice([0.0, 0.25, 0.5]) * math.pi + rng.uniform(-0.1, 0.1)
    return x * math.cos(angle) + y * math.sin(angle), float(phase[0])


def _shade(colour: tuple[float, float, float], rng: np.random.Generator, by: float) -> list[float]:
    return [float(min(max(c + d, 0), 1)) for c, d in zip(colour, rng.uniform(-by, by) + rng.uniform(-by, by, 3) / 2)]


def _inside(distance: torch.Tensor, edge: float) -> torch.Tensor:
    """1 where the signed distance is negative, with a border ``edge`` wide."""
    return (0.5 - distance / edge).clamp(0, 1)


def _turned(u: torch.Tensor, v: torch.Tensor, angle: float) -> tuple[torch.Tensor, torch.Tensor]:
    return u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle)


# Signed distances (negative inside, near enough to true distance at the border) of shapes of about unit radius; y down.


def _circle(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.hypot(u, v) - 0.95


def _square(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.82


def _triangle(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.maximum(v - 0.75, 0.87 * u.abs() - 0.5 * v - 0.5)


def _star(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    sector = 2 * math.pi / 5
    angle = torch.atan2(u, -v)
    angle = (angle + sector / 2) % sector - sector / 2
    r = torch.hypot(u, v)
    px, py = r * torch.cos(angle), r * torch.sin(angle).abs()
    # the edge runs from the tip (1.05, 0) to the inner corner
    ix, iy = 0.45 * math.cos(sector / 2), 0.45 * math.sin(sector / 2)
    nx, ny = iy, 1.05 - ix
    return ((px - 1.05) * nx + py * ny) / math.hypot(nx, ny)


def _heart(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Two arcs of circles over a right angle: exact (Inigo Quilez's construction)."""
    x, y = 0.56 * u.abs(), 0.53 - 0.56 * v
    arc = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    foot = 0.5 * (x + y).clamp(min=0)
    side = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - foot, y - foot)) * torch.sign(x - y)
    return torch.where(x + y > 1, arc, side) / 0.56


def _cross(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    a, b = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
    return torch.maximum(a - 0.95, b - 0.32)


def _ring(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (torch.hypot(u, v) - 0.7).abs() - 0.25


def _moon(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.maximum(torch.hypot(u, v) - 0.95, 0.78 - torch.hypot(u - 0.5, v))


SHAPES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = MappingProxyType(
    {
        "circle": _circle,
        "square": _square,
        "triangle": _triangle,
        "star": _star,
        "heart": _heart,
        "cross": _cross,
        "ring": _ring,
        "moon": _moon,
    }
)

PICTURES = Pictures(
    SIDE,
    Picture,
    {
        "colour": tuple(COLOURS),
        "shape": tuple(SHAPES),
        "size": tuple(SIZES),
        "pattern": PATTERNS,
        "ground": tuple(GROUNDS),
        "place": tuple(PLACES),
    },
    ("colour", "shape"),
    _draw,
)
random_picture, captioned, answers = PICTURES.random, PICTURES.captioned, PICTURES.answers
truth, draw = PICTURES.truth, PICTURES.draw
