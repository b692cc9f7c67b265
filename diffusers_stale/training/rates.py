"""Learning rates over a run: warm-up, then a schedule by the share of the budget that is spent."""

import math

from diffusers_stale.training.config import Schedule


def rate_factor(step: int, fraction: float, warmup_steps: int, schedule: Schedule) -> float:
    """Factor on the learning rate at `step`, when `fraction` (0 to 1) of the run is over."""
    warm = min(1.0, (step + 1) / max(warmup_steps, 1))
    return warm * SCHEDULES[schedule](min(max(fraction, 0.0), 1.0))


SCHEDULES = {
    "cosine": lambda fraction: 0.5 * (1 + math.cos(math.pi * fraction)),
    "linear": lambda fraction: 1.0 - fraction,
    "constant": lambda fraction: 1.0,
}
"""Factors by the share of the run that is over, by name."""
