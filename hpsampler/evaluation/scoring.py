"""Scores complete folders of pictures; each gives a row of the table."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Optional

import numpy as np
import torch

from . import metrics
from .drawing import SECONDS, picture_path, read_manifest
from .metrics import Estimate, Reference, ScoreError
from .progress import ProgressBar
from .report import Row

__all__ = ["Scorer", "seconds_per_picture"]


def prompts_path(out: Path, digest: str) -> Path:
    """The file with the prompts of that hash."""
    return out / f"prompts-{digest[:12]}.json"


class Scorer:
    """Computes the scores that the options select; its networks are loaded once.

    Raises:
        ScoreError: a library is missing, or there are no reference pictures.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if args.references is not None:
            metrics.images_in(args.references)
        self._features = metrics.features_named(args.features, device) if args.references is not None else None
        self._clip = None if args.no_clip else metrics.clip_scorer(args.clip, device)
        self._reference: Optional[Reference] = None

    @property
    def notes(self) -> list[str]:
        """Sentences below the table on how the figures were measured."""
        notes = [
            "±: one standard error over the pictures (FID: jackknife; seconds: of the median, over requests). "
            "Seconds are those of a request: model, decoder, PNG and transfer.",
        ]
        if self._reference is not None:
            side, kind = self.args.reference_size, self.args.features or "FID's Inception network, 2048 features"
            notes.append(
                f"FID against {self._reference.count} pictures in {self.args.references}, resized to {side}x{side}; "
                f"{kind}. FID falls with the number of pictures: compare rows of equal numbers alone."
            )
        if self._clip is not None:
            notes.append(f"CLIP score: {self.args.clip}.")
        return notes

    def row(self, folder: Path, bar: ProgressBar) -> Row:
        """Score a folder. Raises ScoreError, EvaluationError: pictures are missing, or cannot be measured."""
        manifest = read_manifest(folder)
        task, request = manifest["asked"], manifest["asked"]["request"]
        count = self.args.count or manifest["count"]
        files = [picture_path(folder, index) for index in range(count)]
        existing = sum(file.is_file() for file in files)
        if existing < count:
            raise ScoreError(
                f"unfinished: {existing} of {count} pictures; draw them first, or score fewer with --count"
            )
        figures: dict[str, Estimate] = {}
        if self._features is not None:
            if self._reference is None:
                self._reference = self._read_reference(bar)
            bar.begin(f"FID of {manifest['configuration']}", count)
            figures["fid"] = metrics.frechet(metrics.features_of(files, self._features, None, bar.add), self._reference)
        if self._clip is not None:
            prompts = _read_prompts(folder.parent, task["prompts"])
            bar.begin(f"CLIP score of {manifest['configuration']}", count)
            values = []
            for first in range(0, count, metrics.BATCH):
                part = files[first : first + metrics.BATCH]
                captions = [prompts[index // request["batch_size"]] for index in range(first, first + len(part))]
                values.append(self._clip([metrics.read_image(file) for file in part], captions))
                bar.add(len(part))
            figures["clip"] = metrics.average(np.concatenate(values))
        seconds = seconds_per_picture(folder)
        if seconds is not None:
            figures["seconds"] = seconds
        conditions = {
            "steps": request["steps"],
            "CFG": request["cfg_scale"],
            "size": f"{request['width']}x{request['height']}",
            "pictures": count,
            "first seed": task["seed"],
            "prompts": task["prompts"][:8],
            "checkpoint": task["webui"].get("sd_model_checkpoint", ""),
        }
        return Row(manifest["configuration"], folder.name, conditions, figures)

    def _read_reference(self, bar: ProgressBar) -> Reference:
        assert self._features is not None
        side, folder = self.args.reference_size, self.args.references
        bar.begin("references", len(metrics.images_in(folder)))
        cache = None if self.args.features else self.args.out
        return metrics.reference_of(folder, self._features, (side, side), cache, bar.add)


def seconds_per_picture(folder: Path) -> Optional[Estimate]:
    """The median over requests with its standard error; None if no times were recorded.

    The median is robust: the first request of a configuration may load a model, and other work may delay one.
    """
    try:
        with (folder / SECONDS).open(encoding="ascii") as file:
            # an interrupted run may leave half a line
            rows = [row for row in csv.reader(file) if len(row) == 3]
            times = np.array([float(row[2]) / int(row[1]) for row in rows])
    except (OSError, ValueError):
        return None
    if not len(times):
        return None
    rng = np.random.default_rng(0)
    sample = times if len(times) <= 2000 else rng.choice(times, 2000, replace=False)
    medians = np.median(rng.choice(sample, (100, len(sample))), axis=1)
    return Estimate(float(np.median(times)), float(medians.std() * (len(sample) / len(times)) ** 0.5))


def _read_prompts(out: Path, digest: str) -> list[str]:
    path = prompts_path(out, digest)
    try:
        return [str(prompt) for prompt in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, RecursionError):
        raise ScoreError(f"{path}, which has the prompts, cannot be read; leave CLIP out with --no-clip") from None
