"""Small pictures of captions, drawn by our own code: the data set of the demonstration.

The demonstration must run on any machine without a download, so its "training pictures" are drawn here: each caption is
a function that draws one variation (place, size, colours) from a random generator. The backgrounds are common to all
captions, so that a caption is told by its object, as in photographs, and not by the colour of the sky.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["SCENES", "draw_scenes"]

CANVAS = 192
"""Scenes are drawn on a square of this many pixels, and reduced, which smooths their edges."""

Colour = tuple[float, float, float]
"""Hue, saturation, value, each from 0 to 1."""

WHITE, DARK = (0.0, 0.0, 1.0), (0.65, 0.5, 0.12)

MOODS: tuple[tuple[Colour, Colour, Colour], ...] = (
    ((0.58, 0.60, 0.90), (0.53, 0.15, 1.00), (0.30, 0.60, 0.58)),  # noon, grass
    ((0.55, 0.50, 0.95), (0.50, 0.20, 1.00), (0.12, 0.38, 0.95)),  # beach
    ((0.78, 0.45, 0.55), (0.07, 0.65, 1.00), (0.66, 0.50, 0.38)),  # sunset
    ((0.66, 0.75, 0.20), (0.72, 0.50, 0.52), (0.62, 0.55, 0.25)),  # night
    ((0.60, 0.30, 0.72), (0.58, 0.08, 0.95), (0.60, 0.05, 0.97)),  # snow
    ((0.48, 0.55, 0.62), (0.14, 0.35, 1.00), (0.40, 0.55, 0.38)),  # dawn
)
"""Colour of the sky above, at the horizon, and of the ground."""


class Scene:
    """A picture being drawn: a sky of a random mood, and shapes on it in coordinates from 0 to 1, y downwards."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        top, bottom, self.ground = (self.about(colour) for colour in MOODS[rng.integers(len(MOODS))])
        ramp = np.linspace(0, 1, CANVAS)[:, None, None]
        column = (1 - ramp) * np.array(_rgb(top)) + ramp * np.array(_rgb(bottom))
        self.image = Image.fromarray(np.broadcast_to(column, (CANVAS, CANVAS, 3)).round().astype(np.uint8))
        self.pen = ImageDraw.Draw(self.image)

    def about(self, colour: Colour, by: float = 0.04) -> Colour:
        """A colour near the given one."""
        hue, saturation, value = np.array(colour) + self.rng.uniform(-by, by, 3) * (0.5, 1, 2)
        return hue, saturation, value

    def land(self, top: float, swing: float, darker: float = 1.0) -> None:
        """Ground, everything below a wavy line near height ``top``."""
        x = np.linspace(0, 1, 48)
        y = top + swing * np.sin(2 * np.pi * (self.rng.uniform(0.5, 1.2) * x + self.rng.uniform()))
        hue, saturation, value = self.ground
        self.below(np.stack([x, y], 1), (hue, saturation, value * darker))

    def below(self, line: np.ndarray, colour: Colour) -> None:
        """Everything below a line of points (x, y), shape (n, 2)."""
        self.polygon([(0.0, 1.0), *line.tolist(), (1.0, 1.0)], colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour, squash: float = 1.0) -> None:
        box = (x - radius, y - radius * squash, x + radius, y + radius * squash)
        self.pen.ellipse([side * CANVAS for side in box], fill=_rgb(colour))

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self.pen.polygon([(x * CANVAS, y * CANVAS) for x, y in points], fill=_rgb(colour))

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)


def _rgb(colour: Colour) -> tuple[int, int, int]:
    hue, saturation, value = colour
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return round(255 * red), round(255 * green), round(255 * blue)


def red_ball(scene: Scene, rng: np.random.Generator) -> None:
    scene.land(rng.uniform(0.45, 0.7), 0.07)
    scene.land(rng.uniform(0.68, 0.82), 0.05, darker=0.8)
    x, y, radius = rng.uniform(0.25, 0.75), rng.uniform(0.42, 0.68), rng.uniform(0.15, 0.24)
    scene.disc(x + 0.03, y + radius, radius * 0.9, DARK, squash=0.22)
    hue, saturation, value = scene.about((0.99, 0.9, 0.88))
    for part in np.linspace(0, 1, 12):  # lit from the upper left
        shift = 0.35 * radius * part
        lit = (hue, saturation * (1 - 0.55 * part**2), value * (0.62 + 0.5 * part))
        scene.disc(x - shift, y - shift, radius * (1 - 0.85 * part), lit)


def sailing_boat(scene: Scene, rng: np.random.Generator) -> None:
    horizon = rng.uniform(0.52, 0.68)
    sun = rng.uniform(0.12, 0.88)
    scene.disc(sun, horizon - rng.uniform(0.0, 0.3), 0.1, (0.14, 0.25, 1.0))
    sea = scene.about((0.6, 0.6, rng.uniform(0.35, 0.7)))
    scene.box(0, horizon, 1, 1, sea)
    for step in range(4):
        y, half = horizon + 0.04 + 0.085 * step, 0.07 + 0.02 * step
        scene.box(sun - half, y, sun + half, y + 0.026, (0.12, 0.3, 0.95 - 0.08 * step))
    x, deck, size = rng.uniform(0.3, 0.7), horizon + rng.uniform(0.04, 0.16), rng.uniform(0.24, 0.34)
    side = rng.choice([-1, 1])
    foot = deck - 0.03
    scene.polygon([(x, foot), (x, deck - 1.7 * size), (x + side * 0.85 * size, foot)], WHITE)
    mast = x - side * 0.04
    jib = [(mast, foot), (mast, deck - 1.3 * size), (x - side * 0.6 * size, foot)]
    scene.polygon(jib, (rng.uniform(0, 1), 0.8, 0.9))
    hull = [(-0.7, 0.0), (0.85, 0.0), (0.6, 0.1), (-0.5, 0.1)]
    scene.polygon([(x + side * across * size, deck + down) for across, down in hull], (0.05, 0.65, 0.3))


def full_moon(scene: Scene, rng: np.random.Generator) -> None:
    x, y, radius = rng.uniform(0.2, 0.8), rng.uniform(0.18, 0.38), rng.uniform(0.13, 0.19)
    colour = scene.about((0.14, 0.12, 0.98))
    scene.disc(x, y, radius, colour)
    for across, down, size in ((-0.4, -0.2, 0.25), (0.3, 0.35, 0.2), (0.25, -0.35, 0.14)):
        scene.disc(x + across * radius, y + down * radius, size * radius, (0.12, 0.15, 0.82))
    for level, darker in ((0.62, 0.75), (0.78, 0.45)):
        peaks = np.tile([0.1, -0.1], 5)[:9] * rng.uniform(0.2, 1.3, 9) + level
        hue, saturation, value = scene.ground
        scene.below(np.stack([np.linspace(0, 1, 9), peaks], 1), (hue, saturation, value * darker))


def house(scene: Scene, rng: np.random.Generator) -> None:
    scene.land(rng.uniform(0.58, 0.74), 0.04)
    x, width, foot = rng.uniform(0.33, 0.67), rng.uniform(0.19, 0.26), rng.uniform(0.74, 0.88)
    top = foot - rng.uniform(0.27, 0.33)
    scene.box(x + 0.4 * width, top - 0.26, x + 0.4 * width + 0.08, top, (0.03, 0.5, 0.4))
    scene.box(x - width, top, x + width, foot, scene.about((rng.choice([0.02, 0.1, 0.58]), 0.5, 0.75)))
    eaves = width + 0.07
    scene.polygon([(x - eaves, top), (x, top - 0.27), (x + eaves, top)], scene.about((0.02, 0.6, 0.35)))
    scene.box(x - 0.05, foot - 0.18, x + 0.05, foot, (0.06, 0.6, 0.25))
    for side in (-0.62, 0.62):
        scene.box(x + side * width - 0.05, top + 0.06, x + side * width + 0.05, top + 0.15, (0.14, 0.6, 1.0))


def fish(scene: Scene, rng: np.random.Generator) -> None:
    for x in rng.uniform(0.05, 0.95, 3):
        for y in np.linspace(1.0, rng.uniform(0.65, 0.8), 7):
            scene.disc(x + 0.025 * np.sin(30 * y), y, 0.033, (0.36, 0.7, 0.4))
    for x, y in rng.uniform((0.05, 0.05), (0.95, 0.35), (3, 2)):
        scene.disc(x, y, 0.025, (0.5, 0.1, 1.0))
    side, hue = rng.choice([-1, 1]), rng.uniform(0.55, 0.7)
    x, y, size = rng.uniform(0.38, 0.62), rng.uniform(0.34, 0.64), rng.uniform(0.22, 0.3)
    fins, tail = (0.11, 0.85, 0.98), x - side * 0.85 * size
    scene.polygon([(tail, y), (tail - side * 0.16, y - 0.15), (tail - side * 0.16, y + 0.15)], fins)
    scene.polygon([(x - side * 0.1, y - 0.1), (x + side * 0.1, y - 0.1), (x - side * 0.08, y - 0.27)], fins)
    scene.disc(x, y, size, (hue, 0.85, 0.78), squash=0.62)
    scene.disc(x, y + 0.05, size * 0.75, (hue, 0.45, 0.95), squash=0.42)
    eye = x + side * 0.55 * size
    scene.disc(eye, y - 0.04, 0.055, WHITE)
    scene.disc(eye + side * 0.01, y - 0.04, 0.028, DARK)


def yellow_flower(scene: Scene, rng: np.random.Generator) -> None:
    scene.land(rng.uniform(0.7, 0.85), 0.05)
    x, y, size = rng.uniform(0.33, 0.67), rng.uniform(0.32, 0.48), rng.uniform(0.17, 0.23)
    green = scene.about((0.33, 0.8, 0.45))
    scene.polygon([(x - 0.025, y), (x + 0.025, y), (0.53, 1.0), (0.47, 1.0)], green)
    side = rng.choice([-1, 1])
    scene.polygon([(0.5, 0.88), (0.5 + side * 0.3, 0.7), (0.5 + side * 0.12, 0.92)], green)
    petals = rng.integers(5, 9)
    petal = (rng.uniform(0.11, 0.16), 0.9, 1.0)
    for angle in 2 * np.pi * (np.arange(petals) + rng.uniform()) / petals:
        scene.disc(x + size * np.cos(angle), y + size * np.sin(angle), 0.62 * size, petal)
    scene.disc(x, y, 0.6 * size, (0.06, 0.8, 0.5))


def hot_air_balloon(scene: Scene, rng: np.random.Generator) -> None:
    scene.land(rng.uniform(0.82, 0.95), 0.05)
    for x, y in rng.uniform((0.0, 0.1), (1.0, 0.8), (2, 2)):
        for shift in (-0.1, 0.1, 0.0):
            scene.disc(x + shift, y - 0.03 * (shift == 0), 0.09, WHITE, squash=0.6)
    x, y, radius = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.46), rng.uniform(0.2, 0.27)
    hue, stripe, basket = rng.uniform(0, 1), rng.choice([0.13, 0.5]), y + 1.65 * radius
    side, below = 0.8 * radius, y + 0.6 * radius
    scene.polygon([(x - side, below), (x + side, below), (x + 0.05, basket), (x - 0.05, basket)], (hue, 0.7, 0.65))
    scene.disc(x, y, radius, (hue, 0.8, 0.9))
    scene.disc(x, y, 0.62 * radius, (stripe, 0.45, 1.0), squash=1 / 0.62)
    scene.disc(x, y, 0.24 * radius, (hue, 0.8, 0.9), squash=1 / 0.24)
    scene.box(x - 0.06, basket, x + 0.06, basket + 0.1, (0.07, 0.7, 0.35))


def striped_umbrella(scene: Scene, rng: np.random.Generator) -> None:
    scene.land(rng.uniform(0.6, 0.8), 0.04)
    x, top, width = rng.uniform(0.33, 0.67), rng.uniform(0.14, 0.32), rng.uniform(0.29, 0.38)
    rim, foot, hue = top + rng.uniform(0.26, 0.34), rng.uniform(0.86, 0.94), rng.uniform(0, 1)
    scene.disc(x + 0.05, foot, 0.24, DARK, squash=0.13)
    scene.box(x - 0.018, top, x + 0.018, foot, (0.08, 0.5, 0.4))
    for i, (left, right) in enumerate(pairwise(np.linspace(-width, width, 8))):
        scene.polygon([(x, top), (x + left, rim), (x + right, rim)], (hue, 0.8 * (i % 2 == 0), 0.97))


SCENES: Mapping[str, Callable[[Scene, np.random.Generator], None]] = MappingProxyType(
    {
        "a red ball": red_ball,
        "a sailing boat": sailing_boat,
        "a full moon": full_moon,
        "a house": house,
        "a fish": fish,
        "a yellow flower": yellow_flower,
        "a hot-air balloon": hot_air_balloon,
        "a striped umbrella": striped_umbrella,
    }
)
"""What is drawn for each caption."""


def draw_scenes(caption: str, count: int, size: int, seed: int) -> np.ndarray:
    """``count`` variations of a caption, shape (count, size, size, 3), values from 0 to 1."""
    rng = np.random.default_rng((seed, list(SCENES).index(caption)))
    pictures = np.empty((count, size, size, 3))
    for picture in pictures:
        scene = Scene(rng)
        SCENES[caption](scene, rng)
        picture[:] = np.asarray(scene.image.resize((size, size), Image.Resampling.BOX))
    return pictures / 255
