"""Are the movies different from each other and from what was trained on? Diversity, novelty, imagination.

Diversity is the Vendi score, an effective number of different movies; novelty the share of movies that are no nearer
to any training scene than held-out scenes are; the imagination score multiplies both with alignment, since noise is
diverse and new, a copy is aligned, and only the three together are imagination.
"""

from dataclasses import dataclass
from math import nan

import torch
from torch.nn import functional

from diffusers_stale.axes import check_count, check_light_field, middle_index
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.evaluation.alignment import Share
from diffusers_stale.evaluation.intervals import mean_interval, statistic_interval


THUMBNAIL = 16
"""Pixels a side of the pictures whose distances are novelty: they show what is where, not how sharp it is."""

HELD_OUT_SEED = 3_800_017
PERCENTILE = 0.01
RESAMPLES = 200
RENDER_SIZE = 64


def vendi_score(features: torch.Tensor, center: torch.Tensor | None = None) -> float:
    """Effective number of different things among `features` `(count, features)`: between 1 (all alike) and count.

    Exponential of the entropy of the eigenvalues of the similarity matrix over its trace (D. Friedman and A. B. Dieng,
    2022, arXiv 2210.02410, definition 3.1); similarities are cosines of what remains after `center` is taken away.
    """
    vectors = functional.normalize((features if center is None else features - center).double(), dim=1)
    values = torch.linalg.eigvalsh(vectors @ vectors.T / len(vectors)).clamp_min(0)
    values = values / values.sum().clamp_min(1e-12)
    return float(torch.exp(-torch.special.xlogy(values, values).sum()))


def vendi_figure(features: torch.Tensor, center: torch.Tensor) -> dict[str, float]:
    """The score with its interval (resampling with replacement lowers it; see `statistic_interval`)."""
    if len(features) < 2:
        return {"value": nan, "low": nan, "high": nan, "total": len(features)}
    return statistic_interval(
        lambda chosen: vendi_score(features[chosen], center),
        len(features),
        RESAMPLES,
        biased=True,
        bounds=(1.0, float(len(features))),
    )


def thumbnails(light_field: torch.Tensor) -> torch.Tensor:
    """`(batch, 3 * 16 * 16)`: the middle view of the middle frame, made small, of a light field in [-1, 1]."""
    rows, cols, frames = (middle_index(count) for count in check_light_field(light_field).shape[2:5])
    return _small(light_field[:, :, rows, cols, frames])


def _small(pictures: torch.Tensor) -> torch.Tensor:
    return functional.adaptive_avg_pool2d(pictures.float(), THUMBNAIL).flatten(1)


def scene_thumbnails(seed: int, count: int) -> torch.Tensor:
    """Of the scenes 0 to `count` of `seed`, at time 0; `(count, 3 * 16 * 16)`."""
    pictures = [
        render_scene(sample_scene(seed, index), 1, 1, 1, RENDER_SIZE, RENDER_SIZE, start_seconds=0.0).pixels
        for index in range(count)
    ]
    return _small(torch.stack(pictures)[:, :, 0, 0, 0])


@dataclass(frozen=True)
class TrainingScenes:
    """Thumbnails of training scenes, `(scenes, values)`, and the sorted distances of held-out scenes to them."""

    thumbnails: torch.Tensor
    held_out_distances: torch.Tensor

    @classmethod
    def render(cls, seeds: tuple[int, ...], scenes: int, held_out: int) -> "TrainingScenes":
        """`scenes` scenes of each training seed, beside `held_out` ones that no training drew.

        Raises:
            ValueError: for no seeds, or counts below 1.
        """
        if not seeds:
            raise ValueError("At least one training seed must be given, got none; the default checkpoint has 0.")
        check_count("scenes", scenes)
        check_count("held_out", held_out)
        known = torch.cat([scene_thumbnails(seed, scenes) for seed in seeds])
        distances = nearest_distances(scene_thumbnails(HELD_OUT_SEED, held_out), known)
        return cls(known, distances.sort().values)

    @property
    def threshold(self) -> float:
        """The 1st percentile of the distances of held-out scenes."""
        return float(torch.quantile(self.held_out_distances, PERCENTILE))

    def figures(self, pictures: torch.Tensor) -> dict[str, object]:
        """Of thumbnails `(count, values)`: distances (root mean square a pixel, in grey levels of 255) and the share
        beyond the threshold; `percentiles` are the mean share of held-out scenes that are nearer, 0.5 for those."""
        distances = nearest_distances(pictures, self.thumbnails)
        share = Share(int((distances > self.threshold).sum()), len(distances))
        ranks = torch.searchsorted(self.held_out_distances, distances) / len(self.held_out_distances)
        return {
            "distance": mean_interval(distances.tolist()),
            "percentile": mean_interval(ranks.tolist()),
            "novel": share.as_dict(),
        }


def nearest_distances(pictures: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Root mean square difference to the nearest of `known`, in grey levels of 255; `(count,)`."""
    return torch.cdist(pictures, known).min(dim=1).values / pictures.shape[1] ** 0.5 * 127.5


def imagination(alignment: float, diversity: float, novelty: float) -> float:
    """The product of alignment (mean accuracy of the attributes), diversity (Vendi score over that of as many rendered
    scenes, at most 1) and novelty (share of novel movies); in [0, 1]."""
    return alignment * min(diversity, 1.0) * novelty
