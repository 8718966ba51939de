"""The extension in a running A1111, through its API."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hpsampler.settings import FIELDS
from tests.webui.harness import PATIENCE, decode, encode
from tests.webui.hosts import refusal

SAMPLERS = ["HP Auto", "HP DPM++ 1S", "HP DPM++ 2M", "HP UniPC", "HP DPM-v3"]
PLAIN = {"sampler_name": "Euler", "scheduler": "Karras", "steps": 8}


def hp(args=None, **payload):
    """A request with the accordion's settings."""
    scripts = {"alwayson_scripts": {"HP Sampler": {"args": [args]}}} if args is not None else {}
    return {"sampler_name": "HP Auto", "scheduler": "Automatic", **payload, **scripts}


def from_infotext(server, text, **payload):
    """The picture and the info of a request that says only this; skips where the host itself cannot read that."""
    status, answer = server.post("/sdapi/v1/txt2img", {"infotext": text, **payload})
    if status == 500 and "parameterized generic" in refusal(answer):
        pytest.skip(f"this host's own API cannot read an infotext: {refusal(answer)}")
    assert status == 200, answer
    return decode(answer["images"][0]), json.loads(answer["info"])


def looks_like_a_picture(image):
    return image.std() > 8 and np.unique(image).size > 50


def test_names_in_the_api(server):
    assert [x["name"] for x in server.get("/sdapi/v1/samplers")][-5:] == SAMPLERS
    types = [(x["name"], x["label"]) for x in server.get("/sdapi/v1/schedulers")]
    assert types[-2:] == [("hp", "HP"), ("hp_calibrated", "HP calibrated")]
    assert {"hp sampler"} <= set(server.get("/sdapi/v1/scripts")["txt2img"]) & set(
        server.get("/sdapi/v1/scripts")["img2img"]
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_txt2img(server, sampler):
    images, info = server.txt2img(**hp(sampler_name=sampler))
    assert looks_like_a_picture(images[0]), images[0].std()
    text = info["infotexts"][0]
    assert f"Sampler: {sampler}" in text and "Schedule type: HP" in text and "HP version" in text
    again, _ = server.txt2img(**hp(sampler_name=sampler))
    assert np.array_equal(images[0], again[0])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_img2img_and_inpaint(server, sampler):
    (init,), _ = server.txt2img(**PLAIN)
    images, _ = server.img2img(init, **hp(sampler_name=sampler, denoising_strength=0.6, steps=8))
    assert looks_like_a_picture(images[0]) and not np.array_equal(images[0], init)
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[:, 32:] = 255
    painted, _ = server.img2img(
        init,
        **hp(sampler_name=sampler, mask=encode(mask), denoising_strength=0.9, steps=8, mask_blur=0,
             inpainting_fill=1, inpaint_full_res=False),
    )  # fmt: skip
    difference = np.abs(painted[0].astype(int) - init)
    assert difference[:, 40:].mean() > 3 * difference[:, :24].mean()


@pytest.mark.parametrize("denoise", [0.0, 0.05, 0.3, 1.0])
def test_img2img_at_any_strength(server, denoise):
    (init,), _ = server.txt2img(**PLAIN)
    images, _ = server.img2img(init, **hp(denoising_strength=denoise, steps=5))
    assert np.isfinite(images[0]).all() and images[0].std() > 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_hires_fix(server, sampler):
    images, info = server.txt2img(
        **hp(sampler_name=sampler, enable_hr=True, hr_scale=2, hr_second_pass_steps=6,
             denoising_strength=0.6)
    )  # fmt: skip
    assert images[0].shape == (128, 128, 3) and looks_like_a_picture(images[0])
    assert "Hires steps: 6" in info["infotexts"][0]


def test_hires_fix_with_another_sampler_in_the_second_pass(server):
    images, info = server.txt2img(
        **hp(enable_hr=True, hr_scale=2, denoising_strength=0.6, hr_sampler_name="Euler",
             hr_scheduler="Karras")
    )  # fmt: skip
    assert looks_like_a_picture(images[0])
    assert "Hires schedule type: Karras" in info["infotexts"][0] and "Schedule type: HP" in info["infotexts"][0]


A1111_SAMPLERS = {
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler",
    "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "DDIM", "DDIM CFG++", "PLMS",
    "UniPC", "LCM",
}  # fmt: skip
OWN_TIMES = {"DDIM", "DDIM CFG++", "PLMS", "UniPC", "DPM fast", "DPM adaptive"}


def test_the_hp_schedule_with_every_built_in_sampler(server, host):
    names = [x["name"] for x in server.get("/sdapi/v1/samplers")[:-5]]
    assert host.has_backend or set(names) == A1111_SAMPLERS
    # forks turn UniPC into a sampler that follows a schedule
    own = {name for name in OWN_TIMES if f'"{name}"' in host.text("modules/sd_samplers_timesteps.py").replace("'", '"')}
    own |= {"DPM fast", "DPM adaptive"}
    for name in names:
        images, info = server.txt2img(sampler_name=name, scheduler="HP", steps=6)
        # what a fork adds is its own: some of it draws noise at so few steps
        if name in A1111_SAMPLERS:
            assert looks_like_a_picture(images[0]), name
            assert ("HP note" in info["infotexts"][0]) == (name in own), name
        elif name in host.asks_no_schedule:
            assert f"the sampler {name} makes its own schedule" in info["infotexts"][0], name


def test_the_schedule_s_name_and_label_both_work_in_the_api(server):
    by_label, _ = server.txt2img(sampler_name="Euler", scheduler="HP")
    by_name, _ = server.txt2img(sampler_name="Euler", scheduler="hp")
    other, _ = server.txt2img(sampler_name="Euler", scheduler="Karras")
    assert np.array_equal(by_label[0], by_name[0]) and not np.array_equal(by_label[0], other[0])


def test_list_dict_and_names_in_any_case_are_one(server):
    named, info = server.txt2img(**hp({"recipe": "SD1.5 8 steps", "time_rho": 1.0, "freeu": "off"}, steps=8))
    assert "HP Recipe: SD1.5 8 steps" in info["infotexts"][0] and "HP Time rho: 1.0" in info["infotexts"][0]
    values = {"recipe": "SD1.5 8 steps", "time_rho": 1.0, "freeu": "Off"}
    listed = [True, *(values.get(field.name, field.default) for field in FIELDS)]
    payload = {"sampler_name": "HP Auto", "steps": 8, "alwayson_scripts": {"hp sampler": {"args": listed}}}
    assert np.array_equal(server.txt2img(**payload)[0][0], named[0])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"rho": "seven"}, ["Rho", "seven", "0.1 to 50"]),
        ({"truncation_index": 9, "base_steps": 8}, ["Truncation index", "8", "9"]),
        ({"recipe": "nonsense"}, ["Recipe", "nonsense"]),
        ({"nonsense": 1}, ["nonsense"]),
        ("yes", ["Enabled", "yes"]),
        ({"end_sigma": 5000}, ["End sigma", "5000"]),
    ],
)
def test_a_wrong_value_is_answered_by_name(server, args, words):
    status, answer = server.post("/sdapi/v1/txt2img", {"steps": 5, "width": 64, "height": 64, **hp(args)})
    assert status == 500 and all(word in refusal(answer) for word in words), answer
    assert "HP Sampler" in refusal(answer)


def test_the_accordion_off_or_unused_changes_no_pixel(server, serve):
    bare = serve(extension=False)
    plain, _ = bare.txt2img(**PLAIN)
    for args in (None, False, True, {}, {"rho": 9}):
        scripts = {} if args is None else {"alwayson_scripts": {"HP Sampler": {"args": [args]}}}
        images, info = server.txt2img(**PLAIN, **scripts)
        assert np.array_equal(images[0], plain[0]), args
        text = info["infotexts"][0]
        note = ', HP note: "Rho has no effect, as Euler on the schedule type Karras uses nothing of it"'
        assert "HP" not in text.replace(note, "") and (note in text) == (args == {"rho": 9})
    hires = {**PLAIN, "enable_hr": True, "hr_scale": 2, "denoising_strength": 0.6}
    assert np.array_equal(server.txt2img(**hires)[0][0], bare.txt2img(**hires)[0][0])


def test_freeu_works_with_any_sampler_and_is_gone_after(server):
    before, _ = server.txt2img(**PLAIN)
    for sampler in ("Euler", "DPM++ 2M SDE", "Heun", "DDIM", "UniPC", "DPM adaptive"):
        plain, _ = server.txt2img(sampler_name=sampler, steps=6)
        with_freeu, info = server.txt2img(**hp({"freeu": "On", "freeu_first": 1}, sampler_name=sampler, steps=6))
        assert not np.array_equal(plain[0], with_freeu[0]), sampler
        assert "HP Free-U: On" in info["infotexts"][0]
        assert server.get("/hps-probe/state")["hooks"] == 0
    assert np.array_equal(server.txt2img(**PLAIN)[0][0], before[0])


def test_freeu_with_a_unet_outside_torch_is_told_of(server):
    if not server.host.has_other_unets:
        pytest.skip("this host lets no extension put a UNet of its own in the model's place")
    before, _ = server.txt2img(**PLAIN)
    try:
        _, info = server.txt2img(**hp({"freeu": "On"}, override_settings={"sd_unet": "[probe] outside"}))
    finally:
        # a setting that was never saved the host does not put back by itself
        after, _ = server.txt2img(**PLAIN, override_settings={"sd_unet": "Automatic"})
    assert "the UNet that runs is [probe] outside" in info["extra_generation_params"].get("HP note", ""), info
    assert np.array_equal(after[0], before[0])


@pytest.mark.parametrize("call", [3, 4])
def test_an_exception_in_mid_sampling_leaves_the_next_image_alone(server, call):
    before, _ = server.txt2img(**PLAIN)
    payload = hp({"freeu": "On", "freeu_first": 1}, prompt=f"FAIL AT {call}", width=64, height=64, steps=6)
    status, answer = server.post("/sdapi/v1/txt2img", payload)
    assert status == 500 and "failed on request" in refusal(answer), answer
    assert server.get("/hps-probe/state")["hooks"] > 0, "Free-U was on when it failed, else this tests nothing"
    after, _ = server.txt2img(**PLAIN)
    assert np.array_equal(before[0], after[0])
    assert server.get("/hps-probe/state")["hooks"] == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_seed_gives_one_image_alone_and_in_a_batch(server, sampler):
    batch, _ = server.txt2img(**hp(sampler_name=sampler, batch_size=3, seed=5, steps=6))
    batch = batch[-3:]
    for i in range(3):
        alone, _ = server.txt2img(**hp(sampler_name=sampler, seed=5 + i, steps=6))
        assert np.abs(alone[0].astype(int) - batch[i]).max() <= 1
    counted, _ = server.txt2img(**hp(sampler_name=sampler, n_iter=2, seed=5, steps=6))
    assert np.array_equal(counted[-2:][0], server.txt2img(**hp(sampler_name=sampler, seed=5, steps=6))[0][0])


@pytest.mark.parametrize(("action", "images"), [("interrupt", 1), ("skip", 2)])
def test_interrupt_and_skip(server, action, images):
    plain, _ = server.txt2img(**PLAIN)
    payload = hp({"freeu": "On", "freeu_first": 1}, steps=150, width=128, height=128, n_iter=images)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(server.txt2img, **payload)
        while not server.get("/sdapi/v1/progress?skip_current_image=true")["state"]["sampling_step"] > 2:
            assert not running.done(), running.result()
            time.sleep(0.05)
        server.post(f"/sdapi/v1/{action}", {})
        drawn, _ = running.result(timeout=PATIENCE)
    assert len(drawn) in (images, images + 1), "a grid may come first"
    assert all(image.std() > 5 for image in drawn)
    assert server.get("/hps-probe/state")["hooks"] == 0
    assert np.array_equal(server.txt2img(**PLAIN)[0][0], plain[0])


def test_live_preview_changes_nothing(server):
    on, _ = server.txt2img(**hp(override_settings={"live_previews_enable": True}))
    off, _ = server.txt2img(**hp(override_settings={"live_previews_enable": False}))
    assert np.array_equal(on[0], off[0])


def test_the_infotext_draws_the_same_image_again(server):
    settings = {"base_steps": 10, "rho": 6.5, "truncation_index": 7, "ending": "Extrapolated", "freeu": "On", "b1": 1.2}
    first, info = server.txt2img(**hp(settings, sampler_name="HP DPM++ 2M", steps=6))
    again, info_again = from_infotext(server, info["infotexts"][0])
    assert np.array_equal(first[0], again)
    assert [x for x in info_again["infotexts"][0].split(", ") if x.startswith("HP")] == [
        x for x in info["infotexts"][0].split(", ") if x.startswith("HP")
    ]


def test_the_refiner_switches_models_in_mid_run(server):
    images, info = server.txt2img(
        **hp(
            {"freeu": "On", "freeu_first": 1},
            steps=8,
            refiner_checkpoint="hps-tiny-sd15-v.safetensors",
            refiner_switch_at=0.5,
        )
    )
    assert looks_like_a_picture(images[0]) and "Refiner" in info["infotexts"][0]
    assert server.get("/hps-probe/state")["hooks"] == 0
    plain, _ = server.txt2img(**PLAIN)
    assert looks_like_a_picture(plain[0])


def test_v_prediction_and_zero_terminal_snr(server):
    for settings in ({}, {"sd_noise_schedule": "Zero Terminal SNR"}):
        images, info = server.txt2img(
            **hp(steps=6, override_settings={"sd_model_checkpoint": "hps-tiny-sd15-v.safetensors", **settings})
        )
        assert np.isfinite(images[0]).all() and images[0].std() > 5, settings
        assert "Model: hps-tiny-sd15-v" in info["infotexts"][0]
        assert ("Noise Schedule: Zero Terminal SNR" in info["infotexts"][0]) == bool(settings)


def test_one_more_call_says_so_and_differs(server):
    kept, _ = server.txt2img(**hp())
    clean, info = server.txt2img(**hp({"ending": "One more call"}))
    assert not np.array_equal(kept[0], clean[0]) and "HP Ending: One more call" in info["infotexts"][0]


def test_a_preset_at_another_step_count_says_so(server):
    _, info = server.txt2img(**hp({"recipe": "SD1.5 5 steps"}, steps=8))
    assert "made for 5 steps" in json.dumps(info)


def test_the_host_s_own_sigma_settings_are_honoured(server):
    images, info = server.txt2img(**hp(override_settings={"sigma_max": 10}))
    plain, _ = server.txt2img(**hp(override_settings={"sigma_max": 0}))
    assert "Schedule max sigma: 10" in info["infotexts"][0] and not np.array_equal(images[0], plain[0])


@pytest.mark.parametrize("payload", [{"sampler_name": "HP Auto"}, {"sampler_name": "Euler", "scheduler": "HP"}])
def test_a_model_that_is_not_covered_is_refused_in_one_sentence(server, payload):
    """No flow model is this small, so the checkpoint is made to say that it is one."""
    server.txt2img(**PLAIN)  # forks load the chosen model only now
    server.get("/hps-probe/pretend-flow?on=true")
    try:
        status, answer = server.post("/sdapi/v1/txt2img", {"width": 64, "height": 64, "steps": 5, **payload})
    finally:
        server.get("/hps-probe/pretend-flow?on=false")
    assert status == 500 and "HP Sampler covers SD 1.x, SD 2.x and SDXL" in refusal(answer), answer
    assert looks_like_a_picture(server.txt2img(**hp())[0][0])


def test_xyz_grid_knows_our_samplers_and_schedule(server):
    args = server.xyz_args(("Sampler", ["HP Auto", "HP DPM++ 2M", "Euler"]), csv=False)
    images, info = server.txt2img(sampler_name="Euler", script_name="x/y/z plot", script_args=args)
    assert "HP Auto" in info["infotexts"][0] and len(images) >= 1


def test_xyz_grid_over_the_schedule_type(server):
    args = server.xyz_args(("Schedule type", ["HP", "Karras"]), csv=False, include_lone_images=True)
    images, info = server.txt2img(sampler_name="HP DPM++ 2M", script_name="x/y/z plot", script_args=args)
    assert ["Schedule type: HP" in text for text in info["infotexts"][-2:]] == [True, False]
    assert not np.array_equal(images[-2], images[-1])


def test_nothing_of_ours_was_reported_as_an_error(server):
    """The host prints what hooks and callbacks raise; the failures asked for above are not ours."""
    log = server.log()
    blocks = [block for block in log.split("*** ") if "hpsampler" in block and block.startswith("Error")]
    unexpected = [block for block in blocks if "HP Sampler:" not in block and "failed on request" not in block]
    assert not unexpected, unexpected[0][:2000]
