"""The state of an interrupted fit, in a file.

Everything lies in one ``.npz`` archive of plain arrays, with the names and numbers in it as JSON; nothing is pickled. A
file that is damaged, or of another fit, is as good as none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np

from ..files import part_beside
from .fit import Attempt, FitState
from .least_squares import Descent

__all__ = ["load_state", "save_state"]


def save_state(path: Path, state: FitState, fit: str) -> None:
    """Write a state so that an interruption leaves the former one; ``fit`` says what it is the state of.

    Raises:
        OSError: the folder cannot be written.
    """
    about = {
        "fit": fit, "calls": state.calls, "errors": state.errors, "tolerances": state.tolerances,
        "recorded": state.recorded,
        "attempts": [
            {
                "start": each.start, "error": each.error, "limit": each.limit, "compared": each.compared,
                "ended": each.ended, "damping": each.descent.damping, "fresh": each.descent.fresh,
                "done": each.descent.done, "failures": each.descent.failures,
                "jacobians": len(each.descent.jacobians),
            }
            for each in state.attempts
        ],
    }  # fmt: skip
    # numpy 2's stubs take any name for that of an argument of savez's own
    arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)}
    for index, each in enumerate(state.attempts):
        arrays[f"{index} point"] = each.descent.point
        for kind, rows in (("residuals", each.descent.residuals), ("jacobians", each.descent.jacobians)):
            arrays.update({f"{index} {kind} {place}": values for place, values in enumerate(rows)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with part_beside(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def load_state(path: Path, fit: str) -> Optional[FitState]:
    """The state in a file, if it is whole and of that fit."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        about = json.loads(arrays["about"].tobytes())
        if about["fit"] != fit:
            return None
        attempts = [_attempt(index, row, arrays) for index, row in enumerate(about["attempts"])]
        return FitState(about["calls"], about["errors"], about["tolerances"], attempts, about["recorded"])
    except Exception:  # a damaged file can raise anything; the fit then begins again
        return None


def _attempt(index: int, row: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Attempt:
    residuals: list[np.ndarray] = []
    while f"{index} residuals {len(residuals)}" in arrays:
        residuals.append(arrays[f"{index} residuals {len(residuals)}"])
    jacobians = [arrays[f"{index} jacobians {place}"] for place in range(row["jacobians"])]
    descent = Descent(
        arrays[f"{index} point"],
        residuals,
        jacobians,
        row["damping"],
        bool(row["fresh"]),
        row["failures"],
        bool(row["done"]),
    )
    return Attempt(str(row["start"]), descent, row["error"], row["limit"], bool(row["compared"]), bool(row["ended"]))
