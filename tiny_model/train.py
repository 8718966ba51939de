"""``python -m tiny_model.train``: make the tiny model's weights from nothing, on a CPU or a GPU, from fixed seeds.

The autoencoder learns first from whole pictures under much noise, then from crops, in which the shape is most of the
picture, under less.
"""

from __future__ import annotations

from .networks import TINY
from .pictures import SIDE
from .training import AutoencoderPhase, Course, train

__all__ = ["COURSE", "main"]

COURSE = Course(
    pictures=49152,
    few=24576,
    classifier_steps=2500,
    autoencoder=(
        AutoencoderPhase("vae", 2200, 16, SIDE, noise=0.25, kl_weight=1e-3),
        AutoencoderPhase("vae crops", 4000, 16, 64, noise=0.18, kl_weight=1e-4, whole_every=4, whole=7),
    ),
    text_steps=700,
    unet_steps=10300,
    unet_batch=64,
    unet_rate=1e-3,
    decay=13000,
)


def main(argv: list[str] | None = None) -> None:
    train(TINY, COURSE, str(__doc__), argv)


if __name__ == "__main__":
    main()
