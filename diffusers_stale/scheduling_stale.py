"""StaleScheduler: a forward process that ends exactly in N(0, I), reversed by equal entropy and with stale outputs.

Nearest relative: diffusers' `DPMSolverMultistepScheduler`, which this equals for `stale_weights="multistep"` and a
spacing of diffusers (it equals `DDIMScheduler` for `"none"`). What is different:

1. A terminal signal-to-noise ratio of exactly zero ("Common Diffusion Noise Schedules and Sample Steps are Flawed",
   Lin et al. 2023, arXiv 2305.08891) is taken literally, with no small number in place of zero.
2. `timestep_spacing="entropic"`: each step gains the same information about the clean sample, by the clock of a prior
   that knows no scale ("Entropic Time Schedulers for Generative Diffusion Models", Stancevic et al. 2025).
3. `stale_weights="entropic"`: clean predictions of earlier steps are old but still good. They are combined with the
   weights that serve a prior of simple data of unknown scale best, whose paths are known; see
   `docs/maximum_entropy.md`. A calibration on the network itself takes the place of the prior (`calibrate`).
4. It is the training side's only source of noise mathematics, and knows flow matching in other coordinates.

Everything is written in terms of a noise level (alpha, sigma): `sample = alpha * clean + sigma * noise`. Variance
preserving (`epsilon`, `v_prediction`, `sample`): alpha^2 + sigma^2 = 1. Flow (`flow_prediction`): alpha + sigma = 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor

from diffusers_stale.calibration import CalibrationMixin
from diffusers_stale.calibration_record import Calibration, Entry
from diffusers_stale.entropic_steps import check_clock, equal_steps
from diffusers_stale.noise_levels import (
    BETA_SCHEDULERS,
    BETA_SCHEDULES,
    DiscreteProcess,
    FlowProcess,
    Process,
    clean_of,
    continuous_process,
    cumulative_alphas,
    dynamic_shift,
    dynamic_threshold,
    shift_times,
    stretch_to,
    translated,
)
from diffusers_stale.scheduler_checks import check_betas, check_choice, check_options, check_output, is_whole
from diffusers_stale.stale_weights import STALE_WEIGHTS, multistep_weights, newest_only
from diffusers_stale.training_noise import TrainingNoiseMixin


logger = logging.get_logger(__name__)

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
TIMESTEP_SPACINGS = ("entropic", "trailing", "leading", "linspace")
SHIFT_KINDS = ("exponential", "linear")
TIMESTEP_TYPES = ("discrete", "continuous")

SIGMA_TOLERANCE = 1e-2
"""By so much, relatively, may custom noise-to-signal ratios exceed the process: published ones are rounded."""


class NonFiniteOutputError(FloatingPointError, ValueError):
    """The network has put out NaN or infinity."""


@dataclass
class StaleSchedulerOutput(BaseOutput):
    """Result of one step.

    `prev_sample`: the sample at the next, lower noise level. `pred_original_sample`: the clean sample that the model
    output means. Both have the shape of the sample and the dtype of the model output.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class StaleScheduler(TrainingNoiseMixin, CalibrationMixin, SchedulerMixin, ConfigMixin):
    """Sampling in few steps of equal entropy, and the noise mathematics of training.

    Args:
        num_train_timesteps: number of noise levels of training.
        beta_start, beta_end: ends of the noise schedule, each above 0 and below 1.
        beta_schedule: `linear`, `scaled_linear` (Stable Diffusion's) or `squaredcos_cap_v2`.
        trained_betas: the betas themselves, in place of the three above.
        prediction_type: what the network predicts: `epsilon`, `v_prediction`, `sample`, or `flow_prediction` (noise
            minus clean sample, on the straight line between them; the betas then mean nothing).
        rescale_betas_zero_snr: shift the schedule so that nothing of the clean sample is left at its end.
        timestep_spacing: `entropic` (equal entropy, and for `epsilon` more steps at much noise; timesteps are no whole
            numbers; at most five steps may begin a little below the end of the process), or one of diffusers':
            `trailing`, `leading`, `linspace` (table 2 of arXiv 2305.08891).
        steps_offset: added to the timesteps of `leading`.
        timestep_type: `continuous` for Stable Video Diffusion's timesteps, a quarter of the log of noise to signal,
            between `sigma_min` and `sigma_max`.
        flow_shift: for flows, the factor on the noise-to-signal ratio of all timesteps ("Scaling Rectified Flow
            Transformers", arXiv 2403.03206, equation 23).
        use_flow_sigmas, base_shift, max_shift, base_image_seq_len, max_image_seq_len: read by flow pipelines of
            diffusers, from here.
        use_dynamic_shifting: the shift comes from the pipeline with each run, as `mu`; `time_shift_type` says how.
        shift_terminal: for `trailing` flows, the noise that the last step begins with (LTX's).
        thresholding, dynamic_thresholding_ratio, sample_max_value: Imagen's dynamic thresholding of clean predictions
            (arXiv 2205.11487, section 2.3); for networks in pixel space.
        clip_sample, clip_sample_range: clip clean predictions to [-range, range]; for networks in pixel space.
        stale_weights: how clean predictions of earlier steps count: `entropic` (optimal for simple data of unknown
            scale), `gaussian` (for Gaussian data only), `multistep` (DPM-Solver++ 2M) or `none` (DDIM).
        max_stale: at most so many earlier predictions are kept; None: 4 without, 11 with a calibration.
        guidance_scale: what predictions are guided with where `set_timesteps` is not told: uncalibrated steps and
            weights are made for it. Pipelines of diffusers do not tell; `StaleDiffusionPipeline` does. It
            matters most where steps are few.
        clock: knots of a measured entropic clock, `angles` descending and `times` ascending; None: of the prior.
        calibration: what `calibrate` has found; None: do without.

    Raises:
        ValueError: for an option that is not among those named here, and a calibration entry that does not fit.
    """

    _compatibles = [*BETA_SCHEDULERS, "FlowMatchEulerDiscreteScheduler"]
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
        timestep_type: Literal["discrete", "continuous"] = "discrete",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        flow_shift: float = 1.0,
        use_flow_sigmas: bool = False,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int | None = 256,
        max_image_seq_len: int | None = 4096,
        time_shift_type: Literal["exponential", "linear"] = "exponential",
        shift_terminal: float | None = None,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        stale_weights: Literal["entropic", "gaussian", "multistep", "none"] = "entropic",
        max_stale: int | None = None,
        guidance_scale: float = 1.0,
        clock: dict[str, list[float]] | None = None,
        calibration: dict[str, Any] | None = None,
    ):
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        check_choice("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS)
        check_choice("timestep_type", timestep_type, TIMESTEP_TYPES)
        check_choice("time_shift_type", time_shift_type, SHIFT_KINDS)
        check_choice("stale_weights", stale_weights, tuple(STALE_WEIGHTS))
        check_options(self.config)
        if trained_betas is None:
            check_choice("beta_schedule", beta_schedule, tuple(BETA_SCHEDULES))
            betas = BETA_SCHEDULES[beta_schedule](beta_start, beta_end, num_train_timesteps)
        else:
            betas = np.asarray(trained_betas, dtype=np.float64)
        check_betas(betas, num_train_timesteps)
        signal = cumulative_alphas(betas, rescale_betas_zero_snr)
        if rescale_betas_zero_snr:
            betas = 1.0 - signal / np.concatenate([[1.0], signal[:-1]])
        self.betas = torch.from_numpy(betas).float()
        self.alphas_cumprod = torch.from_numpy(signal).float()
        self.process: Process = DiscreteProcess(signal)
        if self.is_flow:
            self.process = FlowProcess(num_train_timesteps)
        elif timestep_type == "continuous":
            self.process = continuous_process(sigma_min, sigma_max)
        # Not for other schedulers, which know no entropic steps; all else keeps its meaning when they take over.
        self.register_to_config(_use_default_values=["timestep_spacing"] * (timestep_spacing == "entropic"))
        check_clock(clock)
        self.calibration = None if calibration is None else Calibration(calibration, self.process)
        self._calibration_fits = True
        self.clock_shift = flow_shift if self.is_flow else 1.0
        self.guidance_scale, self._told_guidance = guidance_scale, None
        self.init_noise_sigma = 1.0
        self._told_of_terminal_epsilon = False
        self._begin_index: int | None = None
        self._set_levels(self._spaced_timesteps(num_train_timesteps))
        self._entry: Entry | None = None
        self.num_inference_steps: int | None = None

    @classmethod
    def from_config(cls, config: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers; one of its configurations keeps its meaning where ours has other defaults."""
        if isinstance(config, dict) and not cls._is_own(config):
            config = translated(config)
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @classmethod
    def _is_own(cls, config: dict[str, Any]) -> bool:
        """Whether `config` is one of ours: those of schedulers that were never saved do not say their class."""
        if "_class_name" in config:
            return config["_class_name"] == cls.__name__
        return cls._get_init_keys(cls) <= {"self", *config}

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
        """Number of the first step, where a pipeline starts in the middle."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        self._begin_index = begin_index

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # ---- noise levels ------------------------------------------------------------------------------------------

    def noise_levels(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Alpha and sigma, float32, of the shape of `timesteps`: 0 to `num_train_timesteps` - 1, for flows (0,
        `num_train_timesteps`]. Raises `ValueError` outside; between whole timesteps the angle is interpolated."""
        numbers = timesteps.detach().double().cpu().numpy()
        lowest, highest = self.process.lowest, self.process.highest
        # (timesteps are kept in float32)
        slack = 1e-6 * (highest - lowest)
        if not ((numbers >= lowest - slack) & (numbers <= highest + slack)).all():
            raise ValueError(
                f"Timesteps must be between {lowest:g} and {highest:g}, got {numbers.min():g} to {numbers.max():g}; "
                "take those of `set_timesteps` or of `sample_training_timesteps`."
            )
        levels = self.process.levels(np.clip(numbers, lowest, highest))
        return tuple(torch.as_tensor(part, dtype=torch.float32, device=timesteps.device) for part in levels)

    def levels_at(self, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Alphas and sigmas at `angles`, in the scale of the process."""
        return self.process.levels(self.process.timesteps(angles))

    def _spaced_timesteps(self, steps: int) -> np.ndarray:
        """`steps` descending timesteps of training, as `timestep_spacing` says."""
        count = self.config.num_train_timesteps
        if self.config.timestep_spacing == "entropic" or self.config.timestep_type == "continuous":
            return self.process.timesteps(self._entropic_angles(steps))
        if self.is_flow:
            times = shift_times(np.linspace(1.0, 1.0 / steps, steps), self.clock_shift)
            return stretch_to(times, self.config.shift_terminal) * count
        if self.config.timestep_spacing == "trailing":
            return np.round(np.arange(count, 0, -count / steps))[:steps] - 1
        if self.config.timestep_spacing == "leading":
            spaced = np.arange(steps)[::-1] * (count // steps)
            return spaced + min(self.config.steps_offset, count - 1 - spaced[0])
        return np.linspace(0, count - 1, steps).round()[::-1]

    def _entropic_angles(self, steps: int) -> np.ndarray:
        """`steps` angles between which the entropic clock advances alike, from the end of the process on."""
        process, clock = self.process, self.clock_in_force
        if clock is None:
            return self.uncalibrated_angles(steps)
        angles = np.append(np.linspace(process.start, process.end, 4096), 0.0)
        times = np.interp(-angles, -np.asarray(clock["angles"]), np.asarray(clock["times"]))
        return equal_steps(steps, angles, times + 1e-9 * np.arange(len(times)), process.end)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        guidance_scale: float | None = None,
    ) -> None:
        """Chooses the noise levels of sampling and forgets everything about earlier runs.

        Args:
            num_inference_steps: number of steps, 1 to `num_train_timesteps`.
            device: of the public `timesteps`.
            timesteps: the descending timesteps themselves, in place of a number of steps.
            sigmas: descending noise-to-signal ratios, in place of both; for flows, flow times before they are
                shifted. A last 0 may be there or not.
            mu: for `use_dynamic_shifting`, the shift of this run.
            guidance_scale: what predictions of this run are guided with; None: what the configuration says.

        Raises:
            ValueError: unless exactly one of the three is given, and in range; and without a `mu` that is needed.
        """
        if sum(choice is not None for choice in (num_inference_steps, timesteps, sigmas)) != 1:
            raise ValueError(
                "Give one of `num_inference_steps`, `timesteps` and `sigmas`, got several or none; leave out others."
            )
        self.num_inference_steps = self._entry = None  # (what fails from here on leaves nothing to run)
        self._set_shift(mu)
        self._told_guidance = guidance_scale
        self.guidance_scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        check_options({"guidance_scale": self.guidance_scale})
        if num_inference_steps is not None:
            spaced = self._counted_timesteps(num_inference_steps)
        else:
            given = np.asarray(sigmas if timesteps is None else timesteps, dtype=np.float64)
            if timesteps is None and given.ndim == 1 and given.size > 1 and given[-1] == 0.0:
                given = given[:-1]
            if given.ndim != 1 or given.size == 0 or not (np.diff(given) < 0).all():
                name = "sigmas" if timesteps is None else "timesteps"
                raise ValueError(f"`{name}` must descend, got {given.tolist()}; sort them and leave out doubles.")
            spaced = self._timesteps_of_sigmas(given) if timesteps is None else given
            self.noise_levels(torch.from_numpy(spaced))
            if self.process.levels(spaced)[1][-1] == 0.0:
                raise ValueError(f"The last step must begin above no noise, got {given.tolist()}; leave the last out.")
        self._set_levels(spaced)
        self.timesteps = self.timesteps.to(device)
        self.num_inference_steps = len(spaced)
        self._begin_index = None

    def _set_shift(self, mu: float | None) -> None:
        if self.config.use_dynamic_shifting and self.is_flow:
            if mu is None:
                raise ValueError(
                    "`mu` must be given with `use_dynamic_shifting`, got None; flow pipelines compute it."
                )
            self.clock_shift = dynamic_shift(mu, self.config.time_shift_type)

    def _counted_timesteps(self, steps: int) -> np.ndarray:
        most = self.config.num_train_timesteps
        if not is_whole(steps, 1, most):
            raise ValueError(
                f"`num_inference_steps` must be a whole number between 1 and {most}, got {steps}; choose one."
            )
        self._entry = self._entry_for(int(steps))
        return self._spaced_timesteps(int(steps)) if self._entry is None else np.asarray(self._entry.timesteps)

    def _timesteps_of_sigmas(self, sigmas: np.ndarray) -> np.ndarray:
        if self.is_flow:
            times = stretch_to(shift_times(sigmas, self.clock_shift), self.config.shift_terminal)
            return times * self.config.num_train_timesteps
        highest, lowest = np.tan(self.process.start), np.tan(self.process.end)
        if sigmas[0] > highest * (1 + SIGMA_TOLERANCE) or sigmas[-1] < lowest * (1 - SIGMA_TOLERANCE):
            raise ValueError(
                f"`sigmas` must be between {lowest:.4g} and {highest:.4g}, got {sigmas[-1]:.4g} to {sigmas[0]:.4g}; "
                "take noise-to-signal ratios that the network has seen."
            )
        return self.process.timesteps(np.arctan(np.clip(sigmas, lowest, highest)))

    def _set_levels(self, timesteps: np.ndarray) -> None:
        timesteps = timesteps.astype(np.float32).astype(np.float64)  # (as the network sees them)
        alphas, sigmas = self.process.levels(timesteps)
        self._alphas, self._sigmas = np.append(alphas, 1.0), np.append(sigmas, 0.0)
        with np.errstate(divide="ignore"):
            ratios = self._sigmas / self._alphas
        self.sigmas = torch.from_numpy(self._sigmas if self.is_flow else ratios).float()
        """Noise-to-signal ratios (for flows, sigma), one more than `timesteps`; infinite at zero terminal SNR."""
        dtype = torch.float32 if self.is_flow else torch.int64
        whole = (timesteps == np.round(timesteps)).all()
        self.timesteps = torch.from_numpy(timesteps.copy()).to(dtype if whole else torch.float32)
        self._step_index: int | None = None
        self._first_index = 0
        self._weights: Sequence[Sequence[float]] = []
        """Of the steps from `_first_index` on, once the first one is taken."""
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
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> StaleSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """From the noise level at `timestep` to the next one.

        Args:
            model_output: what the network predicts for `sample`; any shape and dtype.
            timestep: one of `timesteps`, in their order.
            sample: of the same shape.
            eta: 0 follows the probability flow; 1 replaces as much noise as the forward process has between the two
                levels, which is ancestral sampling, with the weights of SDE-DPM-Solver++ 2M; between them in between.
                The distribution at each level is the same for all.
            generator: of the noise that `eta` asks for.
            return_dict: whether to return a `StaleSchedulerOutput` instead of a tuple of its fields.

        Raises:
            ValueError: before `set_timesteps`, beyond the last step, for a first timestep that is not in `timesteps`,
                for shapes that differ, and for an `eta` that is not in [0, 1].
            NonFiniteOutputError: a `ValueError` and a `FloatingPointError`, for NaN or infinity, naming the step.
        """
        if self.num_inference_steps is None:
            raise ValueError("`set_timesteps` must be called before `step`; choose a number of steps.")
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"`eta` must be between 0 and 1, got {eta}; 0 adds no noise.")
        if self._step_index is None:
            self._begin(self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index)
        index = self._step_index
        if index >= len(self.timesteps):
            raise ValueError(f"All {len(self.timesteps)} steps have been taken; call `set_timesteps` before another.")
        check_output(model_output, sample)
        output, current = model_output.float(), sample.float()
        clean = self.clean_prediction(output, current, self._alphas[index], self._sigmas[index])
        # (a copy: neither the network nor whoever looks at `pred_original_sample` is to change what is stale)
        stale = [clean.clone(), *self._clean][: self._kept]
        following = self._advance(stale, current, index, eta, generator)
        if not torch.isfinite(output.sum() + following.sum()):
            raise NonFiniteOutputError(
                f"Output and sample must be finite, got NaN or infinity after step {index + 1} of "
                f"{len(self.timesteps)} (timestep {float(timestep):g}); use float32 or bfloat16, or lower guidance."
            )
        self._step_index = index + 1
        self._clean = stale if self._step_index < len(self.timesteps) else []  # (the decoder needs the memory)
        following, clean = following.to(model_output.dtype), clean.to(model_output.dtype)
        return StaleSchedulerOutput(following, clean) if return_dict else (following, clean)

    def _advance(
        self, predictions: list[torch.Tensor], current: torch.Tensor, index: int, eta: float,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> torch.Tensor:  # fmt: skip
        """The sample at the next noise level (arXiv 2211.01095, equation 9, with exp(-h) written out as a ratio of
        noise levels: finite where h is not); exact where `predictions`, clean ones, the newest first, are the same."""
        number = index - self._first_index
        weights, sample_weight = self._weights[number], self._sample_weights[number]
        alpha, sigma, following_sigma = self._alphas[index], self._sigmas[index], self._sigmas[index + 1]
        added = 0.0
        if eta > 0.0:
            weights, sample_weight = self._stochastic_weights[number], 0.0
            # What ancestral sampling adds (arXiv 2010.02502, equation 16), for any scale of (alpha, sigma).
            kept_signal = alpha * following_sigma / (self._alphas[index + 1] * sigma)
            added = eta * following_sigma * np.sqrt(max(1.0 - kept_signal**2, 0.0))
        shrink = np.sqrt(following_sigma**2 - added**2) / sigma
        gain = self._alphas[index + 1] - alpha * shrink
        following = current * float(shrink + sample_weight)
        for weight, stale in zip(weights, predictions, strict=False):
            following.add_(stale, alpha=float(gain * weight))
        if added > 0.0:
            noise = randn_tensor(current.shape, generator=generator, device=current.device, dtype=current.dtype)
            following.add_(noise, alpha=float(added))
        return following

    def _begin(self, index: int) -> None:
        """Makes `index` the first step of a run. Nothing is stale yet, so weights are those of a run from there."""
        if not is_whole(index, 0, len(self.timesteps) - 1):
            raise ValueError(
                f"`begin_index` must be between 0 and {len(self.timesteps) - 1}, got {index}; set another."
            )
        self._weights, self._sample_weights = self.weights_in_force(index)
        single = self.config.stale_weights == "none" or self.config.max_stale == 0
        stochastic = newest_only if single else multistep_weights
        self._stochastic_weights = stochastic(self._alphas[index:], self._sigmas[index:])
        self._kept = max(len(weights) for weights in (*self._weights, *self._stochastic_weights))
        self._step_index = self._first_index = index

    def clean_prediction(
        self, model_output: torch.Tensor, sample: torch.Tensor, alpha: float, sigma: float
    ) -> torch.Tensor:
        """The clean sample that a `model_output` for `sample` at the noise level (alpha, sigma) means, clipped or
        thresholded as the configuration says."""
        if alpha == 0.0 and self.predicts_noise and not self._told_of_terminal_epsilon:
            logger.warning(
                "At zero terminal signal an epsilon prediction says nothing about the clean sample: its mean, 0, "
                "is taken. Train with v_prediction, or load with rescale_betas_zero_snr=False."
            )
            self._told_of_terminal_epsilon = True
        clean = clean_of(self.config.prediction_type, model_output, sample, alpha, sigma)
        if self.config.thresholding:
            return dynamic_threshold(clean, self.config.dynamic_thresholding_ratio, self.config.sample_max_value)
        if self.config.clip_sample:
            return clean.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return clean
