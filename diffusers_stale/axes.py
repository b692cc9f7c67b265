"""The seven axes of a light-field movie: their order, folding, coordinates and shape checks.

Everything that depends on the order of axes or on the sign of disparity is stated here and nowhere else.
This file knows no layer, no file format and no scene.

A tensor in full order is a *light field*: `(batch, channels, view_rows, view_cols, frames, height, width)`.

Sign of disparity: a point of disparity `d` (pixels per view step) that stands at column `x` and row `y` in the
reference (middle) view stands at `x - d * u` in the view whose signed column coordinate is `u`, and at `y - d * v` in
the view whose signed row coordinate is `v`. Positive `d` is nearer than the plane of zero disparity.
"""

from collections.abc import Sequence

import torch


AXES = ("batch", "channels", "view_rows", "view_cols", "frames", "height", "width")
"""The order of axes, everywhere in the package."""

GRID_AXES = ("view_rows", "view_cols", "frames")
"""The axes that a 2D network does not have."""

IMAGE_AXES = ("channels", "height", "width")
"""What one frame of one view consists of."""


def axis_index(name: str) -> int:
    """Position of the axis `name` in a light field. Raises `ValueError` for a name that is not in `AXES`."""
    if name not in AXES:
        raise ValueError(f"Expected an axis among {', '.join(AXES)}, got {name!r}; use one of these names.")
    return AXES.index(name)


def check_light_field(tensor: torch.Tensor, name: str = "light_field") -> torch.Tensor:
    """Returns `tensor` if it has the seven axes, each at least 1 long; raises `ValueError` otherwise."""
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"`{name}` must be a torch.Tensor of axes {AXES}, got {type(tensor).__name__}.")
    if tensor.ndim != len(AXES) or 0 in tensor.shape:
        raise ValueError(
            f"`{name}` must have the {len(AXES)} axes {AXES}, each at least 1 long, got shape {tuple(tensor.shape)}; "
            "add the missing axes with length 1 (a still is a movie of one view and one frame)."
        )
    return tensor


def sizes(light_field: torch.Tensor) -> dict[str, int]:
    """Length of every axis by its name."""
    return dict(zip(AXES, light_field.shape, strict=True))


def check_count(name: str, value: int, maximum: int | None = None) -> int:
    """Returns `value` if it is an integer of at least 1 (and at most `maximum`); raises `ValueError` otherwise."""
    bounds = "an integer of at least 1" if maximum is None else f"an integer between 1 and {maximum}"
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or (maximum is not None and value > maximum):
        raise ValueError(f"`{name}` must be {bounds}, got {value!r}; ask for a count in that range.")
    return value


def fold(light_field: torch.Tensor, keep: Sequence[str]) -> torch.Tensor:
    """Merges every axis that is not in `keep` into one leading batch axis.

    Args:
        light_field: shape `(batch, channels, view_rows, view_cols, frames, height, width)`.
        keep: the axes to keep, in the order in which they are wanted.

    Returns:
        Shape `(product of the other axes, *keep)`; the other axes are merged in the order of `AXES`.
    """
    merged = [name for name in AXES if name not in keep]
    order = [axis_index(name) for name in (*merged, *keep)]
    moved = light_field.permute(order)
    return moved.reshape(-1, *moved.shape[len(merged) :])


def unfold(folded: torch.Tensor, keep: Sequence[str], axis_sizes: dict[str, int]) -> torch.Tensor:
    """Undoes `fold(..., keep)`.

    Args:
        folded: shape `(merged axes, *keep)`. Kept axes may have changed their length; merged ones may not.
        keep: the axes that were kept, in the same order.
        axis_sizes: the length of every merged axis by its name, as `sizes` gives it (kept ones are ignored).

    Returns:
        Shape `(batch, channels, view_rows, view_cols, frames, height, width)`.
    """
    merged = [name for name in AXES if name not in keep]
    order = (*merged, *keep)
    moved = folded.reshape(*[axis_sizes[name] for name in merged], *folded.shape[1:])
    return moved.permute([order.index(name) for name in AXES])


def view_coordinates(
    count: int, spacing: float = 1.0, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Signed positions of `count` cameras along one view axis, in view steps from the middle; shape `(count,)`.

    `spacing` is the distance between neighbours: 1 for the grid a model was trained on, 0.5 for twice as dense.
    """
    return (torch.arange(count, device=device, dtype=dtype) - (count - 1) / 2) * spacing


def middle_index(count: int) -> int:
    """Index of the view (or frame) in the middle; of the two middle ones, for an even `count`, the later."""
    return count // 2


def displaced(position: torch.Tensor, disparity: torch.Tensor, coordinate: torch.Tensor | float) -> torch.Tensor:
    """Where a point of the reference view stands in the view at the signed `coordinate` (pixels; see the top)."""
    return position - disparity * coordinate
