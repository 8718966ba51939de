"""The schedule plot: sigma per step of every run on the sheet, and the base Karras schedules with their cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.calibrated import AFTER as CALIBRATED
from bench.methods import AUTO, KARRAS, SGM
from bench.runs import Run
from bench.webp import LOSSLESS
from hpsampler.noise import NoiseModel
from hpsampler.recipes import Recipe
from hpsampler.schedule import base_karras

__all__ = ["draw_schedules"]

FLOOR = 0.018
"""Where sigma 0 is drawn on the logarithmic axis, just below the smallest sigma."""

TICKS = (0.03, 0.1, 0.3, 1, 3, 10)

CUT = "the cut: HP spreads its steps nearly\nevenly in time, from the start to here"

KARRAS_SHADES, HP_SHADES = ("#d97706", "#92400e"), ("#60a5fa", "#2563eb", "#1e3a8a")
SGM_SHADES, CALIBRATED_SHADES = ("#6ee7b7", "#10b981", "#047857"), ("#be185d",)


def draw_schedules(runs: list[Run], noise: NoiseModel, path: Path) -> None:
    """Write the plot of the runs' schedules as WebP."""
    figure = Figure(figsize=(11, 4.6), dpi=110, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    _sigmas_per_step(left, [run for run in runs if run.plan])
    _cuts(
        right, [run.plan.recipe for run in runs if run.plan and run.plan.recipe and not run.plan.recipe.levels], noise
    )
    left.set_yscale("log")
    left.set_ylim(FLOOR * 0.85, 22)
    left.set_yticks((FLOOR, *TICKS), ("0", *(f"{tick:g}" for tick in TICKS)))
    left.minorticks_off()
    for axes in (left, right):
        axes.grid(True, color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, pil_kwargs=dict(LOSSLESS))


def _sigmas_per_step(axes: Any, runs: list[Run]) -> None:
    shades = {
        KARRAS.name: iter(KARRAS_SHADES),
        SGM.name: iter(SGM_SHADES),
        AUTO.name: iter(HP_SHADES),
        CALIBRATED: iter(CALIBRATED_SHADES),
    }
    for run in runs:
        assert run.plan is not None
        colour, sigmas = next(shades[run.name]), run.plan.sigmas.tolist()
        label = f"{run.name}, {run.nfe} steps"
        ends_at_zero = sigmas[-1] == 0
        points = sigmas[:-1] if ends_at_zero else sigmas
        axes.plot(range(len(points)), points, "o-", color=colour, markersize=4.5, linewidth=1.8, label=label)
        if ends_at_zero:
            last = len(points) - 1
            axes.plot((last, last + 1), (points[-1], FLOOR), ":", color=colour, linewidth=1.4)
            axes.plot(last + 1, FLOOR, "v", color=colour, markersize=6)
    axes.plot([], [], "v", color="#9ca3af", markersize=6, linestyle="none", label="last step to sigma 0")
    axes.set_title("Noise level per step", loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel("sigma")
    axes.set_xticks(range(0, max(run.nfe for run in runs) + 1, 2))
    axes.legend(frameon=False, fontsize=9, loc="upper right")


def _cuts(axes: Any, recipes: list[Recipe], noise: NoiseModel) -> None:
    """Each base schedule once: the part kept, the part cut away, and where the cut is."""
    by_cut: dict[tuple[int, float, int], list[Recipe]] = {}
    for recipe in recipes:
        by_cut.setdefault((recipe.base_steps, recipe.rho, recipe.truncation_index), []).append(recipe)
    for ((base_steps, rho, index), same), colour in zip(by_cut.items(), HP_SHADES[1:], strict=False):
        base = base_karras(base_steps, rho, noise.sigma_min, noise.sigma_max)
        for_steps = " and ".join(dict.fromkeys(str(recipe.steps) for recipe in same))
        axes.plot(range(index, base_steps), base[index:], "o--", color="#9ca3af", markersize=3.5, linewidth=1.2)
        axes.plot(range(index + 1), base[: index + 1], "o-", color=colour, markersize=4.5, linewidth=1.8,
                  label=f"{base_steps} points, rho {rho:g} (for {for_steps} steps)")  # fmt: skip
        axes.plot(index, base[index], "X", color="#dc2626", markersize=10, zorder=3)
    axes.plot([], [], "X", color="#dc2626", markersize=8, linestyle="none", label=CUT)
    axes.set_title("Where HP stops: a Karras schedule, cut early", loc="left", fontsize=11)
    axes.set_xlabel("point of the base schedule")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
