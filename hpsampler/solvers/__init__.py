"""Solvers in k-diffusion's house signature, and the one registry of them."""

from __future__ import annotations

from types import MappingProxyType

from ._core import Callback, Model
from .dpm_v3 import sample_dpm_v3
from .dpmpp import sample_dpmpp_1s, sample_dpmpp_2m
from .unipc import sample_unipc

__all__ = ["SOLVERS", "Callback", "Model", "sample_dpm_v3", "sample_dpmpp_1s", "sample_dpmpp_2m", "sample_unipc"]

SOLVERS = MappingProxyType(
    {
        "dpmpp_1s": sample_dpmpp_1s,
        "dpmpp_2m": sample_dpmpp_2m,
        "unipc": sample_unipc,
        "dpm_v3": sample_dpm_v3,
    }
)
"""Solvers by the name that recipes use."""
