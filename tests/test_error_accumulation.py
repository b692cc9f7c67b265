"""Errors that add up while sampling: none of a perfect network, growing ones of an erring one, shrunk by scaling."""

import json
from pathlib import Path

import pytest
import torch

from diffusers_stale.evaluation.error_accumulation import (
    AccumulationReport,
    measure_drift,
    report_accumulation,
    write_accumulation,
)
from diffusers_stale.scheduling_stale import StaleScheduler


pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("epsilon", "v_prediction", "sample", "flow_prediction")
SHAPE = (256, 2, 6, 6)


def data() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


def levels(scheduler: StaleScheduler, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(level.reshape(-1, 1, 1, 1) for level in scheduler.noise_levels(timesteps))


def prediction_of(scheduler: StaleScheduler, clean: torch.Tensor, sample: torch.Tensor, times: torch.Tensor):
    """The prediction that says `clean` of `sample`."""
    alphas, sigmas = levels(scheduler, times)
    noise = (sample - alphas * clean) / sigmas
    return scheduler.training_target(clean, noise, times)


class Denoiser:
    """The best one for data of N(0, 1), with an error that is the largest where half is noise."""

    def __init__(self, scheduler: StaleScheduler, error: float = 0.0):
        self.scheduler, self.error = scheduler, error

    def __call__(self, sample: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        alphas, sigmas = levels(self.scheduler, timesteps)
        clean = sample * alphas / (alphas**2 + sigmas**2)
        wrong = self.error * alphas * sigmas * sample
        return prediction_of(self.scheduler, clean + wrong, sample, timesteps)


def texts() -> torch.Tensor:
    return torch.zeros(SHAPE[0], 1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_that_a_prediction_means_is_that_of_the_forward_process(kind: str):
    scheduler = StaleScheduler(prediction_type=kind)
    clean, noise, times = data(), torch.randn(SHAPE), torch.full((SHAPE[0],), 500)
    noisy = scheduler.add_noise(clean, noise, times)
    target = scheduler.training_target(clean, noise, times)
    torch.testing.assert_close(scheduler.noise_of(target, noisy, times), noise, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_changes_noise_and_clean_sample_of_one_sample(kind: str):
    """Both stay those of the sample that they were predicted of, and the noise shrinks as the docstring says."""
    scheduler = StaleScheduler(prediction_type=kind)
    clean, noise, times = data(), torch.randn(SHAPE), torch.full((SHAPE[0],), 300)
    noisy = scheduler.add_noise(clean, noise, times)
    target = scheduler.training_target(clean, noise, times)
    assert torch.equal(scheduler.scale_predicted_noise(target, noisy, times, 1.0), target)
    scaled = scheduler.scale_predicted_noise(target, noisy, times, 1.25)
    alphas, sigmas = levels(scheduler, times)
    expected = noise * (1 - alphas * 0.2)
    torch.testing.assert_close(scheduler.noise_of(scaled, noisy, times), expected, atol=1e-3, rtol=1e-3)
    again = scheduler.training_target((noisy - sigmas * expected) / alphas, expected, times)
    torch.testing.assert_close(scaled, again, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="`scale` must be above 0"):
        scheduler.scale_predicted_noise(target, noisy, times, 0.0)


def test_scaling_is_defined_where_no_signal_is_left():
    scheduler = StaleScheduler(prediction_type="v_prediction")
    sample, times = torch.randn(SHAPE), torch.full((SHAPE[0],), 999)
    assert torch.isfinite(scheduler.scale_predicted_noise(-data(), sample, times, 1.05)).all()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_a_perfect_network_does_not_drift(kind: str):
    scheduler = StaleScheduler(prediction_type=kind, rescale_betas_zero_snr=kind != "epsilon")
    drift = measure_drift(Denoiser(scheduler), scheduler, data(), texts(), steps=30)
    assert len(drift.noise_excess) == 30
    assert drift.mean < 0.02
    assert abs(drift.sample_excess[-1]) < 0.02


@pytest.mark.parametrize("error", [0.05, -0.05])
def test_errors_accumulate_and_a_scale_found_on_other_noise_shrinks_them(error: float):
    """Of a network that makes a little too much of what it sees, or too little, trajectories drift ever farther."""
    scheduler = StaleScheduler(prediction_type="v_prediction")
    report = report_accumulation(Denoiser(scheduler, error), scheduler, data(), texts(), steps=30)
    later = [abs(value) for value in report.plain.sample_excess[15::5]]
    assert later == sorted(later)
    assert later[-1] > 0.03
    assert (report.scaled.scale < 1) == (error > 0)
    assert report.scaled.mean < 0.75 * report.plain.mean


def test_the_report_is_written_as_figures_and_a_plot(tmp_path: Path):
    scheduler = StaleScheduler()
    drift = measure_drift(Denoiser(scheduler), scheduler, data()[:8], texts()[:8], steps=4)
    paths = write_accumulation(AccumulationReport(plain=drift, scaled=drift), tmp_path / "run")
    assert [path.name for path in paths] == ["error_accumulation.json", "error_accumulation.png"]
    figures = json.loads(paths[0].read_text())
    assert figures["plain"]["noise_excess"] == list(drift.noise_excess)
    assert paths[1].read_bytes().startswith(b"\x89PNG")
