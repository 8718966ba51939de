"""Seeded noise."""

import torch


class ImageRNG:
    def __init__(self, shape, seeds, subseeds=None, subseed_strength=0.0, seed_resize_from_h=0, seed_resize_from_w=0):
        self.shape, self.seeds = shape, seeds

    def next(self):
        return torch.stack([torch.randn(self.shape, generator=torch.Generator().manual_seed(s)) for s in self.seeds])
