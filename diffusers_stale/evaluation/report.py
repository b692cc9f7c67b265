"""Runs a pipeline on held-out prompts, measures what it made, and puts rendered scenes and chance beside it.

The files that come of it are written by `report_files`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import torch
from tqdm import tqdm

from diffusers_stale.axes import check_count, check_light_field
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.evaluation.alignment import wrong_attributes
from diffusers_stale.evaluation.classifier import AttributeClassifier, classifier_notes, load_classifier
from diffusers_stale.evaluation.disparity import VIEW_AXES, summarize_disparity
from diffusers_stale.evaluation.measures import MovieMeasures, unrelated_views
from diffusers_stale.evaluation.prompts import PROMPT_SEED, EvaluationPrompt, held_out_prompts, stated_counts


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is generated. Movie `i` comes of the generator seed `seed + i`, whatever the batch."""

    prompts: int = 64
    prompt_seed: int = PROMPT_SEED
    seed: int = 0
    view_rows: int = 3
    view_cols: int = 3
    frames: int = 8
    steps: int = 20
    guidance: float = 3.0
    negative: str | None = None
    batch: int = 4

    def __post_init__(self) -> None:
        for name in ("prompts", "view_rows", "view_cols", "frames", "steps", "batch"):
            check_count(name, getattr(self, name))


@dataclass(frozen=True)
class Bar:
    """A figure that a checkpoint must reach: where it stands in the report, and how high it must be."""

    title: str
    path: tuple[str, ...]
    least: float


BARS = (
    Bar("time of day", ("generated", "alignment", "time_of_day", "value"), 0.95),
    Bar("barn and its colour", ("generated", "alignment", "barn", "value"), 0.95),
    Bar("animal colour", ("generated", "alignment", "color", "value"), 0.85),
    Bar("animal kind", ("generated", "alignment", "kind", "value"), 0.70),
    Bar("direction", ("generated", "alignment", "direction", "value"), 0.80),
    Bar("mean disparity, of rendered", ("ratios", "magnitude"), 0.50),
    Bar("disparity of the far part, of rendered", ("ratios", "far"), 0.50),
    Bar("disparity of the near part, of rendered", ("ratios", "near"), 0.50),
    Bar("pixels that match between views, of rendered", ("ratios", "coverage"), 0.50),
    Bar("change that is motion", ("generated", "motion", "prompts_with_motion", "concentration"), 0.50),
    Bar("travels as told", ("generated", "motion", "travels_as_told", "value"), 0.80),
)
"""The bars of the default checkpoint. Ratios of the far and near parts are positive where the sign is right. The
matching pixels are there because unrelated views match hardly anywhere, but where they do, by chance, it is at large
disparities. Of pure grain, 0.15 of the change counts as motion; of rendered scenes, all."""


@dataclass(frozen=True)
class Evaluation:
    """The figures, in plain JSON values, and the pictures that belong to them."""

    figures: dict[str, Any]
    prompts: tuple[EvaluationPrompt, ...]
    generated: MovieMeasures
    rendered: MovieMeasures


def evaluate(
    pipeline: Callable[..., Any],
    settings: EvaluationSettings,
    classifier: AttributeClassifier | None = None,
    *,
    progress: bool = False,
) -> Evaluation:
    """Generates a movie a prompt, renders the prompts' scenes, and measures both.

    Args:
        pipeline: called as `StaleDiffusionPipeline` is; its `output_type="pt"` gives `light_fields` of shape
            `(batch, 3, view_rows, view_cols, frames, height, width)` in [0, 1].
        settings: how many prompts, and how movies are generated.
        classifier: by default the one that ships.
        progress: shows a bar.

    Raises:
        ValueError: if the pipeline returns other shapes than it was asked for, or numbers that are not finite.
    """
    notes = classifier_notes() if classifier is None else None
    classifier = classifier or load_classifier()
    prompts = held_out_prompts(settings.prompts, settings.prompt_seed)
    generated, rendered, unrelated = MovieMeasures(), MovieMeasures(), MovieMeasures()
    for first in tqdm(range(0, len(prompts), settings.batch), "evaluating", disable=not progress):
        batch = prompts[first : first + settings.batch]
        movies = generate(pipeline, batch, settings, first)
        truth = render_prompts(batch, movies.shape)
        generated.add(classifier, movies)
        rendered.add(classifier, truth)
        if len(batch) > 1:
            unrelated.add(classifier, unrelated_views(truth))
    figures = {
        "settings": asdict(settings),
        "classifier": notes,
        "prompts_stating": stated_counts(prompts),
        "generated": generated.summary(prompts),
        "rendered": rendered.summary(prompts),
        "shuffled": generated.shuffled_summary(prompts) | {"disparity": summarize_disparity(unrelated.disparity)},
        "movies": _movies(prompts, generated),
    }
    figures["ratios"] = disparity_ratios(figures["generated"]["disparity"], figures["rendered"]["disparity"])
    figures["bars"] = check_bars(figures)
    return Evaluation(_plain(figures), prompts, generated, rendered)


def generate(
    pipeline: Callable[..., Any], prompts: Sequence[EvaluationPrompt], settings: EvaluationSettings, first: int
) -> torch.Tensor:
    """Movies in [-1, 1] for prompts of which the first has the index `first`."""
    options = {} if settings.negative is None else {"negative_prompt": [settings.negative] * len(prompts)}
    output = pipeline(
        prompt=[prompt.text for prompt in prompts],
        view_rows=settings.view_rows,
        view_cols=settings.view_cols,
        num_frames=settings.frames,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generator=[torch.Generator().manual_seed(settings.seed + first + place) for place in range(len(prompts))],
        output_type="pt",
        **options,
    )
    movies = check_light_field(output.light_fields, "light_fields").detach().float().cpu()
    grid = (len(prompts), 3, settings.view_rows, settings.view_cols, settings.frames)
    if movies.shape[:5] != grid:
        raise ValueError(
            f"The pipeline must return light fields of (batch, channels, view_rows, view_cols, frames) = {grid}, "
            f'got {tuple(movies.shape[:5])}; let its `output_type="pt"` keep the grid that it is called with.'
        )
    if not bool(movies.isfinite().all()):
        raise ValueError(
            f"The pipeline must return finite pixels, got NaN or infinity for a prompt among {first} to "
            f"{first + len(prompts) - 1}; check the checkpoint's weights and the dtype that it runs in."
        )
    return movies * 2 - 1


def render_prompts(prompts: Sequence[EvaluationPrompt], shape: Sequence[int]) -> torch.Tensor:
    """The scenes that the prompts were written about, in [-1, 1], at the grid and size of light fields of `shape`."""
    return torch.stack([render_scene(prompt.scene, *shape[2:]).pixels for prompt in prompts])


def disparity_ratios(generated: dict[str, Any], rendered: dict[str, Any]) -> dict[str, float]:
    """Generated over rendered, of the worse view axis; empty for a single view.

    A ratio of far or near parts above 0 says that the sign is right.
    """
    axes = [axis for axis in VIEW_AXES if axis in generated]
    names = ("magnitude", "far", "near", "coverage")
    ratios = {name: [generated[axis][name] / rendered[axis][name] for axis in axes] for name in names if axes}
    return {name: min(values) if not any(map(isnan, values)) else float("nan") for name, values in ratios.items()}


def check_bars(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bar with the figure reached; those that the grid or the prompts give no figure for are not met."""
    checked = []
    for bar in BARS:
        value: Any = figures
        for key in bar.path:
            value = (value or {}).get(key)
        reached = value is not None and not isnan(value)
        checked.append({"title": bar.title, "value": value, "least": bar.least, "met": reached and value >= bar.least})
    return checked


def _movies(prompts: Sequence[EvaluationPrompt], measures: MovieMeasures) -> list[dict[str, Any]]:
    """Each prompt with what its movie shows."""
    return [
        {"prompt": prompt.text, "stated": prompt.stated, "shown": shown, "wrong": wrong_attributes(shown, prompt)}
        for prompt, shown in zip(prompts, measures.predictions, strict=True)
    ]


def _plain(value: Any) -> Any:
    """The same with None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and isnan(value) else value
