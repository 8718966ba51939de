"""How far a job is, and what one takes, as HTML with a live plot."""

from __future__ import annotations

import math
from html import escape
from typing import Optional

from ..jobs import RUNNING, Progress, Status

__all__ = ["CURVE", "cost_html", "format_duration", "plot", "status_html"]

WIDTH, HEIGHT = 700, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 236, 14, 34
DASHES = ("6 3", "2 3", "8 3 2 3", "1 4", "10 4")
CURVE = "#3b82f6"


def format_duration(seconds: float) -> str:
    """Such as ``2 h 5 min``, ``4 min`` or ``30 s``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def cost_html(about: str, calls: str, seconds: Optional[float]) -> str:
    """What is made, and what it takes: ``calls`` says so in UNet calls, ``seconds`` is None before any was timed."""
    told = f"{calls}, each for one picture (drawing one picture with 20 steps takes 20)"
    known = "The time is shown once the first calls were made"
    if seconds is not None:
        known = f"About {format_duration(seconds)}, judged by the calls that were timed here"
    return f"<p>{about}</p><p>{told}. {known}.</p>"


def status_html(status: Status) -> str:
    """Where the runner stands."""
    progress = status.progress
    parts = [f'<p role="status"><b>{escape(status.message)}</b></p>']
    if progress.of and status.config is not None:
        share = min(progress.calls / max(progress.of, 1), 1.0)
        left = progress.seconds_left
        told = f"{progress.calls} of at most {progress.of} UNet calls, each for one picture"
        if left is not None and status.state == RUNNING:
            told += (
                f"; at most {format_duration(left)} of drawing left ({progress.seconds / progress.calls:.3g} s a call)"
            )
        parts.append(f'<progress max="1" value="{share:.4f}" style="width:100%"></progress><p>{told}.</p>')
        if progress.cell is not None and status.state == RUNNING:
            cfg_scale, steps = progress.cell
            parts.append(f"<p>Now: {steps} steps at CFG {cfg_scale:g}.</p>")
            parts.append(plot(progress, status.config.runs))
        parts.append("".join(f"<p>{escape(line)}.</p>" for line in progress.log[-12:]))
    return f'<div class="hpsampler-status" data-state="{status.state}">{"".join(parts)}</div>'


def plot(progress: Progress, runs: float) -> str:
    """Error of every run so far and of the best, on a log axis, with lines for what it is compared to; SVG."""
    errors = [error for _, error in progress.curve if error > 0]
    lines = {name: error for name, error in progress.lines.items() if 0 < error < math.inf}
    values = [*errors, *lines.values()]
    if not values:
        return ""
    low, high = math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.1
    most = max([runs, *(at for at, _ in progress.curve)])

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at / most

    def y(error: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(error)) / (high - low)

    drawn = [_axes(x, y, most, low, high)]
    placed: list[float] = []
    for (name, error), dash in zip(sorted(lines.items(), key=lambda item: -item[1]), DASHES * 2):
        at = y(error)
        label_at = max([at, *(other + 13 for other in placed)])
        placed.append(label_at)
        drawn.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="currentColor" '
            f'stroke-dasharray="{dash}" opacity="0.7"/><text x="{WIDTH - RIGHT + 6}" y="{label_at + 4:.1f}">'
            f"{escape(name)} {error:.3g}</text>"
        )
    best = math.inf
    points = []
    for at, error in progress.curve:
        drawn.append(f'<circle cx="{x(at):.1f}" cy="{y(error):.1f}" r="2.5" fill="{CURVE}" opacity="0.6"/>')
        best = min(best, error)
        points.append(f"{x(at):.1f},{y(best):.1f}")
    drawn.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{CURVE}" stroke-width="2"/>')
    told = f"error of the fit so far {best:.3g}" if errors else "no run yet"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Error by runs of the sampler: {told}" '
        f'style="width:100%;max-width:{WIDTH}px;font:11px sans-serif;fill:currentColor">{"".join(drawn)}</svg>'
    )


def _axes(x: object, y: object, most: float, low: float, high: float) -> str:
    assert callable(x) and callable(y)
    marks = []
    for exponent in range(math.floor(low), math.ceil(high) + 1):
        for factor in (1, 2, 5):
            value = factor * 10.0**exponent
            if low <= math.log10(value) <= high:
                marks.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for at in (0, most / 2, most):
        marks.append(f'<text x="{x(at):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{at:.0f}</text>')
    frame = f"M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"
    return (
        f'<path d="{frame}" fill="none" stroke="currentColor"/>{"".join(marks)}'
        f'<text x="{LEFT}" y="{HEIGHT - 4}">runs of the sampler over the calibration set; error on it, log scale</text>'
    )
