"""One pass as it would be drawn now: its schedule, its UNet calls, Free-U's, and what would be told."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch

from ..fields import SettingsError
from ..golden.search import CALLS as GOLDEN_CALLS
from ..noise import NoiseModel
from ..notes import misfit
from ..plan import LoadedModel, Pass, Request
from ..recipes import AUTO, Recipe
from ..schedule import base_karras
from ..settings import FIELDS, NO_STATISTICS, OFF, SCHEDULE_FIELDS, Settings
from ..statistics.files import statistics_files
from .state import Known, Page, PassView

__all__ = ["is_count", "look_at", "named_recipe"]

TWO_CALLS = frozenset({"DPM++ SDE", "DPM++ 2S a", "Heun", "DPM2", "DPM2 a", "Restart"})
ONE_POINT_MORE = frozenset({"DPM++ 3M SDE", "DPM2", "DPM2 a"})
OWN_SCHEDULE = frozenset({"DDIM", "DDIM CFG++", "PLMS", "UniPC", "DPM fast", "DPM adaptive"})
"""What samplers of the host do with a schedule, by their names there."""

KARRAS_RHO = 7.0


class _Planned(Pass):
    """A pass that is looked at and not drawn: statistics are not read, which are large."""

    known: Known

    def find_statistics(self, wanted: str) -> None:
        folder = self.known.statistics
        kept = statistics_files(folder) if folder else {}
        if wanted == AUTO and not self.known.measured():
            self.tell(NO_STATISTICS)
        self.has_statistics = wanted != OFF and (wanted != AUTO or self.known.measured())
        # a picture names them with a hash of their numbers, by which they are found though renamed
        if wanted not in (AUTO, OFF, *kept) and wanted.rpartition(" ")[0] not in kept:
            raise SettingsError(
                f"HP Sampler: Statistics (statistics) must be {AUTO}, {OFF} or some that are here; there are no "
                f"statistics {wanted!r} here; there are: {', '.join(kept) or 'none yet'}",
                "statistics",
            )


def is_count(steps: float) -> bool:
    return steps == int(steps) and steps >= 1


def _counted(page: Page, second: bool) -> tuple[int, int]:
    """Steps of the schedule, and how many at its start are left out, as the host counts them."""
    steps, strength = int(page.steps), min(page.denoising, 0.999)
    if (second or (page.img2img and page.exact_steps)) and strength > 0:
        # the last of a longer schedule
        longer = int(steps / strength)
        return longer, longer - steps
    if page.img2img or second:
        return steps, max(steps - int(strength * steps) - 1, 0)
    return steps, 0


def named_recipe(settings: Settings, page: Page, known: Known) -> Recipe:
    """The recipe that was chosen, without what was set beside it."""
    return Settings(enabled=True, recipe=settings.recipe).resolve(known.family, int(page.steps), page.cfg)


def look_at(shown: PassView, settings: Settings, page: Page, known: Known, second: bool = False) -> None:
    if not is_count(page.steps):
        raise SettingsError(f"HP Sampler: steps must be a whole number of at least 1, got {page.steps!r}")
    use, noise = shown.use, known.noise
    if known.problem and (use.own or use.coupled or settings.freeu == "On"):
        raise SettingsError(known.problem)
    steps, shown.skipped = _counted(page, second)
    start = (shown.skipped, min(page.denoising, 1.0)) if page.img2img or second else None
    request = Request(
        use, page.cfg, not page.img2img and not second, int(page.steps), page.width, page.height, second, start
    )  # fmt: skip
    this = _Planned(
        settings, request, LoadedModel(known.family, noise, known.hashes), known.calibrations, tell=shown.tell,
        aim=known.aim,
    )  # fmt: skip
    this.known = known
    shown.named = named_recipe(settings, page, known)
    shown.karras = [*base_karras(steps, KARRAS_RHO, noise.sigma_min, noise.sigma_max).tolist(), 0.0]
    shown.asked = use.coupled and page.sampler not in OWN_SCHEDULE
    shown.tell(misfit(settings, use, steps))
    this.begin(shown.asked or not use.coupled)
    shown.unchanged = page.denoising <= 0 and (second or (page.img2img and page.exact_steps))
    if shown.unchanged:
        return
    extra = page.sampler in ONE_POINT_MORE
    if shown.asked:
        sigmas = this.schedule(steps + extra, use.calibrated)
        recipe = this.recipe
    else:
        recipe, sigmas = _would_be(this, steps + extra, noise)
    assert recipe is not None
    if extra:
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    _count_calls(shown, this, sigmas)
    shown.recipe, shown.calibration = replace(recipe, solver=use.solver or recipe.solver), recipe.calibration
    shown.auto_is_best = this.auto_is_best
    if not recipe.levels and recipe.end_sigma is None:
        shown.base, shown.cut = recipe.base(noise).tolist(), recipe.truncation_index


def _would_be(this: Pass, steps: int, noise: NoiseModel) -> tuple[Recipe, torch.Tensor]:
    """The recipe and the schedule that are not asked for; numbers that make none are no error then."""
    try:
        recipe = this.resolve(steps)
        return recipe, recipe.sigmas(noise)
    except ValueError:
        plain = {each.name: each.default for each in FIELDS if each.name in SCHEDULE_FIELDS}
        recipe = replace(this.settings, **plain).resolve(this.model.family, steps, this.request.cfg_scale)
        return recipe, recipe.sigmas(noise)


def _count_calls(shown: PassView, this: Pass, sigmas: torch.Tensor) -> None:
    """UNet calls of the pass and those with Free-U, and the points that its solver adds."""
    use, skipped = shown.use, shown.skipped
    ran = len(sigmas) - 1 - skipped
    if not shown.asked:
        # the host's own schedule has a step for each of those that are set
        ran = len(shown.karras) - 1 - skipped
    a_step = 2 if use.sampler in TWO_CALLS else 1
    to_zero = not shown.asked or float(sigmas[-1]) == 0
    shown.made = 2 * ran - to_zero if a_step == 2 else ran
    inserted = 0
    if use.own:
        run = this.solve(use.solver, sigmas[skipped:])
        inserted, shown.guidance = int(run.analytical), run.guidance
        sigmas = torch.cat([sigmas[:skipped], run.sigmas])
        shown.golden = GOLDEN_CALLS if this.golden else 0
        shown.calls = shown.made + shown.golden
    total = a_step * (len(shown.karras) - 1 - skipped)
    on = [call for call in range(shown.made) if this.freeu_plan(call, total) is not None]
    starts = [call for call in on if call - 1 not in on]
    ends = [call for call in on if call + 1 not in on]
    shown.freeu = [(first + 1, last + 1) for first, last in zip(starts, ends)]
    shown.sigmas = sigmas.tolist()
    begin = skipped + inserted
    shown.steps = [
        0 if index < begin else a_step * (index - begin) + 1 for index, _ in enumerate(pairwise(shown.sigmas))
    ]
