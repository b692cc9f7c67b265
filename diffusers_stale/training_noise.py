"""Noise mathematics of training: noisy samples, targets, timesteps and loss weights of a scheduler's process."""

from typing import Literal

import numpy as np
import torch

from diffusers_stale.entropic_steps import entropic_clock
from diffusers_stale.noise_levels import DiscreteProcess, FlowProcess, shift_times
from diffusers_stale.scheduler_checks import check_choice


MIN_SNR_GAMMA = 5.0
"""Hang et al. 2023, arXiv 2303.09556."""

CLOCK_READINGS = 16384
"""Number of angles at which the clock is read to invert it."""

SMALLEST_FLOW_TIME = 1e-3
"""Timesteps of flows are above 0, where nothing is left to predict."""

TIMESTEP_DENSITIES = ("uniform", "entropic")
LOSS_WEIGHTINGS = ("uniform", "min_snr", "entropic")


class TrainingNoiseMixin:
    """What a `StaleScheduler` is to a trainer."""

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`original_samples`, of any shape `(batch, ...)`, with `noise` at `timesteps` `(batch,)`; in their dtype."""
        alphas, sigmas = self._levels_like(original_samples, timesteps)
        noisy = alphas * original_samples.float() + sigmas * noise.float()
        return noisy.to(original_samples.dtype)

    def scale_noise(
        self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`add_noise`, as flow pipelines of diffusers call it; one timestep serves the whole batch."""
        return self.add_noise(sample, noise, timestep.reshape(-1).expand(len(sample)))

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """v = alpha * noise - sigma * sample ("Progressive Distillation", arXiv 2202.00512, appendix D)."""
        alphas, sigmas = self._levels_like(sample, timesteps)
        return (alphas * noise.float() - sigmas * sample.float()).to(sample.dtype)

    def training_target(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What the network is to predict for `add_noise(original_samples, noise, timesteps)`."""
        kind = self.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "sample":
            return original_samples
        if kind == "flow_prediction":
            return noise - original_samples
        return self.get_velocity(original_samples, noise, timesteps)

    def sample_training_timesteps(
        self,
        count: int,
        generator: torch.Generator | None = None,
        density: Literal["uniform", "entropic"] = "uniform",
    ) -> torch.Tensor:
        """`count` random timesteps, stratified: each lies in another of `count` parts of the process of the same
        weight (Kingma et al. 2021, arXiv 2107.00630, appendix I.1), in random order. Shape `(count,)`, on the CPU.

        `uniform`: the same number of timesteps is the same weight; `entropic`: the same information is, by the
        scheduler's clock (for flows both are shifted by `flow_shift`).
        """
        check_choice("density", density, TIMESTEP_DENSITIES)
        offsets = torch.rand(count, generator=generator, dtype=torch.float64)
        parts = torch.randperm(count, generator=generator)
        times = (parts + offsets) / count
        total = self.config.num_train_timesteps
        if density == "entropic":
            angles = np.linspace(self.process.start, self.process.end, CLOCK_READINGS)
            clock = entropic_clock(angles, self._training_shift)
            found = np.interp(clock[0] + times.numpy() * (clock[-1] - clock[0]), clock, angles)
            timesteps = torch.from_numpy(self.process.timesteps(found))
            if not isinstance(self.process, DiscreteProcess):
                return timesteps.clamp_min(self.process.lowest + SMALLEST_FLOW_TIME).float()
            return timesteps.round().long().clamp(0, total - 1)
        if isinstance(self.process, FlowProcess):
            return torch.from_numpy(shift_times(1.0 - times.numpy(), self.config.flow_shift) * total).float()
        if isinstance(self.process, DiscreteProcess):
            return (times * total).floor().long().clamp_max(total - 1)
        return (self.process.lowest + times * (self.process.highest - self.process.lowest)).float()

    def loss_weights(
        self, timesteps: torch.Tensor, weighting: Literal["uniform", "min_snr", "entropic"] = "uniform"
    ) -> torch.Tensor:
        """Weights of the squared error of `prediction_type` at `timesteps`, of their shape.

        `min_snr` weighs the error of the clean sample by min(SNR, 5) (arXiv 2303.09556, section 3.4), whatever the
        network predicts. `entropic` is what uniform timesteps need to count as entropic ones do: the information
        that a timestep stands for, 1 in the mean over uniform timesteps.
        """
        check_choice("weighting", weighting, LOSS_WEIGHTINGS)
        alphas, sigmas = self.noise_levels(timesteps)
        if weighting == "uniform":
            return torch.ones_like(alphas)
        if weighting == "entropic":
            return self._entropic_rates(timesteps)
        # Error of the clean sample = factor * error of the prediction; SNR * factor^2 is 1 for epsilon.
        signal, noise = alphas.square(), sigmas.square()
        capped = torch.minimum(signal, MIN_SNR_GAMMA * noise)  # min(SNR, gamma) * sigma^2
        per_prediction = {
            "epsilon": capped / signal.clamp_min(torch.finfo(torch.float32).tiny),
            "sample": capped / noise.clamp_min(torch.finfo(torch.float32).tiny),
            "v_prediction": capped,
            "flow_prediction": capped,
        }
        weights = per_prediction[self.config.prediction_type]
        return torch.where(signal > 0, weights, weights.new_ones(())) if self._is_epsilon() else weights

    def noise_errors(self, errors: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Squared errors of the noise prediction, `(batch,)`, that those of `prediction_type` at `timesteps` mean."""
        alphas, sigmas = self.noise_levels(timesteps)
        kind = self.config.prediction_type
        if kind == "epsilon":
            return errors
        return errors * (alphas / sigmas).square() if kind == "sample" else errors * alphas.square()

    def noise_of(self, prediction: torch.Tensor, sample: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The noise that a `prediction` of `prediction_type` about `sample` means, float32, `(batch, ...)`."""
        alphas, sigmas = self._levels_like(sample, timesteps)
        prediction, sample = prediction.float(), sample.float()
        kind = self.config.prediction_type
        if kind == "epsilon":
            return prediction
        if kind == "sample":
            return (sample - alphas * prediction) / sigmas
        # Of flows alpha + sigma is 1, and sample + alpha * (noise - clean) = noise; of v, alpha^2 + sigma^2 is.
        return sample + alphas * prediction if kind == "flow_prediction" else sigmas * sample + alphas * prediction

    def scale_predicted_noise(
        self, prediction: torch.Tensor, sample: torch.Tensor, timesteps: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """`prediction` with its noise divided by `scale`: epsilon scaling against exposure bias.

        "Elucidating the exposure bias in diffusion models" (Ning et al. 2024, arXiv 2308.15321, section 5), with the
        change of the noise in proportion to alpha, so that it is defined where no signal is left: noise * (1 - alpha *
        (1 - 1 / scale)), and the clean sample follows. A scale of 1 changes nothing. Shape and dtype of `prediction`.
        """
        if not scale > 0:
            raise ValueError(f"`scale` must be above 0, got {scale}; 1 changes nothing.")
        alphas, sigmas = self._levels_like(sample, timesteps)
        noise = self.noise_of(prediction, sample, timesteps) * (1 - 1 / scale)
        factors = {"epsilon": -alphas, "sample": sigmas, "v_prediction": -1.0, "flow_prediction": -(alphas + sigmas)}
        return (prediction.float() + factors[self.config.prediction_type] * noise).to(prediction.dtype)

    def _entropic_rates(self, timesteps: torch.Tensor) -> torch.Tensor:
        """How fast the entropic clock runs at `timesteps`, relative to its mean."""
        lowest, highest = self.process.lowest, self.process.highest
        numbers = timesteps.detach().double().cpu().numpy().reshape(-1)
        half = 0.5 * (highest - lowest) / self.config.num_train_timesteps
        before, after = np.clip(numbers - half, lowest, highest), np.clip(numbers + half, lowest, highest)
        alphas, sigmas = self.process.levels(np.concatenate([before, after, [lowest, highest]]))
        read = entropic_clock(np.arctan2(sigmas, alphas), self._training_shift)
        elapsed = read[: len(numbers)] - read[len(numbers) : -2]
        mean = (read[-2] - read[-1]) / (highest - lowest)
        rates = torch.as_tensor(elapsed / (after - before) / mean, dtype=torch.float32, device=timesteps.device)
        return rates.reshape(timesteps.shape)

    @property
    def _training_shift(self) -> float:
        """That of the configuration: a dynamic shift is a run's, not training's."""
        return self.config.flow_shift if isinstance(self.process, FlowProcess) else 1.0

    def _is_epsilon(self) -> bool:
        return self.config.prediction_type == "epsilon"

    def _levels_like(self, samples: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise levels at `timesteps`, shaped so that they broadcast over `samples`."""
        levels = self.noise_levels(timesteps.reshape(-1))
        return tuple(level.to(samples.device).reshape(-1, *[1] * (samples.ndim - 1)) for level in levels)
