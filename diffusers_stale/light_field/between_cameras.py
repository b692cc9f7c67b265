"""What a lens sees where things hardly move from camera to camera, without knowing how far they are.

There each pixel changes smoothly from camera to camera, also where something hides something else. So a parabola
through the cameras tells what is between them, and its mean over the lens is a weighted mean of the cameras: Simpson's
rule for lenses. Where things move by more than about a pixel, it shows ghosts.
"""

import torch

from diffusers_stale.light_field.interpolation import Interpolator


STILL = 0.5
"""Disparity, in pixels per neighbouring view, up to which parabolas are believed alone."""

MOVING = 1.3
"""Disparity beyond which they are not believed at all."""


def parabolas(cameras: int, densify: int) -> torch.Tensor:
    """How much each camera of a row counts for each of the views on the grid `densify` times as dense.

    Shape `((cameras - 1) * densify + 1, cameras)`; rows add up to 1. Between two cameras that have others on both
    sides it is the mix of two parabolas (E. Catmull and R. Rom, "A Class of Local Interpolating Splines", 1974).
    Two cameras alone make a straight line.
    """
    parts = torch.zeros((cameras - 1) * densify + 1, cameras)
    if cameras < 3:
        line = torch.arange(len(parts)) / densify
        return (1.0 - (line[:, None] - torch.arange(cameras)).abs()).clamp(min=0.0)
    for index in range(len(parts)):
        place = index / densify
        left = min(index // densify, cameras - 2)
        for middle, share in ((left, left + 1 - place), (left + 1, place - left)):
            middle = min(max(middle, 1), cameras - 2)
            offset = place - middle
            three = (offset * (offset - 1) / 2, 1 - offset * offset, offset * (offset + 1) / 2)
            parts[index, middle - 1 : middle + 2] += share * torch.tensor(three)
    return parts


def shares_of_cameras(weights: torch.Tensor, densify: int) -> torch.Tensor | None:
    """What each camera counts for a lens that weighs the views of the dense grid; it adds up to 1.

    Shape `(view_rows, view_cols)`; a few cameras may count less than nothing. None where there are two cameras along
    an axis: a straight line is not worth it.
    """
    counts = [(size - 1) // densify + 1 for size in weights.shape]
    if 2 in counts:
        return None
    rows, cols = (parabolas(count, densify) for count in counts)
    return rows.T @ (weights / weights.sum()) @ cols


def stillness(views: Interpolator, shares: torch.Tensor) -> torch.Tensor:
    """How far parabolas are to be believed by a lens focused on disparity 0: from 0 to 1, shape `(height, width)`.

    What counts at a pixel is the fastest thing that any camera sees there.
    """
    maps = [views.disparity(row, col).abs() for row, col in torch.nonzero(shares).tolist()]
    return ((MOVING - torch.stack(maps).amax(dim=0)) / (MOVING - STILL)).clamp(0.0, 1.0)
