"""``python -m demo.ui``: the extension's own accordion on a page of its own, drawing with the tiny model.

For those without a WebUI or a checkpoint: every sampler, schedule type and control, in seconds on a CPU.
"""

from __future__ import annotations

import argparse
import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gradio as gr
import torch
from PIL import Image

from hpsampler.fields import SettingsError
from hpsampler.panel import Known
from hpsampler.presets import PresetStore, built_in
from hpsampler.settings import ENABLED, Settings
from hpsampler.webui.accordion import PageContext, build
from tiny_model.model import TinyModel
from tiny_model.networks import WEIGHTS
from tiny_model.pictures import SIDE
from tiny_model.words import WORDS, unknown_words

from .session import FAMILY, MAX_PICTURES, MAX_SEED, SAMPLERS, SCHEDULES, Drawing, Reading, Request, draw

__all__ = ["main", "page"]

PREFIX = "demo_hpsampler"
ENLARGED = 4
PROMPT = "a large red star on a plain navy background in the middle"


PAGE = MappingProxyType(
    {"sampler": "#demo_sampler", "schedule": "#demo_schedule", "steps": "#demo_steps", "cfg": "#demo_cfg"}
)
"""Where the accordion's panel finds the page's own controls."""

ROOT = Path(__file__).parents[1]
SCRIPT, STYLE = ROOT / "javascript" / "hpsampler_panel.js", ROOT / "style.css"
"""What the WebUI loads of an extension by itself."""


def page(model: TinyModel, presets: Path) -> gr.Blocks:
    """The page, ready to launch; it draws with ``model`` and keeps presets in the folder ``presets``."""
    store = PresetStore(presets)

    def known() -> Known:
        return Known(FAMILY, model.noise, "the tiny model", presets=(*built_in(), *store.read()[0]))

    # fonts of the reader's own machine: the usual theme asks a CDN for them
    theme = gr.themes.Default(font="system-ui", font_mono="monospace")
    style = STYLE.read_text(encoding="utf-8")
    with gr.Blocks(title="HP Sampler", theme=theme, css=style, analytics_enabled=False) as blocks:
        gr.Markdown(
            "# HP Sampler\nA tiny Stable Diffusion, trained on drawn shapes. It knows these words: " + ", ".join(WORDS)
        )
        with gr.Row():
            with gr.Column():
                controls = _controls()
                accordion = build(PREFIX, _switched, PageContext(PAGE, known, store))
                accordion.connect(*controls[2:4])
            with gr.Column():
                button = gr.Button("Generate", variant="primary", elem_id="demo_generate")
                gallery = gr.Gallery(
                    label="Pictures", columns=2, object_fit="contain", height="auto", elem_id="demo_gallery"
                )
                text = gr.Textbox(label="Parameters", lines=3, show_copy_button=True, elem_id="demo_infotext")
                facts = gr.Textbox(label="What it took, and what is seen", lines=2, elem_id="demo_facts")

        # first, as gradio puts the progress bar in by its position
        def generate(progress: Any = gr.Progress(), *values: Any) -> tuple[Any, str, str]:  # noqa: B008
            try:
                drawing, unknown = _generate(model, values, progress)
            except SettingsError as error:
                raise gr.Error(str(error)) from None
            return _gallery(drawing), drawing.infotext, _facts(drawing, unknown)

        button.click(generate, [*controls, *accordion.inputs], [gallery, text, facts], api_name="generate")
        blocks.load(None, None, None, _js=f"() => {{{SCRIPT.read_text(encoding='utf-8')}}}")
    return blocks


def _controls() -> list[Any]:
    """Everything of a request but the accordion, in the order of ``_generate``'s values."""
    prompt = gr.Textbox(label="Prompt", value=PROMPT, elem_id="demo_prompt")
    negative = gr.Textbox(label="Negative prompt", elem_id="demo_negative")
    with gr.Row():
        sampler = gr.Dropdown(list(SAMPLERS), value=SAMPLERS[0], label="Sampling method", elem_id="demo_sampler")
        schedule = gr.Dropdown(list(SCHEDULES), value=SCHEDULES[0], label="Schedule type", elem_id="demo_schedule")
    with gr.Row():
        steps = gr.Slider(1, 50, value=5, step=1, label="Sampling steps", elem_id="demo_steps")
        cfg_scale = gr.Slider(1, 15, value=7, step=0.5, label="CFG scale", elem_id="demo_cfg")
    with gr.Row():
        pictures = gr.Slider(1, MAX_PICTURES, value=4, step=1, label="Pictures", elem_id="demo_pictures")
        seed = gr.Number(
            value=-1, precision=0, label="Seed", info="-1: a random one, named with the picture", elem_id="demo_seed"
        )
    return [prompt, negative, sampler, schedule, steps, cfg_scale, pictures, seed]


@contextmanager
def _switched(value: bool, label: str, elem_id: str) -> Iterator[Any]:
    """The WebUI's ``InputAccordion`` in gradio alone: the switch is the first control inside."""
    with gr.Accordion(label, open=False, elem_id=elem_id):
        yield gr.Checkbox(value, label=ENABLED.label, info=ENABLED.help, elem_id=f"{elem_id}_{ENABLED.name}")


def _generate(model: TinyModel, values: Sequence[Any], progress: Any) -> tuple[Drawing, list[str]]:
    """Draw from the page's values; also the words of the prompts that the model does not know."""
    prompt, negative, sampler, schedule, steps, cfg_scale, pictures, seed, *accordion = values
    request = Request(
        prompt=prompt,
        negative=negative,
        seed=random.randrange(MAX_SEED - MAX_PICTURES) if seed == -1 else seed,
        sampler=sampler,
        schedule=schedule,
        steps=steps,
        cfg_scale=cfg_scale,
        pictures=pictures,
        settings=Settings.of(accordion),
    )
    drawing = draw(model, request, lambda made, total: progress((made, total), desc="UNet calls", unit="calls"))
    return drawing, unknown_words(f"{prompt} {negative}")


def _gallery(drawing: Drawing) -> list[tuple[Image.Image, str]]:
    return [
        (_image(picture), f"seed {seed}: {' '.join(reading.read.values())}{_verdict(reading)}")
        for picture, seed, reading in zip(drawing.pictures, drawing.seeds, drawing.readings)
    ]


def _image(picture: torch.Tensor) -> Image.Image:
    pixels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    side = ENLARGED * SIDE
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def _verdict(reading: Reading) -> str:
    """Right or wrong, where the prompt says what should be seen."""
    wrong = [name for name, right in reading.right.items() if not right]
    if not reading.asked:
        return ""
    return f" ({' and '.join(wrong)} wrong)" if wrong else " (right)"


def _facts(drawing: Drawing, unknown: Sequence[str]) -> str:
    count = len(drawing.pictures)
    lines = [
        f"{drawing.calls} NFE (UNet calls a picture), {drawing.seconds:.2f} s for {count} picture{'s' * (count > 1)}"
    ]
    for name in drawing.readings[0].asked:
        right = sum(reading.right[name] for reading in drawing.readings)
        lines.append(f"The classifier reads the {name} right in {right} of {count}")
    if unknown:
        lines.append(f"The model does not know: {', '.join(dict.fromkeys(unknown))}")
    lines += [f"HP Sampler: {note}" for note in drawing.notes]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until it is interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.ui",
        description="The extension's controls on a page of its own.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--port", type=_port, default=7870, help="port of the page on this machine")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the tiny model's weights")
    parser.add_argument("--presets", type=Path, default=Path("out/presets"), help="folder where presets are kept")
    options = parser.parse_args(argv)
    if not _is_free(options.port):
        parser.error(f"--port {options.port}: another program uses it; choose another one")
    blocks = page(TinyModel.load(options.weights), options.presets).queue()
    print(f"http://127.0.0.1:{options.port}", flush=True)
    blocks.launch(server_name="127.0.0.1", server_port=options.port, quiet=True, show_api=False)


def _port(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 65535, got {text}")
    return number


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            # as a server does, which may follow one that has just ended
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    main()
