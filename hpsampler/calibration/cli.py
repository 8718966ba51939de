"""``python -m hpsampler.calibrate``: calibrate from the command line, through a WebUI that was started with ``--api``.

The WebUI holds the model and therefore does the calibrating; this starts a job, follows it, and fetches the result.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

from ..client import (
    Client,
    ClientError,
    add_commands,
    add_config_options,
    line_in,
    make_parser,
    print_remarks,
    run_command,
    run_with,
    start_job,
    text_of,
)
from ..files import write_atomically
from ..recipes import AUTO
from ..store import Reader
from .choice import AIMS, read_comparison
from .config import CalibrationConfig

__all__ = ["main"]

JOBS, RESULTS = "/hpsampler/calibrate", "/hpsampler/calibrations"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run the command line. Raises SystemExit: with a sentence on what went wrong."""
    args = _options(argv)
    run_with(args, lambda client: _run(client, args))


def _run(client: Client, args: argparse.Namespace) -> None:
    if args.command == "start":
        start_job(client, JOBS, args, _FIELDS)
    elif args.command == "list":
        _list(client)
    elif args.command == "export":
        found = client.ask("GET", f"{RESULTS}/{quote(args.name, safe='')}")
        try:
            write_atomically(args.file, json.dumps(found, indent=1) + "\n")
        except OSError as error:
            raise ClientError(f"{args.file}: {error.strerror or error}") from None
        print(f"Written: {args.file}")
    elif args.command == "import":
        answer = client.read("POST", RESULTS, _profile_in(args.file))
        note = f" ({line_in(answer.at('note'))})" if "note" in answer.data else ""
        print(f"Calibration: {line_in(answer.at('name'))}{note}")
    else:
        run_command(client, args, JOBS, RESULTS)


def _profile_in(path: Path) -> Any:
    """The object in a calibration's file, which the WebUI checks. Raises ClientError: it cannot be read."""
    text = text_of(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClientError(f"{path}: not a JSON file: {str(error)[:80]}") from None


def _list(client: Client) -> None:
    answer = client.read("GET", RESULTS)
    for lines in answer.items("calibrations", _lines_of):
        print("\n".join(lines))
    print_remarks(client, JOBS, answer)


def _lines_of(profile: Reader) -> list[str]:
    """What the list says of one calibration."""
    size = f"{profile.whole('width', 1, 2**31)}x{profile.whole('height', 1, 2**31)}"
    lines = [f"{line_in(profile.at('name'))}: {line_in(profile.at('model'))}, {size}"]
    lines += profile.items("fitted", lambda row: f"  {_cell(row)}: {_errors(row)}")
    for joint in profile.items("joint", _lines_of_joint):
        lines += joint
    lines += profile.items("refused", lambda row: f"  {_cell(row)}: refused")
    # a WebUI with an earlier version of the extension tells of none
    return lines + (profile.items("compared", _best_of) if "compared" in profile.data else [])


def _best_of(row: Reader) -> str:
    """Which of the ways to draw came out best."""
    compared = read_comparison(row)
    pictures, nearest = (compared.ranked(aim)[0] for aim in AIMS)
    return (
        f"  {_cell(row)}: best pictures by {pictures}, nearest by {nearest}, of {len(compared.figures)} ways compared"
    )


def _lines_of_joint(row: Reader) -> list[str]:
    low, high = row.number("low", 0, 1e6), row.number("high", 0, 1e6)
    head = f"  {row.whole('steps', 1, 2**31)} steps, CFG {low:g} to {high:g}:"
    return [
        head,
        *row.items("measured", lambda each: f"    at CFG {each.number('cfg_scale', 0, 1e6):g} {_errors(each)}"),
    ]


def _cell(row: Reader) -> str:
    return f"CFG {row.number('cfg_scale', 0, 1e6):g}, {row.whole('steps', 1, 2**31)} steps"


def _errors(row: Reader) -> str:
    """What a schedule reaches on held-out trajectories, beside what there is without it."""
    errors, most = row.at("held_out"), 1e12
    calibrated = errors.number("calibrated", 0, most)
    auto = errors.number(AUTO, 0, most) if isinstance(errors.data, dict) and AUTO in errors.data else math.nan
    return (
        f"held-out error {calibrated:.4g}, Auto {auto:.4g}, "
        f"20 steps of DPM++ 2M Karras {row.number('yardstick', 0, most):.4g}"
    )


_FIELDS = ("name", "steps", "cfg_scales", "width", "height", "negative", "trajectories", "runs", "batch", "seed", "fit")


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
    start.add_argument(
        "--no-fit", dest="fit", action="store_const", const=False,
        help="fit nothing, only compare ways to draw, some of which need statistics (default: schedules are fitted)",
    )  # fmt: skip
    add_commands(commands)
    commands.add_parser("list", help="list all calibrations with their errors, and unfinished jobs")
    export = commands.add_parser("export", help="write a calibration to a JSON file")
    export.add_argument("name", help="as `list` shows it")
    export.add_argument("file", type=Path, help="the JSON file to write")
    import_ = commands.add_parser("import", help="read a calibration from a JSON file")
    import_.add_argument("file", type=Path, help="a JSON file that `export` wrote")
    return parser.parse_args(argv)
