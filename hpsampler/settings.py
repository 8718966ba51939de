"""What a person set: one table of fields for the page, the API and the infotext, validated in one place.

Most fields have a neutral value that means "as the recipe says" (0, or "Recipe"), so that a single number can be
overridden while the rest stays coupled. Whatever is wrong is answered by :class:`SettingsError`, which names the field,
the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Optional

from .fields import Field, SettingsError
from .freeu import FreeUPlan
from .golden.search import GoldenForm
from .recipes import AUTO, MAX_STEPS, PRESETS, Recipe, counterpart, late_start, recipe_for
from .solvers.unipc import MAX_ORDER, PREDICTIONS, VARIANTS

__all__ = [
    "ENABLED", "FIELDS", "FREEU_FIELDS", "SCHEDULE_FIELDS", "SOLVERS_OF", "Settings",
]  # fmt: skip

AS_RECIPE = "Recipe"
AS_SET = "As set"
OFF = "Off"
SAME = "Same"
GOLDEN_FORMS = tuple(form.value for form in GoldenForm)

NO_STATISTICS = "there are no statistics of this model, so DPM-v3 runs without them, as a plain multistep solver"

ENDING_LABELS = MappingProxyType(
    {
        "Keep noise": "keep",
        "To zero": "zero",
        "Extrapolated": "extrapolate",
        "One more call": "extra_call",
    }
)


ANALYTICAL = MappingProxyType({"On": 1.0, "0.975": 0.975, "Off": 0.0})
"""Shares of the noise in an analytical first step."""


ENABLED = Field("enabled", "Enabled", False, "Off: HP samplers use the Auto recipe, and all else is untouched.")

_SWITCH = (AS_RECIPE, "On", "Off")

FIELDS: tuple[Field, ...] = (
    Field(
        "recipe", "Recipe", AUTO, "Auto fits model, steps and CFG; the others are the paper's own.", (AUTO, *PRESETS)
    ),
    Field(
        "base_steps", "Base steps", 0, "Points of the base Karras schedule; 0 = recipe.",
        low=2, high=MAX_STEPS, neutral=0,
    ),
    Field("rho", "Rho", 0.0, "Rho of the base schedule; 0 = recipe.", low=0.1, high=50, step=0.1, neutral=0),
    Field(
        "truncation_index", "Truncation index", 0, "Base point where the schedule stops, below Base steps; 0 = recipe.",
        low=1, high=MAX_STEPS - 1, neutral=0,
    ),
    Field(
        "time_rho", "Time rho", 0.0, "Spacing in time: 1 even, more = denser at the end; 0 = recipe (1.2).",
        low=0.1, high=10, step=0.1, neutral=0,
    ),
    Field(
        "ending", "Ending", AS_RECIPE,
        "Keep noise: for the VAE. Extrapolated: to zero at no call (2M, UniPC). One more call: Steps + 1 calls.",
        (AS_RECIPE, *ENDING_LABELS), aliases=ENDING_LABELS,
    ),
    Field(
        "end_sigma", "End sigma", 0.0, "Where the schedule ends, instead of base steps, rho and index; 0 = recipe.",
        low=0.001, high=10, step=0.01, neutral=0,
    ),
    Field("freeu", "Free-U", AS_RECIPE, "Recipe: as the preset has it, off with Auto. On: the values below.", _SWITCH),
    Field("freeu_version", "Free-U version", "1", "2 follows the structure of the hidden map.", ("1", "2")),
    Field("b1", "Free-U b1", 1.1, "Backbone factor, stage 1 (deep).", high=3, step=0.01),
    Field("b2", "Free-U b2", 1.1, "Backbone factor, stage 2.", high=3, step=0.01),
    Field("s1", "Free-U s1", 0.9, "Skip factor of low frequencies, stage 1.", high=3, step=0.01),
    Field("s2", "Free-U s2", 0.2, "Skip factor of low frequencies, stage 2.", high=3, step=0.01),
    Field("freeu_first", "Free-U first call", 0, "First UNet call with Free-U, from 1; 0 = late.", high=2 * MAX_STEPS),
    Field("freeu_last", "Free-U last call", 0, "Last UNet call with Free-U; 0 = the last one.", high=2 * MAX_STEPS),
    Field(
        "prediction", "UniPC prediction", AS_RECIPE, "data is stable at high CFG; noise is the paper's.",
        (AS_RECIPE, *PREDICTIONS),
    ),
    Field("variant", "UniPC variant", AS_RECIPE, "B(h) of UniPC; the paper's is bh1.", (AS_RECIPE, *VARIANTS)),
    Field("order", "UniPC order", 0, "And of DPM-v3: 1 to 3; 0 = recipe.", low=1, high=MAX_ORDER, neutral=0),
    Field(
        "analytical_first_step", "Analytical first step", AS_RECIPE,
        "First step without a UNet call, which is spent on one point more (txt2img). 0.975: with less of its noise.",
        (AS_RECIPE, *ANALYTICAL), formerly="HP UniPC analytical first step",
    ),
    Field(
        "calibration", "Calibration", AUTO,
        "Auto: HP Auto and HP DPM++ 2M use a schedule calibrated to the model where one fits. Or one by its name.",
        words=(AUTO, OFF),
    ),
    Field(
        "hires_recipe", "Hires recipe", SAME,
        "Second pass of hires. fix. Same: all that is set here. Or a recipe of its own, exact.", (SAME, AUTO, *PRESETS),
    ),
    Field(
        "noise_level", "UniPC noise level", 0.0,
        "Stochastic corrector: new noise of each picture's own seed in every step but the last; 0 = none.",
        high=1, step=0.01,
    ),
    Field(
        "statistics", "Statistics", AUTO,
        "HP DPM-v3 alone. Auto: those of the loaded model, nearest in CFG. Off: without. Or some by their name.",
        words=(AUTO, OFF),
    ),
    Field(
        "golden_noise", "Golden noise", OFF,
        "txt2img: a better first noise. A, B: two UNet calls more. Or NPNet's weights by name (SDXL, 1024 x 1024).",
        words=(OFF, *GOLDEN_FORMS),
    ),
    Field(
        "guidance", "Guidance", AS_RECIPE,
        "Recipe: few calls get less than the CFG scale. As set: all of it in every call. Or a factor on it.",
        low=0.2, high=1.5, step=0.05, words=(AS_RECIPE, AS_SET), suggestions=("0.5", "0.6", "0.7", "0.8", "0.9"),
    ),
    Field(
        "bend", "Bend", AS_RECIPE,
        "How far a schedule that ends at zero is drawn towards Karras'. Or a number: 0 not at all, 1 all the way.",
        low=0, high=1, step=0.05, words=(AS_RECIPE,), suggestions=("0", "0.1", "0.2", "0.35", "0.5"),
    ),
)  # fmt: skip
"""Every control of the accordion but its switch, in the order of the page and of the API's positional list."""


@dataclass(frozen=True)
class Settings:
    """Validated settings; the attributes are ``ENABLED`` and ``FIELDS``."""

    enabled: bool = False
    recipe: str = AUTO
    base_steps: int = 0
    rho: float = 0.0
    truncation_index: int = 0
    time_rho: float = 0.0
    ending: str = AS_RECIPE
    end_sigma: float = 0.0
    freeu: str = AS_RECIPE
    freeu_version: str = "1"
    b1: float = 1.1
    b2: float = 1.1
    s1: float = 0.9
    s2: float = 0.2
    freeu_first: int = 0
    freeu_last: int = 0
    prediction: str = AS_RECIPE
    variant: str = AS_RECIPE
    order: int = 0
    analytical_first_step: str = AS_RECIPE
    calibration: str = AUTO
    hires_recipe: str = SAME
    noise_level: float = 0.0
    statistics: str = AUTO
    golden_noise: str = OFF
    guidance: str = AS_RECIPE
    bend: str = AS_RECIPE

    @classmethod
    def of(cls, args: Sequence[Any]) -> Settings:
        """From the positional values of page or API, or from a dict of named values (which implies enabled).

        What follows the dict are the values by position, in place of which it stands.

        Raises:
            SettingsError: unknown name, wrong type, out of range, or settings that contradict each other.
        """
        return cls.of_names(cls.named(args))

    @staticmethod
    def named(args: Sequence[Any]) -> dict[str, Any]:
        """The values of :meth:`of` by name, not validated yet. Raises SettingsError: too many, or a second dict."""
        names = [ENABLED.name, *(each.name for each in FIELDS)]
        if len(args) > len(names):
            raise SettingsError(f"HP Sampler: args takes at most {len(names)} values, got {len(args)}")
        if any(isinstance(each, Mapping) for each in args[1:]):
            raise SettingsError("HP Sampler: args takes one dict of names, and only as its first value")
        values = dict(zip(names, args))
        return {**values, ENABLED.name: True, **args[0]} if args and isinstance(args[0], Mapping) else values

    @classmethod
    def of_names(cls, values: Mapping[str, Any]) -> Settings:
        """From named values; what is not named keeps its default. Raises as :meth:`of`."""
        known = {each.name: each for each in (ENABLED, *FIELDS)}
        for name in values:
            if name not in known:
                raise SettingsError(f"HP Sampler: unknown setting {name!r}; the names are {', '.join(known)}")
        if not ENABLED.parse(values.get(ENABLED.name, False)):
            return cls()
        settings = cls(**{name: known[name].parse(value) for name, value in values.items()})
        settings._check()
        return settings

    def _check(self) -> None:
        cut = {"base_steps": self.base_steps, "rho": self.rho, "truncation_index": self.truncation_index}
        named = [name for name, value in cut.items() if value]
        if self.end_sigma and named:
            raise SettingsError(
                f"HP Sampler: End sigma (end_sigma={self.end_sigma:g}) and {', '.join(named)} both say where the "
                "schedule ends; set one of them to 0",
                "end_sigma", *named,
            )  # fmt: skip
        if self.freeu_last and self.freeu_last < self.freeu_first:
            raise SettingsError(
                f"HP Sampler: Free-U last call (freeu_last) must be 0 or at least Free-U first call = "
                f"{self.freeu_first}, got {self.freeu_last}",
                "freeu_last",
            )
        if self.recipe != AUTO:
            self._cut_of(PRESETS[self.recipe])
        if self.names_calibration:
            others = self.changed({"recipe", "analytical_first_step"} | SCHEDULE_FIELDS)
            if others:
                listed = ", ".join(f"{each.label} ({each.name}={getattr(self, each.name)})" for each in others)
                raise SettingsError(
                    f"HP Sampler: Calibration (calibration={self.calibration!r}) and {listed} both say what the "
                    "schedule is; leave one of them at its default",
                    "calibration", *(each.name for each in others),
                )  # fmt: skip

    def _cut_of(self, recipe: Recipe) -> Recipe:
        base_steps = self.base_steps or recipe.base_steps
        index = self.truncation_index or recipe.truncation_index
        if not self.end_sigma and index >= base_steps:
            raise SettingsError(
                f"HP Sampler: Truncation index (truncation_index) must be below Base steps = {base_steps}, got {index}",
                *(name for name in ("truncation_index", "base_steps") if getattr(self, name)),
            )
        return replace(recipe, base_steps=base_steps, truncation_index=index)

    def resolve(self, family: str, steps: int, cfg_scale: float) -> Recipe:
        """The recipe for one sampling pass, with what was set in place of its own.

        Raises:
            SettingsError: settings that do not go together under this recipe.
        """
        if self.recipe == AUTO:
            recipe = recipe_for(family, min(steps, MAX_STEPS), cfg_scale).with_steps(steps)
        else:
            recipe = PRESETS[self.recipe].with_steps(steps)
        if not self.enabled:
            return recipe
        recipe = self._cut_of(recipe)
        return replace(
            recipe,
            rho=self.rho or recipe.rho,
            time_rho=self.time_rho or recipe.time_rho,
            end_sigma=self.end_sigma or recipe.end_sigma,
            ending=ENDING_LABELS.get(self.ending, recipe.ending),
            prediction=recipe.prediction if self.prediction == AS_RECIPE else self.prediction,
            variant=recipe.variant if self.variant == AS_RECIPE else self.variant,
            order=self.order or recipe.order,
            analytical_first_step=ANALYTICAL.get(self.analytical_first_step, recipe.analytical_first_step),
            noise_level=self.noise_level,
            bend=recipe.bend if self.bend == AS_RECIPE else float(self.bend),
            guidance=self.guidance_scales(recipe, cfg_scale),
            freeu=self.freeu_plans(recipe.freeu, family, steps),
        )

    def guidance_scales(self, recipe: Recipe, cfg_scale: float) -> tuple[float, ...]:
        """The guidance scale of every call of a recipe under these settings; empty is ``cfg_scale`` in all."""
        if self.guidance == AS_RECIPE:
            return recipe.guidance
        if self.guidance == AS_SET:
            return ()
        return (float(self.guidance) * cfg_scale,) * recipe.steps

    def of_second_pass(self) -> Settings:
        """The settings of hires fix's second pass: these, or a recipe of its own with nothing set beside it."""
        if not self.enabled or self.hires_recipe == SAME:
            return self
        calibration = self.calibration if self.hires_recipe == AUTO else AUTO
        return Settings(enabled=True, recipe=self.hires_recipe, calibration=calibration, hires_recipe=self.hires_recipe)

    def following(self, family: str) -> Settings:
        """With the presets of another family replaced by their counterparts for this one, where there are any.

        Raises:
            SettingsError: numbers that were set do not go together with the counterpart's.
        """
        if not self.enabled:
            return self
        found = replace(
            self,
            recipe=counterpart(self.recipe, family),
            hires_recipe=counterpart(self.hires_recipe, family),
        )
        found._check()
        return found

    @property
    def names_calibration(self) -> bool:
        """Whether one calibration was named, rather than whichever fits."""
        return self.calibration not in (AUTO, OFF)

    @property
    def takes_calibration(self) -> bool:
        """Whether a calibrated schedule may stand in for the recipe's; a preset and numbers that were set are exact."""
        open_ = self.recipe == AUTO and not self.changed(SCHEDULE_FIELDS | {"analytical_first_step"})
        return open_ and self.calibration != OFF

    def freeu_plans(self, of_recipe: tuple[FreeUPlan, ...], family: str, calls: int) -> tuple[FreeUPlan, ...]:
        """Free-U in a pass of so many UNet calls: the recipe's, none, or as it was set."""
        if self.freeu == AS_RECIPE:
            return of_recipe
        if self.freeu == "Off":
            return ()
        first = self.freeu_first - 1 if self.freeu_first else late_start(family, calls)
        last = self.freeu_last - 1 if self.freeu_last else None
        if last is not None and not self.freeu_first:
            first = min(first, last)
        return (FreeUPlan(first, last, self.b1, self.b2, self.s1, self.s2, int(self.freeu_version)),)

    @property
    def counts_calls(self) -> bool:
        """Whether Free-U's window was set in calls, rather than left to be late."""
        return self.freeu == "On" and bool(self.freeu_first or self.freeu_last)

    @property
    def golden_form(self) -> Optional[GoldenForm]:
        """Which golden noise without a network, if any."""
        return GoldenForm(self.golden_noise) if self.golden_noise in GOLDEN_FORMS else None

    @property
    def npnet(self) -> str:
        """The name of NPNet's weights; empty where none are wanted."""
        return "" if self.golden_noise in (OFF, *GOLDEN_FORMS) else self.golden_noise

    def golden_idle(self, own: bool, from_noise: bool) -> str:
        """Why golden noise that is wanted is left out of a pass; empty where it is not.

        Args:
            own: whether the sampler is one of ours.
            from_noise: whether the pass starts from pure noise.
        """
        if self.golden_noise == OFF:
            return ""
        if not from_noise:
            return "golden noise is for pure noise, as in txt2img; it is left out here"
        if self.golden_form and not own:
            return f"golden noise {self.golden_noise} needs an HP sampler; it is left out here"
        return ""

    def ending_unmet(self, recipe: Recipe) -> str:
        """Why the ending that was set is not made; empty where it is, or where none was set.

        Auto's own extrapolation is for Auto's solver: who chose another has asked for none.

        Args:
            recipe: with the solver that runs.
        """
        if self.ending == AS_RECIPE or recipe.ending != "extrapolate" or recipe.options().get("extrapolate"):
            return ""
        return (
            "the ending Extrapolated needs HP DPM++ 2M or HP UniPC with data prediction; "
            "the schedule ends at zero instead"
        )

    def changed(self, names: Collection[str]) -> list[Field]:
        """The fields among ``names`` that were set to something else than their default."""
        return [each for each in FIELDS if each.name in names and getattr(self, each.name) != each.default]

    def infotext(self, schedule: bool, freeu: bool, solvers: Collection[str], hires: bool = False) -> dict[str, Any]:
        """What was set and used, by infotext key; the recipe always, as it tells that the accordion was on.

        Args:
            schedule, freeu, hires: whether our schedule, Free-U and a second pass are in use.
            solvers: those of ours that are.
        """
        used = (
            (frozenset({"hires_recipe"}) if hires else frozenset())
            | (SCHEDULE_FIELDS if schedule else frozenset())
            | (FREEU_FIELDS if freeu and self.freeu == "On" else frozenset({"freeu"}) if freeu else frozenset())
            # which statistics were used, not what was asked, is the pass's to write; so is golden noise
            | {name for name, owners in SOLVERS_OF.items() if set(owners) & set(solvers)} - {"statistics"}
        )
        return {each.infotext: getattr(self, each.name) for each in (FIELDS[0], *self.changed(used))}


SCHEDULE_FIELDS = frozenset({"base_steps", "rho", "truncation_index", "time_rho", "ending", "end_sigma", "bend"})
FREEU_FIELDS = frozenset({"freeu", "freeu_version", "b1", "b2", "s1", "s2", "freeu_first", "freeu_last"})
SOLVERS_OF = MappingProxyType(
    {
        "prediction": ("unipc",),
        "variant": ("unipc",),
        "order": ("unipc", "dpm_v3"),
        "noise_level": ("unipc",),
        "statistics": ("dpm_v3",),
        "guidance": ("dpmpp_1s", "dpmpp_2m", "unipc", "dpm_v3"),
        "analytical_first_step": ("dpmpp_2m", "unipc", "dpm_v3"),
    }
)
"""Fields that belong to some of our solvers alone."""

assert tuple(each.name for each in fields(Settings)) == (ENABLED.name, *(each.name for each in FIELDS))
