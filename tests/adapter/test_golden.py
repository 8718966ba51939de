"""Golden noise in the adapter, on the stand-in host: which passes get it, what it costs, what is told and refused."""

from __future__ import annotations

import importlib
import pickle

import gradio as gr
import pytest
import torch

from hpsampler.golden.npnet import NPNet
from hpsampler.golden.search import GoldenForm, golden_latent, sigma_below
from hpsampler.golden.weights import weights_label
from tests.adapter.host.processing import Img2Img, Txt2Img

KEY, NOTE = "HP Golden noise", "HP note"
OURS = ["HP Auto", "HP DPM++ 1S", "HP DPM++ 2M", "HP UniPC", "HP DPM-v3"]


def seen_by(webui):
    """(sigma, latent, step, whether Free-U is on the UNet) of every call."""
    seen = []

    def look(params):
        seen.append((float(params.sigma[0]), params.x.clone(), params.denoiser.step, webui.freeu_on()))

    webui.script_callbacks.on_cfg_denoiser(look)
    return seen


@pytest.mark.parametrize("sampler", OURS)
@pytest.mark.parametrize("form", ["A", "B"])
def test_two_calls_more_before_the_first_step_and_the_picture_says_so(webui, host, sampler, form):
    seen = seen_by(webui)
    p = Txt2Img(steps=5, sampler_name=sampler)
    result = host.run(p, {"golden_noise": form, "statistics": "Off"})
    assert p.extra_generation_params[KEY] == form and not p.comments
    assert len(seen) == 7 and [each[2] for each in seen] == [0, 0, 0, 1, 2, 3, 4]
    start = seen[0][0]
    assert [each[0] for each in seen[:3]] == pytest.approx([start, sigma_below(start), start], rel=1e-5)
    assert not torch.equal(seen[0][1], seen[2][1]), "the first step begins elsewhere"
    assert p.sampler.seen_steps == sorted(set(p.sampler.seen_steps)), "the host's count of steps sees none of it"
    assert not torch.equal(host.run(Txt2Img(steps=5, sampler_name=sampler), {"statistics": "Off"}), result)


@pytest.mark.parametrize("form", list(GoldenForm))
def test_what_the_first_step_begins_from_is_the_core_s(webui, host, form):
    """Guided at the first look, and the positive prompt alone at the second."""
    seen = seen_by(webui)
    p = Txt2Img(steps=5, cfg_scale=7.0)
    host.run(p, {"golden_noise": form.value})
    denoiser = p.sampler.model_wrap_cfg
    inner = denoiser.inner_model
    cond = torch.stack([torch.randn((4, 32), generator=torch.Generator().manual_seed(1001))])

    def guided(x, sigma):
        both = inner(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([cond, torch.zeros_like(cond)]))
        positive, negative = both.chunk(2)
        return negative + 7.0 * (positive - negative)

    sigma = seen[0][0]
    with torch.no_grad():
        expected = golden_latent(
            form, seen[0][1], sigma, sigma_below(sigma), guided, lambda x, sigma: inner(x, sigma, cond)
        )
    assert torch.allclose(seen[2][1], expected, rtol=1e-4, atol=1e-4)


def test_free_u_is_for_the_steps(webui, host):
    seen = seen_by(webui)
    host.run(Txt2Img(steps=5), {"golden_noise": "A", "freeu": "On", "freeu_first": 1, "freeu_last": 2})
    assert [each[3] for each in seen] == [False, False, True, True, False, False, False]


@pytest.mark.parametrize("seeds", [(1, 2, 3), (3, 1)])
@pytest.mark.parametrize("form", ["A", "B"])
def test_a_batch_is_its_pictures(host, seeds, form):
    together = host.run(Txt2Img(seeds=seeds), {"golden_noise": form})
    for seed, row in zip(seeds, together):
        alone = host.run(Txt2Img(seeds=(seed,)), {"golden_noise": form})[0]
        assert (alone - row).abs().max() < 1e-4 * row.abs().max()


def test_elsewhere_it_is_left_out_and_told(webui, host):
    seen = seen_by(webui)
    p = Img2Img(steps=5, denoising_strength=0.6, init_latent=torch.zeros(1, 4, 8, 8))
    host.run(p, {"golden_noise": "A"})
    assert "golden noise is for pure noise, as in txt2img" in p.extra_generation_params[NOTE]
    assert KEY not in p.extra_generation_params and len(seen) == 4
    seen.clear()
    p = Txt2Img(steps=5, sampler_name="Euler")
    plain = host.run(Txt2Img(steps=5, sampler_name="Euler"))
    seen.clear()
    assert torch.equal(host.run(p, {"golden_noise": "B", "freeu": "Off"}), plain) and len(seen) == 5
    assert "golden noise B needs an HP sampler" in p.extra_generation_params[NOTE]


def test_a_second_pass_gets_none(webui, host):
    seen = seen_by(webui)
    host.run(Txt2Img(steps=5, enable_hr=True, hr_second_pass_steps=5))
    without = len(seen)
    seen.clear()
    p = Txt2Img(steps=5, enable_hr=True, hr_second_pass_steps=5)
    host.run(p, {"golden_noise": "A"})
    assert p.extra_generation_params[KEY] == "A" and NOTE not in p.extra_generation_params
    assert len(seen) == without + 2


def test_an_interrupt_or_an_error_in_it_leaves_nothing_behind(webui, host):
    clean = host.run(Txt2Img(steps=5))

    def fail(*args):
        raise RuntimeError("out of memory")

    unet = webui.unet()
    hook = unet.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        host.run(Txt2Img(steps=5), {"golden_noise": "A", "freeu": "On", "freeu_first": 1})
    hook.remove()
    assert torch.equal(host.run(Txt2Img(steps=5)), clean)


# ---- NPNet -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(webui):
    found = importlib.import_module("hpsampler.webui.folders").FOLDER / "npnet"
    found.mkdir(parents=True)
    return found


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return NPNet(1024).requires_grad_(False).eval()


@pytest.fixture
def weights(folder, network):
    from safetensors.torch import save_file

    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, str(folder / "mine.safetensors")
    )
    return weights_label("mine", network)


def noise_and_conditions(rows=1):
    generator = torch.Generator().manual_seed(0)
    return torch.randn((rows, 4, 128, 128), generator=generator), torch.randn((rows, 77, 1024), generator=generator)


def test_npnet_changes_the_host_s_own_noise_in_place(webui, weights, network):
    make_golden = importlib.import_module("hpsampler.webui.npnet").make_golden
    noise, conditions = noise_and_conditions(2)
    given = noise.clone()
    assert make_golden("mine", noise, conditions) == weights
    assert torch.allclose(noise, network(given, conditions), atol=1e-4) and not torch.allclose(noise, given)
    longer = torch.cat([conditions, conditions], 1)
    again = given.clone()
    make_golden(weights, again, longer)
    assert torch.equal(again, noise), "the first 77 tokens, and by the picture's label too"


@pytest.mark.parametrize(
    ("wanted", "noise", "conditions", "words"),
    [
        ("mine", (1, 4, 64, 64), (1, 77, 1024), "trained for pictures of 1024 x 1024 alone, got 512 x 512"),
        ("mine", (1, 4, 128, 128), (1, 77, 768), "1024"),
        ("nobody", (1, 4, 128, 128), (1, 77, 1024), "there are no weights 'nobody'; there are: mine"),
        ("mine 00000000", (1, 4, 128, 128), (1, 77, 1024), "others than the picture's"),
    ],
)
def test_what_npnet_cannot_do_is_said(webui, weights, wanted, noise, conditions, words):
    module = importlib.import_module("hpsampler.webui.npnet")
    given = torch.randn(noise, generator=torch.Generator().manual_seed(0))
    before = given.clone()
    with pytest.raises(module.SettingsError, match=words) as refused:
        module.make_golden(wanted, given, torch.zeros(conditions))
    assert str(refused.value).startswith("HP Sampler: Golden noise (golden_noise") and torch.equal(given, before)


@pytest.mark.parametrize("sampler", ["HP Auto", "Euler"])
def test_another_size_stops_the_picture_before_its_first_call(webui, host, weights, sampler):
    seen = seen_by(webui)
    p = Txt2Img(sampler_name=sampler)
    with pytest.raises(ValueError, match="trained for pictures of 1024 x 1024 alone"):
        host.run(p, {"golden_noise": "mine"})
    assert seen == []


def test_a_pickle_is_not_opened(webui, host, folder):
    class Bomb:
        def __reduce__(self):
            return open, (str(folder / "ran"), "w")

    (folder / "bad.safetensors").write_bytes(pickle.dumps(Bomb()))
    torch.save({"alpha": Bomb()}, folder / "worse.safetensors")
    seen = seen_by(webui)
    for name in ("bad", "worse"):
        with pytest.raises(ValueError, match=r"is a bare pickle|is a PyTorch file; convert it once"):
            host.run(Txt2Img(), {"golden_noise": name})
    assert seen == [] and not (folder / "ran").exists()


def test_the_menu_lists_them_and_a_picture_s_text_sets_the_control(webui, host, weights):
    store = importlib.import_module("hpsampler.webui.folders")
    assert store.menus()["golden_noise"]() == ["mine"]
    p = Txt2Img(steps=5)
    host.run(p, {"golden_noise": "B"})
    script = host.script
    with gr.Blocks():
        script.ui(False)
    (field,) = (each for each in script.infotext_fields if "golden_noise" in str(each.component.elem_id))
    text = {name: str(value) for name, value in p.extra_generation_params.items()}
    assert field.function(text) == "B" and field.function({"HP Recipe": "Auto"}) == "Off"
