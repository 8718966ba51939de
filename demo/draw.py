"""``python -m demo.draw``: what the samplers do, in pictures, on any machine and without a download.

Writes a contact sheet, a plot of the schedules, the numbers, and one page that shows them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .chart import draw_schedules
from .gallery import gallery
from .page import page, ranking
from .runs import REPEATS, Comparison, compare, plans, stable_diffusion_noise
from .sheet import contact_sheet

__all__ = ["main"]

REFERENCE_CALLS = 801
"""What :func:`~demo.problems.reference_endpoint` spends, for the progress bar's length."""


def main(argv: Sequence[str] | None = None) -> Comparison:
    """Draw everything; returns what was drawn."""
    options = _options(argv)
    # the matrices are small: on a busy machine a second thread waits more than it helps
    torch.set_num_threads(1)
    table = stable_diffusion_noise()
    drawn = plans(table, options.cfg)
    total = REFERENCE_CALLS + REPEATS * sum(plan.steps for plan in drawn)
    with tqdm(total=total, desc="sampling", unit=" calls", disable=options.quiet) as bar:
        comparison = compare(gallery(options.modes), options.images, options.seed, options.cfg, bar.update)

    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    sheet, schedules, index, numbers = (
        out / name for name in ("sheet.png", "schedules.png", "index.html", "numbers.json")
    )
    contact_sheet(comparison).save(sheet, optimize=True)
    draw_schedules(drawn, table, schedules)
    index.write_text(page(comparison, sheet, schedules), encoding="utf-8")
    numbers.write_text(json.dumps(_numbers(comparison), indent=2) + "\n", encoding="utf-8")

    for run in comparison.runs:
        steps = f"{run.plan.steps} steps" if run.plan else ""
        print(f"{run.name:16} {steps:9} {run.nfe:4d} NFE {run.ms_per_image:8.1f} ms per image   error {run.error:.3f}")
    print(ranking(comparison))
    print("An exact toy denoiser, not Stable Diffusion. Written:")
    for path in (index, sheet, schedules, numbers):
        print(f"  {path}")
    return comparison


def _numbers(comparison: Comparison) -> dict[str, Any]:
    runs = [
        {
            "sampler": run.name,
            "steps": run.plan.steps if run.plan else None,
            "nfe": run.nfe,
            "ms_per_image": round(run.ms_per_image, 3),
            "relative_error": round(run.error, 6),
            "sigmas": run.plan.sigmas.tolist() if run.plan else None,
        }
        for run in comparison.runs
    ]
    return {"cfg_scale": comparison.cfg_scale, "seed": comparison.seed, "images": comparison.images, "runs": runs}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo.draw",
        description="Draw what the samplers do.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", default="out/demo", help="folder to write to")
    parser.add_argument("--cfg", type=float, default=5.0, help="guidance scale")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first image")
    parser.add_argument("--images", type=_positive, default=48, help="images the errors are over")
    parser.add_argument("--modes", type=_positive, default=128, help="pictures known per caption")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    main()
