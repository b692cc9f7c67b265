"""Sub-grids of a pool's clips: how they are written, drawn and cut out. Knows no network."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A size of light field to train on, how many make a batch, and how often it is drawn."""

    view_rows: int
    view_cols: int
    frames: int
    batch_size: int
    weight: float


def parse_grids(text: str, largest: tuple[int, int, int] | None) -> tuple[Grid, ...]:
    """The grids in `text`, written "rows x cols x frames : batch : weight" and separated by commas.

    Raises `ValueError` for another form, and for grids that cannot be cut from the middle of clips of the size
    `largest` (view_rows, view_cols, frames), if that is given (see `fits`).
    """
    grids = tuple(_parse_grid(part.strip()) for part in text.split(",") if part.strip())
    if not grids:
        raise ValueError(f"At least one grid must be given, got {text!r}; for example 3x3x1:6:1.")
    for grid in grids:
        if largest is not None and not fits(grid, largest):
            raise ValueError(
                f"A grid must be cut from the middle of clips of {'x'.join(map(str, largest))}, got {grid}; take view "
                "counts that are smaller by an even number, and no more frames."
            )
    return grids


def fits(grid: Grid, largest: tuple[int, int, int]) -> bool:
    """Whether `grid` can be cut from the middle of clips of the size `largest` (view_rows, view_cols, frames).

    View counts must be smaller by an even number: cameras are cut around the same reference then.
    """
    views = zip((grid.view_rows, grid.view_cols), largest[:2], strict=True)
    return all(count <= most and (most - count) % 2 == 0 for count, most in views) and grid.frames <= largest[2]


def _parse_grid(text: str) -> Grid:
    try:
        size, batch_size, weight = text.split(":")
        rows, cols, frames = (int(part) for part in size.split("x"))
        grid = Grid(view_rows=rows, view_cols=cols, frames=frames, batch_size=int(batch_size), weight=float(weight))
    except ValueError as error:
        raise ValueError(f"A grid must read rowsxcolsxframes:batch:weight, got {text!r}; as in 3x3x1:6:1.") from error
    if min(rows, cols, frames, grid.batch_size) < 1 or not grid.weight > 0:
        raise ValueError(f"Counts and weight of a grid must be greater than 0, got {text!r}; as in 3x3x1:6:1.")
    return grid


def draw_grid(draw: np.random.Generator, grids: tuple[Grid, ...]) -> Grid:
    """One of `grids`, each as probable as its weight says."""
    weights = np.asarray([grid.weight for grid in grids])
    return grids[int(draw.choice(len(grids), p=weights / weights.sum()))]


def cut(clip: torch.Tensor, grid: Grid, first_frame: int) -> torch.Tensor:
    """The middle `grid` of `clip` (..., view_rows, view_cols, frames, height, width), from `first_frame` on."""
    row, col = (clip.shape[-5] - grid.view_rows) // 2, (clip.shape[-4] - grid.view_cols) // 2
    rows, cols = slice(row, row + grid.view_rows), slice(col, col + grid.view_cols)
    return clip[..., rows, cols, first_frame : first_frame + grid.frames, :, :]
