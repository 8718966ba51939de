"""A second small latent diffusion model, as unlike the first as its size allows: objects over textures, v as target."""
