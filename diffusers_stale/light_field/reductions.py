"""One axis of a light field taken out: a single view, and the mean or the maximum over an axis."""

import math
from typing import Literal

import torch

from diffusers_stale.axes import middle_index
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.viewpoints import as_float, in_dtype_of, pixels_of


Axis = Literal["views", "view_rows", "view_cols", "frames", "height", "width"]

REDUCED = {
    "views": (1, 2),
    "view_rows": (1,),
    "view_cols": (2,),
    "frames": (3,),
    "height": (4,),
    "width": (5,),
}
"""Axes of the pixels by the name of what is taken out; "views" is the whole grid."""


def single_view(
    light_field: LightField | torch.Tensor, row: int | None = None, col: int | None = None
) -> torch.Tensor:
    """The movie of one camera, by default the middle one.

    Returns shape `(3, frames, height, width)`. Raises `ValueError` for pixels of another shape or not finite, and for
    a view that is not there.
    """
    pixels = pixels_of(light_field)
    places = [
        middle_index(count) if index is None else _index(name, index, count)
        for name, index, count in (("row", row, pixels.shape[1]), ("col", col, pixels.shape[2]))
    ]
    return pixels[:, places[0], places[1]]


def mean_over(light_field: LightField | torch.Tensor, axis: Axis = "views") -> torch.Tensor:
    """The mean over an axis: over views a fixed-focus lens, over frames a long exposure.

    Args:
        light_field: the movie, or pixels `(3, view_rows, view_cols, frames, height, width)`.
        axis: what is taken out; of a view axis that remains, the middle view is shown.

    Returns:
        Over views, rows or columns of views: a moving picture `(3, frames, height, width)`. Over frames: a still
        picture `(3, height, width)`. Over height: `(3, frames, width)`, time runs down. Over width: `(3, height,
        frames)`, time runs to the right. In the dtype of the pixels; differentiable in floating-point pixels.

    Raises:
        ValueError: for pixels of another shape or not finite, and for another axis.
    """
    pixels, axes = pixels_of(light_field), _axes(axis)
    if pixels.is_floating_point():
        return _laid_out(in_dtype_of(pixels, as_float(pixels).mean(dim=axes, keepdim=True)), axis)
    count = math.prod(pixels.shape[index] for index in axes)
    total = pixels.sum(dim=axes, keepdim=True, dtype=torch.int64)  # no copy of the movie in another dtype
    return _laid_out(total.div(count).round().to(pixels.dtype), axis)


def maximum_over(light_field: LightField | torch.Tensor, axis: Axis = "frames") -> torch.Tensor:
    """The largest value over an axis, for each colour: over frames the trails that bright things leave.

    Arguments, result and errors as `mean_over`.
    """
    pixels, axes = pixels_of(light_field), _axes(axis)
    return _laid_out(pixels.amax(dim=axes, keepdim=True), axis)


def _axes(axis: str) -> tuple[int, ...]:
    if axis not in REDUCED:
        raise ValueError(f"`axis` must be one of {', '.join(REDUCED)}, got {axis!r}; choose one.")
    return REDUCED[axis]


def _laid_out(reduced: torch.Tensor, axis: str) -> torch.Tensor:
    """Pixels whose axis has length 1, as a picture."""
    view = reduced[:, middle_index(reduced.shape[1]), middle_index(reduced.shape[2])]
    if axis == "frames":
        return view[:, 0]
    if axis == "height":
        return view[:, :, 0]
    return view[..., 0].transpose(1, 2) if axis == "width" else view


def _index(name: str, index: int, count: int) -> int:
    if isinstance(index, bool) or not isinstance(index, int) or not -count <= index < count:
        raise ValueError(f"`{name}` must be between {-count} and {count - 1}, got {index!r}; choose a view there is.")
    return index
