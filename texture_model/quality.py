"""``python -m texture_model.quality``: how well the classifier reads the texture model's pictures, for its page.

It reads the drawings themselves, what the autoencoder makes of them, and samples of DPM++ 2M Karras with many steps;
and it measures the decoder's tolerance. Two tables go to ``docs/bench/``, a sheet of pictures to ``docs/images/``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.decoder import tolerance
from bench.methods import KARRAS
from bench.metrics import Estimate, share
from bench.report import write_csv
from bench.webp import LOSSY
from tiny_model.description import Captioned
from tiny_model.model import TinyModel, seeded_noise

from .model import TEXTURE, load

__all__ = ["CFG_SCALES", "STEPS", "Reading", "main", "read_drawings", "read_samples", "samples", "sheet"]

CFG_SCALES = (3.0, 5.0, 7.5)
STEPS = (20, 50)
SEED = 4243
"""Of the drawings; the captions of the samples are the bench's."""

FIRST_SEED = 30_000
BATCH = 125


@dataclass(frozen=True)
class Reading:
    """Shares of pictures from which the classifier reads what was told about them.

    Attributes:
        of: ``drawings``, ``reconstructions`` or ``samples``.
        steps, cfg_scale: of samples, 0 for the others.
        subject: colour and shape of the objects both.
        caption: all words.
        words: for each thing told, its own share, in the order of the answers.
    """

    of: str
    steps: int
    cfg_scale: float
    samples: int
    subject: Estimate
    caption: Estimate
    words: str

    @classmethod
    def made(cls, of: str, steps: int, cfg_scale: float, right: dict[str, torch.Tensor]) -> Reading:
        rows = torch.stack(list(right.values()))
        subject = torch.stack([right[name] for name in TEXTURE.pictures.subject]).all(0)
        words = " ".join(f"{name}={float(answers.float().mean()):.3f}" for name, answers in right.items())
        return cls(of, steps, cfg_scale, rows.shape[1], share(subject.numpy()), share(rows.all(0).numpy()), words)


def read_drawings(model: TinyModel, count: int) -> list[Reading]:
    """Of newly drawn pictures, and of their reconstructions."""
    pictures = model.description.pictures
    rng = np.random.default_rng(SEED)
    told = [pictures.random(rng) for _ in range(count)]
    drawn = pictures.draw(told, rng).to(model.device)
    made = {"drawings": drawn, "reconstructions": model.decode(model.encode(drawn))}
    return [Reading.made(of, 0, 0.0, model.right(model.features(each), told)) for of, each in made.items()]


def read_samples(model: TinyModel, count: int, steps: int, cfg_scale: float) -> Reading:
    """Of samples of the captions that the bench asks for."""
    told = model.description.pictures.captioned(count)
    features = [
        model.features(samples(model, told[first : first + BATCH], FIRST_SEED + first, steps, cfg_scale))
        for first in range(0, count, BATCH)
    ]
    return Reading.made("samples", steps, cfg_scale, model.right(torch.cat(features), told))


def samples(model: TinyModel, told: Sequence[Captioned], seed: int, steps: int, cfg_scale: float) -> torch.Tensor:
    """Pictures of those captions, of DPM++ 2M Karras, with seeds from ``seed`` on."""
    plan = KARRAS.plan(model.noise, steps, cfg_scale)
    if plan is None:
        raise ValueError(f"DPM++ 2M Karras has no plan of {steps} steps")
    seeds = range(seed, seed + len(told))
    noise = seeded_noise(seeds, model.description.latent).to(model.device)
    return model.decode(plan.run(model.denoiser([each.caption() for each in told], cfg_scale), noise, seeds))


def sheet(model: TinyModel, columns: int = 12) -> Image.Image:
    """Drawings, their reconstructions, and samples of the same captions, one row each, twice as large."""
    told = model.description.pictures.captioned(columns, seed=5)
    drawn = model.description.pictures.draw(told, np.random.default_rng(SEED)).to(model.device)
    rows = [drawn, model.decode(model.encode(drawn)), samples(model, told, FIRST_SEED, 50, 5.0)]
    pixels = (torch.stack(rows).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1) * 255).round().byte().cpu().numpy()
    picture = Image.fromarray(pixels)
    return picture.resize((2 * picture.width, 2 * picture.height), Image.NEAREST)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=TEXTURE.weights, metavar="DIR")
    parser.add_argument(
        "--docs", type=Path, default=Path("docs"), metavar="DIR", help="where bench/ with the tables is"
    )
    parser.add_argument("--samples", type=int, default=1000)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = load(args.weights)
    rows = read_drawings(model, 2000)
    for steps in STEPS:
        for cfg_scale in CFG_SCALES:
            rows.append(read_samples(model, args.samples, steps, cfg_scale))
            print(rows[-1])
    write_csv(args.docs / "bench" / "texture_quality.csv", rows)
    write_csv(args.docs / "bench" / "texture_decoder.csv", tolerance(model))
    sheet(model).save(args.docs / "images" / "texture_samples.webp", **LOSSY)


if __name__ == "__main__":
    main()
