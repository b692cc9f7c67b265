"""What each regularizer does: small 2D models, equal compute, the same seeds, in one table.

    OMP_NUM_THREADS=1 python scripts/ablations.py --output runs/ablations
    OMP_NUM_THREADS=1 python scripts/ablations.py --output runs/ablations --variants plain joy --seeds 0 1 2 3

Every run trains a small text-to-image UNet on barnyards of 32 pixels (latents of 8 x 8), with the autoencoder and the
text encoder of the checkpoint that ships. Compute is counted in pictures that pass the network: a variant with second
forward passes trains for fewer steps. Runs that are done are not run again; OUTPUT/table.md is written at the end.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from diffusers_stale.checkpoints import checkpoint_path
from diffusers_stale.evaluation.alignment import attribute_accuracy
from diffusers_stale.evaluation.classifier import load_classifier, predict_attributes
from diffusers_stale.evaluation.error_accumulation import measure_drift
from diffusers_stale.evaluation.prompts import held_out_prompts
from diffusers_stale.light_field.atomic import atomic_path
from diffusers_stale.text_encoding import encode_tokens, tokenize
from diffusers_stale.training.config import ImageConfig
from diffusers_stale.training.loop import Trainer
from diffusers_stale.training.processes import make_accelerator
from diffusers_stale.training.samples import decode_images
from diffusers_stale.training.stage_image import HELD_OUT, ImageTask
from diffusers_stale.training.vocabulary import CRYING_JOY


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Settings of a run, and the mean number of second forward passes for each picture."""

    settings: dict[str, Any] = field(default_factory=dict)
    extra: float = 0.0


HINGE = {"hinge_weight": 1.0, "hinge_margin": 0.05, "hinge_from": 0.5, "hinge_fraction": 0.5, "hinge_warmup": 50}
PAYING = 0.5 * 0.5 * 0.9
"""Of the pictures: where the hinge counts, the share that pays, and those whose caption is not dropped."""

VARIANTS = {
    "plain": Variant(),
    "joy": Variant(settings=HINGE | {"hinge_caption": "joy"}, extra=PAYING),
    "joy_suffix": Variant(settings=HINGE | {"hinge_caption": "joy_suffix"}, extra=PAYING),
    "joy_logistic": Variant(settings=HINGE | {"hinge_caption": "joy", "hinge_form": "logistic"}, extra=PAYING),
    "joy_strong": Variant(settings=HINGE | {"hinge_caption": "joy", "hinge_weight": 10.0}, extra=PAYING),
    "no_dropout": Variant(settings={"caption_dropout": 0.0}),
    "embedding_noise": Variant(settings={"embedding_noise": 1.0}),
    "attribute_swap": Variant(settings={"attribute_swap_rate": 0.1}),
    "input_noise": Variant(settings={"input_noise": 0.1}),
}
"""What is compared, by name."""

MEASURES = {
    "held_out_loss": "held-out loss",
    "alignment": "alignment, empty negative",
    "alignment_joy": "alignment, 😂 negative",
    "drift": "mean drift of noise, %",
}
SCORED = ("time_of_day", "barn", "kind", "color")
"""Attributes that a small model can be expected to have begun to learn."""


def base_config(seed: int, steps: int) -> ImageConfig:
    return ImageConfig(
        seed=seed, max_steps=steps, batch_size=32, learning_rate=2e-3, warmup_steps=30, ema_decay=0.98, image_size=32,
        block_channels=(32, 64), norm_num_groups=8, pool_frames=4000, text_rate=0.1, foreground_weight=0.0,
        sample_steps=12, sample_every=10**6, save_every=1e9, log_every=50,
    )  # fmt: skip


def run(name: str, seed: int, budget: int, folder: Path, prompts: int) -> dict[str, float]:
    """Trains a variant for `budget` steps' worth of pictures; returns its measures."""
    variant = VARIANTS[name]
    config = replace(base_config(seed, round(budget / (1 + variant.extra))), **variant.settings)
    accelerator = make_accelerator(config.precision)
    shipped = checkpoint_path("barnyard")
    # Pools are kept by their file: runs of a seed share theirs.
    task = ImageTask(config, shipped / "vae", shipped, folder / f"data-{seed}", accelerator.device)
    figures = Trainer(task, config, folder / "runs" / f"{name}-{seed}", accelerator, resume=False).run()
    task.module.eval()
    asked = held_out_prompts(prompts)
    sentences = [prompt.text for prompt in asked]
    shape = tuple(task.pool.latents.shape[axis] for axis in (1, -2, -1))
    found = {"held_out_loss": figures["held_out_loss"], "steps": figures["steps"], "images": figures["images"]}
    classifier = load_classifier()
    for key, negative in (("alignment", ""), ("alignment_joy", CRYING_JOY)):
        pictures = decode_images(task.vae, task.sample_prompts(sentences, shape, negative_prompt=negative))
        shares = attribute_accuracy(predict_attributes(classifier, pictures[:, :, None, None, None]), asked)
        found |= {f"{key}_{attribute}": shares[attribute].value for attribute in SCORED}
        found[key] = statistics.fmean(shares[attribute].value for attribute in SCORED)
    held_out = task.held_out.latents[:HELD_OUT, :, 0, 0, 0].float()
    with torch.no_grad():
        texts = encode_tokens(task.module.text_encoder, tokenize(task.tokenizer, sentences[: len(held_out)]))
    data = held_out[: len(texts)]
    found["drift"] = 100 * measure_drift(task.module.predict, task.scheduler, data, texts, steps=12).mean
    return found | {"core_seconds": figures["core_seconds"]}


def table(results: dict[str, dict[int, dict[str, float]]]) -> str:
    """Means over seeds, and differences to the plain runs of the same seeds with their standard errors."""
    seeds = sorted(set.intersection(*(set(runs) for runs in results.values())))
    header = ["variant", "steps", *(f"{title} | vs plain" for title in MEASURES.values())]
    columns = 2 + 2 * len(MEASURES)
    lines = [f"Seeds {', '.join(map(str, seeds))}.", "", f"| {' | '.join(header)} |", "|" + " --- |" * columns]
    for name, runs in results.items():
        cells = [name, str(round(runs[seeds[0]]["steps"]))]
        for key in MEASURES:
            cells.append(f"{statistics.fmean(runs[seed][key] for seed in seeds):.3f}")
            differences = [runs[seed][key] - results["plain"][seed][key] for seed in seeds]
            error = statistics.stdev(differences) / len(seeds) ** 0.5 if len(seeds) > 1 else float("nan")
            cells.append("" if name == "plain" else f"{statistics.fmean(differences):+.3f} ± {error:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="of a plain run; others pass as many pictures")
    parser.add_argument("--prompts", type=int, default=128, help="held-out sentences that pictures are made of")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    results: dict[str, dict[int, dict[str, float]]] = {name: {} for name in arguments.variants}
    for seed in arguments.seeds:
        for name in arguments.variants:
            path = arguments.output / "results" / f"{name}-{seed}-{arguments.steps}.json"
            if not path.is_file():
                began = time.monotonic()
                found = run(name, seed, arguments.steps, arguments.output, arguments.prompts)
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(path) as writable:
                    writable.write_text(json.dumps(found, indent=1) + "\n")
                print(f"{name} seed {seed}: {found} in {time.monotonic() - began:.0f} s", flush=True)
            results[name][seed] = json.loads(path.read_text())
    if "plain" in results:
        text = table(results)
        (arguments.output / "table.md").write_text(text)
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
