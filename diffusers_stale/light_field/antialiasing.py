"""Against ghosts and stutter: few views and few frames are averaged before they are thinned out or added up.

Ghosts: a thing whose disparity differs from the focal plane by more than about a pixel per view is added up as
separate copies (J.-X. Chai et al., "Plenoptic Sampling", SIGGRAPH 2000). `prefiltered` spreads it, along the lines of
epipolar images, over the gap to its copy, so that the copies run into one another. Views from between the cameras
(`refocus(densify=...)`) come nearer to the truth and take longer. Stutter: `with_shutter` leaves the shutter open.
"""

import math
from collections.abc import Sequence

import torch

from diffusers_stale.axes import check_count
from diffusers_stale.light_field.camera_grid import Choice, check_number
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.file import LightFieldFile
from diffusers_stale.light_field.interpolation import Interpolator
from diffusers_stale.light_field.viewpoints import focus_of, in_dtype_of, moments_of, pixels_of, search_reach


MAX_SPREAD = 64.0
"""Widest filter, in pixels."""


def prefiltered(
    light_field: LightField | torch.Tensor, focus: float | None = None, max_disparity: float | None = None
) -> torch.Tensor:
    """Pixels in which what is off the focal plane is spread to where the neighbouring cameras have it.

    Args:
        light_field: the movie, or pixels `(3, view_rows, view_cols, frames, height, width)`.
        focus: what stays sharp, in pixels of disparity per neighbouring view; by default the focal plane of the
            camera grid, 0 for tensors.
        max_disparity: largest shift between neighbouring views that is looked for, in pixels.

    Returns:
        Pixels of the same shape and dtype, to be refocused at `focus` with a lens as large as the grid; differentiable
        in floating-point pixels. Along an axis with a single view nothing is spread.

    Raises:
        ValueError: for pixels of another shape or not finite.
    """
    pixels, plane = pixels_of(light_field), focus_of(light_field, focus)
    reach = search_reach(light_field, max_disparity)
    moments = [_prefiltered(Interpolator(moment, reach), plane) for moment in moments_of(pixels)]
    return in_dtype_of(pixels, torch.stack(moments, dim=3))


def with_shutter(light_field: LightField, every: int = 1, shutter: float = 1.0) -> LightField:
    """Fewer frames, each an exposure: the mean over a part of the time until the next one.

    Args:
        light_field: the movie.
        every: how many frames become one.
        shutter: part of that time during which the shutter is open, above 0 and at most 1: 0.5 is a film camera's
            180 degrees. A frame that is open in part counts in part; with less than a frame it is taken as it is.

    Returns:
        A movie of `ceil(frames / every)` frames at `1 / every` of the frame rate; frames that are missing at the end
        do not count. It has no disparity: an exposure shows things at many places.

    Raises:
        ValueError: for a count below 1 or above the number of frames, and a shutter that is not in (0, 1].
    """
    check_count("every", every, light_field.num_frames)
    weights = _exposure(every, _check_shutter(shutter))
    starts = range(0, light_field.num_frames, every)
    exposed = [_exposed(light_field.select(frames=slice(start, start + every)), weights) for start in starts]
    return LightField(
        torch.cat([part.pixels for part in exposed], dim=3),
        light_field.frame_rate / every,
        light_field.camera_grid,
        light_field.disparity if every == 1 else None,
        light_field.provenance,
    )


class Exposures:
    """An open file with longer exposures, of which one frame after the other is read; see `with_shutter`."""

    def __init__(self, file: LightFieldFile[LightField], every: int = 1, shutter: float = 1.0) -> None:
        self._file, self._every, self._shutter = file, every, shutter
        _exposure(check_count("every", every, file.sizes["frames"]), _check_shutter(shutter))
        self.sizes = {**file.sizes, "frames": math.ceil(file.sizes["frames"] / every)}
        self.frame_rate, self.camera_grid = file.frame_rate / every, file.camera_grid

    def read(self, *, view_rows: Choice = None, view_cols: Choice = None, frames: int | None = None) -> LightField:
        """The chosen part; `frames` is the index of one exposure, or None for all."""
        if frames is None:
            return with_shutter(self._file.read(view_rows=view_rows, view_cols=view_cols), self._every, self._shutter)
        if not -self.sizes["frames"] <= frames < self.sizes["frames"]:
            raise ValueError(f"`frames` must be an index of the {self.sizes['frames']} exposures, got {frames}.")
        start = frames % self.sizes["frames"] * self._every
        taken = slice(start, min(start + self._every, self._file.sizes["frames"]))
        part = self._file.read(view_rows=view_rows, view_cols=view_cols, frames=taken)
        return _exposed(part, _exposure(self._every, self._shutter))


def _check_shutter(shutter: float) -> float:
    if check_number("shutter", shutter, positive=True) > 1.0:
        raise ValueError(f"`shutter` must be above 0 and at most 1, got {shutter:g}; 1 is open all the time.")
    return shutter


def _exposure(every: int, shutter: float) -> list[float]:
    """Weight of each of `every` frames."""
    open_frames = max(1.0, shutter * every)
    return [min(1.0, max(0.0, open_frames - index)) for index in range(every)]


def _exposed(part: LightField, weights: Sequence[float]) -> LightField:
    """One frame of all of a movie, the first ones of which count by `weights`; one that is not mixed is untouched."""
    used = [(index, weight) for index, weight in enumerate(weights[: part.num_frames]) if weight > 0.0]
    pixels = part.pixels[:, :, :, :1]
    if len(used) > 1:
        total = sum(part.pixels[:, :, :, index].float() * weight for index, weight in used)
        pixels = total.div(sum(weight for _, weight in used)).round().to(torch.uint8)[:, :, :, None]
    disparity = part.disparity if len(weights) == 1 else None
    return LightField(pixels, part.frame_rate / len(weights), part.camera_grid, disparity, part.provenance)


def _prefiltered(views: Interpolator, focus: float) -> torch.Tensor:
    """One moment, shape `(3, view_rows, view_cols, height, width)`."""
    view_rows, view_cols = views.views.shape[1:3]
    rows = []
    for r in range(view_rows):
        cols = []
        for c in range(view_cols):
            beside = (views.disparity(r, c) - focus).clamp(-MAX_SPREAD, MAX_SPREAD)
            picture = _spread(views.views[:, r, c], beside, -2, _neighbours(r, view_rows))
            cols.append(_spread(picture, beside, -1, _neighbours(c, view_cols)))
        rows.append(torch.stack(cols, dim=1))
    return torch.stack(rows, dim=1)


def _neighbours(index: int, count: int) -> list[int]:
    """On which sides, -1 or 1, a camera has a neighbour."""
    return [side for side in (-1, 1) if 0 <= index + side < count]


def _spread(picture: torch.Tensor, beside: torch.Tensor, axis: int, sides: Sequence[int]) -> torch.Tensor:
    """`picture` `(3, height, width)` with each pixel spread along an axis to where the neighbours on `sides` have it.

    Views between a camera and its neighbour show a mixture of both, whose share of this camera falls from 1 to 0: that
    is how a pixel is spread, as a slope of length `beside` to each side. What comes to a place is averaged there.
    """
    if not sides:
        return picture
    reach, size = math.ceil(float(beside.abs().max()) + 0.5), picture.shape[axis]
    length = beside.abs().clamp(min=1e-3)
    total, weight = torch.zeros_like(picture), torch.zeros_like(beside)
    for offset in range(-reach, reach + 1):
        start, stop = max(0, -offset), min(size, size - offset)
        # Where a neighbour has it: see `axes.displaced`, with a step of 1 to its side.
        share = sum(_slope_share(abs(offset), length) * _is_towards(offset, -beside * side) for side in sides)
        if start >= stop or not share.any():
            continue
        total.narrow(axis, start + offset, stop - start).add_((picture * share).narrow(axis, start, stop - start))
        weight.narrow(axis, start + offset, stop - start).add_(share.narrow(axis, start, stop - start))
    return total / weight.clamp(min=1e-6)


def _is_towards(offset: int, direction: torch.Tensor) -> torch.Tensor:
    return direction * offset > 0 if offset else torch.ones_like(direction, dtype=torch.bool)


def _slope_share(distance: int, length: torch.Tensor) -> torch.Tensor:
    """Part of a slope from 1 at 0 to 0 at `length`, of area 1, that falls on the pixel at a distance."""

    def area(end: float) -> torch.Tensor:
        part = (end / length).clamp(max=1.0)
        return part * (2.0 - part)

    return area(distance + 0.5) - (area(distance - 0.5) if distance else 0.0)
