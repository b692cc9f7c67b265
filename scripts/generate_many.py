"""Makes a movie of every sentence in a list, on as many processes as there are, and goes on where it was stopped.

    python scripts/generate_many.py --prompts sentences.txt --output movies
    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 scripts/generate_many.py \\
        --count 100 --output movies

Sentences are the lines of a file, or `--count` of them from the grammar of barnyards. Movie N is
OUTPUT/NNNNNN.lf.safetensors, and its noise depends on the seed and N alone: not on the number of processes, nor on
what was made before. (To the bit if each process computes with as many threads, of the same kind of processor.)

Files appear whole or not at all. The same command again makes what is missing; OUTPUT/request.json keeps what was
asked, and other settings or other sentences are refused. When all is there, OUTPUT/index.jsonl lists it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from accelerate import Accelerator
from tqdm import tqdm

from diffusers_stale.data.captions import caption_of
from diffusers_stale.data.scenes import random_generator, sample_scene
from diffusers_stale.hub import DTYPES, load_pipeline
from diffusers_stale.light_field.atomic import atomic_path
from diffusers_stale.text_encoding import check_texts
from diffusers_stale.training.processes import LaunchError, make_accelerator


NOISE_STREAM = 71
REQUEST, INDEX = "request.json", "index.jsonl"
SETTINGS = (
    "checkpoint", "seed", "view_rows", "view_cols", "frames", "height", "width", "steps", "guidance", "baseline",
    "negative", "negative_baseline", "negative_frame_spacing", "negative_end", "frame_spacing", "loop", "dtype",
)  # fmt: skip
"""Arguments that decide what a movie looks like."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sentences = parser.add_mutually_exclusive_group(required=True)
    sentences.add_argument("--prompts", type=Path, help="a text file, a sentence a line; empty lines are left out")
    sentences.add_argument("--count", type=int, help="so many captions of random barnyards of --seed")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--checkpoint", default="barnyard", help="a name, a folder or an owner/name of the Hub")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--view-rows", type=int, default=3)
    parser.add_argument("--view-cols", type=int, default=3)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--height", type=int, help="pixels; by default what the checkpoint was trained for")
    parser.add_argument("--width", type=int)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--baseline", type=float, default=1.0)
    parser.add_argument("--negative", help="what should not be seen; by default the checkpoint's own")
    for name in ("--negative-baseline", "--negative-frame-spacing", "--negative-end"):
        parser.add_argument(name, type=float, help="as of stale-diffusion generate; by default the checkpoint's own")
    parser.add_argument("--frame-spacing", type=float, default=1.0, help="0.5 for slow motion")
    parser.add_argument("--loop", action="store_true")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    return parser.parse_args()


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    """The sentences; raises `ValueError` where there are none, or one cannot be encoded."""
    if arguments.prompts is not None:
        lines = [line.strip() for line in arguments.prompts.read_text(encoding="utf-8").splitlines()]
        prompts = [line for line in lines if line]
    else:
        seed, count = arguments.seed, max(arguments.count, 0)
        prompts = [caption_of(sample_scene(seed, index), seed, index) for index in range(count)]
    if not prompts:
        raise ValueError("There must be a sentence at least, got none; write some lines, or give a --count above 0.")
    return check_texts(str(arguments.prompts or "count"), prompts)


def movie_path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.lf.safetensors"


def agree(folder: Path, settings: dict[str, Any], prompts: list[str]) -> None:
    """Leaves in `folder` what is asked of it; raises `ValueError` if it was something else before.

    Sentences may be added at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, request = folder / REQUEST, {"settings": settings, "prompts": prompts}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before == request:
            return
        others = sorted(name for name, value in settings.items() if before["settings"].get(name) != value)
        if others:
            told = ", ".join(f"{name} was {before['settings'].get(name)!r}, is {settings[name]!r}" for name in others)
            raise ValueError(f"{folder} holds movies of other settings ({told}); choose another --output.")
        changed = [
            index for index, (old, new) in enumerate(zip(before["prompts"], prompts, strict=False)) if old != new
        ]
        if changed or len(prompts) < len(before["prompts"]):
            at = changed[0] if changed else len(prompts)
            raise ValueError(
                f"{folder} holds movies of other sentences, from number {at} on; add sentences at the end only, or "
                "choose another --output."
            )
    with atomic_path(path) as writable:
        writable.write_text(json.dumps(request, indent=1) + "\n", encoding="utf-8")


def generate(arguments: argparse.Namespace, prompts: list[str], accelerator: Accelerator) -> int:
    """Makes this process's share of what is missing; returns how many movies that was."""
    missing = [index for index in range(len(prompts)) if not movie_path(arguments.output, index).is_file()]
    # All must have looked before the first file appears.
    accelerator.wait_for_everyone()
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    if mine:
        pipeline = load_pipeline(arguments.checkpoint, DTYPES[arguments.dtype], accelerator.device)
        pipeline.set_progress_bar_config(disable=True)
    for index in tqdm(mine, "movies", disable=not accelerator.is_main_process):
        noise_seed = int(random_generator(arguments.seed, index, NOISE_STREAM).integers(2**62))
        movie = pipeline(
            prompts[index],
            negative_prompt=arguments.negative,
            negative_baseline=arguments.negative_baseline,
            negative_frame_spacing=arguments.negative_frame_spacing,
            negative_end=arguments.negative_end,
            frame_spacing=arguments.frame_spacing,
            view_rows=arguments.view_rows,
            view_cols=arguments.view_cols,
            num_frames=arguments.frames,
            height=arguments.height,
            width=arguments.width,
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance,
            baseline=arguments.baseline,
            loop=arguments.loop,
            generator=torch.Generator("cpu").manual_seed(noise_seed),
        ).light_fields[0]
        movie.save(movie_path(arguments.output, index))
    return len(mine)


def write_index(folder: Path, prompts: list[str]) -> None:
    lines = [
        json.dumps({"file": movie_path(folder, index).name, "prompt": prompt}) for index, prompt in enumerate(prompts)
    ]
    with atomic_path(folder / INDEX) as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    arguments = parse_arguments()
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    try:
        prompts = read_prompts(arguments)
        accelerator = make_accelerator("no")
        with accelerator.main_process_first():
            agree(arguments.output, settings, prompts)
        if accelerator.is_main_process:
            # What a killed process was writing.
            for leftover in arguments.output.glob(".writing-*"):
                leftover.unlink()
        accelerator.wait_for_everyone()
        made = generate(arguments, prompts, accelerator)
    except KeyboardInterrupt:
        print("interrupted; the same command makes what is missing", file=sys.stderr)
        return 130
    except (ValueError, OSError, LaunchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_index(arguments.output, prompts)
        print(f"{arguments.output}: {len(prompts)} movies, {made} of them made now by the first process")
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(main())
