"""``python -m demo.draw``: what the samplers do, in pictures of the tiny model, on any machine and without a download.

Writes a contact sheet, a plot of the schedules, the numbers, and one page that shows them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from bench.calibrated import SHIPPED, after_calibrate, made_for, profile_of, statistics_of
from bench.methods import Method
from bench.runs import REFERENCE_STEPS, Comparison, compare, runs_of
from bench.webp import LOSSY
from tiny_model.model import TinyModel
from tiny_model.networks import WEIGHTS

from .chart import draw_schedules
from .page import page, ranking
from .sheet import contact_sheet

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> Comparison:
    """Draw everything; returns what was drawn."""
    options = _options(argv)
    model = TinyModel.load(options.weights, options.device)
    chosen = runs_of(_calibrated(model, options.weights, options.cfg))
    total = REFERENCE_STEPS + sum(nfe for _, nfe, _ in chosen)
    with tqdm(total=total, desc="sampling", unit=" calls", disable=options.quiet) as bar:
        comparison = compare(model, options.images, options.seed, options.cfg, chosen, bar.update)

    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    sheet, schedules, index, numbers = (
        out / name for name in ("sheet.webp", "schedules.webp", "index.html", "numbers.json")
    )
    contact_sheet(comparison).save(sheet, **LOSSY)
    draw_schedules(comparison.shown, model.noise, schedules)
    weights = sum(weight.numel() for weight in model.diffusion.parameters())
    index.write_text(page(comparison, weights, sheet, schedules), encoding="utf-8")
    numbers.write_text(json.dumps(_numbers(comparison), indent=2) + "\n", encoding="utf-8")

    for run in comparison.runs:
        reads = f"captions read {100 * run.read:3.0f} %   distance {run.error:.3f}"
        print(f"{run.name:16} {run.nfe:4d} NFE {run.ms_per_image:8.1f} ms per image   {reads}")
    print(ranking(comparison))
    print("A tiny trained model, not Stable Diffusion. Written:")
    for path in (index, sheet, schedules, numbers):
        print(f"  {path}")
    return comparison


def _calibrated(model: TinyModel, weights: Path, cfg_scale: float) -> Optional[Method]:
    """Auto after the bench's calibration, where that was made for this model and compared ways at this scale."""
    if not made_for(SHIPPED, weights):
        return None
    method = after_calibrate(profile_of(SHIPPED), statistics_of(SHIPPED))
    return method if method.plan(model.noise, 5, cfg_scale) else None


def _numbers(comparison: Comparison) -> dict[str, Any]:
    runs = [
        {
            "sampler": run.name,
            "nfe": run.nfe,
            "ms_per_image": round(run.ms_per_image, 3),
            "captions_read": round(run.read, 6),
            "distance": round(run.error, 6),
            "sigmas": run.plan.sigmas.tolist() if run.plan else None,
        }
        for run in comparison.runs
    ]
    images = len(comparison.descriptions)
    return {"cfg_scale": comparison.cfg_scale, "seed": comparison.seed, "images": images, "runs": runs}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo.draw",
        description="Draw what the samplers do.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", default="out/demo", help="folder to write to")
    parser.add_argument("--cfg", type=float, default=7.0, help="guidance scale")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first image")
    parser.add_argument("--images", type=_positive, default=64, help="images the scores are over")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the model's weights")
    parser.add_argument("--device", default="cpu", help="where the model runs")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    main()
