"""The bench's schedule types are the WebUI's: its own file is loaded, with stand-ins for what it imports."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from bench.oracles_import import k_diffusion
from bench.schedules import SCHEDULES, stable_diffusion_noise

WEBUI = os.environ.get("HPS_WEBUI")
pytestmark = pytest.mark.skipif(not WEBUI, reason="HPS_WEBUI is unset: no WebUI to compare with")


@pytest.fixture(scope="module")
def theirs():
    """The WebUI's table of schedulers."""
    kept = {name: sys.modules.get(name) for name in ("modules", "modules.shared")}
    sampling, external = k_diffusion("sampling"), k_diffusion("external")
    sys.modules["k_diffusion"].sampling = sampling
    shared = ModuleType("modules.shared")
    shared.opts = SimpleNamespace(beta_dist_alpha=0.6, beta_dist_beta=0.6)
    shared.sd_model = SimpleNamespace(is_sdxl=False)
    package = ModuleType("modules")
    package.shared = shared
    sys.modules.update({"modules": package, "modules.shared": shared})
    try:
        spec = importlib.util.spec_from_file_location("webui_schedulers", Path(WEBUI) / "modules" / "sd_schedulers.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module.schedulers_map, external
    finally:
        for name, before in kept.items():
            if before is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = before


@pytest.mark.parametrize("steps", [2, 5, 8, 11, 20, 50])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_type_is_the_webui_s(theirs, name, steps):
    schedulers, external = theirs
    table = stable_diffusion_noise()
    wrapper = external.DiscreteSchedule(torch.tensor(table.sigmas, dtype=torch.float32), quantize=False)
    scheduler = schedulers[name]
    own = {"inner_model": wrapper} if scheduler.need_inner_model else {}
    if scheduler.default_rho > 0:
        own["rho"] = scheduler.default_rho
    wanted = scheduler.function(n=steps, sigma_min=table.sigma_min, sigma_max=table.sigma_max, device="cpu", **own)
    torch.testing.assert_close(SCHEDULES[name](table, steps), wanted.float(), rtol=2e-4, atol=1e-6)
