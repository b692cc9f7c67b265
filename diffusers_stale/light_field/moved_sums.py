"""Adding up many pictures, each moved by its own number of pixels: the inner loop of refocusing. Knows no lens.

Moves between whole pixels are cubic (`shifting.cubic_taps`). A picture that has been moved away from an edge adds
nothing beyond it; `inside` says how much each place gets.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from diffusers_stale.light_field.shifting import cubic_taps


MOST_BYTES = 128
"""How many bytes can be added as 16-bit integers."""

MARGIN = 2
"""How far beyond the edge of a picture cubic moves look, in pixels."""

Weights = Sequence[Sequence[float]]


def moved_sum(
    view: Callable[[int, int], torch.Tensor], weights: Weights, down: Sequence[float], right: Sequence[float]
) -> torch.Tensor:
    """The sum of pictures `view(row, col)` times `weights[row][col]`, moved by `down[row]` and `right[col]` pixels.

    All pictures of a row move by the same down: they are moved sideways and added first, and their sum moved down.
    Pictures without weight are not asked for.

    Returns:
        Shape `(channels, height, width)` of the pictures, float64 if they are, else float32; differentiable.
    """
    total, across, along = None, _Edged(), _Edged()
    for r, row in enumerate(weights):
        line = None
        for c, weight in enumerate(row):
            if weight:
                picture = view(r, c)
                line = _floating(picture) if line is None else line
                _add_moved(line, picture, right[c], weight, -1, across)
        if line is not None:
            total = torch.zeros_like(line) if total is None else total
            _add_moved(total, line, down[r], 1.0, -2, along)
    return total


def moved_sums_of_bytes(
    views: torch.Tensor, weights: Weights, down: Sequence[float], right: Sequence[float]
) -> Iterator[torch.Tensor]:
    """`moved_sum` of uint8 pictures `(channels, view_rows, view_cols, frames, height, width)` by whole pixels.

    One frame after the other, float32. Pictures of equal weight are added as 16-bit integers, which is several times
    as fast as floating point; what goes where is worked out once for all frames.
    """
    channels, *_, height, width = views.shape
    wide, added = (torch.empty(channels, height, width, dtype=torch.int16, device=views.device) for _ in range(2))
    lines, columns = ([_overlap(size, shift) for shift in shifts] for size, shifts in ((height, down), (width, right)))
    moves: dict[float, list[tuple[int, int, torch.Tensor, torch.Tensor]]] = {}
    for r, row in enumerate(weights):
        for c, weight in enumerate(row):
            if weight and abs(down[r]) < height and abs(right[c]) < width:
                (to_row, from_row, rows), (to_col, from_col, cols) = lines[r], columns[c]
                source = wide.narrow(1, from_row, rows).narrow(2, from_col, cols)
                target = added.narrow(1, to_row, rows).narrow(2, to_col, cols)
                moves.setdefault(weight, []).append((r, c, source, target))
    for moment in views.unbind(3):
        total = torch.zeros(wide.shape, device=views.device)
        planes = [row.unbind(1) for row in moment.unbind(1)]
        for weight, those in moves.items():
            for first in range(0, len(those), MOST_BYTES):
                added.zero_()
                for r, c, source, target in those[first : first + MOST_BYTES]:
                    wide.copy_(planes[r][c])
                    target.add_(source)
                total.add_(added, alpha=weight)
        yield total


def inside(size: int, shift: float) -> torch.Tensor:
    """1 where a picture that is moved by `shift` has pixels, 0 from a whole pixel beyond its edge; shape `(size,)`."""
    places = torch.zeros(size)
    places[max(0, math.ceil(shift)) : min(size, math.floor(shift) + size)] = 1.0
    place, part = _beyond(size, shift)
    if 0 <= place < size:
        places[place] = part or places[place]
    return places


class _Edged:
    """Pictures with their edges repeated, one after the other in the same memory unless gradients go through them."""

    def __init__(self) -> None:
        self._kept: torch.Tensor | None = None

    def of(self, picture: torch.Tensor, axis: int, dtype: torch.dtype) -> torch.Tensor:
        size, shape = picture.shape[axis], list(picture.shape)
        shape[axis] += 2 * MARGIN
        if self._kept is None or picture.requires_grad:
            self._kept = torch.empty(shape, dtype=dtype, device=picture.device)
        self._kept.narrow(axis, MARGIN, size).copy_(picture)
        for start, edge in ((0, 0), (MARGIN + size, size - 1)):
            self._kept.narrow(axis, start, MARGIN).copy_(picture.narrow(axis, edge, 1))
        return self._kept


def _add_moved(
    total: torch.Tensor, picture: torch.Tensor, shift: float, share: float, axis: int, edged: _Edged
) -> None:
    """Adds `share` of a picture that is moved along `axis` to `total`, in place."""
    taps, size = cubic_taps(shift), picture.shape[axis]
    start, stop = max(0, math.ceil(shift)), min(size, math.floor(shift) + size)
    if len(taps) == 1:  # whole pixels: one pass, without a copy in between
        ((offset, _),) = taps
        total.narrow(axis, start, stop - start).add_(picture.narrow(axis, start + offset, stop - start), alpha=share)
        return
    repeated = edged.of(picture, axis, total.dtype)
    target = total.narrow(axis, start, stop - start)
    for offset, weight in taps:
        target.add_(repeated.narrow(axis, start + MARGIN + offset, stop - start), alpha=weight * share)
    place, part = _beyond(size, shift)
    if 0 <= place < size:
        for offset, weight in taps:
            source = repeated.select(axis, place + MARGIN + offset)
            total.select(axis, place).add_(source, alpha=weight * share * part)


def _beyond(size: int, shift: float) -> tuple[int, float]:
    """The place that is less than a pixel beyond the edge of a moved picture, and how much it counts."""
    return (math.ceil(shift) - 1, -shift % 1.0) if shift > 0 else (math.floor(shift) + size, shift % 1.0)


def _overlap(size: int, shift: float) -> tuple[int, int, int]:
    """Where a picture that is moved by whole pixels begins, which of its own pixels that is, and how many follow."""
    whole = int(shift)
    return max(0, whole), max(0, -whole), size - abs(whole)


def _floating(picture: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if picture.dtype == torch.float64 else torch.float32
    return torch.zeros(picture.shape, dtype=dtype, device=picture.device)
