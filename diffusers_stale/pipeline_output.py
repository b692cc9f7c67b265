"""What `StaleDiffusionPipeline` gives back, and what a movie is told of its own origin."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.utils import BaseOutput

from diffusers_stale.light_field import CameraGrid, LightField
from diffusers_stale.version import __version__


Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class StaleDiffusionPipelineOutput(BaseOutput):
    """Output of `StaleDiffusionPipeline`.

    `light_fields`: for `output_type="light_field"` a list of one `LightField` a movie; for `"pt"` a tensor
    `(batch, 3, view_rows, view_cols, frames, height, width)` in [0, 1]; for `"np"` the same as an array with channels
    last; for `"latent"` a tensor `(batch, channels, view_rows, view_cols, frames, latent height, latent width)`.
    """

    light_fields: list[LightField] | torch.Tensor | np.ndarray


def origins(
    movies: int,
    prompts: int,
    prompt: str | list[str] | None,
    negative_prompt: str | list[str] | None,
    generator: Generators,
    scheduler: SchedulerMixin,
    settings: dict[str, Any],
) -> list[dict[str, Any]]:
    """Provenance of each of `movies` movies of `prompts` prompts, in JSON's types.

    A seed is that of the movie's generator, which says all if the generator was fresh; None where it is unknown.
    """
    common = {
        "made_by": f"diffusers_stale {__version__}",
        "scheduler": type(scheduler).__name__,
        "scheduler_config_hash": hashlib.sha256(scheduler.to_json_string().encode()).hexdigest()[:16],
        **settings,
    }
    own = []
    for index in range(movies):
        of_prompt = index // (movies // prompts)
        texts = {"prompt": text_of(prompt, of_prompt), "negative_prompt": text_of(negative_prompt, of_prompt)}
        own.append({**texts, "seed": seed_of(generator, index), "batch_index": index, **common})
    return own


def light_fields(
    movies: torch.Tensor, frame_rate: float, cameras: CameraGrid, provenance: list[dict[str, Any]]
) -> list[LightField]:
    """A `LightField` of each movie in a batch of pixels in [-1, 1], with its own provenance."""
    return [
        LightField.from_float(movie, frame_rate, cameras, provenance=origin)
        for movie, origin in zip(movies, provenance, strict=True)
    ]


def checkpoint_name(*names: str | None) -> str:
    """The first name that is known: a Hub id, or the last part of a folder's path, whose rest is nobody's business."""
    name = next(filter(None, names), "unnamed")
    return Path(name).name if Path(name).is_dir() else str(name)


def text_of(texts: str | list[str] | None, index: int) -> str | None:
    """Text number `index`, where one text stands for all; None where embeddings were given in its place."""
    return texts if texts is None or isinstance(texts, str) else texts[index if len(texts) > 1 else 0]


def seed_of(generator: Generators, index: int) -> int | None:
    """Seed of the generator of movie number `index`; None where there is none."""
    own = generator[index] if isinstance(generator, (list, tuple)) else generator
    return None if own is None else own.initial_seed()
