"""Forward processes: which noise level (alpha, sigma) a timestep means, and what diffusers' configurations say of it.

A sample at a noise level is `alpha * clean + sigma * noise`. Its angle is atan(sigma / alpha): finite where log-SNR is
not, 0 without noise and pi / 2 without signal. Nothing here samples, or keeps a state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers


MAX_BETA = 0.999
"""Of `squaredcos_cap_v2`, as in Nichol and Dhariwal 2021, arXiv 2102.09672."""

MOST_SHIFT = 1e6
"""Flows that are shifted by more have all their timesteps at pure noise, as far as numbers go."""

SVD_SIGMAS = (0.002, 700.0)
"""Ends of a `continuous` process where the configuration does not say: those of Stable Video Diffusion."""

BETA_SCHEDULERS = [each.name for each in KarrasDiffusionSchedulers if not each.name.startswith("EDM")]
"""Schedulers of diffusers whose process is one by betas."""

FOREIGN_DEFAULTS = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
"""What diffusers' schedulers mean where their configuration does not say."""


class Process(Protocol):
    """A forward process. `lowest` and `highest` timestep, `start` and `end` angle of what a network has seen."""

    lowest: float
    highest: float
    start: float
    end: float

    def levels(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Alphas and sigmas at `timesteps`, float64."""

    def timesteps(self, angles: np.ndarray) -> np.ndarray:
        """The inverse, by angle."""


class DiscreteProcess:
    """Variance preserving, alpha^2 + sigma^2 = 1, by cumulative alphas; the angle is linear between timesteps."""

    def __init__(self, cumulative_alphas: np.ndarray):
        self.angles = np.arctan2(np.sqrt(1.0 - cumulative_alphas), np.sqrt(cumulative_alphas))
        self.numbers = np.arange(len(self.angles))
        self.lowest, self.highest = 0.0, len(self.angles) - 1.0
        self.start, self.end = float(self.angles[-1]), float(self.angles[0])

    def levels(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        angles = np.interp(timesteps, self.numbers, self.angles)
        # The cosine of a rounded right angle is 6e-17; the end of the process is exactly noise.
        return np.where(angles >= np.pi / 2, 0.0, np.cos(angles)), np.sin(angles)

    def timesteps(self, angles: np.ndarray) -> np.ndarray:
        return np.interp(angles, self.angles, self.numbers)


@dataclass(frozen=True)
class ContinuousProcess:
    """That of Stable Video Diffusion: variance preserving, timesteps are a quarter of log(sigma / alpha) (Karras et
    al. 2022, arXiv 2206.00364, table 1: c_noise)."""

    sigma_min: float
    sigma_max: float

    @property
    def lowest(self) -> float:
        return 0.25 * np.log(self.sigma_min)

    @property
    def highest(self) -> float:
        return 0.25 * np.log(self.sigma_max)

    @property
    def start(self) -> float:
        return float(np.arctan(self.sigma_max))

    @property
    def end(self) -> float:
        return float(np.arctan(self.sigma_min))

    def levels(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        angles = np.arctan(np.exp(4.0 * np.asarray(timesteps, dtype=np.float64)))
        return np.cos(angles), np.sin(angles)

    def timesteps(self, angles: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return 0.25 * np.log(np.tan(angles))


@dataclass(frozen=True)
class FlowProcess:
    """Straight lines from the clean sample to noise, alpha + sigma = 1; timesteps are sigma * `count`."""

    count: int
    lowest: float = 0.0
    start: float = np.pi / 2
    end: float = 0.0

    @property
    def highest(self) -> float:
        return float(self.count)

    def levels(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sigmas = np.asarray(timesteps, dtype=np.float64) / self.count
        return 1.0 - sigmas, sigmas

    def timesteps(self, angles: np.ndarray) -> np.ndarray:
        # In the ratio of noise to signal s, flow time is s / (1 + s).
        return np.sin(angles) / (np.sin(angles) + np.cos(angles)) * self.count


def continuous_process(sigma_min: float | None, sigma_max: float | None) -> ContinuousProcess:
    """Between these noise-to-signal ratios, or those of `SVD_SIGMAS` in place of None."""
    lowest = SVD_SIGMAS[0] if sigma_min is None else sigma_min
    highest = SVD_SIGMAS[1] if sigma_max is None else sigma_max
    if not lowest < highest:
        raise ValueError(f"`sigma_min` must be less than `sigma_max`, got {lowest} and {highest}; exchange them.")
    return ContinuousProcess(lowest, highest)


def shift_times(times: np.ndarray, shift: float) -> np.ndarray:
    """Flow times, 0 to 1, whose noise-to-signal ratios are multiplied by `shift` (arXiv 2403.03206, equation 23)."""
    return shift * times / (1.0 + (shift - 1.0) * times)


def stretch_to(times: np.ndarray, last: float | None) -> np.ndarray:
    """Descending flow times, stretched from 1 so that they end at `last`; None or 0 leaves them (LTX-Video's)."""
    if not last or times[-1] >= 1.0:
        return times
    return 1.0 - (1.0 - times) * (1.0 - last) / (1.0 - times[-1])


def dynamic_shift(mu: float, kind: str) -> float:
    """The factor that `mu` of diffusers' flow pipelines means, by their `time_shift_type`."""
    with np.errstate(over="ignore"):
        shift = float(np.exp(mu)) if kind == "exponential" else float(mu)
    if not 0.0 < shift < MOST_SHIFT:
        raise ValueError(
            f"`mu` must mean a shift above 0 and below {MOST_SHIFT:g}, got {mu} ({kind}), which means {shift:g}; flow "
            "pipelines compute it."
        )
    return shift


def cumulative_alphas(betas: np.ndarray, zero_terminal: bool) -> np.ndarray:
    """Product of 1 - beta; with `zero_terminal` shifted so that its last is exactly 0 and its first unchanged
    (arXiv 2305.08891, algorithm 1)."""
    signal = np.cumprod(1.0 - betas)
    if not zero_terminal:
        return signal
    root = np.sqrt(signal)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def clean_of(
    prediction_type: str, model_output: torch.Tensor, sample: torch.Tensor, alpha: float, sigma: float
) -> torch.Tensor:
    """The clean sample that a prediction for `sample` at a noise level means; 0, its mean, where that says nothing."""
    if prediction_type == "sample":
        return model_output
    if prediction_type == "v_prediction":
        return alpha * sample - sigma * model_output
    if prediction_type == "flow_prediction":
        return sample - sigma * model_output
    return torch.zeros_like(sample) if alpha == 0.0 else (sample - sigma * model_output) / alpha


def dynamic_threshold(clean: torch.Tensor, ratio: float, largest: float) -> torch.Tensor:
    """`clean` `(batch, ...)` clipped to the `ratio` quantile of each sample's size, from 1 to `largest`, and divided
    by it (arXiv 2205.11487, section 2.3)."""
    limits = clean.flatten(1).abs().quantile(ratio, dim=1).clamp(1.0, max(largest, 1.0))
    limits = limits.reshape(-1, *[1] * (clean.ndim - 1))
    return clean.clamp(-limits, limits) / limits


def translated(config: dict[str, Any]) -> dict[str, Any]:
    """A `config` of another scheduler with all that it leaves unsaid, or says by other names.

    Its spacing of steps is left out: steps are ours to space. Raises `ValueError` for what would change its meaning:
    inverted sigmas (Mochi), a shifted signal (CogVideoX), and processes neither by betas nor of flow matching (EDM's).
    """
    name = str(config.get("_class_name", ""))
    is_flow = name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction" or "shift" in config
    is_known = is_flow or "beta_schedule" in config or name in BETA_SCHEDULERS
    if not is_known or config.get("invert_sigmas") or config.get("snr_shift_scale", 1.0) != 1.0:
        raise ValueError(
            "A configuration must speak of noise levels as Stable Diffusion or flow matching do, got inverted sigmas, "
            f"EDM's preconditioning, a shifted signal or nothing of the kind ({name or 'no class named'}); keep the "
            "pipeline's own scheduler."
        )
    ours = FOREIGN_DEFAULTS | {key: value for key, value in config.items() if key != "_use_default_values"}
    if is_flow:
        shift = config.get("shift", config.get("flow_shift", 1.0))
        ours |= {"prediction_type": "flow_prediction", "flow_shift": shift, "use_flow_sigmas": True}
    # (of these the default is to clip; elsewhere there is no such option)
    ours["clip_sample"] = config.get("clip_sample", name in ("DDIMScheduler", "DDPMScheduler"))
    ours.pop("timestep_spacing", None)
    return ours


def _linear(start: float, end: float, count: int) -> np.ndarray:
    return np.linspace(start, end, count)


def _scaled_linear(start: float, end: float, count: int) -> np.ndarray:
    return np.linspace(start**0.5, end**0.5, count) ** 2


def _squared_cosine(start: float, end: float, count: int) -> np.ndarray:
    times = np.arange(count + 1) / count
    remaining = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - remaining[1:] / remaining[:-1], MAX_BETA)


BETA_SCHEDULES: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _squared_cosine,
}
"""Noise schedules by name: (start, end, number of timesteps) -> betas."""
