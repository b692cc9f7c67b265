"""Gates between the stages of training: what a part must reach before more time is spent on the next one."""

from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import torch
from diffusers import AutoencoderKL

from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.evaluation.alignment import attribute_accuracy
from diffusers_stale.evaluation.classifier import AttributeClassifier, load_classifier, predict_attributes
from diffusers_stale.evaluation.prompts import held_out_prompts
from diffusers_stale.evaluation.reconstruction import measure_autoencoder
from diffusers_stale.evaluation.report import EvaluationSettings, generate


GATE_SEED = 4_200_041
"""Of the scenes that the autoencoder is gated on."""

LEAST_PSNR = 32.0
"""dB of reconstructed clips."""

DISPARITY_TOLERANCE = 0.05
"""By which the disparity of reconstructed layers may miss the truth."""

MOST_FLICKER = 1.0
"""Grey levels of 255, in static regions of reconstructed clips."""

LEAST_OBEDIENCE = 0.9
"""Share of right kinds and directions of animals, of the 2D stage."""


@dataclass(frozen=True)
class Gate:
    """A figure and the bounds that it must be within, both ends included."""

    title: str
    value: float
    least: float
    most: float

    @property
    def met(self) -> bool:
        return not isnan(self.value) and self.least <= self.value <= self.most

    def as_dict(self) -> dict[str, Any]:
        """For JSON, NaN as None."""
        return asdict(self) | {"value": None if isnan(self.value) else self.value, "met": self.met}

    def __str__(self) -> str:
        return f"{'met   ' if self.met else 'missed'} {self.title}: {self.value:.3f} ({self.least:g} to {self.most:g})"


def autoencoder_gates(vae: AutoencoderKL, size: int = 64, scenes: int = 48) -> list[Gate]:
    """Likeness, disparity by layer, and flicker of `scenes` clips of 3x3 views and 3 frames at `size` pixels."""
    figures = measure_autoencoder(vae, [sample_scene(GATE_SEED, index) for index in range(scenes)], size)
    disparities = [
        Gate(
            f"disparity of the {name}, of the true one",
            ratio["value"],
            1 - DISPARITY_TOLERANCE,
            1 + DISPARITY_TOLERANCE,
        )
        for name, ratio in figures["disparity"].items()
    ]
    return [
        Gate("PSNR of the autoencoder, dB", figures["psnr"]["value"], LEAST_PSNR, 60.0),
        *disparities,
        Gate("flicker of the autoencoder, grey levels", figures["flicker"]["value"], 0.0, MOST_FLICKER),
    ]


@torch.no_grad()
def image_gates(
    pipeline: Any,
    prompts: int = 128,
    steps: int = 12,
    guidance: float = 3.0,
    batch: int = 16,
    classifier: AttributeClassifier | None = None,
) -> list[Gate]:
    """Whether single pictures show the kind and the direction of animal that held-out prompts state."""
    classifier = classifier or load_classifier()
    settings = EvaluationSettings(
        prompts=prompts, view_rows=1, view_cols=1, frames=1, steps=steps, guidance=guidance, batch=batch
    )
    told = held_out_prompts(prompts)
    shown = []
    for first in range(0, prompts, batch):
        movies = generate(pipeline, told[first : first + batch], settings, first)
        shown.extend(predict_attributes(classifier, movies))
    accuracy = attribute_accuracy(shown, told)
    return [
        Gate(f"right {title} in single pictures", accuracy[name].value, LEAST_OBEDIENCE, 1.0)
        for name, title in (("kind", "animal"), ("direction", "direction"))
    ]
