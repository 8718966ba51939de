"""Settings: whatever a page or an API client sends is either understood or answered in words that name the field."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hpsampler.fields import SettingsError
from hpsampler.freeu import FreeUPlan
from hpsampler.recipes import AUTO, FAMILIES, MAX_STEPS, PRESETS, recipe_for
from hpsampler.settings import ENABLED, ENDING_LABELS, FIELDS, Settings

BY_NAME = {field.name: field for field in (ENABLED, *FIELDS)}
PASSES = [(family, steps, cfg) for family in FAMILIES for steps in (1, 5, 6, 8, 20, 150) for cfg in (1.0, 5.0, 7.5)]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
near_misses = st.sampled_from(
    [10**400, -(10**400), 1e400, "1e400", "nan", "Infinity", "0x10", " 5 ", "5.0", "", "Recipe", "recipe",
     "on", "true", "None", -0.0, 5e-324, True, "AUTO", "sdxl 6 STEPS", 1, 1.0, "1"]
)  # fmt: skip

# ---- one field -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", BY_NAME.values(), ids=BY_NAME)
@settings(deadline=None, max_examples=80)
@given(value=json_values | near_misses)
@example(value=10**400)
def test_any_value_is_either_parsed_to_its_type_or_refused_by_name(field, value):
    try:
        parsed = field.parse(value)
    except SettingsError as error:
        assert field.label in str(error) and field.name in str(error) and "must be" in str(error)
        return
    assert type(parsed) is type(field.default)
    assert field.parse(parsed) == parsed
    if field.choices:
        assert parsed in field.choices
    elif isinstance(parsed, str):
        assert parsed == parsed.strip() != ""
    elif not isinstance(field.default, bool):
        assert field.low <= parsed <= field.high or parsed == field.neutral


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_default_is_valid_and_a_choice_is_found_in_any_case(field):
    assert field.parse(field.default) == field.default
    for choice in field.choices:
        assert field.parse(choice) == field.parse(choice.upper()) == field.parse(f" {choice.lower()} ") == choice


@pytest.mark.parametrize(("label", "ending"), ENDING_LABELS.items())
def test_an_ending_may_be_given_by_the_recipe_s_word(label, ending):
    assert BY_NAME["ending"].parse(ending) == label


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("base_steps", 1, "whole number from 2 to 150, or 0"),
        ("base_steps", 5.5, "whole number from 2 to 150"),
        ("rho", -1, "number from 0.1 to 50, or 0"),
        ("rho", "seven", "number from 0.1 to 50"),
        ("order", 4, "whole number from 1 to 3, or 0"),
        ("b1", 3.01, "number from 0 to 3"),
        ("freeu_first", True, "whole number"),
        ("ending", "never", "one of Recipe, Keep noise, To zero, Extrapolated, One more call"),
        ("recipe", None, "one of Auto, SD1.5 4 steps"),
        ("enabled", 1, "true or false"),
        ("variant", ["bh1"], "one of Recipe, bh1, bh2"),
    ],
)
def test_a_refusal_says_the_field_the_value_and_what_is_allowed(name, value, allowed):
    with pytest.raises(SettingsError) as error:
        Settings.of([{name: value}])
    assert BY_NAME[name].label in str(error.value) and allowed in str(error.value)
    assert str(error.value).endswith(f"got {value!r}")


def test_a_long_value_is_cut_short_in_the_message():
    with pytest.raises(SettingsError) as error:
        Settings.of([{"ending": "x" * 10_000}])
    assert len(str(error.value)) < 300


# ---- all of them -----------------------------------------------------------------------------------------------------


def test_the_table_of_fields_and_the_settings_are_one():
    assert [field.name for field in fields(Settings)] == list(BY_NAME)
    assert all(getattr(Settings(), name) == field.default for name, field in BY_NAME.items())
    for keys in ([f.name for f in FIELDS], [f.label for f in FIELDS], [f.infotext for f in FIELDS]):
        assert len(set(keys)) == len(FIELDS)
    assert all(field.help and field.infotext.startswith("HP ") for field in FIELDS)


@st.composite
def valid_settings(draw):
    """Named values that do not contradict each other."""

    def draw_from(field):
        if field.choices:
            return st.sampled_from(field.choices)
        if field.words:
            return st.sampled_from(field.words)
        inside = st.integers(int(field.low), int(field.high)) if field.whole else st.floats(field.low, field.high)
        return inside if field.neutral is None else inside | st.just(field.neutral)

    values = {field.name: draw(draw_from(field)) for field in FIELDS}
    values["base_steps"] = draw(st.just(0) | st.integers(2, MAX_STEPS))
    if values["base_steps"]:
        values["truncation_index"] = draw(st.integers(1, values["base_steps"] - 1))
    else:
        values["truncation_index"] = draw(st.integers(0, 7))
        if values["recipe"] != AUTO:
            values["truncation_index"] = min(values["truncation_index"], PRESETS[values["recipe"]].base_steps - 1)
    if draw(st.booleans()):
        values.update(base_steps=0, rho=0.0, truncation_index=0)
    else:
        values["end_sigma"] = 0.0
    values["freeu_last"] = draw(st.just(0) | st.integers(values["freeu_first"], 2 * MAX_STEPS))
    return {"enabled": True, **values}


@settings(deadline=None, max_examples=150)
@given(valid_settings())
def test_names_and_positions_say_the_same(values):
    named = Settings.of([values])
    assert named == Settings.of(list(values.values())) == Settings.of_names(values)
    assert all(getattr(named, name) == value for name, value in values.items())


@settings(deadline=None, max_examples=150)
@given(valid_settings(), st.sampled_from(PASSES))
def test_the_infotext_gives_the_same_image_again(values, this_pass):
    """Written as text, as a picture holds it. Free-U's constants are written only where they were used."""
    wanted = Settings.of([values])
    written = {
        key: str(value)
        for key, value in wanted.infotext(schedule=True, freeu=True, solvers=["unipc", "dpmpp_2m"], hires=True).items()
    }
    assert set(written) <= {field.infotext for field in FIELDS} and "HP Recipe" in written
    names = {field.infotext: field.name for field in FIELDS}
    read = Settings.of_names({"enabled": True, **{names[key]: value for key, value in written.items()}})
    unused = {"freeu_version", "b1", "b2", "s1", "s2", "freeu_first", "freeu_last"} if wanted.freeu != "On" else set()
    # what was used of these, not what was asked, is written; see test_adapter
    unused |= {"calibration", "statistics", "golden_noise"}
    assert read == replace(wanted, **{name: BY_NAME[name].default for name in unused})
    try:
        recipe = wanted.resolve(*this_pass)
    except SettingsError:
        with pytest.raises(SettingsError):
            read.resolve(*this_pass)
    else:
        assert read.resolve(*this_pass) == recipe


@settings(deadline=None, max_examples=60)
@given(valid_settings(), st.booleans(), st.booleans(), st.booleans())
def test_the_infotext_holds_only_what_was_used(values, schedule, freeu, unipc):
    wanted = Settings.of([values])
    written = wanted.infotext(schedule, freeu, ["unipc"] if unipc else ["dpmpp_1s"])
    names = {field.infotext: field.name for field in FIELDS}
    for key, value in written.items():
        assert value == values[names[key]]
    used = {names[key] for key in written} - {"recipe"}
    groups = {
        "schedule": {"base_steps", "rho", "truncation_index", "time_rho", "ending", "end_sigma"},
        "unipc": {"prediction", "variant", "order", "noise_level", "analytical_first_step"},
        "freeu": {"freeu", "freeu_version", "b1", "b2", "s1", "s2", "freeu_first", "freeu_last"},
    }
    for name, on in (("schedule", schedule), ("unipc", unipc), ("freeu", freeu)):
        assert on or not used & groups[name]
    assert wanted.freeu == "On" or used & groups["freeu"] <= {"freeu"}


def test_no_values_and_the_switch_off_mean_the_auto_recipe():
    assert Settings.of([]) == Settings.of([False]) == Settings()
    off = Settings.of([{"enabled": False, "recipe": "SDXL 8 steps", "rho": "nonsense"}])
    assert off == Settings()
    for this_pass in PASSES:
        assert off.resolve(*this_pass) == recipe_for(*this_pass)


def test_a_dict_implies_the_switch_and_takes_any_subset():
    assert Settings.of([{}]) == Settings(enabled=True)
    assert Settings.of([{"rho": 7}]) == Settings(enabled=True, rho=7.0)
    assert Settings.of([True, "SDXL 6 steps"]) == Settings(enabled=True, recipe="SDXL 6 steps")


@pytest.mark.parametrize("name", ["Rho", "HP Rho", "rhö", "", "solver", 3, None])
def test_an_unknown_name_is_answered_with_the_names(name):
    with pytest.raises(SettingsError) as error:
        Settings.of([{name: 1}])
    assert repr(name) in str(error.value) and all(known in str(error.value) for known in BY_NAME)


def test_too_many_positional_values_are_counted():
    with pytest.raises(SettingsError, match=f"at most {len(BY_NAME)} values, got {len(BY_NAME) + 1}"):
        Settings.of([True] * (len(BY_NAME) + 1))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"end_sigma": 0.2, "rho": 7}, ["End sigma", "0.2", "rho"]),
        ({"end_sigma": 0.2, "base_steps": 9, "truncation_index": 4}, ["End sigma", "base_steps, truncation_index"]),
        ({"freeu_first": 5, "freeu_last": 3}, ["Free-U last call", "5", "3"]),
        ({"recipe": "SDXL 8 steps", "base_steps": 8}, ["Truncation index", "8", "10"]),
        ({"recipe": "SD1.5 6 steps", "truncation_index": 8}, ["Truncation index", "8"]),
    ],
)
def test_settings_that_contradict_each_other_say_so(values, words):
    with pytest.raises(SettingsError) as error:
        Settings.of([values])
    assert all(word in str(error.value) for word in words)


def test_auto_with_a_cut_that_does_not_fit_its_recipe_says_so_when_the_recipe_is_known():
    settings_ = Settings.of([{"truncation_index": 9}])
    assert settings_.resolve("sd1", 8, 7.5).truncation_index == 9, "of 12 base steps"
    with pytest.raises(SettingsError, match=r"Truncation index .* below Base steps = 8, got 9"):
        settings_.resolve("sd1", 6, 7.5)


# ---- the recipe of a pass --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"base_steps": 20, "truncation_index": 13},
        {"rho": 3.5},
        {"time_rho": 1.0},
        {"end_sigma": 0.2},
        {"prediction": "data"},
        {"variant": "bh2"},
        {"order": 3},
    ],
)
def test_one_number_is_overridden_and_the_rest_stays_coupled(values):
    for recipe in ("Auto", "SDXL 8 steps UniPC"):
        for this_pass in PASSES:
            plain = Settings.of([{"recipe": recipe}]).resolve(*this_pass)
            changed = Settings.of([{"recipe": recipe, **values}]).resolve(*this_pass)
            assert changed == replace(plain, **values)


@pytest.mark.parametrize(("switch", "on"), [("On", 1), ("0.975", 0.975), ("Off", 0), ("Recipe", 1)])
def test_the_analytical_first_step_switch(switch, on):
    values = {"recipe": "SDXL 6 steps UniPC", "analytical_first_step": switch}
    assert Settings.of([values]).resolve("sdxl", 6, 7.5).analytical_first_step == on


@pytest.mark.parametrize(("label", "ending"), ENDING_LABELS.items())
def test_the_ending_is_the_one_chosen(label, ending):
    for cfg_scale in (1.0, 7.5):
        assert Settings.of([{"ending": label}]).resolve("sd1", 6, cfg_scale).ending == ending


@settings(deadline=None, max_examples=150)
@given(values=valid_settings(), this_pass=st.sampled_from(PASSES))
def test_a_resolved_recipe_is_always_drawable(values, this_pass, noise):
    """Or refused in words that name a control: never another error, never a schedule that does not decrease."""
    assume(0.1 <= values["time_rho"] <= 3 or values["time_rho"] == 0)
    try:
        recipe = Settings.of([values]).resolve(*this_pass)
        sigmas = recipe.sigmas(noise)
    except ValueError as error:
        assert any(word in str(error) for word in ("Truncation index", "truncation_index", "end_sigma", "time_rho"))
        return
    assert len(sigmas) == this_pass[1] + 1 + (recipe.ending == "extra_call")
    assert (sigmas.diff() < 0).all()


def test_free_u_off_is_off_and_recipe_is_the_recipe_s():
    assert Settings.of([{"freeu": "Off"}]).resolve("sdxl", 6, 7.5).freeu == ()
    assert Settings.of([{"freeu": "Recipe", "b1": 2}]).resolve("sdxl", 6, 7.5) == recipe_for("sdxl", 6, 7.5)


@pytest.mark.parametrize(
    ("values", "steps", "first", "last"),
    [
        ({}, 6, 4, None),
        ({"freeu_first": 1}, 6, 0, None),
        ({"freeu_first": 2, "freeu_last": 4}, 6, 1, 3),
        ({"freeu_last": 6}, 6, 4, 5),
        ({}, 30, 20, None),
        ({"freeu_first": 25}, 30, 24, None),
    ],
)
def test_free_u_on_counts_calls_from_1_and_starts_late_by_default(values, steps, first, last):
    values = {"freeu": "On", "b1": 1.3, "b2": 1.4, "s1": 0.8, "s2": 0.3, "freeu_version": "2", **values}
    (plan,) = Settings.of([values]).resolve("sd1", steps, 7.5).freeu
    assert plan == FreeUPlan(first, last, b1=1.3, b2=1.4, s1=0.8, s2=0.3, version=2)


def test_a_last_call_before_the_late_start_does_not_leave_free_u_silently_off():
    """ "On" and "until call 2" of 6: it starts earlier, or it is refused in words."""
    try:
        (plan,) = Settings.of([{"freeu": "On", "freeu_last": 2}]).resolve("sd1", 6, 7.5).freeu
    except SettingsError as error:
        assert "Free-U" in str(error)
    else:
        assert any(plan.covers(call) for call in range(6))


def test_more_steps_than_auto_has_rules_for_take_its_last_one():
    recipe = Settings().resolve("sd1", 400, 7.5)
    assert recipe == recipe_for("sd1", MAX_STEPS, 7.5).with_steps(400) and recipe.steps == 400


class TestCalibration:
    def test_words_in_any_case_and_names_as_they_are(self):
        given = ("auto", " OFF ", "My model 1a2b3c4d")
        assert [Settings.of([{"calibration": each}]).calibration for each in given] == [
            "Auto", "Off", "My model 1a2b3c4d",
        ]  # fmt: skip
        for wrong in ("", "  ", "x" * 401, None, 3, ["Auto"]):
            with pytest.raises(SettingsError, match=r"Calibration \(calibration\) must be Auto, Off or a name"):
                Settings.of([{"calibration": wrong}])

    @pytest.mark.parametrize(
        ("values", "named"),
        [({"recipe": "SD1.5 5 steps"}, "Recipe"), ({"rho": 3.0}, "Rho"), ({"ending": "To zero"}, "Ending"),
         ({"end_sigma": 0.2}, "End sigma")],
    )  # fmt: skip
    def test_two_that_say_what_the_schedule_is_contradict_each_other(self, values, named):
        with pytest.raises(SettingsError, match=f"calibration='mine'.*{named}.*both say what the schedule is"):
            Settings.of([{"calibration": "mine", **values}])
        # by itself a calibration gives way to what was set
        assert not Settings.of([values]).takes_calibration

    def test_what_says_nothing_of_the_schedule_leaves_room_for_one(self):
        for values in ({}, {"freeu": "On", "b1": 1.3}, {"order": 3}, {"calibration": "mine"}):
            assert Settings.of([values]).takes_calibration
        assert Settings().takes_calibration and not Settings.of([{"calibration": "off"}]).takes_calibration
