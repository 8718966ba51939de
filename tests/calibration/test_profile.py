"""Profiles and their store: files are read exactly or refused with a message, and nothing that was saved is lost."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.problems import PROBLEMS
from bench.schedules import stable_diffusion_noise
from hpsampler import files
from hpsampler.calibration.joint import rounded
from hpsampler.calibration.profile import (
    AREA_REACH,
    CFG_REACH,
    Fitted,
    Profile,
    ProfileStore,
    Refused,
    Target,
)
from hpsampler.calibration.trajectories import MultistepSchedule
from hpsampler.files import write_atomically
from hpsampler.noise import NoiseModel
from hpsampler.recipes import recipe_for
from hpsampler.solvers import SOLVERS
from hpsampler.store import MAX_FILE, StoreError, clean_name

TABLE = stable_diffusion_noise()


def fitted(steps=3, cfg_scale=7.0, gain=2.0, end=0.0, last=0.5):
    """A fitted schedule; ``last``, its last factor, makes schedules with equally many steps differ."""
    sigmas = [TABLE.sigma_max * 0.4**index for index in range(steps)]
    return Fitted(
        steps, cfg_scale, (*rounded(sigmas), end), (0.0, *[1.25] * (steps - 2), last), "Auto",
        {"Auto": 0.4, "Karras": 0.2 * gain, "calibrated": 0.2}, 0.05, 3000,
    )  # fmt: skip


def profile(name="my model", *cells, **others):
    values = {
        "model": "some_checkpoint", "hashes": ("aaaa111122", "bbbb"), "family": "sd1", "width": 512, "height": 512,
        "sigma_min": TABLE.sigma_min, "sigma_max": TABLE.sigma_max, "trajectories": 24, "held_out": 24, "seed": 1,
        "decoder": ((0.03, 0.004), (0.06, 0.0081)),
    }  # fmt: skip
    return Profile(name=name, fitted=cells or (fitted(),), **{**values, **others})


def target(cfg_scale=7.0, width=512, height=512, hashes=("bbbb",), noise=TABLE):
    return Target(frozenset(hashes), "sd1", noise, width, height, cfg_scale)


@pytest.fixture
def store(tmp_path):
    return ProfileStore(tmp_path / "calibrations")


def files_of(store):
    return {path.name: path.read_bytes() for path in store.folder.iterdir() if path.is_file()}


# ---- one profile as text ---------------------------------------------------------------------------------------------

names = st.text("aZ9é日 .()+-_", min_size=1, max_size=12).map(lambda text: "n" + text).map(clean_name)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
errors = st.floats(1e-12, 1e12)


@st.composite
def any_fitted(draw):
    steps = draw(st.integers(2, 12))
    sigmas = [draw(st.floats(1, 1e4))]
    for _ in range(steps - 1):
        sigmas.append(sigmas[-1] * draw(st.floats(0.4, 0.999)))
    sigmas.append(draw(st.just(0.0) | st.just(sigmas[-1] / 3)))
    factors = [0.0, *draw(st.lists(st.floats(-10, 10), min_size=steps - 1, max_size=steps - 1))]
    held_out = draw(st.dictionaries(texts, errors, min_size=1, max_size=4)) | {"calibrated": draw(errors)}
    if len(held_out) < 2:
        held_out["Auto"] = draw(errors)
    cfg_scale, calls = draw(st.floats(0.01, 1000)), draw(st.integers(0, 10**12))
    return Fitted(steps, cfg_scale, tuple(sigmas), tuple(factors), draw(texts), held_out, draw(errors), calls)


any_refused = st.builds(Refused, st.integers(2, 150), st.floats(0.01, 1000), texts)
any_profile = st.builds(
    Profile, names, texts, st.lists(texts, min_size=1, max_size=3).map(tuple), st.sampled_from(["sd1", "sd2", "sdxl"]),
    st.integers(64, 8192), st.integers(64, 8192), st.floats(0, 1), st.floats(1.5, 1e4), st.integers(1, 10**6),
    st.integers(1, 10**6), st.integers(0, 2**63), st.lists(any_fitted(), max_size=3).map(tuple),
    st.lists(any_refused, max_size=2).map(tuple),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1)), max_size=3).map(tuple),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(any_profile, names)
def test_a_file_round_trip_is_exact(example, new_name):
    again = Profile.from_json(example.to_json())
    assert again == example and again.to_json() == example.to_json()
    renamed = Profile.from_json(replace(example, name=new_name).to_json())
    assert [each.hash for each in renamed.fitted] == [each.hash for each in example.fitted]


def test_the_hash_depends_on_all_numbers_that_determine_the_picture():
    one = fitted()
    assert len(one.hash) == 8 and int(one.hash, 16) >= 0
    assert replace(one, start="Karras", baseline=1.0, calls=1, cfg_scale=3.0).hash == one.hash
    whole = replace(one, sigmas=(14, 5, 2, 0), factors=(0, 1, 1))
    assert Profile.from_json(profile("x", whole).to_json()).fitted[0].hash == whole.hash, "14 and 14.0 are one number"
    others = [replace(one, sigmas=(*one.sigmas[:-1], 0.1)), replace(one, factors=(0.0, 1.25, 0.5000001))]
    assert len({each.hash for each in (one, *others)}) == 3


def test_sigmas_are_stored_with_all_digits_of_single_precision():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 15
    kept = torch.tensor(rounded(values.tolist()), dtype=torch.float64)
    assert ((kept - values).abs() <= values * 5.1e-8).all()
    assert rounded(rounded(values.tolist())) == rounded(values.tolist())


WHOLE = json.loads(replace(profile(), refused=(Refused(2, 7.0, "gave nothing"),)).to_json())

NESTED: list = []
for _ in range(50):
    NESTED = [NESTED]

NO_NUMBER = [None, True, False, "7", [7], {}, NESTED, math.nan, math.inf, -math.inf, 10**400, -(10**400), 1e300, -1e300]
NO_WHOLE = [*NO_NUMBER, 7.5, 7.0]
NO_TEXT = [None, True, 5, 0.5, [], ["x"], {}, NESTED, "", " \n", "x" * 5000, "half \ud800"]
NO_LIST = [None, True, 5, "ab", {}, {"0": 1}, [NESTED], [None], [True], [0] * 5000]

WRONG = {
    "format": [None, True, 1, "", "hpsampler", NESTED, []],
    "version": [None, True, 1.0, "1", 4, 0, -1, 10**400, NESTED, "x" * 10_000, math.nan],
    "name": [*NO_TEXT, "Auto", "off", "a,b", "../x", "x" * 61],
    "model": NO_TEXT,
    "hashes": [*NO_LIST, [], [5], [""], ["a", None]],
    "hashes.0": NO_TEXT,
    "family": [*NO_TEXT, "sd3", "SD1", "sd1 "],
    "width": [*NO_WHOLE, 63, 8193, 0],
    "height": [*NO_WHOLE, 63, 8193, 0],
    "sigma_min": [*NO_NUMBER, -1e-9, 10_001, 14.7],
    "sigma_max": [*NO_NUMBER, 10_001, 0, 0.0291],
    "trajectories": [*NO_WHOLE, 0, -1, 10**6 + 1],
    "held_out": [*NO_WHOLE, 0, 10**6 + 1],
    "seed": [*NO_WHOLE, -1, 2**63 + 1],
    "fitted": NO_LIST,
    "fitted.0": [None, 5, "x", [], True],
    "fitted.0.steps": [*NO_WHOLE, 1, 2, 4, 151],
    "fitted.0.cfg_scale": [*NO_NUMBER, 0, 0.0099, 1000.1],
    "fitted.0.sigmas": [*NO_LIST, [], [14.6, 5, 2], [14.6, 5, 2, 1, 0], [14.6, 5, 5, 0], [5, 14.6, 2, 0],
                        [14.6, 5, 0, 0], [14.6, 5, 0, -1], [14.6, 1e-7, 1e-8, 0], [14.6, 5, 2, 1e-50],
                        [14.6, 5, 5 - 1e-7, 0], [1e5, 5, 2, 0], [14.6, 5, math.nan, 0]],
    "fitted.0.sigmas.1": [*NO_NUMBER, -0.1],
    "fitted.0.factors": [*NO_LIST, [], [0, 1], [0, 1, 1, 1], [0.1, 1, 1], [0, 11, 1], [0, -10.5, 1]],
    "fitted.0.factors.2": NO_NUMBER,
    "fitted.0.start": NO_TEXT,
    "fitted.0.held_out": [None, 5, "x", [], {}, {"Auto": 1.0}, {"calibrated": 1.0}, {"calibrated": 1, "": 1},
                          {"calibrated": 1, "x" * 101: 1}, {"calibrated": 1, "\udc00": 1},
                          {"calibrated": 1} | {str(index): 1 for index in range(64)}],
    "fitted.0.held_out.calibrated": [*NO_NUMBER, 0, -1],
    "fitted.0.held_out.Auto": [*NO_NUMBER, 0],
    "fitted.0.yardstick": NO_NUMBER,
    "fitted.0.calls": [*NO_WHOLE, -1],
    "refused": NO_LIST,
    "refused.0": [None, 5, "x", [], True],
    "refused.0.steps": [*NO_WHOLE, 1, 151],
    "refused.0.cfg_scale": [*NO_NUMBER, 0],
    "refused.0.reason": NO_TEXT,
    "decoder": NO_LIST,
    "decoder.0": [None, 5, "ab", {}, [], [1], [1, 2, 3]],
    "decoder.0.0": NO_NUMBER,
    "decoder.0.1": NO_NUMBER,
}  # fmt: skip


def steps_of(path):
    return [int(step) if step.isdigit() else step for step in path.split(".")]


def put(path, value, data=WHOLE):
    """A copy of the data with one value replaced."""
    data = copy.deepcopy(data)
    *above, last = steps_of(path)
    inner = data
    for step in above:
        inner = inner[step]
    inner[last] = value
    return data


def name_in_words(path):
    """The field as messages name it; for a member of a pair that is the pair."""
    words = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps_of(path)).removeprefix(".")
    return words[:10] if words.startswith("decoder[0][") else words


def all_paths(data, path=()):
    found = []
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        here = (*path, str(key))
        found.append(".".join(here))
        if isinstance(value, (dict, list)):
            found += all_paths(value, here)
    return found


def test_the_list_of_wrong_values_has_every_field():
    assert Profile.from_json(json.dumps(WHOLE)).to_json() == json.dumps(WHOLE, indent=1) + "\n"
    assert set(WRONG) <= set(all_paths(WHOLE))
    fields = {path for path in all_paths(WHOLE) if not path.rpartition(".")[2].isdigit()}
    assert fields - set(WRONG) == {"fitted.0.held_out.Karras"}


@pytest.mark.parametrize("path", WRONG)
def test_a_wrong_value_is_refused_with_field_value_and_what_is_allowed(path):
    for value in WRONG[path]:
        with pytest.raises(StoreError) as error:
            Profile.from_json(json.dumps(put(path, value)))
        message = str(error.value)
        assert type(error.value) is StoreError and len(message) < 400, (value, message)
        if path == "format":
            assert "format must be 'hpsampler calibration'" in message
        elif path == "fitted.0.steps" and value in (2, 4) and type(value) is int:
            assert f"fitted[0].sigmas must be {value + 1} numbers" in message
        elif path == "sigma_min" and value == 14.7:
            assert "sigma_max must be above sigma_min (14.7), got 14.6" in message
        else:
            assert name_in_words(path) in message and "must" in message and "got" in message, (value, message)


@pytest.mark.parametrize("path", [path for path in all_paths(WHOLE) if not path.rpartition(".")[2].isdigit()])
def test_a_missing_field_is_named(path):
    data = copy.deepcopy(WHOLE)
    *above, last = steps_of(path)
    inner = data
    for step in above:
        inner = inner[step]
    del inner[last]
    if path in ("fitted.0.held_out.Auto", "fitted.0.held_out.Karras"):
        assert last not in Profile.from_json(json.dumps(data)).fitted[0].held_out
        return
    with pytest.raises(StoreError) as error:
        Profile.from_json(json.dumps(data))
    assert last in str(error.value)
    if path not in ("format", "version", "fitted.0.held_out.calibrated"):
        assert str(error.value) == f"{name_in_words(path)} is missing"


def test_values_at_the_edge_of_what_is_allowed_are_read():
    edges = {
        "width": 64, "height": 8192, "sigma_min": 0, "sigma_max": 10_000, "trajectories": 1, "held_out": 10**6,
        "seed": 2**63, "fitted.0.cfg_scale": 0.01, "fitted.0.yardstick": 0, "fitted.0.calls": 10**12,
        "fitted.0.sigmas.3": 0.5, "fitted.0.factors.1": -10, "fitted.0.held_out.Auto": 1e12, "refused.0.steps": 150,
        "refused.0.cfg_scale": 1000, "fitted": [], "refused": [], "decoder": [], "model": "x" * 4096, "name": "x" * 60,
    }  # fmt: skip
    for path, value in edges.items():
        read = json.loads(Profile.from_json(json.dumps(put(path, value))).to_json())
        assert read == put(path, value), path


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from([10**400, "sd2"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def read_or_refused(text):
    """The text must be read or refused; a profile that is read has finite numbers only and can be stored."""
    try:
        example = Profile.from_json(text)
    except StoreError as error:
        assert 0 < len(str(error)) < 400
        return
    json.dumps(json.loads(example.to_json()), allow_nan=False)
    assert Profile.from_json(example.to_json()) == example
    for each in example.fitted:
        levels = example.recipe(each, recipe_for("sd1", each.steps, 7.0), 7.0).sigmas(TABLE)
        assert (levels.diff() < 0).all() and (levels[:-1] > 0).all()


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(all_paths(WHOLE)), json_values)
def test_any_value_in_any_place_is_read_or_refused(path, value):
    read_or_refused(json.dumps(put(path, value)))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2000), st.integers(0, 40), st.text('0123456789.eE-+",:[]{}nul NaIfity\ud800\x00', max_size=6))
def test_any_damage_to_the_text_is_read_or_refused(at, length, instead):
    text = json.dumps(WHOLE)
    read_or_refused(text[:at] + instead + text[at + length :])


@pytest.mark.parametrize("text", [
    "", " ", "{", "[]", "null", "5", "NaN", '"x"', "{}", '{"format": []}', "[" * 200_000, '{"a":' * 100_000, "\x00",
    "9" * 10_000, json.dumps(WHOLE)[:-2], json.dumps(WHOLE) * 2, " " * MAX_FILE + json.dumps(WHOLE), None, b"{}", {},
], ids=range(20))  # fmt: skip
def test_anything_but_a_calibration_is_refused(text):
    with pytest.raises(StoreError, match=r"not a JSON file|not a calibration of HP Sampler"):
        Profile.from_json(text)


def test_a_value_nested_too_deeply_for_the_message_is_refused():
    # where the parser just manages, the message's own recursion may not
    for depth in range(700, 1000, 3):
        text = json.dumps(put("width", 0)).replace('"width": 0', f'"width": {"[" * depth}{"]" * depth}')
        with pytest.raises(StoreError, match=r"width must be a whole number|not a JSON file"):
            Profile.from_json(text)


def test_a_byte_order_mark_is_accepted():
    assert Profile.from_json("\ufeff" + json.dumps(WHOLE)).name == "my model"


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a", "a"), ("  my \t model\n", "my model"), ("x" * 60, "x" * 60), ("v1.5 (pruned) + vae-ft_2", None),
        ("日本語 モデル", None), ("Ünïcode", None), ("e\u0301tude", "étude"), ("नीला", None), ("7", None),
        ("Automatic", None), ("offline", None), ("a..b", None), ("con", None),
    ],
)  # fmt: skip
def test_valid_names(given, kept):
    assert clean_name(given) == (kept or given) == clean_name(clean_name(given))


@pytest.mark.parametrize("name", [
    "", "   ", "x" * 61, "../x", "/etc/passwd", "a/b", "a\\b", "C:x", "..", ".", "-x", " .x", "_x", "a,b", "a:b",
    "a; b", 'a"b', "a'b", "a<b>", "a&b", "a|b", "a*b", "a\x00b", "a\u200bb", "a\ud800", "🦊", "(x)", "\u0301x",
    "Auto", "auto", " AUTO ", "Off", "oFF", None, True, 5, ["x"], b"x",
])  # fmt: skip
def test_invalid_names_are_refused_with_a_message(name):
    with pytest.raises(StoreError, match=r"^name must") as error:
        clean_name(name, ProfileStore.reserved)
    assert "got " in str(error.value) and len(str(error.value)) < 250


# ---- which one fits --------------------------------------------------------------------------------------------------


def test_the_reason_why_a_profile_does_not_fit():
    example = profile()
    assert example.mismatch(target()) == example.mismatch(target(hashes=("other", "aaaa111122"))) == ""
    assert example.mismatch(target(hashes=("AAAA",))) == "it was made for the model some_checkpoint"
    assert example.mismatch(target(hashes=())) == "it was made for the model some_checkpoint"
    for scale, changed in ((1.0009, False), (1.0011, True), (1 / 1.0009, False), (0.5, True)):
        for low, high in ((scale, 1), (1, scale)):
            sigmas = TABLE.sigmas.copy()
            sigmas[0] *= low
            sigmas[-1] *= high
            if (sigmas[1:] <= sigmas[:-1]).any():
                sigmas.sort()
            message = example.mismatch(target(noise=NoiseModel.from_sigmas(sigmas)))
            assert message == ("the model's noise table has changed since" if changed else ""), (low, high)
    assert example.mismatch(target(width=1024)) == "it was made at 512x512, the picture is 1024x512"


@pytest.mark.parametrize(("width", "height", "fits"), [
    (1000, 1000, True), (1800, 1000, True), (1801, 1000, False), (556, 1000, True), (555, 1000, False),
    (500, 2000, True), (0, 1000, False),
])  # fmt: skip
def test_pictures_of_similar_area_fit(width, height, fits):
    assert AREA_REACH == 1.8
    example = profile(width=1000, height=1000)
    assert (example.mismatch(target(width=width, height=height)) == "") == fits
    if fits:
        back = profile(width=width, height=height)
        assert back.mismatch(target(width=1000, height=1000)) == "", "it is the same both ways"


@pytest.mark.parametrize(("cfg_scale", "found"), [
    (7.0, True), (10.5, True), (10.51, False), (7 / 1.5, True), (4.66, False), (1.0, False), (0.0, False),
    (-7.0, False), (math.nan, False), (math.inf, False), (-math.inf, False), (5e-324, False), (1.7e308, False),
])  # fmt: skip
def test_schedules_near_in_guidance_scale_are_found(cfg_scale, found):
    assert CFG_REACH == 1.5
    example = profile("x", fitted())
    assert example.find(3, target(cfg_scale)) is (example.fitted[0] if found else None)


def test_the_nearest_of_that_many_steps_is_found():
    cells = fitted(3, 6.0), fitted(3, 7.0), fitted(4, 6.6), fitted(3, 6.5)
    example = profile("x", *cells)
    near = {6.7: 3, 6.8: 1, 6.2: 0, 5.3: 0, 8.0: 1}
    assert {cfg: example.fitted.index(example.find(3, target(cfg))) for cfg in near} == near
    assert example.find(4, target(6.6)) is cells[2] and example.find(5, target(6.6)) is None
    assert example.find(3, target(7.0, hashes=("no",))) is None and example.find(3, target(7.0, width=64)) is None


def test_in_a_profile_of_refused_fits_nothing_is_found():
    example = replace(profile(), fitted=(), refused=(Refused(3, 7.0, "gave nothing"),))
    assert Profile.from_json(example.to_json()) == example
    assert example.mismatch(target()) == "" and example.find(3, target()) is None


@pytest.mark.parametrize("end", [0.0, 0.13])
def test_its_recipe_has_the_calibrated_schedule(end):
    example = profile("x", fitted(5, 7.0, end=end))
    (own,) = example.fitted
    base = recipe_for("sd1", 5, 7.0)
    recipe = example.recipe(own, base, 6.0)
    sigmas = recipe.sigmas(TABLE, sigma_min=0.1, sigma_max=10.0)
    assert sigmas.dtype == torch.float32 and sigmas.tolist() == pytest.approx(own.sigmas, rel=6e-8)
    assert recipe.options() == {"factors": own.factors} and recipe.ending == ("keep" if end else "zero")
    assert (recipe.steps, recipe.solver, recipe.calibration) == (5, "dpmpp_2m", f"x {own.hash}")
    assert (recipe.name, recipe.freeu) == (base.name, base.freeu)
    problem = PROBLEMS["toy2d"]()
    model, unit = problem.model(problem.labels(8), 3.0), problem.noise(8, seed=1)
    drawn = SOLVERS[recipe.solver](model, unit * sigmas[0], sigmas, **recipe.options())
    wanted = MultistepSchedule(own.sigmas, own.factors).sample(model, unit)
    torch.testing.assert_close(drawn, wanted, rtol=1e-5, atol=1e-5)
    plain = SOLVERS["dpmpp_2m"](model, unit * sigmas[0], sigmas)
    assert not torch.allclose(plain, wanted, rtol=1e-3, atol=1e-3), "the factors matter"


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_empty_until_something_is_saved(store):
    assert store.read() == ([], []) and store.names() == [] and not store.folder.exists()
    assert store.best(3, target()) is None and store.by_label("x 00000000") is None
    with pytest.raises(StoreError, match="there is no calibration named 'x'; there are: none yet"):
        store.get("x")
    assert store.save(profile("x")) == store.get("x") and files_of(store).keys() == {"x.json"}


def test_profiles_are_sorted_without_regard_to_case(store):
    for name in ("b", "C", "a", "A"):
        store.save(profile(name))
    assert [name.lower() for name in store.names()] == ["a", "a", "b", "c"]


BROKEN = {
    "empty": b"",
    "cut": profile().to_json().encode()[:200],
    "binary": bytes(range(256)) * 10,
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    "utf-16": profile().to_json().encode("utf-16"),
    "latin": json.dumps({**WHOLE, "model": "é"}, ensure_ascii=False).encode("latin-1"),
    "huge": b" " * (MAX_FILE + 1),
    "deep": b"[" * 100_000,
    "list": b"[]",
    "other": b'{"a": 1}',
    "newer": json.dumps({**WHOLE, "version": 4}).encode(),
    "nan": json.dumps(put("fitted.0.yardstick", math.nan)).encode(),
    "path": json.dumps({**WHOLE, "name": "../../x"}).encode(),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_reported_and_left_alone(store, kind):
    store.save(profile("whole", fitted(last=0.3)))
    (store.folder / "mine.json").write_bytes(BROKEN[kind])
    found, (problem,) = store.read()
    assert [each.name for each in found] == ["whole"] and problem.startswith("mine.json: ") and len(problem) < 300
    assert str(store.folder) not in problem
    store.save(profile("mine"))
    store.save(profile("mine"), replacing=True)
    store.rename("whole", "whole 2")
    store.delete("mine")
    assert (store.folder / "mine.json").read_bytes() == BROKEN[kind]
    assert store.names() == ["whole 2"] and store.best(3, target())[0].name == "whole 2"


def test_folders_and_other_files_are_ignored(store):
    store.save(profile("x"))
    (store.folder / "folder.json").mkdir()
    (store.folder / "gone.json").symlink_to(store.folder / "nowhere")
    (store.folder / "y.json.123-4.part").write_text(profile("y").to_json())
    (store.folder / "readme.txt").write_text("hello")
    found, problems = store.read()
    assert [each.name for each in found] == ["x"] and problems == ["folder.json: not a file"]
    store.save(profile("folder"))
    store.save(profile("gone"))
    assert store.names() == ["folder", "gone", "x"] and (store.folder / "gone.json").is_symlink()


def test_of_two_files_with_one_name_one_is_used_and_the_other_reported(store):
    store.save(profile("x", fitted(last=0.1)))
    (store.folder / "zz.json").write_text(profile("x", fitted(last=0.2)).to_json())
    found, problems = store.read()
    assert [each.fitted[0].factors[-1] for each in found] == [0.1]
    assert problems == ["zz.json: another file holds a calibration named 'x'"]
    # what is written, renamed and deleted is the one that is shown
    store.save(profile("x", fitted(last=0.3)), replacing=True)
    assert store.get("x").fitted[0].factors[-1] == 0.3
    store.rename("x", "y")
    assert {each.name: each.fitted[0].factors[-1] for each in store.read()[0]} == {"x": 0.2, "y": 0.3}
    store.delete("x")
    assert store.names() == ["y"] and files_of(store).keys() == {"x.json"}


def test_saving_never_overwrites_another(store):
    saved = [store.save(profile("my model", fitted(last=0.1 * n))) for n in range(3)]
    assert [each.name for each in saved] == ["my model", "my model 2", "my model 3"] == store.names()
    assert [store.get(each.name) for each in saved] == saved
    # other names for which the same file would be chosen
    assert [store.save(profile(name)).name for name in ("my-model", "My.Model")] == ["my-model", "My.Model"]
    assert len(store.names()) == len(files_of(store)) == 5
    again = store.save(replace(saved[1], model="changed"), replacing=True)
    assert again.name == "my model 2" and store.get("my model 2").model == "changed" and len(files_of(store)) == 5
    assert store.save(profile("new"), replacing=True).name == "new"


def test_a_long_name_stays_valid(store):
    long = "x" * 59 + "y"
    saved = [store.save(profile(long)).name for _ in range(11)]
    assert len(set(saved)) == 11 and max(map(len, saved)) == 60 and store.read()[1] == []
    assert saved[1] == "x" * 58 + " 2" and saved[10] == "x" * 57 + " 11"
    blank = "x" * 57 + " ab"
    assert [store.save(profile(blank)).name for _ in range(2)][1] == "x" * 57 + " 2"


@pytest.mark.parametrize(("name", "file"), [
    ("日本", "calibration.json"), ("nul", "calibration-nul.json"), ("Con", "calibration-con.json"),
    ("com1", "calibration-com1.json"), ("a..b", "a-b.json"), ("A (2)", "a-2.json"), ("constant", "constant.json"),
])  # fmt: skip
def test_a_file_s_name_is_safe_on_every_system(store, name, file):
    store.save(profile(name))
    assert files_of(store).keys() == {file} and store.names() == [name]


def test_files_are_not_overwritten_where_case_is_ignored(store):
    store.folder.mkdir()
    (store.folder / "Mine.JSON").write_text("people's own")
    store.save(profile("mine"))
    assert files_of(store).keys() == {"Mine.JSON", "mine-2.json"}


def test_what_could_not_be_read_back_is_not_written(store):
    store.save(profile("x"))
    before = files_of(store)
    for wrong in ({"hashes": ()}, {"model": ""}, {"family": "sd9"}, {"decoder": ((0.03, math.nan),)}, {"seed": -1},
                  {"fitted": (replace(fitted(), held_out={"Auto": math.inf, "calibrated": 0.1}),)}):  # fmt: skip
        with pytest.raises(StoreError, match=f"{next(iter(wrong))}"):
            store.save(replace(profile("x"), **wrong), replacing=True)
    with pytest.raises(StoreError, match="name must"):
        store.save(profile("a/b"))
    assert files_of(store) == before


def test_renaming(store):
    store.save(profile("x", fitted(last=0.1)))
    store.save(profile("y"))
    renamed = store.rename("x", " new  name ")
    assert renamed.name == "new name" and store.get("new name") == renamed and store.names() == ["new name", "y"]
    assert store.rename("y", "y").name == "y" and len(files_of(store)) == 2
    for wrong, message in (
        ("y", "name must be a new one.*'y' already"),
        ("off", "name must be one"),
        ("", "name must be 1"),
    ):
        with pytest.raises(StoreError, match=message):
            store.rename("new name", wrong)
    with pytest.raises(StoreError, match="no calibration named 'x'; there are: new name, y"):
        store.rename("x", "z")
    assert store.names() == ["new name", "y"]


def test_deleting(store):
    store.save(profile("x"))
    store.save(profile("y"))
    store.delete("x")
    assert store.names() == ["y"]
    for name in ("x", "../calibrations/y", "y.json", ""):
        with pytest.raises(StoreError, match="there is no calibration named"):
            store.delete(name)
    assert store.names() == ["y"]


def test_importing_a_file(store):
    store.save(profile("x", fitted(last=0.1)))
    taken, said = store.import_json(profile("x", fitted(last=0.2)).to_json())
    assert taken.name == "x 2" and "'x' is the name of another one here" in said
    taken, said = store.import_json(profile("y", fitted(last=0.2)).to_json())
    assert taken.name == "x 2" and said.endswith("is here already, as 'x 2'; nothing was added")
    assert store.names() == ["x", "x 2"] and store.get("x").fitted[0].factors[-1] == 0.1
    before = files_of(store)
    for text in ("", "{}", json.dumps({**WHOLE, "name": "../x"}), json.dumps(put("fitted.0.calls", math.nan))):
        with pytest.raises(StoreError):
            store.import_json(text)
    assert files_of(store) == before


def test_a_picture_s_label_finds_its_schedule_after_renaming_and_growth(store):
    one, other = fitted(last=0.1), fitted(4, last=0.2)
    example = store.save(profile("x", one))
    label = example.label(one)
    store.save(replace(example, fitted=(other, one)), replacing=True)
    store.save(profile("x y"))
    store.rename("x", "quite another")
    found, each = store.by_label(label)
    assert (found.name, each) == ("quite another", one)
    assert store.by_label(f" {one.hash} ")[1] == one
    for wrong in ("", "x", "quite another", f"{label}0", label[:-1], "; "):
        assert store.by_label(wrong) is None, wrong
    store.save(profile("copy", one))
    assert store.by_label(f"copy {one.hash}")[0].name == "copy"
    assert store.by_label(f"quite another {one.hash}")[0].name == "quite another"


def test_the_best_is_the_nearest_and_then_that_of_the_greatest_gain(store):
    assert fitted(gain=1.5).gain == pytest.approx(1.5) and fitted(gain=9).gain == pytest.approx(2), "over the best"
    store.save(profile("far", fitted(3, 6.5, gain=1.9, last=0.1)))
    store.save(profile("low", fitted(3, 7.0, gain=1.2, last=0.2)))
    store.save(profile("high", fitted(3, 7.0, gain=1.8, last=0.3)))
    store.save(profile("other model", fitted(3, 7.0, gain=2.0, last=0.4), hashes=("cccc",)))
    store.save(replace(profile("refused"), fitted=(), refused=(Refused(3, 7.0, "nothing"),)))
    assert store.best(3, target(7.0))[0].name == "high"
    assert store.best(3, target(6.6))[0].name == "far"
    assert store.best(4, target(7.0)) is None and store.best(3, target(2.0)) is None
    assert store.best(3, target(math.nan)) is None
    found, each = store.best(3, target(7.0))
    assert each is found.fitted[0]


def test_the_schedule_that_a_user_named_or_the_reason_why_there_is_none(store):
    one, other = fitted(3, last=0.1), fitted(4, last=0.2)
    store.save(profile("x", one, other))
    store.save(profile("y", fitted(5, last=0.3)))
    assert store.pick("x", 3, target())[0][1] == one
    assert store.pick("x", 9, target()) == (None, "it has no 9 steps near CFG 7")
    assert store.pick("x", 3, target(3.0)) == (None, "it has no 3 steps near CFG 3")
    assert store.pick("x", 3, target(hashes=())) == (None, "it was made for the model some_checkpoint")
    labels = f"gone 00000000; old {one.hash}; x {other.hash}"
    # a picture is drawn again as it was, whatever the target
    assert store.pick(labels, 4, target(1.0, hashes=()))[0][1] == other
    assert store.pick(labels, 5, target()) == (None, "it is for 3 steps, not 5")
    for wrong in ("z", "", "x 00000000", "; "):
        with pytest.raises(StoreError, match=f"no calibration '{wrong}' here; there are: x, y"):
            store.pick(wrong, 3, target())


# ---- concurrent and interrupted writes -------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [OSError("disk"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_file_as_it_was(store, monkeypatch, fault):
    store.save(profile("x", fitted(last=0.1)))
    before = files_of(store)

    def broken(*_):
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", broken)
        for act in (
            lambda: store.save(profile("x", fitted(last=0.2)), replacing=True),
            lambda: store.save(profile("new")),
            lambda: store.rename("x", "y"),
        ):
            with pytest.raises(type(fault)):
                act()
    assert files_of(store) == before and store.read()[1] == []
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", lambda self, text, **_: self.write_bytes(text[:50].encode()) and broken())
        with pytest.raises(type(fault)):
            store.save(profile("x", fitted(last=0.2)), replacing=True)
    assert files_of(store) == before
    store.save(profile("x", fitted(last=0.2)), replacing=True)
    assert store.get("x").fitted[0].factors[-1] == 0.2


def test_replacing_a_file_that_is_being_read_is_tried_again(tmp_path, monkeypatch):
    path, own, refusals = tmp_path / "a.json", os.replace, [PermissionError()] * 3

    def stubborn(*paths):
        if refusals:
            raise refusals.pop()
        own(*paths)

    monkeypatch.setattr(os, "replace", stubborn)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    write_atomically(path, "new")
    assert path.read_text() == "new" and not refusals
    refusals += [PermissionError()] * 100
    with pytest.raises(PermissionError):
        write_atomically(path, "newer")
    assert path.read_text() == "new" and 0 < len(refusals) < 100 and os.listdir(tmp_path) == ["a.json"]


def test_threads_that_save_at_once_keep_all(store):
    gate = threading.Barrier(8)

    def save(number):
        gate.wait()
        # for all of these one file is the first choice
        store.save(profile("same" if number % 2 else f"sa{'-.+_'[number // 2]}me", fitted(last=0.1 * number)))

    threads = [threading.Thread(target=save, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, problems = store.read()
    assert problems == [] and len(files_of(store)) == 8
    assert sorted(each.fitted[0].factors[-1] for each in found) == [0.1 * number for number in range(8)]


def _write_on(folder, go_on):
    store, round_ = ProfileStore(folder), 0
    while go_on.is_set():
        round_ += 1
        store.save(profile("x", *[fitted(last=0.001 * round_)] * (1 + round_ % 30)), replacing=True)
        store.save(profile("guest"))
        store.rename("guest", "visitor")
        store.delete("visitor")


def test_reading_while_another_process_writes_never_fails(store):
    store.save(profile("x"))
    context = multiprocessing.get_context("fork")
    go_on = context.Event()
    go_on.set()
    writer = context.Process(target=_write_on, args=(store.folder, go_on), daemon=True)
    writer.start()
    seen = set()
    try:
        for _ in range(3000):
            found, problems = store.read()
            assert problems == [] and {"x"} <= {each.name for each in found} <= {"x", "guest", "visitor"}
            seen.add(store.get("x").fitted[0].hash)
            if len(seen) > 20:
                break
    finally:
        go_on.clear()
        writer.join(10)
    assert len(seen) > 5 and writer.exitcode == 0
