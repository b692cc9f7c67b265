"""The file of a light field: one safetensors file whose header says what the numbers are.

Tensors: `pixels` (uint8) and, where known, `disparity` (float32). Metadata, all strings: `format`, `version`, `axes`
(names, comma-separated), `frame_rate`, `camera_grid` and `provenance` (the last three as JSON).
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffusers_stale.light_field.atomic import atomic_path
from diffusers_stale.light_field.camera_grid import MOVIE_AXES, CameraGrid, Selection
from diffusers_stale.light_field.reader import LightFieldReader, Movie, damaged, described


FORMAT = "diffusers_stale.light_field"
VERSION = 1
DTYPES = {"pixels": "U8", "disparity": "F32"}
"""The tensors of a file, with their dtypes in the words of safetensors."""

IN_JSON = ("frame_rate", "camera_grid", "provenance")
"""Metadata that is written as JSON."""


class Parts(Protocol):
    """What is written: the attributes of a `LightField`."""

    pixels: torch.Tensor
    frame_rate: float
    camera_grid: CameraGrid
    disparity: torch.Tensor | None
    provenance: dict[str, Any]


def save_light_field(light_field: Parts, path: str | Path) -> None:
    """Writes `light_field` to `path`: whole or not at all, mode 0644. Raises `OSError` where that cannot be."""
    tensors = {"pixels": light_field.pixels, "disparity": light_field.disparity}
    stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "axes": ",".join(MOVIE_AXES),
        "frame_rate": json.dumps(light_field.frame_rate),
        "camera_grid": json.dumps(asdict(light_field.camera_grid)),
        "provenance": json.dumps(light_field.provenance),
    }
    with atomic_path(path) as temporary:
        try:
            save_file(stored, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"Could not write {path}: {error}; choose another place or free some space.") from error


class LightFieldFile(LightFieldReader[Movie]):
    """An open light field, of which only the pages that are read are loaded. Opening it reads the header only.

    Args:
        path: a file that `save_light_field` wrote.
        build: makes the result of `read` from `pixels`, `frame_rate`, `camera_grid`, `disparity`, `provenance`.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is no file, is cut short, is another kind of file, comes from a newer version, or if what
            its header says does not fit together. Nothing has been allocated then.
    """

    def __init__(self, path: str | Path, build: Callable[..., Movie]) -> None:
        self.path = Path(path)
        self._build = build
        self._file = _open(self.path)
        metadata = self._file.metadata() or {}
        _check_format(self.path, metadata)
        self.frame_rate, self.camera_grid, self.provenance = described(
            self.path, "metadata", lambda: {name: json.loads(metadata[name]) for name in IN_JSON}
        )
        self.sizes = _check_tensors(self.path, self._file, self.camera_grid)
        self.has_disparity = "disparity" in self._file.keys()  # noqa: SIM118 (an open file is no dict)

    def _pixels(self, part: Selection) -> torch.Tensor:
        return self._tensor("pixels", (slice(None), *part.bounds), (slice(None), *part.steps))

    def _disparity(self, part: Selection) -> torch.Tensor:
        return self._tensor("disparity", part.bounds, part.steps)

    def _tensor(self, name: str, bounds: tuple[slice, ...], steps: tuple[slice, ...]) -> torch.Tensor:
        """A copy in memory: a view of the mapped file would break when somebody else shortens the file."""
        return self._file.get_slice(name)[bounds][steps].clone(memory_format=torch.contiguous_format)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


def _open(path: Path) -> safe_open:
    if not path.exists():
        raise FileNotFoundError(f"There is no light field at {path}; check the path.")
    if not path.is_file():
        raise ValueError(f"Expected a light-field file at {path}, got something else; give the path of a file.")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"Expected a light field at {path}, but it is cut short or no safetensors file ({error}); write or "
            "download it again."
        ) from error


def _check_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"Expected a file of the format {FORMAT} at {path}, got {metadata.get('format')!r}; give a file that "
            "`LightField.save` wrote."
        )
    version = metadata.get("version", "")
    if not version.isascii() or not version.isdigit() or len(version) > 9 or int(version) < 1:
        raise damaged(path, f"its version is {version!r}")
    if int(version) > VERSION:
        raise ValueError(
            f"Expected version {VERSION} or older of a light-field file at {path}, got {version}; upgrade "
            "diffusers_stale to read it."
        )
    if metadata.get("axes") != ",".join(MOVIE_AXES):
        raise damaged(path, f"its axes are {metadata.get('axes')!r}, not {','.join(MOVIE_AXES)!r}")


def _check_tensors(path: Path, file: safe_open, grid: CameraGrid) -> dict[str, int]:
    """The length of every axis, after all that the header says about tensors has been compared."""
    names = sorted(file.keys())
    if names not in (["pixels"], ["disparity", "pixels"]):
        raise damaged(path, f"it holds the tensors {names}, not `pixels` and perhaps `disparity`")
    slices = {name: file.get_slice(name) for name in names}
    for name, part in slices.items():
        if part.get_dtype() != DTYPES[name]:
            raise damaged(path, f"`{name}` is {part.get_dtype()}, not {DTYPES[name]}")
    shape = slices["pixels"].get_shape()
    if len(shape) != len(MOVIE_AXES) or 0 in shape or shape[0] != 3:
        raise damaged(path, f"`pixels` has shape {shape}, not 3 channels and the axes {MOVIE_AXES}")
    if [grid.view_rows, grid.view_cols] != shape[1:3]:
        raise damaged(path, f"its pixels have {shape[1]}x{shape[2]} views, its grid {grid.view_rows}x{grid.view_cols}")
    if "disparity" in slices and slices["disparity"].get_shape() != shape[1:]:
        raise damaged(path, f"`disparity` has shape {slices['disparity'].get_shape()}, not {shape[1:]}")
    return dict(zip(MOVIE_AXES, shape, strict=True))
