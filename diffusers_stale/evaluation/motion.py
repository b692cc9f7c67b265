"""Do frames differ because something moves, or because of grain? And does it move where the sentence says?

Measured on the middle view. From one frame to the next, the *moving part* is the seventh of the picture whose softened
change is largest, the *quiet part* the half where it is smallest. Grain changes both alike; an animal only the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import torch

from diffusers_stale.evaluation.alignment import Share
from diffusers_stale.evaluation.classifier import middle_clips, resize_clips
from diffusers_stale.evaluation.disparity import MEASURE_SIZE, nan_mean
from diffusers_stale.evaluation.matching import box, shift_columns
from diffusers_stale.evaluation.prompts import EvaluationPrompt


MOVING_PART = 0.15
QUIET_PART = 0.5
GREY_LEVELS = 127.5
"""Grey levels of 0..255 in one unit of pixels in [-1, 1]."""

LEAST_CHANGE = 0.5
"""Grey levels: what rounding to 8 bits may change."""

FASTEST = 6.0
"""Pixels a frame at 64 px that are searched for."""

SPEED_STEP = 0.25
LEAST_SPEED = 0.3
"""Pixels a frame below which a movie stands still. Walking animals make about 1.1 at 8 frames a second, galloping ones
2.8; those that leave the barn four fifths of it."""

MOVING_ACTIONS = ("walking", "galloping", "leaving")
STILL_ACTIONS = ("standing", "eating")


@dataclass(frozen=True)
class MotionMeasure:
    """Of one movie.

    `moving`, `quiet`: root mean square change from frame to frame in those parts, in grey levels. `contrast`: their
    ratio, the quiet one taken as at least `LEAST_CHANGE`. `concentration`: the share of all change (squared) in the
    moving part, `MOVING_PART` if it is the same everywhere; NaN if nothing changes. `velocity`: pixels a frame, at
    64 px, at which the moving part travels to the right.
    """

    moving: float
    quiet: float
    contrast: float
    concentration: float
    velocity: float


@torch.no_grad()
def measure_motion(light_field: torch.Tensor) -> list[MotionMeasure] | None:
    """Measures each movie of `(batch, 3, view_rows, view_cols, frames, height, width)` in [-1, 1]; None of stills."""
    clips = resize_clips(middle_clips(light_field).float(), MEASURE_SIZE)
    if clips.shape[2] == 1:
        return None
    return [_measure(clip) for clip in clips.transpose(1, 2)]


def _measure(frames: torch.Tensor) -> MotionMeasure:
    """Of `(frames, channels, height, width)`."""
    steps = frames[1:] - frames[:-1]
    change = steps.square().mean(dim=1).flatten(1)
    softened = box(box(steps, 3).square().mean(dim=1), 5).flatten(1)
    order = softened.argsort(dim=1)
    pixels = order.shape[1]
    moving = order[:, pixels - round(MOVING_PART * pixels) :]
    quiet = order[:, : round(QUIET_PART * pixels)]
    inside, total = float(change.gather(1, moving).sum()), float(change.sum())
    loud, soft = (GREY_LEVELS * float(change.gather(1, part).mean()) ** 0.5 for part in (moving, quiet))
    weights = torch.zeros_like(change).scatter(1, moving, softened.gather(1, moving)).view(steps[:, 0].shape)
    return MotionMeasure(
        moving=loud,
        quiet=soft,
        contrast=loud / max(soft, LEAST_CHANGE),
        concentration=inside / total if total else nan,
        velocity=_velocity(frames, weights),
    )


def _velocity(frames: torch.Tensor, weights: torch.Tensor) -> float:
    """The shift to the right, common to all pairs of frames, that makes them most alike where `weights` are."""
    reach = round(FASTEST / SPEED_STEP)
    shifts = [step * SPEED_STEP for step in range(-reach, reach + 1)]
    now, later = frames[:-1], frames[1:]
    costs = [float(((shift_columns(later, shift) - now).abs().mean(dim=1) * weights).sum()) for shift in shifts]
    # Of equal costs (nothing moves), the smallest shift.
    return min(zip(costs, shifts, strict=True), key=lambda pair: (pair[0], abs(pair[1])))[1]


def travels_as_told(measure: MotionMeasure, prompt: EvaluationPrompt) -> bool | None:
    """Whether the movie moves to the side that the prompt states; None if it does not state motion and a side."""
    if prompt.stated.get("action") not in MOVING_ACTIONS or "direction" not in prompt.stated:
        return None
    sign = 1 if prompt.stated["direction"] == "right" else -1
    return sign * measure.velocity >= LEAST_SPEED


def summarize_motion(measures: Sequence[MotionMeasure], prompts: Sequence[EvaluationPrompt]) -> dict[str, object]:
    """Means over the movies whose prompts state motion, and no motion, and the share that travels as told."""
    pairs = list(zip(measures, prompts, strict=True))
    moving = [measure for measure, prompt in pairs if prompt.stated.get("action") in MOVING_ACTIONS]
    still = [measure for measure, prompt in pairs if prompt.stated.get("action") in STILL_ACTIONS]
    told = [answer for measure, prompt in pairs if (answer := travels_as_told(measure, prompt)) is not None]
    return {
        "prompts_with_motion": _means(moving),
        "prompts_without_motion": _means(still),
        "travels_as_told": Share(sum(told), len(told)).as_dict(),
    }


def _means(measures: Sequence[MotionMeasure]) -> dict[str, float]:
    means = {name: nan_mean([getattr(part, name) for part in measures]) for name in MotionMeasure.__dataclass_fields__}
    means["speed"] = nan_mean([abs(part.velocity) for part in measures])
    del means["velocity"]
    return means | {"movies": len(measures)}
