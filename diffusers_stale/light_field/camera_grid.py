"""Where the cameras of a light field stand, and what becomes of them when a part of the light field is taken.

Knows axes by name; no files, and of pixels only whether they are numbers.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from diffusers_stale.axes import AXES, IMAGE_AXES, check_count


MOVIE_AXES = tuple(name for name in AXES if name != "batch")
"""Axes of one movie: a light field without its batch."""

DISPARITY_AXES = tuple(name for name in MOVIE_AXES if name != "channels")
"""Axes of a disparity map, and those along which a part can be taken."""

Choice = int | slice | None
"""What to take of an axis: one index, a slice of step 1 or more, or all."""


def check_number(name: str, value: float, positive: bool = False) -> float:
    """Returns `value` as a finite float (above 0 if `positive`); raises `ValueError` otherwise."""
    wanted = "a finite number above 0" if positive else "a finite number"
    if isinstance(value, bool) or not isinstance(value, int | float) or (positive and value <= 0):
        raise ValueError(f"`{name}` must be {wanted}, got {value!r}; pass an ordinary number.")
    if not math.isfinite(value) or abs(value) > 1e30:
        raise ValueError(f"`{name}` must be {wanted}, got {value!r}; pass an ordinary number.")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class CameraGrid:
    """A planar, regular grid of cameras that all look straight ahead; its middle view is the reference.

    `view_rows`, `view_cols`: how many cameras, each at least 1. `spacing`: distance between neighbours, in the view
    steps that a model was trained on (`axes.view_coordinates`). `baseline`: factor by which the movie's disparity was
    scaled when it was made. `focal_disparity`: pixels per view step of the plane that a display puts on its screen.

    Raises `ValueError` for counts below 1, and for numbers that are not finite or, in `spacing`, not above 0.
    """

    view_rows: int
    view_cols: int
    spacing: float = 1.0
    baseline: float = 1.0
    focal_disparity: float = 0.0

    def __post_init__(self) -> None:
        for name in ("view_rows", "view_cols"):
            check_count(name, getattr(self, name))
        for name in ("spacing", "baseline", "focal_disparity"):
            object.__setattr__(self, name, check_number(name, getattr(self, name), positive=name == "spacing"))


@dataclass(frozen=True)
class Selection:
    """A part of a movie: start, stop and step by the name of every axis in `DISPARITY_AXES`."""

    ranges: dict[str, range]

    @staticmethod
    def of(sizes: dict[str, int], choices: dict[str, Choice]) -> "Selection":
        """Resolves `choices` against the lengths in `sizes`. Raises `ValueError` for what is empty or outside."""
        return Selection({name: _resolve(name, choices.get(name), sizes[name]) for name in DISPARITY_AXES})

    @property
    def bounds(self) -> tuple[slice, ...]:
        """The unbroken stretch of every axis that holds the part, in the order of `DISPARITY_AXES`."""
        return tuple(slice(taken.start, taken[-1] + 1) for taken in self.ranges.values())

    @property
    def steps(self) -> tuple[slice, ...]:
        """What to take of that stretch."""
        return tuple(slice(None, None, taken.step) for taken in self.ranges.values())

    def grid_of(self, grid: CameraGrid) -> CameraGrid:
        """The cameras that remain of `grid`. Their own middle view is the new reference.

        Raises `ValueError` where rows and columns would end up at different spacings.
        """
        taken = [self.ranges[name] for name in ("view_rows", "view_cols")]
        steps = {part.step for part in taken if len(part) > 1} or {1}
        if len(steps) > 1:
            raise ValueError(
                f"A camera grid has one spacing, got steps of {taken[0].step} view rows and {taken[1].step} view "
                "columns; take the same step along both."
            )
        rows, cols = (len(part) for part in taken)
        return replace(grid, view_rows=rows, view_cols=cols, spacing=grid.spacing * steps.pop())

    def frame_rate_of(self, frame_rate: float) -> float:
        """Frames a second of the part, so that it runs as fast as the whole."""
        return frame_rate / self.ranges["frames"].step


def _resolve(name: str, choice: Choice, length: int) -> range:
    if choice is None:
        return range(length)
    if isinstance(choice, slice):
        return _resolve_slice(name, choice, length)
    index = _as_index(choice)
    if index is None or not -length <= index < length:
        raise ValueError(
            f"`{name}` must be an index from {-length} to {length - 1} or a slice, got {choice!r}; choose one of the "
            f"{length} there are."
        )
    start = index % length
    return range(start, start + 1)


def _as_index(choice: object) -> int | None:
    """A whole number of any kind, numpy's and torch's included; None for anything else, truth values too."""
    if isinstance(choice, bool | np.bool_) or (isinstance(choice, torch.Tensor) and choice.dtype == torch.bool):
        return None
    try:
        return operator.index(choice)
    except (TypeError, RuntimeError):
        return None


def _resolve_slice(name: str, choice: slice, length: int) -> range:
    if choice.step is not None and (not isinstance(choice.step, int) or choice.step < 1):
        raise ValueError(f"`{name}` must be sliced with a step of at least 1, got {choice}; leave the step out.")
    if name in IMAGE_AXES and choice.step not in (None, 1):
        raise ValueError(f"`{name}` can only be cropped (step 1), got {choice}; resize pictures elsewhere.")
    taken = range(length)[choice]
    if len(taken) == 0:
        raise ValueError(f"`{name}` must keep something of its length {length}, got {choice}; widen the slice.")
    return taken if len(taken) > 1 else range(taken.start, taken.start + 1)


def check_finite(
    values: torch.Tensor, axes: Sequence[str], expected: str = "Expected finite pixels in [-1, 1]", otherwise: str = ""
) -> None:
    """Raises `ValueError` for numbers of `axes` that are NaN or infinite, and says where the first one is.

    Both show in the extremes, which are found in one pass; where they are is asked only then.
    """
    if values.is_floating_point() and not torch.isfinite(torch.stack(values.detach().aminmax())).all():
        first = torch.nonzero(~torch.isfinite(values))[0].tolist()
        place = ", ".join(f"{name} {index}" for name, index in zip(axes, first, strict=True))
        remedy = f"mend them there{otherwise and f', {otherwise}'}"
        raise ValueError(f"{expected}, got NaN or infinity, first at {place}; {remedy}.")
