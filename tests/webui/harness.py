"""Start a real WebUI without touching its folder, talk to it, and end it."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.webp import LOSSLESS
from tests.webui.hosts import Host, extra_extensions

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_CHECKPOINT = "hps-tiny-sd15"
STARTED, LOADED, NOT_LOADED = "Startup time:", " loaded in ", "Stable diffusion model failed to load"
PATIENCE = 900.0
"""Seconds after which a wait gives up: far more than any takes, as the machine may be busy with something else."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    # the order of float additions, and with it the last bits of an image, depends on the number of threads
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "SD_WEBUI_RESTARTING": "1",  # opens no browser
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # the user's folder stays as it is
}

SETTINGS = {
    "auto_launch_browser": "Disable",
    "show_progress_type": "Approx cheap",  # the default preview wants a file from the network for SDXL
    "CLIP_stop_at_last_layers": 1,  # a fork's default is 2
}

TINY = {"prompt": "a lighthouse on a cliff", "seed": 1, "steps": 6, "width": 64, "height": 64}
"""What a request gets where the test does not say otherwise."""

# a proxy from the environment must not see requests to this machine
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class WebUIError(AssertionError):
    """The WebUI did not do what the harness asked; carries the end of its log."""


def copy_extension(target: Path) -> None:
    """The working tree as a commit of everything would hold it: tracked files, and untracked ones not ignored."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():  # a tracked file may be deleted
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def decode(image: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"))


def encode(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class WebUI:
    """A running WebUI with a data folder of its own.

    ``files`` maps paths inside the data folder to what shall lie there: a ``Path`` (file or folder to copy) or text.
    A host that loads its model with the first picture draws one, unless it shall not be ``warm``.
    """

    def __init__(
        self,
        host: Host,
        data: Path,
        checkpoints: Path,
        *,
        checkpoint: str = DEFAULT_CHECKPOINT,
        extension: bool = True,
        files: dict[str, Path | str] | None = None,
        settings: dict[str, Any] | None = None,
        flags: list[str] | None = None,
        api: bool = True,
        warm: bool = True,
    ) -> None:
        self.host = host
        self.data = data
        self._log_path = data / "webui.log"
        extensions = data / "extensions"
        extensions.mkdir(parents=True)
        chosen = {"sd_model_checkpoint": f"{checkpoint}.safetensors", **host.settings}
        (data / "config.json").write_text(json.dumps({**SETTINGS, **chosen, **(settings or {})}))
        if host.defaults:
            (data / "ui-config.json").write_text(json.dumps(host.defaults))
        if extension:
            copy_extension(extensions / "hp-sampler")
        if host.has_layouts:
            # open_clip knows architectures by name only: this adds the tiny SDXL's without writing to site-packages
            helper = extensions / "hps-tiny-architecture" / "scripts"
            helper.mkdir(parents=True)
            helper.joinpath("hps_tiny_architecture.py").write_text(
                f"import open_clip\n\nopen_clip.add_model_config({str(checkpoints / 'hps-tiny-g.json')!r})\n"
            )
        for extra in extra_extensions():
            shutil.copytree(extra, extensions / extra.name)
        for name, source in (files or {}).items():
            target = data / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, str):
                target.write_text(source)
            elif source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target)

        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        env = {k: v for k, v in os.environ.items() if k not in ("COMMANDLINE_ARGS", "PYTHONPATH", "PYTHONHOME")}
        env.update(ENVIRONMENT)
        env.update({name: str(data / "cache") for name in ("HF_HOME", "MPLCONFIGDIR", "GRADIO_TEMP_DIR")})
        command = [*host.command(data, checkpoints, checkpoint, port), *(["--api"] if api else []), *(flags or [])]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=host.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self.wait_for_log(STARTED)
            if not host.loads_late:
                self.wait_for_log(LOADED)
            elif warm:
                self.txt2img(steps=1)
        except BaseException:
            self.stop()
            raise

    def log(self) -> str:
        """All that it printed so far."""
        return self._log_path.read_text(errors="replace")

    def log_tail(self, lines: int = 60) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def wait_for_log(self, text: str, start: int = 0, limit: float = PATIENCE) -> None:
        """Wait until ``text`` stands in the log behind ``start``.

        The log, because an HTTP request that comes before its API is ready ends the WebUI.
        """
        deadline = time.monotonic() + limit
        while text not in (seen := self.log()[start:]):
            if self._process.poll() is not None:
                raise WebUIError(f"the WebUI ended with {self._process.returncode}:\n{self.log_tail()}")
            if text == LOADED and NOT_LOADED in seen:
                raise WebUIError(f"the WebUI could not load the checkpoint:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise WebUIError(f"no {text!r} in the WebUI's log after {limit:.0f} s:\n{self.log_tail()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it with all its children."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, sign)
                self._process.wait(30)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue

    def _request(self, path: str, data: bytes | None) -> tuple[int, Any]:
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with _opener.open(request, timeout=PATIENCE) as response:
                status, body = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        except OSError as error:
            raise WebUIError(f"{path}: {error}\n{self.log_tail()}") from error
        try:
            return status, json.loads(body)
        except ValueError:
            return status, body.decode(errors="replace")

    def get(self, path: str) -> Any:
        """The answer's JSON; anything but 200 is an error."""
        return self._must(path, None)

    def post(self, path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON."""
        return self._request(path, json.dumps(payload).encode())

    def _must(self, path: str, payload: dict[str, Any] | None) -> Any:
        status, body = self._request(path, None) if payload is None else self.post(path, payload)
        if status != 200:
            raise WebUIError(f"{path} answered {status}: {body}\n{self.log_tail()}")
        return body

    def _generate(self, path: str, payload: dict[str, Any]) -> tuple[list[np.ndarray], dict[str, Any]]:
        body = self._must(path, {**TINY, **self.host.payload, **payload})
        return [decode(image) for image in body["images"]], json.loads(body["info"])

    def txt2img(self, **payload: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """The images, and the info with its ``infotexts``."""
        return self._generate("/sdapi/v1/txt2img", payload)

    def img2img(self, image: np.ndarray, **payload: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        return self._generate("/sdapi/v1/img2img", {"init_images": [encode(image)], **payload})

    def xyz_args(self, *axes: tuple[str, str | list[str]], csv: bool, **chosen: Any) -> list[Any]:
        """An X/Y/Z plot's arguments: the axes' labels with their values, as text or chosen in a menu, and what else.

        Forks have more arguments than A1111, so they are named, as its ``run`` names them, and 0 where nothing is said.
        """
        scripts = self.get("/sdapi/v1/script-info")
        plot = next(each for each in scripts if each["name"] == "x/y/z plot" and not each["is_img2img"])
        labels = plot["args"][0]["choices"]
        named = {"csv_mode": csv, **chosen}
        for letter, (label, values) in zip("xyz", [*axes, *[("Nothing", "")] * (3 - len(axes))]):
            kind = "values" if isinstance(values, str) else "values_dropdown"
            named |= {f"{letter}_values": "", f"{letter}_values_dropdown": []}
            named |= {f"{letter}_type": labels.index(label), f"{letter}_{kind}": values}
        (names,) = re.findall(r"def run\(self, p, ([^)]*)\)", self.host.text("scripts/xyz_grid.py"))
        return [named.get(name, 0) for name in re.findall(r"\w+", names)]

    def set_checkpoint(self, name: str) -> None:
        """Load a checkpoint; returns when it is loaded."""
        start = len(self.log())
        self._must("/sdapi/v1/options", {"sd_model_checkpoint": f"{name}.safetensors"})
        if self.host.loads_late:
            self.txt2img(steps=1)
        if NOT_LOADED in self.log()[start:] or name not in self.get("/sdapi/v1/options")["sd_model_checkpoint"]:
            raise WebUIError(f"{name} was not loaded:\n{self.log_tail()}")

    def restart_ui(self) -> None:
        """Reload UI: press the button's function through gradio's own endpoint, and wait until the page is back."""
        config = self.get("/config")
        (button,) = (c["id"] for c in config["components"] if c["props"].get("elem_id") == "settings_restart_gradio")
        # a target is an id, or in later gradio an id with its event
        wanted = (button, [button, "click"])
        index = next(i for i, d in enumerate(config["dependencies"]) if any(t in wanted for t in d["targets"]))
        start = len(self.log())
        self._must("/run/predict", {"fn_index": index, "data": [], "session_hash": "harness"})
        self.wait_for_log(STARTED, start)


COUNT_REQUESTS = r"""(() => {
    if ("hpsUnderWay" in window) return;
    window.hpsUnderWay = 0;
    const counted = (promise) => {
        window.hpsUnderWay++;
        return promise.finally(() => window.hpsUnderWay--);
    };
    // gradio 4 answers queued events in one stream, which it sometimes leaves open when all are answered
    const waiting = new Map();
    const early = new Set();
    const asked = (id) => counted(new Promise((done) => (early.delete(id) ? done() : waiting.set(id, done))));
    const told = ({msg, event_id: id}) => {
        if (msg !== "process_completed") return;
        // what reads the page's own copy of this message may come after this
        if (waiting.has(id)) setTimeout(waiting.get(id), 0);
        else early.add(id);
        waiting.delete(id);
    };
    const followed = async (reader, decoder = new TextDecoder(), rest = "") => {
        try {
            for (let part; !(part = await reader.read()).done;) {
                const messages = (rest + decoder.decode(part.value, {stream: true})).split("\n\n");
                rest = messages.pop();
                messages.forEach((message) => told(JSON.parse(message.slice(message.indexOf("{")))));
            }
        } catch (aborted) {}
        waiting.forEach((done) => done());
        waiting.clear();
    };
    const streamed = (answer) => {
        if (answer.url.endsWith("/queue/join")) {
            return answer.clone().text().then((text) => {
                const id = text.match(/"event_id": *"(\w+)"/);
                if (id) asked(id[1]);
                return answer;
            });
        }
        if (!answer.body || !answer.url.includes("/queue/data")) return answer;
        const [ours, theirs] = answer.body.tee();
        followed(ours.getReader());
        return new Response(theirs, {status: answer.status, headers: answer.headers});
    };
    const [fetched, parsed, Socket] = [window.fetch, Response.prototype.json, window.WebSocket];
    window.fetch = (...args) => counted(fetched(...args).then(streamed));
    Response.prototype.json = function () { return counted(parsed.call(this)); };
    // gradio 3 opens one for each event that it queues
    window.WebSocket = class extends Socket {
        constructor(...args) {
            super(...args);
            window.hpsUnderWay++;
            this.addEventListener("close", () => window.hpsUnderWay--);
        }
    };
})()"""


def open_ui(page: Any, server: WebUI, theme: str = "") -> None:
    """Load the WebUI's page and wait until its scripts, ours among them, have set it up, and nothing is under way."""
    page.add_init_script(COUNT_REQUESTS)
    page.goto(server.url + (f"/?__theme={theme}" if theme else ""), wait_until="domcontentloaded")
    page.locator("#txt2img_generate").wait_for(state="visible")
    # the host's own mark that all that was given to onUiLoaded has run
    page.wait_for_function(
        """() => typeof executedOnLoaded !== "undefined" && executedOnLoaded && Object.keys(opts).length
            && [...document.querySelectorAll(".hpsampler-panel")].every((panel) => panel.settled)"""
    )
    answered(page)


def answered(page: Any) -> None:
    """Wait until every event of gradio's that the page has sent is answered, and those that follow from it."""
    page.wait_for_function("() => window.hpsUnderWay === 0")


def paste(page: Any, parameters: str) -> None:
    """Paste a picture's parameters from the prompt; what they set arrives later, in one answer."""
    answered(page)  # an answer that comes meanwhile may put the old prompt back
    page.fill("#txt2img_prompt textarea", parameters)
    page.click("#txt2img_tools #paste")
    page.wait_for_function(
        "text => document.querySelector('#txt2img_prompt textarea').value !== text", arg=parameters
    )  # fmt: skip
    answered(page)


def save_screenshot(part: Any, name: str) -> None:
    """Write a picture of a part of the page for the documents, where HPS_SCREENSHOTS names the folder for it.

    Nothing is written otherwise: a run of the tests changes no file of the repository.
    """
    folder = os.environ.get("HPS_SCREENSHOTS")
    if folder:
        with Image.open(io.BytesIO(part.screenshot())) as picture:
            picture.convert("RGB").save(Path(folder) / name, **LOSSLESS)
