"""A whole calibration: several numbers of steps at several guidance scales, one after the other, stopped and resumed.

What is asked is an :class:`Order`; what it is asked of is a :class:`Source`, which the WebUI's checkpoint is, and the
demonstration's small model too. :class:`Tuning` makes a :class:`~hpsampler.profiles.Profile` of it, and hands over the
profile after every cell (a number of steps at a guidance scale), so that whatever stops it costs one cell at most.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Optional, Protocol

import numpy as np
import torch

from .calibration import (
    MAX_RUNS,
    REFERENCE_CALLS,
    CalibrationRefused,
    MultistepSchedule,
    Trajectories,
    calibrate,
    decoder_curve,
    swallowed,
    with_best_end,
)
from .noise import NoiseModel
from .profiles import ERRORS, Fitted, Library, Profile, Refused, sigmas_of
from .recipes import AUTO, recipe_for
from .schedule import base_karras
from .shelf import ShelfError, clean_name, shown
from .solvers import sample_dpmpp_2m
from .solvers._core import Model

__all__ = ["DEFAULT_PROMPTS", "Cancelled", "Job", "Order", "Progress", "Source", "Tuning", "starts"]

DEFAULT_PROMPTS = tuple(
    line for line in (Path(__file__).parent / "prompts.txt").read_text(encoding="utf-8").splitlines() if line.strip()
)

YARDSTICK_STEPS = 20
DECODED = 8
"""Latents on which the decoder's tolerance is measured."""

MAX_PROMPTS = 4096


class Cancelled(Exception):
    """Somebody asked a tuning to stop."""


@dataclass(frozen=True)
class Order:
    """What is to be calibrated.

    Attributes:
        steps: numbers of steps.
        cfg_scales: guidance scales; a calibration is worth nothing at one far from its own.
        prompts: every second one goes to the held-out trajectories.
        trajectories: how many to fit to; as many are held out.
        runs: budget of one cell in runs of the sampler over the calibration set, its reference included.
        batch: how many pictures the model draws at once; memory grows with it, the result does not depend on it.
    """

    name: str
    steps: tuple[int, ...] = (5, 6, 8)
    cfg_scales: tuple[float, ...] = (7.0,)
    width: int = 512
    height: int = 512
    prompts: tuple[str, ...] = DEFAULT_PROMPTS
    negative: str = ""
    trajectories: int = 24
    runs: int = MAX_RUNS
    seed: int = 1
    batch: int = 4

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Order:
        """From named values, as the page, the API and the command line give them; texts of numbers are split.

        Raises:
            ShelfError: naming the field, its value and what is allowed.
        """
        checked = checked_values(cls, values, Library.reserved, _WHOLE)
        if "steps" in values:
            checked["steps"] = tuple(
                sorted({int(number("steps", each, 2, 20, whole=True)) for each in _several("steps", values["steps"])})
            )
        if "cfg_scales" in values:
            scales = _several("cfg_scales", values["cfg_scales"])
            checked["cfg_scales"] = tuple(sorted({float(number("cfg_scales", each, 1, 30)) for each in scales}))
        return cls(**checked)

    @property
    def cells(self) -> list[tuple[float, int]]:
        """(guidance scale, steps), in the order in which they are calibrated."""
        return [(cfg_scale, steps) for cfg_scale in self.cfg_scales for steps in self.steps]

    def most_calls(self, without: Sequence[tuple[float, int]] = ()) -> int:
        """UNet calls, each for one picture, that the order takes at most; ``without`` the cells that are done."""
        left = [cell for cell in self.cells if cell not in without]
        references = len({cfg_scale for cfg_scale, _ in left})
        calls = references * (2 * REFERENCE_CALLS + YARDSTICK_STEPS)
        return calls * self.trajectories + sum(self.most_calls_of(steps) for _, steps in left)

    def most_calls_of(self, steps: int) -> int:
        """Of one cell, its references aside."""
        return (max(self.runs * steps - REFERENCE_CALLS, _least_calls(steps)) + _LOOKS * steps) * self.trajectories


_WHOLE = {
    "width": (64, 4096), "height": (64, 4096), "trajectories": (2, 1024), "runs": (25, 1000), "seed": (0, 2**32 - 1),
    "batch": (1, 256),
}  # fmt: skip

_LOOKS = 6
"""Runs of the held-out trajectories: four starts, what was calibrated, and one for the end."""


def _least_calls(steps: int) -> int:
    """What a fit takes of the calibration set however small its budget: starts, derivatives once, result, end."""
    return (4 + 1 + 1 + 1) * steps + (steps - 1) ** 2


def checked_values(
    kind: type, values: Mapping[str, Any], reserved: Collection[str], whole: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    """What every order has of ``values``, checked: its name, whole numbers with their ranges, size, prompts.

    Args:
        kind: the order's dataclass.
        reserved: names that mean something else.
    """
    known = {each.name for each in fields(kind)}
    for name in values:
        if name not in known:
            raise ShelfError(f"unknown field {shown(name)}; the fields are {', '.join(sorted(known))}")
    if "name" not in values:
        raise ShelfError("name is missing")
    checked: dict[str, Any] = {"name": clean_name(values["name"], reserved)}
    for name, (low, high) in whole.items():
        if name in values:
            checked[name] = number(name, values[name], low, high, whole=True)
    for name in ("width", "height"):
        if checked.get(name, 512) % 8:
            raise ShelfError(f"{name} must be a multiple of 8, got {checked[name]}")
    if "prompts" in values:
        checked["prompts"] = _prompts(values["prompts"])
    if "negative" in values:
        if not isinstance(values["negative"], str):
            raise ShelfError(f"negative must be a text, got {shown(values['negative'])}")
        checked["negative"] = values["negative"].strip()
    return checked


def _several(name: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    elif isinstance(value, (int, float)):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)) or not 1 <= len(value) <= 32:
        raise ShelfError(f"{name} must be 1 to 32 numbers, got {shown(value)}")
    return list(value)


def number(name: str, value: Any, low: float, high: float, whole: bool = False) -> Any:
    """A number, or the text of one. Raises ShelfError: naming the field, its value and what is allowed."""
    allowed = f"{name} must be a {'whole ' if whole else ''}number from {low} to {high}, got {shown(value)}"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ShelfError(allowed)
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise ShelfError(allowed) from None
    if not low <= found <= high or (whole and not found.is_integer()):
        raise ShelfError(allowed)
    return int(found) if whole else found


def _prompts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.splitlines()
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise ShelfError(f"prompts must be texts, or one text with a prompt on each line, got {shown(value)}")
    found = tuple(" ".join(each.split()) for each in value if each.strip())
    if not 1 <= len(found) <= MAX_PROMPTS:
        raise ShelfError(f"prompts must be 1 to {MAX_PROMPTS}, got {len(found)}")
    return found


class Source(Protocol):
    """A model that can be calibrated to."""

    model_name: str
    hashes: tuple[str, ...]
    family: str
    noise: NoiseModel

    def denoiser(self, prompts: Sequence[str], negative: str, cfg_scale: float) -> Model:
        """The guided denoiser of as many trajectories as prompts; makes one batch of calls at a time."""

    def start(self, seeds: Sequence[int], width: int, height: int) -> torch.Tensor:
        """Unit noise of each seed's own generator, (n, channels, h, w)."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as pictures (n, 3, height, width), values from 0 to 1."""


@dataclass
class Progress:
    """Where a tuning stands; written by the one that works, read by those who watch.

    Attributes:
        calls: UNet calls made, each for one picture; ``of`` is the most there will be.
        seconds: time that was spent in them.
        cell: guidance scale and number of steps under way; None before the first and after the last.
        curve: (runs of the sampler, error) of the cell under way, and ``lines`` what it is compared to.
        log: sentences for people, the newest last.
    """

    calls: int = 0
    of: int = 0
    seconds: float = 0.0
    cell: Optional[tuple[float, int]] = None
    curve: list[tuple[float, float]] = field(default_factory=list)
    lines: dict[str, float] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    cancelled: bool = False

    @property
    def seconds_left(self) -> Optional[float]:
        """At most; None before the first call has been timed."""
        return self.seconds / self.calls * max(self.of - self.calls, 0) if self.calls else None


class Job:
    """What calls the model in turns, counts and times its calls, and can be cancelled.

    Args:
        turn: runs a function when it may use the model, such as between two pictures of a queue.
    """

    progress: Progress

    def __init__(self, turn: Callable[[Callable[[], Any]], Any]) -> None:
        self.turn = turn

    def cancel(self) -> None:
        """Stop before the next call of the model."""
        self.progress.cancelled = True

    def _counted(self, model: Model) -> Model:
        def call(x: torch.Tensor, sigma: torch.Tensor, /, **extra_args: Any) -> torch.Tensor:
            def work() -> torch.Tensor:
                # the wait for the turn is not the model's
                began = time.perf_counter()
                denoised = model(x, sigma, **extra_args)
                self.progress.seconds += time.perf_counter() - began
                self.progress.calls += len(x)
                return denoised

            return self._turn(work)

        return call

    def _turn(self, work: Callable[[], Any]) -> Any:
        """One use of the model, unless it was cancelled before or while waiting."""

        def checked() -> Any:
            self._check_cancelled()
            # here and not around the turn, which may run it in another thread
            with torch.no_grad():
                return work()

        self._check_cancelled()
        return self.turn(checked)

    def _check_cancelled(self) -> None:
        if self.progress.cancelled:
            raise Cancelled


class Tuning(Job):
    """Carries out an order.

    Args:
        order: what is asked.
        source: of which model.
        profile: what an earlier, interrupted tuning of the same order left; its cells are not made again.
        keep: called with the profile after every cell.
        cache: folder where reference endpoints are kept until the end; None keeps none.
        turn: runs a function when it may use the model, such as between two pictures of a queue.

    Raises:
        ShelfError: a model of which no profile can be kept, such as one without a hash.
    """

    def __init__(
        self,
        order: Order,
        source: Source,
        profile: Optional[Profile] = None,
        keep: Callable[[Profile], object] = lambda profile: None,
        cache: Optional[Path] = None,
        turn: Callable[[Callable[[], Any]], Any] = lambda work: work(),
    ) -> None:
        super().__init__(turn)
        self.order, self.source, self.keep, self.cache = order, source, keep, cache
        self.profile = profile or Profile(
            name=order.name,
            # a file's name may hold bytes that no text has
            model=source.model_name.encode("utf-8", "replace").decode(),
            hashes=tuple(source.hashes),
            family=source.family,
            width=order.width,
            height=order.height,
            sigma_min=source.noise.sigma_min,
            sigma_max=source.noise.sigma_max,
            trajectories=order.trajectories,
            held_out=order.trajectories,
            seed=order.seed,
        )
        # before any call is paid for
        Profile.from_json(self.profile.to_json())
        self.progress = Progress(of=order.most_calls(self._done()))

    def _done(self) -> list[tuple[float, int]]:
        profile = self.profile
        fitted = [(each.cfg_scale, each.steps) for each in profile.fitted]
        return fitted + [(each.cfg_scale, each.steps) for each in profile.refused]

    def run(self) -> Profile:
        """Calibrate all cells that are not done yet.

        Raises:
            Cancelled: after :meth:`cancel`; the profile that ``keep`` had last holds what is finished.
            ValueError: a model whose output is not finite, or nothing but zeros.
        """
        for cfg_scale in self.order.cfg_scales:
            done = self._done()
            todo = [steps for steps in self.order.steps if (cfg_scale, steps) not in done]
            if not todo:
                continue
            self.progress.cell, self.progress.curve, self.progress.lines = (cfg_scale, todo[0]), [], {}
            fit, held_out = self._trajectories(cfg_scale, 0), self._trajectories(cfg_scale, 1)
            yardstick = self._yardstick(held_out)
            if not self.profile.decoder:
                self._measure_decoder(fit.endpoints)
            for steps in todo:
                self._cell(cfg_scale, steps, fit, held_out, yardstick)
        self.progress.cell = None
        return self.profile

    def _measure_decoder(self, latents: torch.Tensor) -> None:
        order = self.order
        few = latents[:DECODED]
        seeds = range(order.seed + 2 * order.trajectories, order.seed + 2 * order.trajectories + len(few))
        noise = self._start(seeds)
        curve = decoder_curve(self._decode, few, noise)
        # a picture that is not finite is as far from another as two can be
        changes = [(sigma, float(f"{rms:.5g}") if rms <= 1 else 1.0) for sigma, rms in curve]
        self.profile = replace(self.profile, decoder=tuple(changes))
        self.progress.log.append(_told_decoder(self.profile))

    def _cell(self, cfg_scale: float, steps: int, fit: Trajectories, held_out: Trajectories, yardstick: float) -> None:
        progress, before = self.progress, self.progress.calls
        progress.cell, progress.curve = (cfg_scale, steps), []
        progress.lines = {f"{YARDSTICK_STEPS} steps of DPM++ 2M Karras": yardstick}
        known = starts(self.source.family, steps, cfg_scale, self.source.noise)
        names = iter(known)

        def report(calls: int, error: float) -> None:
            name = next(names, None)
            if not math.isfinite(error):
                return
            # new ones each time, as those who watch may be reading
            if name is not None:
                progress.lines = {**progress.lines, name: error}
            progress.curve = [*progress.curve, (calls / steps, error)]

        largest = swallowed(self.profile.decoder)
        try:
            # the look at the end is paid from the same budget
            found = calibrate(fit, held_out, known, self.order.runs - (largest > 0), report)
        except CalibrationRefused as refusal:
            self._keep(replace(self.profile, refused=(*self.profile.refused, Refused(steps, cfg_scale, str(refusal)))))
            progress.log.append(f"CFG {cfg_scale:g}, {steps} steps: refused, {refusal}")
            progress.of += progress.calls - before - self.order.most_calls_of(steps)
            return
        before_end = progress.calls
        schedule = with_best_end(found.schedule, fit, held_out, self._decode, largest)
        fit_calls = found.calls + (steps if progress.calls > before_end else 0)
        progress.of += progress.calls - before - self.order.most_calls_of(steps)
        fitted = Fitted(
            steps, cfg_scale, sigmas_of(schedule.sigmas), sigmas_of(schedule.factors), found.start,
            {name: _error_of(error) for name, error in found.held_out.items()}, _error_of(yardstick),
            fit_calls * self.order.trajectories,
        )  # fmt: skip
        self._keep(replace(self.profile, fitted=(*self.profile.fitted, fitted)))
        progress.log.append(
            f"CFG {cfg_scale:g}, {steps} steps: held-out error {fitted.held_out['calibrated']:.4g}; "
            f"{AUTO} has {fitted.held_out[AUTO]:.4g}, {YARDSTICK_STEPS} steps of DPM++ 2M Karras {yardstick:.4g} "
            f"({fit_calls / steps:.0f} runs, {fitted.calls} UNet calls)"
        )

    def _keep(self, profile: Profile) -> None:
        self.profile = profile
        self.keep(profile)

    def _trajectories(self, cfg_scale: float, part: int) -> Trajectories:
        """The calibration set (part 0) or the held-out one (1): other prompts where there are several, other noise."""
        order, count = self.order, self.order.trajectories
        own = order.prompts[part::2] or order.prompts
        prompts = [own[index % len(own)] for index in range(count)]
        first = order.seed + part * count
        noise = self._start(range(first, first + count))
        model = self._counted(self._turn(lambda: self.source.denoiser(prompts, order.negative, cfg_scale)))
        path = None if self.cache is None else self.cache / f"cfg{cfg_scale!r}-{part}.npy"
        stored = _stored_endpoints(path, noise)
        if stored is not None:
            self.progress.of -= REFERENCE_CALLS * count
            return Trajectories(model, noise, stored, REFERENCE_CALLS)
        found = Trajectories.of(model, noise, self.source.noise)
        if not found.scale > 0:
            raise ValueError("the model's output is nothing but zeros; nothing can be calibrated to it")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            part_path = path.with_suffix(".part.npy")
            # double holds every other precision exactly, so that a resumed fit is the same to the last bit
            np.save(part_path, found.endpoints.cpu().double().numpy())
            os.replace(part_path, path)
        return found

    def _start(self, seeds: Sequence[int]) -> torch.Tensor:
        return self._turn(lambda: self.source.start(seeds, self.order.width, self.order.height))

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._turn(lambda: self.source.decode(latents))

    def _yardstick(self, held_out: Trajectories) -> float:
        noise = self.source.noise
        sigmas = torch.tensor([*base_karras(YARDSTICK_STEPS, 7.0, noise.sigma_min, noise.sigma_max), 0.0])
        ends = sample_dpmpp_2m(held_out.model, held_out.noise * noise.sigma_max, sigmas)
        return held_out.error_of(ends)


def starts(family: str, steps: int, cfg_scale: float, noise: NoiseModel) -> dict[str, MultistepSchedule]:
    """What a fit may begin from, and is compared to: the recipe first, then the best of the usual schedules."""
    recipe = recipe_for(family, steps, cfg_scale)
    own = recipe.sigmas(noise).double().tolist()
    even = noise.t_to_sigma(np.linspace(len(noise) - 1, 0, steps + 1)).tolist()
    karras = [*base_karras(steps, 7.0, noise.sigma_min, noise.sigma_max).tolist(), 0.0]
    return {
        AUTO: MultistepSchedule.of(own, last=1.0 if recipe.ending == "extrapolate" else 0.0),
        "first order": MultistepSchedule.of(own, 0.0),
        "SGM Uniform": MultistepSchedule.of(even, last=0.0),
        "Karras": MultistepSchedule.of(karras, last=0.0),
    }


def _stored_endpoints(path: Optional[Path], noise: torch.Tensor) -> Optional[torch.Tensor]:
    """What an interrupted tuning left, if it is whole."""
    if path is None or not path.exists():
        return None
    try:
        endpoints = np.load(path, allow_pickle=False)
    except Exception:  # a broken file fails in more ways than can be listed; it is made anew
        return None
    if not isinstance(endpoints, np.ndarray) or endpoints.dtype != np.float64:
        return None
    if endpoints.shape != tuple(noise.shape) or not np.isfinite(endpoints).all() or not endpoints.any():
        return None
    return torch.from_numpy(endpoints).to(noise.dtype).to(noise.device)


def _error_of(error: float) -> float:
    """As a file keeps it."""
    return float(f"{min(max(error, ERRORS[0]), ERRORS[1]):.6g}")


def _told_decoder(profile: Profile) -> str:
    largest = swallowed(profile.decoder)
    told = ", ".join(f"{sigma:g}: {change:.3f}" for sigma, change in profile.decoder)
    said = f"swallows noise up to sigma {largest:g}" if largest else "swallows no residual noise; schedules end at 0"
    return f"the decoder {said} (RMS change of its pictures by sigma: {told})"
