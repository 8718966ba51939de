"""``python -m bench.perf``: what our own part costs, as ratios measured side by side in one run.

Absolute times belong to one machine; the ratio of two things measured in turn, in the same process and on one thread,
holds on others. Every figure is a median.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hpsampler.freeu import FreeUPlan, _Hook, _Stage
from hpsampler.schedule import base_karras
from hpsampler.solvers import sample_dpm_v3, sample_dpmpp_2m
from hpsampler.statistics.coefficients import Statistics

from .theirs import k_diffusion_dpmpp_2m
from .timing import side_by_side, time_once

__all__ = [
    "Line", "Start", "dpm_v3_lines", "freeu_concatenating_line", "freeu_line", "main", "measure_start",
    "solver_line", "start_lines",
]  # fmt: skip

STEPS = 20
LATENTS = ((1, 4, 64, 64), (2, 4, 128, 128))

V3_STEPS, STATISTICS_POINTS = 8, 121

CONCATENATIONS = (
    *[(1280, 1280, 8)] * 3,
    *[(1280, 1280, 16)] * 2,
    (1280, 640, 16),
    (1280, 640, 32),
    (640, 640, 32),
    (640, 320, 32),
    (640, 320, 64),
)
"""Channels of hidden and skip, and side, where SD 1.5's decoder concatenates under Free-U, at a 64x64 latent."""

MODEL_CHANNELS = 320

STAND_IN = Path("tests") / "adapter" / "host"
HOST = ("shared", "scripts", "sd_samplers", "processing", "prompt_parser", "infotext_utils", "ui_components")
"""The host's modules that are loaded before any extension; a stand-in for them is in ``tests/adapter/host``."""

START = f"""
import importlib, json, sys, time
import fastapi.security, gradio, numpy, torch
for name in {HOST}:
    importlib.import_module("modules." + name)
before, began = set(sys.modules), time.process_time()
script = importlib.import_module("hpsampler.webui.script")
script.install()
imported = time.process_time()
callbacks = importlib.import_module("modules.script_callbacks")
with gradio.Blocks() as accordions:
    for is_img2img in (False, True):
        script.HPSamplerScript().ui(is_img2img)
((tab, _, _),) = callbacks.callbacks_ui_tabs[0]()
built = time.process_time()
print(json.dumps({{
    "import_ms": 1e3 * (imported - began), "build_ms": 1e3 * (built - imported),
    "modules": sorted(set(sys.modules) - before),
    "components": {{"accordions": len(accordions.blocks) - 1, "tab": len(tab.blocks) - 1}},
}}))
"""
"""What a start of the WebUI does of ours; its root blocks are the host's and no components."""


@dataclass(frozen=True)
class Line:
    """One line of the table; times in milliseconds. ``ratio`` is theirs / ours, None where there is nothing beside."""

    name: str
    ours_ms: float
    theirs_ms: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.theirs_ms is None else self.theirs_ms / self.ours_ms

    def __str__(self) -> str:
        theirs = "" if self.theirs_ms is None else f"{self.theirs_ms:10.3f}"
        ratio = "" if self.ratio is None else f"{self.ratio:7.1f} x"
        return f"{self.name:58}{self.ours_ms:10.3f}{theirs:>10}{ratio:>10}"


def solver_line(shape: tuple[int, ...], device: torch.device, repeats: int = 60) -> Line:
    """A step of our ``sample_dpmpp_2m`` against k-diffusion's, with a model that costs nothing."""
    answer = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    x = answer * 14.6
    sigmas = torch.tensor([*base_karras(STEPS, 7.0, 0.0292, 14.6146), 0.0], device=device)
    theirs = k_diffusion_dpmpp_2m()

    def model(x: torch.Tensor, sigma: torch.Tensor, /, **_: Any) -> torch.Tensor:
        return answer

    torch.testing.assert_close(sample_dpmpp_2m(model, x, sigmas), theirs(model, x, sigmas))
    ours_ms, theirs_ms = side_by_side(
        lambda: sample_dpmpp_2m(model, x, sigmas), lambda: theirs(model, x, sigmas), device, repeats
    )
    name = f"solver, a step at {'x'.join(map(str, shape))}, against k-diffusion"
    return Line(name, ours_ms / STEPS, theirs_ms / STEPS)


def dpm_v3_lines(size: tuple[int, int], device: torch.device, repeats: int = 15) -> list[Line]:
    """A step of DPM-Solver-v3 of order 2 with its corrector, in a request's first picture and in its further ones.

    Args:
        size: height and width that the statistics distinguish; (1, 1) are those of every channel.
    """
    _, channels, *side = LATENTS[0]
    generator = np.random.default_rng(0)
    shape = (STATISTICS_POINTS, channels, *size)
    values = [1 + 0.1 * generator.standard_normal(shape), *(0.1 * generator.standard_normal(shape) for _ in range(2))]
    grid = np.linspace(-math.log(14.6146), -math.log(0.0292), STATISTICS_POINTS)
    made = Statistics(grid, values[0], values[1], values[2])
    latent = (1, channels, *(side if size == (1, 1) else size))
    answer = torch.randn(latent, generator=torch.Generator().manual_seed(0)).to(device)
    sigmas = torch.tensor([*base_karras(V3_STEPS, 7.0, 0.0292, 14.6146), 0.0])

    def model(x: torch.Tensor, sigma: torch.Tensor, /, **_: Any) -> torch.Tensor:
        return answer

    def known() -> None:
        sample_dpm_v3(model, answer * 14.6, sigmas, statistics=made)

    def first() -> None:
        made.weights.clear()
        known()

    first_ms = statistics.median(time_once(first, device) for _ in range(repeats))
    known_ms = statistics.median(time_once(known, device) for _ in range(repeats))
    kind = "every channel" if size == (1, 1) else "every element"
    return [
        Line(f"DPM-v3, a step, statistics of {kind}, first picture", first_ms / V3_STEPS),
        Line(f"DPM-v3, a step, statistics of {kind}, further ones", known_ms / V3_STEPS),
    ]


@dataclass(frozen=True)
class Concatenation:
    """One place of the decoder where Free-U acts."""

    hidden: torch.Tensor
    skip: torch.Tensor
    b: float
    s: float
    hook: _Hook

    def ours(self) -> torch.Tensor:
        """What the decoder block sees with our hook: the fresh concatenation, edited in place."""
        x = torch.cat([self.hidden, self.skip], 1)
        self.edit(x)
        return x

    def edit(self, x: torch.Tensor) -> None:
        self.hook(torch.nn.Identity(), (x,))

    def theirs(self) -> torch.Tensor:
        """The same as Free-U's authors do it."""
        return torch.cat(self.edited_by_fft(), 1)

    def edited_by_fft(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Half of a copy of hidden scaled, and the skip filtered by FFT in float32."""
        hidden = self.hidden.clone()
        hidden[:, : hidden.shape[1] // 2] *= self.b
        return hidden, _filter_by_fft(self.skip, self.s)


def concatenations(device: torch.device, batch: int = 2) -> list[Concatenation]:
    """All of ``CONCATENATIONS``, with random content and Free-U's default constants."""
    plan = FreeUPlan(first=0)
    stages = _Stage.of_plan(plan)
    generator = torch.Generator().manual_seed(0)
    points = []
    for hidden_channels, skip_channels, side in CONCATENATIONS:
        stage = stages[hidden_channels // MODEL_CHANNELS]
        hidden, skip = (
            torch.randn(batch, channels, side, side, generator=generator).to(device)
            for channels in (hidden_channels, skip_channels)
        )
        points.append(Concatenation(hidden, skip, stage.b, stage.s, _Hook(hidden_channels, stage)))
    for point in points:
        torch.testing.assert_close(point.ours(), point.theirs(), rtol=1e-4, atol=1e-4)
    return points


def freeu_line(device: torch.device, repeats: int = 15) -> Line:
    """Free-U itself, at all concatenations of one UNet call, against the form by FFT."""
    points = concatenations(device)
    joined = [torch.cat([point.hidden, point.skip], 1) for point in points]

    def ours() -> None:
        for point, x in zip(points, joined, strict=True):
            point.edit(x)

    def theirs() -> None:
        for point in points:
            point.edited_by_fft()

    return Line("Free-U, a UNet call, against FFT", *side_by_side(ours, theirs, device, repeats))


def freeu_concatenating_line(device: torch.device, repeats: int = 15) -> Line:
    """The same with the concatenations themselves, which cost both forms alike."""
    points = concatenations(device)

    def ours() -> None:
        for point in points:
            point.ours()

    def theirs() -> None:
        for point in points:
            point.theirs()

    return Line("the same with its concatenations", *side_by_side(ours, theirs, device, repeats))


def _filter_by_fft(x: torch.Tensor, scale: float) -> torch.Tensor:
    spectrum = torch.fft.fftshift(torch.fft.fftn(x.float(), dim=(-2, -1)), dim=(-2, -1))
    mask = torch.ones(x.shape, device=x.device)
    row, column = x.shape[-2] // 2, x.shape[-1] // 2
    mask[..., row - 1 : row + 1, column - 1 : column + 1] = scale
    spectrum = torch.fft.ifftshift(spectrum * mask, dim=(-2, -1))
    return torch.fft.ifftn(spectrum, dim=(-2, -1)).real.to(x.dtype)


@dataclass(frozen=True)
class Start:
    """What one start of the WebUI pays for us, beside a loaded torch, numpy and gradio.

    Attributes:
        import_ms: CPU time of importing and registering; other programs on the machine do not count.
        build_ms: CPU time of building both accordions and the tab.
        modules: all that are loaded then and were not before, those of others too.
        components: how many gradio components either part of the page has.
    """

    import_ms: float
    build_ms: float
    modules: tuple[str, ...]
    components: dict[str, int]


def measure_start(bytecode: Path) -> Start:
    """One start in a fresh interpreter, on the stand-in host; compiled modules are kept in the folder ``bytecode``."""
    root = Path(__file__).resolve().parents[1]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONPATH": os.pathsep.join([str(root), str(root / STAND_IN)])}
    done = subprocess.run([sys.executable, "-c", START], env=env, cwd=root, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return Start(found["import_ms"], found["build_ms"], tuple(found["modules"]), found["components"])


def start_lines(repeats: int = 5) -> tuple[list[Line], dict[str, int]]:
    """What a start pays, the first after an update and later ones; and the page's components."""
    with tempfile.TemporaryDirectory() as folder:
        first, *others = [measure_start(Path(folder)) for _ in range(repeats + 1)]
    return [
        Line("import, the first start after an update (CPU)", first.import_ms),
        Line("import, a later start (CPU)", statistics.median(each.import_ms for each in others)),
        Line("building both accordions and the tab (CPU)", statistics.median(each.build_ms for each in others)),
    ], first.components


def main(argv: Sequence[str] | None = None) -> list[Line]:
    """Measure everything and print the table."""
    options = _options(argv)
    device = torch.device(options.device)
    torch.set_num_threads(1)
    tasks: list[Callable[[], Line]] = [partial(solver_line, shape, device) for shape in LATENTS]
    tasks += [partial(freeu_line, device), partial(freeu_concatenating_line, device)]
    lines = [task() for task in tqdm(tasks, desc="measuring", leave=False)]
    lines += [line for size in ((1, 1), (64, 64)) for line in dpm_v3_lines(size, device)]
    of_start, components = start_lines()
    lines += of_start

    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()}), one thread"
    print(f"{where}, torch {torch.__version__}; medians")
    print(f"{'milliseconds':58}{'ours':>10}{'theirs':>10}{'ratio':>10}")
    for line in lines:
        print(line)
    parts = ", ".join(f"{count} of the {name}" for name, count in components.items())
    print(f"gradio components on the page: {sum(components.values())} ({parts})")
    if options.json:
        numbers = [{**asdict(line), "ratio": line.ratio} for line in lines]
        content = {"device": where, "torch": torch.__version__, "lines": numbers, "components": components}
        Path(options.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return lines


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.perf", description="Measure what our own part costs.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file (default: none)")
    options = parser.parse_args(argv)
    if options.device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here")
    return options


if __name__ == "__main__":
    main()
