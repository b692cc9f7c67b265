"""Moving pictures of a camera that goes through the grid of views while time runs: swaying, orbiting, dollying.

A path is a list of shots, each of which needs one frame of the light field: `pictures_of` takes them one after the
other, from memory or from an open file, of which it reads no more than that frame.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from diffusers_stale.axes import check_count
from diffusers_stale.light_field.antialiasing import Exposures
from diffusers_stale.light_field.camera_grid import check_number
from diffusers_stale.light_field.compressed import LightFieldFolder
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.file import LightFieldFile
from diffusers_stale.light_field.interpolation import Interpolator
from diffusers_stale.light_field.shifting import shifted
from diffusers_stale.light_field.viewpoints import as_float, focus_of, in_dtype_of, pixels_of, search_reach


ROUND_SECONDS = 4.0
"""One round of a moving camera, and the least duration of its movie."""

PICTURES_A_FRAME = 3
"""Pictures that a moving camera takes for every frame of the light field."""

TENSOR_FRAME_RATE = 8.0
"""Frames a second that tensors are taken to have."""

Movie = LightField | LightFieldFile[LightField] | LightFieldFolder[LightField] | Exposures | torch.Tensor
"""What a camera can move through: in memory, or open and read frame by frame."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture of a moving camera.

    `frame_index`: the moment. `row`, `col`: view position, 0 at the first view. `forward`: see `Interpolator.view`.
    `focus`: what does not move in the picture, in pixels of disparity per neighbouring view.
    """

    frame_index: int
    row: float
    col: float
    forward: float = 0.0
    focus: float = 0.0


def swaying_camera(
    light_field: LightField | torch.Tensor,
    num_frames: int | None = None,
    interpolate: bool = True,
    pictures_a_frame: int = PICTURES_A_FRAME,
    max_disparity: float | None = None,
) -> torch.Tensor:
    """The camera goes round an ellipse that touches the outermost views, while time runs over and over.

    Args:
        light_field: the movie.
        num_frames: pictures to make; by default as many whole movies as last four seconds or more.
        interpolate: go smoothly, through views from between the cameras (`interpolation.Interpolator`); otherwise
            jump from view to view around the grid, and show nothing but pixels of the light field.
        pictures_a_frame: pictures for every frame of the light field: play at that many times its frame rate, which
            is what `moving_frame_rate` says.
        max_disparity: largest shift between neighbouring views that interpolation looks for, in pixels; by default
            what the movie's own disparity says, or a twentieth of the width.

    Returns:
        Shape `(3, num_frames, height, width)`. The path is closed: the movie can be repeated without a jerk of the
        camera.

    Raises:
        ValueError: for pixels of another shape or not finite, and for counts below 1.
    """
    pixels = pixels_of(light_field)
    shots = sway_shots(*pixels.shape[1:4], _rate_of(light_field), num_frames, pictures_a_frame)
    return _stacked(light_field, shots, max_disparity, interpolate)


def orbiting_camera(
    light_field: LightField | torch.Tensor,
    radius: float | None = None,
    focus: float | None = None,
    num_frames: int | None = None,
    pictures_a_frame: int = PICTURES_A_FRAME,
    max_disparity: float | None = None,
) -> torch.Tensor:
    """The camera circles about a point of the focal plane, which stays where it is, while time runs over and over.

    Args:
        light_field, num_frames, pictures_a_frame, max_disparity: as for `swaying_camera`.
        radius: of the circle, in neighbouring views; by default it touches the nearest edge of the grid. On a single
            row or column of views the circle is seen from its edge.
        focus: plane of the point, in pixels of disparity per neighbouring view; by default the focal plane of the
            camera grid, 0 for tensors.

    Returns:
        Shape `(3, num_frames, height, width)`; edges of moved pictures repeat the edge of a view.

    Raises:
        ValueError: as `swaying_camera`, for a single view, and for a radius that is larger than the grid.
    """
    pixels = pixels_of(light_field)
    plane = focus_of(light_field, focus)
    shots = orbit_shots(*pixels.shape[1:4], _rate_of(light_field), num_frames, pictures_a_frame, radius, plane)
    return _stacked(light_field, shots, max_disparity)


def dollying_camera(
    light_field: LightField | torch.Tensor,
    radius: float | None = None,
    num_frames: int | None = None,
    pictures_a_frame: int = PICTURES_A_FRAME,
    max_disparity: float | None = None,
) -> torch.Tensor:
    """The camera goes forward and back while it zooms, so that the plane of zero disparity keeps its size.

    Every picture is put together of rays that many cameras saw; what is nearer than the plane grows as the camera
    comes near, what is farther shrinks.

    Args:
        light_field, num_frames, pictures_a_frame, max_disparity: as for `swaying_camera`.
        radius: how much of the grid is used, in neighbouring views from its middle, which decides how far the camera
            goes; by default all.

    Returns:
        Shape `(3, num_frames, height, width)`.

    Raises:
        ValueError: as `orbiting_camera`.
    """
    pixels = pixels_of(light_field)
    shots = dolly_shots(*pixels.shape[1:4], _rate_of(light_field), num_frames, pictures_a_frame, radius)
    return _stacked(light_field, shots, max_disparity)


def moving_frame_rate(light_field: Movie, pictures_a_frame: int = PICTURES_A_FRAME) -> float:
    """Frames a second at which the movie of a moving camera is to be played; tensors are taken to run at 8."""
    return pictures_a_frame * _rate_of(light_field)


def sway_shots(
    view_rows: int,
    view_cols: int,
    frames: int,
    frame_rate: float,
    num_frames: int | None = None,
    pictures_a_frame: int = PICTURES_A_FRAME,
) -> list[Shot]:
    """The path of `swaying_camera`."""
    indices, rounds = _times(frames, frame_rate, num_frames, pictures_a_frame)
    places = camera_path(view_rows, view_cols, len(indices), rounds)
    return [Shot(frame_index=index, row=row, col=col) for index, (row, col) in zip(indices, places, strict=True)]


def orbit_shots(
    view_rows: int,
    view_cols: int,
    frames: int,
    frame_rate: float,
    num_frames: int | None = None,
    pictures_a_frame: int = PICTURES_A_FRAME,
    radius: float | None = None,
    focus: float = 0.0,
) -> list[Shot]:
    """The path of `orbiting_camera`."""
    sides = [count for count in (view_rows, view_cols) if count > 1]
    reach = _radius(radius, (min(sides) - 1) / 2 if sides else 0.0, view_rows, view_cols)
    indices, rounds = _times(frames, frame_rate, num_frames, pictures_a_frame)
    shots = []
    for index, angle in zip(indices, _angles(len(indices), rounds), strict=True):
        down, right = (
            reach * (count > 1) * part(angle) for count, part in ((view_rows, math.sin), (view_cols, math.cos))
        )
        row, col = (view_rows - 1) / 2 + down, (view_cols - 1) / 2 + right
        shots.append(Shot(frame_index=index, row=row, col=col, focus=focus))
    return shots


def dolly_shots(
    view_rows: int,
    view_cols: int,
    frames: int,
    frame_rate: float,
    num_frames: int | None = None,
    pictures_a_frame: int = PICTURES_A_FRAME,
    radius: float | None = None,
) -> list[Shot]:
    """The path of `dollying_camera`."""
    reach = _radius(radius, (max(view_rows, view_cols) - 1) / 2, view_rows, view_cols)
    indices, rounds = _times(frames, frame_rate, num_frames, pictures_a_frame)
    row, col = (view_rows - 1) / 2, (view_cols - 1) / 2
    return [
        Shot(frame_index=index, row=row, col=col, forward=reach * math.sin(angle))
        for index, angle in zip(indices, _angles(len(indices), rounds), strict=True)
    ]


def camera_path(view_rows: int, view_cols: int, count: int, rounds: int = 1) -> list[tuple[float, float]]:
    """`count` view positions (row, column) along an ellipse that touches the outermost views, `rounds` times."""
    middle_row, middle_col = (view_rows - 1) / 2, (view_cols - 1) / 2
    angles = _angles(count, rounds)
    return [(middle_row * (1 + math.sin(angle)), middle_col * (1 - math.cos(angle))) for angle in angles]


def pictures_of(
    movie: Movie,
    shots: Sequence[Shot],
    max_disparity: float | None = None,
    interpolate: bool = True,
) -> Iterator[torch.Tensor]:
    """What a moving camera sees, one picture `(3, height, width)` after the other, in the dtype of the pixels.

    Of a movie or an open file no more than one frame is held. Neighbouring shots of one frame share the search for
    disparity. `interpolate`: see `swaying_camera`. Raises `ValueError` for pixels of another shape or not finite.
    """
    last, pixels, views = None, None, None
    for shot in shots:
        if shot.frame_index != last:
            part = _frame(movie, shot.frame_index)
            last, pixels = shot.frame_index, pixels_of(part)
            views = Interpolator(as_float(pixels[:, :, :, 0]), search_reach(part, max_disparity))
        if interpolate:
            yield in_dtype_of(pixels, _taken(views, shot))
        else:
            yield pixels[:, round(shot.row), round(shot.col), 0]


def _taken(views: Interpolator, shot: Shot) -> torch.Tensor:
    seen = views.view(shot.row, shot.col, shot.forward)
    rows, cols = views.views.shape[1:3]
    return shifted(seen, shot.focus * (shot.row - (rows - 1) / 2), shot.focus * (shot.col - (cols - 1) / 2))


def _stacked(
    light_field: LightField | torch.Tensor,
    shots: Sequence[Shot],
    max_disparity: float | None,
    interpolate: bool = True,
) -> torch.Tensor:
    return torch.stack(list(pictures_of(light_field, shots, max_disparity, interpolate)), dim=1)


def _frame(movie: Movie, index: int) -> LightField | torch.Tensor:
    if isinstance(movie, torch.Tensor):
        return movie[:, :, :, index : index + 1]
    return movie.select(frames=index) if isinstance(movie, LightField) else movie.read(frames=index)


def _rate_of(movie: Movie) -> float:
    return TENSOR_FRAME_RATE if isinstance(movie, torch.Tensor) else movie.frame_rate


def _times(frames: int, frame_rate: float, num_frames: int | None, pictures_a_frame: int) -> tuple[list[int], int]:
    """Frame index of every picture, and how many rounds the camera makes."""
    rate = frame_rate * check_count("pictures_a_frame", pictures_a_frame)
    length = frames * pictures_a_frame
    total = math.ceil(ROUND_SECONDS * rate / length) * length if num_frames is None else num_frames
    check_count("num_frames", total)
    return [index // pictures_a_frame % frames for index in range(total)], round(total / rate / ROUND_SECONDS)


def _angles(count: int, rounds: int) -> list[float]:
    return [2 * math.pi * max(1, rounds) * index / count for index in range(count)]


def _radius(radius: float | None, largest: float, view_rows: int, view_cols: int) -> float:
    if largest == 0.0:
        raise ValueError(
            f"A moving camera needs at least 2 views along an axis, got {view_rows}x{view_cols}; make the movie with "
            "more, as with `--views 3x3`."
        )
    wanted = largest if radius is None else check_number("radius", radius, positive=True)
    if wanted > largest:
        raise ValueError(
            f"`radius` must be above 0 and at most {largest:g} for {view_rows}x{view_cols} views, got {wanted:g}; "
            "make it smaller, or the movie with more views."
        )
    return wanted


CAMERA_PATHS: dict[str, Callable[..., list[Shot]]] = {"sway": sway_shots, "orbit": orbit_shots, "dolly": dolly_shots}
"""The path of every moving camera by the name of its projection."""
