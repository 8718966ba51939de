"""Two copies of the extension in the host's folder, such as a clone and a backup: the second stays out."""

from __future__ import annotations

import runpy
import sys
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT

DOOR = ROOT / "scripts" / "hpsampler_webui.py"


@pytest.fixture
def door(webui):
    """Runs the script file beside others that were loaded; our package is as before afterwards."""

    def run(*loaded):
        webui.scripts.scripts_data[:] = [SimpleNamespace(path=path) for path in loaded]
        modules = dict(sys.modules)
        try:
            return runpy.run_path(str(DOOR))
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == "hpsampler"]:
                del sys.modules[name]
            sys.modules.update(modules)

    return run


def test_the_second_says_so_and_stays_out(webui, door, capsys):
    first = "/extensions/hp-sampler/scripts/hpsampler_webui.py"
    callbacks = list(webui.script_callbacks.callbacks_cfg_denoiser)
    samplers = dict(webui.sd_samplers.all_samplers_map)
    found = door("/extensions/other/scripts/other.py", first)
    assert "HPSamplerScript" not in found
    assert webui.sd_samplers.all_samplers_map == samplers, "the first one's samplers stay"
    assert webui.script_callbacks.callbacks_cfg_denoiser == callbacks
    said = capsys.readouterr().out
    assert "two copies" in said and first in said and str(DOOR) in said


@pytest.mark.parametrize("loaded", [(), ("/extensions/other/scripts/other.py",), (str(DOOR),)])
def test_one_alone_is_loaded_and_loaded_again(door, capsys, loaded):
    assert "HPSamplerScript" in door(*loaded)
    assert capsys.readouterr().out == ""
