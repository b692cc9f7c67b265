"""A row of video files, one for each of many views from left to right, for VR players."""

import inspect
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tqdm import tqdm

from diffusers_stale.axes import check_count, middle_index
from diffusers_stale.light_field.export import write_video
from diffusers_stale.light_field.interpolation import Interpolator
from diffusers_stale.light_field.picture_files import check_place, opened
from diffusers_stale.light_field.quilt import MAX_TILES, check_columns, quilt_places
from diffusers_stale.light_field.viewpoints import as_bytes, as_float, focus_of, search_reach, seen_from


def write_video_row(
    movie: str | Path,
    folder: str | Path,
    views: int | None = None,
    focus: float | None = None,
    force: bool = False,
    zoom: int | None = None,
    smooth: bool = False,
    codec: str | None = None,
    max_disparity: float | None = None,
    every: int = 1,
    shutter: float = 1.0,
) -> list[Path]:
    """A row of video files for VR players: one for each view, numbered from the leftmost.

    Depth is searched once a moment, for all views; their pictures wait in a file without a name in `folder`, as large
    as all of them uncompressed, so that memory does not grow with the movie and one encoder runs at a time.

    Args:
        movie: what `LightField.open` takes, or a folder with `movie.lf.safetensors`.
        folder: where the files go, made if missing; they are called `view_00.mp4` and so on.
        views: how many, spread evenly from the first to the last camera of the middle row; by default the cameras.
        focus: what stands still from view to view, in pixels of disparity per neighbouring view; by default the focal
            plane of the camera grid.
        force: replace files that are there.
        zoom, smooth, codec: as for `export.write_video`.
        max_disparity: largest shift between neighbouring views that interpolation looks for, in pixels.
        every, shutter: frames that become one, and how long it is exposed; see `antialiasing.with_shutter`.

    Returns:
        The paths, leftmost view first.

    Raises:
        FileExistsError: if one of the files is there.
        NotADirectoryError: if `folder` is a file.
        OSError: where they cannot be written.
        ValueError: for a movie with a single column of views, and for counts out of range.
    """
    folder = Path(folder)
    if folder.is_file():
        raise NotADirectoryError(f"Expected a folder at {folder} for a row of videos, got a file; choose another.")
    with opened(movie, every, shutter) as file:
        columns = file.sizes["view_cols"]
        check_columns(columns, "A row of videos")
        count = check_count("views", columns if views is None else views, MAX_TILES)
        digits = max(2, len(str(count - 1)))
        paths = [folder / f"view_{index:0{digits}}.mp4" for index in range(count)]
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            check_place(path, force)
        plane, row = focus_of(file, focus), middle_index(file.sizes["view_rows"])
        places = quilt_places(count, columns)
        frames = file.sizes["frames"]
        size = (3, file.sizes["height"], file.sizes["width"])
        with tempfile.TemporaryFile(dir=folder) as waiting:
            for index in tqdm(range(frames), desc="views", unit="frame", disable=None):
                part = file.read(frames=index)
                views = Interpolator(as_float(part.pixels[:, :, :, 0]), search_reach(part, max_disparity))
                for place in places:
                    waiting.write(as_bytes(seen_from(views, row, place, plane)).numpy().tobytes())
            for index, path in enumerate(tqdm(paths, desc="row", unit="view", disable=None)):
                pictures = _every(waiting, range(index, count * frames, count), size)
                write_video(path, pictures, file.frame_rate, zoom, smooth, codec)
    return paths


def _every(waiting: BinaryIO, numbers: range, size: tuple[int, int, int]) -> Iterator[torch.Tensor]:
    """The pictures of these numbers, uint8 and of this size, out of a file of nothing else."""
    length = math.prod(size)
    for number in numbers:
        waiting.seek(number * length)
        yield torch.frombuffer(bytearray(waiting.read(length)), dtype=torch.uint8).view(size)


def write_row_of(movies: Sequence[Path], folder: Path | None, options: dict[str, Any]) -> list[Path]:
    """`write_video_row` of the only one of `movies`, with options as a command has them: None where nobody says.

    Raises `ValueError` for several movies, and for options that do nothing for a row.
    """
    if len(movies) != 1:
        raise ValueError(f"Expected one movie for a row of videos, got {len(movies)}; call it once for each.")
    given = {key: value for key, value in options.items() if value is not None}
    strange = [key for key in given if key not in inspect.signature(write_video_row).parameters]
    if strange:
        raise ValueError(f"Expected options of row, got `{strange[0]}`, which does nothing for it; leave it out.")
    return write_video_row(movies[0], folder or Path("row"), **given)
