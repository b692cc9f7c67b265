"""Finds by how many pixels the parts of one picture stand elsewhere in another, along one axis, from pixels alone.

Block matching: every window of the reference is compared with windows of its neighbours at all displacements in steps
of a quarter pixel, and the best one is refined by a parabola. It works without training and on soft pictures; it says
nothing where a window has no structure along the axis, where the neighbours do not show it, or at the search's end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


STEP = 0.25
"""Pixels between the displacements that are compared."""

LEAST_GRADIENT = 0.03
"""Root mean square change per pixel along the axis, in a window, below which there is nothing to match."""

LEAST_EXPLAINED = 0.8
"""Share of a window's variance that the neighbours must account for."""


@dataclass(frozen=True)
class Match:
    """`displacement`: `(batch, height, width)`, pixels per unit of coordinate; `trusted`: the same shape, bool;
    `textured`: likewise, where the reference has anything to match, whether or not it was found."""

    displacement: torch.Tensor
    trusted: torch.Tensor
    textured: torch.Tensor


def match(
    reference: torch.Tensor,
    neighbours: Sequence[tuple[float, torch.Tensor]],
    limit: float = 3.0,
    window: int = 7,
) -> Match:
    """The displacement `d` of every pixel, so that `reference(x)` is found at `x - d * coordinate` in each neighbour.

    Args:
        reference: `(batch, channels, height, width)` in [-1, 1]; matched along `width` (transpose for rows).
        neighbours: (coordinate, picture of the same shape), at least one.
        limit: largest displacement, in pixels.
        window: side of the windows in pixels, odd.
    """
    steps = torch.arange(-round(limit / STEP), round(limit / STEP) + 1) * STEP
    costs = torch.stack([_cost(reference, neighbours, step, window) for step in steps.tolist()])
    least, best = costs.min(dim=0)
    inside = (best > 0) & (best < len(steps) - 1)
    before, after = (costs.gather(0, (best + shift).clamp(0, len(steps) - 1)[None])[0] for shift in (-1, 1))
    displacement = steps[best] + STEP * _vertex(before, least, after)
    variance = box(reference.square().mean(dim=1), window) - box(reference, window).square().mean(dim=1)
    change = (shift_columns(reference, 1.0) - shift_columns(reference, -1.0)) / 2
    textured = box(change.square().mean(dim=1), window) > LEAST_GRADIENT**2
    return Match(displacement, inside & textured & (least < 2 * (1 - LEAST_EXPLAINED) * variance), textured)


def _cost(
    reference: torch.Tensor, neighbours: Sequence[tuple[float, torch.Tensor]], step: float, window: int
) -> torch.Tensor:
    """Mean squared difference in each window at displacement `step`."""
    squares = [
        (reference - shift_columns(picture, -step * place)).square().mean(dim=1) for place, picture in neighbours
    ]
    return box(torch.stack(squares).mean(dim=0), window)


def _vertex(before: torch.Tensor, least: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Where the parabola through three costs is lowest, in steps from the middle one, within half a step."""
    curvature = (before - 2 * least + after).clamp_min(1e-9)
    return ((before - after) / (2 * curvature)).clamp(-0.5, 0.5)


def shift_columns(pictures: torch.Tensor, offset: float) -> torch.Tensor:
    """`pictures` (any axes, the last is the width) read at `x + offset`, by Catmull-Rom cubics; edges are repeated."""
    whole = int(offset // 1)
    part = offset - whole
    weights = (
        (-part + 2 * part**2 - part**3) / 2,
        (2 - 5 * part**2 + 3 * part**3) / 2,
        (part + 4 * part**2 - 3 * part**3) / 2,
        (-(part**2) + part**3) / 2,
    )
    width = pictures.shape[-1]
    places = torch.arange(-1, width + 2, device=pictures.device) + whole
    padded = pictures.index_select(-1, places.clamp(0, width - 1))
    return sum(weight * padded[..., start : start + width] for start, weight in enumerate(weights) if weight)


def box(pictures: torch.Tensor, window: int) -> torch.Tensor:
    """Mean over windows of `window` x `window` pixels of the last two axes; edges are repeated."""
    for axis in (-1, -2):
        size = pictures.shape[axis]
        places = torch.arange(-(window // 2), size + window // 2, device=pictures.device).clamp(0, size - 1)
        padded = pictures.index_select(axis, places)
        pictures = sum(padded.narrow(axis, start, size) for start in range(window)) / window
    return pictures
