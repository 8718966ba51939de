"""Wrong types and values of the core's functions: a ValueError that names the argument, whatever was given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpsampler.golden.search import GoldenForm, golden_latent
from hpsampler.guidance import effective_guidance, with_guidance
from hpsampler.noise import NoiseModel
from hpsampler.recipes import family_of, recipe_for
from hpsampler.schedule import bent_towards_karras, coupled_sigmas, insert_first_midpoint, started_at_strength
from hpsampler.solvers import SOLVERS, sample_dpm_v3, sample_dpmpp_2m, sample_unipc
from tests.oracles import mixture_denoiser

HUGE = 10**400
NO_NUMBERS = ["7", None, [7], (7,), {}, object(), 1j, HUGE, b"7", np.array([7.0, 8.0]), torch.ones(2), True, np.True_]
"""What is no finite number, and what Python, numpy and torch answer with errors of their own."""

SIGMAS = [14.6, 3.0, 0.5]


@pytest.mark.parametrize("wrong", NO_NUMBERS, ids=lambda wrong: type(wrong).__name__)
@pytest.mark.parametrize(
    "name", ["steps", "base_steps", "rho", "truncation_index", "time_rho", "end_sigma", "sigma_min", "sigma_max"]
)
def test_the_schedule_refuses_what_is_no_number(noise, name, wrong):
    if wrong is None and name in ("end_sigma", "sigma_min", "sigma_max"):
        pytest.skip("None is allowed there")
    good = {"steps": 5, "base_steps": 8, "rho": 5.0, "truncation_index": 6}
    with pytest.raises(ValueError, match=f"^{name} (must be|is required)"):
        coupled_sigmas(noise, **{**good, name: wrong})


def test_the_schedule_takes_the_numbers_of_numpy_and_torch(noise):
    expected = coupled_sigmas(noise, 5, 8, 5.0, 6)
    given = (np.int64(5), np.int32(8), np.float64(5), torch.tensor(6))
    assert torch.equal(coupled_sigmas(noise, *given), expected)
    assert torch.equal(
        coupled_sigmas(noise, 5, end_sigma=np.float32(0.25)), coupled_sigmas(noise, 5, end_sigma=torch.tensor(0.25))
    )


@pytest.mark.parametrize("steps", [100_001, 10**9, 1e18])
def test_more_points_than_a_table_has_are_refused_before_memory_is_taken(noise, steps):
    with pytest.raises(ValueError, match="steps must be a whole number from 1 to 100000"):
        coupled_sigmas(noise, steps, 8, 5.0, 6)
    with pytest.raises(ValueError, match="base_steps must be a whole number from 2 to 100000"):
        coupled_sigmas(noise, 5, steps, 5.0, 6)


def test_wrong_tables_finishes_and_schedules_are_named(noise):
    for wrong in ("noise", None, 5):
        with pytest.raises(ValueError, match="noise must be a NoiseModel"):
            coupled_sigmas(wrong, 5, 8, 5.0, 6)
    for wrong in (None, 0, ["keep"], {}):
        with pytest.raises(ValueError, match="finish must be one of keep, zero"):
            coupled_sigmas(noise, 5, 8, 5.0, 6, finish=wrong)
    for wrong in (None, "falling", [3.0, 1.0], np.array([3.0, 1.0]), torch.ones(2, 2)):
        for call in (
            lambda sigmas: bent_towards_karras(sigmas, 0.5, 0.03, 14.6),
            lambda sigmas: started_at_strength(noise, sigmas, 0, 0.5),
            lambda sigmas: insert_first_midpoint(noise, sigmas),
        ):
            with pytest.raises(ValueError, match="sigmas must be a one-dimensional tensor"):
                call(wrong)


@pytest.mark.parametrize("wrong", NO_NUMBERS, ids=lambda wrong: type(wrong).__name__)
def test_bend_strength_and_its_start_refuse_what_is_no_number(noise, wrong):
    sigmas = coupled_sigmas(noise, 5, end_sigma=0.1)
    with pytest.raises(ValueError, match="bend must be a number from 0 to 1"):
        bent_towards_karras(torch.cat([sigmas, torch.zeros(1)]), wrong, 0.03, 14.6)
    for name in ("first", "strength", "time_rho"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            started_at_strength(noise, sigmas, **{"first": 1, "strength": 0.5, name: wrong})


@pytest.mark.parametrize("wrong", NO_NUMBERS, ids=lambda wrong: type(wrong).__name__)
def test_the_recipe_refuses_what_is_no_number(wrong):
    with pytest.raises(ValueError, match="steps must be a whole number from 1 to 150"):
        recipe_for("sd1", wrong, 7.0)
    with pytest.raises(ValueError, match="cfg_scale must be a finite number"):
        recipe_for("sd1", 5, wrong)
    with pytest.raises(ValueError, match="cfg_scale must be a finite number"):
        effective_guidance(wrong, 5)
    with pytest.raises(ValueError, match="scales must be finite"):
        with_guidance(mixture_denoiser, (3.0, wrong))
    if not isinstance(wrong, str):
        with pytest.raises(ValueError, match="family must be one of"):
            family_of(wrong)


def test_the_recipe_takes_the_numbers_of_numpy():
    assert recipe_for("sd1", np.int64(5), np.float32(7)) == recipe_for("sd1", 5, 7.0)
    assert type(recipe_for("sd1", np.int64(5), 7).steps) is int


@pytest.mark.parametrize(
    "wrong", ["table", None, 5, [HUGE, 1], [[1, 2], [3]], ["a", "b"], [None, 1.0], pytest.param(object(), id="object")]
)
def test_a_noise_table_that_is_no_row_of_numbers_is_named(wrong):
    with pytest.raises(ValueError, match="alphas_cumprod must"):
        NoiseModel.from_alphas_cumprod(wrong)
    with pytest.raises(ValueError, match="sigmas must"):
        NoiseModel.from_sigmas(wrong)


# ---- solvers ---------------------------------------------------------------------------------------------------------


def sample(solver="dpmpp_2m", **changes):
    given = {"model": mixture_denoiser, "x": torch.ones(1, 4, 2, 2), "sigmas": torch.tensor(SIGMAS), **changes}
    return SOLVERS[solver](given.pop("model"), given.pop("x"), given.pop("sigmas"), **given)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("sigmas", wrong) for wrong in (np.array(SIGMAS), SIGMAS, None, 3.0, torch.tensor(SIGMAS) + 0j)),
        *(("x", wrong) for wrong in (None, np.ones((1, 4, 2, 2)), torch.ones(1, 4, 2, 2).long(), torch.tensor(1.0))),
        *(("model", wrong) for wrong in (None, "model", torch.ones(1))),
        *(("callback", wrong) for wrong in ("callback", 1, [])),
        *(("extra_args", wrong) for wrong in ("cond", [1], 5)),
    ],
    ids=str,
)
def test_what_every_solver_takes_is_checked(solver, name, wrong):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        sample(solver, **{name: wrong})


@pytest.mark.parametrize("wrong", [*NO_NUMBERS[:-2], -0.1, 1.5, float("nan")], ids=lambda wrong: type(wrong).__name__)
def test_shares_are_numbers_from_0_to_1(wrong):
    for solver in (sample_dpmpp_2m, sample_unipc, sample_dpm_v3):
        with pytest.raises(ValueError, match="analytical_first_step must be from 0 to 1"):
            solver(mixture_denoiser, torch.ones(1, 4, 2, 2), torch.tensor(SIGMAS), analytical_first_step=wrong)
    with pytest.raises(ValueError, match="noise_level must be from 0 to 1"):
        sample("unipc", noise_level=wrong, noise_sampler=lambda *_: torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize("solver", ["unipc", "dpm_v3"])
@pytest.mark.parametrize("wrong", [*NO_NUMBERS, 0, 4, 2.0, 1.5, -1], ids=lambda wrong: type(wrong).__name__)
def test_the_order_is_a_whole_number(solver, wrong):
    with pytest.raises(ValueError, match="order must be 1, 2 or 3"):
        sample(solver, order=wrong)


@pytest.mark.parametrize("wrong", [None, 5, [], ["data"], {}, "x0"], ids=lambda wrong: type(wrong).__name__)
def test_words_are_words(wrong):
    for solver, name in (("unipc", "prediction"), ("unipc", "variant"), ("dpm_v3", "pseudo_order")):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            sample(solver, **{name: wrong})


@pytest.mark.parametrize("wrong", [5, 1.0, [1.0], [1.0, None], ["a", "b"], [1.0, float("nan")], [1.0, HUGE], "ab"])
def test_factors_are_one_finite_number_for_each_step(wrong):
    with pytest.raises(ValueError, match="factors must be"):
        sample("dpmpp_2m", factors=wrong)


@pytest.mark.parametrize("wrong", ["statistics", 5, {}, [1, 2], torch.ones(3)], ids=lambda wrong: type(wrong).__name__)
def test_statistics_are_arrays(wrong):
    with pytest.raises(ValueError, match="statistics must have the arrays lambdas, l, s and b"):
        sample("dpm_v3", statistics=wrong)


def test_fresh_noise_needs_sigmas_that_do_not_rise_and_a_function():
    for noise_sampler in (None, "noise", 5):
        with pytest.raises(ValueError, match="needs a noise_sampler"):
            sample("unipc", noise_level=0.1, noise_sampler=noise_sampler)
    rising = torch.tensor([14.6, 3.0, 4.0, 0.5])
    with pytest.raises(ValueError, match=r"noise_level=0\.1 needs sigmas that do not rise"):
        sample("unipc", sigmas=rising, noise_level=0.1, noise_sampler=lambda *_: torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_model_that_answers_in_another_dtype_gives_a_result_of_x_s(solver, dtype):
    x, seen = torch.ones(1, 4, 2, 2, dtype=torch.float16), []

    def model(x, sigma):
        seen.append(x.dtype)
        return mixture_denoiser(x, sigma).to(dtype)

    for last in (0.5, 0.0):
        result = sample(solver, model=model, x=x, sigmas=torch.tensor([14.6, 3.0, last]))
        assert result.dtype == torch.float16 and set(seen) == {torch.float16}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("answer", [torch.ones(1), torch.ones(1, 1, 2, 2), torch.ones(2, 4, 2, 2), torch.tensor(1.0)])
def test_a_model_that_answers_in_another_shape_is_refused(solver, answer):
    with pytest.raises(ValueError, match=r"model must return the shape of x, \(1, 4, 2, 2\), got"):
        sample(solver, model=lambda x, sigma: answer)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("answer", [None, np.ones((1, 4, 2, 2)), (torch.ones(1, 4, 2, 2),), 1.0])
def test_a_model_that_answers_with_no_tensor_is_refused(solver, answer):
    with pytest.raises(ValueError, match="model must return a tensor, got"):
        sample(solver, model=lambda x, sigma: answer)


def test_a_model_that_answers_on_another_device_is_refused():
    with pytest.raises(ValueError, match="model must return a tensor on the device of x, cpu, got meta"):
        sample(model=lambda x, sigma: x.to("meta"))


def test_golden_noise_refuses_what_is_no_latent_and_no_sigma():
    x = torch.ones(1, 4, 2, 2)
    for wrong in (None, np.ones((1, 4, 2, 2)), "x"):
        with pytest.raises(ValueError, match="x must be floating point"):
            golden_latent(GoldenForm.A, wrong, 14.6, 14.3, mixture_denoiser, plain_args={})
    for wrong in NO_NUMBERS:
        with pytest.raises(ValueError, match="sigma_next must lie between 0 and sigma"):
            golden_latent(GoldenForm.A, x, 14.6, wrong, mixture_denoiser, plain_args={})
