"""``python -m hpsampler.calibrate``: calibrate from the command line, through a WebUI that was started with ``--api``.

The WebUI holds the model and therefore does the calibrating; this starts a job, follows it, and fetches the result.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

from ..client import (
    Client,
    ClientError,
    add_commands,
    add_config_options,
    make_parser,
    print_remarks,
    run_command,
    start_job,
)
from .config import CalibrationConfig

__all__ = ["main"]

JOBS, RESULTS = "/hpsampler/calibrate", "/hpsampler/calibrations"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command line. Raises SystemExit: with a sentence on what went wrong."""
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
        profile = json.loads(args.file.read_text(encoding="utf-8"))
        answer = client.ask("POST", RESULTS, profile)
        print(f"Calibration: {answer['name']}" + (f" ({answer['note']})" if answer.get("note") else ""))
    else:
        run_command(client, args, JOBS, RESULTS)


def _list(client: Client) -> None:
    answer = client.ask("GET", RESULTS)
    for profile in answer["calibrations"]:
        print(f"{profile['name']}: {profile['model']}, {profile['width']}x{profile['height']}")
        for fitted in profile["fitted"]:
            print(f"  CFG {fitted['cfg_scale']:g}, {fitted['steps']} steps: {_errors(fitted)}")
        for joint in profile["joint"]:
            print(f"  {joint['steps']} steps, CFG {joint['low']:g} to {joint['high']:g}:")
            for measured in joint["measured"]:
                print(f"    at CFG {measured['cfg_scale']:g} {_errors(measured)}")
        for refused in profile["refused"]:
            print(f"  CFG {refused['cfg_scale']:g}, {refused['steps']} steps: refused")
    print_remarks(client, JOBS, answer["problems"])


def _errors(row: Mapping[str, Any]) -> str:
    """What a schedule reaches on held-out trajectories, beside what there is without it."""
    errors = row["held_out"]
    return (
        f"held-out error {errors['calibrated']:.4g}, Auto {errors.get('Auto', float('nan')):.4g}, "
        f"20 steps of DPM++ 2M Karras {row['yardstick']:.4g}"
    )


_FIELDS = ("name", "steps", "cfg_scales", "width", "height", "negative", "trajectories", "runs", "batch", "seed")


def _options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    defaults = CalibrationConfig("defaults")
    parser = make_parser("calibrate", __doc__ or "")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="calibrate the loaded checkpoint, and follow the job")
    numbers = {
        "width": f"width in pixels of the pictures it is calibrated on (default: {defaults.width})",
        "height": f"their height in pixels (default: {defaults.height})",
        "trajectories": f"pictures to fit to, shared among the CFG scales; as many others are held out "
        f"(default: {defaults.trajectories})",
        "runs": f"budget of a calibration in runs over these pictures, with its reference (default: {defaults.runs})",
        "batch": f"pictures drawn at once; more takes more memory (default: {defaults.batch})",
        "seed": f"seed of the first picture (default: {defaults.seed})",
    }
    add_config_options(start, numbers)
    steps = " ".join(map(str, defaults.steps))
    start.add_argument(
        "--steps", nargs="+", type=int, help=f"numbers of steps, each calibrated separately (default: {steps})"
    )
    scales = " ".join(f"{scale:g}" for scale in defaults.cfg_scales)
    start.add_argument(
        "--cfg",
        dest="cfg_scales",
        nargs="+",
        type=float,
        help=f"guidance scales; one fit covers all from the smallest to the largest (default: {scales})",
    )
    add_commands(commands)
    commands.add_parser("list", help="list all calibrations with their errors, and unfinished jobs")
    export = commands.add_parser("export", help="write a calibration to a JSON file")
    export.add_argument("name", help="as `list` shows it")
    export.add_argument("file", type=Path, help="the JSON file to write")
    import_ = commands.add_parser("import", help="read a calibration from a JSON file")
    import_.add_argument("file", type=Path, help="a JSON file that `export` wrote")
    return parser.parse_args(argv)
