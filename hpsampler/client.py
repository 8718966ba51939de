"""A running WebUI, asked from the command line: what it makes is started, followed and kept there."""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from pathlib import Path
from typing import Any, Optional
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

__all__ = ["Server", "act", "add_acts", "begin", "parser"]

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


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """What every command line of ours begins with."""
    made = argparse.ArgumentParser(prog=f"python -m hpsampler.{program}", description=description)
    made.add_argument("--url", default="http://127.0.0.1:7860", help="of the WebUI (default: %(default)s)")
    made.add_argument("--auth", help="user:password, where the WebUI has --api-auth")
    return made


def add_order(start: argparse.ArgumentParser, *numbers: str) -> None:
    """What every order is told: a name, prompts, and whole numbers of these names."""
    start.add_argument("name")
    start.add_argument("--prompts", type=Path, help="a text file, one prompt on each line")
    start.add_argument("--negative", help="negative prompt")
    for name in numbers:
        start.add_argument(f"--{name}", type=int)


def add_acts(commands: Any) -> None:
    """The commands that :func:`act` carries out."""
    named = {"resume": "go on with an unfinished one", "discard": "forget an unfinished one", "delete": "delete one"}
    for name, told in named.items():
        commands.add_parser(name, help=told).add_argument("name")
    for name, told in (("watch", "follow the one under way"), ("stop", "stop it")):
        commands.add_parser(name, help=told)
    rename = commands.add_parser("rename", help="rename one")
    rename.add_argument("name")
    rename.add_argument("new_name")


def begin(server: Server, path: str, args: argparse.Namespace, fields: tuple[str, ...]) -> None:
    """Start what ``args`` say, of the order's ``fields`` those that were given, and follow it."""
    order = {name: getattr(args, name) for name in fields if getattr(args, name) is not None}
    if args.prompts is not None:
        order["prompts"] = args.prompts.read_text(encoding="utf-8-sig")
    print(f"Begun: {server.ask('POST', path, order)['name']}")
    follow(server, path)


def act(server: Server, args: argparse.Namespace, path: str, kept: str) -> None:
    """One of :func:`add_acts`' commands, of what is made under ``path`` and kept under ``kept``."""
    if args.command == "resume":
        server.ask("POST", f"{path}/resume", {"name": args.name})
        follow(server, path)
    elif args.command == "watch":
        follow(server, path)
    elif args.command == "stop":
        print(server.ask("POST", f"{path}/stop")["message"])
    elif args.command == "discard":
        server.ask("POST", f"{path}/discard", {"name": args.name})
        print(f"Discarded: {args.name}")
    elif args.command == "rename":
        print(f"Renamed: {server.ask('PATCH', f'{kept}/{quote(args.name)}', {'name': args.new_name})['name']}")
    elif args.command == "delete":
        server.ask("DELETE", f"{kept}/{quote(args.name)}")
        print(f"Deleted: {args.name}")


def follow(server: Server, path: str) -> None:
    """Print what happens until it ends. Raises SystemExit: it failed."""
    told = 0
    while True:
        status = server.ask("GET", path)
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
