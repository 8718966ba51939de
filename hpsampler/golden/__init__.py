"""Golden noise: a better first latent, by two calls of the model or by a network."""
