"""The runs that the demo compares: the same noise and captions with different schedules and solvers.

Measured are the calls of the network (counted, not assumed), the time including decoding, the share of captions that
the classifier reads from the pictures, and the distance to the endpoint of the guided ODE from the same noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

import torch

from hpsampler.recipes import Recipe
from hpsampler.solvers import SOLVERS
from tiny_model.model import TinyModel, seeded_noise
from tiny_model.pictures import Picture, captioned

from .methods import AUTO, KARRAS, SGM, Method, Plan

__all__ = ["REFERENCE", "REFERENCE_STEPS", "SHOWN", "Comparison", "Run", "compare", "reference_endpoint", "runs_of"]

REFERENCE = "Reference"
REFERENCE_STEPS = 80

SHOWN = (
    Picture("red", "heart", "large", "plain", "beige", "middle"),
    Picture("yellow", "moon", "large", "plain", "navy", "top"),
    Picture("blue", "star", "large", "checked", "grey", "middle"),
    Picture("green", "triangle", "large", "striped", "brown", "bottom"),
    Picture("pink", "ring", "large", "dotted", "black", "left"),
    Picture("white", "circle", "small", "dotted", "teal", "right"),
    Picture("orange", "cross", "large", "checked", "navy", "right"),
    Picture("purple", "square", "small", "striped", "beige", "left"),
)
"""The captions on the sheet, with every shape and colour once."""


@dataclass(frozen=True)
class Run:
    """The result of a plan, or of the reference where ``plan`` is None.

    Attributes:
        pictures: (n, 3, 96, 96), from 0 to 1.
        ms_per_image: time for sampling and decoding.
        error: distance of the latents to the reference's, relative to its RMS.
        read: share of pictures in which the classifier reads the caption's colour and shape.
    """

    method: Optional[Method]
    plan: Optional[Plan]
    pictures: torch.Tensor
    nfe: int
    ms_per_image: float
    error: float
    read: float
    shown: bool = True

    @property
    def name(self) -> str:
        return self.method.name if self.method else REFERENCE


@dataclass(frozen=True)
class Comparison:
    """All runs, the reference first; image i has the caption of ``descriptions[i]`` and seed ``seed + i``."""

    runs: tuple[Run, ...]
    descriptions: tuple[Picture, ...]
    cfg_scale: float
    seed: int

    @property
    def shown(self) -> list[Run]:
        return [run for run in self.runs if run.shown]


def runs_of(calibrated: Optional[Method] = None) -> list[tuple[Method, int, bool]]:
    """Method, NFE, and whether it is on the sheet; 2M Karras at 6 and 8 NFE too, for a comparison at equal NFE."""
    karras = [(KARRAS, nfe, nfe in (20, 5)) for nfe in (20, 5, 6, 8)]
    rival = [(SGM, nfe, True) for nfe in (5, 6, 8)]
    ours = [(AUTO, nfe, True) for nfe in (5, 6, 8)]
    return karras + rival + ours + ([(calibrated, 5, True)] if calibrated else [])


def reference_endpoint(model: TinyModel, denoiser: Callable[..., torch.Tensor], noise: torch.Tensor) -> torch.Tensor:
    """The guided ODE's endpoint from unit noise: many steps of DPM++ 2M, evenly spaced in time, extrapolated to 0."""
    recipe = Recipe(
        REFERENCE, REFERENCE_STEPS, 8, 5.0, 6, time_rho=1.0, end_sigma=0.03, ending="extrapolate", solver="dpmpp_2m"
    )
    sigmas = recipe.sigmas(model.noise)
    return SOLVERS[recipe.solver](denoiser, noise * float(sigmas[0]), sigmas, **recipe.options())


def compare(
    model: TinyModel,
    images: int,
    seed: int,
    cfg_scale: float,
    chosen: Sequence[tuple[Method, int, bool]],
    on_call: Optional[Callable[[], object]] = None,
) -> Comparison:
    """Sample the runs and the reference; ``on_call`` is called once per call of the network."""
    descriptions = [*SHOWN, *captioned(images)][:images]
    prompts = [picture.caption() for picture in descriptions]
    seeds = range(seed, seed + images)
    noise = seeded_noise(seeds).to(model.device)

    def timed(sample: Callable[[Callable[..., torch.Tensor]], torch.Tensor], plan: Optional[Plan]) -> _Drawn:
        denoiser = model.denoiser(prompts, cfg_scale, freeu=plan.freeu if plan else (), on_call=on_call)
        started = time.perf_counter()
        latents = sample(denoiser)
        pictures = model.decode(latents)
        return _Drawn(latents, pictures, denoiser.calls, 1e3 * (time.perf_counter() - started) / images)

    reference = timed(lambda denoiser: reference_endpoint(model, denoiser, noise), None)
    runs = [
        Run(None, None, reference.pictures, reference.nfe, reference.ms_per_image, 0.0,
            _share_read(model, reference.pictures, descriptions))
    ]  # fmt: skip
    for method, nfe, shown in chosen:
        plan = method.plan(model.noise, nfe, cfg_scale)
        assert plan is not None, method.name
        drawn = timed(lambda denoiser, plan=plan: plan.run(denoiser, noise, seeds), plan)  # type: ignore[misc]
        scale = reference.latents.square().mean().sqrt()
        error = float((drawn.latents - reference.latents).square().mean().sqrt() / scale)
        read = _share_read(model, drawn.pictures, descriptions)
        runs.append(Run(method, plan, drawn.pictures, drawn.nfe, drawn.ms_per_image, error, read, shown))
    return Comparison(tuple(runs), tuple(descriptions), cfg_scale, seed)


@dataclass(frozen=True)
class _Drawn:
    latents: torch.Tensor
    pictures: torch.Tensor
    nfe: int
    ms_per_image: float


def _share_read(model: TinyModel, pictures: torch.Tensor, descriptions: Sequence[Picture]) -> float:
    right = model.right(model.features(pictures), descriptions)
    return float((right["colour"] & right["shape"]).float().mean())
