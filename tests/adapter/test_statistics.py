"""DPM-Solver-v3's statistics in the adapter, on the stand-in host: which a pass gets, what is told, what is refused."""

from __future__ import annotations

import importlib
import math
import os
import pickle
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from fastapi import FastAPI

from hpsampler.settings import NO_STATISTICS
from hpsampler.statistics.coefficients import Provenance, Statistics, StatisticsError
from hpsampler.statistics.files import Opened, save_statistics, statistics_label
from tests.adapter.host.processing import Img2Img, Txt2Img
from tests.adapter.test_calibration import Client
from tests.adapter.test_tab import ASKED, PATIENCE, asked, cost_of, tab_and_runners

KEY, NOTE = "HP Statistics", "HP note"
POINTS = 21


@pytest.fixture
def folder(webui):
    found = importlib.import_module("hpsampler.webui.folders").statistics_folder()
    found.mkdir(parents=True)
    return found


def statistics(noise, cfg_scale=5.0, model_hash="0000000000", size=(1, 1), seed=0, points=POINTS):
    rng = np.random.default_rng(seed)
    grid = np.linspace(-math.log(noise.sigma_max), -math.log(noise.sigma_min), points)
    shape = (points, 4, *size)
    l = 1 + 0.1 * rng.standard_normal(shape)  # noqa: E741
    s, b = (0.1 * rng.standard_normal(shape) for _ in range(2))
    return Statistics(grid, l, s, b, Provenance(model_hash, "tiny", "sd1", cfg_scale, 8, 8, 64))


@pytest.fixture
def kept(folder, noise):
    """Statistics of the stand-in's checkpoint, and others."""
    made = {
        "mine": statistics(noise),
        "low": statistics(noise, 1.0, seed=1),
        "foreign": statistics(noise, model_hash="feedbeef", seed=2),
    }
    for name, each in made.items():
        save_statistics(each, folder / f"{name}.safetensors")
    return {name: statistics_label(name, each) for name, each in made.items()}


def request(**own):
    return Txt2Img(**{"sampler_name": "HP DPM-v3", **own})


def told(p):
    return p.extra_generation_params.get(NOTE, "")


def counted(webui):
    calls = []
    webui.script_callbacks.on_cfg_denoiser(lambda params: calls.append(float(params.sigma[0])))
    return calls


def test_auto_takes_those_of_the_model_nearest_in_guidance_and_names_them(webui, host, kept):
    calls = counted(webui)
    drawn = {}
    # five calls are drawn at CFG 4.75, 2.75 and 4.25: to those the nearest are taken
    for cfg_scale, name in ((7.0, "mine"), (3.0, "low"), (6.0, "mine")):
        p = request(cfg_scale=cfg_scale)
        drawn[cfg_scale] = host.run(p)
        assert p.extra_generation_params[KEY] == kept[name]
        far = f"the statistics {kept[name]} were measured at CFG 1, far from CFG 2.75"
        assert told(p) == (far if name == "low" else "")
    assert len(calls) == 15, "the corrector costs no call"
    plain = request()
    assert not torch.equal(host.run(plain, {"statistics": "Off"}), drawn[7.0])


def test_nearest_is_meant_to_the_guidance_that_is_drawn_with_and_not_to_the_cfg_scale(host, folder, noise):
    made = {name: statistics(noise, scale, seed=seed) for seed, (name, scale) in enumerate((("far", 7), ("near", 3)))}
    for name, each in made.items():
        save_statistics(each, folder / f"{name}.safetensors")
    for settings, name in (({}, "near"), ({"guidance": "As set"}, "far"), ({"recipe": "SD1.5 5 steps"}, "far")):
        # Auto's five calls are drawn at CFG 4.75, and at CFG 7 what is set is exact
        p = request(cfg_scale=7.0)
        host.run(p, settings)
        assert p.extra_generation_params[KEY] == statistics_label(name, made[name]), settings


def test_with_them_auto_is_what_was_measured_for_the_guidance(webui, host, kept, monkeypatch):
    ran = []
    registration = importlib.import_module("hpsampler.webui.registration")
    solver = registration.SOLVERS["dpm_v3"]

    def spy(*args, **own):
        ran.append((own["order"], own["corrector"], own["statistics"] is not None))
        return solver(*args, **own)

    monkeypatch.setattr(registration, "SOLVERS", {**registration.SOLVERS, "dpm_v3": spy})
    for cfg_scale, values in (
        (7.0, {}),
        (3.0, {}),
        (7.0, {"order": 2}),
        (3.0, {"order": 1}),
        (1.0, {}),
        (7.0, {"statistics": "Off"}),
    ):
        host.run(request(cfg_scale=cfg_scale), values)
    assert ran == [
        (1, False, True), (2, False, True), (2, False, True), (1, False, True), (2, True, True), (2, False, False),
    ]  # fmt: skip


def test_without_any_it_runs_as_a_plain_multistep_solver_and_says_so(webui, host, noise, folder):
    p = request()
    bare = host.run(p)
    assert p.extra_generation_params[KEY] == "Off" and told(p) == NO_STATISTICS
    assert list(p.comments) == [f"HP Sampler: {NO_STATISTICS}."]
    save_statistics(statistics(noise, model_hash="feedbeef"), folder / "foreign.safetensors")
    assert torch.equal(host.run(request()), bare), "those of another model are not taken"
    p = request()
    assert torch.equal(host.run(p, {"statistics": "Off"}), bare)
    assert p.extra_generation_params[KEY] == "Off" and told(p) == "", "what was asked need not be told"


def test_other_samplers_neither_use_nor_name_them(host, kept):
    for name in ("HP Auto", "HP UniPC", "Euler"):
        p = request(sampler_name=name)
        host.run(p)
        assert KEY not in p.extra_generation_params and not told(p)


def test_by_name_those_of_another_model_are_taken_too(host, kept):
    p = request()
    drawn = host.run(p, {"statistics": "foreign"})
    assert p.extra_generation_params[KEY] == kept["foreign"]
    again = request()
    assert torch.equal(host.run(again, {"statistics": kept["foreign"]}), drawn), "a picture's label is a name"


def test_a_picture_is_made_again_from_its_text_or_refused(webui, host, kept, folder, noise):
    p = request()
    drawn = host.run(p)
    script = host.script
    with gr.Blocks():
        script.ui(False)
    (field,) = (each for each in script.infotext_fields if "statistics" in str(each.component.elem_id))
    read = field.function({name: str(value) for name, value in p.extra_generation_params.items()})
    assert read == kept["mine"]
    (folder / "mine.safetensors").rename(folder / "renamed.safetensors")
    again = request()
    assert torch.equal(host.run(again, {"statistics": read}), drawn)
    assert again.extra_generation_params[KEY] == "renamed " + kept["mine"].split()[-1]
    (folder / "renamed.safetensors").unlink()
    save_statistics(statistics(noise, seed=9), folder / "mine.safetensors")
    calls = counted(webui)
    with pytest.raises(Exception, match="'mine' here are others than the picture's"):
        host.run(request(), {"statistics": read})
    assert calls == []
    assert not torch.equal(host.run(request()), drawn)


@pytest.mark.parametrize("size", [(1, 1), (8, 8)], ids=["per channel", "per element"])
def test_a_request_reads_and_weighs_once_for_all_its_pictures(host, folder, noise, monkeypatch, size):
    save_statistics(statistics(noise, size=size), folder / "mine.safetensors")
    read, weighed = [], []
    files, solver = (importlib.import_module(f"hpsampler.{name}") for name in ("statistics.files", "solvers.dpm_v3"))

    def count(module, name, into):
        own = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **named: (into.append(1), own(*args, **named))[1])

    count(files, "load_statistics", read)
    count(solver, "dpm_v3_steps", weighed)
    p = request(n_iter=3)
    host.run(p)
    assert (len(read), len(weighed)) == (1, 1)
    host.run(request(enable_hr=True, hr_upscale_to_x=64, hr_upscale_to_y=64))
    assert (len(read), len(weighed)) == (2, 3), "another request, whose second pass has a schedule of its own"


def test_statistics_that_change_between_two_pictures_are_read_anew(noise, folder):
    path, opened = folder / "mine.safetensors", Opened()
    save_statistics(statistics(noise), path)
    first, digest = opened.open(path, noise)
    assert opened.open(path, noise)[0] is first
    before = path.stat()
    save_statistics(statistics(noise, seed=1), path)
    # a coarse clock may give both the same time
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    assert path.stat().st_size == before.st_size
    again, other = opened.open(path, noise)
    assert again is not first and other != digest
    path.unlink()
    with pytest.raises(StatisticsError, match=r"mine\.safetensors cannot be read"):
        opened.open(path, noise)


@pytest.mark.parametrize("batch", [(1, 2, 3), (3, 1)])
def test_a_batch_is_its_pictures(host, kept, batch):
    together = host.run(request(seeds=batch))
    for seed, row in zip(batch, together):
        alone = host.run(request(seeds=(seed,)))[0]
        assert (alone - row).abs().max() < 1e-4 * row.abs().max()


class Bomb:
    """Whose unpickling creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def spoiled(kind, path, good, noise):
    data = good.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(path.with_name("ran"))))
    elif kind == "torch":
        torch.save({"l": Bomb(path.with_name("ran"))}, path)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(4096))
    elif kind == "shape":
        wrong = statistics(noise)
        object.__setattr__(wrong, "s", wrong.s[:5])
        save_statistics(wrong, path)
    elif kind == "nan":
        wrong = statistics(noise)
        object.__setattr__(wrong, "b", wrong.b * math.nan)
        save_statistics(wrong, path)


KINDS = ("truncated", "empty", "pickle", "torch", "noise", "shape", "nan")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_is_refused_by_name_and_left_out_by_auto(webui, host, folder, noise, kind):
    good = folder / "good.safetensors"
    save_statistics(statistics(noise, 1.0), good)
    # nearer in guidance than the good one
    spoiled(kind, folder / "bad.safetensors", good, noise)
    calls = counted(webui)
    with pytest.raises(Exception, match=r"Statistics \(statistics\) must be Auto, Off or some that are here; bad"):
        host.run(request(), {"statistics": "bad"})
    assert calls == [], "refused before the first call"
    p = request()
    host.run(p)
    assert p.extra_generation_params[KEY].startswith("good ")
    assert "statistics that cannot be read are left out: bad.safetensors" in told(p)
    assert not (folder / "ran").exists(), "nothing in a file is run"


def test_a_pickle_in_the_published_layout_is_refused(webui, host, folder):
    theirs = folder / "7.5_20_1024"
    theirs.mkdir()
    array = np.empty(2, object)
    array[:] = [Bomb(folder / "ran"), 1]
    for name, arrays in (("l.npz", ("l",)), ("sb.npz", ("s", "b"))):
        np.savez(theirs / name, **dict.fromkeys(arrays, array))
    calls = counted(webui)
    with pytest.raises(Exception, match=r"l\.npz: not an \.npz file of plain arrays"):
        host.run(request(), {"statistics": theirs.name})
    assert calls == [] and not (folder / "ran").exists()


def test_the_published_layout_is_used_by_name_and_only_so(webui, host, folder, noise):
    theirs = folder / f"7.5_{POINTS - 1}_1024"
    theirs.mkdir()
    made = statistics(noise, size=(8, 8))
    np.savez(theirs / "l.npz", l=made.l)
    np.savez(theirs / "sb.npz", s=made.s, b=made.b)
    p = request()
    host.run(p)
    assert p.extra_generation_params[KEY] == "Off"
    p = request(cfg_scale=7.5)
    host.run(p, {"statistics": theirs.name})
    assert p.extra_generation_params[KEY].startswith(f"{theirs.name} ") and not told(p)


def test_another_size_is_stretched_with_a_warning(host, folder, noise):
    save_statistics(statistics(noise, size=(16, 12)), folder / "wide.safetensors")
    p = request()
    host.run(p)
    assert "measured on latents of 12x16 and are stretched to 8x8: a guess" in told(p)


def test_another_number_of_channels_is_refused_before_the_first_call(webui, host, folder, noise):
    three = statistics(noise)
    made = Statistics(three.lambdas, *(values[:, :3] for values in (three.l, three.s, three.b)), Provenance("x"))
    save_statistics(made, folder / "x.safetensors")
    calls = counted(webui)
    with pytest.raises(ValueError, match="are of latents with 3 channels, and the loaded model's have 4"):
        host.run(request(), {"statistics": "x"})
    assert calls == []


def test_in_img2img_and_a_second_pass(host, kept):
    p = Img2Img(sampler_name="HP DPM-v3", denoising_strength=0.6, init_latent=torch.zeros(1, 4, 8, 8))
    assert torch.isfinite(host.run(p)).all() and p.extra_generation_params[KEY] == kept["mine"]
    p = request(enable_hr=True, hr_sampler_name="HP DPM-v3")
    assert torch.isfinite(host.run(p)).all() and p.extra_generation_params[KEY] == kept["mine"]


def test_the_menus_list_them_and_the_panel_knows(webui, kept, folder):
    store = importlib.import_module("hpsampler.webui.folders")
    page = importlib.import_module("hpsampler.webui.page")
    assert store.menus()["statistics"]() == ["foreign", "low", "mine"]
    assert page.known().measured()
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert not page.known().measured()


# ---- measured here ---------------------------------------------------------------------------------------------------


def test_from_the_tab_s_values_to_a_picture(webui, host):
    """On the stand-in's checkpoint; another one loaded meanwhile stops it, with what is done kept."""
    tab, runners = tab_and_runners()
    runner = runners.statistics
    small = {**ASKED, "prompts": "a\nb\nc", "samples": 8, "points": 21, "trajectories": 2, "batch": 2}
    assert "Statistics at CFG 7, 336 UNet calls; then ways to draw to compare" in cost_of(tab, "statistics", small)
    assert "samples must be a whole number" in cost_of(tab, "statistics", {**small, "samples": 0})
    assert "cfg_scales must be a number" in cost_of(tab, "statistics", {**small, "cfg": "99"})
    assert "Statistics at CFG 5," in cost_of(tab, "statistics", {**small, "cfg": "4, 6, 7.5"}), "in their middle"
    assert "Statistics at CFG 3 and 5," in cost_of(tab, "statistics", {**small, "cfg": "3, 5, 7.5"}), (
        "and where it is low"
    )
    tab.start("statistics", *asked(small))
    for each in runners.all:
        assert each.wait(PATIENCE) and each.status().state == "finished", each.status().message
    status, _, _, chosen, details, *_ = tab._shown("Statistics: from the tab", everything=False)
    assert 'data-state="finished"' in status
    assert chosen["value"] == "Statistics: from the tab"
    line = "from the tab · statistics · CFG 7 · 64x64 · HP DPM-v3 uses them by itself at every CFG"
    assert (line, chosen["value"]) in chosen["choices"]
    assert "of tiny" in details["value"]
    assert "at CFG 7, from 8 samples, 21 grid points, for every channel" in details["value"]
    p = request()
    host.run(p)
    assert p.extra_generation_params[KEY].startswith("from the tab ") and not told(p)

    loaded = webui.shared.sd_model.sd_checkpoint_info
    began = []

    def swap(params):
        began.append(1)
        if len(began) == 60:
            webui.shared.sd_model.sd_checkpoint_info = SimpleNamespace(
                shorthash="ffff", hash="eeee", name_for_extra="other"
            )

    webui.script_callbacks.on_cfg_denoiser(swap)
    tab.start("statistics", *asked({**small, "name": "second"}))
    assert runner.wait(PATIENCE) and runner.status().state == "failed"
    assert "the checkpoint was changed from tiny" in runner.status().message
    webui.shared.sd_model.sd_checkpoint_info = loaded
    assert runners.calibrations.wait(PATIENCE), "which waited for it"
    status, _, _, chosen, *_ = tab._shown(None, everything=False)
    assert "the checkpoint was changed from tiny" in status
    assert "Can be resumed: second (calibration and statistics)." in status
    assert {"Unfinished Calibration: second", "Unfinished Statistics: second"} <= {key for _, key in chosen["choices"]}
    tab.resume("Unfinished Statistics: second")
    for each in runners.all:
        assert each.wait(PATIENCE) and each.status().state == "finished"
    one, two = (runner.folder / f"{name}.safetensors" for name in ("from the tab", "second"))
    assert one.read_bytes() == two.read_bytes(), "resumed it is the same"


def test_over_http(webui, kept):
    app = FastAPI()
    (started,) = webui.script_callbacks.callbacks_app_started
    started(None, app)
    client = Client(app)
    rows = client("GET", "statistics").json()["statistics"]
    assert [row["name"] for row in rows] == ["foreign", "low", "mine"]
    assert rows[1]["source"]["cfg_scale"] == 1 and rows[1]["shape"] == [POINTS, 4, 1, 1]
    assert client("PATCH", "statistics/low", json={"name": "lower"}).json() == {"name": "lower"}
    assert client("DELETE", "statistics/lower").json() == {"deleted": "lower"}
    refused = client("POST", "measure", json={"name": "x", "points": 3})
    assert refused.status_code == 422
    assert "points must be a whole number from 21 to 1001, got 3" in refused.json()["detail"]
    assert client("GET", "measure").json()["state"] == "idle"
