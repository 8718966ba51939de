"""What all solvers have in common, the paper's numbers, and agreement with k-diffusion and diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bench.gpu.place import Between, proving
from bench.launches import CountOps
from hpsampler.schedule import coupled_sigmas
from hpsampler.solvers import SOLVERS, sample_dpmpp_1s, sample_dpmpp_2m, sample_unipc
from hpsampler.solvers.unipc import unipc_steps
from tests.oracles import k_diffusion_sampling, mixture_denoiser

PAPER_UNIPC = {"prediction": "noise", "variant": "bh1"}

SOLVER_CASES = [
    pytest.param(sample_dpmpp_1s, {}, id="1s"),
    pytest.param(sample_dpmpp_2m, {}, id="2m"),
    pytest.param(sample_dpmpp_2m, {"extrapolate": True}, id="2m-extrapolated"),
    *(
        pytest.param(sample_unipc, {"order": order, "prediction": p, "variant": v}, id=f"unipc{order}-{p}-{v}")
        for order in (1, 2, 3)
        for p in ("data", "noise")
        for v in ("bh1", "bh2")
    ),
    pytest.param(sample_unipc, {"corrector": False}, id="unip"),
    pytest.param(sample_unipc, {"extrapolate": True}, id="unipc-extrapolated"),
]

SCHEDULES = {
    "kept": [14.6146, 4.5188, 1.9615, 1.0010, 0.5015, 0.1320],
    "to zero": [14.6146, 6.5, 3.4, 1.7, 0.8, 0.4, 0.1, 0.0],
    "img2img": [0.8, 0.4, 0.2, 0.0],
    "one step": [3.0, 0.5],
    "one step to zero": [3.0, 0.0],
}


NO_CORRECTOR = {sample_unipc: {"corrector": False}}
"""UniPC corrects its second point even where the first output is assumed."""


def start(sigmas, shape=(2, 4, 6, 5), dtype=torch.float64, seed=0):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise * float(sigmas[0])).to(dtype)


class Recorder:
    """A denoiser that records its calls."""

    def __init__(self):
        self.sigmas, self.states, self.outputs = [], [], []

    def __call__(self, x, sigma, **extra_args):
        self.sigmas.append(sigma.clone())
        self.states.append(x.clone())
        self.outputs.append(mixture_denoiser(x, sigma))
        return self.outputs[-1]


# ---- the paper's own numbers -----------------------------------------------------------------------------------------


def test_every_reference_trajectory_step_by_step(vectors):
    unit = torch.tensor(vectors["unit_noise"], dtype=torch.float64).view(vectors["shape"])
    for case in vectors["solver_trajectories"]:
        sample = sample_dpmpp_2m if "2M" in case["name"] else sample_dpmpp_1s
        sigmas = torch.tensor(case["sigmas"], dtype=torch.float64)
        model = Recorder()
        result = sample(model, unit * sigmas[0], sigmas)
        states = [*model.states[1:], result]
        for ours, reference in zip(states, case["x_after_each_step"]):
            np.testing.assert_allclose(ours.flatten(), reference, rtol=1e-5, atol=1e-6, err_msg=case["name"])


@pytest.mark.parametrize("name", ["sd15-5", "sd15-8", "sdxl-5", "sdxl-6"])
def test_every_reference_unipc_run(vectors, name):
    case, sigmas, x = unipc_case(vectors, name)
    model = Recorder()
    result = sample_unipc(model, x, sigmas, order=case["order"], analytical_first_step=case["afs"], **PAPER_UNIPC)
    np.testing.assert_allclose(result.flatten(), case["k_space_result"], rtol=1e-5, atol=1e-6)
    assert len(model.sigmas) == case["model_evaluations"]


def test_the_analytical_first_step_stays_out_of_the_history(vectors):
    """The reference lets it in (order 2, XL 8 steps). With it in the history our coefficients give the same numbers."""
    case, sigmas, x = unipc_case(vectors, "sdxl-8")
    reference = torch.tensor(case["k_space_result"], dtype=torch.float64)

    def analytical_at_first(x, sigma, **_):
        if sigma[0] == sigmas[0]:
            return x * (1 - sigma[0] / torch.sqrt(1 + sigma[0] ** 2))
        return mixture_denoiser(x, sigma)

    with_history = sample_unipc(analytical_at_first, x, sigmas, order=2, **PAPER_UNIPC)
    np.testing.assert_allclose(with_history.flatten(), reference, rtol=1e-5, atol=1e-6)

    model = Recorder()
    ours = sample_unipc(model, x, sigmas, order=2, analytical_first_step=True, **PAPER_UNIPC).flatten()
    assert len(model.sigmas) == case["model_evaluations"]
    assert 1e-5 < (ours - reference).abs().max() < 1e-3
    steps = unipc_steps(sigmas.tolist(), 2, "noise", "bh1", analytical_first_step=True)
    assert [len(step.predictor.outputs) for step in steps] == [1, 1, *[2] * (len(steps) - 3), 1]


def unipc_case(vectors, name):
    case = next(case for case in vectors["unipc"] if case["name"] == name)
    sigmas = torch.tensor(case["sigmas"], dtype=torch.float64)
    unit = torch.tensor(vectors["unit_noise"], dtype=torch.float64).view(vectors["shape"])
    return case, sigmas, unit * torch.sqrt(1 + sigmas[0] ** 2)


# ---- other libraries' solvers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(("ours", "theirs"), [(sample_dpmpp_2m, "sample_dpmpp_2m"), (sample_dpmpp_1s, "sample_euler")])
def test_k_diffusion_agrees(levels, ours, theirs):
    sigmas = torch.tensor(levels, dtype=torch.float64)
    x = start(sigmas)
    expected = getattr(k_diffusion_sampling(), theirs)(mixture_denoiser, x, sigmas, disable=True)
    torch.testing.assert_close(ours(mixture_denoiser, x, sigmas), expected, rtol=1e-5, atol=1e-6)


def run_diffusers(scheduler, sigmas, x):
    """Drive a diffusers scheduler over VE ``sigmas`` with the mixture denoiser; VE in, VE out."""
    count = len(sigmas) - 1
    scheduler.set_timesteps(count)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.timesteps = torch.arange(count)
    scheduler.num_inference_steps = count
    vp = x / math.sqrt(1 + sigmas[0] ** 2)
    for i in range(count):
        scheduler._step_index = i
        sigma = sigmas[i]
        ve = vp * math.sqrt(1 + sigma**2)
        eps = (ve - mixture_denoiser(ve, torch.full((len(x),), sigma, dtype=x.dtype))) / sigma
        vp = scheduler.step(eps, scheduler.timesteps[i], vp).prev_sample
    return vp * math.sqrt(1 + sigmas[-1] ** 2)


@pytest.mark.parametrize("levels", [SCHEDULES["kept"], SCHEDULES["to zero"]], ids=["kept", "to zero"])
def test_diffusers_dpm_solver_agrees(levels):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=False,
        final_sigmas_type="zero" if levels[-1] == 0 else "sigma_min",
    )  # fmt: skip
    x = start(levels)
    ours = sample_dpmpp_2m(mixture_denoiser, x, torch.tensor(levels, dtype=torch.float64))
    torch.testing.assert_close(ours, run_diffusers(scheduler, levels, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_diffusers_unipc_agrees(order, variant, prediction):
    from diffusers import UniPCMultistepScheduler

    levels = [14.6146, 6.7121, 3.6076, 2.1723, 1.4045, 0.9366, 0.6169, 0.3725, 0.1472]
    scheduler = UniPCMultistepScheduler(
        solver_order=order, solver_type=variant, predict_x0=prediction == "data", lower_order_final=True
    )
    x = start(levels)
    ours = sample_unipc(
        mixture_denoiser, x, torch.tensor(levels, dtype=torch.float64),
        order=order, prediction=prediction, variant=variant,
    )  # fmt: skip
    torch.testing.assert_close(ours, run_diffusers(scheduler, levels, x), rtol=1e-5, atol=1e-5)


# ---- what all solvers have in common ---------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(("sample", "options"), SOLVER_CASES)
def test_one_call_and_one_callback_a_step(sample, options, levels):
    if options.get("extrapolate") and options.get("prediction") == "noise":
        pytest.skip("refused, see below")
    sigmas = torch.tensor(levels, dtype=torch.float64)
    x, model, states = start(sigmas), Recorder(), []
    result = sample(model, x, sigmas, extra_args={"cond": 1}, callback=states.append, **options)
    assert result.shape == x.shape and result.dtype == x.dtype and torch.isfinite(result).all()
    assert [float(s[0]) for s in model.sigmas] == levels[:-1] and model.sigmas[0].shape == (2,)
    assert [state["i"] for state in states] == list(range(len(levels) - 1))
    for state, level, seen, output in zip(states, levels, model.states, model.outputs):
        assert set(state) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        assert float(state["sigma"]) == float(state["sigma_hat"]) == level
        assert torch.equal(state["x"], seen) and torch.equal(state["denoised"], output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("sample", "options"), SOLVER_CASES)
def test_shape_and_dtype_stay_and_low_precision_is_close(sample, options, dtype, device):
    levels = SCHEDULES["kept"] if not options.get("extrapolate") else SCHEDULES["to zero"]
    exact = sample(mixture_denoiser, start(levels), torch.tensor(levels, dtype=torch.float64), **options)
    x = start(levels, dtype=dtype).to(device)
    result = sample(mixture_denoiser, x, torch.tensor(levels), **options)
    assert result.dtype == dtype and result.device.type == device.type
    tolerance = {torch.float16: 0.05, torch.bfloat16: 0.4, torch.float32: 1e-4}[dtype]
    assert (result.cpu().double() - exact).abs().mean() < tolerance


@pytest.mark.parametrize(("sample", "options"), SOLVER_CASES)
def test_an_image_is_the_same_alone_and_in_a_batch(sample, options):
    sigmas = torch.tensor(SCHEDULES["to zero"])
    x = start(sigmas, (3, 4, 8, 8), torch.float32)
    batch = sample(mixture_denoiser, x, sigmas, **options) if options.get("prediction") != "noise" else None
    if batch is None:
        sigmas = torch.tensor(SCHEDULES["kept"])
        batch = sample(mixture_denoiser, x, sigmas, **options)
    for i in range(3):
        assert torch.equal(sample(mixture_denoiser, x[i : i + 1], sigmas, **options)[0], batch[i])


@pytest.mark.parametrize("levels", [[5.0, 2.0, 2.0, 1.0, 0.3], [5.0, 1.0, 1.5, 0.7, 0.2], [3.0, 3.0 - 1e-7, 1.0, 0.5]])
@pytest.mark.parametrize(("sample", "options"), SOLVER_CASES)
def test_equal_or_rising_neighbours_do_not_blow_up(sample, options, levels):
    x = start(levels)
    result = sample(mixture_denoiser, x, torch.tensor(levels, dtype=torch.float64), **options)
    assert torch.isfinite(result).all() and result.abs().max() < 3 * x.abs().max()


@pytest.mark.parametrize("sample", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize(
    "levels", [[[1.0, 0.5]], [], [1.0, float("nan")], [1.0, 0.0, 0.5], [0.0, 0.0], [1.0, -0.5], [float("inf"), 1.0]]
)
def test_bad_sigmas_are_refused_with_a_message(sample, levels):
    with pytest.raises(ValueError, match="sigmas must be"):
        sample(mixture_denoiser, torch.ones(1, 1, 2, 2), torch.tensor(levels))


@pytest.mark.parametrize(("sample", "options"), SOLVER_CASES)
def test_no_solver_draws_noise(sample, options):
    """So a seed gives one image whatever is drawn beside it."""
    sigmas = torch.tensor(SCHEDULES["kept"])
    before = torch.get_rng_state()
    sample(mixture_denoiser, start(sigmas, dtype=torch.float32), sigmas, **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_schedule_of_one_sigma_returns_the_state():
    x = torch.randn(1, 2, 3, 3)
    for sample in SOLVERS.values():
        assert torch.equal(sample(Recorder(), x, torch.tensor([2.0])), x)


@pytest.mark.parametrize("sample", [sample_dpmpp_2m, sample_unipc])
def test_the_extrapolated_last_step(sample):
    model = Recorder()
    sigmas = torch.tensor(SCHEDULES["to zero"], dtype=torch.float64)
    result = sample(model, start(sigmas), sigmas, extrapolate=True)
    last, before = model.outputs[-1], model.outputs[-2]
    torch.testing.assert_close(result, last + (last - before) / 2, rtol=1e-12, atol=1e-12)
    plain = Recorder()
    assert torch.equal(sample(plain, start(sigmas), sigmas), plain.outputs[-1])


@pytest.mark.parametrize("sample", [sample_dpmpp_2m, sample_unipc])
@pytest.mark.parametrize("levels", [SCHEDULES["kept"], SCHEDULES["one step"], SCHEDULES["one step to zero"]])
def test_without_a_step_to_zero_or_a_step_before_it_there_is_nothing_to_extrapolate(sample, levels):
    sigmas = torch.tensor(levels, dtype=torch.float64)
    plain, extrapolated = (sample(mixture_denoiser, start(sigmas), sigmas, extrapolate=on) for on in (False, True))
    assert torch.equal(plain, extrapolated)


@pytest.mark.parametrize("share", [1.0, 0.975])
@pytest.mark.parametrize(
    ("sample", "options"), [(sample_dpmpp_2m, {}), *((sample_unipc, {"order": order}) for order in (1, 2, 3))]
)
def test_after_an_analytical_first_step_it_runs_as_from_the_second_point(sample, options, share):
    """Its output enters no history, so the rest is a run of its own with one call less."""
    levels = SCHEDULES["kept"]
    sigmas = torch.tensor(levels, dtype=torch.float64)
    x = start(levels)
    ours = sample(mixture_denoiser, x, sigmas, **options, analytical_first_step=share, **NO_CORRECTOR.get(sample, {}))
    assumed = x * (1 - share * levels[0] / math.sqrt(1 + levels[0] ** 2))
    second = x * levels[1] / levels[0] + (1 - levels[1] / levels[0]) * assumed
    expected = sample(mixture_denoiser, second, sigmas[1:], **options, **NO_CORRECTOR.get(sample, {}))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_a_run_can_be_cut_anywhere_in_first_order():
    """An img2img pass runs only the end of a schedule: nothing but x passes from one step to the next."""
    sigmas = torch.tensor(SCHEDULES["to zero"], dtype=torch.float64)
    x = start(sigmas)
    whole = sample_dpmpp_1s(mixture_denoiser, x, sigmas)
    for at in range(1, len(sigmas)):
        middle = sample_dpmpp_1s(mixture_denoiser, x, sigmas[: at + 1])
        assert torch.equal(sample_dpmpp_1s(mixture_denoiser, middle, sigmas[at:]), whole)


@pytest.mark.parametrize(("sample", "options"), SOLVER_CASES)
def test_extra_arguments_reach_the_model_and_the_input_stays_unchanged(sample, options):
    seen = []

    def model(x, sigma, **extra_args):
        seen.append(extra_args)
        return mixture_denoiser(x, sigma)

    sigmas = torch.tensor(SCHEDULES["kept"])
    x = start(sigmas)
    before = x.clone()
    sample(model, x, sigmas, {"cond": 1, "cond_scale": 7.5}, None, True, **options)
    assert seen == [{"cond": 1, "cond_scale": 7.5}] * 5
    assert torch.equal(x, before)


def test_the_last_step_above_zero_is_second_order():
    """arXiv 2510.02390's 2M: its schedules do not end in 0, so no step falls back to first order."""
    sigmas = torch.tensor(SCHEDULES["kept"], dtype=torch.float64)
    model = Recorder()
    result = sample_dpmpp_2m(model, start(sigmas), sigmas)
    first_order = sample_dpmpp_1s(lambda *_, **__: model.outputs[-1], model.states[-1], sigmas[-2:])
    assert not torch.allclose(result, first_order)


@pytest.mark.parametrize(
    "options",
    [
        {"order": 4},
        {"order": 0},
        {"prediction": "x0"},
        {"variant": "bh3"},
        {"extrapolate": True, "prediction": "noise"},
    ],
)
def test_a_bad_option_of_unipc_is_named_with_its_value(options):
    with pytest.raises(ValueError, match=r"must be|needs"):
        sample_unipc(mixture_denoiser, torch.ones(1, 1, 2, 2), torch.tensor([2.0, 1.0]), **options)


# ---- speed of our own part -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "options", "most"),
    [
        (sample_dpmpp_1s, {}, 2),  # scale x, add D
        (sample_dpmpp_2m, {}, 3),  # and D_prev
        # corrector: scale, m', m_0 (and one more for each past output); predictor: scale, m_0 (likewise)
        (sample_unipc, {"order": 1}, 5),
        (sample_unipc, {"order": 2}, 7),
        (sample_unipc, {"order": 3}, 9),
        # noise from data: scale x, subtract D
        (sample_unipc, {"order": 1, "prediction": "noise"}, 7),
        (sample_unipc, {"order": 2, "prediction": "noise"}, 9),
        (sample_unipc, {"order": 3, "prediction": "noise", "variant": "bh1"}, 11),
        # predictor alone
        (sample_unipc, {"order": 2, "corrector": False}, 3),
        # the extrapolated and the analytical step cost nothing more
        (sample_dpmpp_2m, {"extrapolate": True}, 3),
        (sample_unipc, {"order": 2, "analytical_first_step": True}, 7),
    ],
)
def test_operations_between_two_model_calls(sample, options, most):
    between, mode = [], CountOps()

    def model(x, sigma):
        between.append(mode.count)
        mode.count = 0
        return output

    sigmas = torch.linspace(10, 1, 9)
    x = start(sigmas, dtype=torch.float32)
    output = torch.zeros_like(x)
    with mode:
        sample(model, x, sigmas, **options)
    calls = 7 if options.get("analytical_first_step") else 8
    assert len(between) == calls and 0 < max(between[1:]) <= most


@pytest.mark.parametrize(("sample", "options"), SOLVER_CASES)
def test_no_solver_waits_for_the_device(sample, options, device):
    """Between two calls; on a CPU it is a stand-in for a GPU that notices."""
    sigmas = torch.tensor(SCHEDULES["kept"] if options.get("prediction") == "noise" else SCHEDULES["to zero"])
    with proving(device) as place:
        x = start(sigmas, dtype=torch.float32).to(place.device)
        with Between(lambda x, sigma: x * 0.5, lambda call: place.without_waiting()) as model:
            result = sample(model, x, sigmas, **options)
        assert torch.isfinite(result).all()


def test_coefficients_are_exact_whatever_the_precision_of_the_state(noise):
    """float16 keeps three digits: weights computed from float16 sigmas would be off in the third."""
    sigmas = coupled_sigmas(noise, 8, 12, 7, 9)
    ones = torch.ones(1, 1, 1, 1, dtype=torch.float16)
    result = sample_dpmpp_1s(lambda x, sigma: torch.zeros_like(x), ones * 1024, sigmas)
    assert float(result) == pytest.approx(1024 * float(sigmas[-1] / sigmas[0]), rel=5e-3)
