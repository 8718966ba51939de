"""Which cells the bench measures, and on how many samples.

Every cell is measured on the first ``COMMON`` samples, so that all can be compared, also by their distance to the
reference endpoint; those between which the Auto rule decides, and the baselines they are held to, on ``MANY``.
``full=True`` is the whole grid at ``MANY``, for a machine with a GPU. What is calibrated is measured where it was
fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .calibrated import calibrated, profile_of
from .methods import AUTO, KARRAS, Method, coupled, diffusers_method, peer

__all__ = ["BATCH", "CFG_SCALES", "COMMON", "MANY", "NFE", "Cell", "all_methods", "cells"]

NFE = (4, 5, 6, 7, 8, 10, 20, 50)
CFG_SCALES = (1.0, 3.0, 5.0, 7.5)
COMMON, MANY, BATCH = 250, 2000, 125

DECIDING_NFE = (5, 6, 8)
DECIDING_CFG = (3.0, 5.0, 7.5)

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
    """What the Auto rule decides between: order, ending and Free-U on the paper's schedule, and the best other one."""
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
    """Their neighbours: Free-U, one more call, the schedules that people use."""
    return [
        coupled(SECOND, "one more call"),
        coupled("UniPC", "keep", label="UniPC-2", **UNIPC),
        coupled("UniPC", "zero", label="UniPC-2", **UNIPC),
        coupled(FIRST, "keep", freeu="late"),
        coupled(SECOND, "keep", freeu="late"),
        KARRAS,
    ]


def rivals() -> list[Method]:
    """The nearest to the reference at one guidance scale or another, which what is calibrated is held to."""
    return [peer(SECOND, "SGM Uniform"), diffusers_method("UniPC"), diffusers_method("DEIS")]


def other_methods() -> list[Method]:
    """Peers, and what is known not to be a candidate."""
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


def cells(full: bool = False, calibration: Path | None = None) -> list[Cell]:
    """The default run, or the whole grid; with what is calibrated if the file of a profile is given."""
    chosen = _uncalibrated(full)
    if calibration is not None:
        profile = profile_of(calibration)
        for each in profile.fitted:
            many = full or (each.steps in DECIDING_NFE and each.cfg_scale in DECIDING_CFG)
            chosen.append(Cell(calibrated(profile), each.steps, each.cfg_scale, MANY if many else COMMON))
    distinct: dict[tuple[str, float], Cell] = {}
    for cell in chosen:
        # the first of a kind is the one on most samples
        distinct.setdefault((cell.key, cell.cfg_scale), cell)
    return list(distinct.values())


def _uncalibrated(full: bool) -> list[Cell]:
    if full:
        return [Cell(m, nfe, cfg, MANY) for cfg in CFG_SCALES for nfe in NFE for m in all_methods()]
    chosen = [Cell(m, nfe, cfg, MANY) for cfg in DECIDING_CFG for nfe in DECIDING_NFE for m in candidates()]
    chosen += [Cell(m, nfe, cfg, COMMON) for cfg in DECIDING_CFG for nfe in DECIDING_NFE for m in near_methods()]
    chosen += [Cell(m, nfe, 1.0, COMMON) for nfe in (5, 8) for m in [*candidates(), *near_methods()]]
    chosen += [Cell(m, nfe, cfg, COMMON) for cfg in (3.0, 7.5) for nfe in (5, 8) for m in other_methods()]
    # Heun can spend odd numbers only
    chosen += [Cell(peer("Heun", "Karras"), 7, cfg, COMMON) for cfg in (3.0, 7.5)]
    chosen += [Cell(AUTO, nfe, cfg, COMMON) for cfg in DECIDING_CFG for nfe in (4, 7, 10, 20)]
    chosen += [Cell(KARRAS, nfe, cfg, COMMON) for cfg in DECIDING_CFG for nfe in (4, 7, 10)]
    chosen += [Cell(m, nfe, cfg, COMMON) for cfg in DECIDING_CFG for nfe in (4, 5, 6, 7, 8, 10) for m in rivals()]
    chosen += [Cell(KARRAS, 20, 1.0, COMMON)]
    chosen += [Cell(KARRAS, 20, cfg, MANY) for cfg in DECIDING_CFG]
    chosen += [Cell(KARRAS, 50, 5.0, 2 * COMMON)]
    return chosen
