"""Guidance per call: the rule, the wrapper that sends it, the bend of the schedule's end, img2img's strength."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.problems import PROBLEMS, reference_endpoint, relative_error
from hpsampler.fields import SettingsError
from hpsampler.guidance import SHARE, STATISTICS_SHARE, effective_guidance, with_guidance
from hpsampler.recipes import MAX_STEPS, PRESETS, auto_bend, recipe_for
from hpsampler.schedule import base_karras, bent_towards_karras
from hpsampler.settings import AS_SET, Settings
from hpsampler.solvers import SOLVERS


class Recorder:
    """A denoiser that keeps the guidance scale of every call."""

    def __init__(self) -> None:
        self.scales: list[float | None] = []

    def __call__(self, x, sigma, /, cond_scale=None, **_):
        self.scales.append(cond_scale)
        return x / (1 + sigma.view(-1, 1) ** 2)


# ---- the rule --------------------------------------------------------------------------------------------------------


def test_the_rule_s_own_numbers():
    assert effective_guidance(7.5, 5) == pytest.approx(4.75) and effective_guidance(7, 5) == pytest.approx(4.525)
    assert effective_guidance(5, 5) == pytest.approx(3.625) and effective_guidance(7.5, 6) == pytest.approx(5.025)
    assert effective_guidance(7.5, 5, STATISTICS_SHARE) == 5 and effective_guidance(5, 5, STATISTICS_SHARE) == 3.75


@given(st.floats(1, 30), st.integers(1, MAX_STEPS))
def test_the_rule_never_raises_guidance_and_fades_with_steps(cfg_scale, steps):
    acting = effective_guidance(cfg_scale, steps)
    assert min(cfg_scale, steps / 2) <= acting <= cfg_scale
    assert acting <= effective_guidance(cfg_scale, steps + 1)
    assert (acting == cfg_scale) == (cfg_scale <= steps / 2 or math.isclose(acting, cfg_scale))
    step = 1e-3
    assert effective_guidance(cfg_scale + step, steps) - acting >= SHARE * step - 1e-9, "more guidance stays more"


def test_auto_has_it_and_the_paper_s_presets_do_not():
    assert recipe_for("sd1", 5, 7.0).guidance == (effective_guidance(7.0, 5),) * 5
    assert recipe_for("sd1", 14, 7.0).guidance == () and recipe_for("sdxl", 20, 7.0).guidance == ()
    assert not any(preset.guidance or preset.bend for preset in PRESETS.values())
    assert recipe_for("sd1", 5, 7.0).with_steps(6).guidance == (effective_guidance(7.0, 5),) * 6
    uneven = replace(recipe_for("sd1", 5, 7.0), guidance=(7.0, 6.0, 5.0, 4.0, 3.0))
    assert uneven.with_steps(6).guidance == (), "what was fitted call by call belongs to its own number"


def test_it_is_nearer_to_the_endpoint_of_the_nominal_scale(noise):
    """At CFG 7.5 and 5 calls, where few steps fail; the same schedule with guidance as set, on the exact problems."""
    logs: dict[bool, list[float]] = {True: [], False: []}
    for make in PROBLEMS.values():
        problem = make()
        unit = problem.noise(64 if problem.dims < 100 else 4, seed=3)
        model = problem.model(problem.labels(len(unit)), 7.5)
        aim = reference_endpoint(problem, unit, 7.5, noise.sigma_max)
        recipe = recipe_for("sd1", 5, 7.5)
        sigmas = recipe.sigmas(noise)
        for ruled in logs:
            guided = with_guidance(model, recipe.guidance if ruled else ())
            end = SOLVERS[recipe.solver](guided, unit * float(sigmas[0]), sigmas, **recipe.options())
            logs[ruled].append(math.log(relative_error(end, aim)))
    ruled, as_set = (math.exp(np.mean(logs[each])) for each in (True, False))
    assert ruled < 0.7 * as_set and ruled < 0.25


# ---- the wrapper -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_sends_each_call_its_own_scale(solver, noise):
    recorder, scales = Recorder(), (5.0, 4.0, 3.0, 2.0, 1.5, 1.25)
    sigmas = recipe_for("sd1", 6, 7.0).sigmas(noise)
    own = {"statistics": None, "corrector": False} if solver == "dpm_v3" else {}
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    SOLVERS[solver](with_guidance(recorder, scales), x, sigmas, {"cond_scale": 7.0}, **own)
    assert tuple(recorder.scales) == scales


def test_without_scales_it_is_the_model_itself_and_the_last_one_stands_for_more():
    recorder = Recorder()
    assert with_guidance(recorder, ()) is recorder
    guided = with_guidance(recorder, (3.0, 2.0))
    for _ in range(3):
        guided(torch.zeros(1, 1), torch.ones(1), cond_scale=7.0)
    assert recorder.scales == [3.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="scales must be finite, got nan"):
        with_guidance(recorder, (math.nan,))


# ---- the setting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [("recipe", "Recipe"), ("As Set", AS_SET), (0.7, "0.7"), ("0.70", "0.7"), (1, "1"), ("1.5", "1.5"), ("0.2", "0.2")],
)
def test_guidance_is_a_word_or_a_factor(given, kept):
    assert Settings.of([{"guidance": given}]).guidance == kept


@pytest.mark.parametrize("wrong", ["0.19", 1.51, "half", True, None, math.nan, 10**400, [0.5], ""])
def test_another_guidance_is_refused_by_name(wrong):
    with pytest.raises(
        SettingsError, match=r"Guidance \(guidance\) must be Recipe, As set or a number from 0.2 to 1.5"
    ):
        Settings.of([{"guidance": wrong}])


def test_what_each_guidance_makes_of_a_recipe():
    def scales(guidance, recipe="Auto", cfg_scale=7.0):
        return Settings.of([{"guidance": guidance, "recipe": recipe}]).resolve("sd1", 5, cfg_scale).guidance

    assert scales("Recipe") == (effective_guidance(7.0, 5),) * 5 and scales("As set") == ()
    assert scales(0.6) == pytest.approx((4.2,) * 5) and scales(0.6, "SD1.5 5 steps") == pytest.approx((4.2,) * 5)
    assert scales("Recipe", "SD1.5 5 steps") == () and Settings().resolve("sd1", 5, 7.0).guidance != ()


# ---- the bend --------------------------------------------------------------------------------------------------------


@given(st.integers(2, 40), st.floats(0, 1), st.floats(1, 20))
def test_a_bent_schedule_keeps_its_invariant(steps, bend, cfg_scale):
    from hpsampler.noise import NoiseModel

    table = NoiseModel.of_stable_diffusion()
    sigmas = replace(recipe_for("sd1", steps, cfg_scale), bend=bend, ending="zero").sigmas(table)
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    assert float(sigmas[0]) == pytest.approx(table.sigma_max)


def test_its_ends_are_the_schedule_and_karras(noise):
    straight = replace(recipe_for("sd1", 8, 5.0), bend=0.0).sigmas(noise)
    assert torch.equal(bent_towards_karras(straight, 0, noise.sigma_min, noise.sigma_max), straight)
    karras = bent_towards_karras(straight, 1, noise.sigma_min, noise.sigma_max)
    assert np.allclose(karras[:-1], base_karras(8, 7.0, noise.sigma_min, noise.sigma_max), rtol=1e-6)
    half = bent_towards_karras(straight, 0.5, noise.sigma_min, noise.sigma_max)
    assert np.allclose(half[:-1] ** 2, straight[:-1] * karras[:-1], rtol=1e-5), "halfway in log sigma"
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="bend must be a number from 0 to 1"):
            bent_towards_karras(straight, wrong, noise.sigma_min, noise.sigma_max)
    with pytest.raises(ValueError, match="bend is for a schedule that ends at 0, this one ends at"):
        bent_towards_karras(straight[:-1], 0.5, noise.sigma_min, noise.sigma_max)


def test_auto_s_bend_grows_with_steps_and_falls_with_guidance():
    scales = (1.0, 3.0, 5.0, 7.0, 7.5, 15.0)
    for steps in range(1, 40):
        bends = [auto_bend(steps, scale) for scale in scales]
        assert all(0 <= low <= high <= 0.25 for high, low in pairwise(bends))
        assert all(auto_bend(steps, scale) <= auto_bend(steps + 1, scale) for scale in scales)
    assert auto_bend(5, 7.5) == auto_bend(5, 5.0) == 0 and auto_bend(8, 7.5) == 0.16 and auto_bend(8, 3) == 0.25


def test_a_kept_ending_is_not_bent(noise):
    kept = PRESETS["SD1.5 6 steps"]
    assert torch.equal(replace(kept, bend=0.5).sigmas(noise), kept.sigmas(noise))
    settings = Settings.of([{"bend": 0.5, "recipe": "SD1.5 6 steps", "ending": "To zero"}])
    recipe = settings.resolve("sd1", 6, 7.0)
    assert recipe.bend == 0.5 and not torch.equal(recipe.sigmas(noise), replace(recipe, bend=0.0).sigmas(noise))
