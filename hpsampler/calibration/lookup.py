"""What a picture is drawn with where there are calibrations: a fitted schedule, statistics, or Auto's own recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

from ..recipes import AUTO
from .choice import FORMS, WithStatistics
from .profile import Drawing, Profile, ProfileStore, Target
from .rows import CALIBRATED

__all__ = ["find_drawing"]


def find_drawing(
    store: ProfileStore,
    name_or_labels: str,
    steps: int,
    target: Target,
    aim: str,
    can_draw: Optional[Callable[[WithStatistics], bool]],
) -> tuple[Optional[tuple[Profile, Drawing]], str]:
    """What the calibrations in ``store`` have for ``target``.

    Where ways to draw were compared it is the best of them that can be drawn; else it is a fitted schedule.

    Args:
        name_or_labels: of a profile, or as pictures name it; empty for whatever fits.
        aim: of :data:`~hpsampler.calibration.choice.AIMS`.
        can_draw: whether DPM-Solver-v3 may run, with those statistics; None asks for fitted schedules alone.

    Returns:
        The profile, what it has, and an empty text; or None, and the reason as half a sentence, which is
        empty where nothing fits.

    Raises:
        StoreError: nothing has that name or those labels.
    """
    profile = comparison = None
    if name_or_labels:
        named = store.named(name_or_labels)
        if isinstance(named, list):
            return _of_picture(store, name_or_labels, steps, target, can_draw)
        profile, comparison = named, named.comparison(steps, target)
    elif pair := store.comparison(steps, target):
        profile, comparison = pair
    if profile is not None and comparison is not None and can_draw is not None:
        for name in comparison.ranked(aim):
            if name == AUTO and not name_or_labels:
                compared = f"{len(comparison.figures)} ways that {profile.name} compared"
                return None, f"Auto itself is the best of {compared} at {steps} steps and CFG {comparison.cfg_scale:g}"
            if name in FORMS and can_draw(comparison.with_statistics(name)):
                return (profile, comparison.with_statistics(name)), ""
            row = profile.find(steps, target) if name == CALIBRATED else None
            if row is not None:
                return (profile, row), ""
    if name_or_labels:
        return store.pick(name_or_labels, steps, target)
    return store.best(steps, target), ""


def _of_picture(
    store: ProfileStore,
    labels: str,
    steps: int,
    target: Target,
    can_draw: Optional[Callable[[WithStatistics], bool]],
) -> tuple[Optional[tuple[Profile, Drawing]], str]:
    found, reason = store.pick(labels, steps, target)
    if found is None or not isinstance(found[1], WithStatistics) or (can_draw is not None and can_draw(found[1])):
        return found, reason
    return None, f"it needs the sampler HP Auto and the statistics {found[1].statistics}"
