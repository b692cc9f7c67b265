"""Moments of movies that stand closer together, or further apart, than frames did in training.

Time layers know frames by sinusoids of their positions, which are defined between whole frames as well: with a spacing
of 0.5 a movie of 8 frames spans the time of 4, with 0 all its frames show one moment.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import torch
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from torch import nn


LONGEST_PERIOD = 10_000.0
"""Base of the sinusoids, as in "Attention Is All You Need" (arXiv 1706.03762, section 3.5) and in AnimateDiff."""


class MomentEmbedding(SinusoidalPositionalEmbedding):
    """diffusers' embedding of positions in time, for frames `spacing` apart around the middle of the movie."""

    spacing = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, shape `(lines, frames, channels)`, with the embedding of its moments added."""
        if self.spacing == 1:
            return super().forward(x)
        frames, channels = x.shape[1:]
        middle = (frames - 1) / 2
        moments = middle + self.spacing * (torch.arange(frames, device=x.device, dtype=torch.float32) - middle)
        exponents = torch.arange(0, channels, 2, device=x.device, dtype=torch.float32) / channels
        angles = moments[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * exponents)
        return x + torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(x.dtype)


def know_moments(module: nn.Module) -> None:
    """Lets time layers in `module` be told a spacing by `frames_apart`; parameters, buffers and their names stay."""
    for layer in module.modules():
        if type(layer) is SinusoidalPositionalEmbedding:
            layer.__class__ = MomentEmbedding


@contextmanager
def frames_apart(module: nn.Module, spacing: float) -> Iterator[None]:
    """Has frames stand `spacing` apart for the time layers in `module`."""
    layers = [layer for layer in module.modules() if isinstance(layer, MomentEmbedding)]
    try:
        for layer in layers:
            layer.spacing = spacing
        yield
    finally:
        for layer in layers:
            layer.spacing = 1.0


def spacings_of_movies(frame_spacing: float | torch.Tensor, batch: int) -> tuple[float, ...] | None:
    """The spacing of frames of each movie; None where that is 1 for all.

    Raises `ValueError` for anything but a number or one for each movie, finite and not negative.
    """
    if isinstance(frame_spacing, (int, float)) and frame_spacing == 1:
        return None
    spacing = torch.as_tensor(frame_spacing, dtype=torch.float32)
    if spacing.shape not in ((), (1,), (batch,)):
        raise ValueError(
            f"`frame_spacing` must be a number or have shape (batch={batch},), got shape {tuple(spacing.shape)}; give "
            "one spacing for each movie."
        )
    values = tuple(spacing.expand(batch).tolist())
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(
            f"`frame_spacing` must be finite and at least 0, got {min(values):g}; 1 is the spacing of training, 0 "
            "stands still."
        )
    return None if all(value == 1 for value in values) else values


def runs(spacings: tuple[float, ...], images: torch.Tensor) -> Iterator[tuple[float, torch.Tensor]]:
    """Folded `images` of neighbouring movies that have their spacing in common, with that spacing."""
    each = len(images) // len(spacings)
    first = 0
    for spacing, movies in groupby(spacings):
        count = each * len(list(movies))
        yield spacing, images[first : first + count]
        first += count
