"""Depth from the light field itself: how lines lean in epipolar images, by the structure tensor, with confidence.

Method: S. Wanner and B. Goldluecke, "Globally Consistent Depth Labeling of 4D Light Fields", CVPR 2012, for the
tensor; M. Diebold and B. Goldluecke, "Epipolar Plane Image Refocusing for Improved Depth Estimation and Occlusion
Handling", VMV 2013, for shearing the images first: lines that lean by more than about a pixel cannot be read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusers_stale.axes import displaced, view_coordinates
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.shifting import box_mean, shifted
from diffusers_stale.light_field.viewpoints import in_dtype_of, moments_of, pixels_of, search_reach


SHEAR_STEP = 0.5
"""Distance between the disparities to which epipolar images are sheared, in pixels per neighbouring view."""

WINDOW = 5
"""Side of the window over which the tensor is averaged, in pixels."""

LARGEST_SLOPE = 0.75
"""Disparity beside that of the shear, in pixels, beyond which a line cannot be read."""

NOISE = 2e-3
"""Mean square of a difference of neighbouring pixels, of [-1, 1], below which there is no texture to speak of."""

BENT = 12.0
"""How much it counts against a line that it is bent, beside the squares of gradients."""

WORSE = 7e-5
"""What a disparity may leave unexplained beyond what another one does, in squares of [-1, 1], before it counts half.
Beside an edge, a wrong shear moves the edge of a view into a window that is plain for the right one."""

WIDER = 0.1
"""Weight of the surroundings beside a pixel's own measurement where `depth_map` fills gaps."""

CONFIDENT = 0.8
"""Confidence from which on a disparity is a measurement: on rendered barnyards half of them are off by less than 0.1
pixels per view. Near the edges of near things the farther side gets their disparity, within half a window."""


@dataclass(frozen=True)
class Depth:
    """Disparity of the reference view and how far it can be trusted.

    `disparity`: pixels per neighbouring view, positive is near (see `axes.py`), shape `(frames, height, width)`.
    `confidence`: 0 (plain, or lines that do not fit together) to 1, same shape.
    """

    disparity: torch.Tensor
    confidence: torch.Tensor


def measured_depth(light_field: LightField | torch.Tensor, max_disparity: float | None = None) -> Depth:
    """Disparity as seen from the middle of the grid, from the pixels alone; differentiable in floating-point pixels.

    Args:
        light_field: the movie, or pixels `(3, view_rows, view_cols, frames, height, width)`.
        max_disparity: largest disparity that is looked for, in pixels per neighbouring view; by default what the
            movie's own disparity says, or a twentieth of the width.

    Raises:
        ValueError: for pixels of another shape or not finite, and for a single view.
    """
    pixels = pixels_of(light_field)
    if pixels.shape[1] * pixels.shape[2] == 1:
        raise ValueError(
            "Depth needs at least 2 views along an axis, got a single one; make the movie with more, as with "
            "`--views 3x3`."
        )
    reach = search_reach(light_field, max_disparity)
    count = 2 * math.ceil(reach / SHEAR_STEP) + 1
    shears = [reach * (2 * index / (count - 1) - 1) for index in range(count)]
    found = [_depth_of(moment, shears) for moment in moments_of(pixels)]
    return Depth(torch.stack([item[0] for item in found]), torch.stack([item[1] for item in found]))


def depth_map(
    light_field: LightField | torch.Tensor,
    max_disparity: float | None = None,
    ends: tuple[float, float] | None = None,
) -> torch.Tensor:
    """Depth as grey: near is bright, far is dark; what cannot be measured is filled from what can about it.

    Args:
        light_field, max_disparity: as for `measured_depth`, which gives numbers.
        ends: disparities that are black and white, by default the least and the largest of the movie.

    Returns shape `(3, frames, height, width)` in the dtype of the pixels. Raises `ValueError` as `measured_depth`.
    """
    pixels = pixels_of(light_field)
    smooth = smooth_disparity(measured_depth(light_field, max_disparity))
    low, high = (smooth.min(), smooth.max()) if ends is None else (smooth.new_tensor(end) for end in ends)
    grey = (smooth - low) / (high - low).clamp(min=1e-6) * 2 - 1
    return in_dtype_of(pixels, grey.expand(3, -1, -1, -1))


def smooth_disparity(depth: Depth) -> torch.Tensor:
    """Disparity without gaps and single mistakes, in pixels per neighbouring view, shape `(frames, height, width)`."""
    return torch.stack([_median(_filled(*pair)) for pair in zip(depth.disparity, depth.confidence, strict=True)])


def _depth_of(moment: torch.Tensor, shears: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Disparity and confidence of one moment `(3, view_rows, view_cols, height, width)`, each `(height, width)`."""
    slopes, confidences, left = (torch.stack(maps) for maps in zip(*(_slope(moment, s) for s in shears), strict=True))
    confidences = confidences * WORSE / (WORSE + left - left.amin(dim=0))
    # Beyond what a line may lean it is still better than nothing, if no other shear can read it.
    rank = torch.where(slopes.abs() <= LARGEST_SLOPE, confidences, confidences * 1e-3)
    best, index = rank.max(dim=0)
    disparities = slopes + slopes.new_tensor(shears)[:, None, None]
    return disparities.gather(0, index[None])[0], best.clamp(0.0, 1.0)


def _slope(moment: torch.Tensor, shear: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Disparity beside `shear`, confidence, and what stays unexplained: mean squares of pixels of [-1, 1].

    From the structure tensor of epipolar images of both axes together.
    """
    along = across = both = bent = 0.0
    for axis, picture_axis in ((1, -2), (2, -1)):
        count = moment.shape[axis]
        if count == 1:
            continue
        other = 3 - axis
        lines = moment.select(other, (moment.shape[other] - 1) // 2)
        coordinates = view_coordinates(count).tolist()
        views = [_sheared(view, shear, coordinates[index], picture_axis) for index, view in enumerate(lines.unbind(1))]
        # The three views in the middle, or two: lines are straight there even where something hides them farther out.
        used = [index for index, coordinate in enumerate(coordinates) if abs(coordinate) <= 1.0]
        spread = sum(coordinates[index] ** 2 for index in used)
        change = sum(coordinates[index] * views[index] for index in used) / spread
        middle = sum(views[index] for index in used) / len(used)
        along = along + _difference(middle, picture_axis).square().sum(dim=0)
        across = across + (_difference(middle, picture_axis) * change).sum(dim=0)
        both = both + change.square().sum(dim=0)
        bent = bent + _bent(views, coordinates, middle, change)
    along, across, both = (box_mean(part, WINDOW) for part in (along, across, both))
    # What stands at x - d * u changes from view to view by d times its gradient: the least squares of that.
    slope = across / (along + 1e-8)
    coherence = ((along - both).square() + 4 * across.square() + 1e-20).sqrt() / (along + both + 1e-8)
    # Of an even line nothing remains but rounding; the part of the change that the slope does not explain tells more.
    unexplained = (both - slope * across).clamp(min=0.0)
    confidence = coherence * along / (along + NOISE + 4 * unexplained + BENT * bent)
    return slope, confidence, unexplained + bent


def _bent(
    views: Sequence[torch.Tensor], coordinates: Sequence[float], middle: torch.Tensor, change: torch.Tensor
) -> torch.Tensor:
    """How far views are from a straight line through the middle ones, on the side that fits better.

    Lines that repeat themselves, as the boards of a wall do, can agree in three views by chance, and no longer in the
    outer ones.
    """
    sides = []
    for sign in (-1, 1):
        off = [
            (view - middle - coordinate * change).square().sum(dim=0)
            for view, coordinate in zip(views, coordinates, strict=True)
            if coordinate * sign > 0
        ]
        sides.append(box_mean(sum(off) / len(off), WINDOW))
    return torch.minimum(*sides)


def _sheared(view: torch.Tensor, shear: float, coordinate: float, picture_axis: int) -> torch.Tensor:
    """The view moved back by what a point of disparity `shear` has moved in it."""
    back = -float(displaced(0.0, shear, coordinate))
    return shifted(view, back, 0.0) if picture_axis == -2 else shifted(view, 0.0, back)


def _difference(picture: torch.Tensor, axis: int) -> torch.Tensor:
    """Central differences along an axis, pixels of [-1, 1] a pixel; one-sided at the edges."""
    return torch.gradient(picture, dim=axis)[0] if picture.shape[axis] > 1 else torch.zeros_like(picture)


def _filled(disparity: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
    """Disparity weighted by confidence; where there is little, by what windows of growing size hold of it."""
    weight = confidence.square() + 1e-9
    total = disparity * weight
    side = 3
    while side < 2 * max(disparity.shape):
        total, weight = total + WIDER * box_mean(total, side), weight + WIDER * box_mean(weight, side)
        side = 2 * side + 1
    return total / weight


def _median(disparity: torch.Tensor) -> torch.Tensor:
    """Of the window about each pixel; beyond the edges they are repeated."""
    padded = F.pad(disparity[None, None], (WINDOW // 2,) * 4, mode="replicate")[0, 0]
    return padded.unfold(0, WINDOW, 1).unfold(1, WINDOW, 1).flatten(2).median(dim=-1).values
