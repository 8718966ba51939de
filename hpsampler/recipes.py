"""Recipes: the hyperparameters of arXiv 2510.02390, chosen together, as data.

A recipe couples where the noise schedule ends, which solver of which order runs on it, what becomes of the residual
noise, and in which evaluations Free-U is on. ``PRESETS`` holds the paper's own, exact, by name; ``recipe_for`` is the
Auto rule for any model family, number of steps and guidance scale:

======  ====================================  =======================================================
steps   schedule                              solver and ending, by guidance scale w
======  ====================================  =======================================================
1-8     the paper's, cut early (see below)    DPM++ 2M to 0; w <= 3: the last step is extrapolated
9-150   the same spacing, not cut, to 0       the same
======  ====================================  =======================================================

With few calls Auto gives each less than the CFG scale (:mod:`~hpsampler.guidance`), and bends the schedule towards
Karras' where there are calls enough for small sigmas (:func:`auto_bend`). The paper's presets take guidance as set.

Cuts (base steps, rho, index): 1-6 steps (8, 5, 6); 7-8 steps SD1/SD2 (12, 7, 9), SDXL (12, 12, 10). Their last point
is replaced by 0. Free-U is off.

The paper keeps the noise at the cut, is of first order up to 6 steps, and turns Free-U on late. On the two testbeds
that can be measured here (``docs/bench.md``: exact denoisers, a small trained model) each of the three was worse, so
they are left to the presets and the controls. On the exact ones no step more raises the error (CFG 1 to 7.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Optional

import numpy as np
import torch

from .checks import abbreviated, finite, whole
from .freeu import FreeUPlan
from .guidance import effective_guidance
from .noise import NoiseModel
from .schedule import base_karras, bent_towards_karras, coupled_sigmas, started_at_strength

__all__ = [
    "AUTO", "ENDINGS", "FAMILIES", "MAX_STEPS", "PRESETS", "Recipe", "counterpart", "family_of", "measured_form",
    "preset_family", "recipe_for",
]  # fmt: skip

AUTO = "Auto"
FAMILIES = ("sd1", "sd2", "sdxl")
MAX_STEPS = 150

ENDINGS = ("keep", "zero", "extrapolate", "extra_call")
"""What becomes of the last sigma:

keep: it stays above 0 and its noise is left for the decoder; zero: it is replaced by 0;
extrapolate: by 0, and a multistep solver makes that step as D + (D - D_prev)/2;
extra_call: it stays, and one model call more than ``steps`` denoises it to 0.
"""

SOLVER_LABELS = MappingProxyType({"dpmpp_1s": "DPM++ 1S", "dpmpp_2m": "DPM++ 2M", "unipc": "UniPC", "dpm_v3": "DPM-v3"})
"""Solvers as people call them."""

LOW_GUIDANCE = 3.0
PAPER_STEPS = 8
"""Up to here the paper tuned its schedules, and here they are cut early."""

_SD_SIGMAS = (0.02916715, 14.61464120)
"""Ends of Stable Diffusion's noise table, which the cuts were tuned on."""

_FAMILY_NAMES = MappingProxyType(
    {
        **dict.fromkeys(("sd1", "sd15", "sd1.5", "sd14", "sd1.4", "sd1.x"), "sd1"),
        **dict.fromkeys(("sd2", "sd20", "sd21", "sd2.0", "sd2.1", "sd2.x"), "sd2"),
        **dict.fromkeys(("sdxl", "xl"), "sdxl"),
    }
)


def family_of(name: str) -> str:
    """The family (``"sd1"``, ``"sd2"``, ``"sdxl"``) that a usual spelling such as "SD1.5" stands for.

    Raises:
        ValueError: a family the method does not cover.
    """
    family = _FAMILY_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if family is None:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {abbreviated(name)}")
    return family


@dataclass(frozen=True)
class Recipe:
    """One coupled choice of hyperparameters.

    Attributes:
        name: shown to people.
        steps: the number of steps it is made for, one UNet call each.
        base_steps, rho, truncation_index, time_rho: see :func:`~hpsampler.schedule.coupled_sigmas`.
        end_sigma: where the schedule ends, instead of the three before.
        ending: one of ``ENDINGS``.
        solver: a name in :data:`~hpsampler.solvers.SOLVERS`.
        order: of UniPC and DPM-Solver-v3, where one is the solver.
        prediction, variant: of UniPC.
        analytical_first_step: share of the noise in a first step without a call (1, or 0.975; 0 is none) of every
            multistep solver; a point is added so that the calls stay.
        noise_level: of UniPC's stochastic corrector; 0 is none.
        freeu: plans in force, none overlapping; empty is off.
        guidance: the guidance scale of each call, ``steps`` of them; empty is as it was set. See
            :mod:`~hpsampler.guidance`.
        bend: how far a schedule that ends at 0 is drawn towards Karras', see
            :func:`~hpsampler.schedule.bent_towards_karras`.
        levels: a schedule calibrated to a model, ``steps + 1`` sigmas that stand in place of all those numbers.
        factors: DPM++ 2M's, one per step, that were calibrated with it.
        calibration: the name by which ``levels`` can be found again; empty where there are none.
    """

    name: str
    steps: int
    base_steps: int
    rho: float
    truncation_index: int
    time_rho: float = 1.2
    end_sigma: Optional[float] = None
    ending: str = "keep"
    solver: str = "dpmpp_1s"
    order: int = 2
    prediction: str = "data"
    variant: str = "bh2"
    analytical_first_step: float = 0.0
    noise_level: float = 0.0
    freeu: tuple[FreeUPlan, ...] = ()
    guidance: tuple[float, ...] = ()
    bend: float = 0.0
    levels: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()
    calibration: str = ""

    def sigmas(
        self,
        noise: NoiseModel,
        sigma_min: Optional[float] = None,
        sigma_max: Optional[float] = None,
        first: int = 0,
        strength: float = 1.0,
    ) -> torch.Tensor:
        """The schedule on a model's noise table; ``steps + 1`` values, or one more with ``ending="extra_call"``.

        On a zero-terminal-SNR table the cut would leave most of the noise, as it is measured from sigma_max; there
        the schedule ends at the sigma that the cut means on Stable Diffusion's own table.

        Calibrated levels belong to one model's table, and are given as they are.

        Args:
            sigma_min, sigma_max: ends of the base schedule where they are not the table's own.
            first, strength: of img2img: the entry that the host starts at, and the strength that it shall mean, see
                :func:`~hpsampler.schedule.started_at_strength`.
        """
        if self.levels:
            return torch.tensor(self.levels, dtype=torch.float32)
        end_sigma = self.end_sigma
        if end_sigma is None and noise.zero_terminal_snr:
            end_sigma = max(self.cut_sigma(), noise.sigma_min)
        sigmas = coupled_sigmas(
            noise, self.steps, self.base_steps, self.rho, self.truncation_index, self.time_rho,
            end_sigma=end_sigma, sigma_min=sigma_min, sigma_max=sigma_max,
        )  # fmt: skip
        sigmas = started_at_strength(noise, sigmas, first, strength, self.time_rho)
        if self.ending == "extra_call":
            return torch.cat([sigmas, sigmas.new_zeros(1)])
        if self.ending in ("zero", "extrapolate"):
            sigmas[-1] = 0.0
            low = noise.sigma_min if sigma_min is None else sigma_min
            sigmas[first:] = bent_towards_karras(sigmas[first:], self.bend, low, float(sigmas[first]))
        return sigmas

    def options(self) -> dict[str, Any]:
        """The solver's own arguments: ``SOLVERS[recipe.solver](model, x, sigmas, **recipe.options())``.

        With ``analytical_first_step`` pass the schedule through :func:`~hpsampler.schedule.insert_first_midpoint`
        first, and start from pure noise. An ending that the solver cannot make is left out: then it ends at zero.
        """
        if self.solver == "dpmpp_2m" and self.factors:
            return {"factors": self.factors}
        if self.solver == "dpmpp_2m":
            return {
                "extrapolate": self.ending == "extrapolate",
                "analytical_first_step": self.analytical_first_step,
            }
        if self.solver == "unipc":
            return {
                "order": self.order,
                "prediction": self.prediction,
                "variant": self.variant,
                "extrapolate": self.ending == "extrapolate" and self.prediction == "data",
                "analytical_first_step": self.analytical_first_step,
                "noise_level": self.noise_level,
            }
        if self.solver == "dpm_v3":
            return {"order": self.order, "analytical_first_step": self.analytical_first_step}
        return {}

    def cut_sigma(self) -> float:
        """The sigma at ``truncation_index`` of the base schedule, on Stable Diffusion's noise table."""
        return float(base_karras(self.base_steps, self.rho, *_SD_SIGMAS)[self.truncation_index])

    def base(self, noise: NoiseModel) -> np.ndarray:
        """The base schedule, ``base_steps`` sigmas, that the cut is measured on; see :meth:`sigmas`."""
        ends = _SD_SIGMAS if noise.zero_terminal_snr else (noise.sigma_min, noise.sigma_max)
        return base_karras(self.base_steps, self.rho, *ends)

    def with_steps(self, steps: int) -> Recipe:
        """The same hyperparameters at another number of steps; Free-U keeps its distance from the end.

        Calibrated levels belong to their own number, and are left behind.
        """
        shift = steps - self.steps
        if not shift:
            return self
        freeu = shifted(self.freeu, shift)
        # guidance fitted call by call belongs to its own number of steps, a single scale to any
        guidance = self.guidance[:1] * steps if len(set(self.guidance)) == 1 else ()
        return replace(self, steps=steps, freeu=freeu, guidance=guidance, levels=(), factors=(), calibration="")


def shifted(plans: tuple[FreeUPlan, ...], by: int) -> tuple[FreeUPlan, ...]:
    """The plans moved by a number of evaluations, those that fall off the start cut away."""
    moved = (
        replace(plan, first=max(plan.first + by, 0), last=None if plan.last is None else plan.last + by)
        for plan in plans
    )
    return tuple(plan for plan in moved if plan.last is None or plan.last >= plan.first)


def measured_form(cfg_scale: float) -> tuple[int, bool]:
    """DPM-Solver-v3 where there are statistics of the model: Auto's order, and whether the corrector is on.

    Measured on both small models (docs/dpm-v3.md): up to CFG 3 order 2 has the best pictures, above it order 1. The
    corrector takes order 2 nearer to the equation, and costs captions on both models. Without guidance, where no model
    was measured, it is on, as the paper advises.
    """
    return (2 if cfg_scale <= LOW_GUIDANCE else 1), cfg_scale <= 1


def recipe_for(family: str, steps: int, cfg_scale: float) -> Recipe:
    """The Auto recipe; the rule stands in this module's docstring.

    Args:
        family: ``"sd1"``, ``"sd2"`` or ``"sdxl"``.
        steps: 1 to 150.
        cfg_scale: the guidance scale.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    family = family_of(family)
    count, scale = whole(steps), finite(cfg_scale)
    if count is None or not 1 <= count <= MAX_STEPS:
        raise ValueError(f"steps must be a whole number from 1 to {MAX_STEPS}, got {abbreviated(steps)}")
    if scale is None:
        raise ValueError(f"cfg_scale must be a finite number, got {abbreviated(cfg_scale)}")
    steps, cfg_scale = count, scale
    if steps > PAPER_STEPS:
        cut = (12, 7.0, 11)
    elif steps > 6:
        cut = (12, 12.0, 10) if family == "sdxl" else (12, 7.0, 9)
    else:
        cut = (8, 5.0, 6)
    ending = "extrapolate" if cfg_scale <= LOW_GUIDANCE else "zero"
    acting = effective_guidance(cfg_scale, steps)
    guidance = (acting,) * steps if acting != cfg_scale else ()
    return Recipe(
        AUTO, steps, *cut, ending=ending, solver="dpmpp_2m", guidance=guidance, bend=auto_bend(steps, cfg_scale)
    )


def auto_bend(steps: int, cfg_scale: float) -> float:
    """How far Auto bends its schedule: not at all up to a number of calls that rises with guidance, then to a quarter.

    Few calls at high guidance are needed at large sigmas, so it grows more slowly there. It was decided on the exact
    problems and the tiny model (``docs/measurements.md``); how far it holds elsewhere is a guess.
    """
    straight = min(2 + 0.6 * cfg_scale, 5.0)
    growth = 0.4 / max(cfg_scale, 4.0)
    return round(min(max(growth * (steps - straight), 0.0), 0.25), 3)


def late_start(family: str, steps: int) -> int:
    """The evaluation from which Free-U is "late"."""
    if steps > PAPER_STEPS or steps < 5:
        return steps - max(1, steps // 3)
    return max(3, steps - 3) if family_of(family) == "sdxl" else 4


def _paper(name: str, steps: int, cut: tuple[int, float, int], solver: str, *freeu: FreeUPlan) -> Recipe:
    return Recipe(name, steps, *cut, solver=solver, freeu=freeu)


def _paper_unipc(
    name: str, steps: int, cut: tuple[int, float, int], *freeu: FreeUPlan, analytical: bool = False
) -> Recipe:
    """The paper's UniPC: noise prediction, bh1, order 2 from 7 steps on."""
    return Recipe(
        name, steps, *cut, solver="unipc", order=2 if steps >= 7 else 1, prediction="noise", variant="bh1",
        analytical_first_step=float(analytical), freeu=freeu,
    )  # fmt: skip


_XL_STAGE_1 = FreeUPlan(first=1, last=3)
_XL_STAGE_2 = FreeUPlan(first=5, last=5, b1=1.3, b2=1.4, s1=0.9, s2=0.2)


def _unipc_freeu(first: int) -> FreeUPlan:
    return FreeUPlan(first=first, b1=1.2, b2=1.2, s1=0.9, s2=0.2)


PRESETS: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            _paper("SD1.5 4 steps", 4, (8, 5.0, 5), "dpmpp_1s"),
            _paper("SD1.5 4 steps Free-U", 4, (8, 2.0, 6), "dpmpp_1s", FreeUPlan(first=0)),
            _paper("SD1.5 4 steps short", 4, (8, 7.0, 6), "dpmpp_1s"),
            _paper("SD1.5 5 steps", 5, (8, 5.0, 6), "dpmpp_1s"),
            _paper("SD1.5 6 steps", 6, (8, 5.0, 6), "dpmpp_1s"),
            _paper("SD1.5 8 steps", 8, (12, 7.0, 9), "dpmpp_2m"),
            _paper("SD1.5 8 steps early", 8, (12, 7.0, 8), "dpmpp_2m"),
            _paper_unipc("SD1.5 5 steps UniPC", 5, (8, 5.0, 6), _unipc_freeu(4)),
            _paper_unipc("SD1.5 6 steps UniPC", 6, (8, 5.0, 6), _unipc_freeu(4)),
            _paper_unipc("SD1.5 8 steps UniPC", 8, (12, 7.0, 9), _unipc_freeu(4)),
            _paper("SDXL 4 steps", 4, (8, 5.0, 6), "dpmpp_1s", _XL_STAGE_1),
            _paper("SDXL 4 steps Free-U", 4, (8, 3.25, 6), "dpmpp_1s", _XL_STAGE_1),
            _paper("SDXL 4 steps short", 4, (8, 7.0, 6), "dpmpp_1s"),
            _paper("SDXL 5 steps", 5, (8, 5.0, 6), "dpmpp_1s", _XL_STAGE_1),
            _paper("SDXL 6 steps", 6, (8, 5.0, 6), "dpmpp_1s", _XL_STAGE_1, _XL_STAGE_2),
            _paper("SDXL 8 steps", 8, (12, 12.0, 10), "dpmpp_2m"),
            _paper("SDXL 8 steps early", 8, (12, 12.0, 9), "dpmpp_2m"),
            _paper_unipc("SDXL 5 steps UniPC", 5, (12, 12.0, 9), _unipc_freeu(3), analytical=True),
            _paper_unipc("SDXL 6 steps UniPC", 6, (12, 12.0, 10), _unipc_freeu(3), analytical=True),
            _paper_unipc("SDXL 7 steps UniPC", 7, (8, 5.0, 6), analytical=True),
            _paper_unipc("SDXL 8 steps UniPC", 8, (12, 12.0, 10), _unipc_freeu(5), analytical=True),
        )
    }
)
"""The paper's presets, exact, by name (method sections 1.1 to 1.3 and 3). Left out: those the reference code cannot
run, and its 7-step fallbacks, which were never tuned and end at sigma 0.41 to 0.45. Free-U evaluations are 0-based."""


_PRESET_FAMILIES = MappingProxyType({"SD1.5": "sd1", "SDXL": "sdxl"})
"""The family that the first word of a preset's name stands for."""


def preset_family(name: str) -> str:
    """The family one of ``PRESETS`` was tuned on; empty for any other name."""
    return _PRESET_FAMILIES[name.split()[0]] if name in PRESETS else ""


def counterpart(name: str, family: str) -> str:
    """The preset that is to ``family`` what ``name`` is to its own; ``name`` itself where there is none.

    SD 2.x has none of its own, and takes SD 1.x's.
    """
    wanted = "sdxl" if family_of(family) == "sdxl" else "sd1"
    if preset_family(name) in ("", wanted):
        return name
    first = next(word for word, each in _PRESET_FAMILIES.items() if each == wanted)
    other = " ".join([first, *name.split()[1:]])
    return other if other in PRESETS else name
