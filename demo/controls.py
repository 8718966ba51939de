"""``python -m demo.controls``: what each number of the accordion does, in pictures of the tiny model.

Writes one strip for each control, docs/images/control_<name>.webp: same captions and seeds, the control at a few
values, all else at its default. A picture is drawn as the demonstration page draws it, and so as the WebUI does.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

import torch
from PIL import Image, ImageDraw

from bench.runs import REFERENCE_STEPS, SHOWN, reference_endpoint
from bench.webp import LOSSY
from hpsampler.settings import FIELDS, Settings
from tiny_model.model import TinyModel, seeded_noise
from tiny_model.pictures import captioned

from .session import FAMILY, OURS, Request, first_latent, plan
from .sheet import INK, MUTED, PAPER, _font

__all__ = ["FOLDER", "STRIPS", "Column", "Strip", "is_default", "main"]

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"

IMAGES, SEED = 24, 1
"""What the distances are over: image i is of the i-th caption with seed ``SEED + i``."""

ROWS = (6, 5)
"""Which of them are seen."""

CELL, GAP, BLOCK_GAP = 112, 6, 20
MARGIN, LABELS = 16, 112
HEADER, FOOTER = 62, 106

OURS_COLOUR = "#1d4ed8"


@dataclass(frozen=True)
class Column:
    """One value of a control: how it is named below the pictures, and what is drawn."""

    label: str
    request: Request


@dataclass(frozen=True)
class Strip:
    """One control at a few values.

    Attributes:
        name: end of the file's name.
        told: under what it is drawn, as the picture says it.
        lead: whether a last column shows where the guided equation itself leads.
    """

    name: str
    title: str
    told: str
    columns: tuple[Column, ...]
    lead: bool = True


@dataclass(frozen=True)
class Drawn:
    """Pictures (IMAGES, 3, 96, 96), and what is told of them."""

    pictures: torch.Tensor
    calls: int
    cut: float
    end: float
    distance: float


_LABELS = {each.name: each.label for each in FIELDS}


def _request(settings: Mapping[str, Any], sampler: str = "HP Auto", steps: int = 5, cfg_scale: float = 5.0) -> Request:
    chosen = Settings.of_names({"enabled": True, **settings})
    return Request("", sampler=sampler, steps=steps, cfg_scale=cfg_scale, settings=chosen)


def _strip(
    name: str,
    values: Sequence[Any],
    *,
    file: str = "",
    beside: Optional[Mapping[str, Any]] = None,
    sampler: str = "HP Auto",
    steps: int = 5,
    cfg_scale: float = 5.0,
    first: Optional[Column] = None,
) -> Strip:
    """One control at those values, with what is set ``beside`` it."""
    beside = beside or {}
    columns = [
        Column(f"{value:g}" if isinstance(value, (int, float)) else str(value),
               _request({**beside, name: value}, sampler, steps, cfg_scale))
        for value in values
    ]  # fmt: skip
    told = ", ".join(f"{_LABELS[key]} {value}" for key, value in beside.items())
    around = f"{sampler}, {steps} steps, CFG {cfg_scale:g}" + (f", {told}" if told else "")
    return Strip(file or name, _LABELS[name], around, (*([first] if first else []), *columns))


def _over(
    name: str,
    values: Sequence[Any],
    around: Sequence[tuple[int, float]],
    *,
    sampler: str = "HP Auto",
    beside: Optional[Mapping[str, Any]] = None,
) -> Strip:
    """One control at those values, each at several (steps, CFG)."""
    one_cfg = len({cfg_scale for _, cfg_scale in around}) == 1
    columns = tuple(
        Column(f"{value}, {f'{steps} steps' if one_cfg else f'CFG {cfg_scale:g}'}",
               _request({**(beside or {}), name: value}, sampler, steps, cfg_scale))
        for steps, cfg_scale in around
        for value in values
    )  # fmt: skip
    steps, cfg_scale = around[0]
    told = f"{sampler}, CFG {cfg_scale:g}" if one_cfg else f"{sampler}, {steps} steps"
    return Strip(name, _LABELS[name], told, columns, lead=one_cfg)


_FREEU_ALL = {"freeu": "On", "freeu_first": 1}
_FREEU_OFF = Column("off", _request({}))

STRIPS: tuple[Strip, ...] = (
    Strip(
        "recipe",
        "Recipe",
        "HP Auto, CFG 5",
        tuple(
            Column(f"{name}, {steps} steps" if name == "Auto" else name, _request({"recipe": name}, steps=steps))
            for name, steps in (
                ("Auto", 5), ("SD1.5 5 steps", 5), ("SD1.5 5 steps UniPC", 5),
                ("Auto", 8), ("SD1.5 8 steps", 8), ("SD1.5 8 steps UniPC", 8),
            )
        ),
    ),
    Strip(
        "guidance",
        "Guidance",
        "HP Auto, 5 steps, CFG 7.5",
        tuple(
            Column(str(value), _request({"guidance": value}, cfg_scale=7.5))
            for value in ("As set", "Recipe", "0.9", "0.7", "0.5", "0.35")
        ),
    ),
    _strip("ending", ("Keep noise", "To zero", "Extrapolated", "One more call")),
    _strip("base_steps", (7, 8, 9, 10, 12)),
    _strip("rho", (1, 2, 3, 5, 7, 12)),
    _strip("truncation_index", (2, 3, 4, 5, 6, 7)),
    _strip("time_rho", (0.6, 1, 1.2, 1.6, 2.5, 5)),
    _strip("end_sigma", (0.03, 0.13, 0.3, 0.7, 1.5)),
    _strip("end_sigma", (0.03, 0.13, 0.3, 0.7, 1.5), file="end_sigma_kept", beside={"ending": "Keep noise"}),
    _over("bend", ("Recipe", "0", "0.2", "0.5"), [(5, 5.0), (8, 5.0)]),
    Strip(
        "freeu",
        "Free-U",
        "HP Auto, CFG 5",
        tuple(
            Column(f"{label}, {steps} steps", _request(settings, steps=steps))
            for steps in (5, 8)
            for label, settings in (("off", {}), ("late", {"freeu": "On"}), ("all calls", _FREEU_ALL))
        ),
    ),
    Strip(
        "freeu_version",
        "Free-U version",
        "HP Auto, 5 steps, CFG 5, Free-U On in all calls",
        tuple(
            Column(f"{version}, b {b:g}", _request({**_FREEU_ALL, "freeu_version": version, "b1": b, "b2": b}))
            for b in (1.1, 1.3, 1.6)
            for version in ("1", "2")
        ),
    ),
    *(
        _strip(name, values, beside=_FREEU_ALL, first=_FREEU_OFF)
        for name, values in (
            ("b1", (0.8, 1, 1.1, 1.3, 1.6)), ("b2", (0.8, 1, 1.1, 1.3, 1.6)),
            ("s1", (0, 0.5, 0.9, 1, 1.4)), ("s2", (0, 0.2, 0.6, 1, 1.4)),
        )
    ),
    _strip("freeu_first", (1, 2, 3, 4, 5), beside={"freeu": "On"}, first=_FREEU_OFF),
    _strip("freeu_last", (1, 2, 3, 4, 5), beside=_FREEU_ALL, first=_FREEU_OFF),
    _over("prediction", ("data", "noise"), [(5, 3.0), (5, 5.0), (5, 7.5)], sampler="HP UniPC"),
    _over("variant", ("bh1", "bh2"), [(5, 3.0), (5, 5.0), (5, 7.5)], sampler="HP UniPC"),
    _over("order", (1, 2, 3), [(5, 5.0), (8, 5.0)], sampler="HP UniPC"),
    _over("analytical_first_step", ("Off", "On", "0.975"), [(5, 3.0), (5, 7.5)], sampler="HP UniPC"),
    _over("noise_level", (0, 0.1, 0.3, 1), [(8, 3.0)], sampler="HP UniPC"),
    _over("golden_noise", ("Off", "A", "B"), [(5, 5.0), (8, 5.0)]),
)  # fmt: skip


class Painter:
    """Draws the columns, each request once."""

    def __init__(self, model: TinyModel) -> None:
        self.model = model
        self.told = [*SHOWN, *captioned(IMAGES)][:IMAGES]
        self.noise = seeded_noise(range(SEED, SEED + IMAGES)).to(model.device)
        self.drawn: dict[Request, Drawn] = {}
        self.leads: dict[float, torch.Tensor] = {}

    @cached_property
    def prompts(self) -> list[str]:
        return [picture.caption() for picture in self.told]

    def lead(self, cfg_scale: float) -> torch.Tensor:
        """Latents to which the guided equation itself leads."""
        if cfg_scale not in self.leads:
            denoiser = self.model.denoiser(self.prompts, cfg_scale)
            self.leads[cfg_scale] = reference_endpoint(self.model, denoiser, self.noise)
        return self.leads[cfg_scale]

    def draw(self, request: Request) -> Drawn:
        if request not in self.drawn:
            planned = plan(request, self.model.noise)
            x, calls = first_latent(self.model, planned, self.noise, self.prompts, request.cfg_scale)
            denoiser = self.model.denoiser(self.prompts, request.cfg_scale, freeu=planned.freeu)
            latents = planned.sample(denoiser, x, planned.sigmas)
            aim = self.lead(request.cfg_scale)
            kept = replace(request, settings=replace(request.settings, ending="Keep noise"))
            self.drawn[request] = Drawn(
                self.seen(latents),
                calls + denoiser.calls,
                float(plan(kept, self.model.noise).sigmas[-1]),
                float(planned.sigmas[-1]),
                float((latents - aim).square().mean().sqrt() / aim.square().mean().sqrt()),
            )
        return self.drawn[request]

    def seen(self, latents: torch.Tensor) -> torch.Tensor:
        return self.model.decode(latents[list(ROWS)])

    def strip(self, strip: Strip) -> Image.Image:
        """One control's picture."""
        shown = [(column, self.draw(column.request)) for column in strip.columns]
        left = MARGIN + LABELS
        right = left + len(shown) * (CELL + GAP) - GAP
        width = right + (BLOCK_GAP + CELL if strip.lead else 0) + MARGIN
        foot = HEADER + len(ROWS) * (CELL + GAP)
        sheet = Image.new("RGB", (width, foot + FOOTER), PAPER)
        pen = ImageDraw.Draw(sheet)
        pen.text((MARGIN, 12), strip.title, INK, _font(19, bold=True))
        pen.text((MARGIN, 37), strip.told, MUTED, _font(13))
        for row, image in enumerate(ROWS):
            self._row_label(pen, image, HEADER + row * (CELL + GAP))
        for i, (column, drawn) in enumerate(shown):
            at = left + i * (CELL + GAP)
            _paste(sheet, drawn.pictures, at)
            colour = OURS_COLOUR if is_default(column.request) else INK
            lines = _lines(column, drawn)
            _tell(pen, at, foot, colour, *lines)
        if strip.lead:
            at = right + BLOCK_GAP
            _paste(sheet, self.seen(self.lead(shown[0][0].request.cfg_scale)), at)
            _tell(pen, at, foot, INK, "the equation", f"{REFERENCE_STEPS} calls", "", "distance 0")
        notes = (
            "The tiny model, not Stable Diffusion.  Blue: as Auto has it.  Distance: of the latents to where the",
            f"guided equation leads, relative to its size, over {IMAGES} images.",
        )
        for i, note in enumerate(notes):
            pen.text((MARGIN, sheet.height - 24 + 14 * i), note, MUTED, _font(11), anchor="ls")
        return sheet

    def _row_label(self, pen: ImageDraw.ImageDraw, image: int, top: int) -> None:
        lines = textwrap.wrap(self.prompts[image], 16)
        start = top + CELL / 2 - 8 * len(lines)
        for i, line in enumerate(lines):
            pen.text((MARGIN, start + 16 * i), line, INK, _font(12), anchor="lm")
        pen.text((MARGIN, start + 16 * len(lines) + 1), f"seed {SEED + image}", MUTED, _font(11), anchor="lm")


def _lines(column: Column, drawn: Drawn) -> tuple[str, ...]:
    ends = f"ends at {drawn.end:.2g}" if drawn.end else f"cut {drawn.cut:.2g}, to 0"
    return column.label, f"{drawn.calls} NFE", ends, f"distance {drawn.distance:.2f}"


def _tell(pen: ImageDraw.ImageDraw, left: int, top: int, colour: str, label: str, *lines: str) -> None:
    middle = left + CELL / 2
    size = next((size for size in (13, 12, 11, 10) if pen.textlength(label, _font(size, bold=True)) <= CELL + 4), 9)
    pen.text((middle, top + 14), label, colour, _font(size, bold=True), anchor="ms")
    for i, line in enumerate(lines):
        pen.text((middle, top + 31 + 16 * i), line, MUTED if i < 2 else INK, _font(12), anchor="ms")


def _paste(sheet: Image.Image, pictures: torch.Tensor, left: int) -> None:
    pixels = (pictures.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    for row, picture in enumerate(pixels):
        enlarged = Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.BICUBIC)
        sheet.paste(enlarged, (left, HEADER + row * (CELL + GAP)))


def is_default(request: Request) -> bool:
    """Whether it comes to what the sampler does with nothing set."""

    def resolved(settings: Settings) -> Any:
        recipe = settings.resolve(FAMILY, request.steps, request.cfg_scale)
        recipe = replace(recipe, name="", solver=OURS[request.sampler] or recipe.solver)
        return recipe, settings.golden_form

    return bool(resolved(request.settings) == resolved(Settings()))


def _chosen(names: Sequence[str]) -> Iterator[Strip]:
    known = [strip.name for strip in STRIPS]
    for name in names:
        if name not in known:
            raise SystemExit(f"there is no strip {name!r}; there are: {', '.join(known)}")
    yield from (strip for strip in STRIPS if not names or strip.name in names)


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Draw the strips; returns their files."""
    parser = argparse.ArgumentParser(prog="python -m demo.controls", description="Draw what each control does.")
    parser.add_argument("names", nargs="*", help="only these strips (default: all)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: docs/images)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    painter = Painter(TinyModel.load())
    options.out.mkdir(parents=True, exist_ok=True)
    written = []
    for strip in _chosen(options.names):
        path = options.out / f"control_{strip.name}.webp"
        painter.strip(strip).save(path, **LOSSY)
        print(f"{path}  {path.stat().st_size >> 10} kB")
        for column in strip.columns:
            drawn = painter.draw(column.request)
            print(f"    {column.label:28} {drawn.calls:3d} NFE  cut {drawn.cut:.3g}  end {drawn.end:.3g}  "
                  f"distance {drawn.distance:.3f}")  # fmt: skip
        written.append(path)
    return written


if __name__ == "__main__":
    main()
