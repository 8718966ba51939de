"""The methods that the demo and the bench compare: samplers with a schedule and its ending.

A :class:`Method` makes a :class:`Plan` for a number of NFE (guided calls of the network), a noise table and a guidance
scale. Ours come from :mod:`hpsampler`, the peers from k-diffusion and diffusers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional

import torch

from hpsampler.freeu import FreeUPlan
from hpsampler.guidance import with_guidance
from hpsampler.noise import NoiseModel
from hpsampler.recipes import Recipe, recipe_for
from hpsampler.solvers import SOLVERS

from .oracles_import import k_diffusion_sampling
from .schedules import SCHEDULES

__all__ = ["AUTO", "KARRAS", "SGM", "Method", "Plan", "auto", "coupled", "diffusers_method", "of_recipe", "peer"]

Model = Callable[..., torch.Tensor]
Sample = Callable[[Model, torch.Tensor, Sequence[int]], torch.Tensor]


@dataclass(frozen=True)
class Plan:
    """One run: ``sample(model, noise * sigmas[0], seeds)`` makes ``nfe`` calls, with Free-U as ``freeu`` says."""

    sigmas: torch.Tensor
    nfe: int
    sample: Sample
    freeu: tuple[FreeUPlan, ...] = ()
    recipe: Optional[Recipe] = None

    def run(self, model: Model, noise: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Sample from unit noise (n, ...) to the plan's last sigma."""
        return self.sample(model, noise * float(self.sigmas[0]), seeds)


@dataclass(frozen=True)
class Method:
    """A way to sample, with its names in the bench's tables.

    Attributes:
        make: from (noise table, NFE, guidance scale) to a plan, or None if it cannot make that many calls.
    """

    sampler: str
    schedule: str
    make: Callable[[NoiseModel, int, float], Optional[Plan]] = field(repr=False)
    ending: str = "zero"
    freeu: str = "off"

    @property
    def name(self) -> str:
        parts = [self.sampler, self.schedule]
        parts += [f"({self.ending})"] if self.schedule == "HP" else []
        parts += [f"Free-U {self.freeu}"] if self.freeu in ("late", "always") else []
        return " ".join(part for part in parts if part)

    def plan(self, noise: NoiseModel, nfe: int, cfg_scale: float) -> Optional[Plan]:
        return self.make(noise, nfe, cfg_scale)


ENDINGS = {"keep": "keep", "zero": "zero", "extrapolated": "extrapolate", "one more call": "extra_call"}

AS_SET: dict[str, Any] = {"guidance": (), "bend": 0.0}
"""A recipe whose guidance is as set and whose schedule is not bent, as the paper has it."""

SOLVER_OF = {"DPM++ 1S": "dpmpp_1s", "DPM++ 2M": "dpmpp_2m", "UniPC": "unipc"}


def coupled(sampler: str, ending: str = "keep", freeu: str = "off", label: str = "", **own: Any) -> Method:
    """The paper's schedule with any solver and ending; ``own`` are further attributes of the recipe.

    ``one more call`` spends one NFE more than its schedule has steps: it is compared at equal NFE.
    """

    def make(noise: NoiseModel, nfe: int, cfg_scale: float) -> Optional[Plan]:
        steps = nfe - (ending == "one more call")
        if steps < 1:
            return None
        recipe = recipe_for("sd1", steps, cfg_scale)
        plans = {"off": (), "late": late(steps), "always": (FreeUPlan(0),)}[freeu]
        return of_recipe(
            replace(recipe, solver=SOLVER_OF[sampler], ending=ENDINGS[ending], freeu=plans, **{**AS_SET, **own}),
            noise,
            nfe,
        )

    return Method(label or sampler, "HP", make, ending, freeu)


def late(steps: int) -> tuple[FreeUPlan, ...]:
    """The paper's late Free-U, from evaluation 4 on; in shorter runs in the last evaluation."""
    return (FreeUPlan(min(4, steps - 1)),)


def auto() -> Method:
    """The extension's Auto rule."""
    return Method(
        "HP Auto",
        "",
        lambda noise, nfe, cfg: of_recipe(recipe_for("sd1", nfe, cfg), noise, nfe),
        "as coupled",
        "as coupled",
    )


def of_recipe(recipe: Recipe, noise: NoiseModel, nfe: int, **own: Any) -> Plan:
    """The plan for a recipe of the extension; ``own`` are further arguments of its solver."""
    solver, sigmas = SOLVERS[recipe.solver], recipe.sigmas(noise)

    def sample(model: Model, x: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        return solver(with_guidance(model, recipe.guidance), x, sigmas, **{**recipe.options(), **own})

    return Plan(sigmas, nfe, sample, recipe.freeu, recipe)


def peer(sampler: str, schedule: str) -> Method:
    """One of k-diffusion's samplers on one of the WebUI's schedule types."""

    def make(noise: NoiseModel, nfe: int, cfg_scale: float) -> Optional[Plan]:
        # Heun makes two calls per step, but one in a step to 0
        heun = sampler == "Heun"
        # k-diffusion's SDE samplers fail on a single step to 0
        if (heun and nfe % 2 == 0) or (sampler.endswith("SDE") and nfe < 2):
            return None
        sigmas = SCHEDULES[schedule](noise, (nfe + 1) // 2 if heun else nfe)
        if heun and sigmas[-1] > 0:
            return None
        return Plan(sigmas, nfe, lambda model, x, seeds: _k_diffusion(sampler, model, x, sigmas, seeds))

    return Method(sampler, schedule, make)


_K_DIFFUSION = {
    "Euler": "sample_euler",
    "Heun": "sample_heun",
    "DPM++ 2M": "sample_dpmpp_2m",
    "DPM++ 2M SDE": "sample_dpmpp_2m_sde",
    "DPM++ 3M SDE": "sample_dpmpp_3m_sde",
}


def _k_diffusion(
    sampler: str, model: Model, x: torch.Tensor, sigmas: torch.Tensor, seeds: Sequence[int]
) -> torch.Tensor:
    function = getattr(k_diffusion_sampling(), _K_DIFFUSION[sampler])
    options: dict[str, Any] = {}
    if sampler.endswith("SDE"):
        options["noise_sampler"] = _SeededNoise(x, seeds)
    # sigmas in the precision of x, with which the division by sigma 0 gives no warnings
    return function(model, x, sigmas.to(x), disable=True, **options)


class _SeededNoise:
    """Noise from one generator per image, so that a seed gives the same image in any batch."""

    def __init__(self, x: torch.Tensor, seeds: Sequence[int]) -> None:
        self.x = x
        self.generators = [torch.Generator().manual_seed(seed + 2**32) for seed in seeds]

    def __call__(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        drawn = [
            torch.randn(self.x.shape[1:], generator=generator, dtype=torch.float64) for generator in self.generators
        ]
        return torch.stack(drawn).to(self.x)


def diffusers_method(sampler: str) -> Method:
    """diffusers' UniPC or DEIS with its defaults (order 2, its linspace timesteps) on Stable Diffusion's betas."""

    def make(noise: NoiseModel, nfe: int, cfg_scale: float) -> Optional[Plan]:
        scheduler = _scheduler(sampler, nfe)
        timesteps = scheduler.timesteps.tolist()
        if len(timesteps) != nfe:
            return None
        levels = noise.sigmas[timesteps]
        return Plan(
            torch.tensor([*levels, 0.0], dtype=torch.float32), nfe,
            lambda model, x, seeds: _diffusers(_scheduler(sampler, nfe), model, x, levels.tolist()),
        )  # fmt: skip

    return Method(f"{sampler} (diffusers)", "", make)


def _scheduler(sampler: str, steps: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import DEISMultistepScheduler, UniPCMultistepScheduler

        classes: dict[str, Any] = {"UniPC": UniPCMultistepScheduler, "DEIS": DEISMultistepScheduler}
        scheduler = classes[sampler](beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        scheduler.set_timesteps(steps)
    return scheduler


def _diffusers(scheduler: Any, model: Model, x: torch.Tensor, levels: Sequence[float]) -> torch.Tensor:
    """Run a scheduler of diffusers, which works on x_vp = x / sqrt(1 + sigma^2)."""
    x = x / (1 + levels[0] ** 2) ** 0.5
    for timestep, level in zip(scheduler.timesteps, levels):
        scaled = x * (1 + level**2) ** 0.5
        eps = (scaled - model(scaled, x.new_full((len(x),), level))) / level
        x = scheduler.step(eps, timestep, x).prev_sample
    return x


KARRAS = peer("DPM++ 2M", "Karras")
SGM = peer("DPM++ 2M", "SGM Uniform")
"""The WebUI's best at so few steps."""

AUTO = auto()
