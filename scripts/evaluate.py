"""Measures a checkpoint on held-out prompts and writes a report.

    python scripts/evaluate.py CHECKPOINT --output FOLDER
    python scripts/evaluate.py CHECKPOINT --output FOLDER --prompts 256 --steps 30 --views 5x5 --frames 16

Exit code: 0 when the report was written, 1 when something was wrong; with --strict, 2 when a bar is missed.
"""

import argparse
import sys
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from diffusers_stale.evaluation.prompts import PROMPT_SEED
from diffusers_stale.evaluation.report import EvaluationSettings, evaluate
from diffusers_stale.evaluation.report_files import write_report
from diffusers_stale.hub import choose_device, load_pipeline


def parse_grid(text: str) -> tuple[int, int]:
    """View rows and columns: (3, 5) for "3x5"."""
    rows, cross, cols = text.partition("x")
    if not (cross and rows.isdecimal() and cols.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected ROWSxCOLS such as 3x3, got {text!r}")
    return int(rows), int(cols)


def parse_arguments() -> argparse.Namespace:
    default = EvaluationSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder, the name of a checkpoint that ships, or a Hub id")
    parser.add_argument("--output", required=True, type=Path, help="the report's folder")
    parser.add_argument("--prompts", type=int, default=default.prompts)
    parser.add_argument("--prompt-seed", type=int, default=PROMPT_SEED)
    parser.add_argument("--seed", type=int, default=default.seed, help="of the noise of the first movie")
    parser.add_argument(
        "--views", type=parse_grid, default=(default.view_rows, default.view_cols), metavar="ROWSxCOLS"
    )
    parser.add_argument("--frames", type=int, default=default.frames)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--guidance", type=float, default=default.guidance)
    parser.add_argument("--negative", help="a negative prompt for all movies")
    parser.add_argument("--batch", type=int, default=default.batch, help="movies at a time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of the processor")
    parser.add_argument("--strict", action="store_true", help="exit with 2 if a bar is missed")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        settings = EvaluationSettings(
            prompts=arguments.prompts,
            prompt_seed=arguments.prompt_seed,
            seed=arguments.seed,
            view_rows=arguments.views[0],
            view_cols=arguments.views[1],
            frames=arguments.frames,
            steps=arguments.steps,
            guidance=arguments.guidance,
            negative=arguments.negative,
            batch=arguments.batch,
        )
        pipeline = load_pipeline(arguments.checkpoint, device=choose_device(arguments.device))
        pipeline.set_progress_bar_config(disable=True)
        evaluation = evaluate(pipeline, settings, progress=True)
        files = write_report(evaluation, arguments.output, arguments.checkpoint)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for bar in evaluation.figures["bars"]:
        print(f"{'met   ' if bar['met'] else 'missed'} {bar['title']}: {bar['value']} (at least {bar['least']})")
    print("wrote " + ", ".join(str(path) for path in files))
    return 2 if arguments.strict and not all(bar["met"] for bar in evaluation.figures["bars"]) else 0


if __name__ == "__main__":
    sys.exit(main())
