"""The accordion's panel as HTML: what :mod:`hpsampler.panel` computed, as text for each of its places."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Optional

from ..panel import Control, Offer, PassView, View
from ..panel.view import short
from ..presets import FAMILY_LABELS
from ..recipes import LOW_GUIDANCE, PRESETS, SOLVER_LABELS
from ..settings import FIELDS, FREEU_FIELDS, OFF
from .plot import figure, table

__all__ = ["answer"]

_BY_NAME = {each.name: each for each in FIELDS}
LONGEST_LIST = 4
UNCHANGED = "Denoising strength 0 leaves the picture as it is, at no UNet call."


def answer(shown: View, groups: Sequence[tuple[str, Sequence[str]]], width: float, tab: str) -> dict[str, Any]:
    """What the script puts into the page.

    Args:
        groups: suffix of the ``elem_id`` and fields of each part that opens by itself.
        width: of the panel, in pixels.
        tab: title of the tab where calibrations are made; empty where the page has none.
    """
    first = shown.first
    drawn = shown.known.plot and not first.error and bool(first.sigmas)
    controls, titles = _of_controls(shown, groups)
    return {
        "slots": {
            "summary": _summary(shown),
            "words": _words(shown),
            "figure": figure(first, width) if drawn else "",
            "table": table(first) if drawn else "",
            "offers": _offers(shown.offers),
            "calibration": _calibration(shown, tab),
            "presets": _presets(shown),
        },
        "sigmas": first.sigmas if drawn else [],
        "preset": shown.page.preset,
        "controls": controls,
        "groups": titles,
        "waits": not shown.known.model,
    }


# ---- the sentence ----------------------------------------------------------------------------------------------------


def _summary(shown: View) -> str:
    first, known = shown.first, shown.known
    parts = []
    if first.error:
        parts.append("The generation would stop:")
    elif first.unchanged:
        parts.append(UNCHANGED)
    elif not first.asked:
        parts.append(f"{first.use.sampler} on {first.use.schedule} does not use this schedule.")
    else:
        parts.append(_of_pass(first, shown.page.cfg))
    second = shown.second
    if second is not None and not second.error:
        own = second.asked or second.use.own or second.unchanged
        parts.append(
            "Hires. fix: "
            + (_of_pass(second, shown.page.second.cfg) if own else f"{second.use.sampler} uses nothing of it.")
        )
    if not shown.enabled:
        used = f", with the calibration {first.calibration}" if first.calibration else ""
        parts.append(f"The accordion is off: HP samplers follow Auto{used}.")
    family = (
        f"{FAMILY_LABELS[known.family]}, {known.model}" if known.model else "no model is loaded yet: SD 1.x's table"
    )
    text = escape(" ".join(parts)) + f" ({escape(family)})"
    if shown.changed and not first.error:
        text += f' <span class="hps-changes">{escape(_changes(shown))}</span> ' + _button("undo", "Undo")
    if not first.use.own:
        text += " " + _button("auto", "Use HP Auto", "Sets the sampler HP Auto and the schedule type Automatic")
    return text


def _of_pass(shown: PassView, cfg_scale: float) -> str:
    if shown.unchanged:
        return UNCHANGED
    recipe = shown.recipe
    assert recipe is not None
    calls = _counted(shown.calls or 0, "UNet call")
    if not shown.asked:
        return f"{shown.use.sampler} on the schedule type {shown.use.schedule}, {calls}."
    what = f"calibration {shown.calibration}" if shown.calibration else recipe.name
    end = f"{short(shown.sigmas[-1])}, left for the VAE"
    if shown.sigmas[-1] == 0:
        # the last level before it is where most of what can be set shows
        end = f"{short(shown.sigmas[-2])}, then 0" if len(shown.sigmas) - shown.skipped > 2 else "0"
    noise = f"sigma {short(shown.sigmas[shown.skipped])} to {end}"
    if shown.calls is None:
        steps = len(shown.sigmas) - 1 - shown.skipped
        return f"{what}, {_counted(steps, 'step')}, {noise}."
    golden = f", {shown.golden} of them for golden noise" if shown.golden else ""
    return f"{what}: {SOLVER_LABELS[recipe.solver]}, {calls}{golden}, {noise}.{_guidance(shown, cfg_scale)}"


def _guidance(shown: PassView, cfg_scale: float) -> str:
    """What the CFG scale acts as, where the calls get another one."""
    if not shown.guidance or set(shown.guidance) == {cfg_scale}:
        return ""
    scales = [short(scale) for scale in shown.guidance]
    acting = scales[0] if len(set(scales)) == 1 else f"{', '.join(scales[:-1])} and {scales[-1]}"
    return f" CFG {short(cfg_scale)} acts as {acting} in {_these(len(scales))}."


def _these(calls: int) -> str:
    return "this call" if calls == 1 else f"these {calls} calls"


def _changes(shown: View) -> str:
    told = []
    for field, value in shown.changed[:LONGEST_LIST]:
        recipe = shown.controls[field.name].recipe
        told.append(f"{field.label} {value}" + (f" (recipe: {recipe})" if recipe and recipe != value else ""))
    more = len(shown.changed) - LONGEST_LIST
    return f"Changed: {_listed([*told, *([f'{more} more'] if more > 0 else [])])}."


def _words(shown: View) -> str:
    first, second = shown.first, shown.second
    rows = [("error", f"Error: {_plain(first.error)}")] if first.error else []
    if shown.known.problem and not first.error:
        rows.append(("error", f"Error: {shown.known.problem}"))
    if second is not None and second.error:
        rows.append(("error", f"Error in hires. fix: {_plain(second.error)}"))
    rows += [("note", f"Note: {note}.") for note in first.notes]
    if shown.misfit:
        rows.append(("note", f"Note: the preset {shown.page.preset} is {shown.misfit}."))
    if second is not None:
        rows += [("note", f"Note on hires. fix: {note}.") for note in second.notes if note not in first.notes]
    return "".join(f'<li class="hps-{kind}">{escape(text)}</li>' for kind, text in rows)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _plain(error: str) -> str:
    """A message without the name of who says it, which stands above it here."""
    return error.removeprefix("HP Sampler: ")


# ---- offers, presets, calibration ------------------------------------------------------------------------------------


def _button(act: str, label: str, title: str = "", pressed: Optional[bool] = None, **data: Any) -> str:
    told = "".join(f' data-{name}="{escape(str(value))}"' for name, value in data.items() if value is not None)
    state = "" if pressed is None else f' aria-pressed="{str(pressed).lower()}"'
    hint = f' title="{escape(title)}"' if title else ""
    return f'<button type="button" data-act="{act}"{told}{state}{hint}>{escape(label)}</button>'


def _offers(offers: Sequence[Offer]) -> str:
    if not offers:
        return ""
    buttons = []
    for each in offers:
        cfg = "" if each.cfg is None else f", CFG {short(each.cfg)} calibrated"
        text = f"{'✓ ' if each.now else ''}{each.steps} steps{cfg}"
        buttons.append(_button("steps", text, pressed=each.now, steps=each.steps, cfg=each.cfg))
    return "Made for: " + "".join(buttons)


def _presets(shown: View) -> str:
    """The menu's groups: what fits, the paper's with a word on them, and the rest."""
    page, family = shown.page, FAMILY_LABELS[shown.known.family]
    made_at = {name: PRESETS[name].steps for name in shown.papers}
    here = [name for name in shown.papers if made_at[name] == page.steps]
    elsewhere = [name for name in shown.papers if name not in here]
    weaker = f"; at CFG {short(page.cfg)} Auto is better" if page.cfg > LOW_GUIDANCE else ""
    groups = [
        (f"For {family} at {page.steps:g} steps", shown.fitting),
        (f"The paper's own, exact{weaker}", here),
        (f"The paper's for other numbers of steps{weaker}", elsewhere),
        ("For other models or numbers of steps", shown.others),
    ]

    def option(name: str) -> str:
        chosen = " selected" if name == page.preset else ""
        return f'<option value="{escape(name)}"{chosen}>{escape(name)}</option>'

    known = {name for _, names in groups for name in names}
    none = "" if page.preset in known else '<option value="" selected>none</option>'
    filled = [(label, names) for label, names in groups if names]
    return none + "".join(
        f'<optgroup label="{escape(label)}">{"".join(map(option, names))}</optgroup>' for label, names in filled
    )


def _calibration(shown: View, tab: str) -> str:
    first, known, settings, page = shown.first, shown.known, shown.settings, shown.page
    if known.calibrations is None:
        return ""
    made = sorted(
        {(each.steps, each.cfg_scale, each.cfg_scale) for profile in known.of_model for each in profile.fitted}
        | {(each.steps, each.schedule.low, each.schedule.high) for profile in known.of_model for each in profile.joint}
        | {(each.steps, each.cfg_scale, each.cfg_scale) for profile in known.of_model for each in profile.compared}
    )
    cells = _listed(
        [
            f"{steps} at CFG {low:g}" + (f" to {high:g}" if high > low else "")
            for steps, low, high in made[:LONGEST_LIST]
        ]
    )
    more = f" and {len(made) - LONGEST_LIST} more" if len(made) > LONGEST_LIST else ""
    if first.calibration:
        text = f"{first.calibration} is in use"
        if not shown.enabled:
            text += "; Settings > HP Sampler says whether one is used while the accordion is off"
    elif settings.calibration == OFF:
        text = "off" if shown.enabled else "not used while the accordion is off (Settings > HP Sampler)"
    elif not made:
        text = "none for this checkpoint"
    elif first.auto_is_best:
        text = first.auto_is_best
    elif shown.controls["calibration"].idle:
        text = f"not used, as {shown.controls['calibration'].idle}"
    else:
        text = f"none in use here at {page.steps:g} steps and CFG {page.cfg:g}; this checkpoint has steps {cells}{more}"
    link = " · " + _button("tab", f"{tab}…", f"Opens the tab {tab}", tab=tab) if tab else ""
    return f"Calibration: {escape(text)}{link}"


# ---- the controls ----------------------------------------------------------------------------------------------------


def _of_controls(shown: View, groups: Sequence[tuple[str, Sequence[str]]]) -> tuple[dict[str, Any], dict[str, str]]:
    """For each control what is written at it, and for each group what stands in its title.

    A reason that several controls of a group share is said once: in the title where it is true of all of them, else at
    the first.
    """
    grouped = {name: suffix for suffix, names in groups for name in names}
    titles = {suffix: _title(shown, names) for suffix, names in groups}
    said: dict[tuple[str, str], str] = {}
    controls = {}
    for name, each in shown.controls.items():
        suffix = grouped.get(name, "")
        whole = bool(suffix) and each.idle and _all_idle(shown, dict(groups)[suffix])
        freeu = each.idle and suffix and "freeu" in dict(groups)[suffix]
        where = said.setdefault((suffix, each.idle), name) if suffix else name
        text = "" if whole or freeu or where != name else f"No effect: {each.idle}." if each.idle else ""
        text = text or _beside(name, each)
        elsewhere = "" if whole or freeu or where == name else where
        controls[name] = {
            "label": _BY_NAME[name].label,
            "idle": each.idle,
            "text": text,
            "by": elsewhere or (name if text else ""),
            "changed": each.changed and not each.idle,
            "wrong": each.wrong,
            "highest": _BY_NAME[name].high if each.highest is None else each.highest,
        }
    return controls, titles


def _beside(name: str, control: Control) -> str:
    if not control.recipe or (control.idle and name not in FREEU_FIELDS):
        return ""
    mark = "Changed; recipe" if control.changed and not control.idle else "Recipe"
    if name in FREEU_FIELDS - {"freeu"}:
        mark = "In use"
    return f"{mark}: {control.recipe}"


def _all_idle(shown: View, names: Sequence[str]) -> bool:
    return all(shown.controls[name].idle for name in names)


def _title(shown: View, names: Sequence[str]) -> str:
    parts = []
    changed = [each for each in names if shown.controls[each].changed and not shown.controls[each].idle]
    if _all_idle(shown, names):
        reasons = list(dict.fromkeys(shown.controls[name].idle for name in names))
        return f"no effect: {reasons[0] if len(reasons) == 1 else 'another solver is in use'}"
    if any(shown.controls[name].wrong for name in names):
        parts.append("to be corrected")
    if "freeu" in names and not shown.first.error:
        calls = _listed([f"{first} to {last}" if last > first else f"{first}" for first, last in shown.first.freeu])
        several = len(shown.first.freeu) > 1 or any(first < last for first, last in shown.first.freeu)
        parts.append(f"on in UNet call{'s' * several} {calls}" if calls else "off")
    if changed:
        parts.append(f"{len(changed)} changed")
    return ", ".join(parts)
