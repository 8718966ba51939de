"""``python -m hpsampler.calibrate``: calibrate from the command line, through a WebUI that was started with ``--api``.

It is the WebUI that holds the model, so it is the WebUI that calibrates; this starts it, follows it, and fetches what
came of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Optional
from urllib.parse import quote

from .remote import Server, act, add_acts, add_order, begin, parser

__all__ = ["main"]

MADE, KEPT = "/calibrate", "/calibrations"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Do what the command line says."""
    args = _options(argv)
    server = Server(args.url, args.auth)
    if args.command == "start":
        begin(server, MADE, args, _ORDER)
    elif args.command == "list":
        _list(server)
    elif args.command == "export":
        text = json.dumps(server.ask("GET", f"{KEPT}/{quote(args.name)}"), indent=1)
        args.file.write_text(text + "\n", encoding="utf-8")
        print(f"Written: {args.file}")
    elif args.command == "import":
        found = json.loads(args.file.read_text(encoding="utf-8"))
        print(f"Calibration: {server.ask('POST', KEPT, found)['name']}")
    else:
        act(server, args, MADE, KEPT)


def _list(server: Server) -> None:
    found = server.ask("GET", KEPT)
    for profile in found["calibrations"]:
        print(f"{profile['name']}: {profile['model']}, {profile['width']}x{profile['height']}")
        for each in profile["fitted"]:
            errors = each["held_out"]
            print(
                f"  CFG {each['cfg_scale']:g}, {each['steps']} steps: held-out error {errors['calibrated']:.4g}, Auto "
                f"{errors.get('Auto', float('nan')):.4g}, 20 steps of DPM++ 2M Karras {each['yardstick']:.4g}"
            )
        for each in profile["refused"]:
            print(f"  CFG {each['cfg_scale']:g}, {each['steps']} steps: refused")
    for problem in found["problems"]:
        print(problem)
    unfinished = server.ask("GET", MADE)["unfinished"]
    if unfinished:
        print(f"Unfinished: {', '.join(unfinished)}")


_ORDER = ("name", "steps", "cfg_scales", "width", "height", "negative", "trajectories", "runs", "batch", "seed")


def _options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    made = parser("calibrate", (__doc__ or "").split("\n\n")[0])
    commands = made.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="calibrate to the loaded checkpoint, and follow it")
    add_order(start, "width", "height", "trajectories", "runs", "batch", "seed")
    start.add_argument("--steps", nargs="+", type=int, help="numbers of steps, each calibrated by itself")
    start.add_argument("--cfg", dest="cfg_scales", nargs="+", type=float, help="guidance scales")
    add_acts(commands)
    commands.add_parser("list", help="list all")
    export = commands.add_parser("export", help="write one to a file")
    export.add_argument("name")
    export.add_argument("file", type=Path)
    take = commands.add_parser("import", help="read one from a file")
    take.add_argument("file", type=Path)
    return made.parse_args(argv)


if __name__ == "__main__":
    main()
