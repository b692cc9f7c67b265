"""Frechet distances between generated and rendered movies, along four ways through the grid of views and frames.

Features are those of the attribute classifier, which sees pictures beside their changes: along time the changes are
motion, along views parallax. The ways are those of SV4D (Xie et al. 2024, arXiv 2407.17470, section 4): along time,
along views, diagonally, and all pictures in raster order.
"""

from collections.abc import Callable
from math import inf

import torch

from diffusers_stale.axes import check_light_field, middle_index
from diffusers_stale.evaluation.classifier import AttributeClassifier, resize_clips
from diffusers_stale.evaluation.intervals import statistic_interval


RESAMPLES = 60
LEAST_MOVIES = 4


def _along_time(light_field: torch.Tensor) -> torch.Tensor | None:
    """The frames of the middle view."""
    rows, cols, frames = light_field.shape[2:5]
    return light_field[:, :, middle_index(rows), middle_index(cols)] if frames > 1 else None


def _along_views(light_field: torch.Tensor) -> torch.Tensor | None:
    """The views of the middle frame, row by row every other row backwards, so that neighbours follow."""
    return _serpentine(light_field)[:, :, :, middle_index(light_field.shape[4])] if _has_views(light_field) else None


def _diagonal(light_field: torch.Tensor) -> torch.Tensor | None:
    """Views and frames advance together, as many pictures as the longer of the two has."""
    if not _has_views(light_field) or light_field.shape[4] == 1:
        return None
    views = _serpentine(light_field)
    count = max(views.shape[2:4])
    places = [torch.linspace(0, size - 1, count).round().long() for size in views.shape[2:4]]
    return views[:, :, places[0], places[1]]


def _raster(light_field: torch.Tensor) -> torch.Tensor | None:
    """All pictures: frame by frame, in each the views."""
    if not _has_views(light_field) or light_field.shape[4] == 1:
        return None
    return _serpentine(light_field).transpose(2, 3).flatten(2, 3)


def _has_views(light_field: torch.Tensor) -> bool:
    return light_field.shape[2] * light_field.shape[3] > 1


def _serpentine(light_field: torch.Tensor) -> torch.Tensor:
    """`(batch, channels, views, frames, height, width)`."""
    rows = [row if index % 2 == 0 else row.flip(2) for index, row in enumerate(light_field.unbind(dim=2))]
    return torch.cat(rows, dim=2)


def _single_picture(light_field: torch.Tensor) -> torch.Tensor | None:
    """The middle view of the middle frame."""
    rows, cols, frames = (middle_index(count) for count in light_field.shape[2:5])
    return light_field[:, :, rows, cols, frames : frames + 1]


SINGLE = "picture"
"""The order of one picture, which has no neighbours that it could be parted from."""

SCAN_ORDERS: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    SINGLE: _single_picture,
    "time": _along_time,
    "views": _along_views,
    "diagonal": _diagonal,
    "raster": _raster,
}
"""Clips `(batch, channels, pictures, height, width)` of a light field by the way they go; None where the grid has no
such way. `picture` is none of the four: the usual Frechet distance of stills, for comparison."""


@torch.no_grad()
def scan_features(classifier: AttributeClassifier, light_field: torch.Tensor) -> dict[str, torch.Tensor]:
    """Features `(batch, 128)` by scan order of `(batch, 3, view_rows, view_cols, frames, height, width)` in [-1, 1].

    Orders that the grid does not have are left out.
    """
    check_light_field(light_field)
    clips = {name: order(light_field) for name, order in SCAN_ORDERS.items()}
    return {name: classifier.features(resize_clips(clip.float())) for name, clip in clips.items() if clip is not None}


def frechet_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Squared Frechet distance between the Gaussians of two sets of features, each `(count, features)`.

    D. C. Dowson and B. V. Landau (1982), J. Multivariate Analysis 12: the squared distance of the means, and the trace
    of both covariances less twice the root of their product.

    Raises:
        ValueError: for fewer than two of either.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(
            f"At least two samples of each set must be given, got {len(one)} and {len(other)}; evaluate more prompts."
        )
    one, other = one.double(), other.double()
    first, second = torch.cov(one.T), torch.cov(other.T)
    root = _root(first)
    # The eigenvalues of first @ second are those of this symmetric matrix.
    shared = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    distance = (one.mean(dim=0) - other.mean(dim=0)).square().sum() + first.trace() + second.trace() - 2 * shared
    return max(float(distance), 0.0)


def _root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def frechet_figures(
    generated: dict[str, torch.Tensor],
    rendered: dict[str, torch.Tensor],
    others: dict[str, torch.Tensor],
    shuffled: dict[str, torch.Tensor],
) -> dict[str, dict[str, object]]:
    """By scan order, distances to `rendered`, each in units of the total variance that rendered features have.

    Args:
        generated: features by scan order, as `scan_features` gives them.
        rendered: of the same number of rendered movies.
        others: of as many rendered movies of other scenes. Their distance is not 0, since few samples differ by
            chance; movies of the same prompts as `rendered` may come nearer. Compare equal numbers only.
        shuffled: of movies whose pictures do not belong together.

    Returns:
        Figures `generated` (with its interval), `rendered` and `shuffled` (None where there are too few), and the
        number of `samples`; orders with fewer than `LEAST_MOVIES` are left out.
    """
    figures: dict[str, dict[str, object]] = {}
    for name, features in generated.items():
        truth = rendered[name]
        count = len(features)
        if count < LEAST_MOVIES:
            continue
        scale = float(truth.double().var(dim=0).sum())

        def distance(one: torch.Tensor, truth: torch.Tensor = truth, scale: float = scale) -> float:
            return frechet_distance(one, truth) / scale

        figures[name] = {
            "generated": statistic_interval(
                lambda chosen, features=features, distance=distance: distance(features[chosen]),
                count,
                RESAMPLES,
                biased=True,
                bounds=(0.0, inf),
            ),
            "rendered": distance(others[name]) if len(others.get(name, ())) >= LEAST_MOVIES else None,
            "shuffled": distance(shuffled[name])
            if name != SINGLE and len(shuffled.get(name, ())) >= LEAST_MOVIES
            else None,
            "samples": count,
        }
    return figures
