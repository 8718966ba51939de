from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hpsampler.noise import NoiseModel
from hpsampler.schedule import base_karras, coupled_sigmas, insert_first_midpoint
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
    """method.md section 1.4: XL 6 + AFS, unshifted."""
    sigmas = insert_first_midpoint(noise, coupled_sigmas(noise, 6, 12, 12, 10))
    golden = [14.6146, 8.4192, 5.2124, 2.4311, 1.3238, 0.756, 0.3937, 0.0600]
    np.testing.assert_allclose(sigmas, golden, rtol=1e-3)


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
        # a cut so early that nothing is left of the schedule has a message of its own
        assert "must end below its start" in str(error)
        assume(False)
    assert len(sigmas) == steps + 1 and sigmas.dtype == torch.float32
    assert torch.isfinite(sigmas).all() and (sigmas.diff() < 0).all()
    assert (sigmas[-1] == 0) if finish == "zero" else (sigmas[-1] > 0)
    assert float(sigmas[0]) == pytest.approx(noise.sigma_max, rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(table=st.sampled_from(sorted(TABLES)), steps=st.integers(1, 60), end=st.floats(0.03, 10))
def test_the_end_may_be_asked_for_as_a_sigma(table, steps, end):
    sigmas = coupled_sigmas(TABLES[table], steps, end_sigma=end)
    assert float(sigmas[-1]) == pytest.approx(end, rel=1e-4)
    assert len(sigmas) == steps + 1 and (sigmas.diff() < 0).all()


def test_zero_replaces_the_last_sigma_only(noise):
    keep, zero = (coupled_sigmas(noise, 5, 8, 5, 6, finish=finish) for finish in ("keep", "zero"))
    assert torch.equal(keep[:-1], zero[:-1]) and zero[-1] == 0


def test_no_truncation_ends_at_the_table_s_smallest_sigma(noise):
    assert float(coupled_sigmas(noise, 9, 12, 7, 11)[-1]) == pytest.approx(noise.sigma_min, rel=1e-4)


def test_ends_other_than_the_table_s_are_honoured(noise):
    sigmas = coupled_sigmas(noise, 5, 8, 5, 7, sigma_min=0.1, sigma_max=10.0)
    assert float(sigmas[0]) == pytest.approx(10, rel=1e-3) and float(sigmas[-1]) == pytest.approx(0.1, rel=1e-2)


def test_base_karras_is_k_diffusion_s():
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
        ({"base_steps": None}, "base_steps is needed"),
        ({"rho": 0}, "rho.*0"),
        ({"rho": float("nan")}, "rho.*nan"),
        ({"truncation_index": 8}, "truncation_index.*7.*8"),
        ({"truncation_index": 0}, "truncation_index.*0"),
        ({"time_rho": -1}, "time_rho.*-1"),
        ({"finish": "soon"}, "finish.*keep, zero.*soon"),
        ({"end_sigma": 0.001}, "end_sigma.*0.02917.*0.001"),
        ({"end_sigma": 20}, "end_sigma.*14.61.*20"),
        ({"sigma_min": 20.0}, "sigma_min must be below sigma_max"),
    ],
)
def test_a_bad_argument_is_named_with_its_value(noise, change, words):
    with pytest.raises(ValueError, match=words):
        coupled_sigmas(noise, **{**GOOD, **change})
