"""The command that measures checkpoints: a report of one, a table of several."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusers_stale.cli.app import app, silence_loading, user_errors
from diffusers_stale.cli.options import Device, Output, Seed, Views, parse_pair


if TYPE_CHECKING:
    from diffusers_stale.evaluation.report import EvaluationSettings


STRICT_EXIT = 2
PROVENANCE = "provenance.json"
"""Beside a shipped checkpoint: its stages' reports, which know the seeds of the scenes that it was trained on."""

LEARNING_STAGES = ("image", "movie")


@app.command()
def evaluate(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CHECKPOINT]", help="A checkpoint (name, folder or Hub id). With --compare, several."),
    ] = None,
    output: Output = Path("evaluation"),
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Put several side by side: folders of reports, or checkpoints, as in barnyard:steps=8:guidance=2.",
        ),
    ] = False,
    prompts: Annotated[int, typer.Option(help="How many held-out prompts.")] = 64,
    prompt_seed: Annotated[int | None, typer.Option(help="Another number, other prompts.")] = None,
    seed: Seed = 0,
    views: Views = "3x3",
    frames: Annotated[int, typer.Option(help="How many frames.")] = 8,
    steps: Annotated[int, typer.Option(help="Of the sampler.")] = 20,
    guidance: Annotated[float, typer.Option(help="How closely the prompts are followed.")] = 3.0,
    negative: Annotated[str | None, typer.Option(help="A negative prompt for all movies.")] = None,
    negative_baseline: Annotated[
        float | None, typer.Option(help="As of generate; by default the checkpoint's own.")
    ] = None,
    negative_frame_spacing: Annotated[float | None, typer.Option(help="Likewise.")] = None,
    negative_end: Annotated[float | None, typer.Option(help="Likewise.")] = None,
    batch: Annotated[int, typer.Option(help="Movies at a time.")] = 4,
    unusual: Annotated[int, typer.Option(help="Of the captions that the grammar never wrote; up to 60.")] = 60,
    noise_scenes: Annotated[int, typer.Option(help="Scenes for errors by noise level; 0 for none.")] = 8,
    training_seeds: Annotated[
        str | None, typer.Option(help="Of its scenes, with commas. By default what its provenance says, or 0.")
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="A folder with a CLIP model, for CLIP scores.")] = None,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(help="Of the processor.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 if a bar is missed.")] = False,
) -> None:
    """Measure how well a checkpoint does what sentences say, and write a [bold]report[/bold]."""
    rows, cols = parse_pair("--views", views)
    names = checkpoints or []
    if compare and len(names) < 2:
        raise typer.BadParameter(f"expected at least two, got {len(names)}.", param_hint="--compare")
    if not compare and len(names) != 1:
        raise typer.BadParameter(
            f"expected one checkpoint, got {len(names)}; or say --compare.", param_hint="CHECKPOINT"
        )
    with user_errors():
        from diffusers_stale.evaluation.prompts import PROMPT_SEED
        from diffusers_stale.evaluation.report import EvaluationSettings

        if threads is not None:
            set_threads(threads)
        settings = EvaluationSettings(
            prompts=prompts,
            prompt_seed=PROMPT_SEED if prompt_seed is None else prompt_seed,
            seed=seed,
            view_rows=rows,
            view_cols=cols,
            frames=frames,
            steps=steps,
            guidance=guidance,
            negative=negative,
            negative_baseline=negative_baseline,
            negative_frame_spacing=negative_frame_spacing,
            negative_end=negative_end,
            batch=batch,
            unusual=unusual,
            noise_scenes=noise_scenes,
        )
        seeds = parse_seeds(training_seeds)
        silence_loading()
        if compare:
            compare_all(names, settings, output, device, seeds, clip)
            return
        figures = evaluate_one(names[0], settings, output, device, seeds, clip)
    for bar in figures["bars"]:
        typer.echo(f"{'met   ' if bar['met'] else 'missed'} {bar['title']}: {bar['value']} (at least {bar['least']})")
    typer.echo(f"Wrote {output / 'report.html'}, report.md, report.json")
    if strict and not all(bar["met"] for bar in figures["bars"]):
        raise typer.Exit(STRICT_EXIT)


def evaluate_one(
    checkpoint: str,
    settings: "EvaluationSettings",
    output: Path,
    device: str,
    seeds: tuple[int, ...] | None,
    clip: Path | None,
) -> dict[str, Any]:
    """Writes the report of a checkpoint; returns its figures."""
    from dataclasses import replace

    from diffusers_stale.evaluation.clip_score import ClipScore
    from diffusers_stale.evaluation.report import evaluate as run
    from diffusers_stale.evaluation.report_files import write_report
    from diffusers_stale.hub import choose_device, load_pipeline

    # Before hours of work, not after them.
    output.mkdir(parents=True, exist_ok=True)
    score = ClipScore(clip) if clip is not None else None
    pipeline = load_pipeline(checkpoint, device=choose_device(device))
    pipeline.set_progress_bar_config(disable=True)
    settings = replace(settings, training_seeds=seeds or seeds_of(checkpoint))
    evaluation = run(pipeline, settings, clip=score, progress=True)
    write_report(evaluation, output, checkpoint)
    return {"title": checkpoint} | evaluation.figures


def compare_all(
    candidates: list[str],
    settings: "EvaluationSettings",
    output: Path,
    device: str,
    seeds: tuple[int, ...] | None,
    clip: Path | None,
) -> None:
    """Writes OUTPUT/comparison.md of reports that are there, and of checkpoints that are evaluated for it."""
    from diffusers_stale.evaluation.comparison import compare, is_report, parse_candidate, read_report

    parsed = {text: None if is_report(Path(text)) else parse_candidate(text, settings) for text in candidates}
    reports = []
    for number, (text, candidate) in enumerate(parsed.items()):
        if candidate is None:
            reports.append((Path(text).name or text, read_report(Path(text))))
            continue
        folder = output / f"{number}_{Path(candidate[0]).name}"
        evaluate_one(*candidate, folder, device, seeds, clip)
        reports.append((text, read_report(folder)))
    table = compare(reports)
    output.mkdir(parents=True, exist_ok=True)
    (output / "comparison.md").write_text(table, encoding="utf-8")
    typer.echo(table)
    typer.echo(f"Wrote {output / 'comparison.md'}")


def seeds_of(checkpoint: str) -> tuple[int, ...]:
    """The seeds of the scenes that a checkpoint, and those that it was started from, were trained on; else 0."""
    from diffusers_stale.hub import find_checkpoint

    path = find_checkpoint(checkpoint) / PROVENANCE
    return tuple(sorted(stage_seeds(json.loads(path.read_text(encoding="utf-8"))))) if path.is_file() else (0,)


def stage_seeds(stages: dict[str, Any]) -> set[int]:
    """Of the stages that learn from scenes and sentences, and of what they were started from."""
    own = {stages[name]["seed"] for name in LEARNING_STAGES if name in stages}
    earlier = [stage["started_from"] for stage in stages.values() if "started_from" in stage]
    return own.union(*map(stage_seeds, earlier)) or {0}


def parse_seeds(text: str | None) -> tuple[int, ...] | None:
    """The numbers of "0,2"; None of None."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"expected numbers like 0,2, got {text!r}.", param_hint="--training-seeds")
    return tuple(int(part) for part in parts)


def set_threads(count: int) -> None:
    """Lets torch use `count` threads."""
    import torch

    torch.set_num_threads(count)
