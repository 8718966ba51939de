"""The schedule as a picture of the page (SVG) and as a table, of what :mod:`hpsampler.panel` computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from ..panel import PassView
from ..panel.view import short

__all__ = ["figure", "table"]

HEIGHT = 236
LEFT, RIGHT, TOP, BOTTOM = 42, 14, 30, 34
"""Margins around the plot; labels lie in them, where no line goes."""
FLOOR = 16
"""Pixels between the lowest sigma and 0, which a log axis does not have."""
NARROWEST = 260
STEP_LABEL, LETTER = 24, 6.2
"""Pixels that a step's number, and a letter of a label, take."""
TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 1000, 10000)


def _tag(name: str, text: str = "", **attributes: object) -> str:
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(f"{value:.1f}" if isinstance(value, float) else str(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{told}>{text}</{name}>"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return _tag("text", escape(text), x=float(x), y=float(y), text_anchor=anchor)


class _Axes:
    """Where a step and a sigma lie in the picture."""

    def __init__(self, width: float, last: float, sigmas: Sequence[float]) -> None:
        self.left, self.right, self.top, self.zero = float(LEFT), width - RIGHT, float(TOP), float(HEIGHT - BOTTOM)
        positive = [each for each in sigmas if each > 0]
        self.high, self.low = math.log10(max(positive) * 1.15), math.log10(min(positive) / 1.15)
        self.last = last

    def x(self, step: float) -> float:
        return self.left + (self.right - self.left) * step / self.last

    def y(self, sigma: float) -> float:
        if sigma <= 0:
            return self.zero
        floor = self.zero - FLOOR
        return floor - (floor - self.top) * (math.log10(sigma) - self.low) / (self.high - self.low)

    def box(self, kind: str, first: float, last: float, **own: Any) -> str:
        """An area from step to step over the whole height."""
        return _tag(
            "rect", class_=kind, x=self.x(first), y=self.top, width=self.x(last) - self.x(first),
            height=self.zero - self.top, **own,
        )  # fmt: skip


def _hatch(shown: PassView) -> str:
    """A pattern's id, of its own on each of a page's tabs: one in a tab that is hidden is not painted."""
    return f"hps-hatch-{'txt2img' if shown.use.from_noise else 'img2img'}"


def figure(shown: PassView, width: float) -> str:
    """The picture with its key, for a pass that has a schedule; ``width`` in pixels."""
    width = max(width, NARROWEST)
    steps = len(shown.sigmas) - 1
    # the base curve lies so that its cut is where our schedule ends
    scale = steps / shown.cut if shown.base else 0.0
    last = max(steps, len(shown.karras) - 1, (len(shown.base) - 1) * scale)
    axes = _Axes(width, last, [*shown.sigmas, *shown.karras, *shown.base])
    parts = [_grid(axes, shown, steps), _areas(axes, shown)]
    parts.append(_curve(axes, shown.karras, "hps-karras", 1.0, _square))
    if shown.base:
        base = shown.base
        parts.append(_curve(axes, base[: shown.cut + 1], "hps-base", scale, _cross))
        if shown.is_cut:
            parts.append(_curve(axes, base[shown.cut :], "hps-base hps-beyond", scale, _cross, shown.cut))
            x = axes.x(steps)
            parts.append(_tag("line", class_="hps-cut", x1=x, x2=x, y1=axes.top - 6, y2=axes.zero))
            left = x > axes.right - 4 * LETTER
            parts.append(_text(x, axes.top - 9, "cut", "end" if left else "middle"))
    parts.append(_curve(axes, shown.sigmas, "hps-ours", 1.0, _circle))
    svg = _tag("svg", "".join(parts), viewBox=f"0 0 {width:.0f} {HEIGHT}", role="img", aria_label=_described(shown))
    return svg + _key(shown)


def _grid(axes: _Axes, shown: PassView, steps: int) -> str:
    line = '<rect width="1.4" height="6" fill="currentColor" opacity="0.35"/>'
    parts = [
        f'<defs><pattern id="{_hatch(shown)}" width="6" height="6" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)">{line}</pattern></defs>'
    ]
    ticks = [each for each in TICKS if axes.low <= math.log10(each) <= axes.high]
    for sigma in (*ticks, 0):
        y = axes.y(sigma)
        parts.append(_tag("line", class_="hps-grid", x1=axes.left, x2=axes.right, y1=y, y2=y))
        parts.append(_text(axes.left - 5, y + 4, f"{sigma:g}", "end"))
    parts.append(_text(2, 11, "sigma"))
    apart = (axes.right - axes.left) / axes.last
    every = max(1, math.ceil(STEP_LABEL / apart))
    # as UNet calls are counted: between two points, from 1
    numbers = [number for number in range(1, steps + 1) if _counted(shown, number - 1)]
    for place, index in enumerate(numbers):
        if place % every == 0:
            parts.append(_text(axes.x(index - 0.5), HEIGHT - 18, str(place + 1), "middle"))
    parts.append(_text((axes.left + axes.right) / 2, HEIGHT - 4, "step", "middle"))
    return "".join(parts)


def _counted(shown: PassView, index: int) -> bool:
    """Whether UNet calls are made between that point and the next."""
    return index < len(shown.steps) and shown.steps[index] > 0


def _areas(axes: _Axes, shown: PassView) -> str:
    parts = []
    if shown.skipped:
        parts.append(axes.box("hps-skipped", 0, shown.skipped))
        parts.append(_text(axes.x(0), axes.top - 20, "left out by img2img"))
    right = 0.0
    for first, last in freeu_steps(shown):
        parts.append(axes.box("hps-freeu", first, last, fill=f"url(#{_hatch(shown)})"))
        at = min(max(axes.x(first), axes.left), axes.right - 6 * LETTER)
        if at > right and not shown.skipped:
            parts.append(_text(at, axes.top - 20, "Free-U"))
            right = at + 7 * LETTER
    return "".join(parts)


def freeu_steps(shown: PassView) -> list[tuple[int, int]]:
    """Free-U's windows as points between which they lie."""
    found = []
    for first, last in shown.freeu:
        # a step of two calls is hatched whole
        begins = [index for index, call in enumerate(shown.steps) if 0 < call <= first]
        ends = [index for index, call in enumerate(shown.steps) if 0 < call <= last]
        found.append((begins[-1], ends[-1] + 1))
    return found


def _circle(x: float, y: float) -> str:
    return _tag("circle", class_="hps-ours-dot", cx=x, cy=y, r=4)


def _square(x: float, y: float) -> str:
    return _tag("rect", class_="hps-karras-dot", x=x - 2.2, y=y - 2.2, width=4.4, height=4.4)


def _cross(x: float, y: float) -> str:
    return _tag("path", class_="hps-base-dot", d=f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6")


def _curve(axes: _Axes, sigmas: Sequence[float], kind: str, scale: float, mark: object, first: int = 0) -> str:
    points = [(axes.x((first + index) * scale), axes.y(sigma)) for index, sigma in enumerate(sigmas)]
    line = _tag("polyline", class_=kind, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points))
    marks = "".join(mark(x, y) for x, y in points)  # type: ignore[operator]
    return line + (f'<g class="hps-beyond">{marks}</g>' if "beyond" in kind else marks)


def _key(shown: PassView) -> str:
    def sample(kind: str, mark: str) -> str:
        line = _tag("line", class_=kind, x1=1, x2=33, y1=6, y2=6)
        return _tag("svg", line + mark, viewBox="0 0 34 12", aria_hidden="true")

    end = shown.sigmas[-1]
    ours = f"HP, ends at {short(end)}" + (", which is left for the VAE" if end > 0 else "")
    items = [(sample("hps-ours", _circle(17, 6)), ours), (sample("hps-karras", _square(17, 6)), "DPM++ 2M Karras")]
    if shown.base:
        cut = ", cut where HP ends" if shown.is_cut else ""
        items.append((sample("hps-base", _cross(17, 6)), f"base Karras{cut}"))
    return _tag("ul", "".join(_tag("li", icon + escape(text)) for icon, text in items), class_="hps-key")


def _described(shown: PassView) -> str:
    """The picture in words, for those who cannot see it."""
    base = f"The base Karras schedule has {len(shown.base)} points"
    parts = [f"Noise schedule, sigma from step to step: {', '.join(map(short, shown.sigmas))}."]
    if shown.base:
        parts.append(f"{base} and is cut at point {shown.cut}." if shown.is_cut else f"{base} and is not cut.")
    parts += [f"Free-U in UNet calls {first} to {last}." for first, last in shown.freeu]
    parts.append(f"DPM++ 2M Karras: {', '.join(map(short, shown.karras))}.")
    return " ".join(parts)


def table(shown: PassView) -> str:
    """The same as numbers: for each step its sigmas and whether Free-U is on."""
    spans = freeu_steps(shown)
    rows, count = [], 0
    for index in range(len(shown.sigmas) - 1):
        counted = _counted(shown, index)
        count += counted
        name = str(count) if counted else "left out" if index < shown.skipped else "no call"
        karras = short(shown.karras[index]) if index < len(shown.karras) - 1 else ""
        on = "on" if any(first <= index < last for first, last in spans) else ""
        rows.append([name, short(shown.sigmas[index]), short(shown.sigmas[index + 1]), karras, on])
    head = ["Step", "HP from", "to", "Karras from", "Free-U"]
    body = [_tag("tr", "".join(_tag("th", each, scope="col") for each in head))]
    body += [_tag("tr", "".join(_tag("td", escape(each)) for each in row)) for row in rows]
    return _tag("table", "<caption hidden>Sigma of each step</caption>" + "".join(body))
