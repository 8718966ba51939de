"""Imports k-diffusion's samplers without its training code, to compare ours with them.

The package's ``__init__`` imports training code whose dependencies (torchvision, clip, ...) are not needed here, so its
modules are imported without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

__all__ = ["k_diffusion", "k_diffusion_sampling"]

_FUNCTIONAL = "torchvision.transforms.functional"


def k_diffusion_sampling() -> Any:
    """The module ``k_diffusion.sampling``; raises as :func:`k_diffusion`."""
    return k_diffusion("sampling")


def k_diffusion(module: str) -> Any:
    """A module of k-diffusion, such as ``sampling`` or ``external``.

    Raises:
        ModuleNotFoundError: k-diffusion is not installed.
    """
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError("k-diffusion is not installed: pip install --no-deps k-diffusion==0.0.16")
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["k_diffusion"] = package
    names = ("torchvision", "torchvision.transforms", _FUNCTIONAL)
    stubs = {name: types.ModuleType(name) for name in names if name not in sys.modules}
    for name, stub in stubs.items():
        parent, _, child = name.rpartition(".")
        if parent in stubs:
            setattr(stubs[parent], child, stub)
    sys.modules.update(stubs)
    try:
        return importlib.import_module(f"k_diffusion.{module}")
    finally:
        # other packages look for torchvision, and must not find the stubs
        for name in stubs:
            del sys.modules[name]
