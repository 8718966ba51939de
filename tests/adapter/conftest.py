"""What several tests of the adapter share: the stand-in host, and a calibration of its checkpoint."""

from __future__ import annotations

import importlib

import pytest

from hpsampler.calibration.profile import Fitted, Profile, ProfileStore
from tests.adapter.host.faces import FACES
from tests.adapter.host.processing import Host

FIVE = Fitted(
    5, 7.0, (14.614641, 6.0, 2.5, 1.1, 0.4, 0.0), (0.0, 1.1, 0.8, 0.2, 0.1), "Auto", {"Auto": 0.2, "calibrated": 0.1},
    0.02, 1000,
)  # fmt: skip


@pytest.fixture(params=FACES)
def face(request):
    """Every test of the adapter runs in both kinds of hosts."""
    return FACES[request.param]()


@pytest.fixture
def host(webui):
    """Draws requests; nothing of ours may have been reported as an error at the end."""
    host = Host(webui.script.HPSamplerScript())
    yield host
    assert not host.printed


@pytest.fixture
def library(webui):
    """The folder of calibrations."""
    return ProfileStore(importlib.import_module("hpsampler.webui.folders").library().folder)


@pytest.fixture
def made(library):
    """A profile that fits the stand-in's checkpoint at 64x64."""
    return library.save(
        Profile("mine", "tiny", ("0000000000",), "sd1", 64, 64, 0.0291671, 14.614641, 24, 24, 1, fitted=(FIVE,))
    )
