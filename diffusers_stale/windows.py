"""Sliding windows: grids of views and frames that are larger than memory, predicted piece by piece at every step.

Nearest relatives: the context windows of AnimateDiff and diffusers' FreeNoise, along time, and tiling of autoencoders.
Here a window has three axes. Windows along one of them overlap, and where they do predictions are blended; along the
others they lie side by side. The axis takes turns from step to step (rows, columns, time, and again), so that what
disagrees at a seam agrees some steps later, at the cost of one overlap rather than of three.

This file knows no noise and no guidance: it cuts a light field, has pieces predicted, and puts them together on the
device of the light field (the CPU), so that memory of the network depends on the window only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from diffusers_stale.axes import AXES, GRID_AXES, axis_index, check_count


FRAMES = axis_index("frames")

Predict = Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]
"""From a piece of a light field and what holds for that piece to the prediction for it."""


class Window(NamedTuple):
    """A piece of a grid: where it starts and ends along each axis; frames may pass the end, where they begin again."""

    view_rows: range
    view_cols: range
    frames: range

    def cut(self, light_field: torch.Tensor) -> torch.Tensor:
        """The piece of `light_field`; an axis that is 1 long in it stands for all, and stays."""
        light_field = self.views(light_field)
        return light_field.index_select(FRAMES, self.moments(light_field))

    def views(self, light_field: torch.Tensor) -> torch.Tensor:
        """All frames of the window's views, as a view of `light_field`."""
        for name in ("view_rows", "view_cols"):
            dim, span = axis_index(name), getattr(self, name)
            if light_field.shape[dim] > 1:
                light_field = light_field.narrow(dim, span.start, len(span))
        return light_field

    def moments(self, light_field: torch.Tensor) -> torch.Tensor:
        """Indices of the window's frames in `light_field`."""
        length = light_field.shape[FRAMES]
        moments = self.frames if length > 1 else range(1)
        return torch.tensor([moment % length for moment in moments], device=light_field.device)

    def centre(self, axis_sizes: tuple[int, int, int], spacing: float) -> tuple[float, float]:
        """Row and column coordinate of the window's middle in the grid, in trained view steps."""
        spans = zip((self.view_rows, self.view_cols), axis_sizes, strict=False)
        return tuple((span.start + (len(span) - count) / 2) * spacing for span, count in spans)

    def weights(self) -> torch.Tensor:
        """How much each image counts: the more, the farther from the window's ends; `(rows, cols, frames, 1, 1)`."""
        rows, cols, frames = (torch.arange(1.0, len(span) + 1) for span in self)
        rows, cols, frames = (torch.minimum(ramp, ramp.flip(0)) for ramp in (rows, cols, frames))
        return (rows[:, None, None] * cols[:, None] * frames)[..., None, None]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a grid is cut.

    Args:
        view_rows, view_cols, frames: length of windows; None for the whole axis.
        overlap: share of a window's length that it has in common with the next (rounded up to whole views or frames,
            but not the whole window), along the axis whose turn it is. From 0 to less than 1.
        alternate: whether axes take turns; otherwise windows overlap along all of them at every step.

    Raises:
        ValueError: for lengths that are no integers of at least 1, and for an `overlap` out of range.
    """

    view_rows: int | None = 3
    view_cols: int | None = 3
    frames: int | None = None
    overlap: float = 0.25
    alternate: bool = True

    def __post_init__(self) -> None:
        for name in GRID_AXES:
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if not 0 <= self.overlap < 1:
            raise ValueError(f"`overlap` must be from 0 to less than 1, got {self.overlap}; 0.25 is usual.")

    def lengths(self, axis_sizes: tuple[int, int, int]) -> tuple[int, int, int]:
        """Length of windows along the axes of a grid of `axis_sizes`."""
        asked = (self.view_rows, self.view_cols, self.frames)
        return tuple(
            size if length is None else min(length, size) for length, size in zip(asked, axis_sizes, strict=True)
        )

    def at_step(self, axis_sizes: tuple[int, int, int], step: int, loop: bool = False) -> Iterator[Window]:
        """The windows of one step, which together cover the grid; with `loop` those of time go around."""
        lengths = self.lengths(axis_sizes)
        cut = [axis for axis, size in enumerate(axis_sizes) if lengths[axis] < size]
        spans = []
        for axis, (size, length) in enumerate(zip(axis_sizes, lengths, strict=True)):
            slides = not self.alternate or (axis in cut and cut[step % len(cut)] == axis)
            common = min(-int(-self.overlap * length // 1), length - 1) if slides else 0
            around = loop and GRID_AXES[axis] == "frames"
            spans.append([range(start, start + length) for start in starts(size, length, common, step, around)])
        rows, cols, frames = spans
        return (Window(row, col, frame) for row in rows for col in cols for frame in frames)


def starts(size: int, length: int, common: int, step: int, around: bool) -> list[int]:
    """Where windows of `length` begin that cover `size` and have at least `common` places in common with the next.

    They are as few as can be, and as evenly spread. Those that go `around` have no first: they begin elsewhere from
    step to step, so that seams do.
    """
    if length == size:
        return [0]
    stride = length - common
    if around:
        count = -(-size // stride)
        return [(step * (length // 2) + size * index // count) % size for index in range(count)]
    count = -(-(size - length) // stride) + 1
    return [(size - length) * index // (count - 1) for index in range(count)]


def predict_in_windows(
    predict: Predict,
    light_field: torch.Tensor,
    conditions: dict[str, Any],
    windows: Windows,
    step: int,
) -> torch.Tensor:
    """The prediction for all of `light_field`, on its device, from those for windows.

    Where windows overlap, it is their mean, weighted by the distance from their ends: to the bit what they say, where
    they agree.

    Args:
        predict: called with a piece (of the light field's device) and conditions for that piece.
        light_field: shape `(batch, channels, view_rows, view_cols, frames, height, width)`.
        conditions: as `StaleUNet5DConditionModel.forward` takes them. Tensors with the axes of a light field are cut.
        windows: how to cut.
        step: number of the denoising step.
    """
    axis_sizes = tuple(light_field.shape[axis_index(name)] for name in GRID_AXES)
    loop = conditions["loop"]
    whole = None
    for window in windows.at_step(axis_sizes, step, loop):
        told = {
            name: window.cut(value) if isinstance(value, torch.Tensor) and value.ndim == len(AXES) else value
            for name, value in conditions.items()
        }
        told["view_centre"] = window.centre(axis_sizes, conditions["view_spacing"])
        told["loop"] = loop and len(window.frames) == axis_sizes[-1]
        piece = predict(window.cut(light_field), told).to(light_field.device)
        if whole is None:
            whole = piece.new_zeros(*piece.shape[:2], *axis_sizes, *piece.shape[5:])
            total = torch.zeros(1, 1, *axis_sizes, 1, 1, device=whole.device)
        blend(whole, total, piece, window)
    return whole


def blend(whole: torch.Tensor, total: torch.Tensor, piece: torch.Tensor, window: Window) -> None:
    """Moves `whole` towards `piece`, in place, as far as the piece's weight says beside the `total` so far."""
    weights = window.weights().to(total.device)[None, None]
    share = weights / (weights + window.cut(total))
    moments = window.moments(whole)
    blended = torch.lerp(window.cut(whole), piece, share.to(piece.dtype))
    window.views(whole).index_copy_(FRAMES, moments, blended)
    window.views(total).index_add_(FRAMES, moments, weights)
