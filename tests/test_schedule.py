from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpsampler.noise import NoiseModel
from hpsampler.schedule import base_karras, bent_towards_karras, coupled_sigmas, insert_first_midpoint
from tests.conftest import sd_alphas_cumprod, zero_terminal_snr

TABLES = {
    "sd": NoiseModel.from_alphas_cumprod(sd_alphas_cumprod()),
    "zero terminal snr": NoiseModel.from_alphas_cumprod(zero_terminal_snr(sd_alphas_cumprod())),
    "coarse": NoiseModel.from_sigmas(np.geomspace(0.01, 80, 50)),
}


def test_every_reference_schedule(noise, vectors):
    assert len(vectors["schedules"]) == 16
    for case in vectors["schedules"]:
        sigmas = coupled_sigmas(
            noise, case["steps"], case["base_steps"], case["rho"], case["truncation_index"], case["time_rho"]
        )
        np.testing.assert_allclose(sigmas, case["sigmas"], rtol=1e-5, err_msg=str(case))


def test_the_midpoint_of_the_analytical_first_step(noise, vectors):
    """The SDXL schedule of 6 steps with an analytical first step, arXiv 2510.02390."""
    sigmas = insert_first_midpoint(noise, coupled_sigmas(noise, 6, 12, 12, 10))
    golden = [14.6146, 8.4192, 5.2124, 2.4311, 1.3238, 0.756, 0.3937, 0.0600]
    np.testing.assert_allclose(sigmas, golden, rtol=1e-3)


@pytest.mark.parametrize("table", sorted(TABLES))
@pytest.mark.parametrize("steps", [1, 5, 8, 20])
def test_the_midpoint_keeps_the_rest_and_the_order(table, steps):
    sigmas = coupled_sigmas(TABLES[table], steps, end_sigma=0.1)
    longer = insert_first_midpoint(TABLES[table], sigmas)
    assert torch.equal(torch.cat([longer[:1], longer[2:]]), sigmas)
    assert (longer.diff() < 0).all() and longer.dtype == sigmas.dtype


def test_a_schedule_of_one_sigma_has_no_midpoint(noise):
    with pytest.raises(ValueError, match=r"sigmas must hold at least 2 entries, got 1"):
        insert_first_midpoint(noise, torch.tensor([3.0]))


@settings(max_examples=300, deadline=None)
@given(
    table=st.sampled_from(sorted(TABLES)),
    steps=st.integers(1, 200),
    base_steps=st.integers(2, 150),
    rho=st.floats(0.3, 30),
    part=st.floats(0, 1),
    time_rho=st.floats(0.3, 5),
    finish=st.sampled_from(["keep", "zero"]),
)
def test_the_invariant(table, steps, base_steps, rho, part, time_rho, finish):
    noise, index = TABLES[table], 1 + round(part * (base_steps - 2))
    try:
        sigmas = coupled_sigmas(noise, steps, base_steps, rho, index, time_rho, finish)
    except ValueError as error:
        # a truncation that leaves no schedule, and a spacing too steep for float32, have messages of their own
        assert "must end below its start" in str(error) or "must stay apart" in str(error)
        assume(False)
    assert len(sigmas) == steps + 1 and sigmas.dtype == torch.float32
    assert torch.isfinite(sigmas).all() and (sigmas.diff() < 0).all()
    assert (sigmas[-1] == 0) if finish == "zero" else (sigmas[-1] > 0)
    assert float(sigmas[0]) == pytest.approx(noise.sigma_max, rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(table=st.sampled_from(sorted(TABLES)), steps=st.integers(1, 60), end=st.floats(0.03, 10))
def test_the_end_may_be_given_as_a_sigma(table, steps, end):
    sigmas = coupled_sigmas(TABLES[table], steps, end_sigma=end)
    assert float(sigmas[-1]) == pytest.approx(end, rel=1e-4)
    assert len(sigmas) == steps + 1 and (sigmas.diff() < 0).all()


@st.composite
def random_tables(draw):
    """Any increasing sigmas: 10 to 200 of them, neighbours 0.5 % to 60 % apart."""
    apart = draw(st.lists(st.floats(0.005, 0.5), min_size=9, max_size=199))
    return NoiseModel.from_sigmas(draw(st.floats(1e-3, 0.1)) * np.exp(np.cumsum([0.0, *apart])))


@settings(max_examples=100, deadline=None)
@given(
    noise=random_tables(),
    steps=st.integers(1, 150),
    base_steps=st.integers(2, 40),
    rho=st.floats(1, 20),
    part=st.floats(0, 1),
    time_rho=st.floats(0.8, 2),
)
def test_the_invariant_on_any_table(noise, steps, base_steps, rho, part, time_rho):
    sigmas = coupled_sigmas(noise, steps, base_steps, rho, 1 + round(part * (base_steps - 2)), time_rho)
    assert len(sigmas) == steps + 1 and torch.isfinite(sigmas).all()
    assert (sigmas.diff() < 0).all() and sigmas[-1] > 0


@pytest.mark.parametrize("table", sorted(TABLES))
@pytest.mark.parametrize("name", ["rho", "time_rho"])
@pytest.mark.parametrize("value", [1e-300, 1e-3, 1e-2, 0.1, 10.0, 50.0, 1e3, 1e17, 1e300])
def test_an_extreme_exponent_gives_a_decreasing_schedule_or_is_refused_by_name(table, name, value):
    """Exponents within the documented range give no overflow and no equal neighbours."""
    hyper = {"base_steps": 12, "rho": 7.0, "truncation_index": 11, "time_rho": 1.2, name: value}
    for steps in (1, 5, 20, 150):
        try:
            sigmas = coupled_sigmas(TABLES[table], steps, **hyper)
        except ValueError as error:
            assert name in str(error) and f"{value:g}" in str(error)
        else:
            assert torch.isfinite(sigmas).all() and (sigmas.diff() < 0).all() and sigmas[-1] > 0


@pytest.mark.parametrize("short_of", [1e-9, 1e-7, 1e-6, 1e-5])
def test_an_end_just_below_the_start_is_refused_unless_the_steps_fit_between(noise, short_of):
    end = noise.sigma_max * (1 - short_of)
    try:
        sigmas = coupled_sigmas(noise, 10, end_sigma=end)
    except ValueError as error:
        assert "end_sigma" in str(error) and f"{end:.4g}" in str(error)
    else:
        assert (sigmas.diff() < 0).all()


def test_zero_replaces_the_last_sigma_only(noise):
    keep, zero = (coupled_sigmas(noise, 5, 8, 5, 6, finish=finish) for finish in ("keep", "zero"))
    assert torch.equal(keep[:-1], zero[:-1]) and zero[-1] == 0


def test_without_truncation_it_ends_at_the_smallest_sigma(noise):
    assert float(coupled_sigmas(noise, 9, 12, 7, 11)[-1]) == pytest.approx(noise.sigma_min, rel=1e-4)


def test_other_ends_than_those_of_the_table(noise):
    sigmas = coupled_sigmas(noise, 5, 8, 5, 7, sigma_min=0.1, sigma_max=10.0)
    assert float(sigmas[0]) == pytest.approx(10, rel=1e-3) and float(sigmas[-1]) == pytest.approx(0.1, rel=1e-2)


def test_base_karras_agrees_with_k_diffusion():
    from tests.oracles import k_diffusion_sampling

    expected = k_diffusion_sampling().get_sigmas_karras(12, 0.03, 14.6, rho=7.0)
    np.testing.assert_allclose(base_karras(12, 7.0, 0.03, 14.6), expected[:-1], rtol=1e-5)


GOOD = {"steps": 5, "base_steps": 8, "rho": 5.0, "truncation_index": 6}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps.*0"),
        ({"steps": 2.5}, "steps.*2.5"),
        ({"base_steps": 1}, "base_steps.*1"),
        ({"base_steps": None}, "base_steps is required"),
        ({"rho": 0}, "rho.*0"),
        ({"rho": float("nan")}, "rho.*nan"),
        ({"truncation_index": 8}, "truncation_index.*7.*8"),
        ({"truncation_index": 0}, "truncation_index must be a whole number from 1 .*got 0"),
        ({"time_rho": -1}, "time_rho.*-1"),
        ({"finish": "soon"}, "finish.*keep, zero.*soon"),
        ({"end_sigma": 0.001}, "end_sigma.*0.02917.*0.001"),
        ({"end_sigma": 20}, "end_sigma.*14.61.*20"),
        ({"sigma_min": 20.0}, "sigma_min must be below sigma_max"),
        ({"steps": -3}, "steps.*-3"),
        ({"steps": True}, "steps.*True"),
        ({"steps": float("nan")}, "steps.*nan"),
        ({"steps": float("inf")}, "steps.*inf"),
        ({"base_steps": 7.5}, "base_steps.*7.5"),
        ({"rho": None}, "rho is required"),
        ({"rho": float("inf")}, "rho.*inf"),
        ({"truncation_index": None}, "truncation_index is required"),
        ({"truncation_index": 2.5}, "truncation_index.*2.5"),
        ({"time_rho": float("nan")}, "time_rho.*nan"),
        ({"end_sigma": float("nan")}, "end_sigma.*nan"),
        ({"end_sigma": 0}, "end_sigma.*0"),
        ({"sigma_min": -1.0}, "sigma_min.*-1"),
        ({"sigma_max": float("inf")}, "sigma_max.*inf"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(noise, change, words):
    with pytest.raises(ValueError, match=words):
        coupled_sigmas(noise, **{**GOOD, **change})


def test_the_smallest_sigma_is_taken_as_it_is_displayed(noise):
    """Rounded to four digits it may be a little too small; what is smaller by more is none of the table's."""
    shown = float(f"{noise.sigma_min:.4g}")
    for end in (shown, noise.sigma_min * (1 - 9e-5)):
        assert float(coupled_sigmas(noise, 5, end_sigma=end)[-1]) == pytest.approx(noise.sigma_min, rel=1e-4)
    with pytest.raises(ValueError, match="end_sigma must be from"):
        coupled_sigmas(noise, 5, end_sigma=noise.sigma_min * (1 - 2e-4))


@pytest.mark.parametrize("bend", [0.1, 0.25, 0.7, 1.0])
def test_a_bent_schedule_starts_exactly_where_it_did(noise, bend):
    """To the bit: a host compares the first sigma with the noise that it has drawn."""
    for steps in range(2, 12):
        sigmas = coupled_sigmas(noise, steps, 12, 7.0, 9, finish="zero")
        for high in (noise.sigma_max, float(sigmas[0]), 20.0):
            assert bent_towards_karras(sigmas, bend, noise.sigma_min, high)[0] == sigmas[0]
