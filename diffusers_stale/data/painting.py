"""Antialiased painting of shapes on every view at once. Knows cameras, spans and capsules; no barn and no horse.

A shape lives in the reference view, in scene units, at one disparity. Where a pixel of another view lies in the
reference view follows from `axes.displaced`, so parallax is exact below the pixel, and coverage is computed from
geometry, not from samples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from diffusers_stale.axes import view_coordinates
from diffusers_stale.data.animals import Capsules
from diffusers_stale.data.scenes import UNITS


@dataclass(frozen=True)
class Cameras:
    """A planar grid of cameras over one picture size.

    `columns`, `rows`: pixel centres in scene units, `(width,)` and `(height,)`; `horizontal`, `vertical`: signed
    camera positions in view steps, `(view_cols,)` and `(view_rows,)`; `scale`: pixels per unit.
    """

    columns: np.ndarray
    rows: np.ndarray
    horizontal: np.ndarray
    vertical: np.ndarray
    scale: float

    @classmethod
    def grid(cls, view_rows: int, view_cols: int, height: int, width: int, step: float) -> "Cameras":
        scale = min(height, width) / UNITS
        columns = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / scale + UNITS / 2
        rows = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / scale + UNITS / 2
        return cls(
            columns=columns.astype(np.float32),
            rows=rows.astype(np.float32),
            horizontal=view_coordinates(view_cols, step).numpy(),
            vertical=view_coordinates(view_rows, step).numpy(),
            scale=scale,
        )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(view_rows, view_cols, height, width)`."""
        return len(self.vertical), len(self.horizontal), len(self.rows), len(self.columns)

    def reference_columns(self, disparity: float) -> np.ndarray:
        """Reference column (units) of every pixel column of every view column: `(view_cols, width)`."""
        return self.columns + disparity * self.horizontal[:, None]

    def reference_rows(self, disparity: float) -> np.ndarray:
        """Reference row (units) of every pixel row of every view row: `(view_rows, height)`."""
        return self.rows + disparity * self.vertical[:, None]

    def window(self, low: float, high: float, disparity: float, *, vertical: bool) -> slice:
        """The pixels that a shape between `low` and `high` (units, reference view) can touch in any view."""
        steps, centers = (self.vertical, self.rows) if vertical else (self.horizontal, self.columns)
        reach = abs(disparity) * float(np.abs(steps).max()) + 1.0 / self.scale
        first, last = np.searchsorted(centers, (low - reach, high + reach))
        return slice(int(first), int(last))


class Canvas:
    """Colours, coverage and disparity of all views: `rgb (view_rows, view_cols, height, width, 3)` in [0, 1],
    premultiplied by `alpha (view_rows, view_cols, height, width)`; `disparity` in units, of the nearest opaque shape.
    """

    def __init__(self, cameras: Cameras) -> None:
        self.cameras = cameras
        self.rgb = np.zeros((*cameras.shape, 3), dtype=np.float32)
        self.alpha = np.zeros(cameras.shape, dtype=np.float32)
        self.disparity = np.zeros(cameras.shape, dtype=np.float32)

    def lay(self, window: tuple[slice, slice], coverage: np.ndarray, color: np.ndarray, disparity: np.ndarray) -> None:
        """Lays one colour over a window of rows and columns. `coverage`: `(view_rows, view_cols, rows, columns)`."""
        rgb = self.rgb[:, :, window[0], window[1]]
        alpha = self.alpha[:, :, window[0], window[1]]
        keep = 1.0 - coverage
        rgb *= keep[..., None]
        rgb += coverage[..., None] * np.asarray(color, dtype=np.float32)
        alpha *= keep
        alpha += coverage
        target = self.disparity[:, :, window[0], window[1]]
        np.copyto(target, disparity, where=coverage > 0.5)

    def span(
        self,
        color: np.ndarray,
        disparity: float,
        columns: tuple[float, float],
        top: float | Callable[[np.ndarray], np.ndarray],
        bottom: float,
        opacity: float = 1.0,
    ) -> None:
        """Fills `columns[0] < x < columns[1]`, `top(x) < y < bottom` (units). A constant `top` makes a rectangle."""
        cameras = self.cameras
        across = cameras.window(*columns, disparity, vertical=False)
        x = cameras.reference_columns(disparity)[:, across]
        heights = top(x) if callable(top) else np.full_like(x, top)
        if 0 in x.shape:
            return
        down = cameras.window(float(heights.min()), bottom, disparity, vertical=True)
        y = cameras.reference_rows(disparity)[:, down]
        horizontal = _overlap(x - columns[0], columns[1] - x, cameras.scale)
        above = (y[:, None, :, None] - heights[None, :, None, :]) * cameras.scale
        if callable(top):
            slope = np.gradient(heights, axis=1) * cameras.scale if heights.shape[1] > 1 else np.zeros_like(heights)
            above = above / np.sqrt(1.0 + slope**2)[None, :, None, :]
        below = ((bottom - y) * cameras.scale)[:, None, :, None]
        coverage = np.clip(np.minimum(above, 0.5) + np.minimum(below, 0.5), 0.0, 1.0)
        coverage = coverage * (opacity * horizontal[None, :, None, :])
        self.lay((down, across), coverage, color, disparity)

    def capsules(self, shapes: Capsules, disparity: float, tint: np.ndarray, left_of: float, right_of: float) -> None:
        """Paints `shapes` in order, cut off outside `right_of < x < left_of` (units, at the same disparity)."""
        low = np.minimum(shapes.starts, shapes.ends) - shapes.radii.max(axis=1)[:, None]
        high = np.maximum(shapes.starts, shapes.ends) + shapes.radii.max(axis=1)[:, None]
        cameras = self.cameras
        across = cameras.window(float(low[:, 0].min()), float(high[:, 0].max()), disparity, vertical=False)
        down = cameras.window(float(low[:, 1].min()), float(high[:, 1].max()), disparity, vertical=True)
        x = cameras.reference_columns(disparity)[:, across]
        y = cameras.reference_rows(disparity)[:, down]
        if 0 in x.shape or 0 in y.shape:
            return
        cut = _overlap(x - right_of, left_of - x, cameras.scale)
        coverage = capsule_coverage(shapes, x, y, cameras.scale) * cut[None, None, :, None, :]
        self.lay_many((down, across), coverage, shapes.colors * tint, disparity)

    def lay_many(
        self, window: tuple[slice, slice], coverage: np.ndarray, colors: np.ndarray, disparity: float
    ) -> None:
        """Lays shapes over each other in order. `coverage`: `(shapes, view_rows, view_cols, rows, columns)`."""
        through = np.cumprod(1.0 - coverage[::-1], axis=0)
        clear = through[-1]
        weights = coverage[::-1].copy()
        weights[1:] *= through[:-1]
        flat = weights.reshape(len(weights), -1).T @ colors[::-1].astype(np.float32)
        rgb = self.rgb[:, :, window[0], window[1]]
        rgb *= clear[..., None]
        rgb += flat.reshape(*clear.shape, 3)
        alpha = self.alpha[:, :, window[0], window[1]]
        alpha *= clear
        alpha += 1.0 - clear
        target = self.disparity[:, :, window[0], window[1]]
        np.copyto(target, disparity, where=clear < 0.5)


def capsule_coverage(shapes: Capsules, x: np.ndarray, y: np.ndarray, scale: float) -> np.ndarray:
    """How much of each pixel each capsule covers: `(capsules, view_rows, view_cols, rows, columns)`.

    `x`: `(view_cols, columns)`, `y`: `(view_rows, rows)`, both in units of the reference view.
    """
    column = (slice(None), None, None, None, None)
    delta = shapes.ends - shapes.starts
    length = np.maximum((delta**2).sum(axis=1), 1e-8)
    from_x = x[None, None, :, None, :] - shapes.starts[:, 0][column]
    from_y = y[None, :, None, :, None] - shapes.starts[:, 1][column]
    along = from_x * (delta[:, 0] / length)[column] + from_y * (delta[:, 1] / length)[column]
    np.clip(along, 0.0, 1.0, out=along)
    distance = np.square(from_x - along * delta[:, 0][column])
    distance += np.square(from_y - along * delta[:, 1][column])
    np.sqrt(distance, out=distance)
    along *= (shapes.radii[:, 1] - shapes.radii[:, 0])[column]
    distance -= along
    distance -= shapes.radii[:, 0][column]
    distance *= -scale
    distance += 0.5
    np.clip(distance, 0.0, 1.0, out=distance)
    distance *= shapes.alphas[column]
    return distance


def _overlap(after: np.ndarray, before: np.ndarray, scale: float) -> np.ndarray:
    """Share of each pixel inside an interval, from the signed distances (units) of its centre to both ends."""
    return np.clip(np.minimum(after * scale, 0.5) + np.minimum(before * scale, 0.5), 0.0, 1.0)
