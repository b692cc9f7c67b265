"""Everything that is measured on movies, gathered: one `MovieMeasures` for a set of movies with their prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import log
from typing import Any

import torch

from diffusers_stale.axes import check_light_field, middle_index
from diffusers_stale.evaluation.alignment import attribute_accuracy, shuffled_accuracy
from diffusers_stale.evaluation.classifier import (
    AttributeClassifier,
    attribute_probabilities,
    load_classifier,
    middle_clips,
    most_probable,
)
from diffusers_stale.evaluation.disparity import (
    VIEW_AXES,
    AxisDisparity,
    DisparityMeasure,
    measure_disparity,
    summarize_disparity,
)
from diffusers_stale.evaluation.frechet import scan_features
from diffusers_stale.evaluation.intervals import mean_interval
from diffusers_stale.evaluation.layers import LAYERS, LayerFinder, load_layer_finder
from diffusers_stale.evaluation.motion import (
    MOVING_ACTIONS,
    STILL_ACTIONS,
    MotionMeasure,
    measure_motion,
    summarize_motion,
)
from diffusers_stale.evaluation.prompts import EvaluationPrompt
from diffusers_stale.evaluation.time_consistency import TimeMeasure, measure_time
from diffusers_stale.evaluation.variety import thumbnails
from diffusers_stale.evaluation.view_consistency import ViewMeasure, measure_views


VIEW_FIGURES = ("gain", "warped", "gain_edges", "warped_edges", "bend", "cycle")
LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True)
class Instruments:
    """The networks that movies are measured with, in evaluation mode."""

    classifier: AttributeClassifier
    finder: LayerFinder

    @classmethod
    def shipped(cls) -> "Instruments":
        return cls(load_classifier(), load_layer_finder())


@dataclass
class MovieMeasures:
    """What is known of the movies seen so far, in their order; the pixels themselves are not kept.

    `pictures`: of each movie the middle view at the middle frame, `(3, height, width)`, uint8; `strips`: what
    `epipolar_strips` makes of it. `views` stays empty for movies of one view, `motion` and `times` for movies of one
    frame.
    """

    probabilities: list[dict[str, dict[str, float]]] = field(default_factory=list)
    predictions: list[dict[str, str]] = field(default_factory=list)
    disparity: list[DisparityMeasure] = field(default_factory=list)
    motion: list[MotionMeasure] = field(default_factory=list)
    views: list[ViewMeasure] = field(default_factory=list)
    times: list[TimeMeasure] = field(default_factory=list)
    features: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    thumbnails: list[torch.Tensor] = field(default_factory=list)
    pictures: list[torch.Tensor] = field(default_factory=list)
    strips: list[torch.Tensor] = field(default_factory=list)

    def add(self, instruments: Instruments, light_field: torch.Tensor) -> None:
        """Measures more movies: `(batch, 3, view_rows, view_cols, frames, height, width)` in [-1, 1]."""
        clips = middle_clips(light_field)
        self.pictures.extend(_bytes(clips[:, :, middle_index(clips.shape[2])]))
        self.strips.extend(_bytes(epipolar_strips(light_field)))
        probabilities = attribute_probabilities(instruments.classifier, light_field)
        self.probabilities.extend(probabilities)
        self.predictions.extend(most_probable(probabilities))
        self.disparity.extend(measure_disparity(light_field))
        self.motion.extend(measure_motion(light_field) or [])
        self.views.extend(measure_views(light_field, instruments.finder) or [])
        self.times.extend(measure_time(light_field, instruments.finder) or [])
        self.thumbnails.append(thumbnails(light_field))
        self.add_features(instruments, light_field)

    def add_features(self, instruments: Instruments, light_field: torch.Tensor) -> None:
        """Features only, of more movies."""
        for name, values in scan_features(instruments.classifier, light_field).items():
            self.features.setdefault(name, []).append(values)

    def feature_sets(self) -> dict[str, torch.Tensor]:
        """Features `(movies, 128)` by scan order."""
        return {name: torch.cat(parts) for name, parts in self.features.items()}

    def all_thumbnails(self) -> torch.Tensor:
        """`(movies, values)`."""
        return torch.cat(self.thumbnails)

    def summary(self, prompts: Sequence[EvaluationPrompt]) -> dict[str, Any]:
        """Everything over all movies, each of the prompt at its place."""
        accuracy = attribute_accuracy(self.predictions, prompts)
        return {
            "alignment": {name: share.as_dict() for name, share in accuracy.items()},
            "motion": summarize_motion(self.motion, prompts) if self.motion else None,
            "movement": self.movement_figures(prompts) if self.motion else None,
        } | self.pixel_summary()

    def pixel_summary(self) -> dict[str, Any]:
        """What needs no prompts: parallax, consistency of views and of frames."""
        return {
            "disparity": summarize_disparity(self.disparity),
            "parallax": self.parallax_figures(),
            "views": self.view_figures() if self.views else None,
            "time": {
                item.name: mean_interval([getattr(part, item.name) for part in self.times])
                for item in fields(TimeMeasure)
            }
            if self.times
            else None,
        }

    def shuffled_summary(self, prompts: Sequence[EvaluationPrompt]) -> dict[str, Any]:
        """Alignment and direction of travel against other prompts than the movies' own: chance."""
        half = len(prompts) // 2
        others = [*prompts[half:], *prompts[:half]]
        return {
            "alignment": {
                name: {"value": value} for name, value in shuffled_accuracy(self.predictions, prompts).items()
            },
            "motion": summarize_motion(self.motion, others) if self.motion else None,
            "movement": self.movement_figures(others) if self.motion else None,
        }

    def parallax_figures(self) -> dict[str, dict[str, dict[str, float]]]:
        """Means of `AxisDisparity` with intervals, by view axis, and the agreement of both axes."""
        figures: dict[str, dict[str, dict[str, float]]] = {}
        for axis in VIEW_AXES:
            found = [measure.by_axis[axis] for measure in self.disparity if axis in measure.by_axis]
            if found:
                figures[axis] = {
                    item.name: mean_interval([getattr(part, item.name) for part in found])
                    for item in fields(AxisDisparity)
                }
        if len(figures) == len(VIEW_AXES):
            figures["both"] = {"agreement": mean_interval([measure.agreement for measure in self.disparity])}
        return figures

    def view_figures(self) -> dict[str, Any]:
        """Means of `ViewMeasure` with intervals."""
        figures: dict[str, Any] = {
            name: mean_interval([getattr(part, name) for part in self.views]) for name in VIEW_FIGURES
        }
        return figures | {"layers": {name: mean_interval(self.layer_disparities(name)) for name in LAYERS}}

    def layer_disparities(self, name: str) -> list[float]:
        """Of each movie; NaN where it does not show the layer."""
        return [part.layers[name] for part in self.views]

    def movement_figures(self, prompts: Sequence[EvaluationPrompt]) -> dict[str, dict[str, dict[str, float]]]:
        """Means of `MotionMeasure` and of the speed (pixels a frame), with intervals, by what the prompts state."""
        groups = {"moving": MOVING_ACTIONS, "still": STILL_ACTIONS}
        figures = {}
        for group, actions in groups.items():
            found = [
                part
                for part, prompt in zip(self.motion, prompts, strict=True)
                if prompt.stated.get("action") in actions
            ]
            names = ("moving", "quiet", "concentration")
            figures[group] = {name: mean_interval([getattr(part, name) for part in found]) for name in names}
            figures[group]["speed"] = mean_interval([abs(part.velocity) for part in found])
        return figures

    def rank(self, prompts: Sequence[EvaluationPrompt]) -> list[int]:
        """Movies from best to worst: by the mean logarithm of the probability of what their prompts state."""

        def score(movie: int) -> float:
            stated = prompts[movie].stated.items()
            shares = [self.probabilities[movie][name][value] for name, value in stated]
            return sum(log(max(share, LEAST_PROBABILITY)) for share in shares) / max(len(shares), 1)

        return sorted(range(len(prompts)), key=score, reverse=True)


def unrelated_pictures(light_field: torch.Tensor) -> torch.Tensor:
    """Light fields in which every picture is of another movie of the batch than its neighbours in the grid: what has
    neither parallax nor motion. The middle ones stay where they are. Needs a batch of at least 2."""
    counts = check_light_field(light_field).shape[2:5]
    mixed = torch.empty_like(light_field)
    for row in range(counts[0]):
        for col in range(counts[1]):
            for frame in range(counts[2]):
                place = sum(
                    index - middle_index(count) for index, count in zip((row, col, frame), counts, strict=True)
                )
                mixed[:, :, row, col, frame] = light_field.roll(place, dims=0)[:, :, row, col, frame]
    return mixed


def epipolar_strips(light_field: torch.Tensor) -> torch.Tensor:
    """One row of pixels as the views of the middle row see it, at three heights: `(batch, 3, strips, width)`.

    Lines in it are points; their slope is the parallax. Above the far part, in the middle, and near the ground's end.
    """
    rows, _, frames = (middle_index(count) for count in light_field.shape[2:5])
    line = light_field[:, :, rows, :, frames]
    height = line.shape[-2]
    heights = [round(share * (height - 1)) for share in STRIP_HEIGHTS]
    return torch.cat([line[:, :, :, place] for place in heights], dim=2)


STRIP_HEIGHTS = (0.15, 0.55, 0.9)
"""Shares of the height at which epipolar strips are cut."""


def _bytes(pictures: torch.Tensor) -> torch.Tensor:
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
