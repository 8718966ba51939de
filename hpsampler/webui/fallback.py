"""The accordion where the extension cannot be used: it says so, and the WebUI starts as if it were not there."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr
from modules import scripts

__all__ = ["script_that_says", "sentence_alone"]

TITLE = "HP Sampler"


def sentence_alone(sentence: str, prefix: str) -> list[Any]:
    """An accordion with one sentence and no control; the script's controls, of which there are none."""
    with gr.Accordion(TITLE, open=True, elem_id=prefix):
        gr.HTML(f'<p role="alert">{escape(sentence)}</p>')
    return []


def script_that_says(sentence: str) -> type[Any]:
    """A script for the host that has this accordion and does nothing."""

    class HPSamplerScript(scripts.Script):
        def title(self) -> str:
            return TITLE

        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def ui(self, is_img2img: bool) -> list[Any]:
            return sentence_alone(sentence, f"{'img2img' if is_img2img else 'txt2img'}_hpsampler")

    return HPSamplerScript
