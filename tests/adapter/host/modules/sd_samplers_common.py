"""What every sampler of the host is made of."""

from collections import namedtuple

import torch

from . import shared

SamplerDataTuple = namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])


class SamplerData(SamplerDataTuple):
    def total_steps(self, steps):
        return steps * 2 if self.options.get("second_order", False) else steps


class InterruptedException(BaseException):
    pass


def setup_img2img_steps(p, steps=None):
    """Steps of the schedule, and of those the ones that img2img runs but for one."""
    if shared.opts.img2img_fix_steps or steps is not None:
        wanted = steps or p.steps
        return (int(wanted / min(p.denoising_strength, 0.999)) if p.denoising_strength > 0 else 0), wanted - 1
    return p.steps, int(min(p.denoising_strength, 0.999) * p.steps)


def decode_first_stage(model, x):
    """Pictures from -1 to 1, eight times as wide and high."""
    return torch.nn.functional.interpolate(x[:, :3], scale_factor=8).tanh()
