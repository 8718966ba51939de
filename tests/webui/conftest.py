"""Fixtures for tests that need a real WebUI, A1111 or a fork of it, in the folder that HPS_WEBUI names."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.webui.harness import DEFAULT_CHECKPOINT, PATIENCE, ROOT, WebUI, WebUIError
from tests.webui.hosts import Host
from tiny_model import checkpoint as trained

PROBE = Path(__file__).with_name("probe")
MAKER = Path(__file__).with_name("tiny_checkpoints.py")
LEAVE_MS = 30_000
"""For what a page that is closed has asked last; a test that holds an answer back has no more to wait for."""
MADE_OF = (MAKER, Path(trained.__file__))


def _folder(variable: str) -> Path | None:
    """The WebUI's folder that an environment variable names."""
    name = os.environ.get(variable)
    if not name:
        return None
    folder = Path(name).resolve()
    if not (folder / "webui.py").is_file() or not (folder / "venv" / "bin" / "python").exists():
        pytest.fail(f"{variable}={name} holds no webui.py or no venv/bin/python")
    return folder


@pytest.fixture(scope="session")
def host() -> Host:
    """The WebUI under test; without it the test is skipped."""
    folder = _folder("HPS_WEBUI")
    if folder is None:
        pytest.skip("set HPS_WEBUI to a WebUI's folder with a venv/ inside to run this")
    return Host(folder)


@pytest.fixture(scope="session")
def reference() -> Host | None:
    """A1111 in the folder that HPS_WEBUI_REFERENCE names: another host is compared with it."""
    folder = _folder("HPS_WEBUI_REFERENCE")
    return folder and Host(folder)


@pytest.fixture(scope="session")
def checkpoints(
    host: Host, reference: Host | None, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of hps-tiny-sd15, hps-tiny-sd15-v and hps-tiny-sdxl; kept in pytest's cache until their script changes.

    They are written with A1111's own classes, of the reference if there is one.
    """
    layouts = reference or host
    if not layouts.has_layouts:
        pytest.skip(
            "this WebUI holds no code to write the tiny checkpoints: set HPS_WEBUI_REFERENCE to an A1111 folder"
        )
    cache = getattr(pytestconfig, "cache", None)
    out = Path(cache.mkdir("hps-tiny")) if cache else tmp_path_factory.mktemp("hps-tiny")
    # the configurations name the folder they lie in, and the weights follow the WebUI's torch
    made_of = b"".join(path.read_bytes() for path in MADE_OF)
    key = hashlib.sha256(made_of + f"{out}\0{layouts.folder}".encode()).hexdigest()
    stamp = out / "key"
    if not stamp.exists() or stamp.read_text() != key:
        shutil.rmtree(out)
        out.mkdir()
        command = [layouts.python, "-m", f"tests.webui.{MAKER.stem}", "--webui", layouts.folder, "--out", out]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise WebUIError(f"{MAKER.name} failed:\n{done.stderr[-4000:]}")
        trained.main(["--webui", str(layouts.folder), "--out", str(out)])
        stamp.write_text(key)
    return out


@pytest.fixture(scope="session")
def trained_checkpoint(checkpoints: Path) -> str:
    """Name of the trained tiny model's checkpoint, which lies beside the others."""
    return trained.NAME


def _server_maker(host: Host, checkpoints: Path, base: Path) -> Iterator[Callable[..., WebUI]]:
    """Function that starts a WebUI with WebUI's keyword arguments; all it started end with the generator."""
    started: list[WebUI] = []
    numbers = itertools.count()

    def serve(**options) -> WebUI:
        started.append(WebUI(host, base / f"data{next(numbers)}", checkpoints, **options))
        return started[-1]

    try:
        yield serve
    finally:
        for server in started:
            server.stop()


@pytest.fixture(scope="module")
def serve(host, checkpoints, tmp_path_factory) -> Iterator[Callable[..., WebUI]]:
    """Start a server of the module's own: ``serve(extension=False)``, ``serve(checkpoint="hps-tiny-sdxl")``,
    ``serve(files={"extensions/probe": folder_or_text})``, ``serve(settings={...}, flags=[...])``."""
    yield from _server_maker(host, checkpoints, tmp_path_factory.mktemp("webui"))


@pytest.fixture(scope="session")
def _shared_server(host, checkpoints, tmp_path_factory) -> Iterator[WebUI]:
    for start in _server_maker(host, checkpoints, tmp_path_factory.mktemp("webui")):
        yield start(files={"extensions/hps-probe": PROBE}, settings={"hires_fix_show_sampler": True})


@pytest.fixture
def server(_shared_server: WebUI) -> Iterator[WebUI]:
    """The session's server, with the extension, on hps-tiny-sd15; whatever a test sets or loads is set back."""
    before = _shared_server.get("/sdapi/v1/options")
    yield _shared_server
    after = _shared_server.get("/sdapi/v1/options")
    if DEFAULT_CHECKPOINT + ".safetensors" not in after["sd_model_checkpoint"]:
        _shared_server.set_checkpoint(DEFAULT_CHECKPOINT)
    # the host itself does not restore an override of a setting that its config.json lacks
    ours_to_restore = before.keys() - {"sd_model_checkpoint", "sd_checkpoint_hash"}
    changed = {key: before[key] for key in ours_to_restore if after.get(key) != before[key]}
    if changed:
        _shared_server.post("/sdapi/v1/options", changed)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A busy machine may take far longer than the limit of the other tests; one that hangs still ends."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(2 * PATIENCE))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show the end of the WebUI's log under a test that failed."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, WebUI):
                report.sections.append((f"log of {name}", value.log_tail()))
    return report


@pytest.fixture
def page(browser):
    """A fresh browser page; ``harness.open_ui(page, server)`` brings it to the WebUI."""
    api = pytest.importorskip("playwright.sync_api")
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(1000 * PATIENCE)
    yield page
    # a queued event of gradio 3 whose page leaves it unanswered keeps the server from ending, so from Reload UI too
    with suppress(api.TimeoutError):
        page.wait_for_function("() => !window.hpsUnderWay", timeout=LEAVE_MS)
    page.close()
