"""StaleScheduler: a forward process that ends exactly in N(0, I), reversed by equal entropy and with stale outputs.

Nearest relative: diffusers' `DPMSolverMultistepScheduler`, which this equals for `stale_weights="multistep"` and a
spacing of diffusers (it equals `DDIMScheduler` for `"none"`). What is different:

1. A terminal signal-to-noise ratio of exactly zero ("Common Diffusion Noise Schedules and Sample Steps are Flawed",
   Lin et al. 2023, arXiv 2305.08891) is taken literally, with no small number in place of zero.
2. `timestep_spacing="entropic"`: each step gains the same information about the clean sample, by the clock of a prior
   that knows no scale ("Entropic Time Schedulers for Generative Diffusion Models", Stancevic et al. 2025).
3. `stale_weights="gaussian"`: clean predictions of earlier steps are old but still good. They are combined with the
   weights that serve Gaussian data of unknown scale best, whose paths are known; see `docs/maximum_entropy.md`.
4. It is the training side's only source of noise mathematics, and knows flow matching in other coordinates.

Everything is written in terms of a noise level (alpha, sigma): `sample = alpha * clean + sigma * noise`. Variance
preserving (`epsilon`, `v_prediction`, `sample`): alpha^2 + sigma^2 = 1. Flow (`flow_prediction`): alpha + sigma = 1.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput, logging

from diffusers_stale.entropic_steps import STALE_WEIGHTS, entropic_clock


logger = logging.get_logger(__name__)

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
TIMESTEP_SPACINGS = ("entropic", "trailing", "leading", "linspace")

FOREIGN_DEFAULTS = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
"""What diffusers' schedulers mean where their configuration does not say."""

CLOCK_POINTS = 4096
"""Quarter of the number of angles at which the clock is read."""

MANY_STEPS = 12
"""Up to so many steps two stale outputs are used, three beyond."""

MAX_BETA = 0.999
"""Of `squaredcos_cap_v2`, as in Nichol and Dhariwal 2021, arXiv 2102.09672."""

MIN_SNR_GAMMA = 5.0
"""Hang et al. 2023, arXiv 2303.09556."""


@dataclass
class StaleSchedulerOutput(BaseOutput):
    """Result of one step.

    `prev_sample`: the sample at the next, lower noise level. `pred_original_sample`: the clean sample that the model
    output means. Both have the shape of the sample and the dtype of the model output.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class StaleScheduler(SchedulerMixin, ConfigMixin):
    """Sampling in few steps of equal entropy, and the noise mathematics of training.

    Args:
        num_train_timesteps: number of noise levels of training.
        beta_start, beta_end: ends of the noise schedule, each above 0 and below 1.
        beta_schedule: `linear`, `scaled_linear` (Stable Diffusion's) or `squaredcos_cap_v2`.
        trained_betas: the betas themselves, in place of the three above.
        prediction_type: what the network predicts: `epsilon`, `v_prediction`, `sample`, or `flow_prediction` (noise
            minus clean sample, on the straight line between them; the betas then mean nothing).
        rescale_betas_zero_snr: shift the schedule so that nothing of the clean sample is left at its end.
        timestep_spacing: `entropic` (equal entropy; timesteps are no whole numbers), or one of diffusers': `trailing`,
            `leading`, `linspace` (table 2 of arXiv 2305.08891).
        steps_offset: added to the timesteps of `leading`.
        flow_shift: for flows, the factor on the noise-to-signal ratio of all timesteps ("Scaling Rectified Flow
            Transformers", arXiv 2403.03206, equation 23).
        stale_weights: how clean predictions of earlier steps count: `gaussian` (optimal for Gaussian data of unknown
            scale), `multistep` (DPM-Solver++ 2M) or `none` (DDIM).
        max_stale: at most so many earlier predictions are kept for `gaussian`; None: 2 for up to 12 steps, else 3.

    Raises:
        ValueError: for an option that is not among those named here.
    """

    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers] + ["FlowMatchEulerDiscreteScheduler"]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "scaled_linear",
        trained_betas: list[float] | None = None,
        prediction_type: PredictionType = "v_prediction",
        rescale_betas_zero_snr: bool = True,
        timestep_spacing: Literal["entropic", "trailing", "leading", "linspace"] = "entropic",
        steps_offset: int = 0,
        flow_shift: float = 1.0,
        stale_weights: Literal["gaussian", "multistep", "none"] = "gaussian",
        max_stale: int | None = None,
    ):
        _check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        _check_choice("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS)
        _check_choice("stale_weights", stale_weights, tuple(STALE_WEIGHTS))
        if max_stale is not None and max_stale < 0:
            raise ValueError(f"`max_stale` must be 0 or more, got {max_stale}; None chooses by the number of steps.")
        if trained_betas is None:
            _check_choice("beta_schedule", beta_schedule, tuple(BETA_SCHEDULES))
            betas = BETA_SCHEDULES[beta_schedule](beta_start, beta_end, num_train_timesteps)
        else:
            betas = np.asarray(trained_betas, dtype=np.float64)
        if betas.shape != (num_train_timesteps,) or not ((betas > 0) & (betas <= 1)).all():
            raise ValueError(
                f"Betas must be {num_train_timesteps} numbers above 0 and at most 1, got {betas.size} between "
                f"{betas.min()} and {betas.max()}; mend `trained_betas`, `beta_start` or `beta_end`."
            )
        if not flow_shift > 0:
            raise ValueError(f"`flow_shift` must be greater than 0, got {flow_shift}; 1 shifts nothing.")
        signal = np.cumprod(1.0 - betas)
        if rescale_betas_zero_snr:
            signal = _without_terminal_signal(signal)
            betas = 1.0 - signal / np.concatenate([[1.0], signal[:-1]])
        self.betas = torch.from_numpy(betas).float()
        self.alphas_cumprod = torch.from_numpy(signal).float()
        # alpha = cos(angle), sigma = sin(angle): exact at both ends, and finite where log-SNR is not.
        self._angles = np.arctan2(np.sqrt(1.0 - signal), np.sqrt(signal))
        self.init_noise_sigma = 1.0
        self._told_of_terminal_epsilon = False
        self._begin_index: int | None = None
        self._set_levels(self._spaced_timesteps(num_train_timesteps))
        self.num_inference_steps: int | None = None

    @classmethod
    def from_config(cls, config: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers; one of its configurations keeps its meaning where ours has other defaults."""
        if isinstance(config, dict) and not cls._is_own(config):
            config = cls._translated(config)
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def _is_own(cls, config: dict[str, Any]) -> bool:
        """Whether `config` is one of ours: those of schedulers that were never saved do not say their class."""
        if "_class_name" in config:
            return config["_class_name"] == cls.__name__
        return cls._get_init_keys(cls) <= {"self", *config}

    @classmethod
    def _translated(cls, config: dict[str, Any]) -> dict[str, Any]:
        """A foreign `config` with all that it leaves unsaid, or says by other names; steps are ours to space."""
        name = str(config.get("_class_name", ""))
        translated = FOREIGN_DEFAULTS | {key: value for key, value in config.items() if key != "_use_default_values"}
        if name.startswith("FlowMatch") or {"shift", "base_shift"} <= config.keys():
            translated |= {"prediction_type": "flow_prediction", "flow_shift": config.get("shift", 1.0)}
        translated.pop("timestep_spacing", None)
        return translated

    @property
    def is_flow(self) -> bool:
        """Whether noise levels are those of flow matching."""
        return self.config.prediction_type == "flow_prediction"

    @property
    def step_index(self) -> int | None:
        """Number of the next step; `None` before the first one."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Number of the first step, where a pipeline starts in the middle; set by `set_begin_index`."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        self._begin_index = begin_index

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # ---- noise levels ------------------------------------------------------------------------------------------

    def noise_levels(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Alpha and sigma, float32, of the shape of `timesteps`: 0 to `num_train_timesteps` - 1, for flows (0,
        `num_train_timesteps`]. Raises `ValueError` outside; between whole timesteps the angle is interpolated."""
        count = self.config.num_train_timesteps
        numbers = timesteps.detach().double().cpu().numpy()
        lowest, highest = (0.0, float(count)) if self.is_flow else (0.0, count - 1.0)
        if not ((numbers >= lowest) & (numbers <= highest)).all():
            raise ValueError(
                f"Timesteps must be between {lowest:g} and {highest:g}, got {numbers.min():g} to {numbers.max():g}; "
                "take those of `set_timesteps` or of `sample_training_timesteps`."
            )
        alphas, sigmas = self._levels(numbers)
        return tuple(torch.as_tensor(part, dtype=torch.float32, device=timesteps.device) for part in (alphas, sigmas))

    def _levels(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.is_flow:
            sigmas = np.asarray(timesteps, dtype=np.float64) / self.config.num_train_timesteps
            return 1.0 - sigmas, sigmas
        angles = np.interp(timesteps, np.arange(len(self._angles)), self._angles)
        alphas = np.cos(angles)
        # The cosine of a rounded right angle is 6e-17; the end of the process is exactly noise.
        return np.where(angles >= np.pi / 2, 0.0, alphas), np.sin(angles)

    def _spaced_timesteps(self, steps: int) -> np.ndarray:
        """`steps` descending timesteps of training, as `timestep_spacing` says."""
        count = self.config.num_train_timesteps
        if self.config.timestep_spacing == "entropic":
            return self._entropic_timesteps(steps)
        if self.is_flow:
            times = np.linspace(1.0, 1.0 / steps, steps)
            shift = self.config.flow_shift
            return shift * times / (1.0 + (shift - 1.0) * times) * count
        if self.config.timestep_spacing == "trailing":
            return np.round(np.arange(count, 0, -count / steps))[:steps] - 1
        if self.config.timestep_spacing == "leading":
            spaced = np.arange(steps)[::-1] * (count // steps) + self.config.steps_offset
            return np.minimum(spaced, count - 1)
        return np.linspace(0, count - 1, steps).round()[::-1]

    def _entropic_timesteps(self, steps: int) -> np.ndarray:
        """`steps` timesteps between which the entropic clock advances alike, from the end of the process on."""
        start, end = (np.pi / 2, 0.0) if self.is_flow else (self._angles[-1], self._angles[0])
        shift = self.config.flow_shift if self.is_flow else 1.0
        angles = np.linspace(start, 0.0, 4 * CLOCK_POINTS)
        times = entropic_clock(angles, shift)
        last = min(times[0] + (1.0 - times[0]) * (steps - 1) / steps, float(np.interp(-end, -angles, times)))
        chosen = np.interp(np.linspace(times[0], last, steps), times, angles)
        chosen[0] = start
        if self.is_flow:
            # In the ratio of noise to signal s, flow time is s / (1 + s).
            return np.sin(chosen) / (np.sin(chosen) + np.cos(chosen)) * self.config.num_train_timesteps
        return np.interp(chosen, self._angles, np.arange(len(self._angles)))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | list[float] | None = None,
    ) -> None:
        """Chooses the noise levels of sampling and forgets everything about earlier runs.

        Args:
            num_inference_steps: number of steps, 1 to `num_train_timesteps`.
            device: of the public `timesteps`.
            timesteps: the descending timesteps themselves, in place of a number of steps.

        Raises:
            ValueError: unless exactly one of the two is given, and in range.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("Give either `num_inference_steps` or `timesteps`, got both or neither.")
        if timesteps is None:
            most = self.config.num_train_timesteps
            if isinstance(num_inference_steps, bool) or not 1 <= num_inference_steps <= most:
                raise ValueError(
                    f"`num_inference_steps` must be between 1 and {most}, got {num_inference_steps}; take fewer steps."
                )
            spaced = self._spaced_timesteps(int(num_inference_steps))
        else:
            spaced = np.asarray(timesteps, dtype=np.float64)
            if spaced.ndim != 1 or spaced.size == 0 or not (np.diff(spaced) < 0).all():
                raise ValueError(f"`timesteps` must descend, got {timesteps}; sort them and leave out doubles.")
            self.noise_levels(torch.from_numpy(spaced))
        self._set_levels(spaced)
        self.timesteps = self.timesteps.to(device)
        self.num_inference_steps = len(spaced)
        self._begin_index = None

    def _set_levels(self, timesteps: np.ndarray) -> None:
        alphas, sigmas = self._levels(timesteps)
        self._alphas, self._sigmas = np.append(alphas, 1.0), np.append(sigmas, 0.0)
        with np.errstate(divide="ignore"):
            ratios = self._sigmas / self._alphas
        self.sigmas = torch.from_numpy(self._sigmas if self.is_flow else ratios).float()
        """Noise-to-signal ratios (for flows, sigma), one more than `timesteps`; infinite at zero terminal SNR."""
        dtype = torch.float32 if self.is_flow else torch.int64
        whole = (timesteps == np.round(timesteps)).all()
        self.timesteps = torch.from_numpy(timesteps.copy()).to(dtype if whole else torch.float32)
        self._step_index: int | None = None
        self._weights: list[np.ndarray] = []
        """Of the steps that are left, once the first one is taken."""
        self._clean: list[torch.Tensor] = []
        """Clean predictions, the newest first."""

    # ---- sampling ----------------------------------------------------------------------------------------------

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | float | None = None) -> torch.Tensor:
        """`sample` as it is: the network sees what `step` returns."""
        return sample

    def index_for_timestep(self, timestep: torch.Tensor | float) -> int:
        """Number of the step at `timestep`; raises `ValueError` if there is none."""
        found = (self.timesteps.cpu() == torch.as_tensor(timestep).cpu()).nonzero()
        if len(found) == 0:
            raise ValueError(
                f"`timestep` must be one of `scheduler.timesteps`, got {float(timestep):g}; call `set_timesteps` "
                "first and iterate over `scheduler.timesteps`."
            )
        return int(found[0])

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> StaleSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """From the noise level at `timestep` to the next one.

        Args:
            model_output: what the network predicts for `sample`; any shape and dtype.
            timestep: one of `timesteps`, in their order.
            sample: of the same shape.
            return_dict: whether to return a `StaleSchedulerOutput` instead of a tuple of its fields.

        Raises:
            ValueError: before `set_timesteps`, beyond the last step, and for a timestep that is not in `timesteps`.
        """
        if self.num_inference_steps is None:
            raise ValueError("`set_timesteps` must be called before `step`; choose a number of steps.")
        if self._step_index is None:
            self._begin(self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index)
        index = self._step_index
        if index >= len(self.timesteps):
            raise ValueError(
                f"All {len(self.timesteps)} steps have been taken; call `set_timesteps` before the next run."
            )
        current = sample.float()
        alpha, sigma = self._alphas[index], self._sigmas[index]
        clean = self.clean_prediction(model_output.float(), current, alpha, sigma)
        next_alpha, next_sigma = self._alphas[index + 1], self._sigmas[index + 1]
        # Exact for a clean prediction that stays as it is (arXiv 2211.01095, equation 9, with exp(-h) written out as a
        # ratio of noise levels: finite where h is not).
        weights = self._weights.pop(0)
        self._clean = [clean, *self._clean][: len(weights)]
        shrink = next_sigma / sigma
        combined = sum(float(weight) * stale for weight, stale in zip(weights, self._clean, strict=True))
        following = shrink * current + (next_alpha - alpha * shrink) * combined
        self._step_index = index + 1
        following, clean = following.to(model_output.dtype), clean.to(model_output.dtype)
        return StaleSchedulerOutput(following, clean) if return_dict else (following, clean)

    def _begin(self, index: int) -> None:
        """Makes `index` the first step of a run. Nothing is stale yet, so weights are those of a run from there."""
        steps = len(self.timesteps) - index
        most = self.config.max_stale
        most = (2 if steps <= MANY_STEPS else 3) if most is None else most
        self._weights = STALE_WEIGHTS[self.config.stale_weights](self._alphas[index:], self._sigmas[index:], most)
        self._step_index = index

    def clean_prediction(
        self, model_output: torch.Tensor, sample: torch.Tensor, alpha: float, sigma: float
    ) -> torch.Tensor:
        """The clean sample that a `model_output` for `sample` at the noise level (alpha, sigma) means."""
        kind = self.config.prediction_type
        if kind == "sample":
            return model_output
        if kind == "v_prediction":
            return alpha * sample - sigma * model_output
        if kind == "flow_prediction":
            return sample - sigma * model_output
        if alpha == 0.0:
            if not self._told_of_terminal_epsilon:
                logger.warning(
                    "At zero terminal signal an epsilon prediction says nothing about the clean sample: its mean, 0, "
                    "is taken. Train with v_prediction, or load with rescale_betas_zero_snr=False."
                )
                self._told_of_terminal_epsilon = True
            return torch.zeros_like(sample)
        return (sample - sigma * model_output) / alpha

    # ---- training ----------------------------------------------------------------------------------------------

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`original_samples`, of any shape `(batch, ...)`, with `noise` at `timesteps` `(batch,)`; in their dtype."""
        alphas, sigmas = self._levels_like(original_samples, timesteps)
        noisy = alphas * original_samples.float() + sigmas * noise.float()
        return noisy.to(original_samples.dtype)

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

    def sample_training_timesteps(self, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """`count` random timesteps, uniform and stratified: each lies in another of `count` equal parts of the process
        (Kingma et al. 2021, arXiv 2107.00630, appendix I.1), in random order. Shape `(count,)`, on the CPU."""
        offsets = torch.rand(count, generator=generator, dtype=torch.float64)
        parts = torch.randperm(count, generator=generator)
        times = (parts + offsets) / count
        total = self.config.num_train_timesteps
        if not self.is_flow:
            return (times * total).floor().long().clamp_max(total - 1)
        shift = self.config.flow_shift
        times = 1.0 - times
        return (shift * times / (1.0 + (shift - 1.0) * times) * total).float()

    def loss_weights(
        self, timesteps: torch.Tensor, weighting: Literal["uniform", "min_snr"] = "uniform"
    ) -> torch.Tensor:
        """Weights of the squared error of `prediction_type` at `timesteps`, of their shape.

        `min_snr` weighs the error of the clean sample by min(SNR, 5) (arXiv 2303.09556, section 3.4), whatever the
        network predicts.
        """
        _check_choice("weighting", weighting, ("uniform", "min_snr"))
        alphas, sigmas = self.noise_levels(timesteps)
        if weighting == "uniform":
            return torch.ones_like(alphas)
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

    def _is_epsilon(self) -> bool:
        return self.config.prediction_type == "epsilon"

    def _levels_like(self, samples: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise levels at `timesteps`, shaped so that they broadcast over `samples`."""
        levels = self.noise_levels(timesteps.reshape(-1))
        return tuple(level.to(samples.device).reshape(-1, *[1] * (samples.ndim - 1)) for level in levels)


def _without_terminal_signal(signal: np.ndarray) -> np.ndarray:
    """Cumulative alphas whose last is exactly 0 and whose first is unchanged (arXiv 2305.08891, algorithm 1)."""
    root = np.sqrt(signal)
    rescaled = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return rescaled**2


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}; choose one of them."
        )


def _linear(start: float, end: float, count: int) -> np.ndarray:
    return np.linspace(start, end, count)


def _scaled_linear(start: float, end: float, count: int) -> np.ndarray:
    return np.linspace(start**0.5, end**0.5, count) ** 2


def _squared_cosine(start: float, end: float, count: int) -> np.ndarray:
    times = np.arange(count + 1) / count
    remaining = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - remaining[1:] / remaining[:-1], MAX_BETA)


BETA_SCHEDULES = {"linear": _linear, "scaled_linear": _scaled_linear, "squaredcos_cap_v2": _squared_cosine}
"""Noise schedules by name: (start, end, number of timesteps) -> betas."""
