"""Quilts: all views of a holographic display as tiles of one picture, the leftmost view at the bottom left.

Layout: view 0 is the leftmost and stands at the bottom left, then rightward, then upward
(https://docs.lookingglassfactory.com/keyconcepts/quilts). Names: `_qs8x6a0.75` tells columns, rows, and the width /
height of one view (https://lookingglassfactory.com/tutorial/what-is-a-quilt). Grids of `QUILTS`: the table "Quilt
Settings by Device" of the first page and of https://lfdocs.lookingglassfactory.com/keyconcepts/quilts for Portrait,
Go, 16" landscape and both `-first`; https://docs.lookingglassfactory.com/keyconcepts/quilts/quilt-video-encoding for
the 65"; the others as the PyPI package quiltwright lists them from there. Displays take other grids too.
"""

import logging
from dataclasses import dataclass

import torch

from diffusers_stale.axes import check_count, middle_index
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.interpolation import Interpolator
from diffusers_stale.light_field.quilt_layout import MAX_TILES, assemble_quilt, quilt_views
from diffusers_stale.light_field.viewpoints import (
    disparity_range,
    focus_of,
    in_dtype_of,
    moments_of,
    pixels_of,
    search_reach,
    seen_from,
)


__all__ = [
    "DEPTH_BUDGET",
    "MAX_TILES",
    "QUILTS",
    "QuiltPreset",
    "assemble_quilt",
    "check_columns",
    "cropped_size",
    "quilt",
    "quilt_hint",
    "quilt_places",
    "quilt_step",
    "quilt_tiles",
    "quilt_views",
]

logger = logging.getLogger(__name__)

DEPTH_BUDGET = 5.0
"""Pixels between neighbouring views of a quilt, above which a display shows doubled edges instead of depth."""


@dataclass(frozen=True, kw_only=True)
class QuiltPreset:
    """What a display wants: tiles, the width / height of its screen, and its name in words."""

    columns: int
    rows: int
    aspect: float
    device: str


def quilt(
    light_field: LightField | torch.Tensor,
    preset: str = "portrait",
    columns: int | None = None,
    rows: int | None = None,
    focus: float | None = None,
    crop: bool = False,
    max_disparity: float | None = None,
    report: bool = True,
) -> torch.Tensor:
    """Quilt for a holographic display: tiles from the leftmost view at the bottom left to the rightmost at the top.

    Views are spread evenly from the first to the last camera of the middle row, those between cameras interpolated.
    They keep their pixels: displays scale by themselves.

    Args:
        light_field: the movie, or pixels `(3, view_rows, view_cols, frames, height, width)`.
        preset: a display of `QUILTS`; says how many tiles there are.
        columns, rows: tiles along each side, instead of the preset's.
        focus: what stands on the screen, in pixels of disparity per neighbouring view of the movie; by default the
            focal plane of its camera grid, 0 for tensors. What is nearer comes out of the screen.
        crop: cut views, evenly on both sides, to the shape of the preset's screen; otherwise it shows bars.
        max_disparity: largest shift between neighbouring views that interpolation looks for, in pixels.
        report: tell the logger how far things move between tiles; it warns above `DEPTH_BUDGET`.

    Returns:
        Shape `(3, frames, rows * height, columns * width)`, in the dtype of the pixels.

    Raises:
        ValueError: for pixels of another shape or not finite, a single column of views, an unknown preset, counts out
            of range.
    """
    pixels = pixels_of(light_field)
    check_columns(pixels.shape[2], "A quilt")
    columns, rows = quilt_tiles(preset, columns, rows)
    plane, reach = focus_of(light_field, focus), search_reach(light_field, max_disparity)
    if report:
        quilt_step(light_field, columns * rows, focus)
    view_row, aspect = middle_index(pixels.shape[1]), QUILTS[preset].aspect if crop else None
    places, shown = quilt_places(columns * rows, pixels.shape[2]), _cropped(pixels, aspect)
    # Cameras that are there are copied as they are.
    if pixels.dtype == torch.uint8 and plane == 0.0 and all(place.is_integer() for place in places):
        return assemble_quilt(shown[:, view_row, [int(place) for place in places]], columns, rows)
    frames = []
    for moment in moments_of(shown):
        views = Interpolator(moment, reach)
        tiles = torch.stack([in_dtype_of(pixels, seen_from(views, view_row, place, plane)) for place in places], dim=1)
        frames.append(assemble_quilt(tiles[:, :, None], columns, rows)[:, 0])
    return torch.stack(frames, dim=1)


def quilt_places(count: int, view_cols: int) -> list[float]:
    """Where `count` views stand in a row of `view_cols` cameras, 0 at the leftmost; one alone is in the middle."""
    if count == 1:
        return [(view_cols - 1) / 2]
    return [index * (view_cols - 1) / (count - 1) for index in range(count)]


def quilt_tiles(preset: str, columns: int | None = None, rows: int | None = None) -> tuple[int, int]:
    """Columns and rows of a preset, or those that are given instead. Raises `ValueError` as `quilt` does."""
    if preset not in QUILTS:
        raise ValueError(f"`preset` must be one of {', '.join(QUILTS)}, got {preset!r}; choose one.")
    wanted = QUILTS[preset].columns if columns is None else columns, QUILTS[preset].rows if rows is None else rows
    return check_count("columns", wanted[0], MAX_TILES), check_count("rows", wanted[1], MAX_TILES)


def quilt_hint(
    height: int, width: int, preset: str = "portrait", columns: int | None = None, rows: int | None = None
) -> str:
    """What the name of a quilt file ends with, for tiles of this size: `_qs{columns}x{rows}a{width / height}`."""
    tiles = quilt_tiles(preset, columns, rows)
    return f"_qs{tiles[0]}x{tiles[1]}a{round(width / height, 4):g}"


def cropped_size(height: int, width: int, aspect: float) -> tuple[int, int]:
    """The largest height and width of this shape (width / height) within those that are given, each at least 1."""
    if width > height * aspect:
        return height, max(1, round(height * aspect))
    return max(1, round(width / aspect)), width


def quilt_step(light_field: LightField | torch.Tensor, count: int, focus: float | None = None) -> float:
    """Pixels that the nearest or farthest thing moves between neighbouring tiles, beside what stands on the screen.

    From the movie's own disparity, or estimated (`disparity_range`). Logged; with a warning above `DEPTH_BUDGET`.
    """
    view_cols = pixels_of(light_field).shape[2]
    plane = focus_of(light_field, focus)
    step = max(abs(end - plane) for end in disparity_range(light_field)) * (view_cols - 1) / max(1, count - 1)
    if step > DEPTH_BUDGET:
        logger.warning(
            "Things move up to %.1f pixels between neighbouring tiles, and edges will look doubled above %g; use more "
            "tiles, cameras that are closer together, or a focus in the middle of the depth.",
            step,
            DEPTH_BUDGET,
        )
    else:
        logger.info("Things move up to %.1f pixels between neighbouring tiles.", step)
    return step


def check_columns(view_cols: int, what: str) -> None:
    """Raises `ValueError` where there is nothing to see with two eyes: a single column of views."""
    if view_cols < 2:
        raise ValueError(
            f"{what} needs at least 2 columns of views, got {view_cols}; make the movie with more, as with "
            "`--views 3x3`: one column shows no depth from side to side."
        )


def _cropped(pixels: torch.Tensor, aspect: float | None) -> torch.Tensor:
    if aspect is None:
        return pixels
    height, width = pixels.shape[-2:]
    kept = cropped_size(height, width, aspect)
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    return pixels[..., top : top + kept[0], left : left + kept[1]]


QUILTS: dict[str, QuiltPreset] = {
    "portrait": QuiltPreset(columns=8, rows=6, aspect=0.75, device="Looking Glass Portrait"),
    "go": QuiltPreset(columns=11, rows=6, aspect=0.5625, device="Looking Glass Go"),
    "16-landscape": QuiltPreset(columns=7, rows=7, aspect=16 / 9, device='Looking Glass 16", landscape'),
    "16-portrait": QuiltPreset(columns=11, rows=6, aspect=0.5625, device='Looking Glass 16", portrait'),
    "16-first": QuiltPreset(columns=5, rows=9, aspect=16 / 9, device='Looking Glass 16", as first sold (15.6")'),
    "27-landscape": QuiltPreset(columns=8, rows=6, aspect=16 / 9, device='Looking Glass 27", landscape'),
    "27-portrait": QuiltPreset(columns=12, rows=4, aspect=0.5625, device='Looking Glass 27", portrait'),
    "32-landscape": QuiltPreset(columns=7, rows=7, aspect=16 / 9, device='Looking Glass 32", landscape'),
    "32-portrait": QuiltPreset(columns=11, rows=6, aspect=0.5625, device='Looking Glass 32", portrait'),
    "32-first": QuiltPreset(columns=5, rows=9, aspect=16 / 9, device='Looking Glass 32", as first sold (8K)'),
    "65": QuiltPreset(columns=8, rows=9, aspect=16 / 9, device='Looking Glass 65"'),
}
"""Quilt of every display by its name."""
