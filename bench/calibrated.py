"""``python -m bench.calibrated``: calibrate schedules to the tiny model, as the WebUI's tab does to a checkpoint.

The captions are none that the bench draws, and the seeds are others, so what the bench measures is held out. The
bench's own calibrations of both small models, with their statistics, lie beside its tables (:mod:`bench.calibrate`).
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from tqdm import tqdm

from hpsampler.calibration.choice import FORMS, PICTURES
from hpsampler.calibration.compare import ways
from hpsampler.calibration.config import CalibrationConfig
from hpsampler.calibration.job import CalibrationJob
from hpsampler.calibration.profile import Profile, Target
from hpsampler.noise import NoiseModel
from hpsampler.recipes import recipe_for
from hpsampler.statistics.coefficients import Statistics
from hpsampler.statistics.files import load_statistics, statistics_label
from hpsampler.store import write_atomically
from tiny_model.description import Description
from tiny_model.model import TinyModel, seeded_noise
from tiny_model.networks import TINY, WEIGHTS

from .methods import Method, Plan, of_recipe
from .runs import SHOWN

__all__ = [
    "AFTER",
    "NAME",
    "SHIPPED",
    "STATISTICS",
    "TinySource",
    "after_calibrate",
    "calibrated",
    "config_of",
    "made_for",
    "main",
    "profile_of",
    "statistics_near",
    "statistics_of",
    "weights_hash",
]  # fmt: skip

SHIPPED = Path(__file__).parents[1] / "docs" / "bench" / "calibration.json"
"""The bench's calibration of the tiny model."""

NAME = "HP calibrated"
"""The fitted schedule by itself."""

AFTER = "HP Auto calibrated"
"""What Auto draws with where a calibration compared the ways: the one with the best pictures."""

STATISTICS = "small model"
"""Name of the statistics, by which a comparison tells what it drew with."""

FAMILY = "sd1"
FIRST_SEED = 500_000
CAPTIONS_SEED = 79
BENCH_CAPTIONS = 2000
"""So many of the first captions are drawn elsewhere."""


def weights_hash(weights: Path) -> str:
    """By which a calibration knows the tiny model: its UNet's file."""
    return hashlib.sha256((weights / "unet.safetensors").read_bytes()).hexdigest()


class TinySource:
    """A small model as something to calibrate to, see :class:`hpsampler.jobs.ModelSource`.

    Args:
        batch: pictures in one evaluation of the network; memory grows with it, the results do not depend on it.
        on_call: called with the number of pictures after every evaluation.
    """

    family = FAMILY

    def __init__(
        self, model: TinyModel, model_hash: str, batch: int = 48, on_call: Optional[Callable[[int], object]] = None
    ) -> None:
        self.model, self.batch, self.on_call = model, batch, on_call
        self.hashes: tuple[str, ...] = (model_hash,)
        self.noise: NoiseModel = model.noise
        self.model_name = f"HP Sampler's {model.description.name} model"

    def denoiser(self, prompts: Sequence[str], negative: str, cfg_scale: float) -> Callable[..., torch.Tensor]:
        batch = self.batch
        parts = [
            self.model.denoiser(prompts[first : first + batch], cfg_scale, negative)
            for first in range(0, len(prompts), batch)
        ]

        def denoise(x: torch.Tensor, sigma: torch.Tensor, /, **own: Any) -> torch.Tensor:
            found = []
            for part, rows, levels in zip(parts, x.split(batch), sigma.expand(len(x)).split(batch), strict=True):
                found.append(part(rows, levels, **own))
                if self.on_call is not None:
                    self.on_call(len(rows))
            return torch.cat(found)

        return denoise

    def start(self, seeds: Sequence[int], width: int, height: int) -> torch.Tensor:
        channels = self.model.description.latent[0]
        return seeded_noise(seeds, (channels, height // 8, width // 8)).to(self.model.device)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.model.decode(latents)


def config_of(
    steps: Sequence[int], cfg_scales: Sequence[float], trajectories: int, runs: int, description: Description = TINY
) -> CalibrationConfig:
    """What to calibrate, with a caption for every trajectory that neither the bench nor the sheet draws."""
    pictures = description.pictures
    known = {*pictures.captioned(BENCH_CAPTIONS), *SHOWN}
    drawn = pictures.captioned(4 * trajectories + 20, CAPTIONS_SEED)
    others = dict.fromkeys(each for each in drawn if each not in known)
    return CalibrationConfig(
        name=f"{description.name} model", steps=tuple(steps), cfg_scales=tuple(cfg_scales), width=pictures.side,
        height=pictures.side, prompts=tuple(picture.caption() for picture in others)[: 2 * trajectories],
        trajectories=trajectories, runs=runs, seed=FIRST_SEED,
    )  # fmt: skip


def calibrated(profile: Profile) -> Method:
    """The schedule that was fitted to the model; no plan where none fits."""

    def make(noise: NoiseModel, nfe: int, cfg_scale: float) -> Optional[Plan]:
        row = profile.find(nfe, _target(profile, noise, cfg_scale))
        if row is None:
            return None
        return of_recipe(profile.recipe(row, recipe_for(profile.family, nfe, cfg_scale), cfg_scale), noise, nfe)

    return Method(NAME, "", make, "as calibrated")


def after_calibrate(profile: Profile, statistics: Sequence[tuple[str, Statistics]]) -> Method:
    """What Auto draws with on the model: of the ways that the profile compared the one with the best pictures.

    There is no plan where nothing was compared.

    Args:
        statistics: all that there are of the model, with their labels, by which comparisons name them.
    """

    def make(noise: NoiseModel, nfe: int, cfg_scale: float) -> Optional[Plan]:
        comparison = profile.comparison(nfe, _target(profile, noise, cfg_scale))
        if comparison is None:
            return None
        found = next((each for each in statistics if each[0] == comparison.statistics), None)
        recipes = ways(profile, nfe, cfg_scale, found)
        name = next(name for name in comparison.ranked(PICTURES) if name in recipes)
        return of_recipe(recipes[name], noise, nfe, **way_options(name, found))

    return Method(AFTER, "", make, "as calibrated")


def way_options(name: str, statistics: Optional[tuple[str, Statistics]]) -> dict[str, Any]:
    """What the solver is given beside the recipe's own options."""
    if name not in FORMS or statistics is None:
        return {}
    return {"statistics": statistics[1], "corrector": FORMS[name][1]}


def _target(profile: Profile, noise: NoiseModel, cfg_scale: float) -> Target:
    return Target(frozenset(profile.hashes), profile.family, noise, profile.width, profile.height, cfg_scale)


def profile_of(path: Path) -> Profile:
    """The profile in a file."""
    return Profile.from_json(path.read_text(encoding="utf-8"))


def statistics_of(path: Path) -> list[tuple[str, Statistics]]:
    """The statistics beside a profile's file, with their labels; there may be none."""
    beside = [path.with_suffix(".safetensors"), *sorted(path.parent.glob(f"{path.stem}_cfg*.safetensors"))]
    found = [load_statistics(each) for each in beside if each.exists()]
    return [(statistics_label(STATISTICS, each), each) for each in found]


def statistics_near(path: Path, cfg_scale: float) -> Optional[tuple[str, Statistics]]:
    """Of the statistics beside a profile's file those that were measured nearest to a guidance scale."""
    return min(
        statistics_of(path), key=lambda each: abs((each[1].source.cfg_scale or math.inf) - cfg_scale), default=None
    )


def made_for(path: Path, weights: Path) -> bool:
    """Whether there is a profile in that file that was made for the model in the folder ``weights``."""
    return path.exists() and weights_hash(weights) in profile_of(path).hashes


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Calibrate, and write the profile after every number of steps."""
    options = _options(argv)
    with tqdm(desc="calibrating", unit=" calls") as bar:
        source = TinySource(
            TinyModel.load(options.weights, options.device), weights_hash(options.weights), on_call=bar.update
        )
        job = CalibrationJob(
            config_of(options.steps, options.cfg, options.trajectories, options.runs),
            source,
            save=lambda profile: write_atomically(options.out, profile.to_json()),
        )
        bar.total = job.progress.of
        options.out.parent.mkdir(parents=True, exist_ok=True)
        job.run()
    print("\n".join(job.progress.log))
    print(f"Written: {options.out}")


def _options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.calibrated",
        description="Calibrate schedules to the tiny model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 6, 8], help="numbers of steps, each by itself")
    parser.add_argument(
        "--cfg", nargs="+", type=float, default=[2.0, 3.0, 5.0, 7.5, 10.0], help="guidance scales that one fit covers"
    )
    parser.add_argument(
        "--trajectories", type=int, default=60, help="to fit to, at all scales together; as many are held out"
    )
    parser.add_argument("--runs", type=int, default=50, help="budget in runs of the sampler over the trajectories")
    parser.add_argument("--out", type=Path, default=Path("out/calibration.json"), help="file to write")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the model's weights")
    parser.add_argument("--device", default="cpu", help="where the model runs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
