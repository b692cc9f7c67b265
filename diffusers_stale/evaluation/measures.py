"""Everything that is measured on movies, gathered: one `MovieMeasures` for a set of movies with their prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from diffusers_stale.axes import middle_index
from diffusers_stale.evaluation.alignment import attribute_accuracy, shuffled_accuracy
from diffusers_stale.evaluation.classifier import AttributeClassifier, middle_clips, predict_attributes
from diffusers_stale.evaluation.disparity import DisparityMeasure, measure_disparity, summarize_disparity
from diffusers_stale.evaluation.motion import MotionMeasure, measure_motion, summarize_motion
from diffusers_stale.evaluation.prompts import EvaluationPrompt


@dataclass
class MovieMeasures:
    """What is known of the movies seen so far, in their order; the pixels themselves are not kept.

    `pictures`: of each movie the middle view at the middle frame, `(3, height, width)`, uint8. `motion` stays empty
    for movies of one frame.
    """

    predictions: list[dict[str, str]] = field(default_factory=list)
    disparity: list[DisparityMeasure] = field(default_factory=list)
    motion: list[MotionMeasure] = field(default_factory=list)
    pictures: list[torch.Tensor] = field(default_factory=list)

    def add(self, classifier: AttributeClassifier, light_field: torch.Tensor) -> None:
        """Measures more movies: `(batch, 3, view_rows, view_cols, frames, height, width)` in [-1, 1]."""
        clips = middle_clips(light_field)
        stills = clips[:, :, middle_index(clips.shape[2])]
        self.pictures.extend(((stills.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
        self.predictions.extend(predict_attributes(classifier, light_field))
        self.disparity.extend(measure_disparity(light_field))
        self.motion.extend(measure_motion(light_field) or [])

    def summary(self, prompts: Sequence[EvaluationPrompt]) -> dict[str, Any]:
        """Alignment, disparity and motion over all movies, each of the prompt at its place."""
        accuracy = attribute_accuracy(self.predictions, prompts)
        return {
            "alignment": {name: share.as_dict() for name, share in accuracy.items()},
            "disparity": summarize_disparity(self.disparity),
            "motion": summarize_motion(self.motion, prompts) if self.motion else None,
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
        }


def unrelated_views(light_field: torch.Tensor) -> torch.Tensor:
    """Light fields whose middle views stand among the other views of the movie before: what has no parallax."""
    rows, cols = (middle_index(count) for count in light_field.shape[2:4])
    mixed = light_field.roll(1, dims=0).clone()
    mixed[:, :, rows, cols] = light_field[:, :, rows, cols]
    return mixed
