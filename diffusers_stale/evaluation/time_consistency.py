"""Do frames follow from each other? Flow-warped likeness, and flicker where nothing should change.

Flow is block matching in both directions at once: of all whole shifts the one whose window is most alike. It is
robust rather than fine: half a pixel is its error, and what is warped is read at whole pixels.
"""

from dataclasses import dataclass
from math import nan

import torch

from diffusers_stale.evaluation.classifier import middle_clips, resize_clips
from diffusers_stale.evaluation.disparity import MEASURE_SIZE
from diffusers_stale.evaluation.layers import LayerFinder, find_layers, grown, layer
from diffusers_stale.evaluation.matching import box
from diffusers_stale.evaluation.motion import GREY_LEVELS
from diffusers_stale.evaluation.view_consistency import psnr


REACH = 4
"""Pixels a frame at 64 px up to which flow is searched for; galloping animals make 2.8."""

WINDOW = 7
STILLNESS = 0.98
"""A shift must leave less than this share of the cost of standing still: of equal costs, nothing moves."""

STATIC_MARGIN = 4
"""Pixels around the animal, in any frame, that are not static."""

SECOND_DIFFERENCE = 6.0**0.5
"""Standard deviation of the second difference of unit white noise."""


@dataclass(frozen=True)
class TimeMeasure:
    """Of one movie, on its middle view.

    `warped`: PSNR in dB of each next frame, warped back by the flow, around the animal (where the two layers' finder
    sees it, in either frame, and 4 pixels around); `gain`: dB more than unwarped. `flicker`: standard deviation, in
    grey levels of 255, of what changes from frame to frame in static regions, as white noise of that deviation would
    (from second differences, so that slow drift does not count); NaN of fewer than three frames. `drift`: root mean
    square change of static regions from the first frame to the last, in grey levels.
    """

    warped: float
    gain: float
    flicker: float
    drift: float


@torch.no_grad()
def measure_time(light_field: torch.Tensor, finder: LayerFinder) -> list[TimeMeasure] | None:
    """Measures each movie of `(batch, 3, view_rows, view_cols, frames, height, width)` in [-1, 1]; None of stills."""
    clips = resize_clips(middle_clips(light_field).float(), MEASURE_SIZE).transpose(1, 2)
    if clips.shape[1] == 1:
        return None
    return [_measure(clip, find_layers(finder, clip) == layer("animal")) for clip in clips]


def _measure(frames: torch.Tensor, animal: torch.Tensor) -> TimeMeasure:
    """Of `(frames, 3, 64, 64)` and where the animal is, `(frames, 64, 64)`."""
    now, later = frames[:-1], frames[1:]
    moved = read_moved(later, flow(now, later))
    around = grown(animal[:-1] | animal[1:], STATIC_MARGIN)
    static = ~grown(animal.any(dim=0), STATIC_MARGIN)
    warped, unwarped = nan, nan
    if bool(around.any()):
        warped, unwarped = (
            psnr(float((picture - now).square().mean(dim=1)[around].mean())) for picture in (moved, later)
        )
    return TimeMeasure(
        warped=warped,
        gain=warped - unwarped,
        flicker=_flicker(frames, static),
        drift=_root_mean_square(frames[-1] - frames[0], static),
    )


def _flicker(frames: torch.Tensor, static: torch.Tensor) -> float:
    if len(frames) < 3:
        return nan
    bends = frames[2:] - 2 * frames[1:-1] + frames[:-2]
    return _root_mean_square(bends, static) / SECOND_DIFFERENCE


def _root_mean_square(change: torch.Tensor, static: torch.Tensor) -> float:
    """Over the static pixels of `(..., 3, 64, 64)`, in grey levels; NaN where there are none."""
    squared = change.square().mean(dim=-3)[..., static]
    return GREY_LEVELS * float(squared.mean()) ** 0.5 if squared.numel() else nan


def flow(now: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    """By how many whole pixels every pixel of `now` has moved right and down in `later`.

    Args:
        now: `(frames, channels, height, width)` in [-1, 1].
        later: the same shape.

    Returns:
        `(frames, 2, height, width)`, int64: right, down.
    """
    still = box((later - now).square().mean(dim=1), WINDOW)
    least, best = still * STILLNESS, torch.zeros_like(still, dtype=torch.int64)
    shifts = [(right, down) for down in range(-REACH, REACH + 1) for right in range(-REACH, REACH + 1)]
    for index, (right, down) in enumerate(shifts):
        if (right, down) == (0, 0):
            continue
        cost = box((_shifted(later, right, down) - now).square().mean(dim=1), WINDOW)
        better = cost < least
        least, best = torch.where(better, cost, least), torch.where(better, index + 1, best)
    table = torch.tensor([(0, 0), *shifts])
    return table[best].movedim(-1, 1)


def _shifted(pictures: torch.Tensor, right: int, down: int) -> torch.Tensor:
    """`pictures` read `right` and `down` of every pixel; edges are repeated."""
    height, width = pictures.shape[-2:]
    rows = (torch.arange(height) + down).clamp(0, height - 1)
    cols = (torch.arange(width) + right).clamp(0, width - 1)
    return pictures[..., rows[:, None], cols]


def read_moved(pictures: torch.Tensor, moves: torch.Tensor) -> torch.Tensor:
    """`pictures` `(frames, channels, height, width)` read where `moves` of `flow` say that each pixel has gone."""
    height, width = pictures.shape[-2:]
    cols = (torch.arange(width) + moves[:, 0]).clamp(0, width - 1)
    rows = (torch.arange(height)[:, None] + moves[:, 1]).clamp(0, height - 1)
    frames = torch.arange(len(pictures))[:, None, None]
    return pictures.movedim(1, -1)[frames, rows, cols].movedim(-1, 1)
