"""``python -m bench.gpu``: prove the package on a GPU, measure what only a GPU can tell, and write docs/gpu.md.

Every part runs in a process of its own, so that one that fails, hangs or leaves a GPU in disorder takes nothing with
it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import torch

from . import check_part, costs, overhead, pictures, quality
from .machine import Machine
from .page import write
from .part import Part, Results, Setting, carry_out

__all__ = ["PARTS", "main"]

PARTS = MappingProxyType(
    {
        part.name: part
        for part in (
            check_part.PART, overhead.PART, pictures.PICTURES_PART, pictures.FREEU_PART, costs.PART, quality.PART,
        )
    }
)  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
GRACE = 120
"""Seconds that a part may take beyond its limit, for the task that is under way; then its process is ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for; returns 1 if anything failed, else 0."""
    args = _options(argv)
    device = torch.device(args.device)
    machine = Machine.here(device, args.small)
    folder = args.out / machine.folder
    if args.inside:
        if device.type == "cpu":
            torch.set_num_threads(1)
        elif device.index is not None:
            torch.cuda.set_device(device)
        (name,) = args.parts
        part = PARTS[name]
        setting = Setting(device, args.small, folder)
        carry_out(part, setting, folder / f"{name}.json", machine.to_dict(), args.seconds or part.seconds)
        return 0
    print(f"On {machine}. Results are kept in {folder}.", file=sys.stderr)
    ended = []
    for name in args.parts:
        if args.again:
            (folder / f"{name}.json").unlink(missing_ok=True)
            for stored in folder.glob(f"{name}-*"):
                shutil.rmtree(stored)
        if not _run(PARTS[name], args):
            ended.append(name)
    results = {name: Results.read(folder / f"{name}.json") for name in PARTS}
    page = write(tuple(PARTS.values()), results, machine.to_dict(), str(machine), args.docs)
    return _told([results[name] for name in args.parts], args.parts, ended, page)


def _run(part: Part, args: argparse.Namespace) -> bool:
    """A part in its own process; whether it ended by itself and in order."""
    limit = args.seconds or part.seconds
    command = [
        sys.executable,
        "-m",
        "bench.gpu",
        part.name,
        "--inside",
        "--device",
        args.device,
        "--out",
        str(args.out),
    ]
    command += ["--seconds", str(limit), *(["--small"] if args.small else [])]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        return process.wait(limit + GRACE) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _told(results: Sequence[Results], names: Sequence[str], ended: Sequence[str], page: Path) -> int:
    """Say what came of the parts; the command's exit status."""
    for name, found in zip(names, results):
        words = f"{len(found.rows)} of {found.of} done"
        words += (
            f", {len(found.left_out)} left out ({', '.join(sorted(set(found.left_out.values())))})"
            if found.left_out
            else ""
        )
        words += f", {len(found.failed)} failed" if found.failed else ""
        words += ", its process did not end in order or in time (--seconds gives more)" if name in ended else ""
        print(f"{name:9} {words}; {found.seconds:.0f} s")
        for task, why in found.failed.items():
            print(f"          {task}: {why}")
    print(f"Written: {page}, with its tables beside it")
    if any(found.missing > len(found.failed) for found in results):
        print("Some of it is still to be done: the same command goes on.")
    return int(bool(ended) or any(found.failed for found in results))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    listed = "; ".join(
        f"{part.name}: {part.title.lower()}, about {part.expected} s in all, at most {part.seconds} s a run"
        for part in PARTS.values()
    )
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=f"Prove the package on a GPU and measure it there. The parts are {listed}.",
    )
    parser.add_argument("parts", nargs="*", default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (default: %(default)s)")
    parser.add_argument(
        "--small", action="store_true", help="small sizes, to see that everything runs (default: true sizes)"
    )
    parser.add_argument("--seconds", type=float, help="time limit of every part (default: each has its own)")
    parser.add_argument("--again", action="store_true", help="forget what is there of these parts (default: go on)")
    parser.add_argument(
        "--out", type=Path, default=Path("out/gpu"), help="folder that keeps results (default: %(default)s)"
    )
    parser.add_argument(
        "--docs",
        type=Path,
        help="folder of the page and its tables (default: docs, or --out where it is not measured on a GPU)",
    )
    parser.add_argument("--inside", action="store_true", help="run one part in this process, and write no page")
    args = parser.parse_args(argv)
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"parts must be of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    if args.device.partition(":")[0] not in ("cpu", "cuda"):
        parser.error(f"--device must be cuda or cpu, got {args.device}")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: there is no CUDA device here")
    if args.device == "cpu" and not args.small:
        parser.error("--device cpu needs --small: the true sizes would take a CPU hours")
    if args.seconds is not None and not args.seconds > 0:
        parser.error(f"--seconds must be above 0, got {args.seconds:g}")
    args.out = args.out.resolve()
    args.docs = args.docs or (args.out if args.small else ROOT / "docs")
    return args


if __name__ == "__main__":
    began = time.monotonic()
    status = main()
    if "--inside" not in sys.argv:
        print(f"{time.monotonic() - began:.0f} s in all", file=sys.stderr)
    sys.exit(status)
