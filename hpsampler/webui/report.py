"""What calibrations and statistics hold, as HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ..calibration.choice import AIMS, PICTURES, SAME_PICTURE
from ..calibration.profile import TOLERATED_CHANGE, Profile, noise_tolerance
from ..recipes import AUTO
from ..statistics.coefficients import Provenance
from .progress import CURVE

__all__ = ["profile_html", "statistics_html"]


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


def profile_html(profile: Profile) -> str:
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
    for joint in sorted(profile.joint, key=lambda each: each.steps):
        for measured in joint.measured:
            errors = measured.held_out
            best = min((error, name) for name, error in errors.items() if name != "calibrated")
            end = f"{joint.schedule.end[0]:g}" if joint.schedule.end[0] else "0"
            used = " (not used)" if measured.refused else ""
            rows.append(
                f"<tr><td>{measured.cfg_scale:g}{used}</td><td>{joint.steps}</td><td><b>{errors['calibrated']:.4f}</b>"
                f"</td><td>{errors.get(AUTO, math.nan):.4f}</td><td>{best[0]:.4f} ({escape(best[1])})</td>"
                f"<td>{measured.baseline:.4f}</td><td>{end}</td><td>{joint.calls}</td>"
                f"<td><code>{joint.hash}</code></td></tr>"
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
        f"({escape(', '.join(profile.hashes))}), {profile.family}, {profile.width}x{profile.height}; "
        f"{_judged(profile)}.</p>"
        f"{_table(head, rows)}{_compared_html(profile)}"
        f"{f'<p>Refused:</p><ul>{refused}</ul>' if refused else ''}{decoder}</div>"
    )


def _judged(profile: Profile) -> str:
    fitted = f"fitted to {profile.trajectories} trajectories, " if profile.rows or profile.refused else ""
    return f"{fitted}judged on {profile.held_out}{' others' if fitted else ' trajectories'}"


def _compared_html(profile: Profile) -> str:
    """The ways to draw that were compared, with the best of either figure marked; empty where none were."""
    names = list(dict.fromkeys(name for each in profile.compared for name in each.figures))
    if not names:
        return ""
    rows = []
    for each in sorted(profile.compared, key=lambda each: (each.cfg_scale, each.steps)):
        best = {aim: each.ranked(aim)[0] for aim in AIMS}
        cells = "".join(
            f"<td>{_marked(each.figures[name].pictures, best[PICTURES] == name)} / "
            f"{_marked(each.figures[name].distance, best[SAME_PICTURE] == name)}</td>"
            if name in each.figures
            else "<td></td>"
            for name in names
        )
        rows.append(f"<tr><td>{each.cfg_scale:g}</td><td>{each.steps}</td>{cells}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in ("CFG", "Steps", *names))
    return (
        "<p>Ways to draw, compared with many steps: how much worse the checkpoint itself knows the pictures / distance "
        "to the same pictures. Smaller is better. HP Auto draws with the way that is marked, and Settings > HP Sampler "
        "says which of the two it aims at; among pictures that are known about equally well it takes those that are "
        f"nearer.</p>{_table(head, rows)}"
    )


def _marked(figure: float, best: bool) -> str:
    return f"<b>{figure:.3f}</b>" if best else f"{figure:.3f}"


def _table(head: str, rows: Sequence[str]) -> str:
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>" if rows else ""


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
