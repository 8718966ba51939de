"""One sampling pass: what its ends, its part of a schedule and its guidance choose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpsampler.calibration.profile import Fitted, Profile, ProfileStore
from hpsampler.effects import Use
from hpsampler.plan import LoadedModel, Pass, Request
from hpsampler.recipes import recipe_for
from hpsampler.settings import Settings
from hpsampler.statistics.coefficients import Provenance, Statistics
from hpsampler.statistics.files import best_for, save_statistics

FIVE = Fitted(
    5, 7.0, (14.614641, 6.0, 2.5, 1.1, 0.4, 0.0), (0.0, 1.1, 0.8, 0.2, 0.1), "Auto", {"Auto": 0.2, "calibrated": 0.1},
    0.02, 1000,
)  # fmt: skip


@pytest.fixture
def plan(noise, tmp_path):
    """A pass of HP Auto at CFG 7 and 64x64 on a model that a calibration was made for, and what it tells."""
    store = ProfileStore(tmp_path / "calibrations")
    store.save(
        Profile("mine", "tiny", ("feed",), "sd1", 64, 64, noise.sigma_min, noise.sigma_max, 24, 24, 1, fitted=(FIVE,))
    )

    def make(schedule="HP", from_noise=True, steps=5, **own):
        told: list[str] = []
        use = Use.of("HP Auto", schedule, from_noise)
        request = Request(use, 7.0, from_noise, steps, 64, 64)
        model = LoadedModel("sd1", noise, ("feed",))
        return Pass(Settings(enabled=True, **own), request, model, store, tell=told.append), told

    return make


def test_img2img_gets_the_factors_of_the_steps_that_it_runs(plan, noise):
    """The host runs the end of the schedule, and each factor belongs to its own step."""
    this, _ = plan("HP calibrated", from_noise=False)
    sigmas = this.schedule(5, calibrated=True)
    assert tuple(sigmas.tolist()) == pytest.approx(FIVE.sigmas)
    for first in range(5):
        run = this.solve(None, sigmas[first:])
        assert run.options["factors"] == FIVE.factors[first:] and len(run.options["factors"]) == len(run.sigmas) - 1


def test_img2img_takes_a_calibration_only_where_it_is_asked_for(plan):
    """It was fitted from pure noise; the end of it is a schedule that somebody must want."""
    this, told = plan(from_noise=False)
    assert this.schedule(5).tolist() != pytest.approx(FIVE.sigmas) and not this.recipe.calibration and not told
    for asked in ({"calibration": "mine"}, {"schedule": "HP calibrated"}):
        this, told = plan(from_noise=False, **asked)
        assert this.schedule(5, calibrated="schedule" in asked).tolist() == pytest.approx(FIVE.sigmas) and not told
    this, _ = plan()
    assert this.schedule(5).tolist() == pytest.approx(FIVE.sigmas)


def test_own_ends_are_ends_that_differ_from_the_table_s(plan, noise):
    """A host that asks for the table's own, rounded, gets the calibrated schedule; any other end is the person's."""
    for low, high in ((None, None), (noise.sigma_min * (1 + 5e-5), noise.sigma_max * (1 - 5e-5))):
        this, told = plan()
        assert this.schedule(5, sigma_min=low, sigma_max=high).tolist() == pytest.approx(FIVE.sigmas)
    for ends in ({"sigma_min": noise.sigma_min * 1.05}, {"sigma_max": noise.sigma_max * 0.95}):
        this, told = plan()
        sigmas = this.schedule(5, **ends)
        assert sigmas.tolist() != pytest.approx(FIVE.sigmas) and not this.recipe.calibration and not told
        expected = recipe_for("sd1", 5, 7.0).sigmas(noise, **ends)
        assert torch.equal(sigmas, expected)
        this, told = plan()
        this.schedule(5, calibrated=True, **ends)
        assert told == ["no calibration is used, as the settings change the schedule's smallest or largest sigma"]
    this, _ = plan(rho=5.0)
    assert float(this.schedule(5, sigma_max=noise.sigma_max * 0.95)[0]) == pytest.approx(
        noise.sigma_max * 0.95, rel=1e-3
    )


@pytest.mark.parametrize("order", [(3.0, 5.0, 9.0), (9.0, 5.0, 3.0), (5.0, 9.0, 3.0)])
def test_statistics_are_those_of_the_nearest_guidance(tmp_path, noise, order):
    """Whatever their names, dates and order; those of which it is not known come last."""

    def made(cfg_scale, value):
        arrays = (np.full((3, 1, 1, 1), value) for _ in range(3))
        return Statistics(np.array([-1.0, 0.0, 1.0]), *arrays, Provenance("feed", "tiny", "sd1", cfg_scale))

    for number, cfg_scale in enumerate(order):
        save_statistics(made(cfg_scale, cfg_scale / 10), tmp_path / f"{number}.safetensors")
    save_statistics(made(None, 0.0), tmp_path / "0 unknown.safetensors")
    for cfg_scale, nearest in ((1.0, 3.0), (3.9, 3.0), (4.1, 5.0), (6.9, 5.0), (7.1, 9.0), (30.0, 9.0)):
        (label, found), problems = best_for(tmp_path, ["feed"], cfg_scale, noise)
        assert found.source.cfg_scale == nearest and float(found.l.flat[0]) == nearest / 10 and not problems
        assert label.startswith(f"{order.index(nearest)} ")
