"""How the tiles of a quilt are laid, and what its file name says of them. Knows no displays and no cameras.

View 0 is the leftmost and stands at the bottom left, then rightward, then upward; `quilt.py` has the sources.
"""

import re
from pathlib import Path

import torch

from diffusers_stale.axes import check_count


MAX_TILES = 256
"""Most tiles along one side of a quilt."""


def assemble_quilt(views: torch.Tensor, columns: int, rows: int) -> torch.Tensor:
    """Tiles `(3, columns * rows, frames, height, width)`, leftmost first, to `(3, frames, rows * height, ...)`.

    Raises `ValueError` for another number of views.
    """
    if views.ndim != 5 or views.shape[1] != columns * rows:
        raise ValueError(
            f"`views` must have {columns * rows} views for {columns}x{rows} tiles in the axes (channels, views, "
            f"frames, height, width), got shape {tuple(views.shape)}; pass as many as there are tiles."
        )
    channels, _, frames, height, width = views.shape
    sheet = views.new_empty(channels, frames, rows, height, columns, width)
    # A row of tiles at a time goes from memory to memory as fast as it can be copied at all.
    for row, tiles in enumerate(views.unflatten(1, (rows, columns)).unbind(1)):
        sheet[:, :, rows - 1 - row] = tiles.permute(0, 2, 3, 1, 4)
    return sheet.view(channels, frames, rows * height, columns * width)


def quilt_views(picture: torch.Tensor, columns: int, rows: int) -> torch.Tensor:
    """The tiles of a quilt `(3, frames, height, width)` as pixels `(3, 1, columns * rows, frames, ...)`, exactly.

    What comes out is a row of cameras, leftmost first: `LightField(quilt_views(...))` takes it if it is uint8.
    Raises `ValueError` for another number of axes, and for sides that do not divide into tiles.
    """
    check_count("columns", columns, MAX_TILES)
    check_count("rows", rows, MAX_TILES)
    if picture.ndim != 4 or picture.shape[-2] % rows or picture.shape[-1] % columns:
        raise ValueError(
            f"A quilt of {columns}x{rows} tiles must have axes (channels, frames, height, width) with sides that are "
            f"multiples of them, got shape {tuple(picture.shape)}; give the numbers in its file name."
        )
    lines = picture.chunk(rows, dim=-2)[::-1]
    return torch.stack([tile for line in lines for tile in line.chunk(columns, dim=-1)], dim=1)[:, None]


def tiles_of_name(path: str | Path) -> tuple[int, int]:
    """Columns and rows that the name of a quilt file tells: 8 and 6 of `pigs_qs8x6a0.75.png`.

    The number that browsers add to a second download, as in `pigs_qs8x6a0.75 (1).png`, is no part of it.
    Raises `ValueError` for a name that tells none.
    """
    found = re.search(r"_qs(\d{1,3})x(\d{1,3})a[\d.]+( \(?\d{1,3}\)?)?$", Path(path).stem)
    if not found:
        raise ValueError(
            f"Expected a name that ends like _qs8x6a0.75, got {Path(path).name!r}; give `columns` and `rows`."
        )
    return check_count("columns", int(found[1]), MAX_TILES), check_count("rows", int(found[2]), MAX_TILES)
