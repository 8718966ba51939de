"""Golden noise: a better initial latent, found with two model calls or by a network."""
