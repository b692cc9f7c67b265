"""Clips to train on: a light-field video in any of the forms in which people have one, read in parts and made to fit.

Forms: a folder with a video, a picture or a folder of frames for each view (names end with row and column), a quilt
(`*_qs8x6a0.75.mp4`), a light field (`*.lf.safetensors`, or its compressed folder), a single video or picture. Where
captions come from is the business of `folders.py` and `shards.py`.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from diffusers_stale.data.decoding import (
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    Header,
    Part,
    fitted,
    header_of,
    pictures_of,
)
from diffusers_stale.light_field import LightField
from diffusers_stale.light_field.compressed import HEADER, view_name
from diffusers_stale.light_field.conversion import in_natural_order, view_places
from diffusers_stale.light_field.quilt_layout import quilt_views, tiles_of_name


LIGHT_FIELD_SUFFIX = ".lf.safetensors"
QUILT_MARK = "_qs"
STILL_RATE = 8.0
"""Frames a second of folders of frames, which do not say."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much there is of a clip: views and frames, frames a second; `baseline` as far as the form knows it."""

    view_rows: int
    view_cols: int
    frames: int
    frame_rate: float
    baseline: float = 1.0


class Form(Protocol):
    """One form of light-field video.

    `sizes` looks at all files and decodes next to nothing; `read` gives what is chosen, as uint8 of shape
    `(3, view_rows, view_cols, frames, size, size)`. Both raise `ValueError` for what is broken. `members` are its
    files by what each is called.
    """

    def sizes(self) -> Sizes: ...

    def read(self, rows: range, cols: range, frames: range, size: int) -> torch.Tensor: ...

    def members(self) -> dict[str, Part]: ...


@dataclass(frozen=True, kw_only=True)
class ViewFiles:
    """A video, a picture, or frames one after the other for each view. `kept`: height and width without padding."""

    name: str
    views: dict[tuple[int, int], tuple[Part, ...]]
    kept: tuple[int, int] | None = None
    baseline: float = 1.0

    def sizes(self) -> Sizes:
        headers = {place: _header_of_view(parts) for place, parts in self.views.items()}
        first = headers[0, 0]
        for (row, col), header in headers.items():
            if (header.height, header.width, header.frames) != (first.height, first.width, first.frames):
                raise ValueError(
                    f"Expected views of one size and length in {self.name}, got {_described(first)} at row 0 column 0 "
                    f"and {_described(header)} at row {row} column {col}; make them alike."
                )
        rows, cols = (1 + max(place[axis] for place in headers) for axis in (0, 1))
        rate = STILL_RATE if first.frame_rate is None else first.frame_rate
        return Sizes(view_rows=rows, view_cols=cols, frames=first.frames, frame_rate=rate, baseline=self.baseline)

    def read(self, rows: range, cols: range, frames: range, size: int) -> torch.Tensor:
        lines = [torch.stack([self._view(row, col, frames, size) for col in cols], dim=1) for row in rows]
        return torch.stack(lines, dim=1)

    def members(self) -> dict[str, Part]:
        found = {}
        for (row, col), parts in self.views.items():
            for index, part in enumerate(parts):
                frame = f".{index:05}" if len(parts) > 1 else ""
                found[f"view_{row:02}_{col:02}{frame}{part.suffix}"] = part
        return found

    def _view(self, row: int, col: int, frames: range, size: int) -> torch.Tensor:
        parts = self.views[row, col]
        if len(parts) == 1:
            pictures = pictures_of(parts[0], frames)
        else:
            pictures = (picture for frame in frames for picture in pictures_of(parts[frame], range(1)))
        height, width = self.kept or (None, None)
        return torch.stack([fitted(picture[:height, :width], size) for picture in pictures], dim=1)


@dataclass(frozen=True, kw_only=True)
class Quilt:
    """A picture or video of `columns` x `rows` tiles, which are a row of cameras."""

    part: Part
    columns: int
    rows: int

    def sizes(self) -> Sizes:
        header = header_of(self.part)
        if header.height % self.rows or header.width % self.columns:
            raise ValueError(
                f"Expected sides that divide into {self.columns}x{self.rows} tiles in {self.part}, got "
                f"{_described(header)}; put the right numbers into its name."
            )
        rate = STILL_RATE if header.frame_rate is None else header.frame_rate
        return Sizes(view_rows=1, view_cols=self.columns * self.rows, frames=header.frames, frame_rate=rate)

    def read(self, rows: range, cols: range, frames: range, size: int) -> torch.Tensor:
        return torch.stack([self._moment(picture, cols, size) for picture in pictures_of(self.part, frames)], dim=3)

    def members(self) -> dict[str, Part]:
        # A dot ends the key of a sample in a shard, so the hint comes after it.
        return {f"qs{self.columns}x{self.rows}{self.part.suffix}": self.part}

    def _moment(self, picture: np.ndarray, cols: range, size: int) -> torch.Tensor:
        tiles = quilt_views(torch.from_numpy(picture.copy()).movedim(-1, 0)[:, None], self.columns, self.rows)
        return torch.stack([fitted(tiles[:, 0, col, 0].movedim(0, -1).numpy(), size) for col in cols], dim=1)[:, None]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A file that `LightField.save` wrote."""

    part: Part

    def sizes(self) -> Sizes:
        with self._opened() as path, LightField.open(path) as file:
            grid = file.camera_grid
            return Sizes(
                view_rows=grid.view_rows,
                view_cols=grid.view_cols,
                frames=file.sizes["frames"],
                frame_rate=file.frame_rate,
                baseline=grid.baseline * grid.spacing,
            )

    def read(self, rows: range, cols: range, frames: range, size: int) -> torch.Tensor:
        moments = []
        with self._opened() as path, LightField.open(path) as file:
            for frame in frames:
                pixels = file.read(
                    view_rows=slice(rows.start, rows.stop), view_cols=slice(cols.start, cols.stop), frames=frame
                ).pixels[:, :: rows.step, :: cols.step, 0]
                views = [fitted(view.movedim(0, -1).numpy(), size) for view in pixels.flatten(1, 2).unbind(1)]
                moments.append(torch.stack(views, dim=1).unflatten(1, (len(rows), len(cols))))
        return torch.stack(moments, dim=3)

    def members(self) -> dict[str, Part]:
        return {LIGHT_FIELD_SUFFIX.removeprefix("."): self.part}

    @contextmanager
    def _opened(self) -> Iterator[Path]:
        """The path of the file, which is unpacked first if it lies in an archive."""
        if self.part.size is None:
            yield self.part.path
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"unpacked{LIGHT_FIELD_SUFFIX}"
            path.write_bytes(self.part.read())
            yield path


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A light-field video with its captions, as training sees it.

    `view_rows`, `view_cols`, `frames` count every `view_step`th view and every `frame_step`th frame. `baseline` is the
    factor on disparity that the network is told. `depth`, of a monocular clip, is brighter where things are nearer.
    """

    name: str
    captions: tuple[str, ...]
    form: Form
    view_rows: int
    view_cols: int
    frames: int
    baseline: float = 1.0
    view_step: int = 1
    frame_step: int = 1
    depth: Part | None = None

    def read(self, rows: range, cols: range, frames: range, size: int) -> torch.Tensor:
        """uint8 `(3, view_rows, view_cols, frames, size, size)`; ranges of step 1. `ValueError` for broken files."""
        views = (_strided(chosen, self.view_step) for chosen in (rows, cols))
        return self.form.read(*views, _strided(frames, self.frame_step), size)

    def serves(self, view_rows: int, view_cols: int, frames: int) -> bool:
        """Whether a grid of this size can be cut out of it."""
        return view_rows <= self.view_rows and view_cols <= self.view_cols and frames <= self.frames

    def length(self) -> int:
        """Bytes of all of its files."""
        return sum(part.length() for part in self.form.members().values())


def make_clip(
    name: str, captions: tuple[str, ...], form: Form, sizes: Sizes, frame_rate: float, baseline: float | None = None,
    view_step: int = 1, depth: Part | None = None,
) -> Clip:  # fmt: skip
    """A clip of what `form` has, about `frame_rate` frames a second of it (all with 0)."""
    frame_step = max(1, round(sizes.frame_rate / frame_rate)) if frame_rate > 0 else 1
    return Clip(
        name=name,
        captions=captions,
        form=form,
        view_rows=len(range(0, sizes.view_rows, view_step)),
        view_cols=len(range(0, sizes.view_cols, view_step)),
        frames=len(range(0, sizes.frames, frame_step)),
        baseline=sizes.baseline if baseline is None else baseline,
        view_step=view_step,
        frame_step=frame_step,
        depth=depth,
    )


def form_of(path: Path) -> Form:
    """The form of what is at `path`. Raises `ValueError` where it has none, and for grids of views with gaps."""
    if path.is_dir():
        return _compressed(path) if (path / HEADER).is_file() else _view_folder(path)
    part = Part(name=path.name, path=path)
    if path.name.endswith(LIGHT_FIELD_SUFFIX):
        return Stored(part=part)
    if part.suffix not in (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES):
        known = ", ".join((*VIDEO_SUFFIXES, *PICTURE_SUFFIXES, LIGHT_FIELD_SUFFIX))
        raise ValueError(f"Expected a clip with one of {known} at {path}, got {path.suffix!r}; convert it.")
    if QUILT_MARK in path.stem:
        columns, rows = tiles_of_name(path)
        return Quilt(part=part, columns=columns, rows=rows)
    return ViewFiles(name=str(path), views={(0, 0): (part,)})


def _view_folder(folder: Path) -> ViewFiles:
    places = view_places(folder)
    return ViewFiles(name=str(folder), views={place: _files_of_view(path) for place, path in places.items()})


def _files_of_view(path: Path) -> tuple[Part, ...]:
    if path.is_file():
        return (Part(name=path.name, path=path),)
    frames = [item for item in path.iterdir() if item.suffix.lower() in PICTURE_SUFFIXES]
    if not frames:
        raise ValueError(f"Expected pictures in {path}, got none; each is a frame.")
    return tuple(Part(name=item.name, path=item) for item in sorted(frames, key=in_natural_order))


def _compressed(folder: Path) -> ViewFiles:
    with LightField.open(folder) as file:
        grid, sizes = file.camera_grid, file.sizes
    views = {
        (row, col): (Part(name=view_name(row, col), path=folder / view_name(row, col)),)
        for row in range(grid.view_rows)
        for col in range(grid.view_cols)
    }
    kept = (sizes["height"], sizes["width"])
    return ViewFiles(name=str(folder), views=views, kept=kept, baseline=grid.baseline * grid.spacing)


def _header_of_view(parts: tuple[Part, ...]) -> Header:
    headers = [header_of(part) for part in parts]
    if len({(header.height, header.width) for header in headers}) > 1:
        raise ValueError(f"Expected frames of one size beside {parts[0]}, got several; make them alike.")
    if len(parts) == 1:
        return headers[0]
    return Header(height=headers[0].height, width=headers[0].width, frames=len(parts), frame_rate=None)


def _described(header: Header) -> str:
    return f"{header.height}x{header.width} pixels and {header.frames} frames"


def _strided(chosen: range, step: int) -> range:
    return range(chosen.start * step, (chosen.stop - 1) * step + 1, step)
