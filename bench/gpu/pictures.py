"""Seconds a picture takes, decoding included: HP Auto at a few steps against 20 of DPM++ 2M Karras."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Optional

import torch

from hpsampler.freeu import FreeU, FreeUPlan, Waves
from hpsampler.guidance import with_guidance
from hpsampler.recipes import recipe_for
from hpsampler.schedule import base_karras
from hpsampler.solvers import SOLVERS

from ..theirs import k_diffusion_dpmpp_2m
from ..timing import side_by_side, time_once
from .models import Family, Networks, families
from .part import Clock, Part, Row, Setting, Task

__all__ = ["FREEU_PART", "PICTURES_PART"]

STEPS = (5, 6, 8)
BASELINE_STEPS = 20
CFG_SCALE = 7.0
BATCHES = (1, 4)

Sample = Callable[[torch.Tensor], torch.Tensor]


def samplers(networks: Networks, batch: int) -> dict[str, Sample]:
    """By name, from unit noise to latents."""
    table, theirs = networks.noise, k_diffusion_dpmpp_2m()

    def auto(steps: int, noise: torch.Tensor) -> torch.Tensor:
        recipe = recipe_for(networks.family.family, steps, CFG_SCALE)
        sigmas = recipe.sigmas(table)
        model = with_guidance(networks.denoiser(batch, CFG_SCALE, recipe.freeu), recipe.guidance)
        return SOLVERS[recipe.solver](model, noise * float(sigmas[0]), sigmas, **recipe.options())

    def karras(noise: torch.Tensor) -> torch.Tensor:
        levels = [*base_karras(BASELINE_STEPS, 7.0, table.sigma_min, table.sigma_max), 0.0]
        # as a WebUI has them: on the device
        sigmas = torch.tensor(levels, dtype=torch.float32, device=networks.device)
        return theirs(networks.denoiser(batch, CFG_SCALE), noise * table.sigma_max, sigmas)

    return {
        **{f"HP Auto, {steps} steps": partial(auto, steps) for steps in STEPS},
        f"DPM++ 2M Karras, {BASELINE_STEPS} steps": karras,
    }


def measured(family: Family, setting: Setting) -> list[Row]:
    networks = Networks(family, setting)
    unet, decoder = networks.parameters()
    rows: list[Row] = []
    for batch in BATCHES[: 1 if setting.small else None]:
        noise = networks.unit_noise(range(batch))
        decode_ms = median_ms(lambda: networks.decode(noise), setting, 3)  # noqa: B023 - at once
        found = side_by_side_of(networks, noise, samplers(networks, batch), setting, 7 if batch == 1 else 3)
        baseline = found[f"DPM++ 2M Karras, {BASELINE_STEPS} steps"][0]
        rows += [
            {
                "size": family.name, "batch": batch, "sampler": name, "seconds": 1e-3 * ms / batch,
                "decoding": 1e-3 * decode_ms / batch, "faster": baseline / ms, "peak_gb": peak,
                "unet": unet, "decoder": decoder,
            }
            for name, (ms, peak) in found.items()
        ]  # fmt: skip
    return rows


def side_by_side_of(
    networks: Networks, noise: torch.Tensor, chosen: dict[str, Sample], setting: Setting, rounds: int
) -> dict[str, tuple[float, Optional[float]]]:
    """Median milliseconds and peak memory in GB by sampler, decoding included.

    Every round draws with each of them, as a GPU's clock and the host's own work drift.
    """
    times: dict[str, list[float]] = {name: [] for name in chosen}
    peaks: dict[str, Optional[float]] = dict.fromkeys(chosen)
    for _ in range(1 if setting.small else rounds + 1):
        for name, sample in chosen.items():
            if setting.gpu:
                torch.cuda.reset_peak_memory_stats(setting.device)
            times[name].append(time_once(partial(_draw, networks, sample, noise), setting.device))
            if setting.gpu:
                peaks[name] = torch.cuda.max_memory_allocated(setting.device) / 2**30
    # the first round warms up
    return {name: (statistics.median(taken[1:] or taken), peaks[name]) for name, taken in times.items()}


def _draw(networks: Networks, sample: Sample, noise: torch.Tensor) -> torch.Tensor:
    return networks.decode(sample(noise))


def median_ms(run: Callable[[], Any], setting: Setting, repeats: int) -> float:
    """The median of a few runs after one to warm up; once in all where things are only seen to run."""
    if setting.small:
        return time_once(run, setting.device)
    times = [time_once(run, setting.device) for _ in range(repeats + 1)]
    return statistics.median(times[1:])


def freeu_rows(family: Family, setting: Setting) -> list[Row]:
    """A call of the UNet with Free-U in it against one without."""
    networks = Networks(family, setting)
    rows: list[Row] = []
    for batch in BATCHES[: 1 if setting.small else None]:
        x = networks.unit_noise(range(2 * batch))
        sigma, (context, vector) = x.new_ones(len(x)), networks.conditions(batch)

        def call() -> None:
            networks.evaluate(x, sigma, context, vector)  # noqa: B023 - at once

        for version in (1, 2):
            plan, waves = FreeUPlan(0, version=version), Waves()

            def call_with() -> None:
                FreeU.attach(networks.unet, plan, waves)  # noqa: B023
                call()
                FreeU.detach(networks.unet)

            with_ms, without_ms = side_by_side(call_with, call, setting.device, 2 if setting.small else 7)
            cost = {"with_ms": with_ms, "without_ms": without_ms, "cost": with_ms / without_ms - 1}
            rows.append({"size": family.name, "batch": batch, "version": version, **cost})
    return rows


def picture_tasks(setting: Setting, clock: Clock) -> Sequence[Task]:
    return [Task(family.name, partial(measured, family, setting)) for family in families(setting)]


def freeu_tasks(setting: Setting, clock: Clock) -> Sequence[Task]:
    return [Task(family.name, partial(freeu_rows, family, setting)) for family in families(setting)]


PICTURES_PART = Part(
    name="pictures",
    title="Seconds a picture",
    about=(
        f"UNet and decoder at their true sizes with random weights, at CFG {CFG_SCALE:g}, where a step evaluates the "
        "UNet twice. Reading the prompt is not counted. Pictures are decoded one after the other. What a WebUI does "
        "beside that comes on top, for every sampler alike."
    ),
    columns={
        "size": "pictures of", "batch": "batch", "sampler": "sampler", "seconds": "seconds a picture",
        "decoding": "of it decoding", "faster": "against 20 steps", "peak_gb": "peak memory, GB",
    },
    seconds=130,
    expected=75,
    tasks=picture_tasks,
)  # fmt: skip

FREEU_PART = Part(
    name="freeu",
    title="Free-U in a call of the UNet",
    about=(
        "A call of the true-size UNet for a batch of pictures, with and without the prompt, with Free-U in it and "
        "without."
    ),
    columns={
        "size": "pictures of", "batch": "batch", "version": "Free-U version", "with_ms": "with, ms",
        "without_ms": "without, ms", "cost": "cost",
    },
    seconds=40,
    expected=15,
    tasks=freeu_tasks,
)  # fmt: skip
