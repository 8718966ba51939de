"""``python -m hpsampler.measure``: statistics for HP DPM-v3 from the command line, through a WebUI with ``--api``.

It is the WebUI that holds the model, so it is the WebUI that measures; this starts it and follows it. ``convert`` needs
none: it turns a folder in the published layout (``l.npz`` and ``sb.npz``) into one file of ours, and ``publish`` back.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from .noise import NoiseModel
from .recipes import FAMILIES
from .remote import Server, act, add_acts, add_order, begin, parser
from .statistics import Source, StatisticsError, convert_published, load_statistics

__all__ = ["main"]

MADE, KEPT = "/measure", "/statistics"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Do what the command line says."""
    args = _options(argv)
    server = Server(args.url, args.auth)
    if args.command == "start":
        begin(server, MADE, args, _SURVEY)
    elif args.command == "list":
        _list(server)
    elif args.command == "convert":
        _convert(args)
    elif args.command == "publish":
        _publish(args)
    else:
        act(server, args, MADE, KEPT)


def _list(server: Server) -> None:
    found = server.ask("GET", KEPT)
    for each in found["statistics"]:
        told = ", ".join(f"{name} {value}" for name, value in each["source"].items())
        print(f"{each['name']}: {told or 'in the published layout, of an unknown model'}")
    for problem in found["problems"]:
        print(problem)
    unfinished = server.ask("GET", MADE)["unfinished"]
    if unfinished:
        print(f"Unfinished: {', '.join(unfinished)}")


def _convert(args: argparse.Namespace) -> None:
    """Raises SystemExit: with what is wrong with the folder."""
    known = Source(model_hash=args.model_hash, model_name=args.model_name, family=args.family, cfg_scale=args.cfg_scale)
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


_SURVEY = (
    "name", "cfg_scale", "width", "height", "negative", "samples", "points", "per_pixel", "batch", "seed",
)  # fmt: skip


def _options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    made = parser("measure", (__doc__ or "").split("\n\n")[0])
    commands = made.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="measure the loaded checkpoint, and follow it")
    add_order(start, "width", "height", "samples", "points", "batch", "seed")
    start.add_argument("--cfg", dest="cfg_scale", type=float, help="guidance scale; statistics belong to one")
    start.add_argument(
        "--per-pixel", action="store_const", const=True, help="of every element of the latents, as the paper has them"
    )
    add_acts(commands)
    commands.add_parser("list", help="list all")
    convert = commands.add_parser("convert", help="a folder in the published layout as one file of ours")
    convert.add_argument("folder", type=Path)
    convert.add_argument("file", type=Path)
    convert.add_argument("--model-hash", required=True, help="of the checkpoint, as the WebUI shows it")
    convert.add_argument("--model-name", default="")
    convert.add_argument("--family", choices=FAMILIES, default="sd1")
    convert.add_argument("--cfg", dest="cfg_scale", type=float, help="where the folder's name does not say it")
    publish = commands.add_parser("publish", help="one file of ours as a folder in the published layout")
    publish.add_argument("file", type=Path)
    publish.add_argument("folder", type=Path)
    return made.parse_args(argv)


if __name__ == "__main__":
    main()
