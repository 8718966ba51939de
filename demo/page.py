"""The page of the demonstration: one self-contained HTML file with the pictures, the numbers, and what they are of."""

from __future__ import annotations

import base64
from pathlib import Path

from bench.methods import AUTO, SGM
from bench.runs import Comparison, Run

__all__ = ["page", "ranking"]

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
<p>Drawn by a small latent diffusion model that comes with this program: a text encoder, a UNet and a VAE in Stable
Diffusion 1.x's layout, {weights:.1f} million weights, trained on captioned drawings. <strong>It is not Stable
Diffusion</strong>, and what is seen here need not hold there. Same captions, same noise, guidance scale {cfg:g}.</p>
<img src="{sheet}" alt="Contact sheet: the same captions and seeds, sampled in different ways">
<table>
<tr><th>sampler<th>steps<th>NFE<th>ms per image<th>captions read<th>distance<th>last sigma</tr>
{rows}
</table>
<p>{ranking} NFE are guided calls of the UNet, two evaluations each. The time is of this machine and a small model, the
decoding included. A caption is read if a classifier trained on the same drawings finds its colour and shape; distance
is that of the latents to where the guided equation itself leads, relative to its size; both over {images} images.</p>
<img src="{schedules}" alt="Plot of the noise level per step, and of the base schedules with their cuts">
</html>
"""


def page(comparison: Comparison, weights: int, sheet: Path, schedules: Path) -> str:
    """The page as HTML; the two WebP files are embedded."""
    return TEMPLATE.format(
        weights=weights / 1e6,
        images=len(comparison.descriptions),
        cfg=comparison.cfg_scale,
        sheet=_embedded(sheet),
        schedules=_embedded(schedules),
        rows="\n".join(_row(run) for run in comparison.runs),
        ranking=ranking(comparison),
    )


def ranking(comparison: Comparison) -> str:
    """Which came nearest at every NFE that Auto was run with, and where Auto is behind its best rival, in words."""
    runs = [run for run in comparison.runs if run.plan]
    nearest, behind = [], []
    for auto in [run for run in runs if run.name == AUTO.name]:
        same = [run for run in runs if run.nfe == auto.nfe]
        best = min(same, key=lambda run: run.error)
        nearest.append(f"{best.name} at {auto.nfe} steps")
        if min(run.error for run in same if run.name == SGM.name) < auto.error:
            behind.append(str(auto.nfe))
    told = f"Nearest to the reference at equal steps: {', '.join(nearest)}."
    rival = f"{SGM.name}, the WebUI's best at so few steps,"
    if not behind:
        return f"{told} {rival} is nowhere nearer than {AUTO.name}."
    steps = " and ".join(filter(None, [", ".join(behind[:-1]), behind[-1]]))
    return f"{told} {rival} is nearer than {AUTO.name} at {steps} steps."


def _row(run: Run) -> str:
    cells = [run.name]
    cells.append(str(run.nfe) if run.plan else "–")
    cells += [str(run.nfe), f"{run.ms_per_image:.1f}", f"{100 * run.read:.0f} %"]
    cells += [f"{run.error:.3f}", f"{run.plan.sigmas[-1]:.3g}"] if run.plan else ["–", "–"]
    return "<tr>" + "".join(f"<td>{cell}" for cell in cells) + "</tr>"


def _embedded(webp: Path) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp.read_bytes()).decode()
