"""`LightField`: one light-field movie with what is needed to show it: frame rate, cameras, disparity, provenance.

Values in memory only; bytes on a disk are the business of `file.py`, pictures that of `projections.py`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusers_stale.axes import check_light_field, middle_index
from diffusers_stale.light_field.camera_grid import (
    DISPARITY_AXES,
    MOVIE_AXES,
    CameraGrid,
    Choice,
    Selection,
    check_finite,
    check_number,
)
from diffusers_stale.light_field.compressed import HEADER, LightFieldFolder, save_folder
from diffusers_stale.light_field.conversion import (
    Source,
    frame_rate_of,
    pixels_from_numpy,
    pixels_from_quilt,
    pixels_from_side_by_side,
    pixels_from_view_folder,
    pixels_to_numpy,
)
from diffusers_stale.light_field.file import LightFieldFile, save_light_field
from diffusers_stale.light_field.quilt_layout import tiles_of_name


__all__ = ["CameraGrid", "LightField"]

CHANNELS = 3
"""Red, green, blue."""


class LightField:
    """One light-field movie.

    Args:
        pixels: uint8, shape `(3, view_rows, view_cols, frames, height, width)`.
        frame_rate: frames a second, above 0.
        camera_grid: where the cameras stand; by default neighbours are one view step apart.
        disparity: float32, shape `(view_rows, view_cols, frames, height, width)`, seen from each view, in pixels per
            view step as `axes.displaced` takes it. It describes the pixels as they are: `baseline` is in it already,
            and neighbouring cameras, which are `camera_grid.spacing` view steps apart, see a shift of
            `disparity * spacing`.
        provenance: how the movie was made; a dict of what JSON can hold (strings as keys, lists and not tuples).

    Raises:
        ValueError: for another shape or dtype, a camera grid of another size, disparity that is not finite, or
            provenance that JSON does not give back as it was.
    """

    def __init__(
        self,
        pixels: torch.Tensor,
        frame_rate: float = 8.0,
        camera_grid: CameraGrid | None = None,
        disparity: torch.Tensor | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.pixels = _check_pixels(pixels, torch.uint8)
        self.frame_rate = check_number("frame_rate", frame_rate, positive=True)
        self.camera_grid = camera_grid or CameraGrid(view_rows=self.view_rows, view_cols=self.view_cols)
        if (self.camera_grid.view_rows, self.camera_grid.view_cols) != self.shape[1:3]:
            raise ValueError(
                f"`camera_grid` must have the {self.view_rows}x{self.view_cols} cameras that `pixels` has, got "
                f"{self.camera_grid}; give the grid that made the pixels."
            )
        self.disparity = None if disparity is None else _check_disparity(disparity, self.shape[1:])
        self.provenance = _check_provenance({} if provenance is None else provenance)

    @classmethod
    def from_float(
        cls,
        pixels: torch.Tensor,
        frame_rate: float = 8.0,
        camera_grid: CameraGrid | None = None,
        disparity: torch.Tensor | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> "LightField":
        """The same from floating-point `pixels` in [-1, 1]; values beyond are clamped.

        Raises `ValueError` for pixels that are not finite, and for all that the constructor refuses.
        """
        _check_pixels(pixels, None)
        check_finite(pixels, MOVIE_AXES)
        bytes_ = pixels.detach().float().clamp(-1.0, 1.0).add(1.0).mul_(127.5).round_().to(torch.uint8)
        return cls(bytes_, frame_rate, camera_grid, disparity, provenance)

    def to_float(self) -> torch.Tensor:
        """Pixels as float32 in [-1, 1], shape `(3, view_rows, view_cols, frames, height, width)`."""
        return self.pixels.float().div_(127.5).sub_(1.0)

    @classmethod
    def from_numpy(cls, pixels: np.ndarray, frame_rate: float = 8.0, spacing: float = 1.0) -> "LightField":
        """From an array `(view_rows, view_cols, frames, height, width, 3)`, uint8 or floating point in [0, 1].

        Raises `ValueError` as `conversion.pixels_from_numpy`.
        """
        return cls._of_cameras(pixels_from_numpy(pixels), frame_rate, spacing)

    @classmethod
    def from_quilt(
        cls,
        source: Source,
        columns: int | None = None,
        rows: int | None = None,
        frame_rate: float = 8.0,
        spacing: float = 1.0,
    ) -> "LightField":
        """From a quilt as a row of cameras, leftmost first, exactly.

        Args:
            source: path of a picture or video, or uint8 of shape `(3, frames, height, width)` or `(3, height, width)`.
            columns, rows: tiles; by default what the file's name says (`_qs8x6a0.75`).
            frame_rate: of pictures and tensors; videos and animated pictures have their own.
            spacing: of neighbouring tiles, in view steps.

        Raises:
            FileNotFoundError: if nothing is there.
            ValueError: for what is no picture, for sides that do not divide into tiles, a name that tells nothing.
        """
        if columns is None or rows is None:
            columns, rows = tiles_of_name("a tensor" if isinstance(source, torch.Tensor) else source)
        pixels = pixels_from_quilt(source, columns, rows)
        return cls._of_cameras(pixels, frame_rate_of(source, frame_rate), spacing)

    @classmethod
    def from_view_folder(
        cls,
        folder: str | Path,
        view_rows: int | None = None,
        view_cols: int | None = None,
        frame_rate: float = 8.0,
        spacing: float = 1.0,
    ) -> "LightField":
        """From a folder with a picture, a video or a folder of frames for each view (`pigs_00_02.png`).

        Arguments and errors as `conversion.pixels_from_view_folder`, and the frame rate and spacing of what comes out.
        """
        return cls._of_cameras(pixels_from_view_folder(folder, view_rows, view_cols), frame_rate, spacing)

    @classmethod
    def from_side_by_side(
        cls,
        source: Source,
        half: bool = False,
        swapped: bool = False,
        frame_rate: float = 8.0,
        spacing: float = 1.0,
    ) -> "LightField":
        """From a stereo picture or video, left first unless `swapped`, squeezed if `half`: two cameras side by side.

        Other arguments and errors as `from_quilt`, and a `ValueError` for an odd width.
        """
        pixels = pixels_from_side_by_side(source, half, swapped)
        return cls._of_cameras(pixels, frame_rate_of(source, frame_rate), spacing)

    @classmethod
    def _of_cameras(cls, pixels: torch.Tensor, frame_rate: float, spacing: float) -> "LightField":
        grid = CameraGrid(view_rows=pixels.shape[1], view_cols=pixels.shape[2], spacing=spacing)
        return cls(pixels, frame_rate, grid)

    def to_numpy(self) -> np.ndarray:
        """Pixels as uint8, shape `(view_rows, view_cols, frames, height, width, 3)`, a copy."""
        return pixels_to_numpy(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(3, view_rows, view_cols, frames, height, width)`."""
        return tuple(self.pixels.shape)

    @property
    def sizes(self) -> dict[str, int]:
        """Length of every axis of `pixels` by its name."""
        return dict(zip(MOVIE_AXES, self.shape, strict=True))

    @property
    def view_rows(self) -> int:
        return self.sizes["view_rows"]

    @property
    def view_cols(self) -> int:
        return self.sizes["view_cols"]

    @property
    def num_frames(self) -> int:
        return self.sizes["frames"]

    @property
    def height(self) -> int:
        return self.sizes["height"]

    @property
    def width(self) -> int:
        return self.sizes["width"]

    @property
    def middle_view(self) -> torch.Tensor:
        """The reference view, uint8, shape `(3, frames, height, width)`."""
        return self.view(middle_index(self.view_rows), middle_index(self.view_cols))

    def view(self, row: int, col: int) -> torch.Tensor:
        """The movie of one camera, uint8, shape `(3, frames, height, width)`. `ValueError` if there is none."""
        return self.select(view_rows=row, view_cols=col).pixels[:, 0, 0]

    def frame(self, index: int) -> torch.Tensor:
        """One moment, uint8, shape `(3, view_rows, view_cols, height, width)`. `ValueError` if there is none."""
        return self.select(frames=index).pixels[:, :, :, 0]

    def select(
        self,
        *,
        view_rows: Choice = None,
        view_cols: Choice = None,
        frames: Choice = None,
        height: Choice = None,
        width: Choice = None,
    ) -> "LightField":
        """A part of the light field, sharing its memory: an index keeps its axis with length 1, a slice its stretch.

        Camera grid, disparity and frame rate follow. The reference of the part is its own middle view.

        Raises:
            ValueError: for an index or slice that leaves nothing, for a step along height or width, and for different
                steps along view rows and columns.
        """
        choices = {
            "view_rows": view_rows,
            "view_cols": view_cols,
            "frames": frames,
            "height": height,
            "width": width,
        }
        part = Selection.of(self.sizes, choices)
        pixels = self.pixels[(slice(None), *part.bounds)][(slice(None), *part.steps)]
        disparity = None if self.disparity is None else self.disparity[part.bounds][part.steps]
        grid, frame_rate = part.grid_of(self.camera_grid), part.frame_rate_of(self.frame_rate)
        return LightField(pixels, frame_rate, grid, disparity, self.provenance)

    def equals(self, other: "LightField") -> bool:
        """Whether pixels, disparity, frame rate, camera grid and provenance are all exactly the same."""
        if (self.disparity is None) != (other.disparity is None):
            return False
        return (
            torch.equal(self.pixels, other.pixels)
            and (self.disparity is None or torch.equal(self.disparity, other.disparity))
            and (self.frame_rate, self.camera_grid) == (other.frame_rate, other.camera_grid)
            and self.provenance == other.provenance
        )

    def save(self, path: str | Path) -> None:
        """Writes one file, `*.lf.safetensors` by custom; see `file.save_light_field`."""
        save_light_field(self, path)

    def save_compressed(self, folder: str | Path, force: bool = False) -> None:
        """Writes a folder with a video for each view: much smaller, not exact; see `compressed.save_folder`."""
        save_folder(self, folder, force)

    @classmethod
    def load(cls, path: str | Path) -> "LightField":
        """Reads what `save` or `save_compressed` wrote.

        Raises `FileNotFoundError` or `ValueError` if that is not there; see `LightFieldFile` and `LightFieldFolder`.
        """
        with cls.open(path) as file:
            return file.read()

    @classmethod
    def open(cls, path: str | Path) -> "LightFieldFile[LightField] | LightFieldFolder[LightField]":
        """What was saved, for reading in parts: `LightField.open(path).read(view_rows=1, frames=slice(0, 4))`."""
        return LightFieldFolder(path, cls) if (Path(path) / HEADER).is_file() else LightFieldFile(path, cls)

    def __repr__(self) -> str:
        extras = [f"spacing {self.camera_grid.spacing:g}"]
        extras += ["with disparity"] if self.disparity is not None else []
        extras += [f"provenance: {', '.join(self.provenance)}"] if self.provenance else []
        return (
            f"LightField({self.view_rows}x{self.view_cols} views, {self.num_frames} frames at {self.frame_rate:g} a "
            f"second, {self.height}x{self.width} pixels, {', '.join(extras)})"
        )


def _check_pixels(pixels: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """`pixels` if they are a movie of `dtype` (floating point if that is None)."""
    if not isinstance(pixels, torch.Tensor) or pixels.ndim != len(MOVIE_AXES) or pixels.shape[0] != CHANNELS:
        got = tuple(pixels.shape) if isinstance(pixels, torch.Tensor) else type(pixels).__name__
        raise ValueError(
            f"`pixels` must be a tensor of axes {MOVIE_AXES} with {CHANNELS} channels, got {got}; make one "
            "`LightField` for every movie of a batch."
        )
    check_light_field(pixels[None], "pixels")
    if pixels.dtype != dtype and not (dtype is None and pixels.is_floating_point()):
        wanted = "floating point in [-1, 1]" if dtype is None else f"{dtype}"
        remedy = "LightField(pixels)" if dtype is None else "LightField.from_float(pixels)"
        raise ValueError(f"`pixels` must be {wanted}, got {pixels.dtype}; use `{remedy}` or convert them.")
    return pixels


def _check_disparity(disparity: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if not isinstance(disparity, torch.Tensor) or tuple(disparity.shape) != shape:
        got = tuple(disparity.shape) if isinstance(disparity, torch.Tensor) else type(disparity).__name__
        raise ValueError(f"`disparity` must have the axes {DISPARITY_AXES} of the pixels, {shape}, got {got}.")
    if disparity.dtype != torch.float32:
        raise ValueError(f"`disparity` must be float32 in pixels per view step, got {disparity.dtype}; convert it.")
    check_finite(disparity, DISPARITY_AXES, "`disparity` must be finite", "or pass None where there is none")
    return disparity


def _check_provenance(provenance: dict[str, Any]) -> dict[str, Any]:
    """A copy of `provenance`, by way of the JSON in which it will be stored."""
    try:
        copy = json.loads(json.dumps(provenance, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"`provenance` must be a dict that JSON can hold, {error}; use plain values.") from error
    if not isinstance(provenance, dict) or copy != provenance:
        raise ValueError(
            f"`provenance` must be a dict that JSON gives back as it was, got {provenance!r}; use strings as keys and "
            "lists for tuples."
        )
    return copy
