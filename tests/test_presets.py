"""Presets: whatever is kept comes back exactly, and nothing that people keep gets lost."""

from __future__ import annotations

import json
import os
import threading

import pytest
from hypothesis import given, settings

from hpsampler.presets import Preset, PresetStore, built_in
from hpsampler.recipes import AUTO, PRESETS, recipe_for
from hpsampler.settings import FIELDS, Settings
from hpsampler.store import MAX_FILE, StoreError
from tests.test_settings import valid_settings

MINE = {"rho": 6.5, "ending": "To zero", "freeu": "On", "b1": 1.25}


@pytest.fixture
def shelf(tmp_path):
    return PresetStore(tmp_path / "presets")


def mine(name="mine", **around):
    return Preset.of(name, MINE, **around)


@settings(deadline=None, max_examples=100)
@given(valid_settings())
def test_what_is_kept_comes_back_exactly(values):
    values = {name: value for name, value in values.items() if name != "enabled"}
    preset = Preset.of("mine", values, family="sdxl", steps=6, cfg_scale=5.5, sampler="HP UniPC", schedule="HP")
    again = Preset.from_json(preset.to_json())
    assert again == preset and again.to_json() == preset.to_json()
    assert Settings.of([again.values()]) == Settings.of([values])
    assert set(again.values()) == {field.name for field in FIELDS}
    assert all(again.settings[field.name] != field.default for field in FIELDS if field.name in again.settings)


def file_of(**changes):
    data = json.loads(mine(steps=6).to_json())
    for key, value in changes.items():
        if value is ...:
            del data[key]
        else:
            data[key] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "hpsampler calibration"}, "not a preset of HP Sampler: format must be 'hpsampler preset'"),
        ({"version": 2}, "version must be 1, got 2; update HP Sampler"),
        ({"version": True}, "version must be 1"),
        ({"name": ...}, "name is missing"),
        ({"name": "a/b"}, "name must be 1 to 60 letters"),
        ({"name": "SDXL 8 steps"}, "name must be one that has no other meaning here"),
        ({"name": "auto"}, "name must be one that has no other meaning here, got 'auto'"),
        ({"family": "flux"}, "family must be empty or one of sd1, sd2, sdxl, got 'flux'"),
        ({"family": []}, "family must be empty or one of"),
        ({"steps": 151}, "steps must be a whole number from 0 to 150, got 151"),
        ({"steps": 5.5}, "steps must be a whole number"),
        ({"steps": True}, "steps must be a whole number"),
        ({"cfg_scale": -1}, "cfg_scale must be a number from 0 to 1000, got -1"),
        ({"cfg_scale": "7"}, "cfg_scale must be a number"),
        ({"sampler": 5}, "sampler must be a text"),
        ({"schedule": "x" * 401}, "schedule must be a text of at most 400"),
        ({"schedule": "two\nlines"}, "schedule must be a text of at most 400 characters, got 'two\\nlines'"),
        ({"sampler": "\x1b[2J"}, "sampler must be a text of at most 400"),
        ({"sampler": "half \ud800"}, "sampler must be a text of at most 400"),
        ({"settings": ...}, "settings is missing"),
        ({"settings": []}, "settings must be an object of settings by name"),
        ({"settings": {"rho": 99}}, "Rho (rho) must be a number from 0.1 to 50, or 0, got 99"),
        ({"settings": {"magic": 1}}, "unknown setting 'magic'; the names are recipe, base_steps"),
        ({"settings": {"x" * 100_000: 1}}, "unknown setting 'xxx"),
        ({"settings": {"\ud800": 1}}, "unknown setting '\\ud800'"),
        ({"settings": {"rho": True}}, "Rho (rho) must be a number from 0.1 to 50, or 0, got True"),
        ({"settings": {"rho": 10**400}}, "Rho (rho) must be a number"),
        ({"settings": {"rho": "9" * 100_000}}, "Rho (rho) must be a number"),
        ({"settings": {"order": True}}, "UniPC order (order) must be a whole number"),
        ({"settings": {"recipe": {}}}, "Recipe (recipe) must be one of"),
        ({"settings": {"calibration": "half \ud800"}}, "settings.calibration must be a text of printable characters"),
        ({"sampler": "HP\nAuto"}, "sampler must be a text of at most 400 characters"),
        ({"sampler": "half \ud800"}, "sampler must be a text of at most 400 characters"),
        ({"schedule": "HP\x07"}, "schedule must be a text of at most 400 characters"),
        ({"schedule": "H\u200bP"}, "schedule must be a text of at most 400 characters"),
        ({"settings": {"calibration": "two\nlines"}}, "got 'two\\nlines'"),
        ({"settings": {"enabled": False}}, "settings.enabled must not be there"),
        ({"settings": {"rho": 5, "end_sigma": 0.2}}, "both say where the schedule ends"),
    ],
)
def test_a_wrong_file_is_refused_with_field_value_and_what_is_allowed(changes, words):
    with pytest.raises(StoreError) as error:
        Preset.from_json(file_of(**changes))
    assert words in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", '"x"', "\x00", "[" * 100_000, " " * (MAX_FILE + 1), b"{}"]
)
def test_what_is_no_preset_at_all_is_refused_in_words(text):
    with pytest.raises(StoreError, match="not a"):
        Preset.from_json(text)


def test_numbers_that_json_should_not_have():
    with pytest.raises(StoreError, match="cfg_scale must be a number"):
        Preset.from_json(file_of(cfg_scale=float("nan")))
    with pytest.raises(StoreError, match="Rho"):
        Preset.from_json(file_of(settings={"rho": float("inf")}))


def test_a_file_cut_off_anywhere_is_refused_and_left_as_it_is(shelf):
    shelf.save(mine())
    shelf.save(Preset.of("other", {}))
    path = shelf.folder / "mine.json"
    whole = path.read_bytes()
    # the last byte ends the line and may be missing
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        kept, problems = shelf.read()
        assert [each.name for each in kept] == ["other"] and problems[0].startswith("mine.json: not a JSON file")
        assert path.read_bytes() == whole[:length]
    path.write_bytes(whole[:40])
    saved = shelf.save(mine())
    assert saved.name == "mine" and path.read_bytes() == whole[:40], "nothing is written over a broken file"
    assert shelf.get("mine") == mine() and len(list(shelf.folder.glob("*.json"))) == 3


@pytest.mark.parametrize("fault", ["write", "replace"])
def test_an_interrupted_write_loses_nothing(shelf, monkeypatch, fault):
    shelf.save(mine())
    before = {path.name: path.read_bytes() for path in shelf.folder.iterdir()}

    def fails(*args, **kwargs):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        if fault == "replace":
            patched.setattr(os, "replace", fails)
        else:
            patched.setattr("pathlib.Path.write_text", fails)
        for act in (
            lambda: shelf.save(Preset.of("mine", {}), replacing=True),
            lambda: shelf.save(Preset.of("new", {})),
            lambda: shelf.rename("mine", "yours"),
        ):
            with pytest.raises(OSError, match="no space"):
                act()
    assert {path.name: path.read_bytes() for path in shelf.folder.iterdir()} == before


def test_saving_replacing_renaming_deleting(shelf):
    assert shelf.read() == ([], [])
    assert shelf.save(mine()) == mine() and shelf.save(mine()).name == "mine 2"
    changed = Preset.of("mine", {"rho": 3})
    assert shelf.save(changed, replacing=True) == changed == shelf.get("mine")
    assert shelf.rename("mine 2", "Mine").name == "Mine", "names that differ in case are two"
    assert shelf.names() == ["mine", "Mine"] or shelf.names() == ["Mine", "mine"]
    with pytest.raises(StoreError, match="there is a preset named 'mine' already"):
        shelf.rename("Mine", "mine")
    with pytest.raises(StoreError, match="no other meaning"):
        shelf.rename("Mine", "sdxl 8 STEPS")
    shelf.delete("mine")
    assert shelf.names() == ["Mine"] and shelf.get("Mine") == mine("Mine")
    with pytest.raises(StoreError, match="no preset named 'mine'; there are: Mine"):
        shelf.delete("mine")
    kept, said = shelf.import_json(mine("other").to_json())
    assert kept.name == "Mine" and said == "the preset in that file is here already, as 'Mine'; nothing was added"
    kept, said = shelf.import_json(Preset.of("Mine", {"rho": 3}).to_json())
    assert kept.name == "Mine 2" and "kept as 'Mine 2', as 'Mine' is the name of another one here" in said
    assert shelf.import_json(Preset.of("third", {"rho": 4}).to_json())[1] == ""


def test_two_at_once_do_not_write_over_each_other(shelf):
    threads = [threading.Thread(target=lambda: [shelf.save(mine()) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(shelf.names())) == 40 == len(list(shelf.folder.iterdir()))


class TestBuiltIn:
    def test_they_are_auto_and_the_paper_s(self):
        auto, *papers = built_in()
        assert auto.name == AUTO and auto.settings == {} and auto.mismatch("sdxl", 20) == ""
        assert [each.name for each in papers] == list(PRESETS)
        for each in papers:
            recipe = Settings.of([each.values()]).resolve("sd1", each.steps, 7)
            assert recipe == PRESETS[each.name] and each.sampler == "HP Auto"
        assert Settings.of([auto.values()]).resolve("sd1", 5, 7) == recipe_for("sd1", 5, 7)

    def test_what_each_is_made_for(self):
        found = {each.name: each for each in built_in()}
        eight = found["SDXL 8 steps"]
        assert eight.mismatch("sdxl", 8) == "" and eight.mismatch("sdxl", 6) == "made for 8 steps"
        assert eight.mismatch("sd1", 8) == "made for SDXL"
        assert eight.mismatch("sd2", 5) == "made for SDXL and made for 8 steps"
        assert found["SD1.5 5 steps"].mismatch("sd2", 5) == "", "SD 2.x has none of its own"
        assert found["SD1.5 5 steps"].mismatch("sdxl", 5) == "made for SD 1.x"

    def test_they_are_found_beside_one_s_own_and_cannot_be_taken(self, shelf):
        shelf.save(mine())
        assert shelf.all_names() == [AUTO, *PRESETS, "mine"]
        assert shelf.find("mine") == mine() and shelf.find("SDXL 8 steps") == built_in()[-6]
        with pytest.raises(StoreError, match=r"no preset named 'gone'; there are: Auto, .*, mine"):
            shelf.find("gone")
        with pytest.raises(StoreError, match="no other meaning"):
            shelf.save(Preset("sdxl 8 STEPS", {}), replacing=True)
        with pytest.raises(StoreError, match="no other meaning"):
            shelf.import_json(Preset("auto", {}).to_json())
        with pytest.raises(StoreError, match="no preset named 'Auto'"):
            shelf.delete(AUTO)
