"""Views from between the cameras, for a light field whose disparity nobody knows: a plane sweep.

Every candidate disparity moves the neighbouring views to the wanted place; the one under which they agree best, in a
small window, is taken for each pixel, and the views so moved are blended. Good enough to move a camera smoothly. It
invents nothing but what neighbours agree on, and is no measurement: evaluation must look at the views themselves.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F

from diffusers_stale.axes import displaced


SEARCH_SIZE = 96
"""Longest side, in pixels, of the pictures in which disparity is searched; larger ones are reduced for it."""

SEARCH_STEP = 0.5
"""Distance between candidate disparities, in pixels of the searched picture."""

WINDOW = 5
"""Side of the window in which views must agree, in pixels of the searched picture."""

PREFER_FLAT = 1e-4
"""Cost of a pixel of disparity, so that plain areas, where all candidates agree, do not move at random."""


def view_between(views: torch.Tensor, row: float, col: float, max_disparity: float) -> torch.Tensor:
    """What a camera at the view position `(row, col)` would see.

    Args:
        views: one moment, floating point in [-1, 1], shape `(3, view_rows, view_cols, height, width)`.
        row, col: position among the views, 0 at the first; `1.5` is halfway between the second and the third.
        max_disparity: largest shift between neighbouring views that is searched for, in pixels.

    Returns:
        Shape `(3, height, width)`. At a whole position, exactly the view that is there.
    """
    corners = _corners(views, row, col)
    if len(corners) == 1:
        r, c, _ = corners[0]
        return views[:, r, c]
    pictures = torch.stack([views[:, r, c] for r, c, _ in corners])
    steps = torch.tensor([(r - row, c - col) for r, c, _ in corners], dtype=views.dtype, device=views.device)
    weights = torch.tensor([weight for _, _, weight in corners], dtype=views.dtype, device=views.device)
    disparity = _search(pictures, steps, max_disparity)
    moved = _moved(
        pictures, steps, disparity, "bicubic"
    )  # bilinear sampling would blur and sharpen as the camera moves
    return (moved * weights[:, None, None, None]).sum(dim=0).clamp(-1.0, 1.0)


def _corners(views: torch.Tensor, row: float, col: float) -> list[tuple[int, int, float]]:
    """The one, two or four views around a position, with their bilinear weights."""

    def sides(position: float, count: int) -> list[tuple[int, float]]:
        low = min(max(math.floor(position + 1e-6), 0), count - 1)
        part = position - low
        return [(low, 1.0)] if part < 1e-5 or low == count - 1 else [(low, 1.0 - part), (low + 1, part)]

    rows, cols = sides(row, views.shape[1]), sides(col, views.shape[2])
    return [(r, c, share_r * share_c) for r, share_r in rows for c, share_c in cols]


def _search(pictures: torch.Tensor, steps: torch.Tensor, max_disparity: float) -> torch.Tensor:
    """Disparity at which the pictures agree, pixels per view, shape `(height, width)`."""
    height, width = pictures.shape[-2:]
    reduction = max(1.0, max(height, width) / SEARCH_SIZE)
    size = (max(1, round(height / reduction)), max(1, round(width / reduction)))
    small = pictures if reduction == 1.0 else F.interpolate(pictures, size, mode="area")
    reach = max_disparity / reduction
    count = 2 * math.ceil(reach / SEARCH_STEP) + 1
    candidates = torch.linspace(-reach, reach, count, dtype=pictures.dtype, device=pictures.device)
    costs = [_disagreement(_moved(small, steps, candidate.expand(size), "bilinear")) for candidate in candidates]
    costs = F.avg_pool2d(torch.stack(costs)[:, None], WINDOW, 1, WINDOW // 2, count_include_pad=False)[:, 0]
    best = candidates[(costs + PREFER_FLAT * candidates.abs()[:, None, None]).argmin(dim=0)]
    return F.interpolate(best[None, None], (height, width), mode="nearest")[0, 0] * reduction


def _disagreement(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.var(dim=0, correction=0).sum(dim=0)


def _moved(
    pictures: torch.Tensor, steps: torch.Tensor, disparity: torch.Tensor, mode: Literal["bilinear", "bicubic"]
) -> torch.Tensor:
    """Each picture as seen from the wanted place, from which it is `steps` (rows, columns) of views away."""
    height, width = disparity.shape
    y, x = torch.meshgrid(
        torch.arange(height, dtype=disparity.dtype, device=disparity.device),
        torch.arange(width, dtype=disparity.dtype, device=disparity.device),
        indexing="ij",
    )
    rows = displaced(y, disparity, steps[:, 0, None, None])
    cols = displaced(x, disparity, steps[:, 1, None, None])
    places = torch.stack([(cols + 0.5) / width, (rows + 0.5) / height], dim=-1) * 2 - 1
    return F.grid_sample(pictures, places, mode, padding_mode="border", align_corners=False)
