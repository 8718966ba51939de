"""``python -m texture_model.train``: make the texture model's weights from nothing, on a CPU or a GPU.

The stages are those of the tiny model. The autoencoder is trained as Stable Diffusion's: a weight of 1e-6 on the
Kullback-Leibler divergence, and no noise on the latents beside its own. It finds the textures first; the colours, which
are flat, small in the loss of pixels and many, take a phase in which they weigh more.
"""

from __future__ import annotations

from tiny_model.training import AutoencoderPhase, Course, train

from .model import TEXTURE
from .pictures import SIDE

__all__ = ["COURSE", "main"]

SD_KL_WEIGHT = 1e-6 * 4 / (3 * 8 * 8)
"""Stable Diffusion's weight is of sums: over 4 numbers of a latent for each 8x8 pixels of 3 colours."""

COURSE = Course(
    pictures=32768,
    few=24576,
    classifier_steps=3000,
    autoencoder=(
        AutoencoderPhase("vae", 3000, 8, SIDE, noise=0.0, kl_weight=SD_KL_WEIGHT),
        AutoencoderPhase("vae colours", 2000, 8, SIDE, noise=0.0, kl_weight=SD_KL_WEIGHT, colour_weight=15.0),
    ),
    text_steps=700,
    unet_steps=9000,
    unet_batch=96,
    unet_rate=1.5e-3,
)


def main(argv: list[str] | None = None) -> None:
    train(TEXTURE, COURSE, str(__doc__), argv)


if __name__ == "__main__":
    main()
