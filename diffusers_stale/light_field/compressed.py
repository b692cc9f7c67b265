"""The compressed form of a light field: a folder with a video for each view, and a header in JSON. Not exact.

Layout and rules are in docs/light_field_format.md. Like `file.py`, it does not know the container.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffusers_stale.light_field.atomic import FILE_MODE
from diffusers_stale.light_field.camera_grid import MOVIE_AXES, CameraGrid, Selection
from diffusers_stale.light_field.export import write_video
from diffusers_stale.light_field.file import Parts
from diffusers_stale.light_field.reader import LightFieldReader, Movie, damaged, described
from diffusers_stale.light_field.video import read_video, video_info


FORMAT = "diffusers_stale.light_field.folder"
VERSION = 1
HEADER = "light_field.json"
DISPARITY = "disparity.safetensors"

MAX_HEADER = 2**20
"""Largest header that is read, in bytes."""

MAX_VIEWS = 4096
"""Most views of a folder."""

READ_AHEAD = 64 * 2**20
"""Bytes of following frames that are kept while frames are read in order: decoders have to begin at the beginning."""

FOLDER_MODE = 0o755


def view_name(row: int, col: int) -> str:
    """File of the view at `(row, col)`."""
    return f"view_{row:02}_{col:02}.mp4"


def save_folder(light_field: Parts, folder: str | Path, force: bool = False) -> None:
    """Writes `light_field` as a folder of videos (H.264 at high quality): whole or not at all.

    Args:
        light_field: what is written; its disparity stays exact.
        folder: where it goes; what holds it must be there.
        force: replace a compressed light field that is there. Nothing else is ever replaced.

    Raises `FileExistsError` for what is there, `OSError` where it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not (force and (folder / HEADER).is_file()):
        raise FileExistsError(f"{folder} is there already; choose another name, or `force` to replace a light field.")
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.absolute().parent))
    except OSError as error:
        raise OSError(error.errno, f"Could not write {folder}: {os.strerror(error.errno)}; choose another.") from error
    try:
        _write(light_field, temporary)
        if folder.exists():
            old = temporary / "old"
            folder.rename(old)
            _rename_into(temporary, folder)
            shutil.rmtree(folder / "old")
        else:
            _rename_into(temporary, folder)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


class LightFieldFolder(LightFieldReader[Movie]):
    """A compressed light field, of which parts can be read: only the videos of chosen views are opened.

    Args:
        path: a folder that `save_folder` wrote.
        build: makes the result of `read` from `pixels`, `frame_rate`, `camera_grid`, `disparity`, `provenance`.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is another kind of folder, comes from a newer version, or if what its header says does not
            fit its videos. Nothing has been allocated then.
    """

    def __init__(self, path: str | Path, build: Callable[..., Movie]) -> None:
        self.path, self._build = Path(path), build
        header = _header(self.path)
        self.sizes, self.frame_rate, self.camera_grid, self.provenance = _parsed(self.path, header)
        self.has_disparity = _check_files(self.path, header, self.sizes)
        self._ahead: tuple[range, range, range, torch.Tensor] | None = None
        self._next: tuple[range, range, int] | None = None

    def _pixels(self, part: Selection) -> torch.Tensor:
        rows, cols, frames = (part.ranges[name] for name in ("view_rows", "view_cols", "frames"))
        height, width = (slice(taken.start, taken[-1] + 1) for taken in (part.ranges["height"], part.ranges["width"]))
        chosen = self._in_order(rows, cols, frames)
        return chosen[..., height, width].clone(memory_format=torch.contiguous_format)

    def _in_order(self, rows: range, cols: range, frames: range) -> torch.Tensor:
        """Whole pictures of what is chosen; where it goes on from what was read last, more is decoded and kept."""
        goes_on = self._next == (rows, cols, frames[0])
        self._next = (rows, cols, frames[-1] + 1)
        ahead = self._ahead
        if ahead is None or ahead[:2] != (rows, cols) or frames[0] not in ahead[2] or frames[-1] not in ahead[2]:
            ahead = self._ahead = None  # its memory is free before more is taken
            if not goes_on:
                return self._decoded(rows, cols, frames)
            taken = self._following(len(rows) * len(cols), frames)
            ahead = self._ahead = (rows, cols, taken, self._decoded(rows, cols, taken))
        first = ahead[2].start
        return ahead[3][:, :, :, frames[0] - first : frames[-1] + 1 - first : frames.step]

    def _following(self, views: int, frames: range) -> range:
        """From the first of `frames` on as many as fit in `READ_AHEAD`; up to the last one at least."""
        count = READ_AHEAD // (views * self.sizes["height"] * self.sizes["width"] * self.sizes["channels"])
        return range(frames[0], max(frames[-1] + 1, min(self.sizes["frames"], frames[0] + count)))

    def _decoded(self, rows: range, cols: range, frames: range) -> torch.Tensor:
        """Whole pictures `(3, view_rows, view_cols, frames, height, width)`."""
        return torch.stack(
            [torch.stack([self._view(row, col, frames) for col in cols], dim=1) for row in rows],
            dim=1,
        )

    def _view(self, row: int, col: int, frames: range) -> torch.Tensor:
        try:
            movie = read_video(self.path / view_name(row, col), frames)
        except ValueError as error:
            raise damaged(self.path, str(error)) from error
        return movie[..., : self.sizes["height"], : self.sizes["width"]]

    def _disparity(self, part: Selection) -> torch.Tensor:
        with safe_open(self.path / DISPARITY, framework="pt") as file:
            found = file.get_slice("disparity")[part.bounds][part.steps]
            return found.clone(memory_format=torch.contiguous_format)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held open between two calls of `read`; what was read ahead is forgotten."""
        self._ahead = None


def _write(light_field: Parts, folder: Path) -> None:
    sizes = dict(zip(MOVIE_AXES, light_field.pixels.shape, strict=True))
    for row in range(sizes["view_rows"]):
        for col in range(sizes["view_cols"]):
            write_video(folder / view_name(row, col), light_field.pixels[:, row, col], light_field.frame_rate, zoom=1)
    if light_field.disparity is not None:
        try:
            save_file({"disparity": light_field.disparity.cpu().contiguous()}, folder / DISPARITY)
        except SafetensorError as error:
            raise OSError(f"Could not write {DISPARITY}: {error}; free some space.") from error
        (folder / DISPARITY).chmod(FILE_MODE)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "sizes": sizes,
        "frame_rate": light_field.frame_rate,
        "camera_grid": asdict(light_field.camera_grid),
        "disparity": light_field.disparity is not None,
        "provenance": light_field.provenance,
    }
    (folder / HEADER).write_text(json.dumps(header, indent=1), encoding="utf-8")
    (folder / HEADER).chmod(FILE_MODE)


def _rename_into(temporary: Path, folder: Path) -> None:
    temporary.chmod(FOLDER_MODE)
    temporary.rename(folder)


def _header(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"There is no light field at {path}; check the path.")
    file = path / HEADER
    if not file.is_file():
        raise ValueError(f"Expected a light field at {path}, got a folder without {HEADER}; give the path of a file.")
    if file.stat().st_size > MAX_HEADER:
        raise damaged(path, f"its header is longer than {MAX_HEADER} bytes")
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"its header cannot be read: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"Expected a folder of the format {FORMAT} at {path}; give one that `save_folder` wrote.")
    version = header.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise damaged(path, f"its version is {version!r}")
    if version > VERSION:
        raise ValueError(
            f"Expected version {VERSION} or older of a light-field folder at {path}, got {version}; upgrade "
            "diffusers_stale to read it."
        )
    return header


def _parsed(path: Path, header: dict[str, Any]) -> tuple[dict[str, int], float, CameraGrid, dict[str, Any]]:
    frame_rate, grid, provenance = described(path, "header", lambda: header)
    try:
        sizes = {name: header["sizes"][name] for name in MOVIE_AXES}
    except (KeyError, TypeError) as error:
        raise damaged(path, f"its header cannot be read: {error}") from error
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes.values()):
        raise damaged(path, f"its sizes are {sizes}")
    if sizes["channels"] != 3 or sizes["view_rows"] * sizes["view_cols"] > MAX_VIEWS:
        raise damaged(path, f"its sizes are {sizes}, not 3 channels and at most {MAX_VIEWS} views")
    if (grid.view_rows, grid.view_cols) != (sizes["view_rows"], sizes["view_cols"]):
        raise damaged(path, f"its sizes are {sizes}, its grid {grid.view_rows}x{grid.view_cols}")
    return sizes, frame_rate, grid, provenance


def _check_files(path: Path, header: dict[str, Any], sizes: dict[str, int]) -> bool:
    """Whether there is disparity, after all videos were found to be there, and the first to be of the right size."""
    places = [(row, col) for row in range(sizes["view_rows"]) for col in range(sizes["view_cols"])]
    missing = [view_name(*place) for place in places if not (path / view_name(*place)).is_file()]
    if missing:
        raise damaged(path, f"{missing[0]} is missing")
    try:
        size = video_info(path / view_name(0, 0)).size
    except ValueError as error:
        raise damaged(path, str(error)) from error
    wanted = tuple(length + length % 2 for length in (sizes["height"], sizes["width"]))
    if size != wanted:
        raise damaged(path, f"its videos have {size[0]}x{size[1]} pixels, not {wanted[0]}x{wanted[1]}")
    if header.get("disparity") is not True:
        return False
    try:
        with safe_open(path / DISPARITY, framework="pt") as file:
            found = file.get_slice("disparity")
            shape, dtype = found.get_shape(), found.get_dtype()
    except (OSError, SafetensorError) as error:
        raise damaged(path, f"its disparity cannot be read: {error}") from error
    if shape != [sizes[name] for name in MOVIE_AXES[1:]] or dtype != "F32":
        raise damaged(path, f"its disparity is {dtype} of shape {shape}")
    return True
