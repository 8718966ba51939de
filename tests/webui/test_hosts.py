"""What only shows beside another host, without the API, or when the extension is switched off."""

from __future__ import annotations

import numpy as np
import pytest

from hpsampler.guidance import effective_guidance
from tests.accordion.page import AccordionPage
from tests.webui.conftest import _server_maker
from tests.webui.harness import open_ui
from tests.webui.test_accordion import TXT2IMG
from tests.webui.test_api import PLAIN, SAMPLERS, hp, looks_like_a_picture
from tiny_model.pictures import SIDE, captioned

PROMPT = captioned(1)[0].caption()
HIRES = {"enable_hr": True, "denoising_strength": 0.6}
FREEU = {"freeu": "On", "freeu_first": 1}
SECOND = {**HIRES, "hr_second_pass_steps": 5, "hr_cfg": 5, "width": 64, "height": 64}
OWN = "the host's own"
REQUESTS = {
    OWN: PLAIN,
    **{name: hp(sampler_name=name, steps=6) for name in SAMPLERS},
    "Free-U": hp(FREEU, steps=6),
    "DPM++ 2M on HP": {"sampler_name": "DPM++ 2M", "scheduler": "HP", "steps": 8},
    "Euler, Free-U": {**PLAIN, **hp(FREEU), "sampler_name": "Euler", "scheduler": "Karras"},
    "a paper's preset": hp({"recipe": "SD1.5 6 steps"}, steps=6),
    "second pass": hp(**SECOND, steps=5),
    "batch": hp(steps=6, batch_size=2),
}


@pytest.fixture(scope="module")
def painted(checkpoints, trained_checkpoint, tmp_path_factory):
    """Pictures of every request on a host."""

    def paint(host, side, upscaler):
        for start in _server_maker(host, checkpoints, tmp_path_factory.mktemp("painted")):
            server = start(checkpoint=trained_checkpoint, settings={"randn_source": "CPU"})
            # A1111 does not know a scale of the second pass's own and leaves it out
            size = {"prompt": PROMPT, "width": side, "height": side, "cfg_scale": 5}
            size.update(hr_scale=side / 64, hr_upscaler=upscaler)
            drawn = {name: server.txt2img(**{**size, **payload})[0] for name, payload in REQUESTS.items()}
            drawn["batch"] = drawn["batch"][-2:]  # some put a grid before them
            (start_from,) = drawn["HP Auto"]
            drawn["img2img"] = server.img2img(start_from, **{**size, **hp(steps=6, denoising_strength=0.6)})[0]
        return drawn

    return paint


def test_two_hosts_draw_the_same_pictures(host, reference, painted):
    if reference is None or reference == host:
        pytest.skip("set HPS_WEBUI_REFERENCE to another WebUI's folder to compare with it")
    # above the size that the model was trained for, rounding grows to several of 255 in each host's own samplers too
    step = max(host.size_step, reference.size_step)
    side = -(-SIDE // step) * step
    ours, theirs = (painted(each, side, host.upscaler) for each in (host, reference))
    apart = {
        name: max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(ours[name], theirs[name], strict=True))
        for name in ours
    }
    print(f"largest difference of {host.folder.name} and {reference.folder.name}, of 255: {apart}")
    assert all(looks_like_a_picture(pictures[0]) for pictures in ours.values())
    if apart[OWN] > 1:
        pytest.skip(f"without anything of ours the two hosts' pictures are {apart[OWN]} of 255 apart")
    assert max(apart.values()) <= 1, apart


@pytest.mark.parametrize("api", [True, False], ids=["with --api", "without --api"])
def test_it_starts_and_its_accordion_is_whole(serve, page, api):
    """Before any picture is drawn, so that some hosts have no model yet."""
    server = serve(api=api, warm=False)
    page.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
    open_ui(page, server)
    accordion = AccordionPage(page, "txt2img_hpsampler", TXT2IMG)
    accordion.open()
    assert accordion.sigmas()[0] > 10 and "Error" not in accordion.panel.inner_text()
    assert page.locator("#tab_hpsampler_calibrate").count() == 1
    assert "Traceback" not in server.log(), server.log_tail()


def test_nothing_is_left_when_the_extension_is_switched_off(serve):
    server = serve()
    before, _ = server.txt2img(**PLAIN)
    with_it, _ = server.txt2img(**{**PLAIN, **hp(FREEU), "sampler_name": "Euler", "scheduler": "Karras"})
    assert np.abs(with_it[0].astype(int) - before[0]).mean() > 1, "Free-U acted, else this tests nothing"
    server.post("/sdapi/v1/options", {"disabled_extensions": ["hp-sampler"]})
    server.restart_ui()
    assert "hp sampler" not in server.get("/sdapi/v1/scripts")["txt2img"]
    assert np.array_equal(server.txt2img(**PLAIN)[0][0], before[0])


def test_the_second_pass_has_a_guidance_of_its_own(server, host):
    if "hr_cfg" not in host.text("modules/processing.py"):
        pytest.skip("this host's second pass has no CFG scale of its own")
    request = hp(**HIRES, steps=5, hr_second_pass_steps=6, cfg_scale=7)
    server.get("/hps-probe/guidance")
    (first,), _ = server.txt2img(**request, hr_cfg=4)
    # the host runs the last six of ten steps
    expected = [effective_guidance(7, 5)] * 5 + [effective_guidance(4, 10)] * 6
    assert server.get("/hps-probe/guidance") == pytest.approx(expected)
    assert not np.array_equal(first, server.txt2img(**request, hr_cfg=7)[0][0])
    server.get("/hps-probe/guidance")
    server.txt2img(**{**request, "sampler_name": "Euler"}, hr_cfg=4)
    assert server.get("/hps-probe/guidance") == pytest.approx([7] * 5 + [4] * 6), "the host's own samplers as it says"


def test_a_host_s_refusal_is_told_at_once(server):
    """What can be known before drawing stops before the first UNet call, and the next request is as ever."""
    plain, _ = server.txt2img(**PLAIN)
    server.get("/hps-probe/guidance")
    status, _ = server.post("/sdapi/v1/txt2img", {"width": 64, "height": 64, **hp({"rho": 99}, steps=5)})
    assert status == 500 and server.get("/hps-probe/guidance") == []
    assert np.array_equal(server.txt2img(**PLAIN)[0][0], plain[0])
