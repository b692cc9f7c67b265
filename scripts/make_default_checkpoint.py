"""Makes the default checkpoint from nothing: all stages of training with their gates, reports, and shipping.

    python scripts/make_default_checkpoint.py --output runs/barnyard
    python scripts/make_default_checkpoint.py --output runs/barnyard --processes 2 --set movie.max_seconds=14400 --ship
    python scripts/make_default_checkpoint.py --output runs/smoke --smoke

Run the same command again after an interruption: what is done is left as it is, what was begun goes on. A stage that
misses a gate is trained longer, as often as --attempts says; the learning rate anneals anew over what is added.
OUTPUT/gates.json keeps what the gates measured. Exit code: 0 done, 1 something was wrong, 3 a gate was missed.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from diffusers_stale.evaluation.classifier import SHIPPED_WEIGHTS
from diffusers_stale.evaluation.gates import Gate, autoencoder_gates, image_gates
from diffusers_stale.evaluation.layers import SHIPPED_LAYERS
from diffusers_stale.evaluation.report import EvaluationSettings, evaluate
from diffusers_stale.evaluation.report_files import write_report
from diffusers_stale.hub import choose_device, load_pipeline
from diffusers_stale.pipeline_stale import StaleDiffusionPipeline
from diffusers_stale.training.config import PRESETS, STAGES, TrainingConfig, with_changes
from diffusers_stale.training.processes import LaunchError
from diffusers_stale.training.stages import REPORT, train_stage


ROOT = Path(__file__).resolve().parent.parent
GATE_MISSED = 3
SINGLE_PROCESS_STAGES = ("text",)
"""Too short to be worth the start of several processes."""

REPORTS = {
    "report_views": {"view_rows": 3, "view_cols": 3, "frames": 1},
    "report_time": {"view_rows": 1, "view_cols": 1, "frames": 8, "unusual": 0},
}
"""The reports that are written, by their folders: views and time apart, since all at once takes nine times as long."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much the gates and reports look at."""

    preset: str = "barnyard"
    gate_scenes: int = 48
    gate_prompts: int = 128
    prompts: int = 256
    steps: int = 12
    unusual: int = 60
    training_scenes: int = 1000
    held_out_scenes: int = 300
    noise_scenes: int = 16
    batch: int = 8


SMOKE = Sizes(
    preset="smoke", gate_scenes=1, gate_prompts=2, prompts=2, steps=2, unusual=2, training_scenes=4, held_out_scenes=4,
    noise_scenes=1, batch=2,
)  # fmt: skip


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="the run folder")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE", help="as in scripts/train.py")
    parser.add_argument("--processes", type=int, default=1, help="of training, on this machine")
    parser.add_argument("--attempts", type=int, default=3, help="of each stage to pass its gate")
    parser.add_argument("--stretch", type=float, default=1.5, help="factor on a stage's budget at each new attempt")
    parser.add_argument("--prompts", type=int, help="of the reports (default: 256)")
    parser.add_argument("--ship", action="store_true", help="put the result into the package, with its card")
    parser.add_argument("--name", default="barnyard", help="under which it ships")
    parser.add_argument("--smoke", action="store_true", help="a minute's run of everything; gates do not stop it")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    sizes = SMOKE if options.smoke else Sizes()
    if options.prompts is not None:
        sizes = replace(sizes, prompts=options.prompts)
    try:
        check(options)
        config = with_changes(PRESETS[sizes.preset], options.set)
        make_instruments()
        for stage in STAGES:
            missed = make_stage(stage, config, options, sizes)
            if missed and not options.smoke:
                print(
                    f"The {stage} stage missed {', '.join(gate.title for gate in missed)} after {options.attempts} "
                    f"attempts. Give it more time (--set {stage}.max_seconds=..., or --attempts), and run this again.",
                    file=sys.stderr,
                )
                return GATE_MISSED
        folders = [make_report(name, options.output, sizes) for name in REPORTS]
        if options.ship:
            ship(options.output, options.name, folders)
    except (ValueError, OSError, FloatingPointError, LaunchError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"The checkpoint is in {options.output / 'movie'}, its reports in {', '.join(map(str, folders))}.")
    return 0


def check(options: argparse.Namespace) -> None:
    """Raises `ValueError` for numbers that make no sense."""
    for name in ("processes", "attempts"):
        if getattr(options, name) < 1:
            raise ValueError(
                f"--{name} must be at least 1, got {getattr(options, name)}; leave it out for one that is."
            )
    if options.stretch <= 1:
        raise ValueError(f"--stretch must be greater than 1, got {options.stretch}; 1.5 is usual.")


def make_instruments() -> None:
    """Trains the networks that gates measure with, where they do not ship."""
    for network, path in (("attributes", SHIPPED_WEIGHTS), ("layers", SHIPPED_LAYERS)):
        if not path.is_file():
            call(["scripts/train_classifier.py", "--network", network])


def make_stage(stage: str, config: TrainingConfig, options: argparse.Namespace, sizes: Sizes) -> list[Gate]:
    """Trains a stage until its gates are met or its attempts are used up; returns the gates that are missed."""
    record = read_record(options.output)
    own = record.setdefault(stage, {"attempts": 0, "met": False})
    if own["met"] and (options.output / stage / REPORT).is_file():
        print(f"{stage}: done")
        return []
    for attempt in range(own["attempts"], max(options.attempts, own["attempts"] + 1)):
        train(stage, stretched(config, stage, options.stretch**attempt), options, sizes)
        gates = GATES[stage](options.output, sizes) if stage in GATES else []
        for gate in gates:
            print(f"{stage}: {gate}")
        missed = [gate for gate in gates if not gate.met]
        own |= {"attempts": attempt + 1, "met": not missed or options.smoke, "gates": [g.as_dict() for g in gates]}
        write_record(options.output, record)
        if own["met"]:
            break
    return missed


def stretched(config: TrainingConfig, stage: str, factor: float) -> TrainingConfig:
    """`config` with the budget of a stage times `factor`."""
    own = getattr(config, stage)
    budget = {
        "max_steps": None if own.max_steps is None else round(own.max_steps * factor),
        "max_seconds": None if own.max_seconds is None else own.max_seconds * factor,
    }
    return replace(config, **{stage: replace(own, **budget)})


def train(stage: str, config: TrainingConfig, options: argparse.Namespace, sizes: Sizes) -> None:
    """Trains a stage from its newest checkpoint on, here or in as many processes as there are to be."""
    if options.processes == 1 or stage in SINGLE_PROCESS_STAGES:
        train_stage(stage, config, options.output, resume=True)
        return
    own = getattr(config, stage)
    changes = [*options.set, f"{stage}.max_steps={own.max_steps}", f"{stage}.max_seconds={own.max_seconds}"]
    call(
        [
            "-m", "torch.distributed.run", "--nproc_per_node", str(options.processes), "scripts/train.py",
            "--stage", stage, "--output", str(options.output.resolve()), "--preset", sizes.preset, "--resume",
            *(part for change in changes for part in ("--set", change)),
        ]
    )  # fmt: skip


def gate_autoencoder(folder: Path, sizes: Sizes) -> list[Gate]:
    """Of the autoencoder stage."""
    vae = AutoencoderKL.from_pretrained(folder / "autoencoder").to(choose_device("auto"))
    report = json.loads((folder / "autoencoder" / REPORT).read_text())
    return autoencoder_gates(vae.eval(), report["config"]["image_size"], sizes.gate_scenes)


def gate_image(folder: Path, sizes: Sizes) -> list[Gate]:
    """Of the 2D stage, inflated: a movie of one view and one frame is a picture."""
    pipeline = StaleDiffusionPipeline.from_stable_diffusion(folder / "image").to(choose_device("auto"))
    pipeline.set_progress_bar_config(disable=True)
    return image_gates(pipeline, sizes.gate_prompts, sizes.steps, batch=2 * sizes.batch)


GATES: dict[str, Callable[[Path, Sizes], list[Gate]]] = {"autoencoder": gate_autoencoder, "image": gate_image}
"""What is measured before the next stage begins."""


def make_report(name: str, folder: Path, sizes: Sizes) -> Path:
    """Writes the report `name` of the finished checkpoint, unless it is there and younger than the checkpoint."""
    target, checkpoint = folder / name, folder / "movie"
    done = target / "report.json"
    if done.is_file() and done.stat().st_mtime > (checkpoint / REPORT).stat().st_mtime:
        print(f"{name}: done")
        return target
    reports = [json.loads((folder / stage / REPORT).read_text()) for stage in ("image", "movie")]
    settings = EvaluationSettings(
        **{
            "prompts": sizes.prompts,
            "steps": sizes.steps,
            "unusual": sizes.unusual,
            "batch": sizes.batch,
            "training_seeds": tuple(sorted({report["seed"] for report in reports})),
            "training_scenes": sizes.training_scenes,
            "held_out_scenes": sizes.held_out_scenes,
            "noise_scenes": sizes.noise_scenes,
        }
        | REPORTS[name]
    )
    pipeline = load_pipeline(checkpoint, torch.float32, choose_device("auto"))
    pipeline.set_progress_bar_config(disable=True)
    evaluation = evaluate(pipeline, settings, progress=True)
    write_report(evaluation, target, str(checkpoint))
    for bar in evaluation.figures["bars"]:
        if bar["value"] is not None:
            print(f"{name}: {'met   ' if bar['met'] else 'missed'} {bar['title']}: {bar['value']:.3f}")
    return target


def ship(folder: Path, name: str, reports: Sequence[Path]) -> None:
    """Puts the checkpoint into the package."""
    call(
        ["scripts/ship_checkpoint.py", str(folder.resolve()), "--name", name]
        + ["--evaluation", *(str(report.resolve()) for report in reports)]
    )


def call(arguments: list[str]) -> None:
    """Runs Python in the project's folder; raises `CalledProcessError` if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=True)


def read_record(folder: Path) -> dict[str, dict[str, object]]:
    """What the gates measured so far, by stage."""
    path = folder / "gates.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def write_record(folder: Path, record: dict[str, dict[str, object]]) -> None:
    """Replaces the file at once, so that an interruption leaves the old or the new one."""
    temporary = folder / ".gates.json"
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(folder / "gates.json")


if __name__ == "__main__":
    sys.exit(main())
