"""The page's sections on calibration, and their plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from hpsampler.calibration.profile import Profile

from .calibrated import AFTER, NAME
from .exact import FITTED_TO
from .reach import FITTED_SCALES
from .text import Row, distinct, error_text, frechet_text, share_text, table
from .webp import LOSSLESS

__all__ = ["calibrated_plot", "exact_section", "reach_section", "side_by_side", "tiny_section"]

AUTO = "HP Auto"
KARRAS_20 = ("DPM++ 2M", "Karras", "20")

LINES = ((NAME, "#be185d"), (AUTO, "#1d4ed8"), ("best uncalibrated", "#059669"), ("DPM++ 2M Karras", "#b91c1c"))
"""Of the plot: name and colour."""


def tiny_section(tiny: Sequence[Row], profile: Profile, common: str, many: str) -> list[str]:
    """Every calibrated cell of the tiny model beside what there was without."""
    runs = max(each.calls / profile.trajectories / each.steps for each in profile.rows)
    common_rows = [row for row in tiny if row["samples"] == common]
    return [
        f"Schedules fitted to the tiny model ([calibration.json](bench/calibration.json)): {profile.trajectories} "
        f"trajectories for each, of other captions and seeds than the bench's, at most {runs:.0f} runs of the sampler "
        f"over them with their references counted. {_refusals(*_cells(profile))} "
        f"{_endings(profile)}.",
        f"*Best uncalibrated*: of all other cells at that NFE and guidance scale the one nearest to the reference. "
        f"*Gain*: how much nearer calibrated is, in %. First {common} samples: Fréchet / caption / distance.",
        _tiny_table(common_rows),
    ]


SIDE_BY_SIDE = (("Auto", AUTO), ("Auto after Calibrate", AFTER), ("the fitted schedule alone", NAME))
"""What is set beside 20 steps: label and sampler."""


def side_by_side(rows: Sequence[Row], many: str) -> list[str]:
    """Auto, what it draws with after Calibrate, and twenty steps, on many samples of one model."""
    chosen = [row for row in rows if row["samples"] == many]
    scales = distinct([row for row in chosen if _is_baseline(row)], "cfg_scale")
    figures = ("frechet", "accuracy", "distance")

    def line(label: str, nfe: str, found: Sequence[Row | None]) -> list[str]:
        return [label, nfe, *(_figures(row, figures) if row else "" for row in found)]

    def at(cfg: str, nfe: str) -> list[Row]:
        return [row for row in chosen if (row["cfg_scale"], row["nfe"]) == (cfg, nfe)]

    body = []
    ours = [sampler for _, sampler in SIDE_BY_SIDE]
    for nfe in distinct([row for row in chosen if row["sampler"] in ours], "nfe"):
        for label, sampler in SIDE_BY_SIDE:
            here = [_of(at(cfg, nfe), sampler) for cfg in scales]
            body += [line(label, nfe, here)] if any(here) else []
    body.append(line("DPM++ 2M Karras", "20", [next(filter(_is_baseline, at(cfg, "20")), None) for cfg in scales]))
    return [
        f"Fréchet / caption / distance, {many} samples. *Auto after Calibrate* draws with what the calibration found "
        "to give the best pictures; the last row is what 20 steps give.",
        table(["", "NFE", *(f"CFG {float(cfg):g}" for cfg in scales)], body),
    ]


def exact_section(exact: Sequence[Row], problems: Sequence[Row], fits: Sequence[Row]) -> list[str]:
    """The same on the exact problems, and where the errors come from."""
    refused = [f"{row['problem']} (CFG {row['cfg_scale']}, {row['nfe']} steps)" for row in fits if not row["start"]]
    listed = f": {', '.join(refused)}" if refused else ""
    runs = max(float(row["runs"]) for row in fits)
    return [
        f"The exact problems, each calibrated to by itself at one guidance scale: geometric means of the errors. "
        f"{FITTED_TO} trajectories and at most {runs:.0f} runs, which is as much as the tab lets people choose. "
        f"{_refusals(len(refused), len(fits))[:-1]}{listed}; there the row is Auto's, as Auto is what is used then.",
        _exact_table(exact),
        "The errors by problem, calibrated / Auto:",
        _problem_table(problems),
    ]


def _endings(profile: Profile) -> str:
    above_zero = [f"{cell.steps} at CFG {cell.cfg_scale:g}" for cell in profile.fitted if cell.sigmas[-1] > 0]
    above_zero += [f"{joint.steps}" for joint in profile.joint if joint.schedule.end[0] > 0]
    if not above_zero:
        return "All of them end at 0"
    return f"Schedules that keep noise for the decoder: {', '.join(above_zero)}"


def _cells(profile: Profile) -> tuple[int, int]:
    """How many pairs of steps and guidance scale were refused, of how many."""
    measured = [each for joint in profile.joint for each in joint.measured]
    refused = len(profile.refused) + sum(each.refused for each in measured)
    return refused, len(profile.fitted) + len(profile.refused) + len(measured)


def _refusals(refused: int, cells: int) -> str:
    return f"Refused, as no better than Auto on their held-out trajectories: {refused} of {cells}."


def best_uncalibrated(rows: Sequence[Row], figure: str) -> Row | None:
    others = [row for row in rows if row["sampler"] not in (NAME, AFTER)]
    return min(others, key=lambda row: float(row[figure]), default=None)


def _named(row: Row) -> str:
    ending = f" ({row['ending']})" if row["schedule"] == "HP" else ""
    freeu = f" Free-U {row['freeu']}" if row.get("freeu") in ("late", "always") else ""
    return f"{row['sampler']} {row['schedule']}".strip() + ending + freeu


def _gain(calibrated: Row, other: Row, figure: str) -> str:
    return f"{100 * (1 - float(calibrated[figure]) / float(other[figure])):.0f}"


def _of(rows: Sequence[Row], sampler: str) -> Row | None:
    return next((row for row in rows if row["sampler"] == sampler), None)


def _figures(row: Row, names: Sequence[str]) -> str:
    form = {"frechet": frechet_text, "accuracy": share_text, "distance": share_text, "error": error_text}
    return " / ".join(f"{form[name](float(row[name]))} ({form[name](float(row[f'{name}_se']))})" for name in names)


def _by_cell(rows: Sequence[Row]) -> Mapping[tuple[str, str], list[Row]]:
    cells: dict[tuple[str, str], list[Row]] = {}
    for cfg in distinct(rows, "cfg_scale"):
        for nfe in distinct(rows, "nfe"):
            cells[cfg, nfe] = [row for row in rows if (row["cfg_scale"], row["nfe"]) == (cfg, nfe)]
    return cells


def _tiny_table(rows: Sequence[Row]) -> str:
    three = ("frechet", "accuracy", "distance")
    body = []
    cells = _by_cell(rows)
    for (cfg, nfe), here in cells.items():
        calibrated, auto, best = _of(here, NAME), _of(here, AUTO), best_uncalibrated(here, "distance")
        if calibrated is None or auto is None or best is None:
            continue
        shown = [_figures(row, three) for row in (calibrated, auto, best)]
        shown[2] = f"{_named(best)}: {shown[2]}"
        gains = [_gain(calibrated, other, "distance") for other in (auto, best)]
        body.append([f"{float(cfg):g}", nfe, *shown, *gains])
        if nfe == [n for c, n in cells if c == cfg and _of(cells[c, n], NAME)][-1]:
            body += [[f"{float(cfg):g}", "20", "", "", f"for scale: DPM++ 2M Karras: {_figures(row, three)}", "", ""]
                     for row in cells.get((cfg, "20"), []) if _is_baseline(row)]  # fmt: skip
    head = ["CFG", "NFE", "calibrated", "Auto", "best uncalibrated", "gain on Auto", "gain on the best"]
    return table(head, body)


def _is_baseline(row: Row) -> bool:
    return (row["sampler"], row["schedule"], row["nfe"]) == KARRAS_20


def _exact_table(rows: Sequence[Row]) -> str:
    body = []
    for (cfg, nfe), here in _by_cell(rows).items():
        calibrated, auto, best = _of(here, NAME), _of(here, AUTO), best_uncalibrated(here, "error")
        if calibrated is None or auto is None or best is None:
            continue
        shown = [_figures(row, ("error",)) for row in (calibrated, auto, best)]
        shown[2] = f"{_named(best)}: {shown[2]}"
        body.append([f"{float(cfg):g}", nfe, *shown, *(_gain(calibrated, other, "error") for other in (auto, best))])
    return table(["CFG", "NFE", "calibrated", "Auto", "best uncalibrated", "gain on Auto", "gain on the best"], body)


def _problem_table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(row["problem"] for row in rows))
    body = []
    for (cfg, nfe), here in _by_cell(rows).items():
        shown = []
        for name in names:
            pair = [_of([row for row in here if row["problem"] == name], sampler) for sampler in (NAME, AUTO)]
            shown.append(" / ".join(error_text(float(row["error"])) for row in pair if row))
        if _of(here, NAME):
            body.append([f"{float(cfg):g}", nfe, *shown])
    return table(["CFG", "NFE", *names], body)


def reach_section(rows: Sequence[Row], exact: Sequence[Row]) -> list[str]:
    """Other guidance scales, other sizes; ``exact`` is of the exact problems."""
    budgets = distinct(rows, "nfe")
    names = _schedules(rows)
    own_size = max({(r["height"], r["width"]) for r in rows}, key=lambda size: sum(_size(r) == size for r in rows))

    def lines(chosen: Sequence[Row], columns: Sequence[str], place: str) -> str:
        shown = []
        for name in columns:
            for nfe in budgets:
                row = next((row for row in chosen if (row["schedule"], row["nfe"]) == (name, nfe)), None)
                shown.append(share_text(float(row["distance"])) if row else "")
        return "| " + " | ".join([place, *shown]) + " |"

    scales = [
        lines([row for row in rows if row["cfg_scale"] == cfg and _size(row) == own_size], names, f"{float(cfg):g}")
        for cfg in distinct(rows, "cfg_scale")
    ]
    sizes = list(dict.fromkeys(_size(row) for row in rows if _size(row) != own_size))
    parts = [
        f"Distance to the reference at guidance scales that the calibration was fitted to and at others; "
        f"{_samples(rows, own_size)} samples. Columns: Auto and calibrated, by NFE; empty where the fit was refused, "
        "as Auto is what is used then.",
        table(["CFG", *(f"{name}, {nfe}" for name in names for nfe in budgets)], []) + "\n" + "\n".join(scales),
    ]
    if sizes:
        used = [name for name in names if any(r["schedule"] == name for r in rows if _size(r) == sizes[0])]
        cfg = next(row["cfg_scale"] for row in rows if _size(row) == sizes[0])
        here = [row for row in rows if row["cfg_scale"] == cfg]
        body = [
            lines([row for row in here if _size(row) == size], used, "x".join(size))
            for size in sorted({_size(row) for row in here}, key=lambda size: int(size[0]) * int(size[1]))
        ]
        parts += [
            f"The same at other sizes of the latents (CFG {float(cfg):g}; calibrated at {'x'.join(own_size)}; "
            f"{_samples(rows, sizes[0])} samples at the others):",
            table(["size", *(f"{name}, {nfe}" for name in used for nfe in budgets)], []) + "\n" + "\n".join(body),
        ]
    names = _schedules(exact)
    errors = {(row["cfg_scale"], row["schedule"], row["nfe"]): error_text(float(row["error"])) for row in exact}
    exact_lines = [
        [f"{float(cfg):g}", *(errors.get((cfg, name, nfe), "") for name in names for nfe in budgets)]
        for cfg in distinct(exact, "cfg_scale")
    ]
    return [
        *parts,
        f"And on the exact problems, one fit to each for CFG {', '.join(f'{scale:g}' for scale in FITTED_SCALES)}: "
        "geometric means of the errors. Where a fit was refused (problems with modes apart) Auto's row stands there:",
        table(["CFG", *(f"{name}, {nfe}" for name in names for nfe in budgets)], exact_lines),
    ]


def _schedules(rows: Sequence[Row]) -> list[str]:
    """Auto, and calibrated if it is there."""
    return list(dict.fromkeys(row["schedule"] for row in rows))


def _size(row: Row) -> tuple[str, str]:
    return row["height"], row["width"]


def _samples(rows: Sequence[Row], size: tuple[str, str]) -> str:
    return next(row["samples"] for row in rows if _size(row) == size)


def calibrated_plot(path: Path, rows: Sequence[Row]) -> None:
    """Distance by NFE at each guidance scale that was calibrated."""
    scales = distinct([row for row in rows if row["sampler"] == NAME], "cfg_scale")
    figure = Figure(figsize=(3.6 * len(scales), 3.2), dpi=110, layout="constrained")
    columns = figure.subplots(1, len(scales), squeeze=False, sharey=True)[0]
    for axes, cfg in zip(columns, scales):
        cells = {int(nfe): here for (scale, nfe), here in _by_cell(rows).items() if scale == cfg and int(nfe) <= 20}
        for label, colour in LINES:
            points = [(nfe, row) for nfe, here in cells.items() if (row := _point(here, label)) is not None]
            axes.errorbar(
                [nfe for nfe, _ in points],
                [float(row["distance"]) for _, row in points],
                [float(row["distance_se"]) for _, row in points],
                fmt="o-", color=colour, markersize=3.5, linewidth=1.4, label=label,
            )  # fmt: skip
        axes.set_title(f"CFG {float(cfg):g}", loc="left", fontsize=10)
        axes.set_yscale("log")
        axes.set_xlabel("NFE")
        axes.set_xticks((4, 5, 6, 7, 8, 10, 20), ("4", "", "6", "", "8", "10", "20"))
        axes.grid(True, color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    columns[0].set_ylabel("distance")
    columns[-1].legend(frameon=False, fontsize=7)
    figure.savefig(path, pil_kwargs=dict(LOSSLESS))


def _point(rows: Sequence[Row], label: str) -> Row | None:
    if label == "best uncalibrated":
        # where hardly anything was measured, the best of it says nothing
        return best_uncalibrated(rows, "distance") if _of(rows, NAME) else None
    return next((row for row in rows if _named(row) == label), None)
