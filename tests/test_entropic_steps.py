"""The prior of stale weights: its paths are those of its own differential equations, and errors are not amplified."""

import math

import numpy as np
import pytest
import torch

from diffusers_stale import entropic_steps, stale_weights
from diffusers_stale.entropic_steps import (
    CLOCK_POINTS,
    CLOCK_SCALES,
    HIGHEST_RATIO,
    entropic_angles,
    equal_steps,
    error_clock,
    step_clock,
)
from diffusers_stale.evaluation.exact_problems import EXACT_PROBLEMS
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.stale_weights import (
    FreshErrors,
    WeightPrior,
    entropic_weights,
    gaussian_weights,
    newest_only,
    stale_prior,
    wandering_errors,
)


def levels(steps: int, start: float) -> tuple[np.ndarray, np.ndarray]:
    angles = np.append(entropic_angles(steps, start, 0.03), 0.0)
    return np.cos(angles), np.sin(angles)


@pytest.mark.parametrize("start", [math.atan(14.6), math.atan(3.0)])
def test_paths_with_wandering_errors_solve_their_equation(start):
    network = wandering_errors(1.0)
    angles = np.linspace(start, 0.05, 20001)
    sample = np.zeros(len(network.share))
    errors = network.errors(angles, start)
    for here, there, wrong in zip(angles[:-1], angles[1:], errors[:-1], strict=True):
        alpha, sigma = math.cos(here), math.sin(here)
        clean = network.clean(sample, alpha, sigma, wrong)
        sample = sample + (there - here) * (alpha * (sample - alpha * clean) / sigma - sigma * clean)
    known = network.paths(np.array([start, 0.3, 0.05]))
    assert (known[0] == 0.0).all()
    np.testing.assert_allclose(known[-1], sample, rtol=2e-2, atol=2e-3 * np.abs(sample).max())


def test_errors_are_finite_at_pure_noise_and_grow_with_the_noise():
    network = wandering_errors(1.0)
    angles = np.array([math.pi / 2, math.atan(7.0), math.atan(0.1), 0.0])
    errors = network.errors(angles, math.pi / 2)
    assert np.isfinite(errors).all()
    slowest = errors[:, network.mode == 0]
    np.testing.assert_allclose(slowest[:, 0], [HIGHEST_RATIO, 7.0, 0.1, 0.0], atol=1e-12)
    assert np.isfinite(network.paths(angles)).all()


@pytest.mark.parametrize("start", [math.atan(14.6), math.pi / 2])
@pytest.mark.parametrize("steps", [2, 5, 10, 20, 50])
def test_weights_sum_to_one_and_trust_pure_noise_less_than_a_perfect_network_would(steps, start):
    ours, perfect = (weigh(*levels(steps, start), None) for weigh in (entropic_weights, gaussian_weights))
    for number, weights in enumerate(ours):
        assert weights.sum() == pytest.approx(1.0)
        assert len(weights) == min(number, 4) + 1
    # In many steps roughness hardly counts (`ROUGHNESS_DECAY`), and the two are nearly the same.
    if start == math.pi / 2 and steps in (10, 20):
        assert abs(ours[1][1]) < abs(perfect[1][1])


@pytest.mark.parametrize("steps", [8, 12, 20])
def test_errors_that_are_new_in_each_evaluation_are_amplified_less(steps):
    """A network for N(0, 1) that errs by 0.05 r: its samples stay nearer to the exact ones than with `gaussian`."""
    draw, distances = torch.Generator().manual_seed(3), {}
    noise = torch.randn(4000, generator=draw)
    for name in ("entropic", "gaussian"):
        scheduler = StaleScheduler(stale_weights=name, prediction_type="sample")
        scheduler.set_timesteps(steps)
        draw, sample = torch.Generator().manual_seed(4), noise
        for timestep in scheduler.timesteps:
            alpha, sigma = (float(level) for level in scheduler.noise_levels(timestep.reshape(1)))
            error = 0.05 * min(sigma / max(alpha, 1e-6), HIGHEST_RATIO) * torch.randn(4000, generator=draw)
            sample = scheduler.step(alpha * sample + error, timestep, sample).prev_sample
        distances[name] = float((sample - noise).square().mean().sqrt())
    assert distances["entropic"] < 0.6 * distances["gaussian"]


def amplification(alphas: np.ndarray, sigmas: np.ndarray, weights: list[np.ndarray]) -> float:
    """Deviation of the end of a run with a network for N(0, 1) whose noise predictions err by 1, anew each time."""
    path, predictions = np.zeros(len(weights)), []
    for index, combination in enumerate(weights):
        alpha, sigma = alphas[index], sigmas[index]
        wrong = alpha * path / (alpha**2 + sigma**2)
        wrong[index] += min(sigma / max(alpha, 1e-9), HIGHEST_RATIO)
        predictions.insert(0, wrong)
        shrink = sigmas[index + 1] / sigma
        moved = sum(weight * each for weight, each in zip(combination, predictions, strict=False))
        path = shrink * path + (alphas[index + 1] - alpha * shrink) * moved
    return float(np.sqrt((path**2).sum()))


@pytest.mark.parametrize("start", [math.atan(14.6), math.pi / 2])
@pytest.mark.parametrize("steps", [5, 10, 20, 30])
def test_errors_that_are_new_in_each_evaluation_end_smaller_than_without_stale_outputs(steps, start):
    grid = levels(steps, start)
    ours, single, perfect = (
        amplification(*grid, weigh(*grid, None)) for weigh in (entropic_weights, newest_only, gaussian_weights)
    )
    assert ours < single
    assert ours < perfect


def test_followed_errors_are_what_a_run_makes_of_them():
    """Of two errors with no weight on stale predictions, by hand."""
    fresh = FreshErrors(np.array([2.0, 0.5]))
    fresh.predict(0.6, 0.8)
    np.testing.assert_allclose(fresh.known(2), [[2.0], [0.0]])
    fresh.path = 0.1 * fresh.known(1)[:, 0]
    fresh.predict(0.8, 0.6)
    np.testing.assert_allclose(fresh.known(2), [[0.16, 2.0], [0.5, 0.0]])


def test_the_prior_has_both_kinds_of_data():
    prior = stale_prior(WeightPrior(pair_share=0.5))
    assert prior.share[prior.centre == 0.0].sum() == pytest.approx(1.0)
    assert prior.share[prior.centre > 0.0].sum() == pytest.approx(0.5)


@pytest.mark.parametrize(("first", "last"), [(14.0, 3.0), (3.0, 0.5), (0.5, 0.02)])
def test_the_clock_of_errors_is_what_an_error_of_the_noise_prediction_does_to_the_end(first, last):
    """With y for sample / alpha and r for the noise-to-signal ratio, dy / dr is the noise prediction."""
    scales = np.geomspace(*CLOCK_SCALES, CLOCK_POINTS)
    ratios, path = np.geomspace(first, last, 4001), np.zeros_like(scales)
    for here, there in zip(ratios[:-1], ratios[1:], strict=True):
        middle = 0.5 * (here + there)
        halfway = path + (middle - here) * (path * here / (scales**2 + here**2) + 1.0)
        path = path + (there - here) * (halfway * middle / (scales**2 + middle**2) + 1.0)
    ends = path * scales / np.sqrt(scales**2 + last**2)  # (from here on the network is right)
    passed = error_clock(np.arctan([first, last]))
    assert (-ends / scales).mean() == pytest.approx(passed[0] - passed[1], rel=1e-4)


def test_both_clocks_count_where_noise_is_predicted():
    start = math.atan(14.6)
    angles = np.linspace(start, 0.0, 200)
    entropy, both = step_clock(angles, start), step_clock(angles, start, predicts_noise=True)
    errors = 1.0 - error_clock(angles) / error_clock(angles[:1])
    assert both == pytest.approx(0.75 * entropy + 0.25 * errors, abs=1e-12)
    for times in (entropy, both):
        assert times[[0, -1]] == pytest.approx([0.0, 1.0], abs=1e-12)
        assert (np.diff(times) > 0).all()


@pytest.mark.parametrize("steps", [8, 10, 20])
def test_steps_for_noise_predictions_end_nearer_where_those_err(steps):
    """Networks for Gaussian data whose noise predictions are off by waves of the log of the noise-to-signal ratio, of
    4 to 8 radians a factor e, against their own paths in 600 steps."""
    generator, start = np.random.default_rng(5), math.atan(14.6)
    scales, waves, phases = generator.uniform([[0.2], [4.0], [0.0]], [[1.5], [8.0], [6.3]], size=(3, 400))
    noise = generator.standard_normal(400)

    def end(steps: int, predicts_noise: bool) -> np.ndarray:
        angles = np.append(entropic_angles(steps, start, 0.03, predicts_noise=predicts_noise), 0.0)
        path, stale = noise, []
        weights = entropic_weights(np.cos(angles), np.sin(angles), None)
        for here, there, part in zip(angles[:-1], angles[1:], weights, strict=True):
            alpha, sigma, ratio = math.cos(here), math.sin(here), math.tan(here)
            error = 0.05 * ratio * np.cos(waves * math.log(ratio) + phases)
            stale.insert(0, alpha * scales**2 * path / (alpha**2 * scales**2 + sigma**2) + error)
            shrink = math.sin(there) / sigma
            known = sum(weight * clean for weight, clean in zip(part, stale, strict=False))
            path = shrink * path + (math.cos(there) - alpha * shrink) * known
        return path

    wanted = end(600, False)
    missed = [np.sqrt(np.mean((end(steps, predicts_noise) - wanted) ** 2)) for predicts_noise in (False, True)]
    assert missed[1] < 0.8 * missed[0]


@pytest.mark.parametrize("steps", [2, 3, 4, 5])
def test_few_steps_begin_where_the_network_knows_something(steps):
    """Exact paths from pure noise of data of several scales, without a mean: an evaluation at pure noise says 0, and
    is saved. With guidance, which multiplies what little is known, they begin nearer to pure noise again."""
    scales = np.geomspace(0.3, 3.0, 7)

    def missed(angles: np.ndarray) -> float:
        angles = np.append(angles, 0.0)
        path, stale = np.ones_like(scales), []
        weights = entropic_weights(np.cos(angles), np.sin(angles), None)
        for here, there, part in zip(angles[:-1], angles[1:], weights, strict=True):
            alpha, sigma = math.cos(here), math.sin(here)
            stale.insert(0, alpha * scales**2 * path / (alpha**2 * scales**2 + sigma**2))
            shrink = math.sin(there) / sigma
            known = sum(weight * clean for weight, clean in zip(part, stale, strict=False))
            path = shrink * path + (math.cos(there) - alpha * shrink) * known
        return float(np.sqrt(np.mean((path / scales - 1.0) ** 2)))  # (exact paths end at the scale times the noise)

    late, guided = (entropic_angles(steps, math.pi / 2, 0.03, guidance_scale=scale) for scale in (1.0, 8.0))
    early = equal_steps(steps, angles := np.linspace(math.pi / 2, 0.0, 4096), step_clock(angles, math.pi / 2), 0.03)
    assert early[0] == math.pi / 2 > guided[0] > late[0]
    assert missed(late) < missed(early)
    assert entropic_angles(6, math.pi / 2, 0.03)[0] == math.pi / 2


def test_four_steps_are_made_for_what_four_steps_can_do(monkeypatch):
    """Stable Diffusion's schedule, exact problems of all kinds that no constant was chosen on: the geometric mean."""
    scheduler = StaleScheduler(prediction_type="epsilon", rescale_betas_zero_snr=False)
    problems = [make(seed) for seed in (5, 6, 7, 8) for make in EXACT_PROBLEMS.values()]
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(48, problem.dimensions, generator=generator, dtype=torch.float64) for problem in problems]
    ends = [
        problem.endpoint(noise, scheduler.process.start, steps=150)
        for problem, noise in zip(problems, noises, strict=True)
    ]

    def missed() -> float:
        errors = []
        for problem, noise, end in zip(problems, noises, ends, strict=True):
            scheduler.set_timesteps(4)
            sample = noise.float()
            for timestep in scheduler.timesteps:
                alpha, sigma = (float(level) for level in scheduler.noise_levels(timestep))
                output = (sample - alpha * problem.clean(sample, alpha, sigma)) / sigma
                sample = scheduler.step(output, timestep, sample).prev_sample
            errors.append(math.log(float((sample - end).square().mean().sqrt()) / problem.deviation))
        return math.exp(sum(errors) / len(errors))

    few = missed()
    monkeypatch.setattr(entropic_steps, "FEW_STEPS", 0)
    monkeypatch.setattr(stale_weights, "FEW_STEPS", 0)
    monkeypatch.setattr(entropic_steps, "NOISE_PARTS_OF_FOUR", ())
    assert few < 0.95 * missed()  # (0.88 to 0.91 for other noises)


def test_the_end_of_more_steps_is_not_made_for_few():
    """Four steps that begin at little noise, as image-to-image does."""
    alphas, sigmas = levels(4, 0.5)
    wanted = stale_weights._weights_of(stale_weights.USUAL_PRIOR, alphas, sigmas, None)
    for ours, usual in zip(entropic_weights(alphas, sigmas, None), wanted, strict=True):
        np.testing.assert_array_equal(ours, usual)


@pytest.mark.parametrize("start", [math.atan(14.6), math.pi / 2])
@pytest.mark.parametrize("steps", [100, 200, 400, 1000])
def test_many_steps_have_no_large_weights(steps, start):
    """What is rough in a network would be amplified by as much."""
    assert max(np.abs(part).max() for part in entropic_weights(*levels(steps, start), None)) < 20.0
