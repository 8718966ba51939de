"""``python -m hpsampler.calibrate``: calibrate from the command line, through a WebUI that was started with ``--api``.

It is the WebUI that holds the model, so it is the WebUI that calibrates; this starts it, follows it, and fetches what
came of it.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

__all__ = ["main"]

EVERY_SECONDS = 1.0


class Server:
    """A running WebUI.

    Args:
        url: such as ``http://127.0.0.1:7860``.
        auth: ``user:password`` where it was started with ``--api-auth``.
    """

    def __init__(self, url: str, auth: Optional[str] = None) -> None:
        self.url, self.auth = url.rstrip("/"), auth

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Raises SystemExit: with the server's words, or why it cannot be reached."""
        request = Request(f"{self.url}/hpsampler{path}", method=method)
        if self.auth:
            request.add_header("Authorization", "Basic " + base64.b64encode(self.auth.encode()).decode())
        data = None
        if body is not None:
            request.add_header("Content-Type", "application/json")
            data = json.dumps(body).encode()
        try:
            with urlopen(request, data, timeout=120) as answer:
                return json.load(answer)
        except HTTPError as error:
            raise SystemExit(_words_of(error)) from None
        except (URLError, OSError, ValueError) as error:
            raise SystemExit(f"no answer from {self.url}: {error}") from None


def _words_of(error: HTTPError) -> str:
    if error.code == 404:
        return "the server has no HP Sampler, or was started without --api"
    try:
        return str(json.load(error).get("detail", error))
    except ValueError:
        return str(error)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Do what the command line says."""
    args = _options(argv)
    server = Server(args.url, args.auth)
    if args.command == "start":
        order = {name: value for name, value in vars(args).items() if name in _ORDER and value is not None}
        if args.prompts is not None:
            order["prompts"] = args.prompts.read_text(encoding="utf-8-sig")
        print(f"Calibration: {server.ask('POST', '/calibrate', order)['name']}")
        _follow(server)
    elif args.command == "resume":
        server.ask("POST", "/calibrate/resume", {"name": args.name})
        _follow(server)
    elif args.command == "watch":
        _follow(server)
    elif args.command == "stop":
        print(server.ask("POST", "/calibrate/stop")["message"])
    elif args.command == "discard":
        server.ask("POST", "/calibrate/discard", {"name": args.name})
        print(f"Discarded: {args.name}")
    elif args.command == "list":
        _list(server)
    elif args.command == "export":
        text = json.dumps(server.ask("GET", f"/calibrations/{quote(args.name)}"), indent=1)
        args.file.write_text(text + "\n", encoding="utf-8")
        print(f"Written: {args.file}")
    elif args.command == "import":
        found = json.loads(args.file.read_text(encoding="utf-8"))
        print(f"Calibration: {server.ask('POST', '/calibrations', found)['name']}")
    elif args.command == "rename":
        print(
            f"Calibration: {server.ask('PATCH', f'/calibrations/{quote(args.name)}', {'name': args.new_name})['name']}"
        )
    elif args.command == "delete":
        server.ask("DELETE", f"/calibrations/{quote(args.name)}")
        print(f"Deleted: {args.name}")


def _follow(server: Server) -> None:
    """Print what happens until it ends. Raises SystemExit: it failed."""
    told = 0
    while True:
        status = server.ask("GET", "/calibrate")
        for line in status["log"][told:]:
            print(f"\r{line}".ljust(79), flush=True)
        told = len(status["log"])
        if status["state"] != "running":
            break
        left = status["seconds_left"]
        shown = f"{status['calls']} of at most {status['of']} UNet calls"
        shown += f", at most {left / 60:.1f} min of drawing left" if left is not None else ""
        print(f"\r{shown}".ljust(79), end="", file=sys.stderr, flush=True)
        time.sleep(EVERY_SECONDS)
    print(status["message"])
    if status["state"] == "failed":
        raise SystemExit(1)


def _list(server: Server) -> None:
    found = server.ask("GET", "/calibrations")
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
    unfinished = server.ask("GET", "/calibrate")["unfinished"]
    if unfinished:
        print(f"Unfinished: {', '.join(unfinished)}")


_ORDER = ("name", "steps", "cfg_scales", "width", "height", "negative", "trajectories", "runs", "batch", "seed")


def _options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hpsampler.calibrate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="of the WebUI (default: %(default)s)")
    parser.add_argument("--auth", help="user:password, where the WebUI has --api-auth")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="calibrate to the loaded checkpoint, and follow it")
    start.add_argument("name")
    start.add_argument("--steps", nargs="+", type=int, help="numbers of steps, each calibrated by itself")
    start.add_argument("--cfg", dest="cfg_scales", nargs="+", type=float, help="guidance scales")
    start.add_argument("--prompts", type=Path, help="a text file, one prompt on each line")
    start.add_argument("--negative", help="negative prompt")
    for name in ("width", "height", "trajectories", "runs", "batch", "seed"):
        start.add_argument(f"--{name}", type=int)
    named = {"resume": "go on with an unfinished one", "discard": "forget an unfinished one", "delete": "delete one"}
    for name, told in named.items():
        commands.add_parser(name, help=told).add_argument("name")
    for name, told in (("watch", "follow the one under way"), ("stop", "stop it"), ("list", "list all")):
        commands.add_parser(name, help=told)
    rename = commands.add_parser("rename", help="rename one")
    rename.add_argument("name")
    rename.add_argument("new_name")
    export = commands.add_parser("export", help="write one to a file")
    export.add_argument("name")
    export.add_argument("file", type=Path)
    take = commands.add_parser("import", help="read one from a file")
    take.add_argument("file", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
