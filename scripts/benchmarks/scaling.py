"""Loss and alignment against compute: the same stage trained to several budgets, each annealed to its own end.

    python scripts/benchmarks/scaling.py --output runs/scaling --parents runs/barnyard --steps 150 300 600 1200
    python scripts/benchmarks/scaling.py --output runs/scaling5d --parents runs/barnyard --stage movie \
        --grids 3x3x1 1x1x8 --steps 100 200 400 --set start_from=none

Every budget is a run of its own from nothing (`--set start_from=...`: from there), with the same seed, data and
batches, in OUTPUT/STEPS. What is measured: the network's error on rendered scenes that it has not seen, relative to
its target's variance, the mean over noise levels; and every bar of the evaluation that the grids can tell. Errors are
fitted by a power law, shares of right answers by a line in log-odds, both over the logarithm of processor time, which
gives the budget at which a bar would be met if things went on like this. They need not: it is a guide.

    python scripts/benchmarks/scaling.py --output runs/versions --checkpoints version1 version2 version3 --grids 1x1x1

measures checkpoints that are there instead, over the processor time that their provenance tells, ancestors included.

Run the same command again after an interruption. OUTPUT/scaling.json holds all figures, OUTPUT/scaling.png the curves.
"""

import argparse
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch


matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter


sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from diffusers_stale.checkpoint_origin import read_origin, whole
from diffusers_stale.evaluation.noise_errors import measure_noise_errors
from diffusers_stale.evaluation.prompts import held_out_prompts
from diffusers_stale.evaluation.report import EvaluationSettings, evaluate
from diffusers_stale.evaluation.tables import markdown_table
from diffusers_stale.hub import load_pipeline
from diffusers_stale.pipeline_stale import StaleDiffusionPipeline
from diffusers_stale.training.config import PRESETS, with_changes
from diffusers_stale.training.stages import PARENTS, REPORT, train_stage


POOLS = ("frames-0", "static-0", "moving-0")
SHARES = ("time of day", "barn and its colour", "fence", "animal colour", "animal kind", "direction", "action")
"""Bars that are shares of right answers."""

LONGEST = math.log(3600 * 1e6)
"""Logarithm of the processor time in seconds beyond which no budget is told."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder of the runs and of what is found")
    parser.add_argument("--parents", type=Path, help="run folder that holds the earlier stages")
    parser.add_argument("--stage", choices=("image", "movie"), default="image")
    budgets = parser.add_mutually_exclusive_group(required=True)
    budgets.add_argument("--steps", type=int, nargs="+", help="the budgets")
    budgets.add_argument("--checkpoints", type=Path, nargs="+", help="pipelines with their provenance, in their order")
    parser.add_argument("--preset", default="barnyard", choices=sorted(PRESETS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in scripts/train.py")
    parser.add_argument("--grids", nargs="+", help="rows x cols x frames to evaluate (default: 1x1x1, movies 3x3x1)")
    parser.add_argument("--prompts", type=int, default=64, help="movies of each grid (default: 64)")
    parser.add_argument("--scenes", type=int, default=64, help="scenes for the error (default: 64)")
    parser.add_argument("--sampling-steps", type=int, default=12)
    options = parser.parse_args()
    if len(options.steps or options.checkpoints) < 2:
        parser.error("--steps and --checkpoints must be at least two; a curve needs them.")
    if options.steps is None:
        options.stage = "movie"
    elif options.parents is None or min(options.steps) < 1:
        parser.error(f"--steps must be at least 1 and needs --parents, got {options.steps} and {options.parents}.")
    if min(options.prompts, options.scenes) < 1:
        parser.error("--prompts and --scenes must be at least 1; both are measured.")
    grids = options.grids or (["1x1x1"] if options.stage == "image" else ["3x3x1"])
    try:
        options.grids = [tuple(int(size) for size in grid.split("x")) for grid in grids]
    except ValueError:
        options.grids = []
    if not options.grids or any(len(grid) != 3 or min(grid) < 1 for grid in options.grids):
        parser.error(f"--grids must be rows x cols x frames, got {' '.join(grids)}; for example 3x3x1 1x1x8.")
    return options


def main() -> int:
    options = parse_arguments()
    try:
        if options.steps is None:
            points = [finished(options, folder) for folder in options.checkpoints]
        else:
            points = [point(options, steps) for steps in sorted(set(options.steps))]
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    fits = fit_all(points, 0.5 / options.prompts)
    options.output.mkdir(parents=True, exist_ok=True)
    found = {"command": sys.argv, "points": points, "fits": fits}
    (options.output / "scaling.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(points, fits, options.output / "scaling.png")
    print(table(points, fits))
    return 0


def point(options: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Trains one budget and measures it, unless that has been done."""
    folder = options.output / str(steps)
    kept = folder / "point.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    changes = [*options.set, f"{options.stage}.max_steps={steps}", f"{options.stage}.max_seconds=none"]
    config = with_changes(PRESETS[options.preset], changes, [options.stage])
    own = getattr(config, options.stage)
    warmup = min(own.warmup_steps, max(steps // 5, 1))
    config = replace(config, **{options.stage: replace(own, warmup_steps=warmup)})
    share_pools(options, folder / f"{options.stage}_run")
    parents = {name: options.parents / name for name in PARENTS[options.stage]}
    if not (folder / options.stage / REPORT).is_file():
        train_stage(options.stage, config, folder, resume=True, parents=parents)
    report = json.loads((folder / options.stage / REPORT).read_text())
    found = {"budget": f"{steps} steps", **{name: report[name] for name in ("images", "core_seconds")}}
    found |= measure(options, folder / options.stage)
    kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def finished(options: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """Measures a checkpoint that is there, unless that has been done."""
    kept = options.output / f"{checkpoint.name}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    record = read_origin(checkpoint)
    if not record:
        raise ValueError(f"{checkpoint} must tell what made it, and has no provenance.json; name another one.")
    found = {"budget": checkpoint.name, **{name: whole(record, name) for name in ("images", "core_seconds")}}
    found |= measure(options, checkpoint)
    options.output.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def share_pools(options: argparse.Namespace, work_folder: Path) -> None:
    """Links what another budget has rendered and encoded, which is the same."""
    work_folder.mkdir(parents=True, exist_ok=True)
    for name in POOLS:
        target = work_folder / f"{name}.safetensors"
        for source in sorted(options.output.glob(f"*/{options.stage}_run/{name}.safetensors")):
            if not target.exists():
                os.link(source, target)


def measure(options: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """Errors by grid, and bars by name; of a bar that two grids can tell, what the first says."""
    if options.stage == "image":
        pipeline = StaleDiffusionPipeline.from_stable_diffusion(checkpoint)
    else:
        pipeline = load_pipeline(checkpoint, torch.float32, "cpu")
    pipeline.set_progress_bar_config(disable=True)
    errors, bars = {}, {}
    for rows, cols, frames in options.grids:
        found = measure_noise_errors(pipeline, held_out_prompts(options.scenes), (rows, cols), frames)
        levels = [figures["error"]["value"] for figures in found["levels"].values()]
        errors[f"{rows}x{cols}x{frames}"] = sum(levels) / len(levels)
        settings = EvaluationSettings(
            prompts=options.prompts, view_rows=rows, view_cols=cols, frames=frames, steps=options.sampling_steps,
            noise_scenes=0,
        )  # fmt: skip
        for bar in evaluate(pipeline, settings).figures["bars"]:
            if bar["value"] is not None and not math.isnan(bar["value"]):
                bars.setdefault(bar["title"], {"value": bar["value"], "least": bar["least"]})
    return {"errors": errors, "bars": bars}


def fit_all(points: list[dict[str, Any]], least: float) -> dict[str, Any]:
    """Power laws of the errors, and where each share of right answers would reach its bar, by name.

    Shares count as at least `least`, and as at most 1 minus that: all right of a few is not right for ever.
    """
    times = np.log([point["core_seconds"] for point in points])
    fits: dict[str, Any] = {"errors": {}, "bars": {}}
    for grid in points[0]["errors"]:
        slope, start = np.polyfit(times, np.log([point["errors"][grid] for point in points]), 1)
        fits["errors"][grid] = {"exponent": float(slope), "factor": float(np.exp(start))}
    for name, first in points[0]["bars"].items():
        if name not in SHARES or any(name not in point["bars"] for point in points):
            continue
        shares = np.clip([point["bars"][name]["value"] for point in points], least, 1 - least)
        slope, start = np.polyfit(times, np.log(shares / (1 - shares)), 1)
        wanted = math.log(first["least"] / (1 - first["least"]))
        far = (wanted - start) / slope if slope > 0 else math.inf
        hours = math.exp(far) / 3600 if far < LONGEST else None
        fits["bars"][name] = {"slope": float(slope), "start": float(start), "core_hours_to_bar": hours}
    return fits


def draw(points: list[dict[str, Any]], fits: dict[str, Any], path: Path) -> None:
    """Errors to the left, shares of right answers to the right, over core-hours."""
    hours = np.array([point["core_seconds"] for point in points]) / 3600
    longer = np.geomspace(hours[0], 10 * hours[-1], 50)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for grid, fit in fits["errors"].items():
        (line,) = left.loglog(hours, [point["errors"][grid] for point in points], "o", label=grid)
        law = fit["factor"] * (3600 * longer) ** fit["exponent"]
        left.loglog(longer, law, "--", color=line.get_color(), linewidth=1)
    left.set(xlabel="core-hours", ylabel="error on unseen scenes, of variance")
    left.legend()
    for name in points[0]["bars"]:
        if name in SHARES:
            right.semilogx(hours, [point["bars"].get(name, {}).get("value") for point in points], "o-", label=name)
    right.set(xlabel="core-hours", ylabel="share as told", ylim=(0, 1.03))
    right.legend(fontsize="small")
    for axes in (left, right):  # (of less than a decade, every tenth would be named)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def table(points: list[dict[str, Any]], fits: dict[str, Any]) -> str:
    """Markdown for docs/benchmarks.md."""
    grids, names = list(points[0]["errors"]), list(points[0]["bars"])
    header = ["budget", "images", "core-hours", *(f"error, {grid}" for grid in grids), *names]
    lines = []
    for each in points:
        figures = [f"{each['errors'][grid]:.4f}" for grid in grids]
        bars = [f"{each['bars'][name]['value']:.2f}" if name in each["bars"] else "" for name in names]
        lines.append([each["budget"], f"{each['images']:,}", f"{each['core_seconds'] / 3600:.2f}", *figures, *bars])
    laws = [f"error, {grid}: core-hours to the power of {fit['exponent']:.3f}" for grid, fit in fits["errors"].items()]
    for name, fit in fits["bars"].items():
        hours = fit["core_hours_to_bar"]
        laws.append(f"{name}: " + (f"bar at {hours:.3g} core-hours" if hours is not None else "out of sight"))
    return markdown_table(header, lines) + "\n\n" + "\n".join(laws)


if __name__ == "__main__":
    sys.exit(main())
