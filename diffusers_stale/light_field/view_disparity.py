"""Disparity as each camera sees it, for a light field that does not say: every view is matched with its neighbours.

What one neighbour cannot see behind a nearer thing, the neighbour on the other side mostly can: only the better half
of the neighbours counts. Good enough to warp views for the eye; no measurement.
"""

import math

import torch
import torch.nn.functional as F

from diffusers_stale.light_field.shifting import shifted


SEARCH_SIZE = 192
"""Longest side, in pixels, of the pictures in which disparity is searched; larger ones are reduced for it."""

SEARCH_STEP = 0.25
"""Distance between candidate disparities, in pixels of the searched picture."""

WINDOW = 5
"""Side of the window in which views must agree, in pixels of the searched picture."""

PREFER_FLAT = 1e-4
"""Cost of a pixel of disparity, so that plain areas, where all candidates agree, do not move at random."""

NEIGHBOURS = ((0, -1), (0, 1), (-1, 0), (1, 0))
"""Steps to the views that are compared: rows, columns."""


def view_disparity(moment: torch.Tensor, reach: float) -> torch.Tensor:
    """Disparity of every pixel of every view, by a plane sweep over its neighbours.

    Args:
        moment: floating point in [-1, 1], shape `(3, view_rows, view_cols, height, width)`.
        reach: largest disparity to look for, in pixels between neighbouring views.

    Returns:
        Shape `(view_rows, view_cols, height, width)`, pixels between neighbouring views; positive is near, as in
        `axes.py`. Zero for a single view.
    """
    _, view_rows, view_cols, height, width = moment.shape
    if view_rows * view_cols == 1:
        return moment.new_zeros(1, 1, height, width)
    reduction = max(1.0, max(height, width) / SEARCH_SIZE)
    size = (max(1, round(height / reduction)), max(1, round(width / reduction)))
    small = moment if reduction == 1.0 else _resized(moment, size, "area")
    candidates = _candidates(reach / reduction).to(moment)
    costs = torch.stack([_cost(small, float(d)) + PREFER_FLAT * abs(float(d)) for d in candidates])
    best = _median(candidates[costs.argmin(dim=0)]) * reduction
    return best if reduction == 1.0 else _resized(best[None], (height, width), "nearest")[0]


def _candidates(reach: float) -> torch.Tensor:
    return torch.linspace(-reach, reach, 2 * math.ceil(reach / SEARCH_STEP) + 1)


def _cost(moment: torch.Tensor, disparity: float) -> torch.Tensor:
    """How much every view differs from the better half of its neighbours, if all has this disparity."""
    costs = torch.stack([_difference(moment, step, disparity) for step in NEIGHBOURS])
    there = torch.isfinite(costs).sum(dim=0)
    ranked = costs.sort(dim=0).values
    counted = torch.arange(len(NEIGHBOURS)).view(-1, 1, 1, 1, 1).to(there) < (there + 1) // 2
    return torch.where(counted, ranked, 0.0).sum(dim=0) / ((there + 1) // 2)


def _difference(moment: torch.Tensor, step: tuple[int, int], disparity: float) -> torch.Tensor:
    """Squared difference to the neighbour at `step`, averaged over the window; infinite where there is none."""
    view_rows, view_cols, height, width = moment.shape[1:]
    result = moment.new_full((view_rows, view_cols, height, width), math.inf)
    (here_rows, there_rows), (here_cols, there_cols) = map(_overlap, step, (view_rows, view_cols))
    # A point at x here stands at x - disparity * step there (axes.py): move it back by as much.
    moved = shifted(moment[:, there_rows, there_cols], disparity * step[0], disparity * step[1])
    if moved.numel():
        squares = (moved - moment[:, here_rows, here_cols]).square().sum(dim=0)
        views = squares.reshape(-1, 1, height, width)
        windows = F.avg_pool2d(views, WINDOW, 1, WINDOW // 2, count_include_pad=False)
        result[here_rows, here_cols] = windows.reshape(squares.shape)
    return result


def _overlap(step: int, count: int) -> tuple[slice, slice]:
    """Views that have a neighbour `step` away, and those neighbours."""
    return slice(max(0, -step), count - max(0, step)), slice(max(0, step), count - max(0, -step))


def _median(disparity: torch.Tensor) -> torch.Tensor:
    """Of 3x3 pixels each: single mistakes go."""
    padded = F.pad(disparity, (1, 1, 1, 1), mode="replicate")
    return padded.unfold(-2, 3, 1).unfold(-2, 3, 1).flatten(-2).median(dim=-1).values


def _resized(pictures: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    flat = pictures.reshape(-1, 1, *pictures.shape[-2:])
    return F.interpolate(flat, size, mode=mode).reshape(*pictures.shape[:-2], *size)
