"""What refocusing and displays share: the pixels of a movie, a view from anywhere in its grid, and sub-pixel shifts.

Works on floating-point pixels in [-1, 1]; `in_dtype_of` brings the result back to what came in.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from diffusers_stale.axes import check_light_field, middle_index
from diffusers_stale.light_field.camera_grid import MOVIE_AXES, check_number
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.interpolation import view_between


WIDEST_DISPARITY = 0.05
"""Shift between neighbouring views, as a part of the width, up to which an unknown disparity is searched."""

MARGIN = 0.5
"""Pixels that are searched beyond a known disparity."""

SEARCH_STEP = 0.25
"""Distance between candidates of `disparity_range`, in pixels."""

WINDOW = 7
"""Side of the window in which two views must agree in `disparity_range`, in pixels."""

OUTLIERS = 0.01
"""Part of the estimates at either end that `disparity_range` takes for mistakes."""

PREFER_FLAT = 1e-4
"""Cost of a pixel of disparity, for plain areas where all candidates agree."""


def pixels_of(light_field: LightField | torch.Tensor) -> torch.Tensor:
    """Pixels `(3, view_rows, view_cols, frames, height, width)`, uint8 or floating point, of a movie or of themselves.

    Raises `ValueError` for anything else, and for numbers that are not finite, of which it names the first.
    """
    pixels = light_field.pixels if isinstance(light_field, LightField) else light_field
    if not isinstance(pixels, torch.Tensor):
        raise ValueError(f"Expected a LightField or its pixels, got {type(pixels).__name__}; pass one of them.")
    check_light_field(pixels[None])
    if pixels.shape[0] != 3 or not (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
        raise ValueError(
            f"Expected 3 channels of uint8, or of floating point in [-1, 1], got {pixels.shape[0]} of {pixels.dtype}; "
            "convert the pixels."
        )
    if pixels.is_floating_point() and not torch.isfinite(pixels).all():
        first = torch.nonzero(~torch.isfinite(pixels))[0].tolist()
        place = ", ".join(f"{name} {index}" for name, index in zip(MOVIE_AXES, first, strict=True))
        raise ValueError(f"Expected finite pixels in [-1, 1], got NaN or infinity, first at {place}; mend them there.")
    return pixels


def moments_of(pixels: torch.Tensor) -> Iterator[torch.Tensor]:
    """One frame after the other, floating point in [-1, 1], shape `(3, view_rows, view_cols, height, width)`."""
    for moment in pixels.unbind(MOVIE_AXES.index("frames")):
        if moment.is_floating_point():
            yield moment if moment.dtype == torch.float64 else moment.float()
        else:
            yield moment.float().div_(127.5).sub_(1.0)


def in_dtype_of(pixels: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """A floating-point `picture` in [-1, 1], values beyond clamped, in the dtype of `pixels`."""
    clamped = picture.clamp(-1.0, 1.0)
    if pixels.is_floating_point():
        return clamped.to(pixels.dtype)
    return clamped.add(1.0).mul(127.5).round().to(pixels.dtype)


def spacing_of(light_field: LightField | torch.Tensor) -> float:
    """View steps between neighbouring cameras; tensors are taken to have 1."""
    return light_field.camera_grid.spacing if isinstance(light_field, LightField) else 1.0


def focus_of(light_field: LightField | torch.Tensor, focus: float | None) -> float:
    """`focus`, or what the camera grid says, in pixels per neighbouring view. Raises `ValueError` if not finite."""
    if focus is not None:
        return check_number("focus", focus)
    if isinstance(light_field, LightField):
        return light_field.camera_grid.focal_disparity * light_field.camera_grid.spacing
    return 0.0


def search_reach(light_field: LightField | torch.Tensor, max_disparity: float | None = None) -> float:
    """Largest shift between neighbouring views that interpolation has to look for, in pixels.

    `max_disparity` if it is given; else what a known disparity says, and a little more; else a twentieth of the width,
    times baseline and spacing where they are known to be above 1.
    """
    if max_disparity is not None:
        return check_number("max_disparity", max_disparity, positive=True)
    if not isinstance(light_field, LightField):
        return WIDEST_DISPARITY * light_field.shape[-1]
    grid = light_field.camera_grid
    if light_field.disparity is not None:
        return float(light_field.disparity.abs().max()) * grid.spacing + MARGIN
    return WIDEST_DISPARITY * light_field.width * max(1.0, abs(grid.baseline) * grid.spacing)


def seen_from(moment: torch.Tensor, row: float, col: float, reach: float, focus: float = 0.0) -> torch.Tensor:
    """The view at `(row, col)`, moved sideways so that what has disparity `focus` stands where the reference has it.

    `moment`: floating point, shape `(3, view_rows, view_cols, height, width)`; the others as for `view_between`, and
    pixels per neighbouring view. Returns shape `(3, height, width)`; pixels from beyond an edge repeat the edge.
    """
    seen = view_between(moment, row, col, reach)
    return shifted(seen, 0.0, focus * (col - (moment.shape[2] - 1) / 2))


def shifted(picture: torch.Tensor, down: float, right: float) -> torch.Tensor:
    """`picture` `(..., height, width)` moved by so many pixels, cubic in between; edges are repeated.

    Whole shifts are exact. Cubic convolution: R. Keys, 1981, with a = -1/2.
    """
    return _shifted_along(_shifted_along(picture, down, -2), right, -1)


def _shifted_along(picture: torch.Tensor, shift: float, axis: int) -> torch.Tensor:
    if shift == 0.0:
        return picture
    whole = math.floor(-shift)
    t = -shift - whole
    size = picture.shape[axis]
    places = torch.arange(size, device=picture.device) + whole
    weights = (
        ((-0.5 * t + 1.0) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1.0,
        ((-1.5 * t + 2.0) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )
    parts = [
        picture.index_select(axis, (places + offset).clamp(0, size - 1)) * weight
        for offset, weight in zip((-1, 0, 1, 2), weights, strict=True)
        if weight != 0.0
    ]
    return torch.stack(parts).sum(dim=0)


def disparity_range(light_field: LightField | torch.Tensor, max_disparity: float | None = None) -> tuple[float, float]:
    """Least and largest disparity in the middle row of cameras, in pixels per neighbouring view.

    Of a movie that knows its disparity, the truth; else an estimate from the middle frame and the two views in the
    middle, without the outermost hundredth of its pixels. It is 0 to 0 for a single column.
    """
    pixels = pixels_of(light_field)
    row = middle_index(pixels.shape[1])
    if isinstance(light_field, LightField) and light_field.disparity is not None:
        known = light_field.disparity[row] * light_field.camera_grid.spacing
        return float(known.min()), float(known.max())
    if pixels.shape[2] == 1:
        return 0.0, 0.0
    frame, col = middle_index(pixels.shape[3]), middle_index(pixels.shape[2])
    left, right = next(moments_of(pixels[:, row : row + 1, col - 1 : col + 1, frame : frame + 1]))[:, 0].unbind(1)
    reach = search_reach(light_field, max_disparity)
    candidates = torch.linspace(-reach, reach, 2 * math.ceil(reach / SEARCH_STEP) + 1)
    costs = torch.stack([_disagreement(left, right, float(d)) + PREFER_FLAT * abs(float(d)) for d in candidates])
    best = candidates[costs.argmin(dim=0).flatten().cpu()]
    ends = torch.quantile(best[:: max(1, best.numel() // 1_000_000)], torch.tensor([OUTLIERS, 1.0 - OUTLIERS]))
    return float(ends[0]), float(ends[1])


def _disagreement(left: torch.Tensor, right: torch.Tensor, disparity: float) -> torch.Tensor:
    """How much two neighbouring views differ, in a window about each pixel, if all has this disparity."""
    # From the middle between the two, the left camera is half a step to the left (see axes.py for the sign).
    difference = (shifted(left, 0.0, -disparity / 2) - shifted(right, 0.0, disparity / 2)).square().sum(dim=0)
    return F.avg_pool2d(difference[None, None], WINDOW, 1, WINDOW // 2, count_include_pad=False)[0, 0]
