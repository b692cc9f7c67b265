"""Interlaced pictures for lenticular sheets and screens: under each lens a strip of every view.

A lens turns its strips around, so that the view for the left eye lies rightmost under it. Method: C. van Berkel,
"Image Preparation for 3D-LCD", SPIE 3639, 1999.
"""

import torch
import torch.nn.functional as F

from diffusers_stale.axes import check_count, middle_index
from diffusers_stale.light_field.camera_grid import check_number
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.interpolation import Interpolator
from diffusers_stale.light_field.quilt import check_columns, quilt_places, quilt_step
from diffusers_stale.light_field.viewpoints import (
    focus_of,
    in_dtype_of,
    moments_of,
    pixels_of,
    search_reach,
    seen_from,
)


LENTICULAR_VIEWS = 8
"""Views under a lens where the number is not given."""

MAX_VIEWS = 256
"""Most views under a lens."""

MAX_SIZE = 16384
"""Largest side of a panel, in pixels."""


def lenticular(
    light_field: LightField | torch.Tensor,
    views: int = LENTICULAR_VIEWS,
    pitch: float | None = None,
    slant: float = 0.0,
    offset: float = 0.0,
    subpixels: bool = False,
    panel_width: int | None = None,
    focus: float | None = None,
    max_disparity: float | None = None,
    report: bool = True,
) -> torch.Tensor:
    """Interlaced for a lenticular sheet on a print or a screen: under each lens a strip of every view.

    Views are spread evenly from the first to the last camera of the middle row, those between interpolated.

    Args:
        light_field: the movie, or pixels `(3, view_rows, view_cols, frames, height, width)`.
        views: how many views there are under a lens.
        pitch: width of a lens, in pixels of the panel; by default `views`, a pixel for each. What a real sheet has is
            found with a test print, and is no whole number.
        slant: pixels by which a lens moves to the right from one row to the next; 0 is upright.
        offset: where the left edge of the first lens is, in pixels from the left edge of the panel.
        subpixels: red, green and blue stand side by side, as on a screen: they belong to different views.
        panel_width: width of the panel in pixels; views are enlarged to it, in their shape. By default so wide that a
            view keeps all of its pixels: `views` times its own width.
        focus, max_disparity, report: as for `quilt.quilt`.

    Returns:
        Shape `(3, frames, panel_height, panel_width)`, in the dtype of the pixels.

    Raises:
        ValueError: for pixels of another shape or not finite, a single column of views, numbers out of range, and a
            lens narrower than a pixel.
    """
    pixels = pixels_of(light_field)
    check_columns(pixels.shape[2], "A lenticular sheet")
    if check_count("views", views, MAX_VIEWS) < 2:
        raise ValueError("`views` must be at least 2, got 1; under a lens with one view both eyes see the same.")
    height, width = pixels.shape[-2:]
    wide = check_count("panel_width", min(views * width, MAX_SIZE) if panel_width is None else panel_width, MAX_SIZE)
    size = (max(1, round(height * wide / width)), wide)
    number = view_numbers(size, views, float(views) if pitch is None else pitch, slant, offset, subpixels)
    plane, reach = focus_of(light_field, focus), search_reach(light_field, max_disparity)
    if report:
        quilt_step(light_field, views, focus)
    row, places = middle_index(pixels.shape[1]), quilt_places(views, pixels.shape[2])
    frames = []
    for moment in moments_of(pixels):
        source = Interpolator(moment, reach)
        panel = moment.new_zeros(3, *size)
        for index, place in enumerate(places):
            seen = seen_from(source, row, place, plane)
            larger = F.interpolate(seen[None], size, mode="bicubic", align_corners=False)[0]
            panel = torch.where(number == index, larger, panel)
        frames.append(in_dtype_of(pixels, panel))
    return torch.stack(frames, dim=1)


def view_numbers(
    size: tuple[int, int], views: int, pitch: float, slant: float = 0.0, offset: float = 0.0, subpixels: bool = False
) -> torch.Tensor:
    """Which view, 0 the leftmost, each colour of each pixel belongs to; shape `(3, height, width)`.

    Arguments and errors as for `lenticular`.
    """
    check_number("slant", slant)
    check_number("offset", offset)
    if check_number("pitch", pitch, positive=True) < 1.0:
        raise ValueError(f"`pitch` must be at least 1 pixel, got {pitch:g}; measure the width of a lens in pixels.")
    y, x = torch.arange(size[0], dtype=torch.float64), torch.arange(size[1], dtype=torch.float64)
    colours = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) / 3 * subpixels
    # Where a colour's middle stands under its lens, 0 at the left edge and 1 at the right one.
    place = (x + 0.5 + colours[:, None, None] - slant * y[:, None] - offset) / pitch
    under = place - torch.floor(place)
    # Not quite to the edges: there rounding would decide which lens a pixel belongs to.
    return views - 1 - (under * views + 1e-9).floor().clamp(0, views - 1).long()
