"""Which views and frames of a training movie the network is shown clean, so that it learns to continue footage.

One network then does text to movie, image to movie, video to light field, and denser grids from sparse ones.
"""

from collections.abc import Callable

import numpy as np

from diffusers_stale.axes import middle_index


Mask = np.ndarray
"""True where a frame of a view is known; `(view_rows, view_cols, frames)`."""


def known_image(draw: np.random.Generator, size: tuple[int, int, int]) -> Mask:
    """The first frame of the middle view."""
    mask = known_video(draw, size)
    mask[:, :, 1:] = False
    return mask


def known_video(draw: np.random.Generator, size: tuple[int, int, int]) -> Mask:
    """Every frame of the middle view."""
    mask = np.zeros(size, dtype=bool)
    mask[middle_index(size[0]), middle_index(size[1])] = True
    return mask


def known_moment(draw: np.random.Generator, size: tuple[int, int, int]) -> Mask:
    """The first frame of every view."""
    mask = np.zeros(size, dtype=bool)
    mask[:, :, 0] = True
    return mask


def known_views(draw: np.random.Generator, size: tuple[int, int, int]) -> Mask:
    """Every frame of some views, each view as likely as not."""
    return np.broadcast_to(draw.random(size[:2])[..., None] < 0.5, size).copy()


KNOWN: dict[str, Callable[[np.random.Generator, tuple[int, int, int]], Mask]] = {
    "image": known_image,
    "video": known_video,
    "moment": known_moment,
    "views": known_views,
}
"""What can be known, by name; each gives a mask for a grid of (view_rows, view_cols, frames)."""


def draw_known_masks(draw: np.random.Generator, count: int, size: tuple[int, int, int], share: float) -> Mask:
    """Masks of `count` movies: about `share` of them know something, and none knows everything or is told nothing new.

    Returns:
        `(count, view_rows, view_cols, frames)`; all false where a grid has a single picture.
    """
    masks = np.zeros((count, *size), dtype=bool)
    kinds = list(KNOWN.values())
    for index in range(count):
        if draw.random() >= share:
            continue
        mask = kinds[int(draw.integers(len(kinds)))](draw, size)
        if not mask.all():
            masks[index] = mask
    return masks
