"""What a scheduler takes and what it refuses: options, numbers of steps, shapes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch


def is_whole(number: Any, least: int, most: float = math.inf) -> bool:
    """Whether `number` is a whole one from `least` to `most`."""
    try:
        return not isinstance(number, bool) and bool(least <= number <= most and number == int(number))
    except (OverflowError, TypeError, ValueError):
        return False


def is_number(number: Any) -> bool:
    """Whether `number` is a finite one."""
    try:
        return not isinstance(number, bool) and math.isfinite(number)
    except TypeError:
        return False


def check_options(options: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a number among `options` that is none or out of range (`NUMBERS`)."""
    for name in NUMBERS.keys() & options.keys():
        fits, expected = NUMBERS[name]
        if not fits(options[name]):
            raise ValueError(f"`{name}` must be {expected}, got {options[name]!r}; choose another.")


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raises `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}; choose one of them."
        )


def check_betas(betas: np.ndarray, count: int) -> None:
    """Raises `ValueError` unless `betas` are `count` numbers above 0 and at most 1."""
    if betas.shape != (count,) or not ((betas > 0) & (betas <= 1)).all():
        raise ValueError(
            f"Betas must be {count} numbers above 0 and at most 1, got {betas.size}, "
            f"{betas.tolist()!s:.60}; mend `trained_betas`, `beta_start` or `beta_end`."
        )


def check_output(model_output: torch.Tensor, sample: torch.Tensor) -> None:
    """Raises `ValueError` unless both have the same shape."""
    if model_output.shape != sample.shape:
        raise ValueError(
            f"`model_output` must have the shape of `sample`, {tuple(sample.shape)}, got {tuple(model_output.shape)}; "
            "combine the halves of guidance and split off a predicted variance before."
        )


def is_positive(number: Any) -> bool:
    return is_number(number) and number > 0


NUMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_train_timesteps": (lambda count: is_whole(count, 2), "a whole number of 2 or more"),
    "steps_offset": (lambda offset: is_whole(offset, 0), "a whole number of 0 or more"),
    "sigma_min": (lambda ratio: ratio is None or is_positive(ratio), "None or a number above 0"),
    "sigma_max": (lambda ratio: ratio is None or is_positive(ratio), "None or a number above 0"),
    "flow_shift": (is_positive, "a number above 0, 1 to shift nothing"),
    "shift_terminal": (
        lambda last: last is None or (is_number(last) and 0 <= last < 1),
        "None or a number from 0 to less than 1",
    ),
    "dynamic_thresholding_ratio": (lambda part: is_number(part) and 0 <= part <= 1, "a number from 0 to 1"),
    "sample_max_value": (is_positive, "a number above 0"),
    "clip_sample_range": (is_positive, "a number above 0"),
    "max_stale": (lambda most: most is None or is_whole(most, 0), "None or a whole number of 0 or more"),
    "guidance_scale": (is_number, "a finite number, 1 for no guidance"),
}
"""Options that are numbers: whether a value fits, and what is expected."""
