"""Callbacks; an exception in one is printed, not raised."""

import dataclasses
import traceback
from typing import Any

callbacks_cfg_denoiser = []
callbacks_cfg_denoised = []
callbacks_script_unloaded = []
callbacks_ui_tabs = []
callbacks_app_started = []
callbacks_before_ui = []
callbacks_ui_settings = []
reported = []


@dataclasses.dataclass
class CFGDenoiserParams:
    x: Any
    sigma: Any
    denoiser: Any


@dataclasses.dataclass
class CFGDenoisedParams:
    x: Any
    inner_model: Any


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


def script_unloaded_callback():
    _call(callbacks_script_unloaded)


def clear_callbacks():
    for each in (
        callbacks_cfg_denoiser, callbacks_cfg_denoised, callbacks_script_unloaded, callbacks_ui_tabs,
        callbacks_app_started, callbacks_before_ui, callbacks_ui_settings,
    ):  # fmt: skip
        each.clear()


def on_cfg_denoiser(callback, *, name=None):
    callbacks_cfg_denoiser.append(callback)


def on_cfg_denoised(callback, *, name=None):
    callbacks_cfg_denoised.append(callback)


def on_script_unloaded(callback, *, name=None):
    callbacks_script_unloaded.append(callback)


def on_ui_tabs(callback, *, name=None):
    callbacks_ui_tabs.append(callback)


def on_app_started(callback, *, name=None):
    callbacks_app_started.append(callback)


def before_ui_callback():
    _call(callbacks_before_ui)


def ui_settings_callback():
    _call(callbacks_ui_settings)


def on_before_ui(callback, *, name=None):
    callbacks_before_ui.append(callback)


def on_ui_settings(callback, *, name=None):
    callbacks_ui_settings.append(callback)
