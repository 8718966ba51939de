"""The quality bench's whole grid on both small models, as far as the time goes; a later run goes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import fields
from functools import partial
from typing import Any

from .model_checks import SMALL_MODELS
from .part import Clock, Part, Row, Setting, Task, Unfinished

__all__ = ["PART"]

WORKERS = min(12, os.cpu_count() or 1)
"""Processes beside each other: a single one leaves a GPU waiting, as the small models' kernels are short."""

NEEDS = (
    "scipy", "PIL", "tqdm", "safetensors", "transformers", "ldm", "omegaconf", "einops", "diffusers",
    "k_diffusion", "torchsde", "torchdiffeq",
)  # fmt: skip


def measured(name: str, setting: Setting, clock: Clock) -> Sequence[Row]:
    """The rows of one model, once every cell is drawn.

    Raises:
        Unfinished: the time was over before.
    """
    # these need the packages
    from ..grid import Selection, cells
    from ..metrics import Estimate
    from ..models import MODELS as DESCRIPTIONS
    from ..models import load
    from ..pool import processes
    from ..tiny import REAL_PICTURES, draw_job, jobs_left, real_pictures, scores

    selection = Selection(name, full=True)
    if setting.small:
        selection = Selection(name, True, None, ("HP Auto", "DPM++ 2M Karras"), (5.0,), (5,), most=2)
    weights, folder = DESCRIPTIONS[name].weights, setting.folder / f"quality-{name}"
    jobs = jobs_left(selection, folder)
    if setting.small:
        for job in jobs:
            draw_job(selection, *job, weights, str(setting.device))
    elif jobs:
        with processes(WORKERS) as pool:
            running: set[Future[Any]] = set()
            while jobs or running:
                while jobs and len(running) < WORKERS and clock.left > 0:
                    running.add(pool.submit(draw_job, selection, *jobs.pop(0), weights, str(setting.device)))
                if not running:
                    raise Unfinished
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for drawn in done:
                    drawn.result()
    model = load(name, weights, setting.device)
    real = real_pictures(model, 256 if setting.small else REAL_PICTURES)
    rows = []
    for score in scores(cells(selection), folder, real, model.description.pictures):
        row: dict[str, Any] = {"model": name}
        for each in fields(score):
            value = getattr(score, each.name)
            if isinstance(value, Estimate):
                row |= {each.name: value.value, f"{each.name}_se": value.error}
            else:
                row[each.name] = value
        rows.append(row)
    return rows


def tasks(setting: Setting, clock: Clock) -> Sequence[Task]:
    return [Task(name, partial(measured, name, setting, clock), NEEDS) for name in SMALL_MODELS]


PART = Part(
    name="quality",
    title="The quality bench's whole grid",
    about=(
        "Every cell of the grid on both small models; what the figures are stands in [bench.md](bench.md). Standard "
        "errors are in the CSV file. It takes more than one run: what is drawn is kept."
    ),
    columns={
        "model": "model", "sampler": "sampler", "schedule": "schedule", "ending": "ending", "freeu": "Free-U",
        "nfe": "NFE", "cfg_scale": "CFG", "samples": "samples", "frechet": "Fréchet", "accuracy": "caption",
        "distance": "distance",
    },
    seconds=120,
    expected=1500,
    tasks=tasks,
)  # fmt: skip
