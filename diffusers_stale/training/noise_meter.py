"""The entropic clock, measured for free: what training sees of the noise prediction's error at every noise level."""

import numpy as np
import torch

from diffusers_stale.entropic_steps import measured_clock
from diffusers_stale.scheduling_stale import StaleScheduler


BINS = 32
MEMORY = 0.999
"""What a batch leaves of the sums before it: some thousand batches count."""


class NoiseErrorMeter:
    """Mean squared error of the noise prediction by angle. It is of this process and of this part of a run only."""

    def __init__(self, scheduler: StaleScheduler):
        self.scheduler = scheduler
        self.sums, self.counts = np.zeros(BINS), np.zeros(BINS)

    @torch.no_grad()
    def add(self, errors: torch.Tensor, timesteps: torch.Tensor) -> None:
        """Takes squared errors `(batch,)` of what the network predicts at `timesteps`."""
        alphas, sigmas = self.scheduler.noise_levels(timesteps)
        bins = (torch.atan2(sigmas, alphas) / (np.pi / 2) * BINS).long().clamp(0, BINS - 1).cpu().numpy()
        values = self.scheduler.noise_errors(errors.detach().float(), timesteps).cpu().numpy()
        self.sums, self.counts = self.sums * MEMORY, self.counts * MEMORY
        np.add.at(self.sums, bins, values)
        np.add.at(self.counts, bins, 1.0)

    def clock(self) -> dict[str, list[float]] | None:
        """Knots of the measured clock, as a `StaleScheduler` takes them; None before anything was seen."""
        seen = np.flatnonzero(self.counts)[::-1]
        if len(seen) < 3:
            return None
        angles = np.append((seen + 0.5) / BINS * np.pi / 2, 0.0)
        errors = np.append(self.sums[seen] / self.counts[seen], 1.0)
        times = measured_clock(angles, errors)
        return {"angles": [round(float(a), 6) for a in angles], "times": [round(float(t), 6) for t in times]}
