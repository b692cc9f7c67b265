"""Moving pictures by parts of a pixel, and reading them at any place. Knows no views and no disparity."""

import math

import torch
import torch.nn.functional as F


def cubic_taps(shift: float) -> list[tuple[int, float]]:
    """What a picture moved by `shift` pixels takes from where: offsets to a pixel's own place, and their weights.

    Cubic convolution: R. Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981, with a = -1/2.
    Whole shifts have one tap.
    """
    whole = math.floor(-shift)
    t = -shift - whole
    weights = (
        ((-0.5 * t + 1.0) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1.0,
        ((-1.5 * t + 2.0) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )
    return [(whole + offset, weight) for offset, weight in zip((-1, 0, 1, 2), weights, strict=True) if weight != 0.0]


def shifted(picture: torch.Tensor, down: float, right: float) -> torch.Tensor:
    """`picture` `(..., height, width)` moved by so many pixels, cubic in between; edges are repeated.

    Whole shifts are exact.
    """
    return _shifted_along(_shifted_along(picture, down, -2), right, -1)


def _shifted_along(picture: torch.Tensor, shift: float, axis: int) -> torch.Tensor:
    if shift == 0.0:
        return picture
    size, taps = picture.shape[axis], cubic_taps(shift)
    first, last = taps[0][0], taps[-1][0]
    places = torch.arange(first, size + last, device=picture.device).clamp(0, size - 1)
    extended = picture.index_select(axis, places)
    if len(taps) == 1:
        return extended
    moved = 0.0
    for offset, weight in taps:
        moved = moved + extended.narrow(axis, offset - first, size) * weight
    return moved


def pixel_places(height: int, width: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every pixel, each of shape `(height, width)`."""
    rows, cols = (torch.arange(size, dtype=like.dtype, device=like.device) for size in (height, width))
    return torch.meshgrid(rows, cols, indexing="ij")


def sampled(pictures: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor, cubic: bool = False) -> torch.Tensor:
    """Pictures `(count, channels, height, width)` at places `(count, ...)` in pixels; edges are repeated."""
    height, width = pictures.shape[-2:]
    places = torch.stack([(cols + 0.5) / width, (rows + 0.5) / height], dim=-1) * 2 - 1
    mode = "bicubic" if cubic else "bilinear"
    return F.grid_sample(pictures, places, mode, padding_mode="border", align_corners=False)


def box_mean(picture: torch.Tensor, side: int) -> torch.Tensor:
    """Mean of `(..., height, width)` over a window of odd `side` about each pixel; beyond edges nothing counts."""
    for axis, beyond in ((-2, (0, 0, side // 2, side // 2)), (-1, (side // 2, side // 2, 0, 0))):
        counts = _running_sum(F.pad(picture.new_ones(picture.shape[axis]), (side // 2,) * 2), side, 0)
        picture = _running_sum(F.pad(picture, beyond), side, axis) / (counts[:, None] if axis == -2 else counts)
    return picture


def _running_sum(picture: torch.Tensor, count: int, axis: int) -> torch.Tensor:
    """Sums of `count` neighbours along an axis, which gets `count - 1` shorter.

    By sums of 2, 4, 8 and so on: far fewer additions, and much faster than PyTorch's pooling.
    """
    size, found, total, power = picture.shape[axis] - count + 1, 0, None, 1
    while True:
        if count & power:
            part = picture.narrow(axis, found, size)
            total, found = part if total is None else total + part, found + power
        if 2 * power > count:
            return total
        length = picture.shape[axis] - power
        picture, power = picture.narrow(axis, 0, length) + picture.narrow(axis, power, length), 2 * power
