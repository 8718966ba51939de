"""Which cells the bench measures, and on how many samples.

Every cell is measured on the first ``COMMON`` samples, so that all can be compared, also by their distance to the
reference endpoints. The candidates of the Auto rule and their baselines are measured on ``MANY`` samples.
``full=True`` is the whole grid with ``MANY`` samples, for a machine with a GPU. Calibrated schedules are measured where
they were fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiny_model.networks import TINY

from .calibrated import after_calibrate, calibrated, profile_of, statistics_of
from .methods import AUTO, KARRAS, Method, coupled, diffusers_method, peer

__all__ = ["BATCH", "CFG_SCALES", "COMMON", "MANY", "NFE", "Cell", "Selection", "all_methods", "cells"]

NFE = (4, 5, 6, 7, 8, 10, 20, 50)
CFG_SCALES = (1.0, 3.0, 5.0, 7.0, 7.5)
COMMON, MANY, BATCH = 250, 2000, 125

DECIDING_NFE = (5, 6, 8)
DECIDING_CFG = (3.0, 5.0, 7.5)
HOST_CFG = 7.0
"""Where a WebUI starts: Auto and its rivals are measured there too."""

FIRST, SECOND = "DPM++ 1S", "DPM++ 2M"
UNIPC: dict[str, Any] = {"order": 2, "prediction": "data", "variant": "bh2"}
PAPER_UNIPC: dict[str, Any] = {"order": 1, "prediction": "noise", "variant": "bh1"}


@dataclass(frozen=True)
class Cell:
    """One method at one NFE and guidance scale, on the first ``samples`` seeds."""

    method: Method
    nfe: int
    cfg_scale: float
    samples: int

    @property
    def key(self) -> str:
        return f"{self.method.name}|{self.nfe}"


def candidates() -> list[Method]:
    """The candidates of the Auto rule: orders, endings and Free-U on the paper's schedule, and the best other one."""
    return [
        AUTO,
        coupled(FIRST, "keep"),
        coupled(FIRST, "zero"),
        coupled(SECOND, "keep"),
        coupled(SECOND, "zero"),
        coupled(SECOND, "extrapolated"),
        coupled(SECOND, "zero", freeu="late"),
        peer(SECOND, "SGM Uniform"),
    ]


def near_methods() -> list[Method]:
    """Methods near the candidates: with Free-U, with one more call, and on common schedules."""
    return [
        coupled(SECOND, "one more call"),
        coupled("UniPC", "keep", label="UniPC-2", **UNIPC),
        coupled("UniPC", "zero", label="UniPC-2", **UNIPC),
        coupled(FIRST, "keep", freeu="late"),
        coupled(SECOND, "keep", freeu="late"),
        KARRAS,
    ]


def rivals() -> list[Method]:
    """The methods nearest to the reference at some guidance scale, with which calibrated schedules are compared."""
    return [peer(SECOND, "SGM Uniform"), diffusers_method("UniPC"), diffusers_method("DEIS")]


def other_methods() -> list[Method]:
    """Other libraries' samplers, and methods that are known to be worse."""
    return [
        coupled(FIRST, "one more call"),
        coupled(FIRST, "keep", freeu="always"),
        coupled(SECOND, "keep", freeu="always"),
        coupled("UniPC", "extrapolated", label="UniPC-2", **UNIPC),
        coupled("UniPC", "keep", label="UniPC-1 of the paper", **PAPER_UNIPC),
        *(peer(SECOND, schedule) for schedule in ("Exponential", "Align Your Steps", "Simple", "Beta", "KL Optimal")),
        *(peer(sampler, "Karras") for sampler in ("Euler", "Heun", "DPM++ 2M SDE", "DPM++ 3M SDE")),
        peer("Euler", "SGM Uniform"),
        diffusers_method("UniPC"),
        diffusers_method("DEIS"),
    ]


def all_methods() -> list[Method]:
    return [*candidates(), *near_methods(), *other_methods()]


@dataclass(frozen=True)
class Selection:
    """Which cells are measured.

    Attributes:
        model: name of the small model; the first is measured on many more cells than the others.
        full: the whole grid.
        calibration: file of a profile; its schedules are measured too, and what Auto draws with where it compared ways.
        only: names of methods, as :attr:`~bench.methods.Method.name` has them; without any it is all of them.
        cfg_scales, nfe: guidance scales and numbers of calls that are measured.
        most: samples of a cell at most.
    """

    model: str = TINY.name
    full: bool = False
    calibration: Path | None = None
    only: tuple[str, ...] = ()
    cfg_scales: tuple[float, ...] = CFG_SCALES
    nfe: tuple[int, ...] = ()
    most: int = MANY


def cells(selection: Selection) -> list[Cell]:
    """The cells of the default run or the whole grid, with calibrated schedules if there is a profile."""
    full, calibration, only = selection.full, selection.calibration, selection.only
    chosen = _uncalibrated(full) if full or selection.model == TINY.name else _of_second_model()
    if calibration is not None:
        chosen += _calibrated(calibration, full)
    distinct: dict[tuple[str, float], Cell] = {}
    for cell in chosen:
        # of equal cells the first has most samples
        wanted = not selection.nfe or cell.nfe in selection.nfe
        if wanted and cell.cfg_scale in selection.cfg_scales and (not only or cell.method.name in only):
            cell = replace(cell, samples=min(cell.samples, selection.most))
            distinct.setdefault((cell.key, cell.cfg_scale), cell)
    return list(distinct.values())


def _calibrated(calibration: Path, full: bool) -> list[Cell]:
    """The fitted schedules of a profile, and what Auto draws with after it."""
    profile = profile_of(calibration)
    deciding = (*DECIDING_CFG, HOST_CFG)
    fitted = [(each.steps, each.cfg_scale) for each in profile.fitted]
    fitted += [(joint.steps, cfg) for cfg in deciding for joint in profile.joint if not joint.misfit(cfg)]
    compared = [(steps, cfg) for cfg in deciding for steps in sorted({each.steps for each in profile.compared})]
    methods = [(calibrated(profile), fitted), (after_calibrate(profile, statistics_of(calibration)), compared)]
    return [
        Cell(method, nfe, cfg, MANY if full or (nfe in DECIDING_NFE and cfg in deciding) else COMMON)
        for method, places in methods
        for nfe, cfg in places
    ]


def _of_second_model() -> list[Cell]:
    """The second small model: what decides, and what it is compared with."""
    scales = (*DECIDING_CFG, HOST_CFG)
    compared = (AUTO, coupled(SECOND, "zero"), peer(SECOND, "SGM Uniform"))
    chosen = [Cell(m, nfe, cfg, MANY) for cfg in scales for nfe in DECIDING_NFE for m in compared]
    return [*chosen, *(Cell(KARRAS, 20, cfg, MANY) for cfg in scales)]


def _uncalibrated(full: bool) -> list[Cell]:
    if full:
        return [Cell(m, nfe, cfg, MANY) for cfg in CFG_SCALES for nfe in NFE for m in all_methods()]
    chosen = [Cell(m, nfe, cfg, MANY) for cfg in DECIDING_CFG for nfe in DECIDING_NFE for m in candidates()]
    chosen += [Cell(m, nfe, cfg, COMMON) for cfg in DECIDING_CFG for nfe in DECIDING_NFE for m in near_methods()]
    chosen += [Cell(m, nfe, 1.0, COMMON) for nfe in (5, 8) for m in [*candidates(), *near_methods()]]
    chosen += [Cell(m, nfe, cfg, COMMON) for cfg in (3.0, 7.5) for nfe in (5, 8) for m in other_methods()]
    # Heun can use odd numbers of calls only
    chosen += [Cell(peer("Heun", "Karras"), 7, cfg, COMMON) for cfg in (3.0, 7.5)]
    chosen += [Cell(AUTO, nfe, cfg, COMMON) for cfg in DECIDING_CFG for nfe in (4, 7, 10, 20)]
    chosen += [Cell(KARRAS, nfe, cfg, COMMON) for cfg in DECIDING_CFG for nfe in (4, 7, 10)]
    chosen += [Cell(m, nfe, cfg, COMMON) for cfg in DECIDING_CFG for nfe in (4, 5, 6, 7, 8, 10) for m in rivals()]
    chosen += [Cell(KARRAS, 20, 1.0, COMMON)]
    chosen += [Cell(KARRAS, 20, cfg, MANY) for cfg in (*DECIDING_CFG, HOST_CFG)]
    at_start = (AUTO, coupled(SECOND, "zero"), peer(SECOND, "SGM Uniform"))
    chosen += [Cell(m, nfe, HOST_CFG, MANY) for nfe in DECIDING_NFE for m in at_start]
    chosen += [Cell(KARRAS, 50, 5.0, 2 * COMMON)]
    return chosen
