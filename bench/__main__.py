"""``python -m bench``: measure, and write the tables and plots in ``docs/``."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from texture_model.model import TEXTURE
from tiny_model.model import TinyModel
from tiny_model.networks import TINY, WEIGHTS

from .calibrate import calibrate_small
from .calibrated import made_for
from .decoder import tolerance
from .exact import ExactScore, geometric_mean, measure_exact
from .further import measure_exact_v3, measure_further
from .grid import CFG_SCALES, Selection, cells
from .metrics import Estimate
from .models import load
from .reach import measure_exact_reach, measure_reach
from .report import write_csv, write_page, write_plots
from .tiny import Score, measure, real_pictures, scores

DOCS = Path(__file__).parents[1] / "docs"
PARTS = ("exact", "decoder", "calibrate", "tiny", "texture", "reach", "further")
DEFAULT = ("exact", "decoder", "tiny", "texture")
"""The other parts must be named, as these already take an hour."""

CALIBRATIONS = {TINY.name: "calibration.json", TEXTURE.name: "texture_calibration.json"}
"""By model the file of its calibration; the statistics lie beside it, in a file of the same name."""


@dataclass(frozen=True)
class ExactMean:
    """One row of the exact problems' table."""

    sampler: str
    schedule: str
    ending: str
    nfe: int
    cfg_scale: float
    error: Estimate


def main(argv: list[str] | None = None) -> None:
    """Measure the parts that the options name, then write the page from all tables."""
    args = _options(argv)
    folder = args.docs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    merge = bool(args.only) or len(args.cfg) < len(CFG_SCALES)
    drawing = (args.out, args.weights, args.device, args.workers)
    if "exact" in args.parts:
        scores_by_problem, fits = measure_exact(args.workers, args.only)
        write_csv(folder / "exact_problems.csv", scores_by_problem, merge)
        write_csv(folder / "exact.csv", _means(scores_by_problem), merge)
        if fits:
            write_csv(folder / "exact_fits.csv", fits, merge)
    weights = {TINY.name: args.weights, TEXTURE.name: TEXTURE.weights}
    if "calibrate" in args.parts:
        for name in weights:
            made = (args.out / name, weights[name], args.device, args.workers)
            calibrate_small(name, folder / CALIBRATIONS[name], *made)
    calibrations = {name: _calibration(folder / CALIBRATIONS[name], weights[name]) for name in weights}
    calibration = calibrations[TINY.name]
    if "decoder" in args.parts:
        write_csv(folder / "decoder.csv", tolerance(TinyModel.load(args.weights, args.device)))
    if "tiny" in args.parts:
        selection = Selection(TINY.name, args.full, calibration, tuple(args.only), tuple(args.cfg))
        write_csv(folder / "tiny.csv", _drawn(selection, *drawing), merge)
    if TEXTURE.name in args.parts:
        selection = Selection(TEXTURE.name, args.full, calibrations[TEXTURE.name], tuple(args.only), tuple(args.cfg))
        elsewhere = (args.out / TEXTURE.name, TEXTURE.weights, args.device, args.workers)
        write_csv(folder / "texture.csv", _drawn(selection, *elsewhere), merge)
    if "reach" in args.parts and calibration is not None:
        write_csv(folder / "reach.csv", measure_reach(calibration, *drawing))
        write_csv(folder / "exact_reach.csv", measure_exact_reach(args.workers))
    if "further" in args.parts:
        real = real_pictures(TinyModel.load(args.weights, args.device))
        write_csv(folder / "further.csv", measure_further(real, *drawing[1:]))
        write_csv(folder / "exact_dpm_v3.csv", measure_exact_v3(args.workers))
    write_plots(folder, args.docs / "images", args.weights / "losses.csv")
    write_page(args.docs / "bench.md", folder, "images")
    print(f"Written: {args.docs / 'bench.md'}, the tables in {folder}, the plots in {args.docs / 'images'}")


def _drawn(selection: Selection, out: Path, weights: Path, device: str, workers: int) -> list[Score]:
    """The rows of one small model's table, with what is not stored yet drawn."""
    measure(selection, out, weights, device, workers)
    model = load(selection.model, weights, device)
    return scores(cells(selection), out, real_pictures(model), model.description.pictures)


def _calibration(path: Path, weights: Path) -> Path | None:
    """The file of a calibration, if there is one that was made for these weights."""
    return path if made_for(path, weights) else None


def _means(scores_by_problem: list[ExactScore]) -> list[ExactMean]:
    """Geometric means over the problems."""
    groups: dict[tuple[str, str, str, int, float], list[ExactScore]] = {}
    for score in scores_by_problem:
        key = (score.sampler, score.schedule, score.ending, score.nfe, score.cfg_scale)
        groups.setdefault(key, []).append(score)
    return [ExactMean(*key, geometric_mean(group)) for key, group in groups.items()]


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure samplers, schedules, endings, Free-U and calibration; writes CSV, Markdown and plots.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "parts",
        nargs="*",
        default=DEFAULT,
        help=f"parts to measure, of {', '.join(PARTS)}; report only writes the page",
    )
    parser.add_argument("--full", action="store_true", help="measure the whole grid, which takes many hours on a CPU")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="METHOD",
        help="measure only these methods, as the tables name them ('HP Auto'); all other lines of the tables stay",
    )  # fmt: skip
    parser.add_argument(
        "--cfg", nargs="+", type=float, default=CFG_SCALES, help="draw with these guidance scales only; as --only"
    )
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page and the tables")
    parser.add_argument(
        "--out", type=Path, default=Path("out/bench"), help="folder in which the batches' results are stored"
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the tiny model's weights")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where the tiny model runs"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes")
    args = parser.parse_args(argv)
    unknown = set(args.parts) - {*PARTS, "report"}
    if unknown:
        parser.error(f"parts must be of {', '.join(PARTS)}, report; got {', '.join(sorted(unknown))}")
    return args


if __name__ == "__main__":
    main()
