"""Calibration of a scheduler on its network: steps and stale weights that retrace a fine teacher trajectory.

A calibration holds, for each number of steps that was asked for, timesteps and weights, and what they err on noise
they were not fitted on. It is plain JSON in `scheduler_config.json`. It knows the scheduler by its methods
only.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from tqdm.auto import tqdm

from diffusers_stale.calibration_record import Calibration, Entry, check_provenance
from diffusers_stale.entropic_steps import entropic_angles, equal_steps, guidance_stretch, step_clock
from diffusers_stale.robust_fit import FOLDS, robust_fit
from diffusers_stale.scheduler_checks import is_whole
from diffusers_stale.stale_weights import STALE_WEIGHTS


if TYPE_CHECKING:
    from diffusers_stale.scheduling_stale import StaleScheduler

logger = logging.get_logger(__name__)

Model = Callable[..., torch.Tensor]
"""(sample, timestep) or (sample, timestep, conditions) -> model output, guidance included; `sample` is
`(batch, *shape)`, `conditions` those of its noises."""

BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the distance that clean predictions travel, the rest being `step_clock`; held-out noise chooses."""

MOST_FITTED_STALE = 11
"""So many clean predictions besides the newest are fitted, where nothing else is asked for: older ones gained nothing
that was measured, and each costs memory and a pass over it in every step."""

TEACHER_STALE = 2
"""Stale outputs of the teacher: its many steps need no more, and more would carry on what is rough in a network."""

SAMPLE_SCALE = 0.3
"""Of the sample among what is combined: below 1, so that the ridge prefers clean predictions."""

NEIGHBOURS = 6
"""Teacher states between which a state is interpolated."""


@dataclass(frozen=True)
class Plan:
    """Noise levels of a run and weights of its steps. `timesteps`, `angles` `(steps,)`; `alphas`, `sigmas`
    `(steps + 1,)`, ending at (1, 0); `weights` of clean predictions, the newest first."""

    timesteps: np.ndarray
    alphas: np.ndarray
    sigmas: np.ndarray
    weights: list[np.ndarray]

    @property
    def angles(self) -> np.ndarray:
        return np.arctan2(self.sigmas[:-1], self.alphas[:-1])


def cost(num_inference_steps: Sequence[int], noises: int, held_out: int, teacher_steps: int) -> int:
    """Evaluations of the network, counted a sample each, that `calibrate` takes."""
    total = sum(num_inference_steps)
    return (noises + held_out) * (teacher_steps + len(BLENDS) * total) + held_out * total


def _calibrate(
    scheduler: "StaleScheduler", model: Model, shape: Sequence[int], num_inference_steps: Sequence[int],
    generator: torch.Generator | None, noises: int, held_out: int, teacher_steps: int, batch_size: int,
    device: str | torch.device, progress_bar: bool, conditions: torch.Tensor | None,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """What `CalibrationMixin.calibrate` stores: `clock` and `calibration` without provenance. See there."""
    num_inference_steps = _checked_steps(num_inference_steps, scheduler.config.num_train_timesteps)
    _check_counts(num_inference_steps, noises, held_out, teacher_steps, scheduler.config.num_train_timesteps)
    sizes = list(shape) if isinstance(shape, Iterable) else []
    if not sizes or not all(is_whole(size, 1) for size in [*sizes, batch_size]):
        raise ValueError(
            f"`shape` and `batch_size` must be numbers of 1 or more, got {shape} and {batch_size}; the shape is that "
            "of one sample, without batch."
        )
    if conditions is not None and len(conditions) != noises + held_out:
        raise ValueError(
            f"`conditions` must be {noises + held_out}, one for each noise, got {len(conditions)}; repeat some."
        )
    total = cost(num_inference_steps, noises, held_out, teacher_steps)
    logger.info(f"Calibration takes {total} evaluations of the network, a sample each.")
    with tqdm(total=total, desc="calibrating", disable=not progress_bar) as bar:
        network = _Batched(model, batch_size, bar, conditions)
        noise = randn_tensor((noises + held_out, *shape), generator=generator, device=torch.device(device))
        teacher = _Teacher(scheduler, network, noise, teacher_steps)
        entries, scores = {}, np.zeros(len(BLENDS))
        for steps in num_inference_steps:
            students = [_fit(scheduler, network, teacher, teacher.angles_of(steps, share), noises) for share in BLENDS]
            students.append(_uncalibrated(scheduler, network, teacher, steps, noises))
            ends = [found[-held_out:] for _, _, _, found in students]
            errors = [teacher.error(each, slice(noises, None)) for each in ends]
            misses = [teacher.miss(each, slice(noises, None)) for each in ends]
            # (the uncalibrated run is the last, and no entry may err more than it)
            best = int(np.argmin(np.where(np.array(errors) <= errors[-1], misses, np.inf)))
            scores += np.log(errors[:-1])
            timesteps, weights, sample_weights, _ = students[best]
            entries[str(steps)] = {
                "timesteps": timesteps,
                "weights": weights,
                "sample_weights": sample_weights,
                "error": errors[best],
                "uncalibrated_error": errors[-1],
            }
    return teacher.clock(BLENDS[int(np.argmin(scores))]), {"entries": entries}


def _checked_steps(steps: Sequence[int], most: int) -> list[int]:
    """`steps` as whole numbers, each once."""
    counts = list(steps) if isinstance(steps, Iterable) else []
    if not counts or not all(is_whole(count, 1, most) for count in counts):
        raise ValueError(
            f"`num_inference_steps` must be a list of numbers from 1 to {most}, got {counts or steps}; name some."
        )
    return list(dict.fromkeys(int(count) for count in counts))


def _check_counts(steps: list[int], noises: int, held_out: int, teacher_steps: int, most: int) -> None:
    if not is_whole(noises, FOLDS) or not is_whole(held_out, 1):
        raise ValueError(f"`noises` must be at least {FOLDS} and `held_out` 1, got {noises}, {held_out}; take more.")
    least = max(2 * NEIGHBOURS, *(2 * count for count in steps))
    if not is_whole(teacher_steps, least, most):
        raise ValueError(
            f"`teacher_steps` must be between {least}, twice the most steps, and {most}, got {teacher_steps}; a "
            "teacher has to know better."
        )


class _Batched:
    """The network on no more samples at a time than `batch_size`, counting them on a progress bar."""

    def __init__(self, model: Model, batch_size: int, bar: tqdm, conditions: torch.Tensor | None):
        self.model, self.batch_size, self.bar, self.conditions = model, batch_size, bar, conditions

    @torch.no_grad()
    def __call__(self, sample: torch.Tensor, timestep: float) -> torch.Tensor:
        """For the last `len(sample)` noises: all of them, or those held out."""
        outputs = []
        time = torch.tensor(timestep, dtype=torch.float32, device=sample.device)
        told = None if self.conditions is None else self.conditions[len(self.conditions) - len(sample) :]
        for first in range(0, len(sample), self.batch_size):
            which = slice(first, first + self.batch_size)
            more = () if told is None else (told[which],)
            output = self.model(part := sample[which], time, *more)
            if not isinstance(output, torch.Tensor) or output.shape != part.shape:
                got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
                raise ValueError(
                    f"`model` must return a tensor of the shape of its sample, {tuple(part.shape)}, got {got}; wrap "
                    "it in a function that does: networks of diffusers return theirs in `.sample`."
                )
            outputs.append(output.float())
            self.bar.update(len(outputs[-1]))
        output = torch.cat(outputs)
        if not torch.isfinite(output.sum()):
            raise ValueError(f"The network's output at timestep {timestep:g} is not finite; calibrate in float32.")
        return output


class _Teacher:
    """The uncalibrated scheduler's trajectory in many steps, readable at every noise level."""

    def __init__(self, scheduler: "StaleScheduler", network: _Batched, noise: torch.Tensor, steps: int):
        self.scheduler, self.noise = scheduler, noise
        plan = scheduler.uncalibrated_plan(steps, TEACHER_STALE)
        self.angles, self.states, moved, previous = np.append(plan.angles, 0.0), [noise], [0.0], None
        for state, clean in _walk(scheduler, network, noise, plan):
            self.states.append(state)
            if previous is not None:
                moved.append(float((clean - previous).square().mean().sqrt()))
            previous = clean
        self.end = self.states[-1]
        self.deviation = float((self.end - self.end.mean(dim=0, keepdim=True)).square().mean().sqrt())
        self.deviation = max(self.deviation, 1e-8)
        self.times = scheduler.step_times(self.angles)
        # The last step moves no prediction: distance stands still over it.
        travelled = np.append(np.cumsum(moved), sum(moved))
        self.travelled = travelled / max(travelled[-1], 1e-30)
        self.scale = float(self.end.square().mean())

    def blended(self, share: float) -> np.ndarray:
        """Strictly increasing times at `angles`, from 0 to 1."""
        times = (1.0 - share) * self.times + share * self.travelled
        if share == 1.0:
            times = times + 1e-3 * self.times
        return times / times[-1]

    def angles_of(self, steps: int, share: float) -> np.ndarray:
        return equal_steps(steps, self.angles, self.blended(share), self.scheduler.process.end)

    def clock(self, share: float) -> dict[str, list[float]]:
        """Knots of the clock of a blend, as the scheduler's configuration has them."""
        times = self.blended(share)
        chosen = np.unique(np.linspace(0, len(times) - 1, 65).astype(int))
        return {
            "angles": [float(angle) for angle in self.angles[chosen]],
            "times": [float(time) for time in times[chosen]],
        }

    def state(self, angle: float) -> torch.Tensor:
        """The trajectory's state at `angle`: Lagrange's interpolation of scaled states in time."""
        if angle == 0.0:
            return self.end
        time = self.scheduler.step_times(np.array([angle]))[0]
        first = int(np.clip(np.searchsorted(self.times, time) - NEIGHBOURS // 2, 0, len(self.times) - NEIGHBOURS))
        knots = range(first, first + NEIGHBOURS)
        total = torch.zeros_like(self.end)
        for knot in knots:
            others = [other for other in knots if other != knot]
            factor = np.prod([(time - self.times[other]) / (self.times[knot] - self.times[other]) for other in others])
            total += float(factor) / self._spread(self.angles[knot]) * self.states[knot]
        return total * self._spread(angle)

    def _spread(self, angle: float) -> float:
        """Deviation of samples at `angle`, in the scale of the process."""
        alpha, sigma = self.scheduler.levels_at(np.array([angle]))
        return math.sqrt(float(alpha[0]) ** 2 * self.scale + float(sigma[0]) ** 2)

    def miss(self, ends: torch.Tensor, which: slice) -> float:
        """As `error`, by the mean of square roots: what one noise at a watershed does must not decide for all."""
        return float((ends - self.end[which]).square().flatten(1).mean(1).pow(0.25).mean()) ** 2 / self.deviation

    def error(self, ends: torch.Tensor, which: slice) -> float:
        return max(float((ends - self.end[which]).square().mean().sqrt()) / self.deviation, 1e-9)


def _walk(scheduler: "StaleScheduler", network: _Batched, sample: torch.Tensor, plan: Any) -> Any:
    """Yields the state after each step of `plan`, and the clean prediction before it."""
    stale: list[torch.Tensor] = []
    for index, timestep in enumerate(plan.timesteps):
        alpha, sigma = plan.alphas[index], plan.sigmas[index]
        clean = scheduler.clean_prediction(network(sample, timestep), sample, alpha, sigma)
        stale = [clean, *stale][: max(len(weights) for weights in plan.weights)]
        shrink = plan.sigmas[index + 1] / sigma
        gain = plan.alphas[index + 1] - alpha * shrink
        pairs = zip(plan.weights[index], stale, strict=False)
        sample = shrink * sample + gain * sum(float(weight) * past for weight, past in pairs)
        yield sample, clean


def _uncalibrated(
    scheduler: "StaleScheduler", network: _Batched, teacher: _Teacher, steps: int, noises: int
) -> tuple[list[float], list[list[float]], list[float], torch.Tensor]:
    """What `_fit` returns, for steps and weights without a calibration, but ends of held-out noise only."""
    plan = scheduler.uncalibrated_plan(steps)
    states = [state for state, _ in _walk(scheduler, network, teacher.noise[noises:], plan)]
    weights = [[float(weight) for weight in part] for part in plan.weights]
    return [float(time) for time in plan.timesteps], weights, [0.0] * steps, states[-1]


def _fit(
    scheduler: "StaleScheduler", network: _Batched, teacher: _Teacher, angles: np.ndarray, noises: int
) -> tuple[list[float], list[list[float]], list[float], torch.Tensor]:
    """Timesteps, weights, sample weights, and ends of the student's trajectories; fitted on the first `noises`."""
    plan = scheduler.plan_at(angles)
    sample, stale, weights, sample_weights = teacher.noise, [], [], []
    most = 1 + (MOST_FITTED_STALE if scheduler.config.max_stale is None else scheduler.config.max_stale)
    for index, timestep in enumerate(plan.timesteps):
        alpha, sigma, after = plan.alphas[index], plan.sigmas[index], plan.sigmas[index + 1]
        clean = scheduler.clean_prediction(network(sample, timestep), sample, alpha, sigma)
        stale = [clean, *stale][:most]
        shrink = after / sigma
        gain = plan.alphas[index + 1] - alpha * shrink
        given = [*plan.weights[index], *[0.0] * len(stale)][: len(stale)]
        usual = shrink * sample + gain * sum(float(weight) * past for weight, past in zip(given, stale, strict=True))
        scale = SAMPLE_SCALE * (after if after > 0.0 else 1.0)
        combined = [*[gain * past for past in stale], scale * sample]
        wanted = teacher.state(float(np.append(angles, 0.0)[index + 1])) - usual
        correction = robust_fit([part[:noises] for part in combined], wanted[:noises])
        sample = usual + sum(float(factor) * part for factor, part in zip(correction, combined, strict=True))
        weights.append([float(a + b) for a, b in zip(given, correction[:-1], strict=True)])
        sample_weights.append(float(correction[-1] * scale))
    return [float(time) for time in plan.timesteps], weights, sample_weights, sample


class CalibrationMixin:
    """What a `StaleScheduler` does with calibrations."""

    def plan_at(self, angles: np.ndarray, max_stale: int | None = None) -> Plan:
        """A run over noise levels at descending `angles`, without what a calibration knows."""
        timesteps = self.process.timesteps(angles).astype(np.float32).astype(np.float64)
        alphas, sigmas = self.process.levels(timesteps)
        alphas, sigmas = np.append(alphas, 1.0), np.append(sigmas, 0.0)
        most = self.config.max_stale if max_stale is None else max_stale
        return Plan(timesteps, alphas, sigmas, self.weights_at(alphas, sigmas, most))

    def weights_at(self, alphas: np.ndarray, sigmas: np.ndarray, max_stale: int | None) -> list[np.ndarray]:
        """Weights of a run over these noise levels (`STALE_WEIGHTS`), for data as wide as guidance makes it look.

        Data that is wider by a factor is the usual data where alpha is that much larger.
        """
        weigh = STALE_WEIGHTS[self.config.stale_weights]
        return weigh(guidance_stretch(self.guidance_scale) * alphas, sigmas, max_stale)

    def weights_in_force(self, index: int = 0) -> tuple[Sequence[Sequence[float]], Sequence[float]]:
        """Of the run that `set_timesteps` has prepared, from its step `index` on: weights of clean predictions, the
        newest first, and weights of the sample. A calibration knows whole runs only."""
        if self._entry is not None and index == 0:
            return self._entry.weights, self._entry.sample_weights
        weights = self.weights_at(self._alphas[index:], self._sigmas[index:], self.config.max_stale)
        return weights, [0.0] * len(weights)

    def uncalibrated_plan(self, steps: int, max_stale: int | None = None) -> Plan:
        """A run of `steps` steps without what a calibration or a measured clock knows."""
        return self.plan_at(self.uncalibrated_angles(steps), max_stale)

    def uncalibrated_angles(self, steps: int) -> np.ndarray:
        """`steps` descending angles of equal steps by `step_times`."""
        start, end = self.process.start, self.process.end
        return entropic_angles(steps, start, end, self.clock_scale, self.predicts_noise, self.guidance_scale)

    def step_times(self, angles: np.ndarray) -> np.ndarray:
        """Time by which uncalibrated steps are equal at `angles`: 0 at the start of the process, 1 at no noise."""
        return step_clock(angles, self.process.start, self.clock_scale, self.predicts_noise)

    @property
    def clock_scale(self) -> float:
        """Factor on all scales of `step_clock`: that of a shifted flow, and that of guidance."""
        return self.clock_shift * guidance_stretch(self.guidance_scale)

    @property
    def predicts_noise(self) -> bool:
        """Whether errors of the network in the clean prediction grow as the noise-to-signal ratio."""
        return self.config.prediction_type == "epsilon"

    def calibrate(
        self,
        model: Model,
        shape: Sequence[int],
        num_inference_steps: Sequence[int] = (5, 8, 10, 12, 15, 20),
        generator: torch.Generator | None = None,
        progress_bar: bool = True,
        noises: int = 32,
        held_out: int = 16,
        teacher_steps: int = 128,
        batch_size: int = 8,
        device: str | torch.device = "cpu",
        conditions: torch.Tensor | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> Calibration:
        """Fits steps and weights to a network, and keeps them in the configuration.

        Args:
            model: (sample, timestep) -> model output, guidance included; `sample` is `(batch, *shape)`.
            shape: of one sample, without batch.
            num_inference_steps: the numbers of steps to calibrate for.
            generator: of the noises.
            progress_bar: whether to show one.
            noises, held_out: how many to fit on, and how many to measure and choose on.
            teacher_steps: of the trajectory that is retraced.
            batch_size: samples that the network takes at a time.
            device: where samples are.
            conditions: `(noises + held_out, ...)`, what the model is told of each noise, as its third argument.
            provenance: what to remember: `guidance_scale`, for which the teacher's steps are spaced, is compared with
                what `set_timesteps` is told, and `weights` (`calibration_record.sample_weights_of`) before each run of
                `StaleDiffusionPipeline`.

        Returns:
            The calibration, which is in force from now on; `save_pretrained` and `push_to_hub` take it along. It cost
            `calibration.cost` evaluations, about (noises + held_out) * (teacher_steps + 5 * sum of steps).

        Raises:
            ValueError: for counts out of range, and a network that puts out NaN or another shape than its sample's.
        """
        check_provenance(provenance or {})
        told = (provenance or {}).get("guidance_scale")
        self.guidance_scale = self.config.guidance_scale if told is None else told
        clock, found = _calibrate(
            self, model, shape, num_inference_steps, generator, noises, held_out, teacher_steps, batch_size, device,
            progress_bar, conditions,
        )  # fmt: skip
        made_with = {"noises": noises, "held_out": held_out, "teacher_steps": teacher_steps}
        made_with |= {"shape": [int(size) for size in shape], "shift": self.clock_shift}
        found["provenance"] = made_with | (provenance or {})
        self.calibration, self._calibration_fits = Calibration(found, self.process), True
        self.register_to_config(clock=clock, calibration=found)
        return self.calibration

    def check_calibration(self, guidance_scale: float | None = None, weights: Sequence[float] | None = None) -> bool:
        """Whether the calibration is one for runs like this. Otherwise it warns, and runs are uncalibrated from the
        next `set_timesteps` on, until a check succeeds."""
        mismatch = None if self.calibration is None else self.calibration.mismatch(guidance_scale, weights)
        if mismatch is not None:
            logger.warning(f"The calibration was made for {mismatch}: it is left aside. Calibrate again to use one.")
        self._calibration_fits = mismatch is None
        return self._calibration_fits

    def _misfit(self) -> str | None:
        """What makes the calibration one of another flow or guidance than those of this run, in words, or None."""
        if self.calibration is None:
            return None
        if self.calibration.fits_shift(self.clock_shift):
            return self.calibration.mismatch(self._told_guidance, None)
        return f"flows shifted by {self.calibration.provenance['shift']:.3g}, not {self.clock_shift:.3g}"

    def _entry_for(self, steps: int) -> Entry | None:
        """What the calibration says of so many steps, if it is in force; warns where this run is of another flow or
        guidance, and where it needs more stale outputs than may be kept."""
        if self.calibration is None or not self._calibration_fits:
            return None
        entry, most, misfit = self.calibration.entries.get(steps), self.config.max_stale, self._misfit()
        if misfit is not None:
            reason = f"was made for {misfit}"
        elif entry is not None and most is not None and entry.stale > most:
            reason = f"of {steps} steps needs {entry.stale} stale outputs, and `max_stale` is {most}"
        else:
            return entry
        logger.warning(f"The calibration {reason}: it is left aside. Calibrate again to use one.")
        return None

    @property
    def clock_in_force(self) -> dict[str, list[float]] | None:
        """The measured clock, or None for the prior's: where there is none, and where the calibration does not fit."""
        return self.config.clock if self._calibration_fits and self._misfit() is None else None

    def suggest_steps(self, max_error: float = 0.02) -> int:
        """The smallest calibrated number of steps whose held-out error, relative to the data's deviation, is at most
        `max_error`. Raises `ValueError` without a calibration, and if no number of steps will do."""
        if self.calibration is None:
            raise ValueError("`suggest_steps` needs a calibration, got none; call `calibrate` first.")
        return self.calibration.suggest_steps(max_error)
