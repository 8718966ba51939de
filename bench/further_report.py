"""The page's sections on DPM-Solver-v3 and golden noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product

from .further import AUTO, BASELINE, DECIDING, GOLDEN, MORE, STATISTICS_SCALES, V3
from .text import Row, distinct, error_text, table, tiny_figures

__all__ = ["dpm_v3_section", "golden_section"]


def dpm_v3_section(rows: Sequence[Row], exact: Sequence[Row]) -> list[str]:
    """DPM-Solver-v3 on both testbeds; ``exact`` has a row for each problem."""
    common, many = distinct(rows, "samples")
    return [
        "On Auto's schedule, to zero. Statistics with the defaults of the WebUI's tab (tiny model: of every channel; "
        f"exact problems: of every element) at CFG {' and '.join(f'{scale:g}' for scale in STATISTICS_SCALES)}: those "
        "nearest to the scale that is drawn at, which is n/2 + (w - n/2)/2 for n steps and a CFG scale w above n/2. "
        "With statistics the corrector is on where nothing else is said; without them guidance is Auto's. Tiny model, "
        f"{many} samples: Fréchet / caption; distance of the first {common}.",
        _table([row for row in rows if row["samples"] == many], DECIDING),
        f"All of them on the first {common}, then the error on the exact problems, geometric mean:",
        _table([row for row in rows if row["samples"] == common], (AUTO, *V3, BASELINE), exact),
    ]


def golden_section(rows: Sequence[Row]) -> list[str]:
    """Golden noise beside additional steps, which take the same calls."""
    common = distinct(rows, "samples")[0]
    return [
        "Two calls more, before the first step; beside them Auto with two steps more, which cost as much. Tiny model, "
        f"{common} samples: Fréchet / caption / distance to where the equation leads from the noise as it was.",
        _table([row for row in rows if row["samples"] == common], (AUTO, *GOLDEN, MORE)),
    ]


def _table(rows: Sequence[Row], methods: Iterable[str], exact: Sequence[Row] = ()) -> str:
    budgets = distinct([row for row in rows if row["method"] == AUTO], "steps")
    cells = {(row["method"], row["steps"], row["cfg_scale"]): row for row in rows}
    body = []
    for cfg, method in product(distinct(rows, "cfg_scale"), methods):
        if method == BASELINE:
            row = next(row for row in rows if (row["method"], row["cfg_scale"]) == (method, cfg))
            shown = [f"{row['steps']} steps, for scale: " + " / ".join(tiny_figures(row))] + [""] * (len(budgets) - 1)
        else:
            shown = [
                " / ".join(tiny_figures(cells[method, steps, cfg]) + _mean(exact, method, steps, cfg))
                for steps in budgets
            ]
        body.append([f"{float(cfg):g}", method, *shown])
    return table(["CFG", "", *(f"{steps} steps" for steps in budgets)], body)


def _mean(exact: Sequence[Row], method: str, steps: str, cfg: str) -> list[str]:
    """The geometric mean over the exact problems, if there are any."""
    key = (method, steps, cfg)
    errors = [float(row["error"]) for row in exact if (row["sampler"], row["nfe"], row["cfg_scale"]) == key]
    return [f"*{error_text(math.exp(sum(map(math.log, errors)) / len(errors)))}*"] if errors else []
