"""Runs a pipeline on held-out prompts, measures what it made, and puts rendered scenes and chance beside it.

The files that come of it are written by `report_files`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from math import isnan, nan
from typing import Any

import torch
from tqdm import tqdm

from diffusers_stale.axes import check_count, check_light_field
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import ATTRIBUTE_VALUES
from diffusers_stale.denoising import NEGATIVE_CONDITIONS
from diffusers_stale.evaluation.alignment import attribute_accuracy, wrong_attributes
from diffusers_stale.evaluation.bars import allowed_flicker, check_bars, disparity_ratios, view_ratios
from diffusers_stale.evaluation.classifier import AttributeClassifier, classifier_notes, load_classifier
from diffusers_stale.evaluation.clip_score import ClipScore
from diffusers_stale.evaluation.frechet import frechet_figures
from diffusers_stale.evaluation.intervals import mean_interval, ratio_interval, statistic_interval
from diffusers_stale.evaluation.layers import load_layer_finder
from diffusers_stale.evaluation.measures import Instruments, MovieMeasures, unrelated_pictures
from diffusers_stale.evaluation.noise_errors import can_measure, measure_noise_errors
from diffusers_stale.evaluation.prompts import PROMPT_SEED, EvaluationPrompt, held_out_prompts, stated_counts
from diffusers_stale.evaluation.reconstruction import reconstruct
from diffusers_stale.evaluation.rows import measure_rows
from diffusers_stale.evaluation.unusual_captions import GROUPS, group_of, unusual_prompts
from diffusers_stale.evaluation.variety import TrainingScenes, imagination, vendi_figure, vendi_score


OTHER_SCENES_SEED = 3_950_017
"""Of the rendered scenes that Frechet distances between rendered scenes are taken to."""

RATIO_LAYERS = ("animal", "background", "ground")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is generated. Movie `i` comes of the generator seed `seed + i`, whatever the batch.

    `unusual` of the captions that the grammar never writes are generated as single pictures too. Novelty is measured
    against `training_scenes` scenes of each of `training_seeds`, beside `held_out_scenes` others. Errors by noise
    level are taken over `noise_scenes` scenes, of one frame if there are several views; 0 leaves them out.
    """

    prompts: int = 64
    prompt_seed: int = PROMPT_SEED
    seed: int = 0
    view_rows: int = 3
    view_cols: int = 3
    frames: int = 8
    steps: int = 20
    guidance: float = 3.0
    negative: str | None = None
    negative_baseline: float | None = None
    negative_frame_spacing: float | None = None
    negative_end: float | None = None
    batch: int = 4
    unusual: int = 0
    training_seeds: tuple[int, ...] = (0,)
    training_scenes: int = 1000
    held_out_scenes: int = 300
    noise_scenes: int = 8

    def __post_init__(self) -> None:
        for name in ("prompts", "view_rows", "view_cols", "frames", "steps", "batch"):
            check_count(name, getattr(self, name))
        for name in ("unusual", "noise_scenes"):
            if getattr(self, name) != 0:
                check_count(name, getattr(self, name))
        if not self.training_seeds:
            raise ValueError("`training_seeds` must hold at least one seed, got none; the default checkpoint has 0.")


@dataclass(frozen=True)
class Evaluation:
    """The figures, in plain JSON values, and the pictures that belong to them.

    `unusual` are the measures of the unusual captions, empty if there were none; `ranking` lists movies from best to
    worst.
    """

    figures: dict[str, Any]
    prompts: tuple[EvaluationPrompt, ...]
    generated: MovieMeasures
    rendered: MovieMeasures
    unusual_prompts: tuple[EvaluationPrompt, ...] = ()
    unusual: MovieMeasures = field(default_factory=MovieMeasures)
    ranking: tuple[int, ...] = ()


def evaluate(
    pipeline: Callable[..., Any],
    settings: EvaluationSettings,
    classifier: AttributeClassifier | None = None,
    *,
    clip: ClipScore | None = None,
    progress: bool = False,
) -> Evaluation:
    """Generates a movie a prompt, renders the prompts' scenes, and measures both.

    Args:
        pipeline: called as `StaleDiffusionPipeline` is; its `output_type="pt"` gives `light_fields` of shape
            `(batch, 3, view_rows, view_cols, frames, height, width)` in [0, 1]. What its autoencoder leaves of
            rendered scenes, and its network's errors by noise level, are measured where it has such parts.
        settings: how many prompts, and how movies are generated.
        classifier: by default the one that ships.
        clip: scores movies of prompts that no classifier knows.
        progress: shows a bar.

    Raises:
        ValueError: if the pipeline returns other shapes than it was asked for, or numbers that are not finite.
    """
    notes = classifier_notes() if classifier is None else None
    instruments = Instruments(classifier or load_classifier(), load_layer_finder())
    prompts = held_out_prompts(settings.prompts, settings.prompt_seed)
    sets = _measure_all(pipeline, prompts, settings, instruments, progress)
    generated, rendered = sets["generated"], sets["rendered"]
    unusual_texts = unusual_prompts(settings.unusual) if settings.unusual else ()
    unusual, unusual_truth = _measure_unusual(pipeline, unusual_texts, settings, instruments, progress)
    figures = {
        "settings": asdict(settings),
        "classifier": notes,
        "prompts_stating": stated_counts(prompts),
        "generated": generated.summary(prompts),
        "rendered": rendered.summary(prompts),
        "shuffled": generated.shuffled_summary(prompts) | sets["shuffled"].pixel_summary(),
        "movies": _movies(prompts, generated),
    }
    if "reconstructed" in sets:
        figures["reconstructed"] = sets["reconstructed"].summary(prompts)
    figures["layer_ratios"] = layer_ratios(generated, rendered)
    figures["ratios"] = disparity_ratios(figures["generated"]["disparity"], figures["rendered"]["disparity"])
    if generated.views:
        figures["ratios"] |= view_ratios(figures["layer_ratios"], figures)
    if generated.times:
        figures["ratios"]["flicker_allowed"] = allowed_flicker(figures)
    figures["frechet"] = frechet_figures(
        *(sets[name].feature_sets() for name in ("generated", "rendered", "others", "shuffled"))
    )
    figures["variety"] = variety_figures(generated, rendered, prompts, settings, figures)
    figures["noise_errors"] = _noise_errors(pipeline, settings)
    figures["unusual"] = _unusual_figures(unusual_texts, unusual, unusual_truth) if unusual_texts else None
    texts = [prompt.text for prompt in prompts]
    figures["clip"] = clip.figures(texts, generated.pictures, rendered.pictures) if clip else None
    figures["bars"] = check_bars(figures)
    figures["measures"] = measure_rows(figures)
    ranking = tuple(generated.rank(prompts))
    return Evaluation(_plain(figures), prompts, generated, rendered, unusual_texts, unusual, ranking)


def _measure_all(
    pipeline: Callable[..., Any],
    prompts: tuple[EvaluationPrompt, ...],
    settings: EvaluationSettings,
    instruments: Instruments,
    progress: bool,
) -> dict[str, MovieMeasures]:
    """Measures of the generated movies, of rendered ones, of those after the pipeline's autoencoder, of rendered
    pictures that do not belong together (where a batch has at least two), and features of other rendered scenes."""
    vae = getattr(pipeline, "vae", None)
    names = ("generated", "rendered", "others", "shuffled") + (("reconstructed",) if vae is not None else ())
    others = held_out_prompts(len(prompts), OTHER_SCENES_SEED)
    sets = {name: MovieMeasures() for name in names}
    for first in tqdm(range(0, len(prompts), settings.batch), "evaluating", disable=not progress):
        batch = prompts[first : first + settings.batch]
        movies = generate(pipeline, batch, settings, first)
        truth = render_prompts(batch, movies.shape)
        sets["generated"].add(instruments, movies)
        sets["rendered"].add(instruments, truth)
        sets["others"].add_features(instruments, render_prompts(others[first : first + settings.batch], movies.shape))
        if vae is not None:
            sets["reconstructed"].add(instruments, reconstruct(vae, truth))
        if len(batch) > 1:
            sets["shuffled"].add(instruments, unrelated_pictures(truth))
    return sets


def _measure_unusual(
    pipeline: Callable[..., Any],
    prompts: tuple[EvaluationPrompt, ...],
    settings: EvaluationSettings,
    instruments: Instruments,
    progress: bool,
) -> tuple[MovieMeasures, MovieMeasures]:
    """Single pictures of unusual captions, and of scenes that show what they ask for."""
    single = EvaluationSettings(
        **asdict(settings) | {"view_rows": 1, "view_cols": 1, "frames": 1, "batch": 4 * settings.batch}
    )
    found, truth = MovieMeasures(), MovieMeasures()
    for first in tqdm(range(0, len(prompts), single.batch), "unusual captions", disable=not (progress and prompts)):
        batch = prompts[first : first + single.batch]
        movies = generate(pipeline, batch, single, first)
        found.add(instruments, movies)
        truth.add(instruments, render_prompts(batch, movies.shape))
    return found, truth


def generate(
    pipeline: Callable[..., Any], prompts: Sequence[EvaluationPrompt], settings: EvaluationSettings, first: int
) -> torch.Tensor:
    """Movies in [-1, 1] for prompts of which the first has the index `first`."""
    options = {} if settings.negative is None else {"negative_prompt": [settings.negative] * len(prompts)}
    options |= {name: getattr(settings, name) for name in NEGATIVE_CONDITIONS}
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


def layer_ratios(generated: MovieMeasures, rendered: MovieMeasures) -> dict[str, dict[str, float]]:
    """Mean disparity of each layer over that of the rendered scenes; empty for a single view."""
    if not generated.views:
        return {}
    return {
        name: ratio_interval(generated.layer_disparities(name), rendered.layer_disparities(name))
        for name in RATIO_LAYERS
    }


@lru_cache(maxsize=2)
def training_scenes(seeds: tuple[int, ...], scenes: int, held_out: int) -> TrainingScenes:
    """Rendered once for all evaluations of a process."""
    return TrainingScenes.render(seeds, scenes, held_out)


def variety_figures(
    generated: MovieMeasures,
    rendered: MovieMeasures,
    prompts: Sequence[EvaluationPrompt],
    settings: EvaluationSettings,
    figures: dict[str, Any],
) -> dict[str, Any]:
    """Diversity, novelty, and imagination, of generated movies, of rendered ones, and by chance."""
    features, truth = generated.feature_sets()["picture"], rendered.feature_sets()["picture"]
    center = truth.mean(dim=0)
    known = training_scenes(tuple(settings.training_seeds), settings.training_scenes, settings.held_out_scenes)
    novelty = {
        name: known.figures(measures.all_thumbnails())
        for name, measures in (("generated", generated), ("rendered", rendered))
    }
    sources = {"generated": (features, "generated"), "rendered": (truth, "rendered")}
    scores = {name: vendi_score(values, center) if len(values) > 1 else nan for name, (values, _) in sources.items()}
    aligned = {source: _mean_share(figures[source]["alignment"]) for source in ("generated", "rendered", "shuffled")}
    diversity = scores["generated"] / scores["rendered"]
    return {
        "training_scenes": len(known.thumbnails),
        "threshold": known.threshold,
        "held_out_distance": mean_interval(known.held_out_distances.tolist()),
        "vendi": {name: vendi_figure(values, center) for name, (values, _) in sources.items()},
        "novelty": novelty,
        "imagination": {
            "generated": _imagination_figure(generated, prompts, known, center, scores["rendered"]),
            "rendered": imagination(aligned["rendered"], 1.0, novelty["rendered"]["novel"]["value"]),
            "shuffled": imagination(aligned["shuffled"], diversity, novelty["generated"]["novel"]["value"]),
        },
    }


def _imagination_figure(
    measures: MovieMeasures,
    prompts: Sequence[EvaluationPrompt],
    known: TrainingScenes,
    center: torch.Tensor,
    rendered_vendi: float,
) -> dict[str, float]:
    """The score with its interval over movies."""
    features, pictures = measures.feature_sets()["picture"], measures.all_thumbnails()
    if len(features) < 2:
        return {"value": nan, "low": nan, "high": nan, "total": len(features)}

    def score(chosen: torch.Tensor) -> float:
        picked = chosen.tolist()
        shares = attribute_accuracy([measures.predictions[i] for i in picked], [prompts[i] for i in picked])
        aligned = _mean_share({name: {"value": share.value} for name, share in shares.items()})
        novel = known.figures(pictures[chosen])["novel"]["value"]
        return imagination(aligned, vendi_score(features[chosen], center) / rendered_vendi, novel)

    return statistic_interval(score, len(features), IMAGINATION_RESAMPLES, biased=True, bounds=(0.0, 1.0))


IMAGINATION_RESAMPLES = 40


def _mean_share(shares: dict[str, dict[str, float]]) -> float:
    """Mean over the attributes that any prompt states."""
    values = [share["value"] for share in shares.values() if not isnan(share["value"])]
    return sum(values) / len(values) if values else nan


def _noise_errors(pipeline: Any, settings: EvaluationSettings) -> dict[str, Any] | None:
    if not settings.noise_scenes or not can_measure(pipeline):
        return None
    views = (settings.view_rows, settings.view_cols)
    frames = settings.frames if views == (1, 1) else 1
    prompts = held_out_prompts(settings.noise_scenes, settings.prompt_seed)
    return measure_noise_errors(pipeline, prompts, views, frames, settings.batch)


def _unusual_figures(
    prompts: tuple[EvaluationPrompt, ...], found: MovieMeasures, truth: MovieMeasures
) -> dict[str, Any]:
    """Alignment with unusual captions: by attribute, and by group over all attributes that are stated."""
    groups = {}
    for group in GROUPS:
        chosen = [index for index, prompt in enumerate(prompts) if group_of(prompt.text) == group]
        groups[group] = {
            name: mean_interval([_right_share(measures, prompts, index) for index in chosen])
            for name, measures in (("generated", found), ("rendered", truth))
        }
    return {
        "captions": len(prompts),
        "generated": {name: share.as_dict() for name, share in attribute_accuracy(found.predictions, prompts).items()},
        "rendered": {name: share.as_dict() for name, share in attribute_accuracy(truth.predictions, prompts).items()},
        "shuffled": found.shuffled_summary(prompts)["alignment"],
        "groups": groups,
        "movies": _movies(prompts, found),
    }


def _right_share(measures: MovieMeasures, prompts: Sequence[EvaluationPrompt], index: int) -> float:
    """Of what one sentence states, the share that its picture shows; no actions, which it hardly tells."""
    stated = {name: value for name, value in prompts[index].stated.items() if name in ATTRIBUTE_VALUES}
    stated.pop("action", None)
    shown = measures.predictions[index]
    return sum(shown[name] == value for name, value in stated.items()) / len(stated) if stated else nan


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
