"""img2img's strength: where a schedule of few steps starts, and that the change grows with it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpsampler.noise import NoiseModel
from hpsampler.recipes import MAX_STEPS, PRESETS, recipe_for
from hpsampler.schedule import coupled_sigmas, started_at_strength


def started(steps, strength, noise, **own):
    """The part of a schedule that the host runs, as A1111 slices it."""
    first = steps - int(min(strength, 0.999) * steps) - 1
    recipe = replace(recipe_for("sd1", steps, 7.0), **own)
    sigmas = recipe.sigmas(noise, first=first, strength=strength)
    assert len(sigmas) == steps + 1 and (sigmas.diff() < 0).all() and torch.isfinite(sigmas).all()
    return sigmas[first:]


@pytest.mark.parametrize("steps", [1, 4, 5, 6, 8, 12, 40, 150])
def test_the_start_rises_with_strength_without_a_jump(steps, noise):
    strengths = np.linspace(0, 1, 101)
    starts = [float(started(steps, strength, noise)[0]) for strength in strengths]
    assert all(low < high for low, high in pairwise(starts))
    times = [noise.t_of_end(start) for start in starts]
    assert max(high - low for low, high in pairwise(times)) < 20, "a hundredth of strength moves the start a little"
    assert starts[0] == pytest.approx(noise.sigma_min, rel=0.02) and starts[-1] == pytest.approx(noise.sigma_max)


@pytest.mark.parametrize("steps", [4, 5, 8, 12])
def test_one_strength_is_one_noise_level_whatever_the_steps(steps, noise):
    for strength in (0.1, 0.3, 0.5, 0.75, 0.9):
        assert float(started(steps, strength, noise)[0]) == pytest.approx(float(started(6, strength, noise)[0]))


def test_strength_one_is_the_schedule_itself(noise):
    for ending in ("zero", "keep", "extrapolate", "extra_call"):
        recipe = replace(recipe_for("sd1", 5, 7.0), ending=ending)
        assert torch.equal(recipe.sigmas(noise, first=0, strength=1.0), recipe.sigmas(noise))


@given(st.integers(1, 150), st.floats(0.005, 1), st.sampled_from(["zero", "keep", "extra_call"]))
def test_an_exact_number_of_steps_runs_the_end_of_a_longer_schedule(calls, strength, ending):
    table = NoiseModel.of_stable_diffusion()
    steps = int(calls / min(strength, 0.999))
    if steps > 2000:
        return
    recipe = replace(recipe_for("sd1", min(steps, MAX_STEPS), 7.0).with_steps(steps), ending=ending)
    sigmas = recipe.sigmas(table, first=steps - calls, strength=strength)
    assert len(sigmas) == steps + 1 + (ending == "extra_call") and (sigmas.diff() < 0).all()


def test_a_wrong_start_is_named(noise):
    kept = PRESETS["SD1.5 6 steps"].sigmas(noise)
    for wrong in (-1, 6, 7):
        with pytest.raises(ValueError, match="first must be a whole number from 0 to 5"):
            started_at_strength(noise, kept, wrong, 0.5)
    for strength in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="strength must be a number from 0 to 1"):
            started_at_strength(noise, kept, 1, strength)


@pytest.mark.parametrize("end", [0.03, 0.4, 3.0])
@pytest.mark.parametrize("strength", [0.0, 1e-9, 1e-3, 0.02, 0.1])
def test_a_strength_that_is_next_to_nothing_still_gives_a_schedule(noise, strength, end):
    """Also where the schedule ends above the level that the strength means: it then ends below its own start."""
    whole = coupled_sigmas(noise, 8, end_sigma=end)
    for first in (0, 3, 7):
        sigmas = started_at_strength(noise, whole, first, strength)
        assert sigmas.shape == whole.shape and (sigmas.diff() < 0).all() and sigmas[-1] > 0
        assert strength > 1e-3 or float(sigmas[first]) < 2 * noise.sigma_min, "nothing is changed"
