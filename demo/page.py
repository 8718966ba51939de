"""The page of the demonstration: one self-contained HTML file with the pictures, the numbers, and what they are of."""

from __future__ import annotations

import base64
from pathlib import Path

from .runs import HP, KARRAS, Comparison, Run
from .scenes import SCENES

__all__ = ["page"]

TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>HP Sampler: the demonstration</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff; max-width: 1040px;
         margin: 2rem auto; padding: 0 1rem; }}
  img {{ max-width: 100%; height: auto; }}
  table {{ border-collapse: collapse; margin: 1rem 0; }}
  th, td {{ padding: .3rem 1rem .3rem 0; text-align: right; border-bottom: 1px solid #e5e7eb; }}
  th:first-child, td:first-child {{ text-align: left; }}
</style>
<h1>The same pictures in fewer calls</h1>
<p><strong>This is an exact toy denoiser, not Stable Diffusion.</strong> It knows {pictures} small pictures of
{captions} captions, drawn by this program, and answers with their exact posterior mean; nothing is learned and nothing
is downloaded. What it shows is how far each sampler ends from where the guided ODE leads from the same noise, at
guidance scale {cfg:g} on Stable Diffusion's noise levels. It does not show how good pictures of a real model are.</p>
<img src="{sheet}" alt="Contact sheet: the same captions and seeds, sampled in different ways">
<table>
<tr><th>sampler<th>steps<th>NFE<th>ms per image<th>relative error<th>last sigma</tr>
{rows}
</table>
<p>{ranking} The time is that of the toy, which is far cheaper than a UNet: compare the NFE, the guided calls of the
denoiser. {grain}Free-U, part of the method on a real model, needs a UNet and is not in these pictures.</p>
<img src="{schedules}" alt="Plot of the noise level per step, and of the base schedules with their cuts">
</html>
"""

GRAIN = (
    "HP Auto keeps a little noise at the end and leaves it to the decoder of a latent model; there is no decoder here, "
    "so it is seen as grain and counts as error. "
)


def page(comparison: Comparison, sheet: Path, schedules: Path) -> str:
    """The page as HTML; the two PNG files are embedded."""
    keeps_noise = any(run.plan and run.plan.name == HP and run.plan.sigmas[-1] > 0 for run in comparison.runs)
    return TEMPLATE.format(
        pictures=comparison.gallery.means.shape[:2].numel(),
        captions=len(SCENES),
        cfg=comparison.cfg_scale,
        sheet=_embedded(sheet),
        schedules=_embedded(schedules),
        rows="\n".join(_row(run) for run in comparison.runs),
        ranking=ranking(comparison),
        grain=GRAIN if keeps_noise else "",
    )


def ranking(comparison: Comparison) -> str:
    """Which of the two came nearer at every number of steps that both were run with, in a sentence."""
    errors = {(run.plan.name, run.plan.steps): run.error for run in comparison.runs if run.plan}
    nearer = [
        f"{min((KARRAS, HP), key=lambda name: errors[name, steps])} at {steps} steps"
        for name, steps in errors
        if name == HP and (KARRAS, steps) in errors
    ]
    return f"Nearer to the reference at equal steps: {', '.join(nearer)}."


def _row(run: Run) -> str:
    cells = [run.name]
    cells.append(str(run.plan.steps) if run.plan else "–")
    cells += [str(run.nfe), f"{run.ms_per_image:.1f}"]
    cells += [f"{run.error:.3f}", f"{run.plan.sigmas[-1]:.3g}"] if run.plan else ["–", "–"]
    return "<tr>" + "".join(f"<td>{cell}" for cell in cells) + "</tr>"


def _embedded(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()
