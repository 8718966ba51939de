"""A real A1111 v1.10.1 on the CPU, with this extension and tiny checkpoints.

``HPS_WEBUI`` names the WebUI's folder (its ``venv/`` inside). Nothing is written there: each server gets a data
folder of its own, with a copy of this extension as a clone would have it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
START_SECONDS = 180
FLAGS = (
    "--skip-torch-cuda-test --skip-version-check --no-half --precision full --use-cpu all --api "
    "--no-download-sd-model --do-not-download-clip --disable-safe-unpickle --no-hashing"
).split()
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # image hashes depend on the thread count
    "OMP_WAIT_POLICY": "PASSIVE",
    "SD_WEBUI_RESTARTING": "1",  # keeps it from opening a browser
    "GRADIO_ANALYTICS_ENABLED": "False",
}
CONFIG = {
    "samples_save": False,
    "grid_save": False,
    "sd_checkpoints_limit": 1,
    "show_progress_every_n_steps": 1,
    "hires_fix_show_sampler": True,
    "save_write_log_csv": False,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("HPS_WEBUI"):
        reason = "needs a WebUI: set HPS_WEBUI to the folder of an A1111 v1.10.1 that has its venv inside"
        for item in items:
            if HERE in Path(item.fspath).parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def webui_folder() -> Path:
    return Path(os.environ["HPS_WEBUI"]).resolve()


@pytest.fixture(scope="session")
def checkpoints(webui_folder: Path, pytestconfig: pytest.Config) -> Path:
    """The folder of tiny checkpoints, written once per version of the script that writes them."""
    script = HERE / "tiny_checkpoints.py"
    key = hashlib.sha256(script.read_bytes()).hexdigest()[:16]
    folder = Path(pytestconfig.cache.mkdir("hps-checkpoints")) / key
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        python = webui_folder / "venv" / "bin" / "python"
        subprocess.run([python, script, webui_folder, folder], check=True, cwd=webui_folder, capture_output=True)
        (folder / "done").touch()
    return folder


class WebUI:
    """A running server and its API."""

    def __init__(self, folder: Path, data: Path, checkpoints: Path, checkpoint: str, extensions: list[Path]) -> None:
        self.data = data
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        for extension in extensions:
            copy_extension(extension, data / "extensions" / extension.name)
        # SDXL's tiny second text encoder has an architecture of its own, which open_clip must be told of
        telling = data / "extensions" / "hps-test-architecture" / "scripts" / "architecture.py"
        telling.parent.mkdir(parents=True)
        telling.write_text(f"import open_clip\nopen_clip.add_model_config({str(checkpoints / 'open_clip')!r})\n")
        (data / "config.json").write_text(json.dumps(CONFIG))
        self.log_file = data / "webui.log"
        command = [
            folder / "venv" / "bin" / "python", "webui.py", *FLAGS, "--port", str(self.port), "--data-dir", data,
            "--ckpt-dir", checkpoints, "--ckpt", checkpoints / f"{checkpoint}.safetensors",
        ]  # fmt: skip
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **ENVIRONMENT},
            )  # fmt: skip
        # a request before the API is there kills the server: watch the log instead
        self.wait_for_log("Startup time", 1, START_SECONDS)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for_log(self, text: str, times: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.log().count(text) < times:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the WebUI did not say {text!r}; its log ends:\n{self.log()[-3000:]}")
            time.sleep(0.2)

    def get(self, path: str) -> Any:
        return httpx.get(self.url + path, timeout=60).raise_for_status().json()

    def post(self, path: str, **payload: Any) -> tuple[int, Any]:
        answer = httpx.post(self.url + path, json=payload, timeout=300)
        return answer.status_code, answer.json()

    def txt2img(self, **payload: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        return self._draw("/sdapi/v1/txt2img", payload)

    def img2img(self, **payload: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        return self._draw("/sdapi/v1/img2img", payload)

    def _draw(self, path: str, payload: dict[str, Any]) -> tuple[list[np.ndarray], dict[str, Any]]:
        base = {"prompt": "a red square", "seed": 1, "width": 64, "height": 64, "cfg_scale": 7, "steps": 5}
        status, answer = self.post(path, **{**base, **payload})
        assert status == 200, answer
        return [decode(image) for image in answer["images"]], json.loads(answer["info"])

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def copy_extension(source: Path, target: Path) -> None:
    """What a clone of ``source`` would hold, with the changes not committed yet."""
    if not (source / ".git").exists():
        shutil.copytree(source, target)
        return
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=source, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def decode(image: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2] or image))).convert("RGB"))


def encode(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="session")
def start_webui(webui_folder, checkpoints, tmp_path_factory):
    """``start_webui(checkpoint="hps-tiny-sd15", extensions=[...])``: one more server; all are stopped at the end."""
    running: list[WebUI] = []

    def start(checkpoint: str = "hps-tiny-sd15", extensions: tuple[Path, ...] = (ROOT,)) -> WebUI:
        data = tmp_path_factory.mktemp("webui")
        running.append(WebUI(webui_folder, data, checkpoints, checkpoint, list(extensions)))
        return running[-1]

    yield start
    for each in running:
        each.stop()


@pytest.fixture(scope="session")
def webui_probe() -> Path:
    """An extension of the tests that makes things fail on request, see there."""
    return HERE / "probe"


@pytest.fixture(scope="session")
def server(start_webui, webui_probe) -> WebUI:
    """The server with this extension and the tiny SD1.5 checkpoint."""
    return start_webui(extensions=(ROOT, webui_probe))


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, server):
    """The WebUI's page, loaded."""
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    # fonts and scripts of a CDN, which the page can do without
    page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
    page.goto(server.url)
    page.wait_for_selector("#txt2img_generate", timeout=60_000)
    page.wait_for_timeout(1500)
    yield page
    page.close()
