"""UniPC beyond what all solvers have in common: its formulas, orders and history, and nearly equal sigmas."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpsampler.noise import NoiseModel
from hpsampler.schedule import coupled_sigmas, insert_first_midpoint
from hpsampler.solvers import sample_dpmpp_1s, sample_dpmpp_2m, sample_unipc
from hpsampler.solvers.unipc import phi, unipc_steps
from tests.conftest import sd_alphas_cumprod
from tests.oracles import mixture_denoiser

PAPER = {"prediction": "noise", "variant": "bh1"}
XL8 = [14.6146, 9.5775, 6.5481, 3.4672, 2.0671, 1.3238, 0.8711, 0.5597, 0.3171, 0.0600]

KINDS = [
    pytest.param(order, prediction, variant, id=f"{order}-{prediction}-{variant}")
    for order in (1, 2, 3)
    for prediction in ("data", "noise")
    for variant in ("bh1", "bh2")
]


def start(levels, shape=(2, 3, 4, 5), dtype=torch.float64):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (noise * levels[0]).to(dtype)


def float64(levels):
    return torch.tensor(levels, dtype=torch.float64)


# ---- the paper's formulas, written out -------------------------------------------------------------------------------


def formulas_of_the_paper(model, x, levels, orders, analytical):
    """Noise prediction with bh1, one line per formula; step i is of order ``orders[i]``, 1 or 2."""
    past: list[tuple[float, torch.Tensor]] = []
    previous = None
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        if i == 0 and analytical:
            m = x / math.sqrt(1 + sigma**2)
        else:
            m = (x - model(x, torch.full((len(x),), sigma, dtype=x.dtype))) / sigma
        if previous is not None:
            x = corrected(m, *previous)
        past.insert(0, (sigma, m))
        previous = (x, past[:2], sigma, sigma_next, orders[i])
        h = math.log(sigma / sigma_next)
        m0 = past[0][1]
        base = x + (sigma_next - sigma) * m0
        if orders[i] == 2:
            r = math.log(sigma / past[1][0]) / h
            base = base - sigma_next * h * 0.5 * (past[1][1] - m0) / r
        x = base
    return x


def corrected(m_next, x, past, sigma, sigma_next, order):
    h = math.log(sigma / sigma_next)
    m0 = past[0][1]
    base = x + (sigma_next - sigma) * m0
    if order == 1:
        return base - sigma_next * h * 0.5 * (m_next - m0)
    r = math.log(sigma / past[1][0]) / h
    psi1 = (math.expm1(h) / h - 1) / h
    psi2 = 2 * (psi1 - 0.5) / h
    rho = torch.linalg.solve(float64([[1, 1], [r, 1]]), float64([psi1, psi2])).tolist()
    return base - sigma_next * h * (rho[0] * (past[1][1] - m0) / r + rho[1] * (m_next - m0))


@pytest.mark.parametrize("order", [1, 2])
def test_the_paper_s_formulas_written_out(order):
    levels = XL8[:1] + XL8[2:]
    orders = [1, *[order] * (len(levels) - 3), 1]
    x = start(levels)
    expected = formulas_of_the_paper(mixture_denoiser, x, levels, orders, analytical=False)
    ours = sample_unipc(mixture_denoiser, x, float64(levels), order=order, **PAPER)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_after_the_analytical_first_step_the_second_is_of_order_one():
    x = start([math.sqrt(1 + XL8[0] ** 2)])
    ours = sample_unipc(mixture_denoiser, x, float64(XL8), order=2, analytical_first_step=True, **PAPER)
    without_it = formulas_of_the_paper(mixture_denoiser, x, XL8, [1, 1, 2, 2, 2, 2, 2, 2, 1], analytical=True)
    with_it = formulas_of_the_paper(mixture_denoiser, x, XL8, [1, 2, 2, 2, 2, 2, 2, 2, 1], analytical=True)
    torch.testing.assert_close(ours, without_it, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(ours, with_it, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("analytical", [False, True])
def test_the_order_falls_at_both_ends_and_with_an_analytical_first_step(order, analytical):
    levels = [8.0, 5.0, 3.0, 2.0, 1.2, 0.7, 0.4, 0.2]
    steps = unipc_steps(levels, order, "data", "bh2", analytical_first_step=analytical)
    available = [1, 1, 2, 3, 4, 5, 6] if analytical else [1, 2, 3, 4, 5, 6, 7]
    assert [len(step.predictor.outputs) for step in steps] == [
        min(order, outputs, left) for outputs, left in zip(available, [7, 6, 5, 4, 3, 2, 1])
    ]


@pytest.mark.parametrize(("order", "prediction", "variant"), KINDS)
def test_the_analytical_first_step_saves_one_call(order, prediction, variant):
    calls = []

    def model(x, sigma):
        calls.append(float(sigma[0]))
        return mixture_denoiser(x, sigma)

    states = []
    sample_unipc(
        model, start(XL8), float64(XL8), callback=states.append,
        order=order, prediction=prediction, variant=variant, analytical_first_step=True,
    )  # fmt: skip
    assert calls == XL8[1:-1]
    assert [float(state["sigma"]) for state in states] == XL8[:-1], "the callback comes once a step all the same"


@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_the_analytical_output_takes_x_for_noise(prediction):
    """x_vp = x / sqrt(1 + sigma^2) is its own noise: D = x - sigma x_vp."""
    states = []
    x = start(XL8)
    sample_unipc(
        mixture_denoiser, x, float64(XL8), callback=states.append, prediction=prediction, analytical_first_step=True
    )
    torch.testing.assert_close(states[0]["denoised"], x - XL8[0] * x / math.sqrt(1 + XL8[0] ** 2))


def test_the_analytical_output_is_not_extrapolated_from():
    outputs = []

    def model(x, sigma):
        outputs.append(mixture_denoiser(x, sigma))
        return outputs[-1]

    for levels in ([*XL8[:2], 0.0], [*XL8[:3], 0.0]):
        outputs.clear()
        result = sample_unipc(model, start(levels), float64(levels), extrapolate=True, analytical_first_step=True)
        expected = outputs[-1] + (outputs[-1] - outputs[-2]) / 2 if len(outputs) > 1 else outputs[-1]
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_the_point_inserted_for_it_keeps_the_calls():
    noise = NoiseModel.from_alphas_cumprod(sd_alphas_cumprod())
    sigmas = insert_first_midpoint(noise, coupled_sigmas(noise, 6, 12, 12.0, 10)).double()
    calls = []
    sample_unipc(
        lambda x, sigma: calls.append(1) or mixture_denoiser(x, sigma),
        start(sigmas.tolist()), sigmas, analytical_first_step=True,
    )  # fmt: skip
    assert len(calls) == 6


# ---- against diffusers -----------------------------------------------------------------------------------------------


def diffusers_states(levels, x, order, prediction, variant, corrector=True):
    """VE states at every level, before correction, from diffusers' scheduler driven over the same sigmas."""
    from diffusers import UniPCMultistepScheduler

    count = len(levels) - 1
    scheduler = UniPCMultistepScheduler(
        solver_order=order, solver_type=variant, predict_x0=prediction == "data", prediction_type="sample",
        lower_order_final=True, disable_corrector=[] if corrector else list(range(count)),
    )  # fmt: skip
    scheduler.set_timesteps(count)
    scheduler.sigmas = float64(levels)
    scheduler.timesteps = torch.arange(count, 0, -1)
    states = [x]
    vp = x / math.sqrt(1 + levels[0] ** 2)
    for i, level in enumerate(levels[:-1]):
        denoised = mixture_denoiser(states[-1], torch.full((len(x),), level, dtype=x.dtype))
        vp = scheduler.step(denoised, scheduler.timesteps[i], vp).prev_sample
        states.append(vp * math.sqrt(1 + levels[i + 1] ** 2))
    return states


def our_states(levels, x, **options):
    seen = []
    result = sample_unipc(mixture_denoiser, x, float64(levels), callback=lambda s: seen.append(s["x"]), **options)
    return [*seen, result]


@pytest.mark.parametrize("corrector", [True, False], ids=["corrected", "predictor only"])
@pytest.mark.parametrize(("order", "prediction", "variant"), KINDS)
def test_diffusers_agrees_at_every_step(order, prediction, variant, corrector):
    options = {"order": order, "prediction": prediction, "variant": variant, "corrector": corrector}
    x = start(XL8)
    for ours, theirs in zip(our_states(XL8, x, **options), diffusers_states(XL8, x, **options), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("order", "prediction", "variant"), KINDS)
def test_diffusers_agrees_on_a_schedule_to_zero(order, prediction, variant):
    """The last step itself only for data prediction with bh2: in the others diffusers multiplies infinity by 0."""
    levels = [*XL8, 0.0]
    options = {"order": order, "prediction": prediction, "variant": variant}
    x = start(levels)
    ours, theirs = our_states(levels, x, **options), diffusers_states(levels, x, **options)
    if (prediction, variant) != ("data", "bh2"):
        assert theirs.pop().isnan().all(), "diffusers can do it now: compare the last step too"
        assert torch.isfinite(ours.pop()).all()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# ---- exactness and order ---------------------------------------------------------------------------------------------

EVERY_SOLVER = {
    "1s": (sample_dpmpp_1s, {}),
    "2m": (sample_dpmpp_2m, {}),
    "2m extrapolated": (sample_dpmpp_2m, {"extrapolate": True}),
    **{
        f"unipc{order} {prediction} {variant}": (
            sample_unipc,
            {"order": order, "prediction": prediction, "variant": variant},
        )
        for order in (1, 2, 3)
        for prediction in ("data", "noise")
        for variant in ("bh1", "bh2")
    },
}


@pytest.mark.parametrize("name", EVERY_SOLVER)
@settings(deadline=None, max_examples=40)
@given(levels=st.lists(st.floats(0.01, 100), min_size=2, max_size=12), to_zero=st.booleans())
@example(levels=[10.0, 5.0, 5.0, 5.0, 1.0], to_zero=False)
@example(levels=[10.0, 5.0, 6.0, 5.5, 5.5, 1.0], to_zero=True)
def test_one_point_of_data_is_reached_exactly_by_every_solver_in_any_order_of_sigmas(name, levels, to_zero):
    """Where the data is one point c, D = c and every formula is exact: x' = c + (sigma'/sigma)(x - c)."""
    sample, options = EVERY_SOLVER[name]
    levels = [*levels, 0.0] if to_zero else levels
    point = torch.linspace(-2, 2, 6, dtype=torch.float64).view(1, 1, 2, 3)
    x = point + levels[0] * start([1.0], (1, 1, 2, 3))
    result = sample(lambda x, sigma: point, x, float64(levels), **options)
    expected = point + levels[-1] / levels[0] * (x - point)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6 * max(levels))


@pytest.mark.parametrize(
    ("sample", "options", "order"),
    [
        (sample_dpmpp_1s, {}, 1),
        (sample_dpmpp_2m, {}, 2),
        (sample_unipc, {"order": 1, "corrector": False}, 1),
        (sample_unipc, {"order": 1}, 2),  # the corrector raises the order by one
        (sample_unipc, {"order": 2, "corrector": False}, 2),
        (sample_unipc, {"order": 2, "prediction": "noise", "corrector": False}, 2),
        (sample_unipc, {"order": 2, "prediction": "noise", "variant": "bh1"}, 2),
        (sample_unipc, {"order": 2, "variant": "bh1"}, 2),
    ],
)
def test_halving_the_steps_shows_the_order(sample, options, order):
    """On Gaussian data the ODE has the solution x0 sqrt((v + sigma^2) / (v + sigma0^2))."""
    variance, high, low = 0.5, 5.0, 0.2

    def model(x, sigma):
        return x * variance / (variance + sigma.view(-1, 1) ** 2)

    x = torch.ones(1, 1, dtype=torch.float64)
    exact = math.sqrt((variance + low**2) / (variance + high**2))

    def error(steps):
        sigmas = torch.logspace(math.log10(high), math.log10(low), steps + 1, dtype=torch.float64)
        return abs(float(sample(model, x, sigmas, **options)) - exact)

    assert math.log2(error(64) / error(128)) > order - 0.15


# ---- neighbours that are nearly equal --------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [1e-15, 1e-12, 1e-9, 1e-7, 1e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", EVERY_SOLVER)
def test_nearly_equal_neighbours_change_nothing_much(name, apart, dtype):
    """Two past points that nearly coincide give a slope of rounding noise; a step between them hardly moves x."""
    sample, options = EVERY_SOLVER[name]
    doubled = [10.0, 5.0, 5.0 * (1 - apart), 2.0, 1.0, 0.5, 0.1]
    single = [10.0, 5.0, 2.0, 1.0, 0.5, 0.1]
    x = start(doubled, dtype=dtype)
    with_it = sample(mixture_denoiser, x, float64(doubled), **options)
    without = sample(mixture_denoiser, x, float64(single), **options)
    assert (with_it - without).abs().max() < 0.5, f"|x| is up to {float(without.abs().max()):.2f} without it"


@pytest.mark.parametrize("apart", [1e-15, 1e-9, 1e-7])
@pytest.mark.parametrize("name", EVERY_SOLVER)
def test_a_row_of_nearly_equal_sigmas_stays_bounded(name, apart):
    sample, options = EVERY_SOLVER[name]
    levels = [10.0, *(5.0 * (1 - k * apart) for k in range(5)), 2.0, 1.0, 0.5, 0.1]
    x = start(levels, dtype=torch.float32)
    result = sample(mixture_denoiser, x, float64(levels), **options)
    assert torch.isfinite(result).all() and result.abs().max() < 5


@pytest.mark.parametrize("name", [name for name in EVERY_SOLVER if "noise" not in name])
def test_weights_come_from_float64_sigmas_where_the_state_is_float16(name):
    """10, 9.996 and 9.993 are 10, 9.992 and 9.992 in float16: h would be off by half, or 0."""
    sample, options = EVERY_SOLVER[name]
    levels = float64([10.0, 9.996, 9.993])

    def run(dtype):
        zeros = torch.zeros(1, 1, 2, 2, dtype=dtype)
        return sample(lambda x, sigma: torch.full_like(x, 1000), zeros, levels, **options)

    torch.testing.assert_close(run(torch.float16).double(), run(torch.float64), rtol=5e-3, atol=0)


class TestStochasticCorrector:
    """On Gaussian data the exact denoiser is known, and samples must have the standard deviation of the data."""

    SPREAD = 0.5

    def draw(self, level, steps=20, count=8000, **own):
        spread = self.SPREAD
        sigmas = torch.tensor([*np.geomspace(14.6, 0.03, steps), 0.0])
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(count, 4, generator=generator, dtype=torch.float64) * math.hypot(14.6, spread)
        calls = []

        def model(x, sigma, **_):
            return x * (spread**2 / (spread**2 + sigma[:, None] ** 2))

        def noise_sampler(sigma, sigma_next):
            calls.append((sigma, sigma_next))
            return torch.randn(count, 4, generator=generator, dtype=torch.float64)

        return sample_unipc(model, x, sigmas, noise_level=level, noise_sampler=noise_sampler, **own), calls

    @pytest.mark.parametrize("prediction", ["data", "noise"])
    @pytest.mark.parametrize("level", [0.1, 0.3, 1.0])
    def test_samples_have_the_standard_deviation_of_the_data(self, level, prediction):
        # the noise form needs finer steps for the same
        steps = 20 if prediction == "data" else 80
        plain, none = self.draw(0.0, steps, prediction=prediction)
        noisy, calls = self.draw(level, steps, prediction=prediction)
        assert not none and len(calls) == steps - 1, "once for every corrected step"
        assert all(sigma > sigma_next > 0 for sigma, sigma_next in calls)
        assert noisy.std() / self.SPREAD > plain.std() / self.SPREAD - 0.02
        assert noisy.std() / self.SPREAD == pytest.approx(1, abs=0.07)
        # the higher the level, the less the result is determined by the initial noise
        correlation = float(torch.corrcoef(torch.stack([plain.flatten(), noisy.flatten()]))[0, 1])
        assert correlation < {0.1: 0.999, 0.3: 0.95, 1.0: 0.5}[level]

    def test_the_noise_is_drawn_in_any_dtype_and_on_any_device(self):
        """A host draws on the CPU in float32, for a latent elsewhere in half precision."""
        sigmas, shape = torch.tensor([14.6, 5.0, 2.0, 0.7, 0.0]), (1, 4, 32, 32)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half() * 14.6
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

        def draw(x, noise):
            return sample_unipc(lambda x, sigma: x * 0.5, x, sigmas, noise_level=0.7, noise_sampler=lambda *_: noise)

        assert draw(x, noise).dtype == torch.float16
        assert torch.equal(draw(x, noise), draw(x, noise.half()))
        assert draw(x.to("meta"), noise).device.type == "meta"

    def test_a_level_of_zero_needs_no_noise_sampler_and_changes_nothing(self):
        sigmas = torch.tensor([14.6, 3.0, 0.5, 0.0])
        x = torch.randn(2, 4) * 14.6

        def model(x, sigma, **_):
            return x / (1 + sigma[:, None])

        assert torch.equal(sample_unipc(model, x, sigmas), sample_unipc(model, x, sigmas, noise_level=0.0))

    @pytest.mark.parametrize(
        ("own", "words"),
        [
            ({"noise_level": 1.5}, "noise_level must be from 0 to 1, got 1.5"),
            ({"noise_level": -0.1}, "noise_level must be from 0 to 1"),
            ({"noise_level": 0.1}, "needs a noise_sampler"),
            ({"noise_level": 0.1, "noise_sampler": lambda *_: None, "corrector": False}, "and the corrector"),
        ],
    )
    def test_wrong_options_are_named(self, own, words):
        with pytest.raises(ValueError, match=words):
            sample_unipc(lambda x, sigma: x, torch.ones(1, 4), torch.tensor([2.0, 1.0, 0.5]), **own)


@pytest.mark.parametrize("share", [1.0, 0.975])
@pytest.mark.parametrize("sample", [sample_unipc, sample_dpmpp_2m])
def test_the_analytical_first_step_in_every_multistep_solver(sample, share):
    """It makes no call, is the formula at the first sigma, and leaves nothing in the history."""
    sigmas = torch.tensor([14.6, 5.0, 2.0, 0.7, 0.2], dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64) * 14.6
    seen = []

    def model(x, sigma, **_):
        seen.append(float(sigma[0]))
        return x / (1 + sigma[:, None] ** 2)

    drawn = sample(model, x, sigmas, analytical_first_step=share)
    assert seen == sigmas[1:-1].tolist()
    denoised = x * (1 - share * 14.6 / math.sqrt(1 + 14.6**2))
    second = x * (5 / 14.6) + denoised * (1 - 5 / 14.6)
    if sample is sample_dpmpp_2m:
        # from there on it is the solver begun anew, as there is no past
        assert torch.allclose(drawn, sample(model, second, sigmas[1:]), rtol=1e-12)
    assert torch.equal(sample(model, x, sigmas, analytical_first_step=0.0), sample(model, x, sigmas))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("h", [1e-12, -1e-12, 1e-6, -1e-3, 0.1, 0.999, -0.999, 1.001, -1.001, 3.0, -6.0])
def test_phi_is_exact_also_where_its_recursion_cancels(k, h):
    """phi_k(h) = sum_j h^j / (j + k)!, here in whole fractions; the recursion loses all digits near 0."""
    exact = sum(Fraction(h) ** j / math.factorial(j + k) for j in range(60))
    assert phi(k, h) == pytest.approx(float(exact), rel=1e-12)
