"""The page's sections on DPM-Solver-v3 and golden noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .further import AUTO, GOLDEN, MORE, V3
from .text import Row, distinct, error_text, table, three

__all__ = ["dpm_v3_section", "golden_section"]


def dpm_v3_section(rows: Sequence[Row], exact: Sequence[Row]) -> list[str]:
    """On both testbeds; ``exact`` has a row for each problem."""
    samples = rows[0]["samples"]
    return [
        "On Auto's schedule, to zero; the statistics are of the same guidance scale, with the defaults of the WebUI's "
        "tab (tiny model: of every channel; exact problems: of every element). With statistics the corrector is on "
        f"where nothing else is said. Tiny model, {samples} samples: Fréchet / caption / distance; then the error on "
        "the exact problems, geometric mean.",
        _table(rows, (AUTO, *V3), exact),
    ]


def golden_section(rows: Sequence[Row]) -> list[str]:
    """With what the same calls buy as steps."""
    samples = rows[0]["samples"]
    return [
        "Two calls more, before the first step; beside them Auto with two steps more, which cost as much. Tiny model, "
        f"{samples} samples: Fréchet / caption / distance to where the equation leads from the noise as it was.",
        _table(rows, (AUTO, *GOLDEN, MORE)),
    ]


def _table(rows: Sequence[Row], methods: Iterable[str], exact: Sequence[Row] = ()) -> str:
    budgets, scales = distinct(rows, "steps"), distinct(rows, "cfg_scale")
    cells = {(row["method"], row["steps"], row["cfg_scale"]): row for row in rows}
    body = []
    for cfg in scales:
        for method in methods:
            shown = []
            for steps in budgets:
                figures = three(cells[method, steps, cfg])
                errors = [
                    float(row["error"])
                    for row in exact
                    if (row["sampler"], row["nfe"], row["cfg_scale"]) == (method, steps, cfg)
                ]
                if errors:
                    mean = math.exp(sum(map(math.log, errors)) / len(errors))
                    figures.append(f"*{error_text(mean)}*")
                shown.append(" / ".join(figures))
            body.append([f"{float(cfg):g}", method, *shown])
    return table(["CFG", "", *(f"{steps} steps" for steps in budgets)], body)
