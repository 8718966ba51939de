"""``python -m demo.result``: README's first picture, few steps beside twenty at the CFG scale a WebUI begins with.

The captions are the first of the contact sheet with seeds from 1 on: none was chosen for how it came out.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import torch
from PIL import Image, ImageDraw

from bench.calibrated import SHIPPED, after_calibrate, profile_of, statistics_of
from bench.methods import AUTO, KARRAS, SGM, Method
from bench.runs import SHOWN
from bench.webp import LOSSY
from tiny_model.model import TinyModel, seeded_noise
from tiny_model.networks import WEIGHTS

from .sheet import INK, MUTED, PAPER, _font

__all__ = ["FILE", "main"]

FILE = Path(__file__).resolve().parents[1] / "docs" / "images" / "result.webp"

CFG_SCALE, COLUMNS, FIRST_SEED = 7.0, 6, 1

CELL, GAP = 148, 6
MARGIN, LABELS = 18, 168
HEADER, FOOTER = 20, 104

ACCENT = "#be185d"

OURS = "of HP Auto"


def rows() -> list[tuple[Method, int, str, str]]:
    """Method, steps, and the two lines beside its pictures."""
    return [
        (KARRAS, 20, "20 steps", "of DPM++ 2M Karras"),
        (SGM, 5, "5 steps", "of the WebUI's best, DPM++ 2M SGM Uniform"),
        (AUTO, 5, "5 steps", f"{OURS}, as it comes"),
        (after_calibrate(profile_of(SHIPPED), statistics_of(SHIPPED)), 5, "5 steps", f"{OURS} after Calibrate"),
    ]


def draw(model: TinyModel, shown: Sequence[tuple[Method, int, str, str]]) -> Image.Image:
    """A row for each way to draw, a column for each caption."""
    told = SHOWN[:COLUMNS]
    seeds = range(FIRST_SEED, FIRST_SEED + len(told))
    noise = seeded_noise(seeds).to(model.device)
    width = MARGIN + LABELS + len(told) * (CELL + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (width, HEADER + len(shown) * (CELL + GAP) + FOOTER), PAPER)
    pen = ImageDraw.Draw(sheet)
    for row, (method, steps, title, about) in enumerate(shown):
        plan = method.plan(model.noise, steps, CFG_SCALE)
        assert plan is not None, method.name
        denoiser = model.denoiser([each.caption() for each in told], CFG_SCALE, freeu=plan.freeu)
        pictures = model.decode(plan.run(denoiser, noise, seeds))
        top = HEADER + row * (CELL + GAP)
        lines = textwrap.wrap(about, 17)
        middle = top + CELL / 2 - 9 * len(lines)
        colour = ACCENT if about.startswith(OURS) else INK
        pen.text((MARGIN, middle - 3), title, colour, _font(19, bold=True), anchor="lm")
        for i, line in enumerate(lines):
            pen.text((MARGIN, middle + 22 + 18 * i), line, INK, _font(14), anchor="lm")
        pixels = (pictures.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
        for column, picture in enumerate(pixels):
            enlarged = Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (MARGIN + LABELS + column * (CELL + GAP), top))
    foot = HEADER + len(shown) * (CELL + GAP)
    for column, picture in enumerate(told):
        middle = MARGIN + LABELS + column * (CELL + GAP) + CELL / 2
        for i, line in enumerate(textwrap.wrap(picture.caption(), 22)):
            pen.text((middle, foot + 10 + 15 * i), line, INK, _font(12), anchor="mm")
    note = (
        f"CFG {CFG_SCALE:g}, the same captions and seeds {seeds[0]} to {seeds[-1]} in every row, not chosen; the small "
        "trained model of this repository, not Stable Diffusion"
    )
    pen.text((MARGIN, sheet.height - 12), note, MUTED, _font(12), anchor="ls")
    return sheet


def main(argv: Optional[Sequence[str]] = None) -> Path:
    """Draw it; returns its file."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.result", description="Draw README's first picture.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=FILE, help="file to write")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the model's weights")
    options = parser.parse_args(argv)
    # the last bits of a picture depend on the number of threads
    torch.set_num_threads(1)
    model = TinyModel.load(options.weights)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(model, rows()).save(options.out, **LOSSY)
    print(f"{options.out}  {options.out.stat().st_size >> 10} kB")
    return Path(options.out)


if __name__ == "__main__":
    main()
