"""Naturally accumulating errors: how far sampled trajectories drift, step by step, from the forward process.

Exposure bias: in training a network sees noisy data, in sampling its own results, whose errors it has never seen. What
is compared are second moments, which the forward process fixes: of samples and of the noise that is predicted of them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from diffusers_stale.evaluation.membership import Predict
from diffusers_stale.scheduling_stale import StaleScheduler


SCALES = (0.97, 0.98, 0.99, 0.995, 1.0, 1.0025, 1.005, 1.01, 1.015, 1.02, 1.03, 1.05)
"""Epsilon scales that are tried. Ning et al. 2024 (arXiv 2308.15321, table 4) find 1.003 to 1.02 for few steps."""

CHOOSING_SEED = 1_000
"""Added to the seed for the noises that a scale is chosen with: others than those it is reported on."""

FORWARD_STREAM = 7


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Sampled trajectories against the forward process, at each step from noise to data.

    `timesteps`: where. `noise_excess`: root mean square of the predicted noise along trajectories, over that on noisy
    data at the same timestep, minus 1. `sample_excess`: the same of the samples themselves. `scale`: of epsilon
    scaling, 1 without.
    """

    timesteps: tuple[float, ...]
    noise_excess: tuple[float, ...]
    sample_excess: tuple[float, ...]
    scale: float

    @property
    def final(self) -> float:
        """Drift of the noise that is predicted in the last step."""
        return self.noise_excess[-1]

    @property
    def mean(self) -> float:
        """Mean magnitude of the drift of the predicted noise over all steps."""
        return sum(map(abs, self.noise_excess)) / len(self.noise_excess)


@dataclass(frozen=True, kw_only=True)
class AccumulationReport:
    """The drift as it is, and with the epsilon scale that was best on other noises."""

    plain: Drift
    scaled: Drift


@torch.no_grad()
def measure_drift(
    predict: Predict,
    scheduler: StaleScheduler,
    latents: torch.Tensor,
    texts: torch.Tensor,
    steps: int = 20,
    seed: int = 0,
    scale: float = 1.0,
) -> Drift:
    """The drift of trajectories of `steps` steps, without guidance (which changes both moments on purpose).

    Args:
        predict: the network.
        scheduler: a copy of it is used.
        latents: data of the distribution that the network was trained on, `(count, channels, ...)`, normalised.
        texts: of the data, `(count, tokens, channels)`; trajectories are told the same.
        scale: of epsilon scaling; see `StaleScheduler.scale_predicted_noise`.
    """
    scheduler = StaleScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(steps, device=latents.device)
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(latents.shape, generator=generator).to(latents.device) * scheduler.init_noise_sigma
    forward = torch.Generator().manual_seed(seed + FORWARD_STREAM)
    noise_excess, sample_excess = [], []
    for timestep in scheduler.timesteps:
        times = timestep.expand(len(latents))
        noise = torch.randn(latents.shape, generator=forward).to(latents.device)
        noisy = scheduler.add_noise(latents, noise, times)
        of_data = scheduler.noise_of(predict(noisy, times, texts), noisy, times)
        prediction = predict(sample, times, texts)
        of_samples = scheduler.noise_of(prediction, sample, times)
        noise_excess.append(_ratio(of_samples, of_data) - 1)
        sample_excess.append(_ratio(sample, noisy) - 1)
        prediction = scheduler.scale_predicted_noise(prediction, sample, times, scale)
        sample = scheduler.step(prediction, timestep, sample).prev_sample
    return Drift(
        timesteps=tuple(float(timestep) for timestep in scheduler.timesteps),
        noise_excess=tuple(noise_excess),
        sample_excess=tuple(sample_excess),
        scale=scale,
    )


def _ratio(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float().square().mean() / theirs.float().square().mean()).sqrt())


def report_accumulation(
    predict: Predict,
    scheduler: StaleScheduler,
    latents: torch.Tensor,
    texts: torch.Tensor,
    steps: int = 20,
    seed: int = 0,
    scales: Sequence[float] = SCALES,
) -> AccumulationReport:
    """The drift without epsilon scaling, and with the one of `scales` that makes it least on average.

    The scale is chosen with other noises than both are measured with. Arguments as for `measure_drift`.
    """
    arguments = (predict, scheduler, latents, texts, steps)
    tried = [measure_drift(*arguments, seed + CHOOSING_SEED, scale) for scale in scales]
    best = min(tried, key=lambda drift: (drift.mean, abs(drift.scale - 1))).scale
    return AccumulationReport(plain=measure_drift(*arguments, seed), scaled=measure_drift(*arguments, seed, best))


def write_accumulation(report: AccumulationReport, folder: Path) -> list[Path]:
    """Writes `error_accumulation.json` and, as a plot, `error_accumulation.png` to `folder`; returns both paths."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "Plots need matplotlib, which is not here; install it with pip install 'diffusers-stale[plot]'."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / "error_accumulation.json"
    figures.write_text(json.dumps(asdict(report), indent=1) + "\n")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for place, (name, title) in zip(
        figure.subplots(1, 2), (("noise_excess", "predicted noise"), ("sample_excess", "samples")), strict=True
    ):
        for drift, label, style in (
            (report.plain, "as it is", "-"),
            (report.scaled, f"noise divided by {report.scaled.scale:g}", "--"),
        ):
            values = [100 * value for value in getattr(drift, name)]
            place.plot(range(1, len(values) + 1), values, style, marker="o", markersize=3, label=label)
        place.axhline(0, color="0.6", linewidth=0.8)
        place.set(title=f"size of {title}", xlabel="step, from noise to data", ylabel="excess over noisy data, %")
        place.legend(frameon=False)
    picture = folder / "error_accumulation.png"
    figure.savefig(picture, dpi=110)
    return [figures, picture]
