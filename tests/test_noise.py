from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsampler.noise import NoiseModel
from tests.conftest import sd_alphas_cumprod, zero_terminal_snr
from tests.oracles import k_diffusion


def test_the_table_of_stable_diffusion(noise):
    assert len(noise) == 1000
    assert noise.sigma_min == pytest.approx(0.0291671582, rel=1e-6)
    assert noise.sigma_max == pytest.approx(14.6146412, rel=1e-6)


@pytest.mark.parametrize("make", [np.asarray, list, torch.tensor, lambda a: torch.tensor(a, dtype=torch.float32)])
def test_any_container_and_float_type(noise, make):
    built = NoiseModel.from_alphas_cumprod(make(sd_alphas_cumprod()))
    np.testing.assert_allclose(built.sigmas, noise.sigmas, rtol=1e-4)


@pytest.mark.parametrize("turn", [lambda s: s, lambda s: s[::-1], lambda s: np.append(s[::-1], 0.0)])
def test_from_sigmas_in_either_direction_with_or_without_a_zero(noise, turn):
    built = NoiseModel.from_sigmas(turn(noise.sigmas))
    np.testing.assert_allclose(built.alphas_cumprod, noise.alphas_cumprod, rtol=1e-12)


def test_zero_terminal_snr_is_finite_and_strictly_increasing(zsnr_noise):
    assert zsnr_noise.zero_terminal_snr and 1000 < zsnr_noise.sigma_max < 10000
    assert np.isfinite(zsnr_noise.sigmas).all() and (np.diff(zsnr_noise.sigmas) > 0).all()
    assert zero_terminal_snr(sd_alphas_cumprod())[-1] == 0, "else this test tests nothing"


def test_both_directions_agree_on_the_table(noise, zsnr_noise):
    for model in (noise, zsnr_noise):
        t = np.arange(1000)
        np.testing.assert_allclose(model.sigma_to_t(model.sigmas), t, atol=1e-6)
        np.testing.assert_allclose(model.t_to_sigma(t), model.sigmas, rtol=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 999))
def test_interpolation_between_entries(t):
    model = NoiseModel.from_alphas_cumprod(sd_alphas_cumprod())
    low, part = int(min(t, 998)), t - int(min(t, 998))
    abar = (1 - part) * model.alphas_cumprod[low] + part * model.alphas_cumprod[low + 1]
    assert model.t_to_sigma(t) == pytest.approx(((1 - abar) / abar) ** 0.5, rel=1e-9)
    log_sigma = (1 - part) * np.log(model.sigmas[low]) + part * np.log(model.sigmas[low + 1])
    assert model.sigma_to_t(np.exp(log_sigma)) == pytest.approx(t, abs=1e-6)
    assert model.t_of_end(float(model.t_to_sigma(t))) == pytest.approx(t, abs=1e-5)


def test_sigma_to_t_agrees_with_k_diffusion(noise, zsnr_noise):
    """Its DiscreteSchedule without rounding, within the table and beyond both ends."""
    external = k_diffusion("external")
    for table in (noise, zsnr_noise):
        sigmas = np.geomspace(table.sigma_min / 2, table.sigma_max * 2, 500)
        schedule = external.DiscreteSchedule(torch.from_numpy(table.sigmas), quantize=False)
        theirs = schedule.sigma_to_t(torch.from_numpy(sigmas))
        np.testing.assert_allclose(table.sigma_to_t(sigmas), theirs, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1e-3, 0.1),
    st.lists(st.floats(1e-3, 0.5), min_size=1, max_size=100),
    st.lists(st.floats(0, 1), min_size=2),
)
def test_both_directions_increase_on_any_table(low, apart, parts):
    table = NoiseModel.from_sigmas(low * np.exp(np.cumsum([0.0, *apart])))
    assert (np.diff(table.alphas_cumprod) < 0).all()
    t = np.sort(parts) * (len(table) - 1)
    sigmas = table.t_to_sigma(t)
    assert (np.diff(sigmas) >= 0).all() and (np.diff(table.sigma_to_t(sigmas)) >= -1e-9).all()
    # built from the noisy end, where 1 - alphas_cumprod is computed without loss
    np.testing.assert_allclose([table.t_to_sigma(table.t_of_end(sigma)) for sigma in sigmas], sigmas, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_the_maps_keep_the_shape_of_arrays_and_tensors(noise, shape):
    for values in (np.full(shape, 2.0), torch.full(shape, 2.0)):
        assert noise.sigma_to_t(values).shape == noise.t_to_sigma(values).shape == shape
        assert noise.sigma_to_t(values).dtype == np.float64


def test_the_input_is_not_changed():
    alphas_cumprod = zero_terminal_snr(sd_alphas_cumprod())
    before = alphas_cumprod.copy()
    table = NoiseModel.from_alphas_cumprod(alphas_cumprod)
    sigmas = table.sigmas.copy()
    NoiseModel.from_sigmas(sigmas)
    assert (alphas_cumprod == before).all() and (sigmas == table.sigmas).all()


def test_a_float16_table_of_the_host_is_accepted(noise):
    """Some hosts keep alphas_cumprod in half precision; sigma_max is then 14.612."""
    built = NoiseModel.from_alphas_cumprod(torch.tensor(sd_alphas_cumprod()).half())
    assert built.sigma_max == pytest.approx(noise.sigma_max, rel=1e-3)
    assert (np.diff(built.sigmas) > 0).all()


def test_outside_the_table_is_clamped(noise):
    assert noise.sigma_to_t([0.0, 1e-6, 1e6]).tolist() == [0, 0, 999]
    assert noise.t_to_sigma([-5, 2000]).tolist() == pytest.approx([noise.sigma_min, noise.sigma_max])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([0.9], "at least 2"),
        ([[0.9, 0.5]], "one-dimensional"),
        ([0.9, float("nan")], "finite"),
        ([1.2, 0.5], "between 0 and 1"),
        ([0.9, 0.5, -0.1], "between 0 and 1"),
        ([0.5, 0.9], "decrease"),
        ([0.9, 0.5, 0.5, 0.1], "index 1"),
    ],
)
def test_a_bad_table_is_refused_with_a_message(table, words):
    with pytest.raises(ValueError, match=words):
        NoiseModel.from_alphas_cumprod(table)


@pytest.mark.parametrize("table", [[1.0, 1.0, 2.0], [0.0, 1.0], [-1.0, 1.0, 2.0], [1.0, float("inf")]])
def test_bad_sigmas_are_refused_with_a_message(table):
    with pytest.raises(ValueError, match="sigmas"):
        NoiseModel.from_sigmas(table)


def test_a_last_zero_becomes_less_than_the_entry_before_it():
    """Some tables fall below the usual floor before their last entry."""
    for before in (0.5, 1e-3, 4e-8, 1e-12):
        table = NoiseModel.from_alphas_cumprod([0.99, 0.7, before, 0.0]).alphas_cumprod
        assert 0 < table[-1] < before and (before < 1e-7 or table[-1] == 4.8973451890853435e-08)
