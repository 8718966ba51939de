"""The HTTP client for a running WebUI, and the common part of the command lines that use it.

The WebUI holds the model, so calibrations, statistics and pictures are made there; a command line starts the work,
follows it, and fetches the results.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import sys
import time
from pathlib import Path
from typing import Any, Optional
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

__all__ = [
    "Client", "ClientError", "RequestRefused", "add_commands", "add_config_options", "make_parser", "print_remarks",
    "run_command", "start_job",
]  # fmt: skip

POLL_SECONDS = 1.0


class ClientError(Exception):
    """The WebUI cannot be reached, or refuses the login; the message is meant for the user."""


class RequestRefused(ClientError):
    """The WebUI answered a request with an error.

    Attributes:
        status: the HTTP status code.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """The HTTP client for a running WebUI.

    Args:
        url: address such as ``http://127.0.0.1:7860``.
        auth: ``user:password``, if the WebUI was started with ``--api-auth``.
        timeout: time limit of a request in seconds.
    """

    def __init__(self, url: str, auth: Optional[str] = None, timeout: float = 120) -> None:
        self.url, self.auth, self.timeout = url.rstrip("/"), auth, timeout

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request; returns the JSON of the response.

        Raises:
            RequestRefused: the WebUI answered with an error, which the message quotes.
            ClientError: the WebUI cannot be reached, or refuses the login.
        """
        try:
            request = Request(self.url + path, method=method)
            if self.auth:
                request.add_header("Authorization", "Basic " + base64.b64encode(self.auth.encode()).decode())
            data = None
            if body is not None:
                request.add_header("Content-Type", "application/json")
                data = json.dumps(body).encode()
            with urlopen(request, data, timeout=self.timeout) as response:
                return json.load(response)
        except HTTPError as error:
            if error.code in (401, 403):
                raise ClientError(f"{self.url} requires another user and password: --auth user:password") from None
            if error.code == 404:
                raise ClientError(_missing_route(self.url, path)) from None
            raise RequestRefused(_message_of(error), error.code) from None
        except (URLError, OSError, ValueError, http.client.HTTPException) as error:
            raise ClientError(f"no answer from {self.url}: {getattr(error, 'reason', None) or error}") from None


def _missing_route(url: str, path: str) -> str:
    """What a 404 means: the WebUI's routes need ``--api``, and ours the extension as well."""
    if path.startswith("/hpsampler"):
        return f"{url} has no HP Sampler, or was started without --api"
    return f"{url} has no {path.partition('?')[0]}; start the WebUI with --api"


def _message_of(error: HTTPError) -> str:
    """The message in an error's body: FastAPI's ``detail``, or A1111's ``errors`` or ``error``."""
    try:
        body = json.load(error)
    except (ValueError, OSError, http.client.HTTPException):
        return f"the WebUI answered {error}"
    if not isinstance(body, dict):
        return f"the WebUI answered {error.code}: {body}"
    detail = body.get("detail")
    if isinstance(detail, list):
        detail = "; ".join(f"{'.'.join(map(str, item.get('loc', ())))}: {item.get('msg')}" for item in detail)
    return f"the WebUI answered {error.code}: {body.get('errors') or detail or body.get('error') or body}"


# ---- command lines ---------------------------------------------------------------------------------------------------


def make_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options of every command line: the WebUI's address and login."""
    parser = argparse.ArgumentParser(
        prog=f"python -m hpsampler.{program}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="address of the WebUI (default: %(default)s)")
    parser.add_argument("--auth", help="user:password, where the WebUI was started with --api-auth (default: none)")
    return parser


def add_config_options(start: argparse.ArgumentParser, numbers: dict[str, str]) -> None:
    """Add the options that all jobs have: name, prompts, and whole numbers, given by name with their help texts."""
    start.add_argument("name", help="name of the result, as menus and pictures show it")
    start.add_argument("--prompts", type=Path, help="text file with a prompt on each line (default: the built-in ones)")
    start.add_argument("--negative", help="negative prompt (default: none)")
    for name, text in numbers.items():
        start.add_argument(f"--{name}", type=int, help=text)


def add_commands(commands: Any) -> None:
    """Add the commands that :func:`run_command` carries out."""
    with_name = {
        "resume": "continue an unfinished job",
        "discard": "delete an unfinished job; finished results stay",
        "delete": "delete a result",
    }
    for name, text in with_name.items():
        commands.add_parser(name, help=text).add_argument("name", help="as `list` shows it")
    for name, text in (("watch", "follow the running job"), ("stop", "stop the running job; it can be resumed")):
        commands.add_parser(name, help=text)
    rename = commands.add_parser("rename", help="rename a result")
    rename.add_argument("name", help="as `list` shows it")
    rename.add_argument("new_name", help="its new name")


def start_job(client: Client, jobs: str, args: argparse.Namespace, fields: tuple[str, ...]) -> None:
    """Start the job that ``args`` describe by those of ``fields`` that were given, and follow it."""
    config = {name: getattr(args, name) for name in fields if getattr(args, name) is not None}
    if args.prompts is not None:
        config["prompts"] = args.prompts.read_text(encoding="utf-8-sig")
    print(f"Started: {client.ask('POST', jobs, config)['name']}")
    follow(client, jobs)


def run_command(client: Client, args: argparse.Namespace, jobs: str, results: str) -> None:
    """Carry out one of :func:`add_commands`' commands; ``jobs`` and ``results`` are the paths of their routes."""
    if args.command == "resume":
        client.ask("POST", f"{jobs}/resume", {"name": args.name})
        follow(client, jobs)
    elif args.command == "watch":
        follow(client, jobs)
    elif args.command == "stop":
        print(client.ask("POST", f"{jobs}/stop")["message"])
    elif args.command == "discard":
        client.ask("POST", f"{jobs}/discard", {"name": args.name})
        print(f"Discarded: {args.name}")
    elif args.command == "rename":
        renamed = client.ask("PATCH", f"{results}/{quote(args.name)}", {"name": args.new_name})
        print(f"Renamed: {renamed['name']}")
    elif args.command == "delete":
        client.ask("DELETE", f"{results}/{quote(args.name)}")
        print(f"Deleted: {args.name}")


def print_remarks(client: Client, jobs: str, problems: list[str]) -> None:
    """Print the end of a list of results: files that cannot be read, and unfinished jobs."""
    for problem in problems:
        print(problem)
    unfinished = client.ask("GET", jobs)["unfinished"]
    if unfinished:
        print(f"Unfinished: {', '.join(unfinished)}")


def follow(client: Client, jobs: str) -> None:
    """Print the progress of the running job until it ends. Raises SystemExit: the job failed."""
    printed = 0
    while True:
        status = client.ask("GET", jobs)
        for line in status["log"][printed:]:
            print(f"\r{line}".ljust(79), flush=True)
        printed = len(status["log"])
        if status["state"] != "running":
            break
        seconds_left = status["seconds_left"]
        progress = f"{status['calls']} of at most {status['of']} UNet calls"
        progress += f", at most {seconds_left / 60:.1f} min of drawing left" if seconds_left is not None else ""
        print(f"\r{progress}".ljust(79), end="", file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)
    print(status["message"])
    if status["state"] == "failed":
        raise SystemExit(1)
