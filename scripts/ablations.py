"""What each regularizer does: small models, equal compute, the same seeds, in one table.

    OMP_NUM_THREADS=1 python scripts/ablations.py --output runs/ablations
    OMP_NUM_THREADS=1 python scripts/ablations.py --output runs/ablations --variants plain joy --seeds 0 1 2 3
    OMP_NUM_THREADS=1 python scripts/ablations.py --output runs/ablations --stage movie

Every run of the image stage trains a small text-to-image UNet on barnyards of 32 pixels (latents of 8 x 8), with the
autoencoder and the text encoder of the checkpoint that ships. Compute is counted in pictures that pass the network: a
variant with second forward passes trains for fewer steps. Runs of the movie stage inflate the plain run of their seed,
which is trained first, and go on for half as many steps with clips of 3x3 views and 4 frames. Runs that are done are
not run again; OUTPUT/table_STAGE.md is written at the end.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from diffusers_stale.axes import middle_index
from diffusers_stale.checkpoints import checkpoint_path
from diffusers_stale.data.scenes import random_generator
from diffusers_stale.evaluation.alignment import attribute_accuracy
from diffusers_stale.evaluation.classifier import load_classifier, predict_attributes
from diffusers_stale.evaluation.error_accumulation import report_accumulation
from diffusers_stale.evaluation.prompts import held_out_prompts
from diffusers_stale.light_field.atomic import atomic_path
from diffusers_stale.text_encoding import encode_tokens, tokenize
from diffusers_stale.training.config import ImageConfig, MovieConfig
from diffusers_stale.training.denoising import DenoisingTask, held_out_captions
from diffusers_stale.training.latents import LatentPool, render_pool
from diffusers_stale.training.loop import Trainer
from diffusers_stale.training.mess_up import shuffled
from diffusers_stale.training.processes import make_accelerator
from diffusers_stale.training.samples import decode_images
from diffusers_stale.training.stage_image import HELD_OUT, ImageTask
from diffusers_stale.training.stage_movie import MovieTask
from diffusers_stale.training.vocabulary import CRYING_JOY


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Settings of a run, and the mean number of second forward passes for each picture."""

    settings: dict[str, Any] = field(default_factory=dict)
    extra: float = 0.0


HINGE = {"hinge_weight": 1.0, "hinge_margin": 0.05, "hinge_from": 0.5, "hinge_fraction": 0.5, "hinge_warmup": 50}
PAYING = 0.5 * 0.5 * 0.9
"""Of the pictures: where the hinge counts, the share that pays, and those whose caption is not dropped."""
MIRRORED = 0.874
"""Captions that state a direction, of 2000."""

VARIANTS = {
    "image": {
        "plain": Variant(),
        "plain_shorter": Variant(extra=PAYING),
        "joy": Variant(settings=HINGE | {"hinge_caption": "joy"}, extra=PAYING),
        "joy_suffix": Variant(settings=HINGE | {"hinge_caption": "joy_suffix"}, extra=PAYING),
        "joy_logistic": Variant(settings=HINGE | {"hinge_caption": "joy", "hinge_form": "logistic"}, extra=PAYING),
        "joy_strong": Variant(settings=HINGE | {"hinge_caption": "joy", "hinge_weight": 10.0}, extra=PAYING),
        "mirrored": Variant(settings=HINGE | {"hinge_caption": "mirrored"}, extra=PAYING * MIRRORED),
        "no_dropout": Variant(settings={"caption_dropout": 0.0}),
        "embedding_gaussian": Variant(settings={"embedding_noise": 1.0}),
        # Of the same deviation.
        "embedding_uniform": Variant(settings={"embedding_noise": 3**0.5, "embedding_noise_kind": "uniform"}),
        "embedding_strong": Variant(settings={"embedding_noise": 4.0}),
        "attribute_swap": Variant(settings={"attribute_swap_rate": 0.1}),
        "attribute_swap_often": Variant(settings={"attribute_swap_rate": 0.3}),
        "input_noise": Variant(settings={"input_noise": 0.1}),
    },
    "movie": {
        "plain": Variant(),
        "view_shuffle": Variant(settings={"view_shuffle_rate": 0.1}),
        "frame_shuffle": Variant(settings={"frame_shuffle_rate": 0.1}),
        "both_shuffles": Variant(settings={"view_shuffle_rate": 0.1, "frame_shuffle_rate": 0.1}),
        "both_often": Variant(settings={"view_shuffle_rate": 0.3, "frame_shuffle_rate": 0.3}),
    },
}
"""What is compared, by stage and name."""

MEASURES = {
    "image": {
        "held_out_loss": "held-out loss",
        "alignment": "alignment, empty negative",
        "alignment_joy": "alignment, 😂 negative",
        "alignment_scaled": "alignment, epsilon scaled",
        "drift": "mean drift of noise, %",
        "drift_scaled": "the same, epsilon scaled",
    },
    "movie": {
        "held_out_loss": "held-out loss",
        "view_loss": "with views shuffled",
        "frame_loss": "with frames shuffled",
        "alignment": "alignment",
    },
}
"""Columns of the table, by stage and key of a result."""

SCORED = ("time_of_day", "barn", "kind", "color")
"""Attributes that a small model can be expected to have begun to learn."""

STEPS = 12
HELD_OUT_MOVIES = 32
ORDER_KEY = (9, 9, 10)


def image_config(seed: int, steps: int, frames: int) -> ImageConfig:
    return ImageConfig(
        seed=seed, max_steps=steps, batch_size=32, learning_rate=2e-3, warmup_steps=30, ema_decay=0.98, image_size=32,
        block_channels=(32, 64), norm_num_groups=8, pool_frames=frames, text_rate=0.1, foreground_weight=0.0,
        sample_steps=STEPS, sample_every=10**6, save_every=1e9, log_every=50,
    )  # fmt: skip


def movie_config(seed: int, steps: int) -> MovieConfig:
    return MovieConfig(
        seed=seed, max_steps=steps, learning_rate=1e-3, warmup_steps=30, ema_decay=0.98, image_size=32, num_frames=4,
        static_clips=200, moving_clips=60, static_grids="3x3x1:4:2, 1x3x1:12:1", moving_grids="1x1x4:8:1, 3x3x4:1:1",
        baselines=(2.0,), foreground_weight=0.0, hinge_weight=0.0, known_share=0.0, sample_steps=STEPS,
        sample_every=10**6, save_every=1e9, log_every=50,
    )  # fmt: skip


def run_image(variant: Variant, name: str, seed: int, budget: int, folder: Path, prompts: int) -> dict[str, float]:
    """Trains an image variant for `budget` steps' worth of pictures; returns its measures."""
    # A plain run sees each frame 2.4 times.
    base = image_config(seed, round(budget / (1 + variant.extra)), frames=budget * 40 // 3)
    config = replace(base, **variant.settings)
    accelerator = make_accelerator(config.precision)
    shipped = checkpoint_path("barnyard")
    # Pools are kept by their file: runs of a seed share theirs.
    task = ImageTask(config, shipped / "vae", shipped, folder / f"data-{seed}", accelerator.device)
    figures = Trainer(task, config, folder / "runs" / f"{name}-{seed}", accelerator, resume=False).run()
    task.module.eval()
    if name == "plain":
        task.export(parent_folder(folder, seed, budget))
    found = {key: figures[key] for key in ("held_out_loss", "steps", "images", "core_seconds")}
    held_out = task.held_out.latents[:HELD_OUT, :, 0, 0, 0].float()
    sentences = [prompt.text for prompt in held_out_prompts(prompts)]
    with torch.no_grad():
        texts = encode_tokens(task.module.text_encoder, tokenize(task.tokenizer, sentences[: len(held_out)]))
    report = report_accumulation(task.module.predict, task.scheduler, held_out[: len(texts)], texts, steps=STEPS)
    found |= {"drift": 100 * report.plain.mean, "drift_scaled": 100 * report.scaled.mean}
    found |= {"scale": report.scaled.scale} | scores(task, "alignment", "", prompts)
    found |= scores(task, "alignment_joy", CRYING_JOY, prompts)
    with noise_divided(task, report.scaled.scale):
        return found | scores(task, "alignment_scaled", "", prompts)


def run_movie(variant: Variant, name: str, seed: int, budget: int, folder: Path, prompts: int) -> dict[str, float]:
    """Inflates the plain image run and trains it for half of `budget` steps; returns its measures."""
    parent = parent_folder(folder, seed, budget)
    if not parent.is_dir():
        result("image", "plain", seed, budget, folder, prompts)
    config = replace(movie_config(seed, budget // 2), **variant.settings)
    accelerator = make_accelerator(config.precision)
    task = MovieTask(config, parent, folder / f"data-{seed}", accelerator.device)
    figures = Trainer(task, config, folder / "runs" / f"movie-{name}-{seed}", accelerator, resume=False).run()
    task.module.eval()
    size = (config.view_rows, config.view_cols, config.num_frames)
    held_out = render_pool(task.vae, task.request(config.held_out_seed, HELD_OUT_MOVIES, size, 0), 64)
    found = {key: figures[key] for key in ("steps", "images", "core_seconds")}
    for key, kind in (("held_out_loss", None), ("view_loss", "view"), ("frame_loss", "frame")):
        found[key] = movie_loss(task, held_out, kind)
    return found | scores(task, "alignment", "", prompts)


RUNS: dict[str, Callable[..., dict[str, float]]] = {"image": run_image, "movie": run_movie}
"""How a variant of each stage is run."""


@torch.no_grad()
def movie_loss(task: MovieTask, pool: LatentPool, kind: str | None) -> float:
    """Denoising loss of held-out movies, where the network sees views or frames shuffled if a `kind` is given."""
    captions, losses = held_out_captions(task.config, pool.scenes.tolist()), []
    for index in range(len(pool)):
        one = slice(index, index + 1)
        batch = task.noised_batch(pool.latents[one], pool.foreground[one], captions[one], (*ORDER_KEY, index), 0.0)
        batch |= {"pixel_weights": None, "baselines": pool.baselines[one]}
        if kind is not None:
            draw = random_generator(*ORDER_KEY, index)
            batch["seen_latents"] = shuffled(batch["latents"], kind, 1.0, 1.0, draw)
        losses.append(float(task.module(**batch)))
    return statistics.fmean(losses)


@contextmanager
def noise_divided(task: DenoisingTask, scale: float) -> Iterator[None]:
    """Within, what the network predicts has its noise divided by `scale` (epsilon scaling)."""
    predict = task.module.predict

    def scaled(sample: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return task.scheduler.scale_predicted_noise(predict(sample, timesteps, text), sample, timesteps, scale)

    task.module.predict = scaled
    yield
    del task.module.predict


def scores(task: DenoisingTask, key: str, negative: str, prompts: int) -> dict[str, float]:
    """Shares of held-out sentences whose samples show what is stated: of each attribute, and their mean as `key`."""
    asked = held_out_prompts(prompts)
    # Of movies a row of three views: the whole grid would take longer than training.
    grid = () if isinstance(task, ImageTask) else (1, 3, 1)
    sentences = [prompt.text for prompt in asked]
    latents = task.sample_prompts(sentences, task.latent_shape(*grid), negative_prompt=negative)
    if grid:
        latents = latents[(slice(None), slice(None), *map(middle_index, grid))]
    pictures = decode_images(task.vae, latents)
    shares = attribute_accuracy(predict_attributes(load_classifier(), pictures[:, :, None, None, None]), asked)
    found = {f"{key}_{attribute}": shares[attribute].value for attribute in SCORED}
    return found | {key: statistics.fmean(found.values())}


def parent_folder(folder: Path, seed: int, budget: int) -> Path:
    """Where the plain image run of a seed is left for movies."""
    return folder / "parents" / f"{seed}-{budget}"


def result(stage: str, name: str, seed: int, budget: int, folder: Path, prompts: int) -> dict[str, float]:
    """The measures of a run, which is made if it has not been."""
    path = folder / "results" / stage / f"{name}-{seed}-{budget}.json"
    if not path.is_file():
        began = time.monotonic()
        found = RUNS[stage](VARIANTS[stage][name], name, seed, budget, folder, prompts)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as writable:
            writable.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{stage} {name} seed {seed}: {found} in {time.monotonic() - began:.0f} s", flush=True)
    return json.loads(path.read_text())


def table(measures: dict[str, str], results: dict[str, dict[int, dict[str, float]]]) -> str:
    """Means over seeds, and differences to the plain runs of the same seeds with their standard errors."""
    seeds = sorted(set.intersection(*(set(runs) for runs in results.values())))
    header = ["variant", "steps", *(f"{title} | vs plain" for title in measures.values())]
    columns = 2 + 2 * len(measures)
    lines = [f"Seeds {', '.join(map(str, seeds))}.", "", f"| {' | '.join(header)} |", "|" + " --- |" * columns]
    for name, runs in results.items():
        cells = [name, str(round(runs[seeds[0]]["steps"]))]
        for key in measures:
            cells.append(f"{statistics.fmean(runs[seed][key] for seed in seeds):.3f}")
            differences = [runs[seed][key] - results["plain"][seed][key] for seed in seeds]
            error = statistics.stdev(differences) / len(seeds) ** 0.5 if len(seeds) > 1 else float("nan")
            cells.append("" if name == "plain" else f"{statistics.fmean(differences):+.3f} ± {error:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--stage", choices=list(VARIANTS), default="image")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="all of the stage by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300, help="of a plain run; others pass as many pictures")
    parser.add_argument("--prompts", type=int, default=128, help="held-out sentences that pictures are made of")
    arguments = parser.parse_args()
    arguments.variants = arguments.variants or list(VARIANTS[arguments.stage])
    if unknown := set(arguments.variants) - set(VARIANTS[arguments.stage]):
        parser.error(
            f"no variant of {arguments.stage}: {', '.join(unknown)}; of {', '.join(VARIANTS[arguments.stage])}"
        )
    return arguments


def main() -> int:
    arguments = parse_arguments()
    results: dict[str, dict[int, dict[str, float]]] = {name: {} for name in arguments.variants}
    for seed in arguments.seeds:
        for name in arguments.variants:
            results[name][seed] = result(
                arguments.stage, name, seed, arguments.steps, arguments.output, arguments.prompts
            )
    if "plain" in results:
        text = table(MEASURES[arguments.stage], results)
        (arguments.output / f"table_{arguments.stage}.md").write_text(text)
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
