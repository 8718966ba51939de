"""Calibrations and statistics over HTTP, where the WebUI was started with ``--api``.

Behind its ``--api-auth`` where that is set.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Optional

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from ..store import StoreError

if TYPE_CHECKING:
    from ..jobs import JobRunner
    from .runners import Runners

__all__ = ["add_routes"]

PREFIX = "/hpsampler"


def add_routes(app: FastAPI, runners: Runners, auth: Optional[str]) -> None:
    """Add them to the host's application; ``auth`` is its ``user:password,user:password``."""
    dependencies = [Depends(_guard(auth))] if auth else []

    def route(path: str, method: str, act: Callable[..., Any]) -> None:
        app.add_api_route(PREFIX + path, act, methods=[method], dependencies=dependencies)

    _add_runner(route, lambda: runners.calibrations, "/calibrate", "/calibrations")
    _add_runner(route, lambda: runners.statistics, "/measure", "/statistics")

    def listed() -> dict[str, Any]:
        profiles, problems = runners.calibrations.profiles.read()
        rows = [
            {
                **profile.to_dict(),
                "fitted": [{**each.to_dict(), "hash": each.hash} for each in profile.fitted],
                "joint": [{**each.to_dict(), "hash": each.hash} for each in profile.joint],
                "compared": [each.to_dict() for each in profile.compared],
            }
            for profile in profiles
        ]
        return {"calibrations": rows, "problems": problems}

    def one(name: str) -> Any:
        return json.loads(_tried(lambda: runners.calibrations.profiles.get(name)).to_json())

    async def take(request: Request) -> dict[str, Any]:
        text = (await request.body()).decode("utf-8", errors="replace")
        kept, said = _tried(lambda: runners.calibrations.profiles.import_json(text))
        return {"name": kept.name, **({"note": said} if said else {})}

    def measured() -> dict[str, Any]:
        rows, problems = [], []
        for name in runners.statistics.names():
            try:
                source, shape = runners.statistics.read_provenance(name)
            except StoreError as error:
                problems.append(str(error))
                continue
            rows.append({"name": name, "source": source.known(), "shape": shape})
        return {"statistics": rows, "problems": problems}

    route("/calibrations", "GET", listed)
    route("/calibrations", "POST", take)
    route("/calibrations/{name}", "GET", one)
    route("/statistics", "GET", measured)


def _add_runner(
    route: Callable[[str, str, Callable[..., Any]], None], get: Callable[[], JobRunner[Any]], act: str, kept: str
) -> None:
    """What every runner can be asked: to make one under ``act``, to rename and delete those under ``kept``."""

    def status() -> dict[str, Any]:
        runner = get()
        now = runner.status()
        progress = now.progress
        return {
            "state": now.state,
            "message": now.message,
            "name": now.config.name if now.config else None,
            "calls": progress.calls,
            "of": progress.of,
            "seconds_left": progress.seconds_left,
            "cell": progress.cell,
            "curve": progress.curve[-200:],
            "lines": {name: error for name, error in progress.lines.items() if math.isfinite(error)},
            "log": progress.log,
            "unfinished": [each.name for each in runner.unfinished()],
        }

    def start(config: dict[str, Any]) -> dict[str, Any]:
        return {"name": _tried(lambda: get().start(get().config_of(config))).name}

    def resume(body: dict[str, Any]) -> dict[str, Any]:
        return {"name": _tried(lambda: get().resume(_name_in(body))).name}

    def stop() -> dict[str, Any]:
        get().stop(wait=30)
        return status()

    def discard(body: dict[str, Any]) -> dict[str, Any]:
        _tried(lambda: get().discard(_name_in(body)))
        return {"discarded": body["name"]}

    def rename(name: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"name": _tried(lambda: get().rename(name, _name_in(body)))}

    def delete(name: str) -> dict[str, Any]:
        _tried(lambda: get().delete(name))
        return {"deleted": name}

    route(act, "GET", status)
    route(act, "POST", start)
    route(f"{act}/resume", "POST", resume)
    route(f"{act}/stop", "POST", stop)
    route(f"{act}/discard", "POST", discard)
    route(f"{kept}/{{name}}", "PATCH", rename)
    route(f"{kept}/{{name}}", "DELETE", delete)


def _name_in(body: dict[str, Any]) -> str:
    name = body.get("name")
    if not isinstance(name, str):
        raise StoreError(f"name must be a text, got {name!r}")
    return name


def _tried(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except (StoreError, OSError) as error:
        raise HTTPException(status_code=422, detail=f"HP Sampler: {error}") from None


def _guard(auth: str) -> Callable[..., None]:
    """Checks what the host's own routes check."""
    known = dict(pair.split(":", 1) for pair in auth.split(",") if ":" in pair)

    def check(given: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008
        password = known.get(given.username)
        if password is None or not secrets.compare_digest(given.password.encode(), password.encode()):
            raise HTTPException(
                status_code=401, detail="Incorrect username or password", headers={"WWW-Authenticate": "Basic"}
            )

    return check
