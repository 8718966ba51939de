"""What the Calibrate tab shows, as HTML: progress with a live plot, and what a calibration holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Optional

from ..calibration.profile import TOLERATED_CHANGE, Profile, noise_tolerance
from ..jobs import RUNNING, Progress, Status
from ..recipes import AUTO
from ..statistics.coefficients import Provenance

__all__ = ["cost_html", "format_duration", "profile_html", "statistics_html", "status_html"]

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
    time = (
        "The time is shown once the first calls were made" if seconds is None else f"About {format_duration(seconds)}"
    )
    return f"<p>{about}</p><p>{told}. {time}.</p>"


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


def decoder_plot(curve: Sequence[tuple[float, float]]) -> str:
    """How much of residual noise is seen in the decoded pictures; SVG."""
    width, height, left, right, bottom = 320, 150, 50, 18, 32
    most_sigma = max(sigma for sigma, _ in curve)
    most = max(*(change for _, change in curve), 1.5 * TOLERATED_CHANGE)

    def at(sigma: float, change: float) -> str:
        x = left + (width - left - right) * sigma / most_sigma
        return f"{x:.1f},{8 + (height - bottom - 8) * (1 - change / most):.1f}"

    points = " ".join(at(sigma, change) for sigma, change in [(0.0, 0.0), *curve])
    limit = " ".join(at(sigma, TOLERATED_CHANGE) for sigma in (0, most_sigma))
    marks = "".join(
        f'<text x="{left - 5}" y="{float(at(0, change).split(",")[1]) + 4:.1f}" text-anchor="end">{change:.3g}</text>'
        for change in (0, TOLERATED_CHANGE, most)
    ) + "".join(
        f'<text x="{at(sigma, 0).split(",")[0]}" y="{height - bottom + 14}" text-anchor="middle">{sigma:g}</text>'
        for sigma in (0, round(most_sigma / 2, 2), most_sigma)
    )
    told = ", ".join(f"{sigma:g}: {change:.3f}" for sigma, change in curve)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="RMS change by sigma: {told}" '
        f'style="width:100%;max-width:{width}px;font:11px sans-serif;fill:currentColor">'
        f'<path d="M{left} 8V{height - bottom}H{width - right}" fill="none" stroke="currentColor"/>{marks}'
        f'<polyline points="{limit}" fill="none" stroke="currentColor" stroke-dasharray="4 3"/>'
        f'<polyline points="{points}" fill="none" stroke="{CURVE}" stroke-width="2"/>'
        f'<text x="{left}" y="{height - 3}">sigma left on the latents</text></svg>'
    )


def profile_html(profile: Profile, problems: Sequence[str] = ()) -> str:
    """What a calibration holds, every error on trajectories it has not seen."""
    rows = []
    for each in sorted(profile.fitted, key=lambda fitted: (fitted.cfg_scale, fitted.steps)):
        errors = each.held_out
        best = min((error, name) for name, error in errors.items() if name != "calibrated")
        end = f"{each.sigmas[-1]:g}" if each.sigmas[-1] else "0"
        rows.append(
            f"<tr><td>{each.cfg_scale:g}</td><td>{each.steps}</td><td><b>{errors['calibrated']:.4f}</b></td>"
            f"<td>{errors.get(AUTO, math.nan):.4f}</td><td>{best[0]:.4f} ({escape(best[1])})</td>"
            f"<td>{each.baseline:.4f}</td><td>{end}</td><td>{each.calls}</td><td><code>{each.hash}</code></td></tr>"
        )
    head = "".join(
        f"<th>{name}</th>"
        for name in (
            "CFG", "Steps", "Calibrated", "Auto", "Best there was", "20 steps 2M Karras", "End sigma", "UNet calls",
            "Hash",
        )
    )  # fmt: skip
    refused = "".join(
        f"<li>CFG {each.cfg_scale:g}, {each.steps} steps: {escape(each.reason)}</li>" for each in profile.refused
    )
    largest = noise_tolerance(profile.decoder)
    told = (
        f"up to sigma {largest:g} it is under {TOLERATED_CHANGE:g}"
        if largest
        else f"it is above {TOLERATED_CHANGE:g} at once"
    )
    decoder = (
        f"<p>Decoder: RMS change of its pictures (0 to 1) by the noise left on their latents; {told}.</p>"
        f"{decoder_plot(profile.decoder)}"
        if profile.decoder
        else ""
    )
    return (
        f"<div class='hpsampler-profile'><p><b>{escape(profile.name)}</b>: {escape(profile.model)} "
        f"({escape(', '.join(profile.hashes))}), {profile.family}, {profile.width}x{profile.height}; fitted to "
        f"{profile.trajectories} trajectories, judged on {profile.held_out} others.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        f"{f'<p>Refused:</p><ul>{refused}</ul>' if refused else ''}{decoder}"
        f"{''.join(f'<p>{escape(problem)}</p>' for problem in problems)}</div>"
    )


def statistics_html(name: str, about: tuple[Provenance, tuple[int, ...]]) -> str:
    """What statistics say of themselves."""
    source, shape = about
    told = []
    if source.model_name or source.model_hash:
        told.append(f"of {source.model_name or 'a model'} ({source.model_hash or 'no hash'})")
    else:
        told.append("of a model that the files do not name, so only used by name")
    if source.cfg_scale is not None:
        told.append(f"at CFG {source.cfg_scale:g}")
    if source.samples is not None:
        told.append(f"from {source.samples} samples")
    if len(shape) == 4:
        element = "channel" if shape[2] == shape[3] == 1 else f"element of latents of {shape[3]}x{shape[2]}"
        told.append(f"{shape[0]} grid points, for every {element}")
    if len(shape) == 4 and shape[2] == shape[3] == 1 and source.width and source.height:
        told.append(f"measured on latents of {source.width}x{source.height}")
    return f"<p><b>{escape(name)}</b>: {escape(', '.join(told))}.</p>"
