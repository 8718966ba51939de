"""How far a job is, and what one takes, as HTML with a live plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, Optional

from ..jobs import FAILED, RUNNING, STOPPED, Progress, Status

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


def cost_html(about: str, calls: Sequence[str], most: int, seconds: Optional[float], timed: str) -> str:
    """What is made, and what it takes.

    Args:
        about: what it is good for, as HTML.
        calls: what each part of it takes.
        most: the largest number of UNet calls there can be, each for one picture.
        seconds: how long those take; None before any call was timed.
        timed: on what calls were timed.
    """
    known = "How long that is, is known as soon as one call was timed"
    if seconds is not None:
        known = f"About <b>{format_duration(seconds)}</b>, as calls were timed {escape(timed)}"
    told = "; then ".join(calls)
    pictures = f"as many as {max(round(most / 20), 1):,} pictures of 20 steps take"
    return f"<p>{about}</p><p>{told[0].upper()}{told[1:]}, {pictures}. {known}.</p>"


def status_html(status: Status[Any], left: Sequence[str] = ()) -> str:
    """Where a job stands, with the one that it waits for as its first part.

    Args:
        status: of the job's runner.
        left: what can be resumed, in words.
    """
    jobs = [status] if status.before is None else [status.before, status]
    at = next((at for at, each in enumerate(jobs) if each.state == RUNNING), None)
    state = status.state if at is None else RUNNING
    told = jobs if at is None else [jobs[at]]
    said = [each.message for each in told]
    if len(jobs) > 1 and len({*said}) == len(said):
        said = [f"{jobs.index(each) + 1} of {len(jobs)}: {each.message}" for each in told]
    parts = [f'<p role="status"><b>{"<br>".join(map(escape, dict.fromkeys(said)))}</b></p>']
    if at is None and left:
        parts.append(f"<p>Can be resumed: {escape('; '.join(left))}.</p>")
    elif state in (STOPPED, FAILED):
        parts.append("<p>Nothing is left to resume.</p>")
    if status.config is not None:
        parts += _numbers(jobs, at is not None)
    if at is not None and not jobs[at].stopping:
        parts += _now(jobs[at])
    parts += [f"<p>{escape(line[:1].upper() + line[1:])}.</p>" for each in jobs for line in each.progress.log[-12:]]
    return f'<div class="hpsampler-status" data-state="{state}">{"".join(parts)}</div>'


def _now(job: Status[Any]) -> list[str]:
    """The cell that is under way, if the job has any."""
    config, cell = job.config, job.progress.cell
    if config is None or cell is None:
        return []
    scales, steps = cell
    several = f"{scales[0]:g} to {scales[-1]:g}" if len(scales) > 1 else f"{scales[0]:g}"
    return [f"<p>Now: {steps} steps at CFG {several}.</p>", plot(job.progress, config.runs)]


def _numbers(jobs: Sequence[Status[Any]], running: bool) -> list[str]:
    """UNet calls made and to be made, of all jobs together."""
    calls = sum(each.progress.calls for each in jobs)
    # one that waits for another has not counted its own yet
    most: int = sum(each.progress.of or each.config.most_calls() for each in jobs if each.config is not None)
    if not calls and not running:
        return []
    told = f"{calls:,} of at most {most:,} UNet calls, each for one picture"
    if calls and running:
        a_call = sum(each.progress.seconds for each in jobs) / calls
        left = format_duration(a_call * max(most - calls, 0))
        told += f"; at most {left} of drawing left ({a_call:.3g} s a call)"
    share = min(calls / max(most, 1), 1.0)
    return [f'<progress max="1" value="{share:.4f}" aria-label="UNet calls made"></progress><p>{told}.</p>']


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
