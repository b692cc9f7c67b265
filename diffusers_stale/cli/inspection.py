"""`info`, `calibrate` and `scheduler-plot`: what concerns checkpoints and their parts."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusers_stale.cli.app import app, silence_loading, tell, user_errors
from diffusers_stale.cli.options import (
    Device,
    DTypeName,
    Frames,
    Seed,
    Views,
    parse_counts,
    parse_pair,
    parse_size,
)


if TYPE_CHECKING:
    from diffusers_stale.light_field.reader import LightFieldReader


CALIBRATION_SEED, CALIBRATION_PROMPTS = 6_000_011, 48
"""Scenes of no training run, of which `calibrate` takes captions."""


LIGHT_FIELD_SUFFIX = ".lf.safetensors"


@app.command()
def info(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="A checkpoint (name, folder or Hub id), a .lf.safetensors file, or a folder with a movie.",
        ),
    ],
) -> None:
    """Tell what a [bold]checkpoint[/bold] or a [bold]movie file[/bold] is: its parts, sizes and origin."""
    with user_errors():
        if Path(what).is_file() or what.endswith(LIGHT_FIELD_SUFFIX) or holds_movie(Path(what)):
            from diffusers_stale.light_field.picture_files import opened

            with opened(what) as file:
                tell_movie(file)
            return
        from diffusers_stale.checkpoint_origin import EXPORTED, check_no_run, origin_lines, read_origin, read_run
        from diffusers_stale.hub import find_checkpoint

        folder = find_checkpoint(what)
        if (origin := read_run(folder)) is not None:
            tell_run(folder, origin)
            return
        check_no_run(folder)
        tell("checkpoint", folder)
        reports = read_origin(folder)
        # What stages before the last one leave is no pipeline of ours, and has a report all the same.
        if "movie" in reports or not (folder / EXPORTED).is_file():
            tell_parts(folder)
        for stage, report in reports.items():
            typer.echo(f"stage {stage}")
            for name, value in origin_lines(report):
                tell(f"  {name}", value)
        card = folder / "README.md"
        tell("card", card if card.is_file() else "none")
        if card.is_file():
            typer.echo("\n" + without_header(card.read_text(encoding="utf-8")))


def tell_parts(folder: Path) -> None:
    """The parts of the pipeline in `folder` and their sizes."""
    from diffusers_stale.hub import describe_checkpoint

    parts = describe_checkpoint(folder)
    for part in parts:
        values = f"{part.values:,} values, " if part.values else ""
        tell(part.name, f"{part.class_name}, {values}{part.bytes / 1e6:.1f} MB")
    tell("together", f"{sum(part.values for part in parts):,} values, {sum(p.bytes for p in parts) / 1e6:.1f} MB")


def tell_run(folder: Path, origin: dict[str, Any]) -> None:
    """What a stage that is being trained, or was, left in `folder` at its start."""
    from diffusers_stale.checkpoint_origin import provenance_lines, settings_line

    saved = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    tell("run", folder)
    tell("saved", ", ".join(saved) or "nothing yet")
    for name, value in [*provenance_lines(origin), settings_line(origin.get("config", {}))]:
        tell(name, value)


@app.command()
def calibrate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint (name, folder or Hub id) of ours.")
    ] = "barnyard",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for scheduler_config.json. By default CHECKPOINT/scheduler, if it is a folder.",
        ),
    ] = None,
    steps: Annotated[str, typer.Option(help="Numbers of steps to calibrate for, with commas.")] = "5,8,10,12,15,20",
    guidance: Annotated[float, typer.Option(help="What movies will be generated with.")] = 3.0,
    prompts: Annotated[
        Path | None, typer.Option(help="A text file, one sentence a line. By default sentences about barnyards.")
    ] = None,
    views: Views = "1x1",
    frames: Frames = 1,
    size: Annotated[str | None, typer.Option(metavar="PIXELS", help="64, or HEIGHTxWIDTH.")] = None,
    noises: Annotated[int, typer.Option(help="How many noises to fit on; a third of them more are held out.")] = 30,
    teacher_steps: Annotated[int, typer.Option(help="Of the trajectories that are retraced.")] = 128,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Annotated[DTypeName, typer.Option(help="Precision of the network.")] = "float32",
) -> None:
    """Fit a checkpoint's [bold]scheduler[/bold] to its network, so that fewer steps are needed."""
    view_rows, view_cols = parse_pair("--views", views)
    height, width = parse_size("--size", size) if size is not None else (None, None)
    counts = parse_counts("--steps", steps)
    with user_errors():
        from diffusers_stale.hub import DTYPES, choose_device, find_checkpoint, load_pipeline
        from diffusers_stale.light_field.movie_folder import check_writable
        from diffusers_stale.manifest import MANIFEST, write_manifest
        from diffusers_stale.pipeline_calibration import CalibrationSettings, calibrate_pipeline

        if output is None and not Path(checkpoint).is_dir():
            raise ValueError(f"--output must be given for {checkpoint!r}, which is no folder of yours; name one.")
        folder = output or find_checkpoint(checkpoint) / "scheduler"
        check_writable(folder)
        sentences = calibration_prompts(prompts)
        settings = CalibrationSettings(
            num_inference_steps=counts,
            guidance_scale=guidance,
            view_rows=view_rows,
            view_cols=view_cols,
            num_frames=frames,
            height=height,
            width=width,
            noises=noises,
            held_out=max(noises // 3, 1),
            teacher_steps=teacher_steps,
            seed=seed,
        )
        silence_loading()
        pipeline = load_pipeline(checkpoint, DTYPES[dtype], choose_device(device))
        typer.echo(f"This takes {settings.evaluations:,} evaluations of the network, a sample each.")
        found = calibrate_pipeline(pipeline, sentences, settings)
        typer.echo("steps  error calibrated  uncalibrated")
        for count, entry in found.entries.items():
            typer.echo(f"{count:5}  {entry.error:16.4f}  {entry.uncalibrated_error:12.4f}")
        pipeline.scheduler.save_pretrained(folder)
        if (folder.parent / MANIFEST).is_file():
            write_manifest(folder.parent)
        typer.echo(f"Wrote {folder / 'scheduler_config.json'}")


@app.command()
def scheduler_plot(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A scheduler_config.json, or a folder with one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture, a .png file.")] = Path("scheduler.png"),
    steps: Annotated[int, typer.Option(help="Number of steps.")] = 10,
) -> None:
    """Plot a scheduler's [bold]steps and weights[/bold] beside those of others."""
    with user_errors():
        from diffusers_stale.evaluation.scheduler_plot import load_scheduler, plot_scheduler

        plot_scheduler(load_scheduler(config), output, steps)
        typer.echo(f"Wrote {output}")


def calibration_prompts(path: Path | None) -> list[str]:
    """The sentences in a text file, or some that no training has seen."""
    if path is not None:
        sentences = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not sentences:
            raise ValueError(f"{path} must hold a sentence a line, got none; write some.")
        return sentences
    from diffusers_stale.data.captions import caption_of
    from diffusers_stale.data.scenes import sample_scene

    return [caption_of(sample_scene(CALIBRATION_SEED, i), CALIBRATION_SEED, i) for i in range(CALIBRATION_PROMPTS)]


def holds_movie(folder: Path) -> bool:
    """Whether a folder is what `generate` writes, or a compressed light field."""
    from diffusers_stale.light_field.compressed import HEADER
    from diffusers_stale.light_field.movie_folder import LIGHT_FIELD

    return (folder / LIGHT_FIELD).is_file() or (folder / HEADER).is_file()


def tell_movie(file: "LightFieldReader") -> None:
    sizes, grid = file.sizes, file.camera_grid
    tell("light field", file.path)
    tell("views", f"{grid.view_rows} down, {grid.view_cols} across, {grid.spacing:g} steps apart")
    tell("baseline", f"{grid.baseline:g}")
    seconds = sizes["frames"] / file.frame_rate
    tell("frames", f"{sizes['frames']} at {file.frame_rate:g} a second, {seconds:.3g} s")
    tell("size", f"{sizes['height']} high, {sizes['width']} wide")
    tell("disparity", "of every pixel" if file.has_disparity else "not known")
    for key, value in file.provenance.items():
        tell(key, value)


def without_header(card: str) -> str:
    """A model card without the YAML block that the Hub reads."""
    return re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).strip()
