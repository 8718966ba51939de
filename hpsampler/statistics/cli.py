"""``python -m hpsampler.measure``: statistics for HP DPM-v3 from the command line, through a WebUI with ``--api``.

The WebUI holds the model, so the WebUI measures; this starts it and follows it. ``convert`` and ``publish`` need none:
they turn a folder in the published layout (``l.npz`` and ``sb.npz``) into one file of ours, and back.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from ..client import Client, ClientError, add_commands, add_config_options, make_parser, run_command, start_job
from ..noise import NoiseModel
from ..recipes import FAMILIES
from .coefficients import Provenance, StatisticsError
from .config import StatisticsConfig
from .files import convert_published, load_statistics

__all__ = ["main"]

JOBS, RESULTS = "/hpsampler/measure", "/hpsampler/statistics"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Do what the command line says. Raises SystemExit: with a sentence on what is wrong."""
    args = _options(argv)
    if args.command == "convert":
        return _convert(args)
    if args.command == "publish":
        return _publish(args)
    client = Client(args.url, args.auth)
    try:
        if args.command == "start":
            start_job(client, JOBS, args, _FIELDS)
        elif args.command == "list":
            _list(client)
        else:
            run_command(client, args, JOBS, RESULTS)
    except ClientError as error:
        raise SystemExit(str(error)) from None


def _list(client: Client) -> None:
    found = client.ask("GET", RESULTS)
    for each in found["statistics"]:
        told = ", ".join(f"{name} {value}" for name, value in each["source"].items())
        print(f"{each['name']}: {told or 'in the published layout, of an unknown model'}")
    for problem in found["problems"]:
        print(problem)
    unfinished = client.ask("GET", JOBS)["unfinished"]
    if unfinished:
        print(f"Unfinished: {', '.join(unfinished)}")


def _convert(args: argparse.Namespace) -> None:
    """Raises SystemExit: with what is wrong with the folder."""
    known = Provenance(
        model_hash=args.model_hash, model_name=args.model_name, family=args.family, cfg_scale=args.cfg_scale
    )
    if args.file.suffix != ".safetensors":
        raise SystemExit(f"the new file's name must end in .safetensors, got {args.file.name!r}")
    try:
        made = convert_published(args.folder, args.file, NoiseModel.of_stable_diffusion(), known)
    except (StatisticsError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(f"Written: {args.file} ({len(made.lambdas)} grid points, shape {made.l.shape[1:]})")


def _publish(args: argparse.Namespace) -> None:
    """Raises SystemExit: with what is wrong with the file, or that its grid is not the published layout's."""
    try:
        found = load_statistics(args.file)
        grid = np.linspace(found.lambdas[0], found.lambdas[-1], len(found.lambdas))
        if not np.allclose(found.lambdas, grid, atol=1e-6):
            raise StatisticsError(f"{args.file.name}: its grid is not uniform in lambda, as the published layout's is")
        args.folder.mkdir(parents=True, exist_ok=True)
        np.savez(args.folder / "l.npz", l=found.l)
        np.savez(args.folder / "sb.npz", s=found.s, b=found.b)
    except (StatisticsError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(f"Written: {args.folder}")


_FIELDS = (
    "name", "cfg_scale", "width", "height", "negative", "samples", "points", "per_pixel", "batch", "seed",
)  # fmt: skip


def _options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    usual = StatisticsConfig("usual")
    parser = make_parser("measure", __doc__ or "")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="measure the loaded checkpoint, and follow it")
    numbers = {
        "width": f"pixels of the pictures it is measured on (default: {usual.width})",
        "height": f"pixels (default: {usual.height})",
        "samples": f"pictures whose trajectories are followed, once each (default: {usual.samples})",
        "points": f"of the grid from the largest to the smallest sigma, two calls each (default: {usual.points})",
        "batch": f"pictures drawn at once; more takes more memory (default: {usual.batch})",
        "seed": f"of the first picture (default: {usual.seed})",
    }
    add_config_options(start, numbers)
    start.add_argument(
        "--cfg", dest="cfg_scale", type=float,
        help=f"guidance scale; statistics belong to one (default: {usual.cfg_scale:g})",
    )  # fmt: skip
    start.add_argument(
        "--per-pixel", action="store_const", const=True,
        help="statistics of every element of the latents, as the paper has them (default: of every channel)",
    )  # fmt: skip
    add_commands(commands)
    commands.add_parser("list", help="list all statistics, and what is unfinished")
    convert = commands.add_parser("convert", help="write a folder in the published layout as one file of ours")
    convert.add_argument("folder", type=Path, help="with l.npz and sb.npz")
    convert.add_argument("file", type=Path, help="the .safetensors file to write")
    convert.add_argument("--model-hash", required=True, help="of the checkpoint, as the WebUI shows it")
    convert.add_argument("--model-name", default="", help="of the checkpoint (default: not known)")
    convert.add_argument("--family", choices=FAMILIES, default="sd1", help="of the model (default: %(default)s)")
    convert.add_argument(
        "--cfg", dest="cfg_scale", type=float, help="guidance scale, where the folder's name does not say it"
    )
    publish = commands.add_parser("publish", help="write one file of ours as a folder in the published layout")
    publish.add_argument("file", type=Path, help="one of our .safetensors files")
    publish.add_argument("folder", type=Path, help="the folder to write")
    return parser.parse_args(argv)
