"""What all projections and displays share: the pixels of a movie, what their options mean, and its depth.

Works on floating-point pixels in [-1, 1]; `in_dtype_of` brings the result back to what came in.
"""

from collections.abc import Iterator
from typing import Protocol

import torch

from diffusers_stale.axes import middle_index
from diffusers_stale.light_field.camera_grid import MOVIE_AXES, CameraGrid, check_finite, check_number
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.interpolation import Interpolator
from diffusers_stale.light_field.shifting import shifted


WIDEST_DISPARITY = 0.05
"""Shift between neighbouring views, as a part of the width, up to which an unknown disparity is searched."""

MARGIN = 0.5
"""Pixels that are searched beyond a known disparity."""

OUTLIERS = 0.01
"""Part of the estimates at either end that `disparity_range` takes for mistakes."""


class WithCameras(Protocol):
    """A light field, or an open file of one."""

    camera_grid: CameraGrid


def pixels_of(light_field: LightField | torch.Tensor) -> torch.Tensor:
    """Pixels `(3, view_rows, view_cols, frames, height, width)`, uint8 or floating point, of a movie or of themselves.

    Raises `ValueError` for anything else, and for numbers that are not finite, of which it names the first.
    """
    pixels = light_field.pixels if isinstance(light_field, LightField) else light_field
    if not isinstance(pixels, torch.Tensor):
        raise ValueError(f"Expected a LightField or its pixels, got {type(pixels).__name__}; pass one of them.")
    if pixels.ndim != len(MOVIE_AXES) or 0 in pixels.shape:
        raise ValueError(
            f"Expected pixels of the axes {MOVIE_AXES}, each at least 1 long, got shape {tuple(pixels.shape)}; add "
            "axes of length 1 (a still is a movie of one view and one frame), or pass movies of a batch one by one."
        )
    if pixels.shape[0] != 3 or not (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
        raise ValueError(
            f"Expected 3 channels of uint8, or of floating point in [-1, 1], got {pixels.shape[0]} of {pixels.dtype}; "
            "convert the pixels."
        )
    check_finite(pixels, MOVIE_AXES)
    return pixels


def frame_of(pixels: torch.Tensor, frame_index: int | None) -> int:
    """`frame_index`, or the middle one. Raises `ValueError` for a frame that is not there."""
    count = pixels.shape[MOVIE_AXES.index("frames")]
    if frame_index is None:
        return middle_index(count)
    if isinstance(frame_index, bool) or not isinstance(frame_index, int) or not -count <= frame_index < count:
        raise ValueError(f"`frame_index` must be between {-count} and {count - 1}, got {frame_index!r}; choose one.")
    return frame_index


def moments_of(pixels: torch.Tensor) -> Iterator[torch.Tensor]:
    """One frame after the other, floating point in [-1, 1], shape `(3, view_rows, view_cols, height, width)`."""
    for moment in pixels.unbind(MOVIE_AXES.index("frames")):
        yield as_float(moment)


def as_float(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels as float32 (float64 stays) in [-1, 1]."""
    if pixels.is_floating_point():
        return pixels if pixels.dtype == torch.float64 else pixels.float()
    return pixels.float().div_(127.5).sub_(1.0)


def in_dtype_of(pixels: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """A floating-point `picture` in [-1, 1], values beyond clamped, in the dtype of `pixels`."""
    return picture.clamp(-1.0, 1.0).to(pixels.dtype) if pixels.is_floating_point() else as_bytes(picture)


def as_bytes(picture: torch.Tensor) -> torch.Tensor:
    """A floating-point `picture` in [-1, 1], values beyond clamped, as uint8."""
    return picture.clamp(-1.0, 1.0).add(1.0).mul(127.5).round().to(torch.uint8)


def spacing_of(light_field: WithCameras | torch.Tensor) -> float:
    """View steps between neighbouring cameras; tensors are taken to have 1."""
    return 1.0 if isinstance(light_field, torch.Tensor) else light_field.camera_grid.spacing


def focus_of(light_field: WithCameras | torch.Tensor, focus: float | None) -> float:
    """`focus`, or what the camera grid says, in pixels per neighbouring view. Raises `ValueError` if not finite."""
    if focus is not None:
        return check_number("focus", focus)
    if isinstance(light_field, torch.Tensor):
        return 0.0
    return light_field.camera_grid.focal_disparity * light_field.camera_grid.spacing


def search_reach(light_field: LightField | torch.Tensor, max_disparity: float | None = None) -> float:
    """Largest shift between neighbouring views that interpolation has to look for, in pixels.

    `max_disparity` if it is given; else what a known disparity says, and a little more; else a twentieth of the width,
    times baseline and spacing where they are known to be above 1. Never more than the longer side of a picture: what
    moves farther is in one view only. Raises `ValueError` where `max_disparity` is.
    """
    most = float(max(light_field.shape[-2:]))
    if max_disparity is not None:
        if check_number("max_disparity", max_disparity, positive=True) > most:
            raise ValueError(
                f"`max_disparity` must be at most {most:g} pixels, the longer side of a picture, got "
                f"{max_disparity:g}; what moves farther is in one view only."
            )
        return float(max_disparity)
    if not isinstance(light_field, LightField):
        return WIDEST_DISPARITY * light_field.shape[-1]
    grid = light_field.camera_grid
    if light_field.disparity is not None:
        return min(most, float(light_field.disparity.abs().max()) * grid.spacing + MARGIN)
    return min(most, WIDEST_DISPARITY * light_field.width * max(1.0, abs(grid.baseline) * grid.spacing))


def seen_from(views: Interpolator, row: float, col: float, focus: float = 0.0) -> torch.Tensor:
    """The view at `(row, col)`, moved sideways so that what has disparity `focus` stands where the reference has it.

    `focus` is in pixels per neighbouring view. Returns shape `(3, height, width)`; pixels from beyond an edge repeat
    the edge.
    """
    return shifted(views.view(row, col), 0.0, focus * (col - (views.views.shape[2] - 1) / 2))


def disparity_range(light_field: LightField | torch.Tensor, max_disparity: float | None = None) -> tuple[float, float]:
    """Least and largest disparity in the middle row of cameras, in pixels per neighbouring view.

    Of a movie that knows its disparity, the truth; else an estimate for the middle camera of that row in the middle
    frame, without the outermost hundredth of its pixels. It is 0 to 0 for a single column.
    """
    pixels = pixels_of(light_field)
    row = middle_index(pixels.shape[1])
    if isinstance(light_field, LightField) and light_field.disparity is not None:
        known = light_field.disparity[row] * light_field.camera_grid.spacing
        return float(known.min()), float(known.max())
    if pixels.shape[2] == 1:
        return 0.0, 0.0
    frame, col = middle_index(pixels.shape[3]), middle_index(pixels.shape[2])
    moment = next(moments_of(pixels[:, row : row + 1, max(0, col - 1) : col + 2, frame : frame + 1]))
    found = Interpolator(moment, search_reach(light_field, max_disparity)).disparity(0, 1).flatten().cpu()
    ends = torch.quantile(found[:: max(1, found.numel() // 1_000_000)], found.new_tensor([OUTLIERS, 1.0 - OUTLIERS]))
    return float(ends[0]), float(ends[1])
