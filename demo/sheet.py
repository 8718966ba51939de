"""The contact sheet: a row per caption and seed, a column per run, what it cost and how near it came underneath."""

from __future__ import annotations

import textwrap
from itertools import groupby
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from bench.calibrated import AFTER as CALIBRATED
from bench.methods import AUTO, KARRAS, SGM
from bench.runs import REFERENCE, SHOWN, Comparison, Run

from .page import ranking

__all__ = ["COLOURS", "contact_sheet"]

COLOURS = {
    REFERENCE: "#4b5563", KARRAS.name: "#b45309", SGM.name: "#047857", AUTO.name: "#1d4ed8", CALIBRATED: "#be185d",
}  # fmt: skip
INK, MUTED, PAPER = "#1f2937", "#6b7280", "#ffffff"

CELL, GAP, BLOCK_GAP = 144, 6, 26
MARGIN, LABELS = 24, 150
HEADER, FOOTER = 132, 174


def contact_sheet(comparison: Comparison) -> Image.Image:
    """The sheet of the first image of every caption."""
    rows = min(len(comparison.descriptions), len(SHOWN))
    lefts = _lefts(comparison.shown)
    width = lefts[-1] + CELL + MARGIN
    sheet = Image.new("RGB", (width, HEADER + rows * (CELL + GAP) + FOOTER), PAPER)
    pen = ImageDraw.Draw(sheet)
    _title(pen, comparison)
    _block_headers(pen, comparison.shown, lefts)
    _row_labels(pen, comparison, rows)
    for left, run in zip(lefts, comparison.shown, strict=True):
        _column(sheet, pen, comparison, run, left, rows)
    _footnotes(pen, comparison, sheet.height - 54)
    return sheet


def _lefts(runs: list[Run]) -> list[int]:
    """Where the columns begin; blocks of one name stand apart."""
    lefts: list[int] = []
    at = MARGIN + LABELS
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        lefts.append(at)
        at += CELL + (GAP if following is not None and following.name == run.name else BLOCK_GAP)
    return lefts


def _title(pen: ImageDraw.ImageDraw, comparison: Comparison) -> None:
    pen.text((MARGIN, 18), "Same captions, same seeds, fewer calls", INK, _font(22, bold=True))
    note = f"the tiny trained model of this repository, not Stable Diffusion  ·  CFG {comparison.cfg_scale:g}"
    pen.text((MARGIN, 49), note, MUTED, _font(14))


def _block_headers(pen: ImageDraw.ImageDraw, runs: list[Run], lefts: list[int]) -> None:
    for name, group in groupby(zip(lefts, runs, strict=True), key=lambda pair: pair[1].name):
        columns = [left for left, _ in group]
        colour, middle = COLOURS[name], (columns[0] + columns[-1] + CELL) / 2
        pen.text((middle, 94), name, colour, _font(15, bold=True), anchor="ms")
        pen.rectangle((columns[0], 100, columns[-1] + CELL - 1, 102), fill=colour)


def _row_labels(pen: ImageDraw.ImageDraw, comparison: Comparison, rows: int) -> None:
    for row, picture in enumerate(comparison.descriptions[:rows]):
        middle = HEADER + row * (CELL + GAP) + CELL / 2
        lines = textwrap.wrap(picture.caption(), 18)
        top = middle - 9 * len(lines)
        for i, line in enumerate(lines):
            pen.text((MARGIN, top + 18 * i), line, INK, _font(13), anchor="lm")
        pen.text((MARGIN, top + 18 * len(lines) + 1), f"seed {comparison.seed + row}", MUTED, _font(12), anchor="lm")


def _column(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, comparison: Comparison, run: Run, left: int, rows: int
) -> None:
    middle = left + CELL / 2
    heading = f"{run.nfe} steps" if run.plan else "the ODE itself"
    pen.text((middle, 121), heading, INK, _font(14), anchor="ms")
    pixels = (run.pictures[:rows].permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    for row, picture in enumerate(pixels):
        enlarged = Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.BICUBIC)
        sheet.paste(enlarged, (left, HEADER + row * (CELL + GAP)))
    foot = HEADER + rows * (CELL + GAP)
    pen.text((middle, foot + 26), f"{run.nfe} NFE", INK, _font(15, bold=True), anchor="ms")
    pen.text((middle, foot + 48), f"{_short(run.ms_per_image)} ms per image", MUTED, _font(12), anchor="ms")
    pen.text((middle, foot + 68), f"reads {100 * run.read:.0f} %", INK, _font(13), anchor="ms")
    pen.text((middle, foot + 88), f"distance {run.error:.2f}" if run.plan else "–", INK, _font(13), anchor="ms")


def _footnotes(pen: ImageDraw.ImageDraw, comparison: Comparison, top: int) -> None:
    notes = [
        "NFE: guided calls of the network.  Reads: a classifier finds colour and shape of the caption in the picture.",
        "Distance: of the latents to where the guided equation itself leads, relative to its size. "
        f"Over {len(comparison.descriptions)} images.",
        ranking(comparison),
    ]
    for i, note in enumerate(notes):
        pen.text((MARGIN, top + 18 * i), note, MUTED, _font(12), anchor="ls")


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings along, so that every machine draws the same."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)
