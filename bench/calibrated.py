"""``python -m bench.calibrated``: calibrate schedules to the tiny model, as the WebUI's tab does to a checkpoint.

The captions are none that the bench draws, and the seeds are others, so what the bench measures is held out.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from tqdm import tqdm

from hpsampler.calibration.config import CalibrationConfig
from hpsampler.calibration.job import CalibrationJob
from hpsampler.calibration.profile import Profile, Target
from hpsampler.noise import NoiseModel
from hpsampler.recipes import recipe_for
from hpsampler.store import write_atomically
from tiny_model.model import LATENT, TinyModel, seeded_noise
from tiny_model.networks import WEIGHTS
from tiny_model.pictures import SIDE, captioned

from .methods import Method, Plan, of_recipe
from .runs import SHOWN

__all__ = [
    "NAME",
    "SHIPPED",
    "TinySource",
    "calibrated",
    "config_of",
    "made_for",
    "main",
    "profile_of",
    "weights_hash",
]  # fmt: skip

SHIPPED = Path(__file__).parents[1] / "docs" / "bench" / "calibration.json"
"""The bench's calibration of the tiny model."""

NAME = "HP calibrated"
FAMILY = "sd1"
FIRST_SEED = 500_000
CAPTIONS_SEED = 79
BENCH_CAPTIONS = 2000
"""So many of the first captions are drawn elsewhere."""


def weights_hash(weights: Path) -> str:
    """By which a calibration knows the tiny model: its UNet's file."""
    return hashlib.sha256((weights / "unet.safetensors").read_bytes()).hexdigest()


class TinySource:
    """The tiny model as something to calibrate to, see :class:`hpsampler.jobs.ModelSource`.

    Args:
        batch: pictures in one evaluation of the network; memory grows with it, the results do not depend on it.
        on_call: called with the number of pictures after every evaluation.
    """

    model_name = "HP Sampler's tiny model"
    family = FAMILY

    def __init__(
        self, model: TinyModel, model_hash: str, batch: int = 48, on_call: Optional[Callable[[int], object]] = None
    ) -> None:
        self.model, self.batch, self.on_call = model, batch, on_call
        self.hashes: tuple[str, ...] = (model_hash,)
        self.noise: NoiseModel = model.noise

    def denoiser(self, prompts: Sequence[str], negative: str, cfg_scale: float) -> Callable[..., torch.Tensor]:
        batch = self.batch
        parts = [
            self.model.denoiser(prompts[first : first + batch], cfg_scale, negative)
            for first in range(0, len(prompts), batch)
        ]

        def denoise(x: torch.Tensor, sigma: torch.Tensor, /, **_: Any) -> torch.Tensor:
            found = []
            for part, rows, levels in zip(parts, x.split(batch), sigma.expand(len(x)).split(batch), strict=True):
                found.append(part(rows, levels))
                if self.on_call is not None:
                    self.on_call(len(rows))
            return torch.cat(found)

        return denoise

    def start(self, seeds: Sequence[int], width: int, height: int) -> torch.Tensor:
        return seeded_noise(seeds, (LATENT[0], height // 8, width // 8)).to(self.model.device)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.model.decode(latents)


def config_of(steps: Sequence[int], cfg_scales: Sequence[float], trajectories: int, runs: int) -> CalibrationConfig:
    """What to calibrate, with a caption for every trajectory that neither the bench nor the sheet draws."""
    known = {*captioned(BENCH_CAPTIONS), *SHOWN}
    others = dict.fromkeys(each for each in captioned(4 * trajectories + 20, CAPTIONS_SEED) if each not in known)
    return CalibrationConfig(
        name="tiny model", steps=tuple(steps), cfg_scales=tuple(cfg_scales), width=SIDE, height=SIDE,
        prompts=tuple(picture.caption() for picture in others)[: 2 * trajectories], trajectories=trajectories,
        runs=runs, seed=FIRST_SEED,
    )  # fmt: skip


def calibrated(profile: Profile) -> Method:
    """What the extension does with a model that this profile was made for; no plan where nothing of it fits."""

    def make(noise: NoiseModel, nfe: int, cfg_scale: float) -> Optional[Plan]:
        target = Target(frozenset(profile.hashes), profile.family, noise, profile.width, profile.height, cfg_scale)
        fitted = profile.find(nfe, target)
        if fitted is None:
            return None
        return of_recipe(profile.recipe(fitted, recipe_for(profile.family, nfe, cfg_scale)), noise, nfe)

    return Method(NAME, "", make, "as calibrated")


def profile_of(path: Path) -> Profile:
    """The profile in a file."""
    return Profile.from_json(path.read_text(encoding="utf-8"))


def made_for(path: Path, weights: Path) -> bool:
    """Whether there is a profile in that file that was made for the model in the folder ``weights``."""
    return path.exists() and weights_hash(weights) in profile_of(path).hashes


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Calibrate, and write the profile after every number of steps at every guidance scale."""
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
    parser.add_argument("--cfg", nargs="+", type=float, default=[5.0], help="guidance scales, each by itself")
    parser.add_argument("--trajectories", type=int, default=48, help="to fit to; as many are held out")
    parser.add_argument("--runs", type=int, default=60, help="budget in runs of the sampler over the trajectories")
    parser.add_argument("--out", type=Path, default=Path("out/calibration.json"), help="file to write")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the model's weights")
    parser.add_argument("--device", default="cpu", help="where the model runs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
