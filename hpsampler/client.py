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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from .store import Reader, StoreError

__all__ = [
    "Client", "ClientError", "RequestRefused", "add_commands", "add_config_options", "line_in", "make_parser",
    "print_remarks", "printable", "run_command", "run_with", "start_job", "text_of",
]  # fmt: skip

POLL_SECONDS = 1.0

MAX_ANSWER = 2**30
"""Bytes of the longest answer that is read: many large pictures in one."""

CHUNK = 2**16


class ClientError(Exception):
    """The WebUI cannot be reached, refuses the login or answers what it should not; the message is for the user."""


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
        url: address such as ``http://127.0.0.1:7860``; without a scheme it is http.
        auth: ``user:password``, if the WebUI was started with ``--api-auth``.
        timeout: time limit of a request with its whole answer, in seconds.

    Raises:
        ClientError: another kind of address.
    """

    def __init__(self, url: str, auth: Optional[str] = None, timeout: float = 120) -> None:
        given = url.strip()
        self.url, self.auth, self.timeout = given.rstrip("/"), auth, timeout
        self._base = (given if "://" in given else f"http://{given}").rstrip("/")
        try:
            parts = urlsplit(self._base)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # such as a port that is no number
            valid = False
        if not valid or not self._base.isprintable() or " " in self._base:
            raise ClientError(f"--url must be an address such as http://127.0.0.1:7860, got {printable(url)!r}")

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request; returns the JSON of the response.

        Raises:
            RequestRefused: the WebUI answered with an error, which the message quotes.
            ClientError: the WebUI cannot be reached, takes too long, refuses the login, or answers with no JSON.
        """
        until = time.monotonic() + self.timeout
        try:
            request = Request(self._base + path, method=method)
            if self.auth:
                request.add_header("Authorization", "Basic " + base64.b64encode(self.auth.encode()).decode())
            data = None
            if body is not None:
                request.add_header("Content-Type", "application/json")
                data = json.dumps(body).encode()
            with urlopen(request, data, timeout=self.timeout) as response:
                text = self._read(response, until)
        except HTTPError as error:
            if error.code in (401, 403):
                raise ClientError(f"{self.url} requires another user and password: --auth user:password") from None
            if error.code == 404:
                raise ClientError(_missing_route(self.url, path)) from None
            raise RequestRefused(_message_of(error, self._body_of(error, until)), error.code) from None
        except (URLError, OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise ClientError(f"no answer from {self.url}: {printable(str(reason))}") from None
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ClientError(
                f"the answer of {self.url} to {path.partition('?')[0]} is not JSON ({str(error)[:80]}); is it a WebUI?"
            ) from None

    def read(self, method: str, path: str, body: Any = None) -> Reader:
        """As :meth:`ask`, but the answer's fields are read with a check of what they are, which raises StoreError."""
        return Reader(self.ask(method, path, body))

    def _body_of(self, error: HTTPError, until: float) -> bytes:
        try:
            return self._read(error, until)
        except (OSError, http.client.HTTPException):
            return b""

    def _read(self, response: Any, until: float) -> bytes:
        """The whole body of a response, unless it takes too long or is too long.

        The socket's own time limit is for each part of it, so a body that drips in would be waited for without end.
        """
        announced = response.headers.get("Content-Length", "")
        left = int(announced) if announced.isascii() and announced.isdigit() else None
        parts, length = [], 0
        while left != 0:
            part = response.read1(CHUNK if left is None else min(CHUNK, left))
            if not part:
                break
            parts.append(part)
            length += len(part)
            left = None if left is None else left - len(part)
            if length > MAX_ANSWER:
                raise ClientError(f"the answer of {self.url} has more than {MAX_ANSWER >> 20} MB")
            if time.monotonic() > until:
                raise ClientError(f"the answer of {self.url} took longer than {self.timeout:g} seconds")
        if left:
            raise http.client.IncompleteRead(b"".join(parts), left)
        return b"".join(parts)


def printable(text: str) -> str:
    """A text without what a terminal would carry out: control characters are shown as their codes."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode() for each in text
    )


def _missing_route(url: str, path: str) -> str:
    """What a 404 means: the WebUI's routes need ``--api``, and ours the extension as well."""
    if path.startswith("/hpsampler"):
        return f"{url} has no HP Sampler, or was started without --api"
    return f"{url} has no {path.partition('?')[0]}; start the WebUI with --api"


def _message_of(error: HTTPError, text: bytes) -> str:
    """The message in an error's body: FastAPI's ``detail``, or A1111's ``errors`` or ``error``."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return printable(f"the WebUI answered {error}")
    message = body
    if isinstance(body, dict):
        detail = body.get("detail")
        if isinstance(detail, list):
            detail = "; ".join(map(_detail, detail))
        message = body.get("errors") or detail or body.get("error") or body
    return printable(f"the WebUI answered {error.code}: {message}")


def _detail(row: Any) -> str:
    """One of FastAPI's details: where it is, and what it says."""
    if not isinstance(row, dict):
        return str(row)
    place = row.get("loc")
    return f"{'.'.join(map(str, place)) if isinstance(place, list) else place}: {row.get('msg')}"


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


def run_with(args: argparse.Namespace, act: Callable[[Client], object]) -> None:
    """Do what a command line asks of the WebUI. Raises SystemExit: with a sentence on what went wrong."""
    try:
        act(Client(args.url, args.auth))
    except ClientError as error:
        raise SystemExit(str(error)) from None
    except StoreError as error:
        raise SystemExit(printable(f"{args.url} answered what no HP Sampler of this version does: {error}")) from None
    except KeyboardInterrupt:
        print("\nInterrupted. What the WebUI does goes on; `watch` follows it, and `stop` stops it.", file=sys.stderr)
        raise SystemExit(130) from None


def text_of(path: Path) -> str:
    """The text of a file. Raises ClientError: it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ClientError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def line_in(reader: Reader) -> str:
    """A text in an answer, as it may be printed. Raises StoreError: it is no text."""
    if not isinstance(reader.data, str):
        raise reader.error("a text")
    return printable(reader.data)


def start_job(client: Client, jobs: str, args: argparse.Namespace, fields: tuple[str, ...]) -> None:
    """Start the job that ``args`` describe by those of ``fields`` that were given, and follow it."""
    config = {name: getattr(args, name) for name in fields if getattr(args, name) is not None}
    if args.prompts is not None:
        config["prompts"] = text_of(args.prompts)
    print(f"Started: {line_in(client.read('POST', jobs, config).at('name'))}")
    follow(client, jobs)


def run_command(client: Client, args: argparse.Namespace, jobs: str, results: str) -> None:
    """Carry out one of :func:`add_commands`' commands; ``jobs`` and ``results`` are the paths of their routes."""
    if args.command == "resume":
        client.ask("POST", f"{jobs}/resume", {"name": args.name})
        follow(client, jobs)
    elif args.command == "watch":
        follow(client, jobs)
    elif args.command == "stop":
        print(line_in(client.read("POST", f"{jobs}/stop").at("message")))
    elif args.command == "discard":
        client.ask("POST", f"{jobs}/discard", {"name": args.name})
        print(f"Discarded: {args.name}")
    elif args.command == "rename":
        renamed = client.read("PATCH", f"{results}/{quote(args.name, safe='')}", {"name": args.new_name})
        print(f"Renamed: {line_in(renamed.at('name'))}")
    elif args.command == "delete":
        client.ask("DELETE", f"{results}/{quote(args.name, safe='')}")
        print(f"Deleted: {args.name}")


def print_remarks(client: Client, jobs: str, answer: Reader) -> None:
    """Print the end of a list of results: files that cannot be read, and unfinished jobs."""
    for problem in answer.items("problems", line_in):
        print(problem)
    unfinished = client.read("GET", jobs).items("unfinished", line_in)
    if unfinished:
        print(f"Unfinished: {', '.join(unfinished)}")


def follow(client: Client, jobs: str) -> None:
    """Print the progress of the running job until it ends. Raises SystemExit: the job failed."""
    printed = 0
    while True:
        try:
            status = client.read("GET", jobs)
        except ClientError as error:
            raise ClientError(f"{error}\nIf the WebUI runs, so does the job; `watch` follows it again.") from None
        log, state = status.items("log", line_in), line_in(status.at("state"))
        for line in log[printed:]:
            print(f"\r{line}".ljust(79), flush=True)
        printed = len(log)
        if state != "running":
            break
        progress = f"{status.whole('calls', 0, 2**63)} of at most {status.whole('of', 0, 2**63)} UNet calls"
        if status.at("seconds_left").data is not None:
            progress += f", at most {status.number('seconds_left', 0, 1e12) / 60:.1f} min of drawing left"
        print(f"\r{progress}".ljust(79), end="", file=sys.stderr, flush=True)
        time.sleep(POLL_SECONDS)
    print(line_in(status.at("message")))
    if state == "failed":
        raise SystemExit(1)
