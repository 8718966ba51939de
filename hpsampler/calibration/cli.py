"""``python -m hpsampler.calibrate``: calibrate from the command line, through a WebUI that was started with ``--api``.

The WebUI holds the model, so the WebUI calibrates; this starts it, follows it, and fetches what came of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Optional
from urllib.parse import quote

from ..client import Client, ClientError, add_commands, add_config_options, make_parser, run_command, start_job
from .config import CalibrationConfig

__all__ = ["main"]

JOBS, RESULTS = "/hpsampler/calibrate", "/hpsampler/calibrations"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Do what the command line says. Raises SystemExit: with a sentence on what is wrong."""
    args = _options(argv)
    try:
        _run(Client(args.url, args.auth), args)
    except ClientError as error:
        raise SystemExit(str(error)) from None


def _run(client: Client, args: argparse.Namespace) -> None:
    if args.command == "start":
        start_job(client, JOBS, args, _FIELDS)
    elif args.command == "list":
        _list(client)
    elif args.command == "export":
        text = json.dumps(client.ask("GET", f"{RESULTS}/{quote(args.name)}"), indent=1)
        args.file.write_text(text + "\n", encoding="utf-8")
        print(f"Written: {args.file}")
    elif args.command == "import":
        found = json.loads(args.file.read_text(encoding="utf-8"))
        print(f"Calibration: {client.ask('POST', RESULTS, found)['name']}")
    else:
        run_command(client, args, JOBS, RESULTS)


def _list(client: Client) -> None:
    found = client.ask("GET", RESULTS)
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
    unfinished = client.ask("GET", JOBS)["unfinished"]
    if unfinished:
        print(f"Unfinished: {', '.join(unfinished)}")


_FIELDS = ("name", "steps", "cfg_scales", "width", "height", "negative", "trajectories", "runs", "batch", "seed")


def _options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    usual = CalibrationConfig("usual")
    parser = make_parser("calibrate", __doc__ or "")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="calibrate the loaded checkpoint, and follow it")
    numbers = {
        "width": f"pixels of the pictures it is calibrated on (default: {usual.width})",
        "height": f"pixels (default: {usual.height})",
        "trajectories": f"pictures to fit to; as many others judge the fit (default: {usual.trajectories})",
        "runs": f"how often one calibration may draw them, its reference included (default: {usual.runs})",
        "batch": f"pictures drawn at once; more takes more memory (default: {usual.batch})",
        "seed": f"of the first picture (default: {usual.seed})",
    }
    add_config_options(start, numbers)
    steps = " ".join(map(str, usual.steps))
    start.add_argument("--steps", nargs="+", type=int, help=f"numbers of steps, each by itself (default: {steps})")
    scales = " ".join(f"{scale:g}" for scale in usual.cfg_scales)
    start.add_argument(
        "--cfg", dest="cfg_scales", nargs="+", type=float, help=f"guidance scales, each by itself (default: {scales})"
    )
    add_commands(commands)
    commands.add_parser("list", help="list all calibrations, with their errors, and what is unfinished")
    export = commands.add_parser("export", help="write one to a JSON file")
    export.add_argument("name", help="as `list` shows it")
    export.add_argument("file", type=Path, help="the JSON file to write")
    imported = commands.add_parser("import", help="read one from a JSON file")
    imported.add_argument("file", type=Path, help="a JSON file that `export` wrote")
    return parser.parse_args(argv)
