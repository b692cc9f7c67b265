"""The five files that a movie is handed over as: the light field itself, a video, and three sheets."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from diffusers_stale.light_field.atomic import atomic_path
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.export import ffmpeg_path, write_mp4, write_png
from diffusers_stale.light_field.projections import (
    epipolar_sheet,
    moving_frame_rate,
    swaying_camera,
    time_sheet,
    views_sheet,
)


LIGHT_FIELD = "movie.lf.safetensors"
VIDEO = "movie.mp4"
SHEETS = {"views.png": views_sheet, "time.png": time_sheet, "epi.png": epipolar_sheet}

FILE_NAMES = (LIGHT_FIELD, VIDEO, *SHEETS)
"""What a movie folder holds, in the order in which it is reported."""


def write_movie_folder(light_field: LightField, folder: str | Path) -> list[Path]:
    """Writes the light field, a video of a swaying camera, and the sheets of views, frames and epipolar slices.

    Everything is written under temporary names first and renamed at the end, so that a disk that fills up leaves the
    folder as it was; the folder is made if it is missing, and unmade again if writing fails.

    Returns the paths in the order of `FILE_NAMES`. Raises `OSError`, with one sentence, where that cannot be done.
    """
    folder = Path(folder)
    check_writable(folder)
    with _made(folder), ExitStack() as stack:
        temporary = {name: stack.enter_context(atomic_path(folder / name)) for name in FILE_NAMES}
        for name, path in temporary.items():
            with _named(path, folder / name):
                _write(light_field, name, path)
    return [folder / name for name in FILE_NAMES]


def check_writable(folder: str | Path) -> None:
    """Returns if `write_movie_folder` could begin now; to be asked before a long generation. Leaves nothing behind.

    Raises `OSError` (`NotADirectoryError`, `PermissionError`, ...) with one sentence: where `folder` or what should
    hold it is a file or cannot be written to, where a folder is in the way of a file, and without a video encoder.
    """
    folder = Path(folder)
    ffmpeg_path()
    try:
        place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not place.is_dir():
            raise NotADirectoryError(f"Expected a folder at {place}, got a file; choose another output folder.")
        for name in FILE_NAMES:
            if (folder / name).is_dir():
                raise IsADirectoryError(f"Expected a file or nothing at {folder / name}, got a folder; move it away.")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        if error.errno is None:
            raise  # it is one of the sentences above
        reason = f"Cannot write to the folder {folder}: {os.strerror(error.errno)}; choose another output folder."
        raise OSError(error.errno, reason) from error


def _write(light_field: LightField, name: str, path: Path) -> None:
    """Writes the file `name` of a movie folder to `path`."""
    if name == LIGHT_FIELD:
        light_field.save(path)
    elif name == VIDEO:
        write_mp4(path, swaying_camera(light_field), moving_frame_rate(light_field))
    else:
        write_png(path, SHEETS[name](light_field))


@contextmanager
def _named(temporary: Path, target: Path) -> Iterator[None]:
    """Lets errors speak of `target`, which the user knows, and not of `temporary`."""
    try:
        yield
    except OSError as error:
        sentence = (error.strerror or str(error)).replace(str(temporary), str(target))
        raise (OSError(error.errno, sentence) if error.errno else OSError(sentence)) from error


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes `folder` and its parents where they are missing, and removes those again on an exception."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for place in missing:
            place.rmdir()
        raise
