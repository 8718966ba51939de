"""``python -m bench.perf``: what our own part costs, as ratios measured side by side in one run.

Absolute times belong to one machine; the ratio of two things measured in turn, in the same process and on one thread,
holds on others. Every figure is a median.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hpsampler.freeu import FreeUPlan, _Hook
from hpsampler.schedule import base_karras
from hpsampler.solvers import sample_dpmpp_2m

from .oracles_import import k_diffusion_sampling

__all__ = ["Line", "freeu_concatenating_line", "freeu_line", "import_line", "main", "solver_line"]

STEPS = 20
LATENTS = ((1, 4, 64, 64), (2, 4, 128, 128))

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

IMPORTED = ("settings", "solvers", "freeu", "noise", "schedule", "recipes")
"""What the WebUI loads of us besides the adapter, which needs the WebUI."""


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


def time_once(function: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call; on a GPU between two events, so that waiting launches and kernels both count."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)
    began = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - began)


def side_by_side(
    ours: Callable[[], object], theirs: Callable[[], object], device: torch.device, repeats: int
) -> tuple[float, float]:
    """Median milliseconds of both, called in turn after a call each to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for function, taken in zip((ours, theirs), times, strict=True):
            milliseconds = time_once(function, device)
            if repeat > 0:
                taken.append(milliseconds)
    return statistics.median(times[0]), statistics.median(times[1])


def solver_line(shape: tuple[int, ...], device: torch.device, repeats: int = 60) -> Line:
    """A step of our ``sample_dpmpp_2m`` against k-diffusion's, with a model that costs nothing."""
    answer = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    x = answer * 14.6
    sigmas = torch.tensor([*base_karras(STEPS, 7.0, 0.0292, 14.6146), 0.0], device=device)
    theirs = k_diffusion_sampling().sample_dpmpp_2m

    def model(x: torch.Tensor, sigma: torch.Tensor, /, **_: Any) -> torch.Tensor:
        return answer

    torch.testing.assert_close(sample_dpmpp_2m(model, x, sigmas), theirs(model, x, sigmas, disable=True))
    ours_ms, theirs_ms = side_by_side(
        lambda: sample_dpmpp_2m(model, x, sigmas), lambda: theirs(model, x, sigmas, disable=True), device, repeats
    )
    name = f"solver, a step at {'x'.join(map(str, shape))}, against k-diffusion"
    return Line(name, ours_ms / STEPS, theirs_ms / STEPS)


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
    constants = {4: (plan.b1, plan.s1), 2: (plan.b2, plan.s2)}
    waves: dict[tuple[Any, ...], Any] = {}
    generator = torch.Generator().manual_seed(0)
    points = []
    for hidden_channels, skip_channels, side in CONCATENATIONS:
        b, s = constants[hidden_channels // MODEL_CHANNELS]
        hidden, skip = (
            torch.randn(batch, channels, side, side, generator=generator).to(device)
            for channels in (hidden_channels, skip_channels)
        )
        points.append(Concatenation(hidden, skip, b, s, _Hook(hidden_channels, b, s, plan.version, waves)))
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


def import_line(repeats: int = 5) -> Line:
    """What the package adds to the start of a program that has loaded torch and numpy already, as the WebUI has."""
    modules = ", ".join(f"hpsampler.{name}" for name in IMPORTED)
    program = (
        "import time, numpy, torch\nbegan = time.perf_counter()\n"
        f"import {modules}\nprint(1e3 * (time.perf_counter() - began))"
    )
    root = Path(__file__).resolve().parents[1]
    times = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    return Line("import added to a start with torch and numpy loaded", statistics.median(times))


def main(argv: Sequence[str] | None = None) -> list[Line]:
    """Measure everything and print the table."""
    options = _options(argv)
    device = torch.device(options.device)
    torch.set_num_threads(1)
    tasks: list[Callable[[], Line]] = [partial(solver_line, shape, device) for shape in LATENTS]
    tasks += [partial(freeu_line, device), partial(freeu_concatenating_line, device), import_line]
    lines = [task() for task in tqdm(tasks, desc="measuring", leave=False)]

    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()}), one thread"
    print(f"{where}, torch {torch.__version__}; medians")
    print(f"{'milliseconds':58}{'ours':>10}{'theirs':>10}{'ratio':>10}")
    for line in lines:
        print(line)
    if options.json:
        numbers = [{**asdict(line), "ratio": line.ratio} for line in lines]
        content = {"device": where, "torch": torch.__version__, "lines": numbers}
        Path(options.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return lines


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.perf", description="Measure what our own part costs.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file")
    options = parser.parse_args(argv)
    if options.device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here")
    return options


if __name__ == "__main__":
    main()
