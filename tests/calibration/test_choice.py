"""Ways to draw: how they are compared, what a profile keeps of that, and what a pass then draws with."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from hpsampler.calibration.choice import AIMS, FORMS, PICTURES, SAME_PICTURE, Comparison, Figures
from hpsampler.calibration.compare import SIGMA, Judge
from hpsampler.calibration.config import CalibrationConfig
from hpsampler.calibration.job import CalibrationJob
from hpsampler.calibration.lookup import find_drawing
from hpsampler.calibration.profile import Profile, ProfileStore, Target
from hpsampler.calibration.trajectories import Trajectories
from hpsampler.effects import Use
from hpsampler.guidance import STATISTICS_SHARE, effective_guidance
from hpsampler.plan import LoadedModel, Pass, Request
from hpsampler.recipes import AUTO, recipe_for
from hpsampler.settings import OFF, Settings
from hpsampler.statistics.config import StatisticsConfig
from hpsampler.statistics.files import best_for, save_statistics
from hpsampler.statistics.job import StatisticsJob
from hpsampler.store import StoreError

from .test_job import TABLE, Exact

ORDER_1, ORDER_2 = "statistics, order 1", "statistics, order 2"
LABEL = "mine 0a1b2c3d"


def profile_with(*compared, name="mine", **own):
    return Profile(
        name,
        "exact",
        ("feedbeef",),
        "sd1",
        512,
        512,
        TABLE.sigma_min,
        TABLE.sigma_max,
        6,
        6,
        1,
        compared=compared,
        **own,
    )


def by_name(steps, cfg_scale, **pictures):
    names = {"auto": AUTO, "first": ORDER_1, "second": ORDER_2}
    rows = {names[short]: Figures(1 - value, value) for short, value in pictures.items()}
    return Comparison(steps, cfg_scale, rows, LABEL)


def target(cfg_scale=7.0, size=512, hashes=("feedbeef",)):
    return Target(frozenset(hashes), "sd1", TABLE, size, size, cfg_scale)


# ---- the figures -----------------------------------------------------------------------------------------------------


def test_the_figure_is_what_the_model_does_not_find_again_beside_many_steps():
    generator = torch.Generator().manual_seed(3)
    ends, noise, other = (torch.randn(5, 4, 3, 3, generator=generator) for _ in range(3))

    def model(x, sigma, cond_scale):
        assert torch.equal(sigma, torch.full((5,), SIGMA)) and cond_scale == 1, "the prompt alone, without guidance"
        return 0.5 * x

    held_out = Trajectories(model, noise, ends, 60, 5.0)
    judge = Judge(held_out, noise)

    def lost(x):
        return ((0.5 * (x + SIGMA * noise) - x) ** 2).flatten(1).mean(1).double().log()

    found = judge.figures(other)
    assert found.pictures == pytest.approx(float((lost(other) - lost(ends)).mean()), rel=1e-4, abs=1e-6)
    distance = (other - ends).square().mean().sqrt() / ends.square().mean().sqrt()
    assert found.distance == pytest.approx(float(distance), rel=1e-4)
    assert judge.figures(2 * ends).pictures != 0
    assert judge.figures(ends) == Figures(0.0, 0.0)
    broken = judge.figures(other * math.nan)
    assert broken == Figures(1e12, 1e12) and json.loads(json.dumps(broken.pictures)) == 1e12


def test_a_picture_without_its_subject_is_seen_and_a_moved_one_is_not():
    """The model knows classes: what it was asked for, drawn elsewhere, is as good; another class is not."""
    source = Exact("gauss1f2")
    labels = [f"class {index}" for index in range(6)]
    model = source.denoiser(labels, "", 5.0)
    held_out = Trajectories.of(model, source.start(range(6), 512, 512), TABLE, 5.0)
    again = Trajectories.of(model, source.start(range(50, 56), 512, 512), TABLE, 5.0).endpoints
    others = source.denoiser([f"class {index + 1}" for index in range(6)], "", 5.0)
    wrong = Trajectories.of(others, source.start(range(6), 512, 512), TABLE, 5.0).endpoints
    judge = Judge(held_out, source.start(range(90, 96), 512, 512))
    assert abs(judge.figures(again).pictures) < 0.2 * judge.figures(wrong).pictures


# ---- what a profile keeps --------------------------------------------------------------------------------------------


def test_a_comparison_is_read_as_it_was_written():
    kept = profile_with(
        by_name(5, 7.0, auto=0.2, first=0.1),
        Comparison(8, 3.0, {AUTO: Figures(0.1, 0.2), "calibrated": Figures(0.05, 0.3)}),
    )
    text = kept.to_json()
    assert json.loads(text)["version"] == 3 and Profile.from_json(text) == kept
    assert "statistics" not in json.loads(text)["compared"][1]
    assert json.loads(profile_with().to_json())["version"] == 1, "which earlier releases read"


@pytest.mark.parametrize(("change", "message"), [
    (lambda row: row.pop("figures"), "compared[0].figures is missing"),
    (lambda row: row.update(figures={"Auto": {"distance": -1, "pictures": 0}}), "Auto.distance must be a number"),
    (lambda row: row.update(figures={"other": {}}), "compared[0].figures must be figures by name"),
    (lambda row: row["figures"].pop("Auto"), "among them Auto"),
    (lambda row: row.pop("statistics"), "compared[0].statistics is missing"),
    (lambda row: row.update(statistics=5), "compared[0].statistics must be a text"),
    (lambda row: row.update(steps=1), "compared[0].steps must be a whole number from 2"),
    (lambda row: row.update(cfg_scale="7"), "compared[0].cfg_scale must be a number"),
])  # fmt: skip
def test_a_wrong_comparison_names_the_field(change, message):
    data = json.loads(profile_with(by_name(5, 7.0, auto=0.2, first=0.1)).to_json())
    change(data["compared"][0])
    with pytest.raises(StoreError) as caught:
        Profile.from_json(json.dumps(data))
    assert message in str(caught.value)


def test_the_best_follows_from_what_is_aimed_at():
    found = by_name(5, 7.0, auto=0.2, first=0.1, second=0.3)
    assert found.ranked(PICTURES) == [ORDER_1, AUTO, ORDER_2] and found.ranked(SAME_PICTURE) == [ORDER_2, AUTO, ORDER_1]
    equal = by_name(5, 7.0, first=0.1, auto=0.1)
    assert [equal.ranked(aim)[0] for aim in AIMS] == [AUTO, AUTO]


def test_of_pictures_that_are_known_equally_well_the_nearer_are_better():
    """A little in the figure of the pictures does not outweigh twice the distance; much does."""

    def best(smooth, near):
        rows = {ORDER_1: Figures(0.2, smooth), ORDER_2: Figures(0.1, near), AUTO: Figures(0.1, 1.0)}
        return Comparison(5, 7.0, rows, LABEL).ranked(PICTURES)[0]

    assert best(-0.1, -0.1) == best(-0.1, 0.0) == ORDER_2
    assert best(-0.1, 0.1) == ORDER_1
    # pictures that are the many-step ones exactly are still comparable
    assert (
        Comparison(5, 7.0, {AUTO: Figures(0.1, 0.0), ORDER_1: Figures(0.0, 0.0)}, LABEL).ranked(PICTURES)[0] == ORDER_1
    )


def test_every_way_with_statistics_has_a_hash_of_its_own():
    rows = {
        replace(by_name(steps, 7.0, auto=1), statistics=f"mine {digest}").with_statistics(form)
        for steps in (5, 6)
        for digest in ("0a1b2c3d", "0a1b2c3e")
        for form in FORMS
    }
    assert len({row.hash for row in rows}) == 16
    one = by_name(5, 7.0, auto=1).with_statistics(ORDER_1)
    assert replace(one, statistics="renamed 0a1b2c3d").hash == one.hash and len(one.hash) == 8


# ---- what is drawn with ----------------------------------------------------------------------------------------------


def found_in(store, cfg_scale=7.0, name="", aim=PICTURES, can_draw=lambda row: True, steps=5, **own):
    return find_drawing(store, name, steps, target(cfg_scale, **own), aim, can_draw)


def test_the_best_way_that_can_be_drawn_is_taken(tmp_path):
    store = ProfileStore(tmp_path)
    store.save(profile_with(by_name(5, 7.0, auto=0.3, first=0.1, second=0.2)))
    (profile, row), reason = found_in(store)
    assert (profile.name, row.form, row.statistics, reason) == ("mine", ORDER_1, LABEL, "")
    (_, row), _ = found_in(store, can_draw=lambda row: row.form == ORDER_2)
    assert row.form == ORDER_2
    found, reason = found_in(store, can_draw=lambda row: False)
    assert found is None and reason == "Auto itself is the best of 3 ways that mine compared at 5 steps and CFG 7"
    assert found_in(store, aim=SAME_PICTURE)[0] is None
    assert found_in(store, name="mine", aim=SAME_PICTURE)[0][1].form == ORDER_2, "who names it wants it"
    assert found_in(store, can_draw=None) == (None, ""), "a schedule alone was asked for"


@pytest.mark.parametrize(("own", "is_found"), [
    ({"cfg_scale": 7 * 1.5}, True), ({"cfg_scale": 7 / 1.5}, True), ({"cfg_scale": 7 * 1.52}, False),
    ({"cfg_scale": 7 / 1.52}, False), ({"steps": 6}, False), ({"size": 1024}, False), ({"hashes": ("other",)}, False),
])  # fmt: skip
def test_a_comparison_counts_where_it_was_made(tmp_path, own, is_found):
    store = ProfileStore(tmp_path)
    store.save(profile_with(by_name(5, 7.0, auto=0.3, first=0.1)))
    assert (found_in(store, **own)[0] is not None) == is_found


def test_the_nearest_comparison_counts(tmp_path):
    store = ProfileStore(tmp_path)
    store.save(profile_with(by_name(5, 7.5, auto=0.3, first=0.1), by_name(5, 5.0, auto=0.3, second=0.1)))
    assert [found_in(store, scale)[0][1].form for scale in (7.0, 5.5)] == [ORDER_1, ORDER_2]


def test_a_picture_finds_its_way_by_its_label(tmp_path):
    store = ProfileStore(tmp_path)
    store.save(profile_with(by_name(5, 7.0, auto=0.1, first=0.3)))
    row = by_name(5, 7.0, auto=1).with_statistics(ORDER_1)
    label = f"mine {row.hash}"
    assert found_in(store, name=label)[0][1] == row
    store.rename("mine", "theirs")
    assert found_in(store, name=label)[0][1] == row
    found, reason = found_in(store, name=label, can_draw=lambda row: False)
    assert found is None and reason == f"it needs the sampler HP Auto and the statistics {LABEL}"


# ---- a whole job, and a pass with what it made -----------------------------------------------------------------------


class Latents(Exact):
    """The exact problem as latents of one element, for DPM-Solver-v3's statistics."""

    def denoiser(self, prompts, negative, cfg_scale):
        inner = super().denoiser(prompts, negative, cfg_scale)
        return lambda x, sigma, **own: inner(x.flatten(1), sigma, **own).reshape(x.shape)

    def start(self, seeds, width, height):
        rows = super().start(seeds, width, height)
        return rows.reshape(len(rows), 1, -1, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a problem's statistics, and what a job without fits finds with them."""
    folder = tmp_path_factory.mktemp("statistics")
    prompts = tuple(f"class {index}" for index in range(12))
    statistics = StatisticsJob(
        StatisticsConfig("s", 5.0, prompts=prompts, samples=48, points=41, batch=48), Latents("gauss1f2")
    ).run()
    save_statistics(statistics, folder / "mine.safetensors")
    source, kept = Latents("gauss1f2"), []
    config = CalibrationConfig.of(
        {"name": "mine", "steps": 5, "cfg_scales": "5 7.5", "trajectories": 12, "prompts": list(prompts), "fit": False}
    )
    job = CalibrationJob(
        config, source, save=kept.append, statistics=lambda scale: best_for(folder, source.hashes, scale, TABLE)[0]
    )
    return folder, job, job.progress.of, job.run(), source


def test_a_job_without_fits_compares_auto_and_the_forms(made):
    _, job, most, profile, source = made
    assert profile.rows == () and profile.refused == () and profile.decoder == ()
    assert [(each.steps, each.cfg_scale) for each in profile.compared] == [(5, 5.0), (5, 7.5)]
    for each in profile.compared:
        assert list(each.figures) == [AUTO, *FORMS] and each.statistics.startswith("mine ")
        assert all(0 < figure.distance < 2 and abs(figure.pictures) < 9 for figure in each.figures.values())
    # references; five ways of five calls and a question, and one about the reference
    assert source.calls == job.progress.calls == job.progress.of == 12 * (60 + 5 * (5 + 1) + 1) <= most
    assert Profile.from_json(profile.to_json()) == profile
    assert all("draws the best pictures" in line for line in job.progress.log) and len(job.progress.log) == 2
    again = CalibrationJob(job.config, Latents("gauss1f2"), profile, statistics=job.statistics)
    assert again.progress.of == 0 and again.run() == profile, "nothing is compared twice"


def test_a_stopped_comparison_goes_on_where_it_was(made, tmp_path):
    _, job, _, profile, _ = made
    half = replace(profile, compared=profile.compared[:1])
    source = Latents("gauss1f2")
    again = CalibrationJob(job.config, source, half, statistics=job.statistics)
    assert again.run() == profile and source.calls < job.progress.calls


def passes(made, tmp_path, aim=PICTURES, compared=None, sampler="HP Auto", **settings):
    folder, _, _, profile, source = made
    shape = (1, source.problem.dims, 1)
    store, told, recorded = ProfileStore(tmp_path), [], {}
    store.save(replace(profile, compared=compared or profile.compared), replacing=True)
    this = Pass(
        Settings(enabled=True, **settings), Request(Use.of(sampler, None), 7.0, steps=5, width=512, height=512),
        LoadedModel("sd1", TABLE, ("feedbeef",)), store, folder, told.append, recorded.__setitem__, aim,
    )  # fmt: skip
    this.begin()
    sigmas = this.schedule(5)
    return this, this.solve(this.request.use.solver, sigmas, shape), told, recorded


def best(made, name):
    """Comparisons of which one way is the best at both aims."""
    rows = [
        replace(each, figures={key: Figures(0.1, 0.1) if key == name else Figures(1, 1) for key in each.figures})
        for each in made[3].compared
    ]
    return tuple(rows)


@pytest.mark.parametrize("form", FORMS)
def test_auto_draws_with_the_form_that_came_out_best(made, tmp_path, form):
    this, run, told, recorded = passes(made, tmp_path, compared=best(made, form))
    order, corrector = FORMS[form]
    assert run.recipe.solver == "dpm_v3" and run.options["order"] == order and run.options["corrector"] is corrector
    assert run.guidance == (effective_guidance(7.0, 5, STATISTICS_SHARE),) * 5
    assert run.options["statistics"].l.shape == made[1].statistics(5.0)[1].l.shape
    expected = replace(recipe_for("sd1", 5, 7.0), ending="zero").sigmas(TABLE)
    assert torch.equal(run.sigmas, expected)
    assert recorded["calibration"] == this.recipe.calibration and recorded["statistics"].startswith("mine ")
    assert told == []


def test_the_picture_is_drawn_again_by_its_labels(made, tmp_path):
    _, run, _, recorded = passes(made, tmp_path, compared=best(made, ORDER_2))
    # the comparison says something else by now
    again = passes(
        made,
        tmp_path,
        compared=best(made, AUTO),
        calibration=recorded["calibration"],
        statistics=recorded["statistics"],
    )
    assert again[1].options["order"] == run.options["order"] == 2 and again[3] == recorded and again[2] == []


def test_auto_draws_by_its_own_recipe_where_that_is_best(made, tmp_path):
    this, run, told, recorded = passes(made, tmp_path, compared=best(made, AUTO))
    assert run.recipe == recipe_for("sd1", 5, 7.0) and recorded == {} and told == []
    assert this.auto_is_best == "Auto itself is the best of 5 ways that mine compared at 5 steps and CFG 7.5"


@pytest.mark.parametrize("own", [{"sampler": "HP DPM++ 2M"}, {"statistics": OFF}, {"calibration": OFF}, {"rho": 6.0}])
def test_what_was_asked_for_stands_before_what_came_out_best(made, tmp_path, own):
    _, run, _, recorded = passes(made, tmp_path, compared=best(made, ORDER_1), **own)
    assert run.recipe.solver == "dpmpp_2m" and "calibration" not in recorded


def test_statistics_that_are_gone_leave_the_next_best(made, tmp_path):
    compared = tuple(replace(each, statistics="gone 01234567") for each in best(made, ORDER_1))
    _, run, _, recorded = passes(made, tmp_path, compared=compared)
    assert run.recipe.solver == "dpmpp_2m" and recorded == {}


def test_guidance_that_was_set_is_that_of_every_call(made, tmp_path):
    _, run, _, _ = passes(made, tmp_path, compared=best(made, ORDER_1), guidance="0.5")
    assert run.recipe.solver == "dpm_v3" and run.guidance == (3.5,) * 5


def test_with_statistics_every_call_is_drawn_at_less_than_the_cfg_scale():
    drawing = by_name(5, 7.0, auto=0.2, first=0.1).with_statistics(ORDER_1)
    recipe = profile_with().recipe(drawing, recipe_for("sd1", 5, 7.0), 7.0)
    # 5/2 + (7 - 5/2)/2
    assert recipe.guidance == (4.75,) * 5 and (recipe.solver, recipe.order, recipe.ending) == ("dpm_v3", 1, "zero")
