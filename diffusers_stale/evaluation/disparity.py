"""Parallax of a light field, measured on its pixels: middle view against its neighbours, along columns and rows.

Signs are those of `axes`: positive is nearer. All disparities are in pixels per view step at 64 px, so that figures of
different sizes compare. Far is the upper part of the picture (sky, hills, roof), near the lower (ground, feet, fence).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import torch

from diffusers_stale.axes import check_light_field, middle_index
from diffusers_stale.data.scenes import UNITS
from diffusers_stale.evaluation.alignment import Share
from diffusers_stale.evaluation.classifier import resize_clips
from diffusers_stale.evaluation.matching import Match, match


MEASURE_SIZE = int(UNITS)
FAR_PART = 0.42
"""Share of the height, from above, that is far: it ends above the horizon of every scene."""

NEAR_PART = 0.75
"""Share of the height below which it is near."""

SAMPLED_FRAMES = 3
AGREEMENT = 0.5
"""Pixels by which disparities along rows and columns may differ and still agree."""

VIEW_AXES = ("view_cols", "view_rows")


@dataclass(frozen=True)
class AxisDisparity:
    """Means over the pixels where matching can be trusted; NaN where there are none.

    `magnitude`: of |d|; `signed`: of d; `far`, `near`: of d in those parts; `coverage`: the share of trusted pixels.
    """

    magnitude: float
    signed: float
    far: float
    near: float
    coverage: float


@dataclass(frozen=True)
class DisparityMeasure:
    """Of one movie, by view axis (axes with a single view are left out).

    `agreement`: of the pixels that can be trusted along both axes, the share whose disparities agree within
    `AGREEMENT`; NaN where there are none.
    """

    by_axis: dict[str, AxisDisparity]
    agreement: float


@torch.no_grad()
def measure_disparity(light_field: torch.Tensor) -> list[DisparityMeasure]:
    """Measures each movie of `(batch, 3, view_rows, view_cols, frames, height, width)` in [-1, 1]."""
    matches = {axis: matched for axis in VIEW_AXES if (matched := match_views(light_field, axis)) is not None}
    return [
        _summary({axis: _of_movie(matched, movie) for axis, matched in matches.items()})
        for movie in range(len(light_field))
    ]


def match_views(light_field: torch.Tensor, axis: str) -> Match | None:
    """Disparity of the middle view against its neighbours along `axis`, "view_cols" or "view_rows".

    Returns:
        A `Match` of shape `(batch, frames sampled, 64, 64)`; None if the axis has a single view.
    """
    rows, cols = check_light_field(light_field).shape[2:4]
    line = light_field[:, :, middle_index(rows)] if axis == "view_cols" else light_field[:, :, :, middle_index(cols)]
    count = line.shape[2]
    if count == 1:
        return None
    batch, frames = len(line), sampled_frames(line.shape[3])
    middle = middle_index(count)

    def picture(view: int) -> torch.Tensor:
        clips = resize_clips(line[:, :, view, frames].float(), MEASURE_SIZE).transpose(1, 2).flatten(0, 1)
        return clips if axis == "view_cols" else clips.transpose(-2, -1)

    neighbours = [(float(view - middle), picture(view)) for view in (middle - 1, middle + 1) if 0 <= view < count]
    found = match(picture(middle), neighbours)
    parts = (found.displacement, found.trusted, found.textured)
    if axis == "view_rows":
        parts = tuple(part.transpose(-2, -1) for part in parts)
    return Match(*(part.unflatten(0, (batch, len(frames))) for part in parts))


def sampled_frames(count: int) -> list[int]:
    """Up to `SAMPLED_FRAMES` frame indices, evenly spread."""
    if count <= SAMPLED_FRAMES:
        return list(range(count))
    return [round((count - 1) * part / (SAMPLED_FRAMES - 1)) for part in range(SAMPLED_FRAMES)]


def _of_movie(matched: Match, movie: int) -> Match:
    return Match(matched.displacement[movie], matched.trusted[movie], matched.textured[movie])


def _summary(matches: dict[str, Match]) -> DisparityMeasure:
    by_axis = {axis: _axis_summary(matched) for axis, matched in matches.items()}
    if len(matches) < len(VIEW_AXES):
        return DisparityMeasure(by_axis, nan)
    along_cols, along_rows = (matches[axis] for axis in VIEW_AXES)
    gap = (along_cols.displacement - along_rows.displacement).abs()
    return DisparityMeasure(by_axis, _mean((gap < AGREEMENT).float(), along_cols.trusted & along_rows.trusted))


def _axis_summary(matched: Match) -> AxisDisparity:
    values, trusted = matched.displacement, matched.trusted
    far, near = round(FAR_PART * MEASURE_SIZE), round(NEAR_PART * MEASURE_SIZE)
    return AxisDisparity(
        magnitude=_mean(values.abs(), trusted),
        signed=_mean(values, trusted),
        far=_mean(values[:, :far], trusted[:, :far]),
        near=_mean(values[:, near:], trusted[:, near:]),
        coverage=float(trusted.float().mean()),
    )


def _mean(values: torch.Tensor, chosen: torch.Tensor) -> float:
    return float(values[chosen].mean()) if bool(chosen.any()) else nan


def summarize_disparity(measures: Sequence[DisparityMeasure]) -> dict[str, object]:
    """Means over movies (those with a NaN are left out of that mean), and the share of movies with the right signs.

    Signs are right where the near part is nearer than the zero plane and the far part farther, along every axis that
    the grid has.
    """
    summary: dict[str, object] = {}
    for axis in VIEW_AXES:
        found = [measure.by_axis[axis] for measure in measures if axis in measure.by_axis]
        if found:
            names = AxisDisparity.__dataclass_fields__
            summary[axis] = {name: nan_mean([getattr(part, name) for part in found]) for name in names}
    summary["agreement"] = nan_mean([measure.agreement for measure in measures])
    summary["right_signs"] = Share(sum(_signs_are_right(measure) for measure in measures), len(measures)).as_dict()
    return summary


def _signs_are_right(measure: DisparityMeasure) -> bool:
    parts = measure.by_axis.values()
    return bool(parts) and all(part.near > 0 > part.far for part in parts)


def nan_mean(values: Sequence[float]) -> float:
    """Mean of those that are not NaN; NaN of none."""
    return float(torch.tensor(list(values), dtype=torch.float64).nanmean())
