"""Refocusing after the fact: views are shifted until one plane of the scene agrees in all of them, and added.

What is off that plane is blurred as by a lens as large as the aperture. Where few views stand far apart, the blur
falls into separate copies (ghosts) as soon as a thing moves by more than about a pixel from view to view, beyond what
the shift makes up for; `densify` interpolates views between the cameras first. Method: R. Ng et al., "Light Field
Photography with a Hand-held Plenoptic Camera", 2005.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch

from diffusers_stale.axes import check_count, displaced, view_coordinates
from diffusers_stale.light_field.camera_grid import check_number
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.file import LightFieldFile
from diffusers_stale.light_field.interpolation import view_between
from diffusers_stale.light_field.viewpoints import (
    focus_of,
    in_dtype_of,
    moments_of,
    pixels_of,
    search_reach,
    shifted,
)


Shape = Literal["disc", "square"]

MAX_DENSIFY = 64
"""Most views for one step between neighbouring cameras."""


def refocus(
    light_field: LightField | torch.Tensor,
    focus: float | None = None,
    aperture: float | None = None,
    shape: Shape = "disc",
    densify: int = 1,
    max_disparity: float | None = None,
) -> torch.Tensor:
    """The movie through a large lens: one plane is sharp, what is nearer or farther is blurred.

    Args:
        light_field: the movie, or pixels `(3, view_rows, view_cols, frames, height, width)`.
        focus: what is sharp, in pixels of disparity per neighbouring view (positive: near; see `axes.py`); by default
            the focal plane of the camera grid, 0 for tensors.
        aperture: radius of the lens, in distances between neighbouring views; 0 is the middle view, all sharp. By
            default it touches the outermost cameras. Views at its rim count in part, so that it opens smoothly.
        shape: "disc", or "square" (whose radius is half of its side).
        densify: views for one step between cameras, those between them interpolated: 4 makes 9x9 of 3x3.
        max_disparity: largest shift between neighbouring views that interpolation looks for, in pixels; by default
            what the movie's own disparity says, or a twentieth of the width.

    Returns:
        Shape `(3, frames, height, width)`, in the dtype of the pixels; differentiable in floating-point pixels.
        Beyond the edge of a view that view does not count, so that a plain picture stays plain.

    Raises:
        ValueError: for pixels of another shape or not finite, for an aperture that is larger than the grid or has no
            view in it, for a focus that would shift views by more than half of the picture, an unknown shape.
    """
    pixels = pixels_of(light_field)
    plane, reach = focus_of(light_field, focus), search_reach(light_field, max_disparity)
    pictures = [refocus_moment(moment, plane, aperture, shape, densify, reach) for moment in moments_of(pixels)]
    return in_dtype_of(pixels, torch.stack(pictures, dim=1))


def refocused_frames(
    movie: LightField | LightFieldFile[LightField],
    focus: float | None = None,
    aperture: float | None = None,
    shape: Shape = "disc",
    densify: int = 1,
    max_disparity: float | None = None,
) -> Iterator[torch.Tensor]:
    """`refocus`, one frame `(3, height, width)` after the other; of an open file, nothing but that frame is read."""
    part = movie.read if isinstance(movie, LightFieldFile) else movie.select
    for index in range(movie.sizes["frames"]):
        yield refocus(part(frames=index), focus, aperture, shape, densify, max_disparity)[:, 0]


def refocus_moment(
    moment: torch.Tensor,
    focus: float,
    aperture: float | None = None,
    shape: Shape = "disc",
    densify: int = 1,
    max_disparity: float = 1.0,
) -> torch.Tensor:
    """`refocus` of one moment: floating point in [-1, 1], shape `(3, view_rows, view_cols, height, width)`.

    Returns shape `(3, height, width)`. Raises `ValueError` as `refocus` does.
    """
    grid, (height, width) = tuple(moment.shape[1:3]), moment.shape[-2:]
    step = 1.0 / check_count("densify", densify, MAX_DENSIFY)
    weights = aperture_weights(*grid, aperture, shape, densify)
    rows, cols = (view_coordinates(count, step).tolist() for count in weights.shape)
    used = [(index, float(weights[index])) for index in map(tuple, torch.nonzero(weights).tolist())]
    _check_focus(focus, [abs(rows[r]) for (r, _), _ in used], height)
    _check_focus(focus, [abs(cols[c]) for (_, c), _ in used], width)
    total, weight_of_all = torch.zeros_like(moment[:, 0, 0]), moment.new_zeros(height, width)
    for (r, c), weight in used:
        view = view_between(moment, r * step, c * step, max_disparity)
        # A point on the focal plane is found at `displaced` in this view; moved back by as much it falls on itself.
        down, right = (-displaced(0.0, focus, coordinate) for coordinate in (rows[r], cols[c]))
        inside = _inside(height, down, moment)[:, None] * _inside(width, right, moment)
        total = total + shifted(view, down, right) * (weight * inside)
        weight_of_all = weight_of_all + weight * inside
    return (total / weight_of_all).clamp(-1.0, 1.0)


def aperture_weights(
    view_rows: int, view_cols: int, aperture: float | None = None, shape: Shape = "disc", densify: int = 1
) -> torch.Tensor:
    """How much each view counts: 1 well inside the aperture, less at its rim, 0 outside.

    Returns shape `((view_rows - 1) * densify + 1, (view_cols - 1) * densify + 1)`. A rim that goes through a view
    gives it a half, so that the sum over views is a trapezoidal rule and grids of any density stand for the same lens.
    Raises `ValueError` as `refocus` does.
    """
    if shape not in SHAPES:
        raise ValueError(f"`shape` must be one of {', '.join(SHAPES)}, got {shape!r}; choose one.")
    largest = (max(view_rows, view_cols) - 1) / 2
    radius = largest if aperture is None else check_number("aperture", aperture)
    if not 0.0 <= radius <= largest:
        raise ValueError(
            f"`aperture` must be between 0 and {largest:g} for {view_rows}x{view_cols} views, got {radius:g}; make it "
            "smaller, or make the movie with more views."
        )
    rows, cols = (view_coordinates((count - 1) * densify + 1, 1 / densify) for count in (view_rows, view_cols))
    weights = SHAPES[shape](rows[:, None], cols[None], radius, 1 / densify)
    if not weights.any():
        raise ValueError(
            f"`aperture` must hold a view of the {view_rows}x{view_cols}, of which none is in the middle, got "
            f"{radius:g}; make it larger, or `densify` an even number, which puts a view there."
        )
    return weights


def _disc(rows: torch.Tensor, cols: torch.Tensor, radius: float, step: float) -> torch.Tensor:
    return _within(torch.hypot(rows, cols), radius, step)


def _square(rows: torch.Tensor, cols: torch.Tensor, radius: float, step: float) -> torch.Tensor:
    return _within(rows.abs(), radius, step) * _within(cols.abs(), radius, step)


def _within(distance: torch.Tensor, radius: float, step: float) -> torch.Tensor:
    """Part of a stretch of length `step` about `distance` that ends before `radius`."""
    return ((radius - distance) / step + 0.5).clamp(0.0, 1.0)


def _check_focus(focus: float, coordinates: list[float], size: int) -> None:
    """Every pixel is seen by some view as long as none is shifted by more than half of the picture."""
    most = (size - 1) / 2 / max(coordinates) if max(coordinates) > 0 else math.inf
    if abs(focus) > most:
        raise ValueError(
            f"`focus` must be between {-most:.3g} and {most:.3g} pixels per view for {size} pixels and this aperture, "
            f"got {focus:g}; choose a plane of the scene, or a smaller aperture."
        )


def _inside(size: int, shift: float, like: torch.Tensor) -> torch.Tensor:
    """1 where a shifted view has pixels, 0 from a whole pixel beyond its edge; shape `(size,)`."""
    places = torch.arange(size, dtype=like.dtype, device=like.device) - shift
    return (1.0 - torch.maximum(-places, places - (size - 1)).clamp(min=0.0)).clamp(min=0.0)


SHAPES: dict[str, Callable[[torch.Tensor, torch.Tensor, float, float], torch.Tensor]] = {
    "disc": _disc,
    "square": _square,
}
"""Every shape of an aperture by its name: weights from signed rows, columns, the radius, the distance of views."""
