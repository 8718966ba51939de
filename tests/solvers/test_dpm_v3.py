"""DPM-Solver-v3: exact with exact statistics, of the stated order, and equal to known solvers without statistics."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from bench.gpu.place import Between, proving
from bench.problems import PROBLEMS, reference_endpoint, relative_error
from hpsampler.solvers import SOLVERS, sample_dpm_v3, sample_dpmpp_1s, sample_dpmpp_2m
from hpsampler.solvers.dpm_v3 import PSEUDO_ORDERS, dpm_v3_steps, interpolated
from hpsampler.solvers.unipc import unipc_steps
from hpsampler.statistics.coefficients import Statistics
from tests.oracles import mixture_denoiser
from tests.solvers.test_solvers import CountOps, Recorder, run_diffusers

SHAPE = (4, 3, 2)
KEPT = [14.6146, 4.5188, 1.9615, 1.0010, 0.5015, 0.1320]
TO_ZERO = [14.6146, 6.5, 3.4, 1.7, 0.8, 0.4, 0.1, 0.0]
OPTIONS = [
    {"order": order, "corrector": corrector, "pseudo_order": pseudo}
    for order in (1, 2, 3)
    for corrector in (False, True)
    for pseudo in PSEUDO_ORDERS
]
RNG = np.random.default_rng(5)
MEAN, VARIANCE = RNG.standard_normal(SHAPE), np.exp(RNG.standard_normal(SHAPE))


class Coefficients(NamedTuple):
    lambdas: np.ndarray
    l: np.ndarray  # noqa: E741 - the paper's name
    s: np.ndarray
    b: np.ndarray


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


def start(sigma, batch=3, shape=SHAPE, dtype=torch.float64):
    noise = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (noise * sigma).to(dtype)


def karras(count, low=0.05, high=14.6146):
    return [(high ** (1 / 7) + k / (count - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for k in range(count)]


# ---- one Gaussian: the statistics, the denoiser and the trajectories are known ---------------------------------------


def gaussian(x, sigma, **_):
    mean, variance = torch.from_numpy(MEAN).to(x), torch.from_numpy(VARIANCE).to(x)
    return mean + variance / (variance + sigma.view(-1, 1, 1, 1) ** 2) * (x - mean)


def gaussian_end(x, first, last):
    mean, variance = torch.from_numpy(MEAN), torch.from_numpy(VARIANCE)
    return mean + (x - mean) * torch.sqrt((variance + last**2) / (variance + first**2))


def gaussian_statistics(points=251, best=True):
    """With q = sigma^2 / (v + sigma^2), N = q (x - m) and q' = -2 q (1 - q).

    The best l is q; then f = -q m needs no s. But any l will do: with l = 1, f + m = (q - 1)(x - m), which obeys
    f' = s (f + m) with s = q'/(q - 1) - q.
    """
    grid = np.linspace(-2.7, 3.6, points)
    square = np.exp(-2 * grid)[:, None, None, None]
    q = square / (VARIANCE + square)
    slope = -2 * q * (1 - q)
    if best:
        return Coefficients(grid, q, np.zeros_like(q), -slope * MEAN)
    s = slope / (q - 1) - q
    return Coefficients(grid, np.ones_like(q), s, s * MEAN)


def error(result, expected):
    return float((result - expected).square().mean().sqrt())


@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_exact_statistics_leave_only_the_grid_error(options, best):
    x, expected = start(KEPT[0]), gaussian_end(start(KEPT[0]), KEPT[0], KEPT[-1])
    errors = [
        error(
            sample_dpm_v3(gaussian, x, float64(KEPT), statistics=gaussian_statistics(points, best), **options), expected
        )
        for points in (126, 1001)
    ]
    assert errors[0] < 5e-4
    assert errors[1] < errors[0] / 20  # linear interpolation: a grid 8 times finer is about 64 times better


@pytest.mark.parametrize("steps", [5, 6, 8, 10])
def test_exact_statistics_beat_dpmpp_2m_by_far(steps):
    sigmas = [*karras(steps), 0.0]
    x, expected = start(sigmas[0]), gaussian_end(start(sigmas[0]), sigmas[0], 0.0)
    ours = sample_dpm_v3(gaussian, x, float64(sigmas), order=1, statistics=gaussian_statistics())
    theirs = sample_dpmpp_2m(gaussian, x, float64(sigmas))
    assert error(ours, expected) < error(theirs, expected) / 5
    # the last step to 0 takes D whatever the solver; before it the distance is greater still
    ours = sample_dpm_v3(gaussian, x, float64(sigmas[:-1]), order=1, statistics=gaussian_statistics())
    theirs = sample_dpmpp_2m(gaussian, x, float64(sigmas[:-1]))
    assert (
        error(ours, gaussian_end(x, sigmas[0], sigmas[-2]))
        < error(theirs, gaussian_end(x, sigmas[0], sigmas[-2])) / 100
    )


def test_a_single_step_of_any_length_is_exact():
    x = start(14.0)
    for target in (13.9, 1.0, 0.05, 14.5):
        result = sample_dpm_v3(gaussian, x, float64([14.0, target]), statistics=gaussian_statistics(2001))
        assert error(result, gaussian_end(x, 14.0, target)) < 1e-5


def test_beyond_the_grid_nothing_jumps_and_nothing_grows():
    statistics = gaussian_statistics()
    for level, end, limit in ((-9.0, 0, 1.0), (9.0, -1, 0.0)):
        near = interpolated(statistics, statistics.lambdas[end] * (1 + 1e-9))
        far = interpolated(statistics, level)
        for values, at_end, far_out in zip((statistics.l, statistics.s, statistics.b), near, far):
            np.testing.assert_allclose(at_end, values[end], rtol=1e-6, atol=1e-9)
            assert np.abs(far_out - (limit if values is statistics.l else 0)).max() < 1e-4


@pytest.mark.parametrize("order", [1, 2])
def test_a_schedule_may_leave_the_grid(order):
    sigmas = [4500.0, 300.0, 14.0, 1.0, 0.1, 1e-3]
    x = start(sigmas[0])
    ours = sample_dpm_v3(gaussian, x, float64(sigmas), order=order, statistics=gaussian_statistics())
    theirs = sample_dpmpp_2m(gaussian, x, float64(sigmas))
    expected = gaussian_end(x, sigmas[0], sigmas[-1])
    assert error(ours, expected) < min(0.01, error(theirs, expected) / 10)


# ---- the order of convergence ----------------------------------------------------------------------------------------


def two_modes(x, sigma, **_):
    """Two modes at +-1 of variance 0.25, element by element."""
    total = 0.25 + sigma.view(-1, 1, 1, 1) ** 2
    return 0.25 / total * x + (1 - 0.25 / total) * torch.tanh(x / total)


ROUGH = Coefficients(  # not those of the model; two grid points, so that no kink between cells disturbs the slope
    np.array([-2.0, 1.5]),
    np.array([0.9, 0.3])[:, None, None, None] * np.ones((1, *SHAPE)),
    np.array([-0.2, -0.7])[:, None, None, None] * np.ones((1, *SHAPE)),
    np.array([0.3, -0.2])[:, None, None, None] * np.ones((1, *SHAPE)),
)


def graded(count):
    """A schedule with short steps at both ends, where the order is lower."""
    u = np.linspace(0, 1, count + 1)
    return np.exp(-(-1.9 + 3.3 * u**2 * (3 - 2 * u))).tolist()


def slope(statistics=ROUGH, **options):
    x = start(graded(1)[0], batch=8)
    reference = sample_dpm_v3(two_modes, x, float64(graded(1600)), order=3, pseudo_order="off", statistics=statistics)
    counts = (50, 100, 200)
    errors = [
        error(sample_dpm_v3(two_modes, x, float64(graded(count)), statistics=statistics, **options), reference)
        for count in counts
    ]
    return float(np.polyfit(np.log(counts), -np.log(errors), 1)[0])


@pytest.mark.parametrize("statistics", [ROUGH, None], ids=["statistics", "none"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_of_convergence_is_the_stated_one(order, statistics):
    assert slope(statistics, order=order, corrector=False) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("order", [1, 2])
def test_the_corrector_gains_an_order(order):
    assert slope(order=order, corrector=True, pseudo_order="off") == pytest.approx(order + 1, abs=0.4)


def test_a_pseudo_order_is_of_second_order_from_three_nodes_on():
    assert slope(order=3, corrector=False, pseudo_order="both") == pytest.approx(2, abs=0.3)
    assert slope(order=1, corrector=True, pseudo_order="corrector") == pytest.approx(2, abs=0.3)


# ---- without statistics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [KEPT, TO_ZERO])
def test_order_1_without_statistics_is_dpmpp_1s(levels):
    ours = sample_dpm_v3(mixture_denoiser, start(levels[0]), float64(levels), order=1, corrector=False)
    expected = sample_dpmpp_1s(mixture_denoiser, start(levels[0]), float64(levels))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("levels", [KEPT, TO_ZERO])
def test_order_2_without_statistics_is_dpmpp_2m_of_the_heun_kind(levels):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, solver_type="heun", lower_order_final=True,
        final_sigmas_type="zero" if levels[-1] == 0 else "sigma_min",
    )  # fmt: skip
    x = start(levels[0])
    ours = sample_dpm_v3(mixture_denoiser, x, float64(levels), order=2, corrector=False)
    torch.testing.assert_close(ours, run_diffusers(scheduler, levels, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("share", [1.0, 0.975])
@pytest.mark.parametrize("corrector", [False, True])
def test_after_an_analytical_first_step_it_runs_as_from_the_second_point(order, share, corrector):
    """Its output enters neither the history nor the corrector, so the rest is a run of its own with one call less."""
    calls = []

    def counted(x, sigma, **_):
        calls.append(float(sigma[0]))
        return mixture_denoiser(x, sigma)

    x, options = start(KEPT[0]), {"order": order, "corrector": corrector}
    ours = sample_dpm_v3(counted, x, float64(KEPT), **options, analytical_first_step=share)
    assert calls == pytest.approx(KEPT[1:-1])
    # one DDIM step, the noise taken to be that share of x / sqrt(1 + sigma^2)
    assumed = x * (1 - share * KEPT[0] / math.sqrt(1 + KEPT[0] ** 2))
    second = x * KEPT[1] / KEPT[0] + (1 - KEPT[1] / KEPT[0]) * assumed
    expected = sample_dpm_v3(mixture_denoiser, second, float64(KEPT[1:]), **options)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_order_3_without_statistics_has_the_weights_of_unipc():
    """With three nodes UniPC's free function B(h) cancels, and both integrate the same polynomial."""
    ours = dpm_v3_steps(KEPT, 3, pseudo_order="off")
    theirs = unipc_steps(KEPT, 3, "data", "bh2")
    np.testing.assert_allclose(-np.array(ours[2].predictor.outputs), theirs[2].predictor.outputs, rtol=1e-11)
    for i in (1, 2):
        np.testing.assert_allclose(-np.array(ours[i].corrector.outputs), theirs[i].corrector.outputs, rtol=1e-9)
        assert ours[i].corrector.state == pytest.approx(theirs[i].corrector.state, rel=1e-13)
        assert ours[i].corrector.shift == 0


def test_noise_prediction_is_a_choice_of_statistics():
    """With l = 0, s = -1 and b = 0, g is the noise, and its polynomial is that of UniPC's noise prediction."""
    line = np.array([-3.0, 3.0])
    ours = dpm_v3_steps(KEPT, 3, Coefficients(line, 0 * line, 0 * line - 1, 0 * line), pseudo_order="off")
    theirs = unipc_steps(KEPT, 3, "noise", "bh1")
    # f = sigma eps at the step's start, to which past values were moved
    np.testing.assert_allclose(np.array(ours[2].predictor.outputs) * KEPT[2], theirs[2].predictor.outputs, rtol=1e-11)
    for i, step in enumerate(ours):
        assert step.carry.scale == pytest.approx(KEPT[i + 1] / KEPT[i], rel=1e-13) and step.carry.shift == 0


# ---- what all solvers have in common ---------------------------------------------------------------------------------

CASES = [
    pytest.param({**options, "statistics": statistics}, id=f"{'-'.join(map(str, options.values()))}-{name}")
    for options in OPTIONS
    for name, statistics in (("none", None), ("known", gaussian_statistics(26)))
]


def test_it_is_registered():
    assert SOLVERS["dpm_v3"] is sample_dpm_v3


@pytest.mark.parametrize("levels", [KEPT, TO_ZERO, [3.0, 0.5], [3.0, 0.0]])
@pytest.mark.parametrize("options", CASES)
def test_one_call_and_one_callback_a_step(options, levels):
    model, states, x = Recorder(), [], start(levels[0])
    before = x.clone()
    result = sample_dpm_v3(model, x, float64(levels), {"cond": 1}, states.append, True, **options)
    assert result.shape == x.shape and result.dtype == x.dtype and torch.isfinite(result).all()
    assert [float(s[0]) for s in model.sigmas] == levels[:-1] and model.sigmas[0].shape == (3,)
    assert [state["i"] for state in states] == list(range(len(levels) - 1))
    for state, seen, output in zip(states, model.states, model.outputs):
        assert set(state) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        assert torch.equal(state["x"], seen) and torch.equal(state["denoised"], output)
    assert torch.equal(x, before)
    if levels[-1] == 0:
        assert torch.equal(result, model.outputs[-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("options", CASES)
def test_dtype_and_device_stay_and_low_precision_is_close(options, dtype, device):
    exact = sample_dpm_v3(mixture_denoiser, start(KEPT[0]), float64(KEPT), **options)
    result = sample_dpm_v3(mixture_denoiser, start(KEPT[0], dtype=dtype).to(device), torch.tensor(KEPT), **options)
    assert result.dtype == dtype and result.device.type == device.type
    tolerance = {torch.float16: 0.1, torch.bfloat16: 0.6, torch.float32: 1e-4}[dtype]
    assert (result.cpu().double() - exact).abs().mean() < tolerance


@pytest.mark.parametrize("options", CASES)
def test_an_image_is_the_same_alone_and_in_a_batch(options):
    x = start(TO_ZERO[0], dtype=torch.float32)
    batch = sample_dpm_v3(mixture_denoiser, x, torch.tensor(TO_ZERO), **options)
    for i in range(len(x)):
        alone = sample_dpm_v3(mixture_denoiser, x[i : i + 1], torch.tensor(TO_ZERO), **options)
        assert torch.equal(alone[0], batch[i])


@pytest.mark.parametrize("levels", [[5.0, 2.0, 2.0, 1.0, 0.3], [5.0, 1.0, 1.5, 0.7, 0.2], [3.0, 3.0 - 1e-7, 1.0, 0.5]])
@pytest.mark.parametrize("options", CASES)
def test_equal_or_rising_neighbours_do_not_blow_up(options, levels):
    x = start(levels[0])
    result = sample_dpm_v3(gaussian, x, float64(levels), **options)
    assert torch.isfinite(result).all() and result.abs().max() < 3 * x.abs().max()


def test_it_draws_no_noise_and_a_schedule_of_one_sigma_returns_the_state():
    before = torch.get_rng_state()
    sample_dpm_v3(mixture_denoiser, start(KEPT[0]), float64(KEPT), statistics=gaussian_statistics(26))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(sample_dpm_v3(Recorder(), start(2.0), float64([2.0])), start(2.0))


@pytest.mark.parametrize("options", CASES)
def test_it_does_not_wait_for_the_device(options, device):
    """Between two calls; on a CPU it is a stand-in for a GPU that notices."""
    with proving(device) as place:
        x = start(TO_ZERO[0], dtype=torch.float32).to(place.device)
        with Between(lambda x, sigma: x * 0.5, lambda call: place.without_waiting()) as model:
            result = sample_dpm_v3(model, x, torch.tensor(TO_ZERO), **options)
        assert torch.isfinite(result).all()


def test_statistics_may_be_pooled_and_fit_any_size():
    line = np.linspace(-2.7, 3.6, 26)
    pooled = Coefficients(line, *(np.full((26, 4, 1, 1), value) for value in (0.6, -0.3, 0.1)))
    single = Coefficients(line, *(np.full(26, value) for value in (0.6, -0.3, 0.1)))
    for shape in ((4, 3, 2), (4, 8, 8)):
        results = [
            sample_dpm_v3(mixture_denoiser, start(KEPT[0], shape=shape), float64(KEPT), statistics=statistics)
            for statistics in (pooled, single)
        ]
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"order": 0}, {"order": 4}, {"order": True}, {"order": 2.0}, {"pseudo_order": "on"}], ids=str
)
def test_a_bad_option_is_named_with_its_value(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} must be .*{value!r}"):
        sample_dpm_v3(mixture_denoiser, start(KEPT[0]), float64(KEPT), **options)


def test_statistics_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"statistics must fit a latent of shape \(4, 8, 8\).*resized"):
        sample_dpm_v3(
            mixture_denoiser, start(KEPT[0], shape=(4, 8, 8)), float64(KEPT), statistics=gaussian_statistics()
        )


def test_statistics_that_overflow_are_refused():
    line = np.array([-2.7, 3.6])
    statistics = Coefficients(line, np.full(2, 0.5), np.full(2, 1e4), np.full(2, 0.0))
    with pytest.raises(ValueError, match="statistics are too large: the step from"), np.errstate(all="ignore"):
        sample_dpm_v3(mixture_denoiser, start(KEPT[0]), float64(KEPT), statistics=statistics)


# ---- a problem that is not Gaussian, with guidance -------------------------------------------------------------------


@pytest.mark.parametrize("cfg_scale", [1.0, 7.5])
def test_measured_statistics_beat_dpmpp_2m_on_a_guided_mixture(cfg_scale):
    from hpsampler.statistics.estimator import Estimator

    problem = PROBLEMS["mix64"]()

    def model(labels):
        denoise = problem.model(labels, cfg_scale)
        return lambda x, sigma, **_: denoise(x.flatten(1), sigma).view_as(x)

    estimator = Estimator(np.linspace(-2.682, 3.5, 61), (1, 1, 64))
    estimator.add(model(problem.labels(64)), (problem.noise(64, 7) * estimator.sigmas[0]).view(64, 1, 1, 64))
    statistics, noise, labels = estimator.statistics(), problem.noise(16, 1), problem.labels(16)
    expected = reference_endpoint(problem, noise, cfg_scale, KEPT[0])
    errors = []
    for sample, options in ((sample_dpm_v3, {"statistics": statistics}), (sample_dpmpp_2m, {})):
        sigmas = float64([*karras(5), 0.0])
        result = sample(model(labels), (noise * KEPT[0]).view(16, 1, 1, 64), sigmas, **options)
        errors.append(relative_error(result.flatten(1), expected))
    assert errors[0] < errors[1]
    assert math.isfinite(errors[0])


# ---- speed of our own part -------------------------------------------------------------------------------------------


def pooled_statistics(points=51):
    grid = np.linspace(-2.7, 3.6, points)
    rng = np.random.default_rng(1)
    return Statistics(grid, *(0.5 + 0.1 * rng.standard_normal((points, 4, 1, 1)) for _ in range(3)))


def element_statistics(points=51):
    return Statistics(*gaussian_statistics(points))


@pytest.mark.parametrize("make", [pooled_statistics, element_statistics, lambda: None], ids=["pooled", "own", "none"])
@pytest.mark.parametrize(
    ("options", "most"),
    [
        # -f; the corrector: x with its shift, f', and one more for each past value; the predictor likewise
        ({"order": 1}, 6),
        ({"order": 2}, 8),
        ({"order": 3}, 10),
        ({"order": 2, "corrector": False}, 4),
        ({"order": 2, "analytical_first_step": 1.0}, 8),
    ],
)
def test_operations_between_two_model_calls(make, options, most):
    between, mode = [], CountOps()

    def model(x, sigma):
        between.append(mode.count)
        mode.count = 0
        return output

    sigmas, statistics = torch.linspace(10, 1, 9), make()
    x = start(10.0, dtype=torch.float32)
    output = torch.zeros_like(x)
    with mode:
        sample_dpm_v3(model, x, sigmas, statistics=statistics, **options)
    assert 0 < max(between[1:]) <= most


def test_a_schedule_s_weights_are_computed_once(monkeypatch):
    """On the same statistics the second picture begins at once; two schedules are kept, as for hires. fix."""
    from hpsampler.solvers import dpm_v3

    calls = []
    monkeypatch.setattr(
        dpm_v3, "integrals_of", lambda *args, _own=dpm_v3.integrals_of: calls.append(args[1]) or _own(*args)
    )
    statistics, x = element_statistics(), start(KEPT[0])
    first = sample_dpm_v3(gaussian, x, float64(KEPT), statistics=statistics)
    assert torch.equal(sample_dpm_v3(gaussian, x, float64(KEPT), statistics=statistics), first) and len(calls) == 1
    for changed in ({"order": 1}, {"corrector": False}, {"pseudo_order": "off"}, {"analytical_first_step": 1.0}):
        before = len(calls)
        other = sample_dpm_v3(gaussian, x, float64(KEPT), statistics=statistics, **changed)
        assert len(calls) == before + 1 and not torch.equal(other, first), changed
    single = sample_dpm_v3(gaussian, x.float(), float64(KEPT), statistics=statistics)
    assert single.dtype == torch.float32
    assert torch.equal(sample_dpm_v3(gaussian, x, float64(KEPT), statistics=statistics), first)
    assert len(statistics.weights) == dpm_v3.KEPT_SCHEDULES == 2
    assert torch.equal(sample_dpm_v3(gaussian, x, float64(KEPT), statistics=element_statistics()), first)


def test_blocks_of_elements_and_cells_change_nothing(monkeypatch):
    from hpsampler.solvers import _integrals

    expected = dpm_v3_steps(TO_ZERO, 3, gaussian_statistics(126))
    monkeypatch.setattr(_integrals, "BLOCK", 1)
    for one, other in zip(expected, dpm_v3_steps(TO_ZERO, 3, gaussian_statistics(126))):
        for part in ("predictor", "corrector", "carry"):
            for ours, theirs in zip(getattr(one, part) or (), getattr(other, part) or ()):
                np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=1e-12, atol=1e-14)


def test_the_step_that_overflows_is_named():
    grid = np.array([-2.7, -0.1, 0.1, 3.6])
    statistics = Coefficients(grid, np.full(4, 0.5), np.array([0.0, 0.0, 9e3, 9e3]), np.zeros(4))
    with pytest.raises(ValueError, match=r"the step from sigma 1\.001 to 0\.5015 overflows"), np.errstate(all="ignore"):
        sample_dpm_v3(mixture_denoiser, start(KEPT[0]), float64(KEPT), statistics=statistics)
