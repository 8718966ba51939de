"""What a step costs beside the UNet, in launches, time and memory, against k-diffusion's DPM++ 2M and a UNet call."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from hpsampler.schedule import base_karras
from hpsampler.solvers import SOLVERS

from ..launches import launches_per_step
from ..theirs import k_diffusion_dpmpp_2m
from ..timing import side_by_side, time_once
from .checks import statistics as made_up_statistics
from .models import Family, Networks, families
from .part import Clock, Part, Row, Setting, Task

__all__ = ["PART"]

STEPS = 20
BATCHES = (1, 8)
THEIRS = "DPM++ 2M of k-diffusion"

Sample = Callable[[Callable[..., torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor]


def samplers(channels: int) -> dict[str, Sample]:
    """By name: ours, each with what a recipe gives it."""
    of_channels = made_up_statistics(channels, 1, 1)

    def ours(solver: str, **options: Any) -> Sample:
        return lambda model, x, sigmas: SOLVERS[solver](model, x, sigmas, **options)

    return {
        "HP DPM++ 2M (HP Auto)": ours("dpmpp_2m"),
        "HP DPM++ 1S": ours("dpmpp_1s"),
        "HP UniPC": ours("unipc"),
        "HP DPM-v3, statistics": ours("dpm_v3", statistics=of_channels),
    }


def measured(family: Family, setting: Setting) -> list[Row]:
    """Rows of a family: every sampler at every batch size."""
    networks = Networks(family, setting)
    rows: list[Row] = []
    for batch in BATCHES[: 1 if setting.small else None]:
        call_ms = unet_call(networks, batch, repeats=2 if setting.small else 7)
        rows += [
            {**row, "size": family.name, "batch": batch, "call_ms": call_ms, "share": 1e-3 * row["us"] / call_ms}
            for row in rows_of(family.latent, batch, setting)
        ]
    return rows


def rows_of(latent: tuple[int, int, int], batch: int, setting: Setting) -> list[dict[str, Any]]:
    """Launches, microseconds and memory of a step of every sampler, with a model that costs nothing."""
    answer = torch.randn((batch, *latent), generator=torch.Generator().manual_seed(0)).to(setting.device)
    x, theirs = answer * 14.6, k_diffusion_dpmpp_2m()

    def model(x: torch.Tensor, sigma: torch.Tensor, /, **_: Any) -> torch.Tensor:
        return answer

    def run(sample: Sample, steps: int) -> torch.Tensor:
        return sample(model, x, torch.tensor([*base_karras(steps, 7.0, 0.0292, 14.6146), 0.0], device=setting.device))

    their_us, rows = 0.0, []
    for name, sample in samplers(latent[0]).items():
        ours_ms, theirs_ms = side_by_side(
            partial(run, sample, STEPS), partial(run, theirs, STEPS), setting.device, 3 if setting.small else 30
        )
        their_us = their_us or 1e3 * theirs_ms / STEPS
        rows.append(row_of(name, partial(run, sample), 1e3 * ours_ms / STEPS, theirs_ms / ours_ms, setting))
    return [*rows, row_of(THEIRS, partial(run, theirs), their_us, 1.0, setting)]


def row_of(name: str, run: Callable[[int], Any], us: float, faster: float, setting: Setting) -> dict[str, Any]:
    launches = launches_per_step(run, setting.device)
    return {"sampler": name, "launches": launches, "us": us, "faster": faster, "memory_mb": memory(run, setting)}


def memory(run: Callable[[int], Any], setting: Setting) -> float | None:
    """Megabytes that a run takes beside what it is given; not known on a CPU."""
    if not setting.gpu:
        return None
    torch.cuda.reset_peak_memory_stats(setting.device)
    before = torch.cuda.memory_allocated(setting.device)
    run(STEPS)
    torch.cuda.synchronize(setting.device)
    return (torch.cuda.max_memory_allocated(setting.device) - before) / 2**20


def unet_call(networks: Networks, batch: int, repeats: int, side: int = 0) -> float:
    """Milliseconds of one guided call, which evaluates the UNet with and without the prompt.

    Args:
        side: of the pictures, where it is not the family's.
    """
    model, x = networks.denoiser(batch), networks.unit_noise(range(batch), side)
    sigma = x.new_ones(batch)
    times = [time_once(lambda: model(x, sigma), networks.device) for _ in range(repeats + 1)]
    return statistics.median(times[1:])


def tasks(setting: Setting, clock: Clock) -> Sequence[Task]:
    return [Task(family.name, partial(measured, family, setting)) for family in families(setting)]


PART = Part(
    name="overhead",
    title="What a step costs beside the UNet",
    about=(
        "The work between two calls of the UNet, with a model that answers at once: kernels launched for a step (on a "
        "CPU: operations), its time as a share of one guided call of the UNet, and what a run holds in memory. Aim: no "
        "more than k-diffusion's DPM++ 2M, and under 0.5 % of a call."
    ),
    columns={
        "size": "latents of", "batch": "batch", "sampler": "sampler", "launches": "launches a step", "us": "µs a step",
        "faster": "k-diffusion / ours", "call_ms": "guided UNet call, ms", "share": "share of it",
        "memory_mb": "memory, MB",
    },
    seconds=60,
    expected=20,
    tasks=tasks,
)  # fmt: skip
