"""Exact problems are exact: denoisers, paths and samples agree with each other."""

import math

import pytest
import torch

from diffusers_stale.evaluation.exact_problems import EXACT_PROBLEMS


@pytest.mark.parametrize("name", list(EXACT_PROBLEMS))
def test_the_denoiser_is_the_posterior_mean_of_true_samples(name: str):
    """E[clean | sample] is the best prediction: its error is uncorrelated with every function of the sample."""
    problem = EXACT_PROBLEMS[name](3)
    if problem.condition is not None:
        return  # guided: the denoiser is nobody's posterior mean
    generator = torch.Generator().manual_seed(0)
    clean = problem.true_samples(20_000, generator)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    alpha, sigma = math.cos(0.7), math.sin(0.7)
    sample = alpha * clean + sigma * noise
    error = clean - problem.clean(sample, alpha, sigma)
    for feature in (torch.ones_like(sample), sample, sample.tanh()):
        products = (error * feature).mean(dim=1)
        assert abs(products.mean()) < 5 * products.std() / math.sqrt(len(products))
    assert error.square().mean() < (clean - sample / alpha).square().mean()


@pytest.mark.parametrize("name", list(EXACT_PROBLEMS))
def test_endpoints_are_distributed_like_the_data_and_converged(name: str):
    problem = EXACT_PROBLEMS[name](3)
    noise = torch.randn(64, problem.dimensions, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    end = problem.endpoint(noise, math.pi / 2, steps=200)
    assert (end - problem.endpoint(noise, math.pi / 2, steps=400)).square().mean().sqrt() < 1e-4 * problem.deviation
    if problem.condition is None:
        assert float(end.std(dim=0).square().mean().sqrt()) == pytest.approx(problem.deviation, rel=0.25)
