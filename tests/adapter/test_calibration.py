"""Calibration in the adapter, on the stand-in host: which schedule a pass gets, what is told, tab and routes."""

from __future__ import annotations

import asyncio
import importlib
import json
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI

from hpsampler.calibration.config import CalibrationConfig
from hpsampler.calibration.profile import Fitted, Profile
from hpsampler.jobs import Cancelled
from hpsampler.recipes import recipe_for
from tests.adapter.conftest import FIVE
from tests.adapter.host.processing import Img2Img, Txt2Img


def sigmas_of(webui, host, p, *args):
    seen = []
    webui.script_callbacks.on_cfg_denoiser(lambda params: seen.append(float(params.sigma[0])))
    host.run(p, *args)
    return seen


def is_calibrated(seen):
    return seen == pytest.approx(FIVE.sigmas[:-1], rel=1e-5)


@pytest.mark.parametrize("sampler", ["HP Auto", "HP DPM++ 2M"])
def test_it_is_used_by_itself_where_it_fits_and_the_picture_names_it(webui, host, made, sampler):
    p = Txt2Img(steps=5, sampler_name=sampler)
    assert is_calibrated(sigmas_of(webui, host, p))
    assert p.extra_generation_params["HP Calibration"] == f"mine {FIVE.hash}" and not p.comments


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 6}, {"cfg_scale": 3.0}, {"width": 128, "height": 128}, {"sampler_name": "HP DPM++ 1S"},
        {"sampler_name": "HP UniPC"}, {"sampler_name": "Euler", "scheduler": "HP"},
    ],
    ids=str,
)  # fmt: skip
def test_elsewhere_the_recipe_stays_and_nothing_is_said(webui, host, made, noise, other):
    p = Txt2Img(**{"steps": 5, **other})
    seen = sigmas_of(webui, host, p)
    assert seen == pytest.approx(recipe_for("sd1", p.steps, p.cfg_scale).sigmas(noise)[:-1].tolist(), rel=1e-4)
    assert "HP Calibration" not in p.extra_generation_params and not p.comments


def test_another_checkpoint_does_not_get_it(webui, host, made):
    webui.shared.sd_model.sd_checkpoint_info = SimpleNamespace(shorthash="ffff", hash="eeee", name_for_extra="other")
    assert not is_calibrated(sigmas_of(webui, host, Txt2Img(steps=5)))
    p = Txt2Img(steps=5)
    assert is_calibrated(sigmas_of(webui, host, p, {"calibration": f"mine {FIVE.hash}"})), "a picture's name is exact"
    assert "is used although it was made for the model tiny" in p.extra_generation_params["HP note"]


@pytest.mark.parametrize("values", [{"calibration": "Off"}, {"rho": 4.0}, {"recipe": "SD1.5 5 steps"}], ids=str)
def test_what_was_set_is_not_replaced(webui, host, made, values):
    p = Txt2Img(steps=5)
    assert not is_calibrated(sigmas_of(webui, host, p, values))
    assert "HP Calibration" not in p.extra_generation_params
    p = Txt2Img(steps=5, scheduler="HP calibrated")
    assert not is_calibrated(sigmas_of(webui, host, p, values))
    assert "follows the recipe" in p.extra_generation_params["HP note"]


@pytest.mark.parametrize("sampler", ["Euler", "HP UniPC", "HP Auto"])
def test_the_schedule_type_gives_it_to_any_sampler(webui, host, made, sampler):
    p = Txt2Img(steps=5, sampler_name=sampler, scheduler="HP calibrated")
    assert is_calibrated(sigmas_of(webui, host, p))
    assert p.extra_generation_params["HP Calibration"] == f"mine {FIVE.hash}"
    p = Txt2Img(steps=7, sampler_name=sampler, scheduler="HP calibrated")
    assert len(sigmas_of(webui, host, p)) == 7
    assert "HP calibrated is not used: none fits" in p.extra_generation_params["HP note"] and len(p.comments) == 1


def test_the_end_of_it_in_img2img_with_the_factors_of_those_steps(webui, host, made):
    p = Img2Img(steps=5, denoising_strength=0.5, init_latent=torch.zeros(1, 4, 8, 8), scheduler="HP calibrated")
    assert sigmas_of(webui, host, p) == pytest.approx(FIVE.sigmas[2:-1], rel=1e-5)
    plain = Img2Img(steps=5, denoising_strength=0.5, init_latent=torch.zeros(1, 4, 8, 8))
    assert sigmas_of(webui, host, plain)[0] != pytest.approx(FIVE.sigmas[2], rel=1e-3)


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 5), (0.99, 5), (0.5, 3), (0.3, 2), (0.0, 1)])
def test_the_factors_are_those_of_the_steps_that_run(webui, host, made, monkeypatch, strength, steps):
    """A schedule of five steps has four factors between them and a first without one; img2img runs its last part."""
    given = []
    registration = importlib.import_module("hpsampler.webui.registration")
    solver = registration.SOLVERS["dpmpp_2m"]

    def spy(model, x, sigmas, *args, **own):
        given.append((len(sigmas) - 1, own["factors"]))
        return solver(model, x, sigmas, *args, **own)

    monkeypatch.setattr(registration, "SOLVERS", {**registration.SOLVERS, "dpmpp_2m": spy})
    p = Img2Img(steps=5, denoising_strength=strength, init_latent=torch.zeros(1, 4, 8, 8), scheduler="HP calibrated")
    host.run(p)
    assert given == [(steps, FIVE.factors[-steps:])]


def test_a_second_pass_is_another_size(webui, host, made, library):
    """Six of ten steps, and only of a calibration made for the second pass's size."""
    ten = Fitted(
        10, 7.0, (*np.geomspace(14.6, 0.1, 10).tolist(), 0.0), (0.0,) + (0.5,) * 9, "Auto", FIVE.held_out, 0.02, 1
    )
    p = {"steps": 5, "enable_hr": True, "hr_second_pass_steps": 6, "hr_scheduler": "HP calibrated"}
    library.save(replace(made, name="small", fitted=(ten,)))
    first = Txt2Img(**p)
    assert len(sigmas_of(webui, host, first)) == 11
    assert first.extra_generation_params["HP Calibration"] == f"mine {FIVE.hash}"
    assert "none fits this model at 10 steps" in first.extra_generation_params["HP note"]
    library.save(replace(made, name="large", width=128, height=128, fitted=(ten,)))
    second = Txt2Img(**p)
    assert sigmas_of(webui, host, second)[5:] == pytest.approx(ten.sigmas[4:-1], rel=1e-4)
    assert second.extra_generation_params["HP Calibration"] == f"mine {FIVE.hash}; large {ten.hash}"
    again = Txt2Img(**p)
    both = {"calibration": second.extra_generation_params["HP Calibration"]}
    assert sigmas_of(webui, host, again, both)[5:] == pytest.approx(ten.sigmas[4:-1], rel=1e-4)
    assert again.extra_generation_params["HP Calibration"] == both["calibration"]


def test_a_picture_can_be_made_again_after_a_renaming_and_by_an_old_text(webui, host, made, library):
    first = host.run(Txt2Img(steps=5))
    library.rename("mine", "renamed")
    p = Txt2Img(steps=5)
    assert torch.equal(host.run(p, {"calibration": f"mine {FIVE.hash}"}), first)
    assert p.extra_generation_params["HP Calibration"] == f"renamed {FIVE.hash}"
    script = host.script
    with gr.Blocks():
        script.ui(False)
    fields = {field.label or index: field for index, field in enumerate(script.infotext_fields)}
    (read,) = (field.function for field in fields.values() if "calibration" in str(field.component.elem_id))
    assert read({"HP Calibration": f"mine {FIVE.hash}", "HP version": "0.3.0"}) == f"mine {FIVE.hash}"
    assert read({"HP version": "0.7.0"}) == "Off", "drawn without one"
    library.delete("renamed")
    assert read({"HP version": "0.7.0"}) is None


def test_a_name_that_is_not_here_is_refused_before_the_first_call(webui, host, made):
    seen = []
    webui.script_callbacks.on_cfg_denoiser(lambda params: seen.append(1))
    with pytest.raises(
        ValueError, match=r"must be Auto, Off or one that is here; there is no calibration 'other'.*mine"
    ):
        host.run(Txt2Img(steps=5), {"calibration": "other"})
    assert seen == []


@pytest.mark.parametrize(("option", "value"), [("sigma_max", 14.5), ("sigma_max", 14.8), ("sigma_min", 0.0295)])
def test_ends_that_differ_by_a_hundredth_are_other_ends(webui, host, made, option, value):
    setattr(webui.shared.opts, option, value)
    try:
        p = Txt2Img(steps=5, scheduler="HP calibrated")
        seen = sigmas_of(webui, host, p)
        assert not is_calibrated(seen) and "no calibration is used" in p.extra_generation_params["HP note"]
        assert option == "sigma_min" or seen[0] == pytest.approx(min(value, 14.614641), rel=1e-5)
        own = Txt2Img(steps=5, scheduler="HP calibrated")
        setattr(webui.shared.opts, option, {"sigma_max": 14.6147, "sigma_min": 0.029168}[option])
        assert is_calibrated(sigmas_of(webui, host, own)), "the model's own, as the host rounds them"
    finally:
        setattr(webui.shared.opts, option, 0)


def test_changed_ends_of_the_schedule_are_told(webui, host, made):
    webui.shared.opts.sigma_max = 10.0
    try:
        p = Txt2Img(steps=5, scheduler="HP calibrated")
        assert not is_calibrated(sigmas_of(webui, host, p))
        assert "no calibration is used" in p.extra_generation_params["HP note"]
    finally:
        webui.shared.opts.sigma_max = 0


class TestCheckpoint:
    @pytest.fixture
    def source(self, webui):
        return importlib.import_module("hpsampler.webui.source")

    def order(self, **values):
        return CalibrationConfig.of(
            {"name": "x", "steps": [4], "width": 64, "height": 64, "prompts": "a\nb\nc\nd\ne", "batch": 2, **values}
        )

    def test_its_denoiser_is_the_host_s_whatever_the_batch(self, webui, host, source):
        """The noise and prompts of a request give the same call as the request itself."""
        prompts, sigma = ["a", "b", "c"], torch.full((3,), 5.0)
        results = []
        for batch in (1, 2, 3):
            checkpoint = source.Checkpoint(self.order(batch=batch))
            noise = checkpoint.start([1, 2, 3], 64, 64)
            results.append(checkpoint.denoiser(prompts, "", 6.0)(noise * 5, sigma))
        assert noise.shape == (3, 4, 8, 8)
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-4)
        assert not torch.equal(results[0][0], results[0][1])
        assert checkpoint.decode(noise).shape == (3, 3, 64, 64)
        assert checkpoint.hashes == ("0000000000", "0123abcd") and checkpoint.family == "sd1"

    def test_extra_networks_of_the_last_picture_are_put_away(self, webui, source):
        networks = importlib.import_module("modules.extra_networks")
        checkpoint = source.Checkpoint(self.order())
        before = len(networks.activated)
        checkpoint.denoiser(["a"], "", 6.0)(checkpoint.start([1], 64, 64), torch.ones(1))
        assert networks.activated[before:] == [{}]

    def test_a_model_that_is_not_covered_is_refused(self, webui, source):
        webui.shared.sd_model.is_sd1 = False
        with pytest.raises(ValueError, match=r"covers SD 1\.x"):
            source.Checkpoint(self.order())

    def test_another_checkpoint_meanwhile_is_noticed(self, webui, source):
        checkpoint = source.Checkpoint(self.order())
        denoiser = checkpoint.denoiser(["a"], "", 6.0)
        webui.shared.sd_model.sd_checkpoint_info = SimpleNamespace(shorthash="ffff", hash="e", name_for_extra="other")
        with pytest.raises(ValueError, match="changed from tiny to other meanwhile"):
            denoiser(torch.zeros(1, 4, 8, 8), torch.ones(1))

    def test_turns_leave_the_host_s_state_as_it_was(self, webui, source):
        state, turns = webui.shared.state, source.HostQueue()
        state.interrupted = True
        assert turns(lambda: (state.interrupted, state.job)) == (False, "HP Sampler calibration"), "an old interrupt"
        assert state.job == "" and not state.interrupted
        state.interrupted = True
        with pytest.raises(Cancelled):
            turns(lambda: pytest.fail("interrupted since the last turn"))
        assert not state.interrupted
        state.interrupted, state.time_start = True, 5.0
        assert turns(lambda: "a picture in between had that interrupt") and not state.interrupted
        queue = importlib.import_module("modules.call_queue").queue_lock
        with pytest.raises(RuntimeError):
            turns(lambda: (_ for _ in ()).throw(RuntimeError("out of memory")))
        assert queue.acquire(timeout=1) and state.job == ""
        queue.release()


class Client:
    """Talks to an application without a server; the pinned starlette's own client is older than the pinned httpx."""

    def __init__(self, app):
        self.app = app

    def __call__(self, method, path, **own):
        async def ask():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
                return await client.request(method, f"/hpsampler/{path}", **own)

        return asyncio.run(ask())


class TestRoutes:
    @pytest.fixture
    def client(self, webui, made):
        app = FastAPI()
        (started,) = webui.script_callbacks.callbacks_app_started
        started(None, app)
        return Client(app)

    def test_listed_exported_taken_renamed_deleted(self, client):
        (row,) = client("GET", "calibrations").json()["calibrations"]
        assert row["name"] == "mine" and row["fitted"][0]["hash"] == FIVE.hash
        text = client("GET", "calibrations/mine").json()
        assert Profile.from_json(json.dumps(text)).fitted == (FIVE,)
        again = "the calibration in that file is here already, as 'mine'; nothing was added"
        assert client("POST", "calibrations", json=text).json() == {"name": "mine", "note": again}
        other = client("POST", "calibrations", json={**text, "seed": text["seed"] + 1}).json()
        assert other["name"] == "mine 2" and "'mine' is the name of another one here" in other["note"]
        assert client("PATCH", "calibrations/mine", json={"name": "other"}).json() == {"name": "other"}
        assert client("DELETE", "calibrations/mine 2").status_code == 200
        names = [each["name"] for each in client("GET", "calibrations").json()["calibrations"]]
        assert names == ["other"]

    @pytest.mark.parametrize(
        ("method", "path", "body", "words"),
        [
            ("get", "calibrations/none", None, "no calibration named 'none'"),
            ("post", "calibrations", {"format": "x"}, "not a calibration of HP Sampler"),
            ("post", "calibrate", {"name": "a", "steps": [1]}, "steps must be"),
            ("post", "calibrate", {"name": "a", "prompts": "a moon"}, "prompts must be two at least that differ"),
            ("post", "calibrate", {"name": "a", "prompts": "a\nb <lora:c:1>"}, "must not call extra networks"),
            ("post", "measure", {"name": "a", "negative": "<lora:c:1>"}, "negative must not call extra networks"),
            ("post", "calibrate/resume", {}, "name must be a text"),
            ("post", "calibrate/discard", {"name": "none"}, "nothing unfinished is named 'none'"),
            ("patch", "calibrations/mine", {"name": "Off"}, "name must be one"),
        ],
    )
    def test_what_is_wrong_is_answered_in_words(self, client, method, path, body, words):
        answer = client(method.upper(), path, json=body)
        assert answer.status_code == 422 and words in answer.json()["detail"], answer.text

    def test_the_host_s_password_guards_them(self, webui, made):
        app = FastAPI()
        webui.shared.cmd_opts.api_auth = "me:secret,you:other"
        try:
            (started,) = webui.script_callbacks.callbacks_app_started
            started(None, app)
        finally:
            webui.shared.cmd_opts.api_auth = None
        client = Client(app)
        assert client("GET", "calibrations").status_code == 401
        assert client("GET", "calibrations", auth=("me", "wrong")).status_code == 401
        assert client("GET", "calibrations", auth=("you", "other")).status_code == 200

    def test_there_are_none_without_the_host_s_api(self, webui):
        app = FastAPI()
        before = len(app.routes)
        webui.shared.cmd_opts.api = False
        try:
            (started,) = webui.script_callbacks.callbacks_app_started
            started(None, app)
        finally:
            webui.shared.cmd_opts.api = True
        assert len(app.routes) == before
