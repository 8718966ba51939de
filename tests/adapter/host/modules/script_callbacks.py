"""Callbacks; an exception in one is printed, not raised."""

import dataclasses
import inspect
import traceback
from typing import Any

callbacks_cfg_denoiser = []
callbacks_cfg_denoised = []
callbacks_cfg_after_cfg = []
callbacks_script_unloaded = []
callbacks_ui_tabs = []
callbacks_app_started = []
callbacks_before_ui = []
callbacks_ui_settings = []
callbacks_infotext_pasted = []
reported = []
added = []
"""File and depth of the call stack of every callback that was added."""


@dataclasses.dataclass
class CFGDenoiserParams:
    x: Any
    sigma: Any
    denoiser: Any


@dataclasses.dataclass
class CFGDenoisedParams:
    x: Any
    inner_model: Any


@dataclasses.dataclass
class AfterCFGCallbackParams:
    x: Any


def _call(callbacks, *args):
    for callback in callbacks:
        try:
            callback(*args)
        except Exception:
            reported.append(traceback.format_exc())


def cfg_denoiser_callback(params):
    _call(callbacks_cfg_denoiser, params)


def cfg_denoised_callback(params):
    _call(callbacks_cfg_denoised, params)


def cfg_after_cfg_callback(params):
    _call(callbacks_cfg_after_cfg, params)


def script_unloaded_callback():
    _call(callbacks_script_unloaded)


def clear_callbacks():
    for each in (
        callbacks_cfg_denoiser, callbacks_cfg_denoised, callbacks_cfg_after_cfg, callbacks_script_unloaded,
        callbacks_ui_tabs, callbacks_app_started, callbacks_before_ui, callbacks_ui_settings,
        callbacks_infotext_pasted,
    ):  # fmt: skip
        each.clear()


def _add(callbacks, callback):
    """As the host does, which looks through the whole call stack for the file that a callback belongs to."""
    stack = [frame for frame in inspect.stack() if frame.filename != __file__]
    added.append((stack[0].filename, len(stack)))
    callbacks.append(callback)


def infotext_pasted_callback(infotext, params):
    _call(callbacks_infotext_pasted, infotext, params)


def on_infotext_pasted(callback, *, name=None):
    _add(callbacks_infotext_pasted, callback)


def on_cfg_denoiser(callback, *, name=None):
    _add(callbacks_cfg_denoiser, callback)


def on_cfg_denoised(callback, *, name=None):
    _add(callbacks_cfg_denoised, callback)


def on_cfg_after_cfg(callback, *, name=None):
    _add(callbacks_cfg_after_cfg, callback)


def on_script_unloaded(callback, *, name=None):
    _add(callbacks_script_unloaded, callback)


def on_ui_tabs(callback, *, name=None):
    _add(callbacks_ui_tabs, callback)


def on_app_started(callback, *, name=None):
    _add(callbacks_app_started, callback)


def before_ui_callback():
    _call(callbacks_before_ui)


def ui_settings_callback():
    _call(callbacks_ui_settings)


def on_before_ui(callback, *, name=None):
    _add(callbacks_before_ui, callback)


def on_ui_settings(callback, *, name=None):
    _add(callbacks_ui_settings, callback)
