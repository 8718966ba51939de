"""Golden noise without a network: the two forms as the reference computes them, their calls, the size of the change."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from hpsampler.golden.search import CALLS, SIGMA_GAP, GoldenForm, golden_latent, sigma_below

SIGMA, NEXT = 14.6146, 14.6146 - SIGMA_GAP
VARIANCE = 0.05
POSITIVE = ((0.3, -1.2), (0.7, 0.9))
NOTHING = ((0.2, -0.8), (0.5, 0.1), (0.3, 1.4))
"""Mixtures of Gaussians, element by element: (weight, mean)."""


def noise(*shape, sigma=SIGMA, dtype=torch.float64):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * sigma).to(dtype)


def shares(x, sigma, mixture):
    """The posterior weight of every mode at x, and the modes' common variance."""
    total = VARIANCE + sigma**2
    logs = np.stack([math.log(weight) - (x - mean) ** 2 / (2 * total) for weight, mean in mixture])
    parts = np.exp(logs - logs.max(0))
    return parts / parts.sum(0), total


def denoiser(x, sigma, mixture):
    """The posterior mean."""
    level = sigma.double().numpy().reshape(-1, *[1] * (x.ndim - 1))
    parts, total = shares(x.double().numpy(), level, mixture)
    means = [(VARIANCE * x.double().numpy() + level**2 * mean) / total for _, mean in mixture]
    return torch.from_numpy(sum(part * mean for part, mean in zip(parts, means))).to(x)


def eps(x, sigma, mixture):
    """-sigma times the score."""
    parts, total = shares(x, sigma, mixture)
    return sigma / total * sum(part * (x - mean) for part, (_, mean) in zip(parts, mixture))


def model(x, sigma, w=1.0, **_):
    nothing = denoiser(x, sigma, NOTHING)
    return nothing + w * (denoiser(x, sigma, POSITIVE) - nothing)


def by_hand(form, x, sigma, low, w):
    """As the reference scripts compute it: the step in terms of eps, the second eps from the positive prompt alone."""
    e_c, e_u = eps(x, sigma, POSITIVE), eps(x, sigma, NOTHING)
    d_w = x - sigma * (e_u + w * (e_c - e_u))
    h = math.log(sigma / low)
    lower = (low / sigma) * x - math.expm1(-h) * d_w
    e_low = eps(lower, low, POSITIVE)
    if form is GoldenForm.B:
        return d_w + sigma * e_low
    return (lower + math.expm1(-h) * (lower - low * e_low)) / (low / sigma)


class Recorder:
    def __init__(self):
        self.calls = []

    def __call__(self, x, sigma, **extra_args):
        self.calls.append((x.clone(), sigma.clone(), extra_args))
        return model(x, sigma, **extra_args)


@pytest.mark.parametrize("w", [1.0, 7.5])
@pytest.mark.parametrize(("sigma", "low"), [(SIGMA, NEXT), (SIGMA, 6.5), (1.2, 0.4)])
@pytest.mark.parametrize("form", GoldenForm)
def test_it_agrees_with_the_reference_formula(form, sigma, low, w):
    x = noise(2, 4, 6, 5, sigma=sigma)
    ours = golden_latent(form, x, sigma, low, model, extra_args={"w": w}, plain_args={"w": 1.0})
    expected = by_hand(form, x.numpy(), sigma, low, w)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12, atol=1e-11)
    assert np.abs(expected - x.numpy()).max() > 1e-6, "otherwise this test proves nothing"


@pytest.mark.parametrize("form", GoldenForm)
def test_it_makes_two_calls_with_the_right_arguments(form):
    x, guided, plain = noise(3, 4, 2, 2), Recorder(), Recorder()
    golden_latent(form, x, SIGMA, NEXT, guided, plain, extra_args={"w": 7.5, "a": 1}, plain_args={"w": 1.0})
    assert len(guided.calls) == len(plain.calls) == 1 and CALLS == 2
    (seen, sigma, arguments), (lower, sigma_next, arguments_next) = guided.calls[0], plain.calls[0]
    assert torch.equal(seen, x) and arguments == {"w": 7.5, "a": 1} and arguments_next == {"w": 1.0}
    assert torch.equal(sigma, torch.full((3,), SIGMA, dtype=torch.float64))
    assert torch.equal(sigma_next, torch.full((3,), NEXT, dtype=torch.float64))
    step = x + (x - model(x, sigma, w=7.5)) / SIGMA * (NEXT - SIGMA)
    torch.testing.assert_close(lower, step, rtol=1e-12, atol=1e-12)


def test_one_model_with_other_arguments_or_another_model_with_the_same():
    x, one, two = noise(1, 4, 2, 2), Recorder(), Recorder()
    golden_latent(GoldenForm.A, x, SIGMA, NEXT, one, extra_args={"w": 7.5}, plain_args={})
    assert [call[2] for call in one.calls] == [{"w": 7.5}, {}]
    golden_latent(GoldenForm.A, x, SIGMA, NEXT, one, two, extra_args={"w": 3.0})
    assert one.calls[2][2] == two.calls[0][2] == {"w": 3.0} and len(one.calls) == 3


def test_a_model_whose_truth_value_is_false_is_still_called():
    class Empty(Recorder):
        def __len__(self):
            return 0

    guided, plain = Recorder(), Empty()
    golden_latent(GoldenForm.A, noise(1, 4, 2, 2), SIGMA, NEXT, guided, plain)
    assert len(plain.calls) == len(guided.calls) == 1


@pytest.mark.parametrize("form", GoldenForm)
def test_a_row_does_not_depend_on_its_batch_and_the_input_stays(form):
    x = noise(4, 4, 3, 3)
    before = x.clone()
    arguments = {"extra_args": {"w": 7.5}, "plain_args": {}}
    whole = golden_latent(form, x, SIGMA, NEXT, model, **arguments)
    for i in range(4):
        assert torch.equal(golden_latent(form, x[i : i + 1], SIGMA, NEXT, model, **arguments)[0], whole[i])
    assert torch.equal(x, before) and whole.data_ptr() != x.data_ptr()


@pytest.mark.parametrize(
    ("form", "w", "order"),
    [(GoldenForm.A, 1.0, 2), (GoldenForm.B, 1.0, 1), (GoldenForm.A, 7.5, 1), (GoldenForm.B, 7.5, 0)],
)
def test_the_change_is_of_its_order_in_the_step(form, w, order):
    x, gaps = noise(2, 4, 4, 4, sigma=2.0), (1e-2, 5e-3, 2.5e-3)
    sizes = [
        float((golden_latent(form, x, 2.0, 2.0 - gap, model, extra_args={"w": w}, plain_args={}) - x).norm())
        for gap in gaps
    ]
    for large, small in itertools.pairwise(sizes):
        assert math.log2(large / small) == pytest.approx(order, abs=0.03)


def test_the_second_sigma_is_lower_in_proportion():
    assert sigma_below(14.614641) == pytest.approx(14.614641 - SIGMA_GAP)
    assert sigma_below(1000.0) / 1000.0 == pytest.approx(sigma_below(2.0) / 2.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("model_dtype", [None, torch.float32])
@pytest.mark.parametrize("form", GoldenForm)
def test_the_dtype_is_that_of_the_input_whatever_the_model_returns(form, model_dtype, dtype):
    x = noise(2, 4, 3, 3, sigma=1.0, dtype=dtype)

    def rounding(x, sigma, **extra_args):
        assert x.dtype == sigma.dtype == dtype
        return model(x, sigma, **extra_args).to(model_dtype or dtype)

    arguments = {"extra_args": {"w": 3.0}, "plain_args": {}}
    ours = golden_latent(form, x, 1.0, 0.5, rounding, **arguments)
    expected = golden_latent(form, x.double(), 1.0, 0.5, model, **arguments)
    assert ours.dtype == dtype
    size = float(expected.abs().max())
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps * size)


GOOD = {
    "form": GoldenForm.A, "x": torch.ones(1, 4, 2, 2), "sigma": 2.0, "sigma_next": 1.0, "guided": model, "plain": model,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"form": "A"}, "form must be one of GoldenForm.A, GoldenForm.B, got 'A'"),
        ({"x": torch.ones(1, 4, dtype=torch.int64)}, r"x must be floating point .*, got torch.int64 of shape \(1, 4\)"),
        ({"x": torch.tensor(1.0)}, r"x must be .* shape \(batch, ...\), got torch.float32 of shape \(\)"),
        ({"sigma_next": 2.0}, "sigma_next must lie between 0 and sigma, got 2 and 2"),
        ({"sigma_next": 0.0}, "sigma_next must lie between 0 and sigma, got 0 and 2"),
        ({"sigma_next": math.nan}, "sigma_next must lie between 0 and sigma, got nan and 2"),
        ({"sigma": math.inf}, "sigma_next must lie between 0 and sigma, got 1 and inf"),
        ({"sigma": math.nan}, "sigma_next must lie between 0 and sigma, got 1 and nan"),
        ({"sigma": 0.0}, "sigma_next must lie between 0 and sigma, got 1 and 0"),
        ({"plain": None}, "plain or plain_args must be given"),
        ({"guided": lambda x, sigma: x[:, :2]}, r"guided must return the shape of x, \(1, 4, 2, 2\), got \(1, 2, 2, 2"),
        ({"plain": lambda x, sigma: x.sum()}, r"plain must return the shape of x, \(1, 4, 2, 2\), got \(\)"),
    ],
)
def test_invalid_arguments_are_refused_with_a_message(changes, words):
    with pytest.raises(ValueError, match=words):
        golden_latent(**{**GOOD, **changes})
