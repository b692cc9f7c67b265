"""Trains the parts of a checkpoint, one stage after the other.

    python scripts/train.py --stage all --output runs/first
    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 scripts/train.py --stage image --output ...

Stages: autoencoder, text, image, movie, or all. Each leaves its result in OUTPUT/<stage> and its checkpoints, samples
and logs in OUTPUT/<stage>_run.
"""

import argparse
import os
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from diffusers_stale.sharing import UNTOLD, claim_repository, push_folder, write_shared
from diffusers_stale.training.config import PRESETS, STAGES, with_changes
from diffusers_stale.training.config_files import read_configs
from diffusers_stale.training.processes import LaunchError
from diffusers_stale.training.reports import REPORT, read_report
from diffusers_stale.training.stages import check_unused, train_stage
from diffusers_stale.training.stopping import StoppedError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", required=True, choices=[*STAGES, "all"])
    parser.add_argument("--output", required=True, type=Path, help="the run folder")
    parser.add_argument("--preset", choices=list(PRESETS), help="what --config and --set change; barnyard by default")
    parser.add_argument(
        "--config", nargs="+", action="extend", default=[], type=Path, metavar="FILE.yaml",
        help="settings by stage, a later file over an earlier one; a run leaves its own in OUTPUT/<stage>_run",
    )  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="field=... or stage.field=...")
    parser.add_argument("--max-seconds", type=float, help="of each stage; annealed over them")
    parser.add_argument("--max-steps", type=int, help="of each stage")
    parser.add_argument(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="upload the movie stage with its card in the end",
    )
    parser.add_argument("--private", action="store_true", help="make the repository on the Hub a private one")
    parser.add_argument("--about", type=Path, help="Markdown for the card: what it is for, on what data, its limits")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run folder")
    for stage in STAGES[:-1]:
        parser.add_argument(f"--{stage}", type=Path, help=f"a trained {stage} stage, instead of OUTPUT/{stage}")
    return parser.parse_args()


def is_main() -> bool:
    """Whether this process, of those that a launcher started, is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def push(run: Path, repo: str, about: str) -> None:
    """Uploads the movie stage of `run`, from the folder RUN/shared, which stays."""
    reports = {stage: read_report(run / stage) for stage in STAGES if (run / stage / REPORT).is_file()}
    write_shared(run / "movie", run / "shared", repo.partition("/")[2], reports, about)
    print(f"uploaded: {push_folder(run / 'shared', repo, 'Trained with diffusers_stale')}")


def train(arguments: argparse.Namespace) -> None:
    """Trains the stages asked for, and shares the result if that is wanted too."""
    stages = STAGES if arguments.stage == "all" else (arguments.stage,)
    # An explicit budget takes the place of the preset's other one.
    changes = []
    if arguments.max_seconds is not None:
        max_steps = "none" if arguments.max_steps is None else arguments.max_steps
        changes += [f"max_seconds={arguments.max_seconds}", f"max_steps={max_steps}"]
    elif arguments.max_steps is not None:
        changes += [f"max_steps={arguments.max_steps}", "max_seconds=none"]
    parents = {stage: path for stage in STAGES[:-1] if (path := getattr(arguments, stage)) is not None}
    config = with_changes(read_configs(arguments.config, arguments.preset), [*changes, *arguments.set], stages)
    if not arguments.resume:
        # Before hours of earlier stages.
        check_unused(arguments.output, stages)
    about = arguments.about.read_text(encoding="utf-8") if arguments.about else UNTOLD
    if arguments.push_to_hub is not None:
        if "movie" not in stages:
            raise ValueError(f"--push-to-hub needs the movie stage, got --stage {arguments.stage}; leave it out.")
        if is_main():
            claim_repository(arguments.push_to_hub, arguments.private)
    for stage in stages:
        train_stage(stage, config, arguments.output, arguments.resume, parents)
    if arguments.push_to_hub is not None and is_main():
        push(arguments.output, arguments.push_to_hub, about)


def main() -> int:
    try:
        train(parse_arguments())
    except StoppedError as error:
        # All is saved, and who told it to stop does not wait long: libraries may take seconds to be taken down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code)
    except KeyboardInterrupt:
        print("interrupted; what was saved stays, and --resume goes on from there", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError, LaunchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
