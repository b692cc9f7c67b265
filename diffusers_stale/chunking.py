"""Forward chunking: layers of the 5D UNet that treat parts of a light field alike, called on one part after another.

What a layer makes on its way (a feed-forward layer inside is sixteen times as large as what it is given) then exists
for a part only. Spatial layers are called on some images, time layers on some lines of pixels through time, view
layers on some frames. Results stay as they are, up to rounding.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from diffusers_stale.channels_last import in_layout_of


ROWS_AT_ONCE = {"cpu": 2048}
"""Pixels of images that layers get at once by default, by type of device: about what the caches of a core hold."""

FULL_WIDTH = 192
"""Channels below which layers get more rows, as many values as with so many channels: a call costs the same however
little it is given, and takes no more memory than where channels are many and pixels few. Measured with
`scripts/benchmarks/unet.py`: three times as many rows of 64 channels save 6 % of the time."""

ROWS_AT_ONCE_ELSEWHERE = 65536
"""As above, for accelerators, which need more work at a time."""


class Chunking(NamedTuple):
    """How much layers get at once: so many `images`, or else so many `rows` (pixels of images), or else everything."""

    images: int | None = None
    rows: int | None = None

    @classmethod
    def automatic(cls, device: torch.device) -> "Chunking":
        """What is used unless told otherwise."""
        return cls(rows=ROWS_AT_ONCE.get(device.type, ROWS_AT_ONCE_ELSEWHERE))

    def count(self, images: torch.Tensor) -> int | None:
        """How many of the `images` a layer gets at once; None for all."""
        if self.images is not None:
            return self.images
        channels, height, width = images.shape[1:]
        return None if self.rows is None else max(rows_of_width(self.rows, channels) // (height * width), 1)

    def lines(self, images: torch.Tensor, frames: int) -> int | None:
        """How many lines of pixels through so many `frames` a time layer gets at once; None for all."""
        count, pixels = self.count(images), images.shape[2] * images.shape[3]
        rows = None if count is None else count * pixels
        return None if rows is None or rows >= len(images) * pixels else max(rows // frames, 1)

    def frames(self, images: torch.Tensor, views: int) -> int | None:
        """How many frames of so many `views` a view layer gets at once; None for all."""
        count = self.count(images)
        return None if count is None else max(count // views, 1)


EVERYTHING = Chunking()


def rows_of_width(rows: int, channels: int) -> int:
    """How many rows of so many `channels` a layer gets where one of many channels gets `rows`."""
    return rows * max(FULL_WIDTH, channels) // channels


def parts(total: int, at_once: int | None) -> Iterator[slice]:
    """Slices that cover `total` in as few parts of at most `at_once` as can be, each about as long as the others."""
    count = 1 if at_once is None else -(-total // at_once)
    for index in range(count):
        yield slice(total * index // count, total * (index + 1) // count)


def parts_within(outer: int, inner: int, at_once: int | None) -> Iterator[tuple[slice, slice]]:
    """Slices of `outer`, and of the `outer * inner` things they hold, such that no slice has parts of several outers.

    Several whole ones, or all or a part of one.
    """
    if at_once is None or at_once >= inner:
        for some in parts(outer, None if at_once is None else at_once // inner):
            yield some, slice(some.start * inner, some.stop * inner)
        return
    for index in range(outer):
        for part in parts(inner, at_once):
            yield slice(index, index + 1), slice(index * inner + part.start, index * inner + part.stop)


def joined(results: Iterator[tuple[slice, torch.Tensor]], length: int) -> torch.Tensor:
    """Results of parts along the first axis, of `length` in all; without gradients they are written to one place."""
    first, result = next(results)
    if first == slice(0, length):
        return result
    if result.requires_grad:
        return torch.cat([result, *(later for _, later in results)])
    whole = in_layout_of(result, length)
    whole[first] = result
    del result
    for part, later in results:
        whole[part] = later
    return whole


def in_parts(layer: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, at_once: int | None) -> torch.Tensor:
    """`layer` over some of the `images` at a time."""
    return joined(((part, layer(images[part])) for part in parts(len(images), at_once)), len(images))
