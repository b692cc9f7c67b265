"""A light field with other numbers of views, frames or pixels. Cameras stay where the outermost ones were."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from diffusers_stale.axes import check_count
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.interpolation import Interpolator
from diffusers_stale.light_field.viewpoints import as_float, in_dtype_of, search_reach


MAX_SIZE = 16384
"""Largest height or width, in pixels."""


def resample(
    light_field: LightField,
    view_rows: int | None = None,
    view_cols: int | None = None,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    max_disparity: float | None = None,
) -> LightField:
    """A light field of other sizes that shows the same.

    Args:
        light_field: what is resampled.
        view_rows, view_cols: how many cameras, from the first to the last one as before; those between cameras are
            interpolated. Both axes must end up with one spacing, unless an axis has a single camera.
        frames: how many, in the same time; each is the mean over its share of that time, so that nothing flickers, and
            where there are more frames than before they are repeated in part.
        height, width: pixels; either follows from the other. Reduced by averaging, enlarged smoothly (bicubic).
        max_disparity: largest shift between neighbouring views that interpolation looks for, in pixels.

    Returns:
        A new movie. Disparity follows where only pixels change; it is left out where views or frames do.

    Raises:
        ValueError: for counts below 1, more than one camera from a single one, spacings that differ, and another shape
            of the picture.
    """
    rows, cols = view_rows or light_field.view_rows, view_cols or light_field.view_cols
    for name, value in (("view_rows", view_rows), ("view_cols", view_cols), ("frames", frames)):
        if value is not None:
            check_count(name, value)
    movie = light_field
    if frames is not None and frames != movie.num_frames:
        movie = _other_frames(movie, frames)
    if (rows, cols) != (movie.view_rows, movie.view_cols):
        movie = _other_views(movie, rows, cols, max_disparity)
    if height is not None or width is not None:
        movie = _other_pixels(movie, height, width)
    return movie


def _other_frames(movie: LightField, count: int) -> LightField:
    share = movie.num_frames / count
    pictures = []
    for index in range(count):
        start, stop = index * share, (index + 1) * share
        parts = [
            (frame, min(stop, frame + 1) - max(start, frame))
            for frame in range(math.floor(start + 1e-9), min(movie.num_frames, math.ceil(stop - 1e-9)))
        ]
        total = sum(movie.pixels[:, :, :, frame].float() * part for frame, part in parts)
        pictures.append(total.div(sum(part for _, part in parts)).round_().to(torch.uint8))
    pixels = torch.stack(pictures, dim=3)
    return LightField(pixels, movie.frame_rate * count / movie.num_frames, movie.camera_grid, None, movie.provenance)


def _other_views(movie: LightField, rows: int, cols: int, max_disparity: float | None) -> LightField:
    steps = [
        _step(name, old, new)
        for name, old, new in (("view_rows", movie.view_rows, rows), ("view_cols", movie.view_cols, cols))
    ]
    spacings = {round(step, 6): step for step in steps if step is not None} or {1.0: 1.0}
    if len(spacings) > 1:
        raise ValueError(
            f"A camera grid has one spacing, got {steps[0]:g} of it along rows and {steps[1]:g} along columns for "
            f"{rows}x{cols} views of {movie.view_rows}x{movie.view_cols}; choose numbers that keep them equal."
        )
    step = next(iter(spacings.values()))
    places = [
        (
            (movie.view_rows - 1) / 2 + (row - (rows - 1) / 2) * step,
            (movie.view_cols - 1) / 2 + (col - (cols - 1) / 2) * step,
        )
        for row in range(rows)
        for col in range(cols)
    ]
    reach, moments = search_reach(movie, max_disparity), []
    for index in range(movie.num_frames):
        moment = movie.pixels[:, :, :, index]
        views = Interpolator(as_float(moment), reach)
        seen = torch.stack([in_dtype_of(moment, views.view(*place)) for place in places], dim=1)
        moments.append(seen.unflatten(1, (rows, cols)))
    grid = replace(movie.camera_grid, view_rows=rows, view_cols=cols, spacing=movie.camera_grid.spacing * step)
    return LightField(torch.stack(moments, dim=3), movie.frame_rate, grid, None, movie.provenance)


def _step(name: str, old: int, new: int) -> float | None:
    """Distance of the new cameras, in old ones; None where there is a single one."""
    if new > 1 and old == 1:
        raise ValueError(f"`{name}` can only be 1 for a movie with a single one, got {new}; make it with more views.")
    return (old - 1) / (new - 1) if new > 1 else None


def _other_pixels(movie: LightField, height: int | None, width: int | None) -> LightField:
    given = [(value, old) for value, old in ((height, movie.height), (width, movie.width)) if value is not None]
    for value, _ in given:
        check_count("height and width", value, MAX_SIZE)
    factor = given[0][0] / given[0][1]
    size = [max(1, round(old * factor)) for old in (movie.height, movie.width)]
    wanted = [size[0] if height is None else height, size[1] if width is None else width]
    if any(abs(wanted[axis] - size[axis]) > 1 for axis in (0, 1)):
        raise ValueError(
            f"`height` and `width` must keep the shape of {movie.height}x{movie.width}, got "
            f"{wanted[0]}x{wanted[1]}; {size[0]}x{size[1]} would do, or crop it first with `select`."
        )
    smaller = wanted[0] < movie.height
    moments = []
    for index in range(movie.num_frames):
        views = movie.pixels[:, :, :, index].flatten(0, 2)[:, None].float()
        # Area averaging where pixels get fewer: what is finer than the new ones must not alias.
        resized = (
            F.interpolate(views, wanted, mode="area") if smaller else F.interpolate(views, wanted, mode="bicubic")
        )
        moments.append(resized.round_().clamp_(0, 255).to(torch.uint8).unflatten(0, movie.shape[:3])[:, :, :, 0])
    disparity = None
    if movie.disparity is not None:
        planes = movie.disparity.flatten(0, 2)[:, None]
        disparity = F.interpolate(planes, wanted, mode="nearest").unflatten(0, movie.disparity.shape[:3])[:, :, :, 0]
        disparity = disparity * factor
    grid = replace(movie.camera_grid, focal_disparity=movie.camera_grid.focal_disparity * factor)
    return LightField(torch.stack(moments, dim=3), movie.frame_rate, grid, disparity, movie.provenance)
