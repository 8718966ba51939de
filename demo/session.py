"""What the demonstration page does behind its buttons: settings to plan, plan to pictures; no gradio.

It follows the WebUI's rules for sampler, schedule type and accordion, with the extension's own code for all that is the
method's, so that what is seen on the page holds there.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Optional

import torch

from bench.oracles_import import k_diffusion, k_diffusion_sampling
from bench.schedules import SCHEDULES as WEBUI_SCHEDULES
from hpsampler import plan as planning
from hpsampler.effects import AUTOMATIC, Use
from hpsampler.effects import SAMPLERS as HP_SAMPLERS
from hpsampler.effects import SCHEDULES as HP_SCHEDULES
from hpsampler.fields import SettingsError
from hpsampler.freeu import FreeUPlan
from hpsampler.golden.search import CALLS as GOLDEN_CALLS
from hpsampler.golden.search import GoldenForm, golden_latent, sigma_below
from hpsampler.guidance import with_guidance
from hpsampler.noise import NoiseModel
from hpsampler.notes import VERSION_KEY, misfit, parameters
from hpsampler.plan import LoadedModel, Pass
from hpsampler.recipes import AUTO
from hpsampler.settings import OFF, Settings
from hpsampler.solvers import SOLVERS
from tiny_model.model import Denoiser, TinyModel, noise_sampler, seeded_noise
from tiny_model.pictures import COLOURS, SHAPES, SIDE
from tiny_model.words import unknown_words

__all__ = [
    "MAX_PICTURES", "SAMPLERS", "SCHEDULES", "Drawing", "Plan", "Reading", "Request", "draw", "infotext", "latents",
    "plan", "read",
]  # fmt: skip

FAMILY = "sd1"
"""The tiny model has Stable Diffusion 1.x's layout."""

HP = HP_SCHEDULES["hp"]
MAX_STEPS, MAX_CFG, MAX_PICTURES, MAX_SEED = 150, 30.0, 16, 2**32 - 1

OURS = HP_SAMPLERS
"""The extension's samplers and the solver behind each; None is the recipe's own."""


@dataclass(frozen=True)
class _BuiltIn:
    """A sampler of k-diffusion: its function there, the WebUI's Automatic schedule for it, UNet calls a step."""

    function: str
    automatic: str
    calls: int = 1


_BUILT_IN: Mapping[str, _BuiltIn] = MappingProxyType(
    {
        "DPM++ 2M": _BuiltIn("sample_dpmpp_2m", "Karras"),
        "Euler": _BuiltIn("sample_euler", "Uniform"),
        "Heun": _BuiltIn("sample_heun", "Uniform", calls=2),
    }
)


def _uniform(noise: NoiseModel, steps: int) -> torch.Tensor:
    table = k_diffusion("external").DiscreteSchedule(torch.tensor(noise.sigmas, dtype=torch.float32), quantize=False)
    return table.get_sigmas(steps)


_OTHER_SCHEDULES: Mapping[str, Callable[[NoiseModel, int], torch.Tensor]] = MappingProxyType(
    {**WEBUI_SCHEDULES, "Uniform": _uniform}
)

SAMPLERS = (*OURS, *_BUILT_IN)
SCHEDULES = (AUTOMATIC, HP, *_OTHER_SCHEDULES)


@dataclass(frozen=True)
class Request:
    """What was asked for; picture i has the seed ``seed + i``."""

    prompt: str
    negative: str = ""
    seed: int = 0
    sampler: str = "HP Auto"
    schedule: str = AUTOMATIC
    steps: int = 5
    cfg_scale: float = 7.0
    pictures: int = 1
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        """Raises ``SettingsError`` for what cannot be sampled, naming it, its value and what is allowed."""
        _check_choice("Sampling method", self.sampler, SAMPLERS)
        _check_choice("Schedule type", self.schedule, SCHEDULES)
        _check_number("Sampling steps", self.steps, 1, MAX_STEPS, whole=True)
        _check_number("CFG scale", self.cfg_scale, 1, MAX_CFG)
        _check_number("Pictures", self.pictures, 1, MAX_PICTURES, whole=True)
        _check_number("Seed", self.seed, 0, MAX_SEED - MAX_PICTURES, whole=True)
        if self.settings.names_calibration:
            named = self.settings.calibration
            raise SettingsError(f"Calibration (calibration) must be Auto or Off on this page, got {named!r}")
        if self.settings.npnet:
            named = self.settings.golden_noise
            raise SettingsError(f"Golden noise (golden_noise) must be Off, A or B on this page, got {named!r}")
        if self.settings.statistics not in (AUTO, OFF):
            named = self.settings.statistics
            raise SettingsError(f"Statistics (statistics) must be Auto or Off on this page, got {named!r}")

    @property
    def seeds(self) -> list[int]:
        return [self.seed + i for i in range(self.pictures)]

    @property
    def schedule_used(self) -> str:
        """The schedule type that Automatic stands for, or the one chosen."""
        if self.schedule != AUTOMATIC:
            return self.schedule
        return HP if self.sampler in OURS else _BUILT_IN[self.sampler].automatic


@dataclass(frozen=True)
class Plan:
    """One request, resolved.

    Attributes:
        sigmas: as the solver takes them, the analytical first step's point included.
        sample: ``sample(denoiser, x, sigmas) -> latents``.
        calls: UNet calls it will make.
        freeu: Free-U, its windows counted in those calls.
        notes: what the WebUI would tell beside the picture.
        golden: golden noise before the first step, its calls among ``calls``.
    """

    sigmas: torch.Tensor
    sample: Callable[[Denoiser, torch.Tensor, torch.Tensor], torch.Tensor]
    calls: int
    freeu: tuple[FreeUPlan, ...] = ()
    notes: tuple[str, ...] = ()
    golden: Optional[GoldenForm] = None


@dataclass(frozen=True)
class Reading:
    """What the classifier reads from one picture; ``asked`` is what the prompt says of the same, where it does."""

    read: Mapping[str, str]
    asked: Mapping[str, str]

    @property
    def right(self) -> dict[str, bool]:
        return {name: self.read[name] == word for name, word in self.asked.items()}


@dataclass(frozen=True)
class Drawing:
    """A finished request: pictures (n, 3, SIDE, SIDE) from 0 to 1, what the classifier reads, and what it took;
    ``infotext`` is the first one's."""

    pictures: torch.Tensor
    infotext: str
    seeds: list[int]
    readings: list[Reading]
    calls: int
    seconds: float
    notes: tuple[str, ...]


def plan(request: Request, noise: NoiseModel) -> Plan:
    """Resolve a request as the WebUI's adapter does, before any UNet call.

    Raises:
        SettingsError: settings that cannot be used together, or with this noise table.
    """
    notes: list[str] = []
    this, sampler = _pass_of(request, noise, notes), request.sampler
    notes += filter(None, [misfit(request.settings, this.request.use, request.steps)])
    this.begin()
    if request.schedule_used == HP:
        sigmas = this.schedule(request.steps)
    else:
        sigmas = _OTHER_SCHEDULES[request.schedule_used](noise, request.steps)
    if sampler not in OURS:
        built_in = _BUILT_IN[sampler]
        # Heun makes no second call at sigma 0
        calls = built_in.calls * (len(sigmas) - 1) - (built_in.calls - 1) * (float(sigmas[-1]) == 0)
        function = getattr(k_diffusion_sampling(), built_in.function)
        plans = this.freeu_plans(built_in.calls * request.steps)
        return Plan(
            sigmas, lambda model, x, sigmas: function(model, x, sigmas, disable=True), calls, plans, tuple(notes)
        )

    calls = len(sigmas) - 1 + (GOLDEN_CALLS if this.golden else 0)
    run = this.solve(OURS[sampler], sigmas)
    options = run.options
    if options.get("noise_level"):
        options["noise_sampler"] = noise_sampler(request.seeds)
    solver = SOLVERS[run.recipe.solver]
    return Plan(
        run.sigmas, lambda model, x, sigmas: solver(with_guidance(model, run.guidance), x, sigmas, **options), calls,
        this.freeu_plans(request.steps), tuple(notes), this.golden,
    )  # fmt: skip


def _pass_of(request: Request, noise: NoiseModel, notes: list[str]) -> Pass:
    """The request as the extension's own code plans it; what it tells is added to ``notes``."""
    use = Use.of(request.sampler, request.schedule_used)
    wanted = planning.Request(use, request.cfg_scale, steps=request.steps, width=SIDE, height=SIDE)
    return Pass(request.settings, wanted, LoadedModel(FAMILY, noise), tell=notes.append)


def first_latent(
    model: TinyModel,
    planned: Plan,
    noise: torch.Tensor,
    prompts: Sequence[str],
    cfg_scale: float,
    negative: str = "",
    on_call: Optional[Callable[[], object]] = None,
) -> tuple[torch.Tensor, int]:
    """What the first step begins from, of unit noise; and the UNet calls that golden noise took."""
    sigma = float(planned.sigmas[0])
    x = noise * planned.sigmas[0].to(noise)
    if planned.golden is None:
        return x, 0
    # Free-U is for the steps
    guided, plain = (model.denoiser(prompts, scale, negative, (), on_call) for scale in (cfg_scale, 1.0))
    return golden_latent(planned.golden, x, sigma, sigma_below(sigma), guided, plain), guided.calls + plain.calls


def latents(
    model: TinyModel, request: Request, planned: Plan, on_call: Optional[Callable[[], object]] = None
) -> tuple[torch.Tensor, int]:
    """Sample: latents (n, 4, SIDE / 8, SIDE / 8), and the UNet calls made."""
    noise = seeded_noise(request.seeds).to(model.device)
    prompts, cfg_scale, negative = [request.prompt] * request.pictures, request.cfg_scale, request.negative
    x, calls = first_latent(model, planned, noise, prompts, cfg_scale, negative, on_call)
    denoiser = model.denoiser(prompts, cfg_scale, negative, planned.freeu, on_call)
    return planned.sample(denoiser, x, planned.sigmas.to(model.device)), calls + denoiser.calls


def draw(model: TinyModel, request: Request, on_call: Optional[Callable[[int, int], object]] = None) -> Drawing:
    """Draw what was asked for; ``on_call(made, all)`` is told of every UNet call. Raises as :func:`plan`."""
    planned = plan(request, model.noise)
    made = 0

    def tell() -> None:
        nonlocal made
        made += 1
        if on_call is not None:
            on_call(made, planned.calls)

    start = time.perf_counter()
    sampled, calls = latents(model, request, planned, tell)
    pictures = model.decode(sampled)
    seconds = time.perf_counter() - start
    text = infotext(request, planned.notes)
    readings = read(model, pictures, request.prompt)
    return Drawing(pictures.cpu(), text, request.seeds, readings, calls, seconds, planned.notes)


def infotext(request: Request, notes: Sequence[str] = ()) -> str:
    """The first picture's parameters as the WebUI writes them."""
    parameters = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "Schedule type": request.schedule_used,
        "CFG scale": f"{request.cfg_scale:g}",
        "Seed": request.seed,
        "Size": f"{SIDE}x{SIDE}",
        **_settings_used(request),
    }
    if notes:
        parameters["HP note"] = "; ".join(notes)
    lines = [request.prompt, f"Negative prompt: {request.negative}" if request.negative else ""]
    return "\n".join(
        [line for line in lines if line] + [", ".join(f"{k}: {_quoted(v)}" for k, v in parameters.items())]
    )


def read(model: TinyModel, pictures: torch.Tensor, prompt: str) -> list[Reading]:
    """What the classifier reads from pictures (n, 3, SIDE, SIDE), beside what a prompt of known words asks for."""
    features = model.features(pictures)
    lists = {"colour": list(COLOURS), "shape": list(SHAPES)}
    indices = {name: model.classifier.heads[name](features).argmax(-1).tolist() for name in lists}
    asked = _asked(prompt, lists)
    return [
        Reading({name: words[indices[name][i]] for name, words in lists.items()}, asked) for i in range(len(pictures))
    ]


def _asked(prompt: str, lists: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The one word of each list that a prompt names; nothing is asked clearly where it names two, or strange words."""
    if unknown_words(prompt):
        return {}
    said = set(re.findall(r"\w+", prompt.lower()))
    named = {name: [word for word in words if word in said] for name, words in lists.items()}
    return {name: words[0] for name, words in named.items() if len(words) == 1}


def _settings_used(request: Request) -> dict[str, Any]:
    settings = request.settings
    used = parameters(settings, [Use.of(request.sampler, request.schedule_used)])
    version = {VERSION_KEY: used.pop(VERSION_KEY)} if used else {}
    golden = {"HP Golden noise": settings.golden_noise} if settings.golden_form and request.sampler in OURS else {}
    return {**used, **golden, **version}


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def _check_choice(label: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise SettingsError(f"{label} must be one of {', '.join(allowed)}, got {value!r}")


def _check_number(label: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    kinds = int if whole else (int, float)
    number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:
        raise SettingsError(f"{label} must be a {'whole ' * whole}number from {low:g} to {high:.10g}, got {value!r}")
