"""Still pictures that show many views, frames or slices of a light field side by side.

Pure functions: they take a `LightField`, or pixels `(3, view_rows, view_cols, frames, height, width)` of any floating
or uint8 dtype, and return the dtype they got. They write nothing and enlarge nothing but slices.
"""

import math
from collections.abc import Sequence

import torch

from diffusers_stale.axes import check_count, middle_index
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.viewpoints import frame_of, pixels_of


GAP = 2
"""Pixels between the pictures of a sheet."""

TIME_SHEET_COLUMNS = 4
"""Frames side by side in a time sheet, at least: long movies make square sheets."""

SLICES = 4
"""Slices of each kind."""


def views_sheet(
    light_field: LightField | torch.Tensor, frame_index: int | None = None, gap: int = GAP
) -> torch.Tensor:
    """Contact sheet of all views at one moment (by default the middle one), in the order of the camera grid.

    Returns shape `(3, view_rows * (height + gap) - gap, view_cols * (width + gap) - gap)`; gaps are white.
    Raises `ValueError` for pixels of another shape or not finite, and for a frame that is not there.
    """
    pixels = pixels_of(light_field)
    moment = pixels[:, :, :, frame_of(pixels, frame_index)]
    return _tiled([list(row.unbind(1)) for row in moment.unbind(1)], gap)


def time_sheet(light_field: LightField | torch.Tensor, gap: int = GAP) -> torch.Tensor:
    """Contact sheet of the frames of the middle view, four or more in a row, to be read like a page.

    Returns shape `(3, rows * (height + gap) - gap, columns * (width + gap) - gap)`; gaps and what is left over of the
    last row are white. Raises `ValueError` for pixels of another shape or not finite.
    """
    pixels = pixels_of(light_field)
    frames = pixels[:, middle_index(pixels.shape[1]), middle_index(pixels.shape[2])].unbind(1)
    columns = max(TIME_SHEET_COLUMNS, math.ceil(math.sqrt(len(frames))))
    rows = [frames[start : start + columns] for start in range(0, len(frames), columns)]
    return _tiled(rows, gap)


def epipolar_sheet(
    light_field: LightField | torch.Tensor, frame_index: int | None = None, count: int = SLICES, gap: int = GAP
) -> torch.Tensor:
    """The middle view, and beside it what its rows and columns do from view to view.

    Left: the middle view; marks to the right of it point at the rows, marks below it at the columns, that are cut.
    Middle: `count` slices (view columns x width), each beside its row; the leftmost view is on top.
    Right: `count` slices (height x view rows), one for each marked column; the topmost view is on the left.
    Slices are enlarged along the view axis. A point of disparity 0 draws a straight line across it, a nearer one moves
    against the camera (see `axes.py`), a farther one with it.

    Returns:
        Shape `(3, sheet height, sheet width)`.

    Raises:
        ValueError: for pixels of another shape or not finite, for a frame that is not there, a count below 1.
    """
    pixels = pixels_of(light_field)
    check_count("count", count)
    moment = pixels[:, :, :, frame_of(pixels, frame_index)]
    _, view_rows, view_cols, height, width = moment.shape
    rows, cols = _evenly(height, count), _evenly(width, count)
    middle_row, middle_col = moment[:, middle_index(view_rows)], moment[:, :, middle_index(view_cols)]
    along = [_thicker(middle_row[:, :, row], 1, height // count - gap) for row in rows]
    down = [_thicker(middle_col[..., col].transpose(1, 2), 2, width // count - gap) for col in cols]
    marked = _marked(moment[:, middle_index(view_rows), middle_index(view_cols)], rows, cols, gap)
    return _tiled([[marked, _ladder(along, 1, height, gap), _ladder(down, 2, width, gap)]], 2 * gap)


def time_slices(light_field: LightField | torch.Tensor, count: int | None = None, gap: int = GAP) -> torch.Tensor:
    """What rows of the middle view do in time: slices of frames and width, each beside its row, early on top.

    Left: the middle frame of the middle view; marks to the right of it point at the rows that are cut. Right: `count`
    slices (frames x width), by default 4 or as many as there are rows, enlarged along time. What stands still draws a
    line straight down, what moves leans.

    Returns shape `(3, sheet height, sheet width)`. Raises `ValueError` for pixels of another shape or not finite, and
    for a count that is below 1 or above the height.
    """
    pixels = pixels_of(light_field)
    height = pixels.shape[-2]
    count = check_count("count", min(SLICES, height) if count is None else count, height)
    view = pixels[:, middle_index(pixels.shape[1]), middle_index(pixels.shape[2])]
    rows = _evenly(height, count)
    slices = [_thicker(view[:, :, row], 1, height // count - gap) for row in rows]
    marked = _marked(view[:, middle_index(view.shape[1])], rows, [], gap)
    return _tiled([[marked, _ladder(slices, 1, height, gap)]], 2 * gap)


def _evenly(size: int, count: int) -> list[int]:
    """`count` places, each in the middle of its part of `size`."""
    return [int((part + 0.5) * size / count) for part in range(count)]


def _white(like: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return like.new_full((like.shape[0], height, width), 1 if like.is_floating_point() else 255)


def _tiled(rows: Sequence[Sequence[torch.Tensor]], gap: int) -> torch.Tensor:
    """Pictures in rows on white, each at the top left of its place; places are as large as the row or column needs."""
    heights = [max(picture.shape[1] for picture in row) for row in rows]
    widths = [max(row[at].shape[2] for row in rows if at < len(row)) for at in range(len(rows[0]))]
    sheet = _white(rows[0][0], sum(heights) + gap * (len(heights) - 1), sum(widths) + gap * (len(widths) - 1))
    for index, row in enumerate(rows):
        top = sum(heights[:index]) + gap * index
        for at, picture in enumerate(row):
            left = sum(widths[:at]) + gap * at
            sheet[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return sheet


def _thicker(epipolar: torch.Tensor, axis: int, thickness: int) -> torch.Tensor:
    """A slice whose views (along `axis`) are repeated until it is about `thickness` pixels thick, and visible."""
    return epipolar.repeat_interleave(max(2, thickness // epipolar.shape[axis]), dim=axis)


def _ladder(slices: Sequence[torch.Tensor], axis: int, length: int, gap: int) -> torch.Tensor:
    """Slices one after the other along `axis`, evenly over the `length` of the picture that they were cut from."""
    pitch = max(length // len(slices), slices[0].shape[axis] + gap)
    shape = list(slices[0].shape)
    shape[axis] = pitch * len(slices)
    sheet = _white(slices[0], *shape[1:])
    for index, part in enumerate(slices):
        thickness = part.shape[axis]
        sheet.narrow(axis, index * pitch + (pitch - thickness) // 2, thickness).copy_(part)
    return sheet


def _marked(picture: torch.Tensor, rows: Sequence[int], cols: Sequence[int], gap: int) -> torch.Tensor:
    """The picture with dark marks beside the rows and below the columns."""
    _, height, width = picture.shape
    sheet = _white(picture, height + 2 * gap, width + 2 * gap)
    sheet[:, :height, :width] = picture
    dark = 0 if not picture.is_floating_point() else -1
    for row in rows:
        sheet[:, row, width + gap // 2 :] = dark
    for col in cols:
        sheet[:, height + gap // 2 :, col] = dark
    return sheet
