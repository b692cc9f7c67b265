"""What the two forms of a stored light field have in common: parts are chosen and put together in one way.

`file.py` and `compressed.py` say where pixels are. Neither knows the container: who opens a light field says what is
to be built of its parts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch

from diffusers_stale.light_field.camera_grid import CameraGrid, Choice, Selection, check_number


Movie = TypeVar("Movie")


class LightFieldReader(ABC, Generic[Movie]):
    """An open light field, of which parts can be read without the rest.

    Those derived from it set, when they are made, what is declared here.
    """

    path: Path
    sizes: dict[str, int]
    frame_rate: float
    camera_grid: CameraGrid
    provenance: dict[str, Any]
    has_disparity: bool
    """Whether the disparity of every pixel is stored."""

    _build: Callable[..., Movie]
    """Makes the result of `read` from `pixels`, `frame_rate`, `camera_grid`, `disparity`, `provenance`."""

    def read(
        self,
        *,
        view_rows: Choice = None,
        view_cols: Choice = None,
        frames: Choice = None,
        height: Choice = None,
        width: Choice = None,
    ) -> Movie:
        """The chosen part, as `LightField.select` would give it; no more is read than it needs.

        Raises `ValueError` as `LightField.select` does, and where what is stored turns out to be damaged.
        """
        choices = {"view_rows": view_rows, "view_cols": view_cols, "frames": frames, "height": height, "width": width}
        part = Selection.of(self.sizes, choices)
        grid, frame_rate, pixels = (
            part.grid_of(self.camera_grid),
            part.frame_rate_of(self.frame_rate),
            self._pixels(part),
        )
        disparity = self._disparity(part) if self.has_disparity else None
        try:
            return self._build(
                pixels=pixels,
                frame_rate=frame_rate,
                camera_grid=grid,
                disparity=disparity,
                provenance=self.provenance,
            )
        except ValueError as error:
            raise damaged(self.path, str(error).removesuffix(".")) from error

    @abstractmethod
    def _pixels(self, part: Selection) -> torch.Tensor:
        """Of the part, a copy in memory."""

    @abstractmethod
    def _disparity(self, part: Selection) -> torch.Tensor:
        """Of the part, a copy in memory; asked for only if it is stored."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes what is held open."""


def described(
    path: Path, name: str, read: Callable[[], Mapping[str, Any]]
) -> tuple[float, CameraGrid, dict[str, Any]]:
    """Frame rate, camera grid and provenance, which `read` takes from what is called `name` of the light field.

    Raises `ValueError` for what cannot be read.
    """
    try:
        values = read()
        frame_rate = check_number("frame_rate", values["frame_rate"], positive=True)
        grid, provenance = CameraGrid(**values["camera_grid"]), values["provenance"]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise damaged(path, f"its {name} cannot be read: {error}") from error
    if not isinstance(provenance, dict):
        raise damaged(path, f"its provenance is a {type(provenance).__name__}, not a dict")
    return frame_rate, grid, provenance


def damaged(path: Path, what: str) -> ValueError:
    """The error for a light field at `path` with which something is wrong."""
    return ValueError(f"Expected a sound light field at {path}, but {what}; write or download it again.")
