"""The Calibrate tab's list: calibrations, statistics and unfinished jobs, and what uses each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Optional

from ..calibration.profile import Profile, ProfileStore, Target
from ..jobs import RUNNING, JobRunner
from ..settings import OFF
from ..store import StoreError
from .kinds import CALIBRATION, KINDS, STATISTICS, Kind

if TYPE_CHECKING:
    from ..panel import Known
    from ..statistics.coefficients import Provenance
    from .runners import Runners

__all__ = ["Entry", "entries", "question_html", "unfinished_in_words", "uses_html"]

SEPARATOR = " · "


@dataclass(frozen=True)
class Entry:
    """One line of the list.

    Attributes:
        name: of the result, or of the job that makes it.
        unfinished: whether it is a job that has not ended.
        model: name of the checkpoint that it is of; empty where that is not known.
        here: whether that checkpoint is the one that is loaded.
        told: what it is, where it was measured, and what is gained.
        automatic: what uses it by itself with the loaded checkpoint, as a sentence.
        named: who names it, as sentences.
    """

    kind: Kind
    name: str
    unfinished: bool = False
    model: str = ""
    here: bool = False
    told: tuple[str, ...] = ()
    automatic: str = ""
    named: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What the page calls it by."""
        return f"{'Unfinished ' if self.unfinished else ''}{self.kind.title}: {self.name}"

    @property
    def line(self) -> str:
        """What people read."""
        if self.unfinished:
            last = "unfinished" if self.here else f"unfinished, of {self.model}"
        elif not self.here:
            last = f"of {self.model or 'a checkpoint that it does not name'}"
        else:
            last = self.automatic or "used by name only"
        return SEPARATOR.join((self.name, self.kind.word, *self.told, last))


def entries(runners: Runners, known: Known, begins_with: str) -> list[Entry]:
    """All there is: of the loaded checkpoint first, then the others'; unfinished ones stand before all.

    Args:
        known: what the page knows of the loaded checkpoint, of calibrations and of presets.
        begins_with: name of the preset that the accordion begins with; may be empty.
    """
    made = [*_calibrations(known, begins_with), *_statistics(runners, known, begins_with)]
    unfinished = [
        Entry(kind, each.name, True, each.model, each.model == known.model)
        for kind in KINDS
        for each in kind.runner(runners).unfinished()
        if each.name != _under_way(kind.runner(runners))
    ]
    return [*unfinished, *sorted(made, key=lambda each: not each.here)]


def _under_way(runner: JobRunner[Any]) -> str:
    status = runner.status()
    return status.config.name if status.state == RUNNING and status.config is not None else ""


def uses_html(entry: Entry) -> str:
    """What uses it, as a list; a line for each accordion is shown by the page's script where that names it."""
    said = [each for each in (entry.automatic, *entry.named) if each]
    lines = [f"<li>{escape(each)}.</li>" for each in said]
    lines += [
        f'<li hidden data-menu="{tab}_hpsampler_{entry.kind.setting}" data-named="{escape(entry.name)}">'
        f"The accordion in {tab} names it now.</li>"
        for tab in ("txt2img", "img2img")
    ]
    return f"<ul class='hpsampler-uses'>{''.join(lines)}</ul>"


def question_html(entry: Entry, deleting: bool) -> str:
    """What is asked before one is deleted or renamed, with what uses it."""
    what = f"the {entry.kind.word} {escape(repr(entry.name))}"
    if entry.unfinished:
        return f"<div class='hpsampler-question' role='alert'><p>Discard what was begun of {what}?</p></div>"
    if deleting:
        told = f"<p>Delete {what} for good? Pictures that name it cannot be drawn again.</p>"
    else:
        told = (
            f"<p>Rename {what}? Pictures that name it find it under the new name too, by their hash of its numbers; a "
            "preset, or an accordion, that has the name alone does not.</p>"
        )
    return f"<div class='hpsampler-question' role='alert'>{told}{uses_html(entry)}</div>"


def unfinished_in_words(found: Sequence[Entry]) -> list[str]:
    """What can be resumed, by name."""
    said = []
    for name in dict.fromkeys(each.name for each in found if each.unfinished):
        own = [each for each in found if each.unfinished and each.name == name]
        kinds = " and ".join(each.kind.word for each in own)
        first = "" if own[0].here else f"; load {own[0].model} first"
        said.append(f"{name} ({kinds}{first})")
    return said


def _calibrations(known: Known, begins_with: str) -> Iterable[Entry]:
    store = known.calibrations
    for profile in store.read()[0] if store else []:
        here = not profile.model_mismatch(known.hashes, known.noise)
        yield Entry(
            CALIBRATION,
            profile.name,
            model=profile.model,
            here=here,
            told=(_cells(profile), f"{profile.width}x{profile.height}", *_gain(profile)),
            automatic=_used_by_itself(profile, store, known) if store and here else "",
            named=_presets(known, CALIBRATION, profile.name, begins_with),
        )


def _cells(profile: Profile) -> str:
    if not profile.rows and profile.compared:
        steps = _listed(sorted({each.steps for each in profile.compared}))
        scales = [f"{each:g}" for each in sorted({each.cfg_scale for each in profile.compared})]
        return f"ways to draw compared, {steps} steps at CFG {_listed(scales)}"
    if not profile.rows:
        return "nothing fitted, every fit was refused" if profile.refused else "nothing fitted yet"
    steps = _listed(sorted({each.steps for each in profile.rows}))
    ranges = [(row.schedule.low, row.schedule.high) for row in profile.joint]
    ranges += [(scale, scale) for scale in sorted({each.cfg_scale for each in profile.fitted})]
    scales = [f"{low:g} to {high:g}" if high > low else f"{low:g}" for low, high in ranges]
    return f"{steps} steps at CFG {_listed(list(dict.fromkeys(scales)))}"


def _gain(profile: Profile) -> list[str]:
    """How much smaller the held-out error is than that of the best schedule there was; nothing where it is nowhere."""
    gains = [each.gain for each in profile.fitted]
    gains += [each.gain for row in profile.joint for each in row.measured if not each.refused]
    if not gains or max(gains) <= 1:
        return []
    low, high = f"{max(min(gains), 1):.2f}", f"{max(gains):.2f}"
    return [f"error {low if low == high else f'{low} to {high}'} times smaller"]


def _used_by_itself(profile: Profile, store: ProfileStore, known: Known) -> str:
    own = set()
    cells = [(each.steps, each.cfg_scale) for each in profile.fitted]
    cells += [(each.steps, each.cfg_scale) for each in profile.compared]
    cells += [(row.steps, each.cfg_scale) for row in profile.joint for each in row.measured]
    for steps, cfg_scale in cells:
        target = Target(frozenset(known.hashes), known.family, known.noise, profile.width, profile.height, cfg_scale)
        compared, best = store.comparison(steps, target), store.best(steps, target)
        owner = compared[0] if compared else best[0] if best else None
        if owner is not None and owner.name == profile.name:
            own.add(steps)
    if not own:
        return ""
    when = " while the accordion is on" if known.off.calibration == OFF else ""
    at = f"{_listed(sorted(own))} steps{when}"
    return f"{CALIBRATION.users} use it by themselves at {at}" if profile.rows else f"HP Auto uses it by itself at {at}"


def _statistics(runners: Runners, known: Known, begins_with: str) -> Iterable[Entry]:
    found: dict[str, Optional[Provenance]] = {}
    for name in runners.statistics.names():
        try:
            found[name] = runners.statistics.read_provenance(name)[0]
        except StoreError:
            found[name] = None
    of_model = {name for name, source in found.items() if source is not None and source.model_hash in known.hashes}
    for name, source in found.items():
        named = _presets(known, STATISTICS, name, begins_with)
        if source is None:
            yield Entry(STATISTICS, name, told=("cannot be read",), named=named)
            continue
        # a latent's element stands for 8x8 pixels in every family
        size = f"{8 * source.width}x{8 * source.height}" if source.width and source.height else ""
        told = (f"CFG {source.cfg_scale:g}" if source.cfg_scale is not None else "", size)
        automatic = ""
        if name in of_model:
            where = "at every CFG" if len(of_model) == 1 else "where they are the nearest in CFG"
            automatic = f"{STATISTICS.users} uses them by itself {where}"
        yield Entry(
            STATISTICS, name, model=source.model_name or "", here=name in of_model,
            told=tuple(each for each in told if each), automatic=automatic, named=named,
        )  # fmt: skip


def _presets(known: Known, kind: Kind, name: str, begins_with: str) -> tuple[str, ...]:
    """The presets that name it, as sentences."""
    return tuple(
        f"The preset {each.name!r} names it" + (", and the accordion begins with that" * (each.name == begins_with))
        for each in known.presets
        if _names(str(each.settings.get(kind.setting, "")), name)
    )


def _names(value: str, name: str) -> bool:
    """Whether a setting's value is that name, or names it as pictures do, with a hash, maybe among others."""
    parts = value.split("; ")
    return name in parts or name in [re.sub(r" [0-9a-f]{8}$", "", part) for part in parts]


def _listed(values: Sequence[Any]) -> str:
    """Such as ``5, 6 and 8``."""
    texts = [str(each) for each in values]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))
