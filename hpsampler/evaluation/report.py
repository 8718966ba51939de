"""The table and the plot of the results: Markdown, CSV, SVG or PNG."""

from __future__ import annotations

import csv
import html
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional

import numpy as np

from ..files import part_beside, write_atomically
from .metrics import Estimate

__all__ = ["Row", "write_report"]


@dataclass(frozen=True)
class Row:
    """The results of one configuration.

    Attributes:
        name: the configuration in the command line's notation.
        folder: name of the folder with its pictures.
        conditions: further columns of the table, such as steps and size.
        figures: those of ``fid``, ``clip`` and ``seconds`` that were measured.
    """

    name: str
    folder: str
    conditions: dict[str, Any]
    figures: dict[str, Estimate]


_TITLES = MappingProxyType(
    {"fid": "FID (less is better)", "clip": "CLIP score (more is better)", "seconds": "seconds per picture"}
)
_COLUMNS = MappingProxyType({"fid": "FID", "clip": "CLIP score", "seconds": "s per picture"})
_DIGITS = MappingProxyType({"fid": 2, "clip": 2, "seconds": 3})


def write_report(rows: Sequence[Row], notes: Sequence[str], folder: Path) -> list[Path]:
    """Write ``table.md``, ``table.csv`` and a plot (SVG where matplotlib is missing); returns their paths."""
    measured = [name for name in _TITLES if any(name in row.figures for row in rows)]
    table, sheet = folder / "table.md", folder / "table.csv"
    write_atomically(table, _markdown(rows, measured, notes))
    _write_csv(rows, measured, sheet)
    return [table, sheet, _plot(rows, measured, folder)]


def _markdown(rows: Sequence[Row], measured: Sequence[str], notes: Sequence[str]) -> str:
    columns = list(rows[0].conditions)
    lines = ["| " + " | ".join(["configuration", *columns, *(_COLUMNS[name] for name in measured)]) + " |"]
    lines.append("|" + "---|" * (1 + len(columns) + len(measured)))
    for row in rows:
        cells = [row.name, *(str(row.conditions[column]) for column in columns)]
        cells += [_shown(row.figures.get(name), _DIGITS[name]) for name in measured]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", *(f"* {note}" for note in notes), ""])


def _shown(estimate: Optional[Estimate], digits: int) -> str:
    if estimate is None:
        return ""
    if not np.isfinite(estimate.error):
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} ± {estimate.error:.{digits}f}"


def _write_csv(rows: Sequence[Row], measured: Sequence[str], path: Path) -> None:
    columns = ["configuration", *rows[0].conditions, *(part for name in measured for part in (name, f"{name}_error"))]
    # without the byte order mark some spreadsheets assume another encoding
    with part_beside(path) as part, part.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "folder"])
        for row in rows:
            cells: list[Any] = [row.name, *row.conditions.values()]
            for name in measured:
                figure = row.figures.get(name)
                cells += ["", ""] if figure is None else [figure.value, figure.error]
            writer.writerow([*cells, row.folder])


def _plot(rows: Sequence[Row], measured: Sequence[str], folder: Path) -> Path:
    """Write a plot with a dot and its error bar for every configuration and figure."""
    try:
        figure = importlib.import_module("matplotlib.figure").Figure(
            figsize=(4 + 3.2 * len(measured), 1.2 + 0.32 * len(rows)), dpi=110, facecolor="white", layout="constrained"
        )
    except ImportError:
        path = folder / "plot.svg"
        write_atomically(path, _svg(rows, measured))
        return path
    places = list(range(len(rows)))
    for axes, name in zip(figure.subplots(1, len(measured), sharey=True, squeeze=False)[0], measured):
        for place, row in zip(places, rows):
            if name in row.figures:
                value, error = _dot(row.figures[name])
                axes.errorbar(value, place, xerr=error, fmt="o", color="#2563eb", markersize=5, capsize=3)
        axes.set_title(_TITLES[name], loc="left", fontsize=10)
        axes.set_yticks(places, [row.name for row in rows], fontsize=8, parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(True, axis="x", color="#e5e7eb")
        axes.spines[["top", "right"]].set_visible(False)
    path = folder / "plot.png"
    with part_beside(path) as part:
        figure.savefig(part, format="png")
    return path


def _dot(estimate: Estimate) -> tuple[float, float]:
    return estimate.value, estimate.error if np.isfinite(estimate.error) else 0.0


def _svg(rows: Sequence[Row], measured: Sequence[str]) -> str:
    left, panel, gap, top, line = 12 + 7 * max(len(row.name) for row in rows), 240, 30, 34, 22
    bottom = top + line * len(rows)
    width, height = left + (panel + gap) * len(measured), bottom + 28
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for place, row in enumerate(rows):
        parts.append(f'<text x="8" y="{top + line * (place + 0.5) + 4:g}">{html.escape(row.name)}</text>')
    for number, name in enumerate(measured):
        start = left + number * (panel + gap)
        dots = [(place, *_dot(row.figures[name])) for place, row in enumerate(rows) if name in row.figures]
        low, high = min(value - error for _, value, error in dots), max(value + error for _, value, error in dots)
        room = 0.05 * (high - low) or 1.0
        low, high = low - room, high + room

        def at(value: float, start: int = start, low: float = low, high: float = high) -> float:
            return round(start + panel * (value - low) / (high - low), 2)

        parts.append(f'<text x="{start}" y="18">{html.escape(_TITLES[name])}</text>')
        parts.append(f'<path d="M{start} {bottom}h{panel}" stroke="#9ca3af"/>')
        for value, anchor in ((low, "start"), (high, "end")):
            parts.append(f'<text x="{at(value)}" y="{bottom + 18}" text-anchor="{anchor}">{value:.4g}</text>')
        for place, value, error in dots:
            middle = top + line * (place + 0.5)
            parts.append(f'<path d="M{at(value - error)} {middle:g}H{at(value + error)}" stroke="#2563eb"/>')
            parts.append(f'<circle cx="{at(value)}" cy="{middle:g}" r="4" fill="#2563eb"/>')
    return "\n".join([*parts, "</svg>", ""])
