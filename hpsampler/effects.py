"""Which settings have an effect, given the sampler and the schedule type beside them, and why others have none."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Optional

from .recipes import AUTO, SOLVER_LABELS, Recipe
from .settings import ENDING_LABELS, FIELDS, FREEU_FIELDS, SCHEDULE_FIELDS, SOLVERS_OF, Settings

__all__ = ["AUTOMATIC", "CALIBRATED_LABEL", "OWN_SAMPLER", "SAMPLERS", "SCHEDULES", "Use", "idle"]

SCHEDULES: Mapping[str, str] = MappingProxyType({"hp": "HP", "hp_calibrated": "HP calibrated"})
"""Our schedule types: name and label."""

CALIBRATED_LABEL = SCHEDULES["hp_calibrated"]

SAMPLERS: Mapping[str, Optional[str]] = MappingProxyType(
    {"HP Auto": None, "HP DPM++ 1S": "dpmpp_1s", "HP DPM++ 2M": "dpmpp_2m", "HP UniPC": "unipc", "HP DPM-v3": "dpm_v3"}
)
"""Our samplers and the solver behind each; None is the recipe's own. No aliases: the WebUI resolves none of them, it
would silently run another sampler."""

OWN_SAMPLER = "HP Auto"
AUTOMATIC = "Automatic"
"""The schedule type that is each sampler's own: for ours, HP."""


@dataclass(frozen=True)
class Use:
    """What one pass uses of ours.

    Attributes:
        sampler, schedule: as the page names them.
        own: whether the sampler is one of ours.
        solver: the one that the sampler fixes; None is the recipe's, or a sampler of the host's.
        coupled: whether the schedule is ours.
        from_noise: whether it starts from pure noise (txt2img), and may have a second pass.
    """

    sampler: str
    schedule: str
    own: bool
    solver: Optional[str]
    coupled: bool
    from_noise: bool = True

    @classmethod
    def of(cls, sampler: str, schedule: Optional[str], from_noise: bool = True) -> Use:
        """Of a sampler and the label of a schedule type, as the page shows them; None is Automatic."""
        own, label = sampler in SAMPLERS, schedule or AUTOMATIC
        coupled = own if label == AUTOMATIC else label in SCHEDULES.values()
        return cls(sampler, label, own, SAMPLERS.get(sampler), coupled, from_noise)

    @property
    def calibrated(self) -> bool:
        """Whether the schedule type asks for a calibrated schedule."""
        return self.schedule == CALIBRATED_LABEL

    def runs(self, recipe: Recipe) -> str:
        """The solver of ours that runs; empty for a sampler of the host's."""
        return (self.solver or recipe.solver) if self.own else ""


def idle(settings: Settings, use: Use, recipe: Recipe) -> dict[str, str]:
    """The settings without an effect in this pass, by name, each with the reason in words.

    Args:
        recipe: the one that the settings name, without what was set beside it.
    """
    reasons: dict[str, str] = {}

    def rest(names: Collection[str], reason: str) -> None:
        for name in names:
            reasons.setdefault(name, reason)

    solver = use.runs(recipe)
    if not use.from_noise:
        rest(frozenset({"hires_recipe"}), "img2img has no second pass")
    if not use.own and not use.coupled:
        unused = f"{use.sampler} on the schedule type {use.schedule} uses nothing of it"
        rest(SCHEDULE_FIELDS | set(SOLVERS_OF) | {"recipe", "calibration", "hires_recipe"}, unused)
    if not use.coupled:
        other = f"the schedule type is {use.schedule} and not HP"
        rest(SCHEDULE_FIELDS | {"calibration", "analytical_first_step"}, other)
        if use.solver in ("dpmpp_1s", "dpmpp_2m"):
            rest(frozenset({"recipe"}), other)
    # what a picture names as its calibration may be DPM-v3 with statistics
    may_be = (
        use.own and use.coupled and use.solver is None and settings.takes_calibration and settings.names_calibration
    )
    for name, owners in SOLVERS_OF.items():
        if solver not in owners and not (name == "statistics" and may_be):
            told = " and ".join(SOLVER_LABELS[each] for each in owners)
            whose = "HP samplers" if len(owners) == len(SOLVER_LABELS) else told
            rest(frozenset({name}), f"it belongs to {whose}, and another solver is in use")
    if ENDING_LABELS.get(settings.ending, recipe.ending) not in ("zero", "extrapolate"):
        rest(frozenset({"bend"}), "the schedule does not end at zero")
    if not use.from_noise:
        rest(frozenset({"analytical_first_step", "golden_noise"}), "img2img does not start from pure noise")
    if settings.golden_form and not use.own:
        rest(frozenset({"golden_noise"}), "A and B need an HP sampler")
    if settings.freeu != "On":
        rest(FREEU_FIELDS - {"freeu"}, "Free-U is not set to On")
    if settings.recipe != AUTO or settings.changed(SCHEDULE_FIELDS | {"analytical_first_step"}):
        rest(frozenset({"calibration"}), "a preset, or a number that is set, says what the schedule is")
    return {field.name: reasons[field.name] for field in FIELDS if field.name in reasons}
