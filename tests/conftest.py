"""What many tests share: the device, Stable Diffusion's noise table, the reference numbers, the stand-in host."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import settings

from hpsampler.noise import NoiseModel

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = "/usr/bin/chromium"

# people find new counterexamples, CI repeats itself
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

torch.set_num_threads(1)  # small tensors: more threads only add noise


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device of the solver and Free-U tests")


def pytest_collection_modifyitems(items):
    """What takes a device runs on a GPU too: ``-m cuda --device cuda``."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cuda)


def pytest_terminal_summary(terminalreporter):
    """Why tests were skipped, each reason once."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.fixture(scope="session")
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window. Not for the session: while it is open, an event loop runs in this thread."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def sd_alphas_cumprod() -> np.ndarray:
    """Scaled-linear betas 0.00085 to 0.012, 1000 steps: SD 1.x, 2.x and SDXL."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Rescaled to zero terminal SNR (arXiv 2305.08891, algorithm 1)."""
    root = np.sqrt(alphas_cumprod)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@pytest.fixture(scope="session")
def noise():
    return NoiseModel.from_alphas_cumprod(sd_alphas_cumprod())


@pytest.fixture(scope="session")
def zsnr_noise():
    return NoiseModel.from_alphas_cumprod(zero_terminal_snr(sd_alphas_cumprod()))


@pytest.fixture(scope="session")
def vectors():
    """Numbers made by running the paper's own code."""
    return json.loads((ROOT / "tests" / "data" / "vectors.json").read_text())


@pytest.fixture
def face():
    """Which kind of host the stand-in is; tests of the adapter run with each (tests/adapter/conftest.py)."""
    from tests.adapter.host.faces import Face

    return Face()


@pytest.fixture
def webui(monkeypatch, tmp_path, face):
    """A fresh stand-in host with the extension loaded as the host loads it.

    Has the stand-in's modules as attributes, its ``face``, ``checkpoint(family, seed)``, ``unet()``, ``freeu_on()``,
    and ``load()``, which runs the script file once more (Reload UI).
    """
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "adapter" / "host"))

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("modules", "hpsampler")]:
            # the core stays: other tests hold its classes
            if name.startswith(("modules", "hpsampler.webui")):
                del sys.modules[name]

    forget()
    names = ("shared", "sd_samplers", "sd_schedulers", "sd_samplers_kdiffusion", "script_callbacks", "scripts")
    host = SimpleNamespace(**{name: importlib.import_module(f"modules.{name}") for name in names})
    importlib.import_module("modules.paths").models_path = str(tmp_path / "models")
    host.shared.cmd_opts.ui_config_file = str(tmp_path / "ui-config.json")
    table = torch.tensor(sd_alphas_cumprod(), dtype=torch.float32)
    host.face = host.shared.face = face
    face.put_on(host)
    host.checkpoint = lambda family="is_sd1", seed=0: face.checkpoint(table, family, seed)
    host.unet = lambda: face.unet(host.shared.sd_model)
    host.freeu_on = lambda: face.freeu_on(host.shared.sd_model)
    host.shared.sd_model = host.checkpoint()

    def load():
        """Run the script file as the host does, without its purge of our package (see there)."""
        host.script_callbacks.script_unloaded_callback()
        host.script_callbacks.clear_callbacks()
        for name in [name for name in sys.modules if name.startswith("hpsampler.webui")]:
            del sys.modules[name]
        script = importlib.import_module("hpsampler.webui.script")
        script.install()
        return script

    host.load = load
    host.script = load()
    yield host
    forget()
