"""``python -m hpsampler.measure``: statistics for HP DPM-v3 from the command line, through a WebUI with ``--api``.

The WebUI holds the model and therefore does the measuring; this starts a job and follows it. ``convert`` and
``publish`` need no WebUI: they turn a folder in the published layout (``l.npz`` and ``sb.npz``) into one of our files,
and back.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from ..client import (
    Client,
    add_commands,
    add_config_options,
    line_in,
    make_parser,
    print_remarks,
    printable,
    run_command,
    run_with,
    start_job,
)
from ..noise import NoiseModel
from ..recipes import FAMILIES
from ..store import Reader
from .coefficients import Provenance, StatisticsError
from .config import StatisticsConfig
from .files import convert_published, load_statistics

__all__ = ["main"]

JOBS, RESULTS = "/hpsampler/measure", "/hpsampler/statistics"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command line. Raises SystemExit: with a sentence on what went wrong."""
    args = _options(argv)
    if args.command == "convert":
        return _convert(args)
    if args.command == "publish":
        return _publish(args)
    run_with(args, lambda client: _run(client, args))


def _run(client: Client, args: argparse.Namespace) -> None:
    if args.command == "start":
        start_job(client, JOBS, args, _FIELDS)
    elif args.command == "list":
        _list(client)
    else:
        run_command(client, args, JOBS, RESULTS)


def _list(client: Client) -> None:
    answer = client.read("GET", RESULTS)
    for line in answer.items("statistics", _line_of):
        print(line)
    print_remarks(client, JOBS, answer)


def _line_of(row: Reader) -> str:
    source = row.at("source")
    if not isinstance(source.data, dict):
        raise source.error("an object")
    told = ", ".join(f"{name} {value}" for name, value in source.data.items())
    return f"{line_in(row.at('name'))}: {printable(told) or 'in the published layout, of an unknown model'}"


def _convert(args: argparse.Namespace) -> None:
    """Convert a published folder. Raises SystemExit: saying what is wrong with it."""
    source = Provenance(
        model_hash=args.model_hash, model_name=args.model_name, family=args.family, cfg_scale=args.cfg_scale
    )
    if args.file.suffix != ".safetensors":
        raise SystemExit(f"the new file's name must end in .safetensors, got {args.file.name!r}")
    try:
        statistics = convert_published(args.folder, args.file, NoiseModel.of_stable_diffusion(), source)
    except (StatisticsError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(f"Written: {args.file} ({len(statistics.lambdas)} grid points, shape {statistics.l.shape[1:]})")


def _publish(args: argparse.Namespace) -> None:
    """Write the published layout. Raises SystemExit: saying what is wrong with the file or its grid."""
    try:
        statistics = load_statistics(args.file)
        grid = np.linspace(statistics.lambdas[0], statistics.lambdas[-1], len(statistics.lambdas))
        if not np.allclose(statistics.lambdas, grid, atol=1e-6):
            raise StatisticsError(f"{args.file.name}: its grid must be uniform in lambda for the published layout")
        args.folder.mkdir(parents=True, exist_ok=True)
        np.savez(args.folder / "l.npz", l=statistics.l)
        np.savez(args.folder / "sb.npz", s=statistics.s, b=statistics.b)
    except (StatisticsError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(f"Written: {args.folder}")


_FIELDS = (
    "name", "cfg_scale", "low_cfg_scale", "width", "height", "negative", "samples", "points", "per_pixel", "batch",
    "seed",
)  # fmt: skip


def _options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    defaults = StatisticsConfig("defaults")
    parser = make_parser("measure", __doc__ or "")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="measure the loaded checkpoint, and follow the job")
    numbers = {
        "width": f"width in pixels of the pictures it is measured on (default: {defaults.width})",
        "height": f"their height in pixels (default: {defaults.height})",
        "samples": f"number of sampling trajectories, one for each picture (default: {defaults.samples})",
        "points": f"grid points from the largest to the smallest sigma, two calls each (default: {defaults.points})",
        "batch": f"pictures drawn at once; more takes more memory (default: {defaults.batch})",
        "seed": f"seed of the first picture (default: {defaults.seed})",
    }
    add_config_options(start, numbers)
    start.add_argument(
        "--cfg", dest="cfg_scale", type=float,
        help=f"guidance scale at which they are measured and will be used (default: {defaults.cfg_scale:g})",
    )  # fmt: skip
    start.add_argument(
        "--low-cfg", dest="low_cfg_scale", type=float,
        help="a lower one, whose statistics are kept beside them, for pictures drawn near it (default: none)",
    )  # fmt: skip
    start.add_argument(
        "--per-pixel", action="store_const", const=True,
        help="statistics of every element of the latents, as in the paper (default: of every channel)",
    )  # fmt: skip
    add_commands(commands)
    commands.add_parser("list", help="list all statistics and unfinished jobs")
    convert = commands.add_parser("convert", help="convert a folder in the published layout to one of our files")
    convert.add_argument("folder", type=Path, help="the folder with l.npz and sb.npz")
    convert.add_argument("file", type=Path, help="the .safetensors file to write")
    convert.add_argument("--model-hash", required=True, help="hash of the checkpoint, as the WebUI shows it")
    convert.add_argument("--model-name", default="", help="name of the checkpoint (default: unknown)")
    convert.add_argument("--family", choices=FAMILIES, default="sd1", help="family of the model (default: %(default)s)")
    convert.add_argument(
        "--cfg", dest="cfg_scale", type=float, help="guidance scale (default: what the folder's name says)"
    )
    publish = commands.add_parser("publish", help="convert one of our files to a folder in the published layout")
    publish.add_argument("file", type=Path, help="one of our .safetensors files")
    publish.add_argument("folder", type=Path, help="the folder to write")
    return parser.parse_args(argv)
