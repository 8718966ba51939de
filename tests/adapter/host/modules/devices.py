"""Where tensors live, and in which precision the model runs."""

from contextlib import nullcontext

import torch

device = torch.device("cpu")
unet_needs_upcast = False


def autocast(disable=False):
    return nullcontext()


def without_autocast(disable=False):
    return nullcontext()
