"""A small Stable Diffusion: captioned pictures, a VAE, a UNet, a text encoder, and a classifier that reads pictures."""
