"""A refused request: the person reads why on the page and over the API, and nothing is drawn for it."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse

from tests.adapter.host.processing import Txt2Img

WRONG = {"rho": "seven"}
LATER = {"end_sigma": 0.01}
"""What only the noise table shows to be wrong."""


@pytest.fixture
def counted(webui, monkeypatch):
    """UNet calls and conditions that were made."""
    made = []
    webui.unet().register_forward_pre_hook(lambda *_: made.append("call"))
    conditions = Txt2Img.setup_conds

    def setup_conds(p):
        made.append("conditions")
        conditions(p)

    monkeypatch.setattr(Txt2Img, "setup_conds", setup_conds)
    return made


@pytest.mark.parametrize("args", [WRONG, LATER, {"golden_noise": "gone"}, {"calibration": "gone"}])
def test_it_is_found_before_the_first_thing_is_made(host, counted, args):
    with pytest.raises(ValueError, match="HP Sampler"):
        host.run(Txt2Img(steps=5), args)
    assert counted == []


def test_the_same_request_can_be_sent_again(host, counted):
    p = Txt2Img(steps=5)
    with pytest.raises(ValueError, match="Rho"):
        host.run(p, WRONG)
    host.run(p, {})
    assert counted[0] == "conditions"


def test_what_only_the_pass_finds_stops_it_there(webui, host, counted, monkeypatch):
    monkeypatch.setattr(webui.script.request, "_check", lambda p, settings: None)
    with pytest.raises(ValueError, match="end_sigma"):
        host.run(Txt2Img(steps=5), LATER)
    assert counted == ["conditions"]


def test_a_check_that_this_host_does_not_allow_is_left_to_the_pass(webui, host, counted, monkeypatch):
    def fail(*_):
        raise KeyError("a host that knows less by now")

    monkeypatch.setattr(webui.script.request.passes, "foreseen", fail)
    host.run(Txt2Img(steps=5))
    assert "call" in counted


@pytest.mark.parametrize("keeps", [True, False])
def test_a_page_whose_worker_drops_exceptions_says_it_under_the_pictures(host, counted, monkeypatch, keeps):
    worker = SimpleNamespace(last_exception=None) if keeps else SimpleNamespace()
    monkeypatch.setitem(sys.modules, "modules_forge.main_thread", worker)
    p = Txt2Img(steps=5)
    if keeps:
        with pytest.raises(ValueError, match="Rho"):
            host.run(p, WRONG)
    else:
        assert host.run(p, WRONG) is None and any("Rho" in text for text in p.comments)
    assert counted == []


def answer_of(host, args):
    """What a program gets, through middlewares as A1111 v1.10.1 puts them around its API."""
    app = FastAPI()

    class ExceptionGroup(Exception):
        """As anyio from version 4 on raises it, whatever version is here."""

    @app.middleware("http")
    async def in_a_task_group(request, call_next):
        try:
            return await call_next(request)
        except Exception as error:
            raise ExceptionGroup("unhandled errors in a TaskGroup (1 sub-exception)") from error

    def as_json(error):
        told = {"error": type(error).__name__, "detail": vars(error).get("detail", ""), "errors": str(error)}
        return JSONResponse(status_code=vars(error).get("status_code", 500), content=told)

    @app.middleware("http")
    async def log(request, call_next):
        return await call_next(request)

    @app.middleware("http")
    async def handle(request, call_next):
        try:
            return await call_next(request)
        except Exception as error:
            return as_json(error)

    app.add_exception_handler(HTTPException, lambda request, error: as_json(error))
    app.add_api_route("/txt2img", lambda: host.run(Txt2Img(steps=5, is_api=True), args) and {}, methods=["GET"])

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            return await client.get("/txt2img")

    return asyncio.run(ask())


def test_what_any_other_exception_says_is_lost_there(host, monkeypatch):
    """Else the next test shows nothing."""
    monkeypatch.setattr(host, "run", lambda *_: (_ for _ in ()).throw(ValueError("the reason")))
    told = answer_of(host, {}).json()
    assert told["error"] == "ExceptionGroup" and "the reason" not in told["errors"]


@pytest.mark.parametrize("early", [True, False])
def test_the_api_answers_with_the_message_whatever_the_version_of_anyio(webui, host, monkeypatch, early):
    """Newer ones wrap what passes a middleware in an ExceptionGroup, which says nothing."""
    if not early:
        monkeypatch.setattr(webui.script.request, "_check", lambda p, settings: None)
    answer = answer_of(host, LATER)
    told = answer.json()
    assert answer.status_code == 500 and told["error"] == "SettingsError"
    assert "end_sigma" in told["errors"] and told["detail"] == told["errors"]
