"""What a calibration is: plain JSON of steps and weights for some numbers of steps, checked when it is read."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch


GUIDANCE_TOLERANCE = 0.25
"""A guidance scale differs much if it differs by more than this share of the calibrated one."""

SHIFT_TOLERANCE = 0.25
"""A flow shift differs much if its log differs by more than this."""

WEIGHTS_TOLERANCE = 0.05
"""A checkpoint differs much if sampled weights differ by more than this, relative to their root mean square."""

SAMPLED_WEIGHTS = 64


@dataclass(frozen=True)
class Entry:
    """What was found for one number of steps.

    `timesteps` `(steps,)`; `weights`: of clean predictions at each step, the newest first; `sample_weights`,
    `(steps,)`: what is added of the sample itself. `error`, `uncalibrated_error`: root mean square distance from the
    end of the teacher's trajectory, relative to the deviation of ends, on held-out noise.
    """

    timesteps: list[float]
    weights: list[list[float]]
    sample_weights: list[float]
    error: float
    uncalibrated_error: float

    @property
    def stale(self) -> int:
        """The most clean predictions of earlier steps that a step needs."""
        return max(len(part) for part in self.weights) - 1


class Calibration:
    """A validated calibration. `entries` by number of steps; `provenance`: what it was made with and for."""

    def __init__(self, data: dict[str, Any], process: Any):
        """Raises `ValueError` naming the entry that does not fit: of wrong length, not finite, out of range."""
        if not isinstance(data, dict) or not isinstance(data.get("entries"), dict) or not data["entries"]:
            raise ValueError(
                f"`calibration` must be a dict with `entries`, got {data!r:.80}; pass None to do without."
            )
        check_provenance(provenance := data.get("provenance", {}))
        self.provenance: dict[str, Any] = dict(provenance)
        entries = (_checked(steps, entry, process) for steps, entry in data["entries"].items())
        self.entries = {len(entry.timesteps): entry for entry in entries}

    def fits_shift(self, shift: float) -> bool:
        """Whether flows that are shifted by `shift` are, within tolerance, those that it was made for."""
        made_for = self.provenance.get("shift")
        return made_for is None or abs(math.log(shift / made_for)) <= SHIFT_TOLERANCE

    def suggest_steps(self, max_error: float) -> int:
        """The smallest calibrated number of steps whose held-out error is at most `max_error`.

        Raises `ValueError` if there is none, naming the best.
        """
        fitting = [steps for steps, entry in self.entries.items() if entry.error <= max_error]
        if not fitting:
            best = min(self.entries, key=lambda steps: self.entries[steps].error)
            raise ValueError(
                f"`max_error` must be at least {self.entries[best].error:.3g}, what {best} steps err, got "
                f"{max_error}; calibrate for more steps or allow more."
            )
        return min(fitting)

    def mismatch(self, guidance_scale: float | None, weights: Sequence[float] | None) -> str | None:
        """What makes this calibration one of something else, in words, or None. What is not known is not compared."""
        made_for = self.provenance.get("guidance_scale")
        if None not in (made_for, guidance_scale) and (
            abs(guidance_scale - made_for) > GUIDANCE_TOLERANCE * abs(made_for)
        ):
            return f"guidance_scale={made_for}, not {guidance_scale}"
        known = self.provenance.get("weights")
        if known is not None and weights is not None:
            if len(known) != len(weights):
                return "a network of another shape"
            ours, theirs = np.asarray(known), np.asarray(weights)
            distance = math.sqrt(np.mean((ours - theirs) ** 2) / max(np.mean(ours**2), 1e-30))
            if distance > WEIGHTS_TOLERANCE:
                return f"another checkpoint (sampled weights differ by {distance:.0%})"
        return None


def _checked(steps: str | int, entry: Any, process: Any) -> Entry:
    try:
        read, count = Entry(**entry), int(steps)
        numbers = [*read.timesteps, *read.sample_weights, *chain(*read.weights), read.error, read.uncalibrated_error]
        finite = all(map(math.isfinite, numbers))
        lengths = {len(read.timesteps), len(read.weights), len(read.sample_weights)}
    except (TypeError, ValueError) as error:
        raise ValueError(f"Calibration entry {steps!r} cannot be read ({error}); calibrate again.") from error
    if lengths != {count} or any(not 1 <= len(part) <= index + 1 for index, part in enumerate(read.weights)):
        raise ValueError(
            f"Calibration entry {steps!r} must have {count} timesteps, weights and sample weights, and no more "
            f"weights than there are predictions, got {sorted(lengths)}; calibrate again."
        )
    times = np.asarray(read.timesteps)
    in_range = times.size and times.min() >= process.lowest and times.max() <= process.highest
    if not finite or not in_range or not (np.diff(times) < 0).all() or process.levels(times)[1][-1] == 0.0:
        raise ValueError(
            f"Calibration entry {steps!r} must hold finite numbers and descending timesteps between "
            f"{process.lowest:g} and {process.highest:g}, above no noise, got others; calibrate again."
        )
    return read


def check_provenance(provenance: Any) -> None:
    """Raises `ValueError` for what no JSON can say, and for no numbers where runs are compared with them."""
    try:
        json.dumps(provenance)
        guidance_scale, shift = (provenance.get(key) for key in ("guidance_scale", "shift"))
        known = [*(provenance.get("weights") or ()), *(each for each in (guidance_scale, shift) if each is not None)]
        fine = all(map(math.isfinite, known)) and (shift is None or shift > 0)
    except (AttributeError, TypeError, ValueError):
        fine = False
    if not fine:
        raise ValueError(
            "`provenance` must be a dict for JSON, with finite numbers in `guidance_scale`, `weights` and `shift`, "
            f"which is above 0, got {provenance!r:.80}; leave out what is not known."
        )


def sample_weights_of(network: torch.nn.Module) -> list[float]:
    """One value of each of up to 64 parameters: enough to tell checkpoints apart, whatever their dtype."""
    parameters = [parameter for _, parameter in sorted(network.named_parameters())]
    picked = [parameters[index] for index in np.linspace(0, len(parameters) - 1, SAMPLED_WEIGHTS).astype(int)]
    return [
        float(f"{parameter.detach().flatten()[parameter.numel() // 2].float().item():.5g}") for parameter in picked
    ]
