"""Truths of `StaleScheduler`: perfect denoisers, stock schedulers it must equal, and what training asks of it."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from diffusers_stale.entropic_steps import NOISE_PARTS_OF_FOUR, entropic_clock, step_clock
from diffusers_stale.evaluation.exact_problems import ExactProblem
from diffusers_stale.scheduling_stale import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    TIMESTEP_SPACINGS,
    NonFiniteOutputError,
    StaleScheduler,
)
from diffusers_stale.stale_weights import STALE_WEIGHTS


STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPES = ((2, 4), (1, 3, 8, 8), (1, 4, 3, 3, 2, 4, 4))


def prediction_of(scheduler: StaleScheduler, clean: torch.Tensor, sample: torch.Tensor, timestep) -> torch.Tensor:
    """What a network that knows the clean sample predicts."""
    alpha, sigma = (level.item() for level in scheduler.noise_levels(torch.as_tensor(timestep).reshape(1)))
    noise = (sample - alpha * clean) / sigma
    return {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": alpha * noise - sigma * clean,
        "flow_prediction": noise - clean,
    }[scheduler.config.prediction_type]


def gaussian_denoiser(scale: float):
    """The exact v prediction for data N(0, scale^2), and the exact end of its probability-flow path."""

    def predict(scheduler: StaleScheduler, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (level.item() for level in scheduler.noise_levels(timestep.reshape(1)))
        clean = alpha * scale**2 / (alpha**2 * scale**2 + sigma**2) * sample
        return (
            prediction_of(scheduler, clean, sample, timestep)
            if scheduler.is_flow
            else ((alpha * sample - clean) / sigma)
        )

    return predict


def run(scheduler, predict, sample: torch.Tensor) -> torch.Tensor:
    for timestep in scheduler.timesteps:
        sample = scheduler.step(predict(sample, timestep), timestep, sample).prev_sample
    return sample


@pytest.mark.parametrize("zero_snr", [True, False])
@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_a_perfect_denoiser_recovers_the_data(prediction_type, spacing, zero_snr, shape, steps):
    scheduler = StaleScheduler(
        prediction_type=prediction_type, timestep_spacing=spacing, rescale_betas_zero_snr=zero_snr
    )
    scheduler.set_timesteps(steps)
    clean = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    start = scheduler.add_noise(clean, noise, scheduler.timesteps[:1].expand(len(clean)))
    got = run(scheduler, lambda sample, time: prediction_of(scheduler, clean, sample, time), start)
    if prediction_type == "epsilon" and scheduler.sigmas[0].isinf():
        # At zero terminal signal epsilon says nothing: the first clean prediction is 0, all later ones are right, and
        # as a stale output the first one has a weight while there are few others.
        assert steps < 7 or torch.allclose(got, clean, atol=1e-3)
        return
    assert torch.allclose(got, clean, atol=2e-4)


def test_the_forward_process_ends_exactly_in_noise():
    scheduler = StaleScheduler()
    clean, noise = torch.full((1, 3), 1e6), torch.randn(1, 3)
    last = torch.tensor([len(scheduler) - 1])
    assert torch.equal(scheduler.add_noise(clean, noise, last), noise)
    assert scheduler.alphas_cumprod[-1] == 0
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[0] == len(scheduler) - 1
    assert scheduler.sigmas[0].isinf()
    assert scheduler.sigmas[-1] == 0


@pytest.mark.parametrize("steps", [1, 3, 10, 25])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_equals_second_order_dpm_solver_where_signal_is_left(steps, prediction_type, spacing):
    """`linspace` of DPM-Solver has one more point, which it drops: compared on our timesteps."""
    config = STABLE_DIFFUSION | {"prediction_type": prediction_type, "timestep_spacing": spacing}
    stock = DPMSolverMultistepScheduler(**config, final_sigmas_type="zero", lower_order_final=False)
    ours = StaleScheduler(**config, rescale_betas_zero_snr=False, stale_weights="multistep")
    ours.set_timesteps(steps)
    stock.set_timesteps(timesteps=ours.timesteps.tolist())
    start = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))

    def predict(sample, timestep):
        return torch.sin(3 * sample) + 0.001 * float(timestep)

    assert torch.allclose(run(ours, predict, start), run(stock, predict, start), rtol=1e-3, atol=1e-3)


EQUAL = 1e-6
"""Of what is equal in theory: float32 keeps seven digits."""


def farthest(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [4, 8, 20])
def test_first_order_equals_ddim(prediction_type, steps):
    stock = DDIMScheduler(
        **STABLE_DIFFUSION, prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=True,
        timestep_spacing="trailing",
    )  # fmt: skip
    ours = StaleScheduler.from_config(stock.config, stale_weights="none", timestep_spacing="trailing")
    stock.set_timesteps(steps)
    ours.set_timesteps(steps)
    assert ours.timesteps.tolist() == stock.timesteps.tolist()
    start = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    for timestep in stock.timesteps:
        ours.set_timesteps(steps)
        one, other = (each.step(torch.tanh(start), timestep, start).prev_sample for each in (ours, stock))
        assert farthest(one, other) < EQUAL
    ours.set_timesteps(steps)
    got = run(ours, lambda sample, time: torch.tanh(sample), start)
    assert farthest(got, run(stock, lambda sample, time: torch.tanh(sample), start)) < EQUAL


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_first_order_flow_equals_flow_matching_euler(shift):
    stock = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = StaleScheduler.from_config(stock.config, stale_weights="none", timestep_spacing="trailing")
    assert ours.config.prediction_type == "flow_prediction"
    ours.set_timesteps(12)
    stock.set_timesteps(sigmas=np.linspace(1.0, 1 / 12, 12))
    assert torch.allclose(ours.timesteps, stock.timesteps, atol=1e-3)
    start = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    got = run(ours, lambda sample, time: torch.tanh(sample), start)
    assert farthest(got, run(stock, lambda sample, time: torch.tanh(sample), start)) < EQUAL


@pytest.mark.parametrize("scale", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "flow_prediction"])
def test_the_second_order_is_worth_its_name(scale, prediction_type):
    """On Gaussian data, whose denoiser and whose end of the path are known: (scale / 1) * noise."""
    predict = gaussian_denoiser(scale)
    errors = {}
    for order, weights in ((1, "none"), (2, "multistep")):
        scheduler = StaleScheduler(prediction_type=prediction_type, stale_weights=weights, timestep_spacing="trailing")
        for steps in (20, 40):
            scheduler.set_timesteps(steps)
            end = run(scheduler, lambda x, t, s=scheduler: predict(s, x, t), torch.ones(1, 1)).item()
            errors[order, steps] = abs(end - scale) / scale
    # What the last step to zero noise leaves is of first order in both, so the ratio is no power of the step.
    assert errors[2, 20] < 0.7 * errors[1, 20]
    assert errors[2, 40] < 0.7 * errors[1, 40]
    assert errors[2, 40] < 0.6 * errors[2, 20]


@pytest.mark.parametrize("offset", [0, 1, 5000])
@pytest.mark.parametrize("steps", [1, 500, 999, 1000])
def test_leading_timesteps_stay_apart_and_within_the_process(steps, offset):
    scheduler = StaleScheduler(timestep_spacing="leading", steps_offset=offset)
    scheduler.set_timesteps(steps)
    assert (scheduler.timesteps.diff() < 0).all()
    assert scheduler.timesteps[0] <= 999
    assert scheduler.timesteps[-1] >= min(offset, 1000 % steps)


@pytest.mark.parametrize("beta_schedule", list(BETA_SCHEDULES))
@pytest.mark.parametrize("zero_snr", [True, False])
def test_every_schedule_falls_from_signal_to_noise(beta_schedule, zero_snr):
    scheduler = StaleScheduler(beta_schedule=beta_schedule, rescale_betas_zero_snr=zero_snr)
    assert (scheduler.alphas_cumprod.diff() < 0).all()
    assert (scheduler.alphas_cumprod[-1] == 0) == zero_snr
    assert ((scheduler.betas > 0) & (scheduler.betas <= 1)).all()
    again = StaleScheduler(trained_betas=scheduler.betas.double().tolist(), rescale_betas_zero_snr=False)
    assert torch.allclose(again.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-3, atol=1e-6)


def test_foreign_configurations_keep_their_meaning():
    stock = PNDMScheduler(**STABLE_DIFFUSION, skip_prk_steps=True, steps_offset=1)
    ours = StaleScheduler.from_config(stock.config)
    assert not ours.config.rescale_betas_zero_snr
    assert ours.config.prediction_type == "epsilon"
    assert torch.allclose(ours.alphas_cumprod, stock.alphas_cumprod, rtol=1e-4)
    euler = EulerDiscreteScheduler.from_config(ours.config)
    assert euler.config.beta_schedule == "scaled_linear"


def test_saved_then_loaded_is_equal(tmp_path):
    scheduler = StaleScheduler(prediction_type="sample", beta_end=0.02, timestep_spacing="linspace", max_stale=1)
    scheduler.save_pretrained(tmp_path)
    again = StaleScheduler.from_pretrained(tmp_path)
    options = [key for key in scheduler.config if not key.startswith("_")]
    assert [again.config[key] for key in options] == [scheduler.config[key] for key in options]
    assert torch.equal(again.alphas_cumprod, scheduler.alphas_cumprod)
    assert StaleScheduler.from_config(scheduler.config).config.max_stale == 1


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_saved_then_loaded_takes_identical_steps(prediction_type, tmp_path):
    scheduler = StaleScheduler(prediction_type=prediction_type, rescale_betas_zero_snr=False, guidance_scale=4.0)
    scheduler.save_pretrained(tmp_path)
    ends, start = [], torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    for each in (scheduler, StaleScheduler.from_pretrained(tmp_path)):
        each.set_timesteps(9)
        ends.append(run(each, lambda sample, time: torch.sin(sample), start))
    assert torch.equal(*ends)


def test_no_state_leaks_from_one_run_to_the_next():
    scheduler = StaleScheduler()
    start = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(6)
    first = run(scheduler, lambda sample, time: torch.sin(sample), start)
    scheduler.set_timesteps(6)
    scheduler.set_begin_index(2)
    scheduler.step(start * 9, scheduler.timesteps[2], start)
    scheduler.set_timesteps(6)
    assert scheduler.begin_index is None
    assert not scheduler._clean
    assert torch.equal(run(scheduler, lambda sample, time: torch.sin(sample), start), first)


def test_starting_in_the_middle_is_a_run_of_its_own():
    scheduler = StaleScheduler()
    clean, noise = torch.randn(1, 4), torch.randn(1, 4)
    for begin in (None, 5):
        scheduler.set_timesteps(10)
        if begin is not None:
            scheduler.set_begin_index(begin)
        sample = scheduler.add_noise(clean, noise, scheduler.timesteps[5:6])
        for timestep in scheduler.timesteps[5:]:
            prediction = prediction_of(scheduler, clean, sample, timestep)
            sample = scheduler.step(prediction, timestep, sample, return_dict=False)[0]
        assert torch.allclose(sample, clean, atol=1e-4)


@pytest.mark.parametrize("kind", list(STALE_WEIGHTS))
@pytest.mark.parametrize("begin", [1, 5, 17])
def test_from_the_middle_on_equals_a_run_over_the_remaining_timesteps(kind, begin):
    """As image-to-image enters: there are no stale outputs yet, so weights begin anew and sum to one."""
    start = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    whole, tail = StaleScheduler(stale_weights=kind), StaleScheduler(stale_weights=kind)
    whole.set_timesteps(20)
    whole.set_begin_index(begin)
    tail.set_timesteps(timesteps=whole.timesteps[begin:].tolist())
    sample = start
    for timestep in whole.timesteps[begin:]:
        sample = whole.step(torch.sin(sample), timestep, sample).prev_sample
    expected = run(tail, lambda sample, time: torch.sin(sample), start)
    assert torch.allclose(sample, expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"stale_weights": "none"}, {"max_stale": 0}])
@pytest.mark.parametrize("begin", [1, 5, 17])
def test_entered_in_the_middle_a_run_goes_on_as_the_full_one_did(options, begin):
    """With the state of the full run, which is its sample alone where nothing stale is kept."""
    scheduler, states = StaleScheduler(**options), []
    scheduler.set_timesteps(20)
    sample = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        states.append(sample)
        sample = scheduler.step(torch.sin(sample), timestep, sample).prev_sample
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(begin)
    entered = states[begin]
    for timestep in scheduler.timesteps[begin:]:
        entered = scheduler.step(torch.sin(entered), timestep, entered).prev_sample
    assert torch.equal(entered, sample)


def test_step_computes_in_float32_and_returns_the_dtype_of_the_model_output():
    scheduler = StaleScheduler()
    scheduler.set_timesteps(6)
    output = torch.randn(1, 4).half()
    result = scheduler.step(output, scheduler.timesteps[0], torch.randn(1, 4))
    assert result.prev_sample.dtype == result.pred_original_sample.dtype == torch.float16
    assert torch.allclose(result.pred_original_sample, -output)  # at pure noise v is minus the clean sample


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_training_target_is_what_sampling_understands(prediction_type):
    scheduler = StaleScheduler(prediction_type=prediction_type)
    clean, noise = torch.randn(6, 3, 2), torch.randn(6, 3, 2)
    timesteps = torch.tensor([1, 50, 300, 600, 900, 998])
    noisy = scheduler.add_noise(clean, noise, timesteps)
    target = scheduler.training_target(clean, noise, timesteps)
    for index, timestep in enumerate(timesteps):
        alpha, sigma = (level.item() for level in scheduler.noise_levels(timestep))
        got = scheduler.clean_prediction(target[index], noisy[index], alpha, sigma)
        assert torch.allclose(got, clean[index], atol=2e-3)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weighs_the_error_of_the_clean_sample_alike_for_every_prediction(prediction_type):
    scheduler = StaleScheduler(prediction_type=prediction_type)
    timesteps = torch.tensor([3, 100, 500, 900])
    weights = scheduler.loss_weights(timesteps, "min_snr")
    for weight, timestep in zip(weights, timesteps, strict=True):
        alpha, sigma = (level.item() for level in scheduler.noise_levels(timestep))
        zero, one = torch.zeros(1), torch.ones(1)
        difference = scheduler.clean_prediction(one, zero, alpha, sigma) - scheduler.clean_prediction(
            zero, zero, alpha, sigma
        )
        expected = min((alpha / sigma) ** 2, 5.0) * difference.item() ** 2
        assert math.isclose(weight.item(), expected, rel_tol=1e-4)
    assert torch.equal(scheduler.loss_weights(timesteps), torch.ones(4))


@pytest.mark.parametrize("prediction_type", ["v_prediction", "flow_prediction"])
def test_training_timesteps_are_stratified_and_in_range(prediction_type):
    scheduler = StaleScheduler(prediction_type=prediction_type)
    timesteps = scheduler.sample_training_timesteps(100, torch.Generator().manual_seed(0))
    last = 1e-3 if scheduler.is_flow else 0.0  # flows count down from 1000, which is theirs, to 0, which is not
    assert sorted(((timesteps.double() - last) / 10).floor().tolist()) == list(range(100))
    assert timesteps.tolist() != sorted(timesteps.tolist())
    assert len({round(time % 10, 3) for time in timesteps.tolist()}) >= 8  # (another place in each part)
    again = scheduler.sample_training_timesteps(100, torch.Generator().manual_seed(0))
    assert torch.equal(timesteps, again)
    scheduler.noise_levels(timesteps)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "flow_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 4, 6, 10, 50, 999, 1000])
def test_entropic_steps_descend_and_gain_alike(prediction_type, steps):
    scheduler = StaleScheduler(prediction_type=prediction_type, rescale_betas_zero_snr=prediction_type != "epsilon")
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps
    assert (scheduler.timesteps.double().diff() < 0).all()
    assert steps < 6 or scheduler.timesteps[0] == (1000 if scheduler.is_flow else 999)
    alphas, sigmas = scheduler.noise_levels(scheduler.timesteps)
    angles = np.arctan2(sigmas.double().numpy(), alphas.double().numpy())
    gained = (
        step_clock(angles, scheduler.process.start, predicts_noise=True)
        if prediction_type == "epsilon"
        else entropic_clock(angles)
    )
    gains = np.diff(gained)
    if steps == 4 and prediction_type == "epsilon":
        gains /= NOISE_PARTS_OF_FOUR[:3]  # (the only ones that are not meant to be alike)
    assert steps < 3 or gains.std() < 0.02 * gains.mean()


def test_guidance_asks_for_steps_at_more_noise():
    """That of a run, or else of the configuration; none leaks to the next run."""
    told, usual = StaleScheduler(), StaleScheduler(guidance_scale=6.0)
    usual.set_timesteps(10)
    told.set_timesteps(10, guidance_scale=6.0)
    guided = told.timesteps
    assert torch.equal(usual.timesteps, guided)
    told.set_timesteps(10)
    assert (guided[1:] > told.timesteps[1:]).all()
    usual.set_timesteps(10, guidance_scale=1.0)
    assert torch.equal(usual.timesteps, told.timesteps)
    for none in (0.0, 0.5, -1.0):
        usual.set_timesteps(10, guidance_scale=none)
        assert torch.equal(usual.timesteps, told.timesteps)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "flow_prediction"])
def test_a_guided_run_treats_wide_data_as_an_unguided_one_does_usual_data(prediction_type, scale):
    """At a guidance of 4 all scales count double, and from pure noise on so do noise-to-signal ratios of steps."""
    errors = []
    for guidance, wide in ((1.0, scale), (4.0, 2.0 * scale)):
        scheduler, predict = StaleScheduler(prediction_type=prediction_type), gaussian_denoiser(wide)
        scheduler.set_timesteps(6, guidance_scale=guidance)
        end = run(scheduler, lambda x, t, s=scheduler, p=predict: p(s, x, t), torch.ones(1, 1))
        errors.append(float(end) / wide - 1.0)
    assert errors[1] == pytest.approx(errors[0], rel=0.01, abs=1e-5)
    assert abs(errors[0]) > 1e-4


def test_the_entropic_clock_runs_from_nothing_known_to_everything():
    times = entropic_clock(np.array([np.pi / 2, 1.0, 0.3, 0.0]))
    assert times[0] == pytest.approx(0.0, abs=1e-12)
    assert times[-1] == pytest.approx(1.0, abs=1e-12)
    assert (np.diff(times) > 0).all()


@pytest.mark.parametrize("kind", list(STALE_WEIGHTS))
@pytest.mark.parametrize("steps", [1, 2, 5, 13, 40])
def test_stale_weights_sum_to_one_and_are_no_more_than_asked_for(kind, steps):
    angles = np.append(np.linspace(np.pi / 2, 0.1, steps), 0.0)
    alphas, sigmas = np.cos(angles), np.sin(angles)
    alphas[0] = 0.0
    for weights in STALE_WEIGHTS[kind](alphas, sigmas, 2):
        assert weights.sum() == pytest.approx(1.0)
        assert len(weights) <= 3


@pytest.mark.parametrize("scale", [0.2, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("steps", [10, 20])
def test_stale_outputs_beat_fresh_ones_on_gaussians(scale, steps):
    predict = gaussian_denoiser(scale)
    errors = {}
    for kind in STALE_WEIGHTS:
        scheduler = StaleScheduler(stale_weights=kind)
        scheduler.set_timesteps(steps)
        end = run(scheduler, lambda x, t, s=scheduler: predict(s, x, t), torch.ones(1, 1)).item()
        errors[kind] = abs(end - scale) / scale
    for kind in ("entropic", "gaussian"):
        assert errors[kind] < {10: 0.05, 20: 0.01}[steps]
        assert errors[kind] < 0.5 * errors["none"]


@pytest.mark.parametrize("width", [0.5, 0.8])
def test_the_order_of_convergence_is_beyond_two(width):
    """The error falls by more than 2^2.5 where steps are doubled, on smooth problems and in float64."""
    means = torch.randn(5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shares = torch.full((5,), 0.2, dtype=torch.float64)
    variances = torch.full_like(means, width**2)
    problem, errors = ExactProblem(name="smooth", means=means, variances=variances, weights=shares), {}
    noise = torch.randn(8, problem.dimensions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = problem.endpoint(noise, math.pi / 2)
    for steps in (16, 64):
        scheduler = StaleScheduler(prediction_type="flow_prediction")
        scheduler.set_timesteps(steps)
        end = run(scheduler, lambda x, t: exact_flow(problem, x, t), noise)
        errors[steps] = float((end - exact).square().mean().sqrt())
    assert math.log2(errors[16] / errors[64]) / 2 > 2.5


def exact_flow(problem, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    sigma = float(timestep) / 1000
    return (sample - problem.clean(sample, 1 - sigma, sigma)) / sigma


def test_custom_noise_levels():
    scheduler = StaleScheduler(**STABLE_DIFFUSION, rescale_betas_zero_snr=False, prediction_type="epsilon")
    ratios = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152]
    for given in (ratios, [*ratios, 0.0]):
        scheduler.set_timesteps(sigmas=given)
        assert torch.allclose(scheduler.sigmas, torch.tensor([*ratios, 0.0]), rtol=1e-3)
    for given, message in (([1.0, 2.0], "descend"), ([99.0, 1.0], "`sigmas` must be between"), ([], "descend")):
        with pytest.raises(ValueError, match=message):
            scheduler.set_timesteps(sigmas=given)
    flow = StaleScheduler(prediction_type="flow_prediction", flow_shift=3.0)
    flow.set_timesteps(sigmas=[1.0, 0.5])
    assert torch.allclose(flow.sigmas, torch.tensor([1.0, 0.75, 0.0]))
    with pytest.raises(ValueError, match="several or none"):
        flow.set_timesteps(3, sigmas=[1.0, 0.5])


def test_a_dynamic_shift_is_that_of_each_run():
    options = {"prediction_type": "flow_prediction", "timestep_spacing": "trailing", "use_dynamic_shifting": True}
    scheduler = StaleScheduler(**options)
    with pytest.raises(ValueError, match="`mu` must be given"):
        scheduler.set_timesteps(4)
    for mu in (1.0, 0.3):
        scheduler.set_timesteps(4, mu=mu)
        shifted = StaleScheduler(**options | {"use_dynamic_shifting": False}, flow_shift=math.exp(mu))
        shifted.set_timesteps(4)
        assert torch.allclose(scheduler.timesteps, shifted.timesteps)
    lightricks = StaleScheduler(**options | {"use_dynamic_shifting": False}, shift_terminal=0.1)
    lightricks.set_timesteps(8)
    assert lightricks.sigmas[-2] == pytest.approx(0.1)


def test_stochastic_steps_equal_sde_dpm_solver():
    config = STABLE_DIFFUSION | {"prediction_type": "epsilon", "timestep_spacing": "trailing"}
    stock = DPMSolverMultistepScheduler(
        **config, algorithm_type="sde-dpmsolver++", final_sigmas_type="zero", lower_order_final=False
    )
    ours = StaleScheduler(**config, rescale_betas_zero_snr=False)
    ours.set_timesteps(10)
    stock.set_timesteps(timesteps=ours.timesteps.tolist())
    samples = [torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))] * 2
    generators = [torch.Generator().manual_seed(1) for _ in samples]
    for timestep in ours.timesteps[:-1]:  # (at the last one the stock solver divides by nothing)
        ours_next = ours.step(torch.sin(samples[0]), timestep, samples[0], eta=1.0, generator=generators[0])
        stock_next = stock.step(torch.sin(samples[1]), timestep, samples[1], generator=generators[1])
        samples = [ours_next.prev_sample, stock_next.prev_sample]
        assert torch.allclose(*samples, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["entropic", "none"])
def test_every_eta_keeps_the_law_of_gaussian_data(eta, kind):
    scheduler = StaleScheduler(stale_weights=kind)
    predict, generator = gaussian_denoiser(0.7), torch.Generator().manual_seed(0)
    scheduler.set_timesteps(60)
    sample = torch.randn(4000, 1, generator=generator)
    for timestep in scheduler.timesteps:
        output = predict(scheduler, sample, timestep)
        sample = scheduler.step(output, timestep, sample, eta=eta, generator=generator).prev_sample
    assert float(sample.std()) == pytest.approx(0.7, rel=0.08)
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="`eta` must be between"):
        scheduler.step(sample, scheduler.timesteps[0], sample, eta=2.0)


def test_clipping_and_thresholding_limit_clean_predictions():
    output = torch.linspace(-4, 4, 100).reshape(1, 100)
    for options in ({"clip_sample": True, "clip_sample_range": 2.0}, {"thresholding": True, "sample_max_value": 1.5}):
        scheduler = StaleScheduler(prediction_type="sample", **options)
        scheduler.set_timesteps(3)
        clean = scheduler.step(output, scheduler.timesteps[0], output).pred_original_sample
        assert clean.abs().max() == pytest.approx(options.get("clip_sample_range", 1.0))


def test_thresholding_is_that_of_ddim():
    """Each sample by its own quantile."""
    options = STABLE_DIFFUSION | {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 4.0}
    stock = DDIMScheduler(**options, prediction_type="sample", timestep_spacing="trailing")
    ours = StaleScheduler(**options, prediction_type="sample", timestep_spacing="trailing")
    output = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [0.5, 2.0, 9.0]
    ).reshape(3, 1, 1, 1)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(5)
    found = [each.step(output, ours.timesteps[0], output).pred_original_sample for each in (stock, ours)]
    assert torch.allclose(*found, atol=1e-6)
    assert [float(part.abs().max()) for part in found[1]] == pytest.approx([1.0, 1.0, 1.0], abs=0.6)


def test_what_epsilon_says_of_pure_noise_is_told_once(caplog):
    scheduler = StaleScheduler(prediction_type="epsilon")
    for _ in range(2):
        scheduler.set_timesteps(6)
        run(scheduler, lambda sample, time: torch.sin(sample), torch.ones(1, 4))
    assert caplog.text.count("At zero terminal signal") == 1
    StaleScheduler().set_timesteps(6)
    assert len(caplog.records) == 1


def test_not_a_number_says_at_which_step():
    scheduler = StaleScheduler()
    scheduler.set_timesteps(3)
    sample = torch.zeros(1, 4)
    scheduler.step(sample, scheduler.timesteps[0], sample)
    with pytest.raises(ValueError, match="after step 2 of 3") as caught:
        scheduler.step(sample * float("nan"), scheduler.timesteps[1], sample)
    assert isinstance(caught.value, FloatingPointError)


@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({"prediction_type": "epsilon"}, math.nan),  # (at zero terminal signal it says nothing)
        ({"clip_sample": True}, math.inf),
        ({"thresholding": True}, -math.inf),
    ],
)
def test_no_number_is_lost_in_what_does_not_count(options, output):
    scheduler = StaleScheduler(**options)
    scheduler.set_timesteps(6)
    sample = torch.zeros(1, 4)
    with pytest.raises(NonFiniteOutputError, match="after step 1 of 6"):
        scheduler.step(sample + output, scheduler.timesteps[0], sample)


def test_a_step_that_failed_leaves_no_trace():
    """Neither of its clean prediction, nor of the noise that was missing."""
    scheduler, ends = StaleScheduler(), []
    start = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    for fails in (False, True):
        scheduler.set_timesteps(6)
        sample = start
        for timestep in scheduler.timesteps:
            if fails:
                with pytest.raises(NonFiniteOutputError):
                    scheduler.step(sample * math.nan, timestep, sample)
                with pytest.raises(AttributeError):
                    scheduler.step(sample, timestep, sample, eta=0.5, generator=["none", "none"])
            sample = scheduler.step(torch.sin(sample), timestep, sample).prev_sample
            if timestep == scheduler.timesteps[-2]:
                break  # (the last step has no noise to miss)
        ends.append(sample)
    assert torch.equal(*ends)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_whoever_changes_outputs_afterwards_does_not_change_the_run(prediction_type):
    """Previews are made of `pred_original_sample` in place, and compiled networks write to the same memory again."""
    scheduler, ends = StaleScheduler(prediction_type=prediction_type), []
    for changes in (False, True):
        scheduler.set_timesteps(6)
        sample = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
        for timestep in scheduler.timesteps:
            output = torch.sin(3.0 * sample)
            result = scheduler.step(output, timestep, sample)
            sample = result.prev_sample.clone()
            if changes:
                for part in (output, result.pred_original_sample, result.prev_sample):
                    part.zero_()
        ends.append(sample)
    assert torch.equal(*ends)


def test_a_run_that_could_not_be_set_up_leaves_nothing_to_run():
    """Not the noise levels of the last one with guidance of this one."""
    scheduler, sample = StaleScheduler(), torch.zeros(1, 4)
    for options in ({"num_inference_steps": 0, "guidance_scale": 9.0}, {"sigmas": [1.0, 2.0]}):
        scheduler.set_timesteps(5)
        with pytest.raises(ValueError, match="must"):
            scheduler.set_timesteps(**options)
        with pytest.raises(ValueError, match="`set_timesteps` must be called"):
            scheduler.step(sample, scheduler.timesteps[0], sample)


def test_a_copied_run_goes_on_alike():
    scheduler, ends = StaleScheduler(), []
    scheduler.set_timesteps(6)
    sample = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps[:3]:
        sample = scheduler.step(torch.sin(sample), timestep, sample).prev_sample
    for each in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler)), scheduler):
        end = sample
        for timestep in scheduler.timesteps[3:]:
            end = each.step(torch.sin(end), timestep, end).prev_sample
        ends.append(end)
    assert torch.equal(ends[0], ends[2])
    assert torch.equal(ends[1], ends[2])


def test_a_dynamic_shift_is_no_matter_of_training():
    scheduler = StaleScheduler(prediction_type="flow_prediction", use_dynamic_shifting=True)
    drawn, times = [], torch.tensor([100.0, 900.0])
    for mu in (0.3, 1.5):
        scheduler.set_timesteps(4, mu=mu)
        timesteps = scheduler.sample_training_timesteps(8, torch.Generator().manual_seed(0), "entropic")
        drawn.append(torch.cat([timesteps, scheduler.loss_weights(times, "entropic")]))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("weighting", ["uniform", "min_snr", "entropic"])
def test_loss_weights_have_the_shape_of_their_timesteps(weighting):
    scheduler, times = StaleScheduler(), torch.tensor([[3, 100], [500, 900]])
    weights = scheduler.loss_weights(times, weighting)
    assert torch.equal(weights, scheduler.loss_weights(times.flatten(), weighting).reshape(2, 2))
    assert torch.equal(scheduler.loss_weights(times[0, 1], weighting), weights[0, 1])


@pytest.mark.parametrize("prediction_type", ["v_prediction", "flow_prediction"])
def test_entropic_timesteps_and_entropic_weights_count_alike(prediction_type):
    """The mean of anything over entropic timesteps is its weighted mean over uniform ones."""
    scheduler = StaleScheduler(prediction_type=prediction_type)
    entropic = scheduler.sample_training_timesteps(20_000, torch.Generator().manual_seed(0), "entropic")
    uniform = scheduler.sample_training_timesteps(20_000, torch.Generator().manual_seed(1))
    weights = scheduler.loss_weights(uniform, "entropic")
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.02)
    for power in (1, 2):
        weighted = float((weights * (uniform / 1000) ** power).mean())
        assert float((entropic / 1000).pow(power).mean()) == pytest.approx(weighted, rel=0.03)


def test_bounded_memory():
    scheduler = StaleScheduler(max_stale=1)
    scheduler.set_timesteps(9)
    sample = torch.randn(1, 4)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(torch.sin(sample), timestep, sample).prev_sample
        assert len(scheduler._clean) <= 2
    assert not scheduler._clean  # (the decoder needs the memory)


def test_bad_input_says_what_was_expected():
    scheduler = StaleScheduler()
    sample = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(sample, 1, sample)
    for steps in (0, -1, 1001, True, 5.5, math.nan, "5", [5]):
        with pytest.raises(ValueError, match="between 1 and 1000"):
            scheduler.set_timesteps(steps)
    with pytest.raises(ValueError, match="descend"):
        scheduler.set_timesteps(timesteps=[1, 2])
    with pytest.raises(ValueError, match="between 0 and 999"):
        scheduler.set_timesteps(timesteps=[1000, 2])
    with pytest.raises(ValueError, match="several or none"):
        scheduler.set_timesteps()
    flow = StaleScheduler(prediction_type="flow_prediction")
    for nothing in ({"timesteps": [500.0, 0.0]}, {"sigmas": [0.0]}):
        with pytest.raises(ValueError, match="must begin above no noise"):
            flow.set_timesteps(**nothing)
    for option in ({"sigmas": [math.nan]}, {"timesteps": [math.nan, 1.0]}, {"sigmas": [0.5, -0.1]}):
        with pytest.raises(ValueError, match=r"descend|between 0 and 1000"):
            flow.set_timesteps(**option)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"scheduler\.timesteps"):
        scheduler.step(sample, 7, sample)
    for timestep in scheduler.timesteps:
        scheduler.step(sample, timestep, sample)
    with pytest.raises(ValueError, match="All 2 steps"):
        scheduler.step(sample, scheduler.timesteps[0], sample)
    for option in ({"prediction_type": "noise"}, {"beta_schedule": "sigmoid"}, {"stale_weights": "fresh"}):
        with pytest.raises(ValueError, match="must be one of"):
            StaleScheduler(**option)
    for option in ({"trained_betas": [0.1]}, {"beta_end": 1.5}, {"flow_shift": 0.0}):
        with pytest.raises(ValueError, match=r"trained_betas|flow_shift"):
            StaleScheduler(**option)


def test_runs_that_cannot_be_say_what_was_expected():
    scheduler, sample = StaleScheduler(), torch.zeros(1, 4)
    for guidance in (math.nan, math.inf, "7"):
        with pytest.raises(ValueError, match="`guidance_scale` must be a finite number"):
            scheduler.set_timesteps(5, guidance_scale=guidance)
    dynamic = StaleScheduler(prediction_type="flow_prediction", use_dynamic_shifting=True)
    for mu in (math.nan, 1000.0):
        with pytest.raises(ValueError, match="`mu` must mean a shift"):
            dynamic.set_timesteps(5, mu=mu)
    scheduler.set_timesteps(2)
    for shapes in ((2, 4), (1, 8)):
        with pytest.raises(ValueError, match=r"`model_output` must have the shape of `sample`, \(1, 4\)"):
            scheduler.step(torch.zeros(shapes), scheduler.timesteps[0], sample)
    with pytest.raises(ValueError, match="must have the shape"):
        scheduler.step(sample, scheduler.timesteps[0], torch.zeros(2, 4))
    scheduler.set_timesteps(2)
    for begin in (-1, 2, 99, 0.5):
        scheduler.set_begin_index(begin)
        with pytest.raises(ValueError, match="`begin_index` must be between 0 and 1"):
            scheduler.step(sample, scheduler.timesteps[0], sample)


@pytest.mark.parametrize("seed", range(4))
def test_relative_entropy_to_noise_falls_as_the_theorem_says(seed):
    """KL(tau) <= exp(-2 tau) KL(0) along alpha = exp(-tau), on mixtures in one dimension (docs/maximum_entropy.md)."""
    draw = np.random.default_rng(seed)
    means, scales = draw.normal(scale=2.0, size=3), draw.uniform(0.2, 1.5, size=3)
    grid = np.linspace(-20.0, 20.0, 40001)
    log_noise = -0.5 * grid**2 - 0.5 * math.log(2 * math.pi)

    def divergence(alpha: float) -> float:
        spreads = np.sqrt(alpha**2 * scales**2 + 1 - alpha**2)[:, None]
        parts = np.exp(-0.5 * ((grid - alpha * means[:, None]) / spreads) ** 2) / (spreads * math.sqrt(2 * math.pi))
        density = parts.mean(axis=0)
        safe = np.log(np.maximum(density, 1e-300))
        return float((density * (safe - log_noise)).sum() * (grid[1] - grid[0]))

    first = divergence(1.0)
    for time in (0.1, 0.5, 1.0, 2.0, 4.0):
        assert divergence(math.exp(-time)) + 1e-12 >= 0
        assert divergence(math.exp(-time)) <= math.exp(-2 * time) * first + 1e-9
