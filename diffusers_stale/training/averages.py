"""Moving averages of weights while they are trained, in two forms. Knows no optimizer and no files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from diffusers_stale.training.config import StageConfig
from diffusers_stale.training.sharding import held, part_of


def constant_decay(config: StageConfig) -> Callable[[int], float]:
    """A decay of `ema_decay`, warming up as (1 + step) / (10 + step): it remembers a fixed number of steps."""
    return lambda step: min(config.ema_decay, (1 + step) / (10 + step))


def power_decay(config: StageConfig) -> Callable[[int], float]:
    """A decay of (1 - 1 / step) ^ (gamma + 1): it remembers a fixed share of the run so far, and needs no warm-up.

    The weights of step t then count as t ^ gamma. Source: Karras et al. 2024, "Analyzing and Improving the Training
    Dynamics of Diffusion Models", arXiv 2312.02696, section 3.1, equation 4.
    """
    exponent = power_exponent(config.ema_width)
    return lambda step: (1 - 1 / step) ** (exponent + 1)


def power_exponent(width: float) -> float:
    """The gamma of a profile t ^ gamma whose standard deviation is `width` times the length of the run.

    A variable of density (gamma + 1) t ^ gamma on 0 to 1 has the variance (gamma + 1) / ((gamma + 2)^2 (gamma + 3)),
    whose inverse is a cubic (arXiv 2312.02696, equations 5 and 6). Raises `ValueError` for a width that is not above 0
    and below 12 ^ -1/2 = 0.289, where all steps count alike.
    """
    if not 0 < width < 12**-0.5:
        raise ValueError(
            f"`ema_width` must be above 0 and below {12**-0.5:.3f}, got {width}; 0.05 to 0.15 are usual (arXiv "
            "2312.02696)."
        )
    precision = width**-2
    return float(np.roots([1.0, 7.0, 16.0 - precision, 12.0 - precision]).real.max())


class MovingAverage:
    """Average of `parameters`, in their dtype. `decay` gives what is kept of it at each step, from 1 on."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], decay: Callable[[int], float]):
        self.decay = decay
        self.live = list(parameters.values())
        self.average = [parameter.detach().clone() for parameter in self.live]
        self.names = list(parameters)

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(held(self.average), held(self.live), 1 - self.decay(step))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the module has the averaged weights."""
        kept = [parameter.detach().clone() for parameter in self.live]
        self.copy_to_live(self.average)
        try:
            yield
        finally:
            self.copy_to_live(kept)

    @torch.no_grad()
    def copy_to_live(self, values: list[torch.Tensor]) -> None:
        torch._foreach_copy_(held(self.live), held(values))

    def state(self) -> dict[str, torch.Tensor]:
        return dict(zip(self.names, self.average, strict=True))

    @torch.no_grad()
    def restore(self, state: dict[str, torch.Tensor]) -> None:
        for name, average in self.state().items():
            average.copy_(part_of(state[name], average))


AVERAGES = {"constant": constant_decay, "power": power_decay}
"""Forms of the moving average by name: from a configuration to the decay at each step."""
