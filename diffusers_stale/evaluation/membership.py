"""Membership by denoising loss: whether a network denoises what it may have been trained on better than other data.

A memorised sample has a lower loss than samples like it (Yeom et al., "Privacy risk in machine learning", 2018,
arXiv 1709.01604; for diffusion models Carlini et al. 2023, arXiv 2301.13188, and Matsumoto et al. 2023, arXiv
2302.03262). Nothing here loads checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from diffusers_stale.evaluation.alignment import NORMAL_QUANTILE
from diffusers_stale.scheduling_stale import StaleScheduler


BISECTIONS = 60

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""The network: (sample, timesteps of shape `(batch,)`, text) -> prediction."""


@dataclass(frozen=True, kw_only=True)
class Membership:
    """How well the loss tells members from others.

    `auc`: the probability that a member's loss is below another's: 0.5 where nothing tells them apart. `low`, `high`:
    its interval of 95 %. `members`, `others`: how many of each were asked.
    """

    auc: float
    low: float
    high: float
    members: int
    others: int

    @property
    def tells_apart(self) -> bool:
        """Whether chance is outside the interval, on the side of memory."""
        return self.low > 0.5


@torch.no_grad()
def denoising_losses(
    predict: Predict,
    scheduler: StaleScheduler,
    latents: torch.Tensor,
    texts: torch.Tensor,
    draws: int = 8,
    seed: int = 0,
    batch: int = 32,
) -> np.ndarray:
    """Mean squared error of what `predict` says of each sample, over the same `draws` of noise and noise level.

    All samples share their draws, so that these differ in nothing but the sample. Levels are spread evenly.

    Args:
        predict: the network.
        scheduler: the process that it was trained for.
        latents: `(count, channels, ...)`, normalised.
        texts: `(count, tokens, channels)`.

    Returns:
        `(count,)`.
    """
    generator = torch.Generator().manual_seed(seed)
    timesteps = scheduler.sample_training_timesteps(draws, generator)
    losses = np.zeros(len(latents))
    for timestep in timesteps:
        noise = torch.randn(latents.shape[1:], generator=generator).to(latents.device)
        for start in range(0, len(latents), batch):
            part = slice(start, start + batch)
            clean = latents[part].float()
            times = timestep.expand(len(clean)).to(latents.device)
            noises = noise.expand_as(clean)
            predicted = predict(scheduler.add_noise(clean, noises, times), times, texts[part])
            error = predicted.float() - scheduler.training_target(clean, noises, times)
            losses[part] += error.square().flatten(1).mean(dim=1).cpu().numpy()
    return losses / draws


def membership(member_losses: np.ndarray, other_losses: np.ndarray) -> Membership:
    """How well a low loss tells members from others, with its interval of 95 %.

    The interval is that of Newcombe 2006 ("Confidence intervals for an effect size measure based on the Mann-Whitney
    statistic. Part 2", method 5): the limits lie where the area would be two errors of its own, so it is sound for
    few samples and for perfect separation too. Raises `ValueError` for fewer than two samples of either kind.
    """
    members, others = len(member_losses), len(other_losses)
    if min(members, others) < 2:
        raise ValueError(f"Two members and two others are needed at least, got {members} and {others}; ask more.")
    ordered = np.sort(other_losses)
    above = others - np.searchsorted(ordered, member_losses, side="right")
    ties = np.searchsorted(ordered, member_losses, side="right") - np.searchsorted(ordered, member_losses, side="left")
    area = float((above + 0.5 * ties).mean() / others)
    low, high = (_limit(area, members, others, end) for end in (0.0, 1.0))
    return Membership(auc=area, low=low, high=high, members=members, others=others)


def _limit(area: float, members: int, others: int, end: float) -> float:
    """The true area towards `end` from which `area` is just `NORMAL_QUANTILE` standard errors away."""
    inside, outside = area, end
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        far = abs(area - middle) > NORMAL_QUANTILE * _standard_error(middle, members, others)
        inside, outside = (inside, middle) if far else (middle, outside)
    return (inside + outside) / 2


def _standard_error(area: float, members: int, others: int) -> float:
    """Of a measured area; Hanley and McNeil 1982 with Newcombe's equal group sizes."""
    size = (members + others) / 2 - 1
    spread = 1 + size * ((1 - area) / (2 - area) + area / (1 + area))
    return (area * (1 - area) * spread / (members * others)) ** 0.5
