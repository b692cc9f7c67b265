"""From a light field to pictures `(3, height, width)` and moving pictures `(3, frames, height, width)`.

Pure functions: they take a `LightField`, or pixels `(3, view_rows, view_cols, frames, height, width)` of any floating
or uint8 dtype, and return the dtype they got. They write nothing and enlarge nothing but epipolar slices.
"""

import math
from collections.abc import Callable, Sequence

import torch

from diffusers_stale.axes import check_count, check_light_field, middle_index
from diffusers_stale.light_field.camera_grid import check_number
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.interpolation import view_between


GAP = 2
"""Pixels between the pictures of a sheet."""

TIME_SHEET_COLUMNS = 4
"""Frames side by side in a time sheet, at least: long movies make square sheets."""

SLICES = 4
"""Epipolar slices of each kind."""

SWAY_SECONDS = 4.0
"""One round of the swaying camera, and the least duration of its movie."""

SWAY_FRAMES = 3
"""Pictures that the swaying camera takes for every frame of the light field."""

WIDEST_DISPARITY = 0.05
"""Largest shift between neighbouring views that a swaying camera looks for, as a part of the width."""


def views_sheet(
    light_field: LightField | torch.Tensor, frame_index: int | None = None, gap: int = GAP
) -> torch.Tensor:
    """Contact sheet of all views at one moment (by default the middle one), in the order of the camera grid.

    Returns shape `(3, view_rows * (height + gap) - gap, view_cols * (width + gap) - gap)`; gaps are white.
    Raises `ValueError` for pixels of another shape or not finite, and for a frame that is not there.
    """
    pixels = _pixels_of(light_field)
    moment = pixels[:, :, :, _frame_of(pixels, frame_index)]
    return _tiled([list(row.unbind(1)) for row in moment.unbind(1)], gap)


def time_sheet(light_field: LightField | torch.Tensor, gap: int = GAP) -> torch.Tensor:
    """Contact sheet of the frames of the middle view, four or more in a row, to be read like a page.

    Returns shape `(3, rows * (height + gap) - gap, columns * (width + gap) - gap)`; gaps and what is left over of the
    last row are white. Raises `ValueError` for pixels of another shape or not finite.
    """
    pixels = _pixels_of(light_field)
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
    pixels = _pixels_of(light_field)
    check_count("count", count)
    moment = pixels[:, :, :, _frame_of(pixels, frame_index)]
    _, view_rows, view_cols, height, width = moment.shape
    rows, cols = ([int((part + 0.5) * size / count) for part in range(count)] for size in (height, width))
    middle_row, middle_col = moment[:, middle_index(view_rows)], moment[:, :, middle_index(view_cols)]
    along = [_thicker(middle_row[:, :, row], 1, height // count - gap) for row in rows]
    down = [_thicker(middle_col[..., col].transpose(1, 2), 2, width // count - gap) for col in cols]
    marked = _marked(moment[:, middle_index(view_rows), middle_index(view_cols)], rows, cols, gap)
    return _tiled([[marked, _ladder(along, 1, height, gap), _ladder(down, 2, width, gap)]], 2 * gap)


def swaying_camera(
    light_field: LightField | torch.Tensor,
    num_frames: int | None = None,
    interpolate: bool = True,
    pictures_a_frame: int = SWAY_FRAMES,
    max_disparity: float | None = None,
) -> torch.Tensor:
    """The camera goes round an ellipse that touches the outermost views, while time runs over and over.

    Args:
        light_field: the movie.
        num_frames: pictures to make; by default as many whole movies as last four seconds or more.
        interpolate: go smoothly, through views from between the cameras (`interpolation.view_between`); otherwise
            jump from view to view around the grid, and show nothing but pixels of the light field.
        pictures_a_frame: pictures for every frame of the light field: play at that many times its frame rate, which
            is what `swaying_frame_rate` says.
        max_disparity: largest shift between neighbouring views, in pixels; by default a twentieth of the width, times
            baseline and spacing where they are known to be above 1.

    Returns:
        Shape `(3, num_frames, height, width)`. The path is closed: the movie can be repeated without a jerk of the
        camera.

    Raises:
        ValueError: for pixels of another shape or not finite, and for counts below 1.
    """
    pixels = _pixels_of(light_field)
    check_count("pictures_a_frame", pictures_a_frame)
    length = pixels.shape[3] * pictures_a_frame
    second = swaying_frame_rate(light_field, pictures_a_frame)
    total = math.ceil(SWAY_SECONDS * second / length) * length if num_frames is None else num_frames
    path = camera_path(
        *pixels.shape[1:3], check_count("num_frames", total), rounds=round(total / second / SWAY_SECONDS)
    )
    reach = _reach(light_field, pixels.shape[-1]) if max_disparity is None else max_disparity
    check_number("max_disparity", reach)
    pictures = []
    for index, (row, col) in enumerate(path):
        moment = pixels[:, :, :, index // pictures_a_frame % pixels.shape[3]]
        pictures.append(_seen_from(moment, row, col, reach) if interpolate else moment[:, round(row), round(col)])
    return torch.stack(pictures, dim=1)


def swaying_frame_rate(light_field: LightField | torch.Tensor, pictures_a_frame: int = SWAY_FRAMES) -> float:
    """Frames a second at which `swaying_camera` is to be played; tensors are taken to run at 8."""
    return pictures_a_frame * (light_field.frame_rate if isinstance(light_field, LightField) else 8.0)


def camera_path(view_rows: int, view_cols: int, count: int, rounds: int = 1) -> list[tuple[float, float]]:
    """`count` view positions (row, column) along an ellipse that touches the outermost views, `rounds` times."""
    angles = [2 * math.pi * max(1, rounds) * index / count for index in range(count)]
    middle_row, middle_col = (view_rows - 1) / 2, (view_cols - 1) / 2
    return [(middle_row * (1 + math.sin(angle)), middle_col * (1 - math.cos(angle))) for angle in angles]


def _reach(light_field: LightField | torch.Tensor, width: int) -> float:
    if not isinstance(light_field, LightField):
        return WIDEST_DISPARITY * width
    return WIDEST_DISPARITY * width * max(1.0, abs(light_field.camera_grid.baseline) * light_field.camera_grid.spacing)


def _seen_from(moment: torch.Tensor, row: float, col: float, reach: float) -> torch.Tensor:
    """`view_between`, in the dtype of `moment`."""
    if moment.is_floating_point():
        return view_between(moment.float(), row, col, reach).to(moment.dtype)
    seen = view_between(moment.float().div_(127.5).sub_(1.0), row, col, reach)
    return seen.add(1.0).mul_(127.5).round_().clamp_(0.0, 255.0).to(moment.dtype)


def _pixels_of(light_field: LightField | torch.Tensor) -> torch.Tensor:
    pixels = light_field.pixels if isinstance(light_field, LightField) else light_field
    if not isinstance(pixels, torch.Tensor):
        raise ValueError(f"Expected a LightField or its pixels, got {type(pixels).__name__}; pass one of them.")
    check_light_field(pixels[None])
    if pixels.dtype != torch.uint8 and not (pixels.is_floating_point() and torch.isfinite(pixels).all()):
        raise ValueError(f"Expected pixels that are uint8, or finite in [-1, 1], got {pixels.dtype}; convert them.")
    return pixels


def _frame_of(pixels: torch.Tensor, frame_index: int | None) -> int:
    count = pixels.shape[3]
    if frame_index is None:
        return middle_index(count)
    if isinstance(frame_index, bool) or not isinstance(frame_index, int) or not -count <= frame_index < count:
        raise ValueError(f"`frame_index` must be between {-count} and {count - 1}, got {frame_index!r}; choose one.")
    return frame_index


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


PROJECTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "views": views_sheet,
    "time": time_sheet,
    "epi": epipolar_sheet,
    "sway": swaying_camera,
}
"""Every projection by its name. A result of 3 axes is a still picture, one of 4 axes a moving one."""
