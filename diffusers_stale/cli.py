"""The `stale-diffusion` command: wiring only. What it says about options is here, what they mean is elsewhere.

Heavy imports are inside the commands, after their options have been checked. Exit codes: 0 done; 1 something that the
user can put right, told in one line on stderr; 2 a wrong way of calling; 130 interrupted.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffusers_stale.version import __version__


if TYPE_CHECKING:
    from diffusers_stale.light_field import LightField, LightFieldFile


CONTENTS = {
    "movie.lf.safetensors": "the 5D movie itself: every view of every frame, for programs",
    "movie.mp4": "the camera sways over the views while time runs; plays in a browser",
    "views.png": "all views of the middle frame, as the cameras stand",
    "time.png": "frames of the middle view, in order",
    "epi.png": "slices across the views: slanted lines are parallax",
}
"""What the files of a movie's folder are for."""

CALIBRATION_SEED, CALIBRATION_PROMPTS = 6_000_011, 48
"""Scenes of no training run, of which `calibrate` takes captions."""

LIGHT_FIELD_SUFFIX = ".lf.safetensors"


def check_natural(number: int) -> int:
    """`number` if generators take it as a seed; a usage error otherwise."""
    if not 0 <= number < 2**63:
        raise typer.BadParameter(f"expected a number from 0 to {2**63 - 1}, got {number}.")
    return number


Device = Annotated[str, typer.Option(help="Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.")]
DTypeName = Literal["float32", "float16", "bfloat16"]
Frames = Annotated[int, typer.Option(help="How many frames, 8 of which last a second.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the files; made if missing.")]
Seed = Annotated[int, typer.Option(callback=check_natural, help="Each number gives another movie.")]
Views = Annotated[str, typer.Option(metavar="ROWSxCOLS", help="The grid of cameras: how many down, how many across.")]
Baseline = Annotated[float, typer.Option(help="How far apart cameras stand: 2 doubles the parallax, 0 removes it.")]
Movie = Annotated[Path, typer.Argument(metavar="MOVIE", help="A .lf.safetensors file, or a folder with a movie.")]
Picture = Annotated[Path | None, typer.Option("--output", "-o", help="A .png, .mp4 or .gif file.")]
Focus = Annotated[
    float | None, typer.Option(help="What is sharp, or on the screen: disparity in pixels per view, above 0 is near.")
]
OneFrame = Annotated[int | None, typer.Option(help="Which frame a .png shows, by default the middle one.")]
Replace = Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")]

app = typer.Typer(
    help="Light-field movies from sentences: every frame from a whole grid of cameras.",
    epilog='Begin with: stale-diffusion generate "a brown horse gallops out of a red barn at sunset" --output movie',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns errors that a user can put right into one line and exit code 1, and an interrupt into 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\nInterrupted; no file was left half-written.", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        typer.echo(f"error: {one_line(error)}", err=True)
        raise typer.Exit(1) from None


def one_line(error: Exception) -> str:
    """What `error` says, without line breaks and numbers of errors."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch said so; on the CPU it has no class for it."""
    return type(error).__name__ == "OutOfMemoryError" or "not enough memory" in str(error)


def parse_pair(option: str, text: str) -> tuple[int, int]:
    """The numbers of "3x4". Raises a usage error naming `option` where `text` is anything else."""
    match = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", text.strip(), re.ASCII)
    if not match:
        raise typer.BadParameter(f"expected two numbers like 3x4, got {text!r}.", param_hint=option)
    return int(match[1]), int(match[2])


def parse_size(option: str, text: str) -> tuple[int, int]:
    """Height and width of "64" (both) or "48x64"."""
    return parse_pair(option, f"{text}x{text}" if text.strip().isdecimal() else text)


def tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stale-diffusion {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Tell the version and end.")
    ] = False,
) -> None:
    pass


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='A sentence, in quotes; "" for anything.')],
    output: Output = Path("movie"),
    checkpoint: Annotated[
        str, typer.Option(help="A checkpoint that ships (barnyard), a folder, or an owner/name of the Hub.")
    ] = "barnyard",
    steps: Annotated[int, typer.Option(help="Denoising steps: more take longer and look cleaner.")] = 20,
    seed: Seed = 0,
    views: Views = "3x3",
    frames: Frames = 8,
    size: Annotated[
        str | None,
        typer.Option(metavar="PIXELS", help="64, or HEIGHTxWIDTH. By default what the checkpoint was trained for."),
    ] = None,
    guidance: Annotated[float, typer.Option(help="How strictly to follow the sentence; 1: least, and fastest.")] = 3.0,
    baseline: Baseline = 1.0,
    loop: Annotated[bool, typer.Option("--loop", help="Let the last frame lead to the first; takes longer.")] = False,
    negative: Annotated[str | None, typer.Option(help="What should not be seen, in words.")] = None,
    device: Device = "auto",
    dtype: Annotated[DTypeName, typer.Option(help="Precision; the short ones save memory on a GPU.")] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Try even if memory will probably not suffice.")] = False,
) -> None:
    """Make a movie of a [bold]sentence[/bold], and write it to a folder."""
    view_rows, view_cols = parse_pair("--views", views)
    height, width = parse_size("--size", size) if size is not None else (None, None)
    with user_errors():
        from diffusers_stale.light_field.movie_folder import check_writable

        check_writable(output)
        import torch

        from diffusers_stale.hub import DTYPES, choose_device, load_pipeline

        silence_loading()
        pipeline = load_pipeline(checkpoint, DTYPES[dtype], choose_device(device))
        pipeline.set_progress_bar_config(desc="Denoising", unit="step", dynamic_ncols=True)
        movie = pipeline(
            prompt,
            negative_prompt=negative,
            view_rows=view_rows,
            view_cols=view_cols,
            num_frames=frames,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance,
            baseline=baseline,
            loop=loop,
            # Drawn on the CPU, so that a seed means the same movie on every device.
            generator=torch.Generator("cpu").manual_seed(seed),
            force=force,
        ).light_fields[0]
        write(movie, output)


@app.command()
def render(
    output: Output = Path("movie"),
    seed: Seed = 0,
    index: Annotated[
        int, typer.Option(callback=check_natural, help="Which scene of the barnyard that the seed stands for.")
    ] = 0,
    views: Views = "3x3",
    frames: Frames = 8,
    size: Annotated[str, typer.Option(metavar="PIXELS", help="64, or HEIGHTxWIDTH.")] = "64",
    baseline: Baseline = 1.0,
) -> None:
    """Draw a barnyard movie [bold]without a network[/bold]: what generated ones should look like, with true depth."""
    view_rows, view_cols = parse_pair("--views", views)
    height, width = parse_size("--size", size)
    with user_errors():
        from diffusers_stale.data.captions import caption_of
        from diffusers_stale.data.renderer import DEFAULT_FRAME_RATE, render_scene
        from diffusers_stale.data.scenes import sample_scene
        from diffusers_stale.light_field import CameraGrid, LightField
        from diffusers_stale.light_field.movie_folder import check_writable

        check_writable(output)
        scene = sample_scene(seed, index)
        caption = caption_of(scene, seed, index)
        typer.echo(f"Caption: {caption}")
        clip = render_scene(scene, view_rows, view_cols, frames, height, width, baseline)
        movie = LightField.from_float(
            clip.pixels,
            frame_rate=DEFAULT_FRAME_RATE,
            camera_grid=CameraGrid(view_rows=view_rows, view_cols=view_cols, baseline=baseline),
            disparity=clip.disparity,
            provenance={
                "made_by": f"diffusers_stale {__version__}",
                "rendered": True,
                "caption": caption,
                "seed": seed,
                "index": index,
            },
        )
        write(movie, output)


@app.command()
def info(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="A checkpoint (name, folder or Hub id), or a .lf.safetensors file.")
    ],
) -> None:
    """Tell what a [bold]checkpoint[/bold] or a [bold]movie file[/bold] is: its parts, sizes and origin."""
    with user_errors():
        if Path(what).is_file() or what.endswith(LIGHT_FIELD_SUFFIX):
            from diffusers_stale.light_field import LightField

            with LightField.open(what) as file:
                tell_movie(file)
            return
        from diffusers_stale.hub import describe_checkpoint, find_checkpoint

        folder = find_checkpoint(what)
        parts = describe_checkpoint(folder)
        tell("checkpoint", folder)
        for part in parts:
            values = f"{part.values:,} values, " if part.values else ""
            tell(part.name, f"{part.class_name}, {values}{part.bytes / 1e6:.1f} MB")
        tell("together", f"{sum(part.values for part in parts):,} values, {sum(p.bytes for p in parts) / 1e6:.1f} MB")
        card = folder / "README.md"
        tell("card", card if card.is_file() else "none")
        if card.is_file():
            typer.echo("\n" + without_header(card.read_text(encoding="utf-8")))


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


def list_projections(wanted: bool) -> None:
    if wanted:
        from diffusers_stale.light_field.picture_files import VIEWS_OF_A_MOVIE, describe

        typer.echo("\n".join(describe(VIEWS_OF_A_MOVIE)))
        raise typer.Exit


def list_displays(wanted: bool) -> None:
    if wanted:
        from diffusers_stale.light_field.displays import DISPLAYS
        from diffusers_stale.light_field.picture_files import describe, describe_quilts

        lines = [*describe(DISPLAYS), "", "Presets of a quilt:", *describe_quilts()]
        typer.echo("\n".join(lines))
        raise typer.Exit


@app.command()
def project(
    movie: Movie,
    to: Annotated[str, typer.Option("--to", help="What to make; --list describes each.")] = "refocus",
    output: Picture = None,
    focus: Focus = None,
    aperture: Annotated[
        float | None, typer.Option(help="Radius of the lens in distances between views; 0: all sharp.")
    ] = None,
    shape: Annotated[Literal["disc", "square"] | None, typer.Option(help="Of the lens.")] = None,
    densify: Annotated[
        int | None,
        typer.Option(help="Views for one step between cameras, against ghosts; 4 for refocusing, 1: cameras only."),
    ] = None,
    frame: OneFrame = None,
    force: Replace = False,
    describe: Annotated[
        bool, typer.Option("--list", callback=list_projections, is_eager=True, help="Describe each and end.")
    ] = False,
) -> None:
    """Make an [bold]ordinary picture or video[/bold] of a movie: refocused, seen by a swaying camera, as a sheet."""
    with user_errors():
        densify = 4 if densify is None and to == "refocus" else densify
        options = {"focus": focus, "aperture": aperture, "shape": shape, "densify": densify}
        write_one(movie, to, output, frame, force, options)


@app.command()
def display(
    movie: Movie,
    what: Annotated[str, typer.Option("--for", help="A kind of display; --list describes each.")] = "quilt",
    output: Picture = None,
    preset: Annotated[str | None, typer.Option(help="Of a quilt: which display, by default portrait.")] = None,
    tiles: Annotated[
        str | None, typer.Option(metavar="COLUMNSxROWS", help="Of a quilt: tiles, instead of the preset's.")
    ] = None,
    crop: Annotated[bool, typer.Option("--crop", help="Of a quilt: cut views to the shape of the screen.")] = False,
    baseline: Annotated[
        float | None, typer.Option(help="Of stereo: distance of the eyes in view steps, by default the widest.")
    ] = None,
    focus: Focus = None,
    frame: OneFrame = None,
    force: Replace = False,
    describe: Annotated[
        bool, typer.Option("--list", callback=list_displays, is_eager=True, help="Describe each and end.")
    ] = False,
) -> None:
    """Make a movie fit for a [bold]3D display[/bold]: quilt, stereo, anaglyph, wiggling picture."""
    columns, rows = parse_pair("--tiles", tiles) if tiles is not None else (None, None)
    with user_errors():
        options = {"preset": preset, "columns": columns, "rows": rows, "baseline": baseline, "focus": focus}
        write_one(movie, what, output, frame, force, {**options, "crop": crop or None})


def write_one(
    movie: Path, name: str, output: Path | None, frame: int | None, force: bool, options: dict[str, Any]
) -> None:
    """Writes one projection or display and names it."""
    from diffusers_stale.light_field.picture_files import write_picture

    path, notes = write_picture(movie, name, output, frame, force, **options)
    typer.echo("\n".join([*notes, f"Wrote {path}"]))


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


def parse_counts(option: str, text: str) -> tuple[int, ...]:
    """The numbers of "5,8,10", each once. Raises a usage error naming `option` where `text` is anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 5 and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"expected numbers like 5,8,10, got {text!r}.", param_hint=option)
    return tuple(sorted({int(part) for part in parts}))


def tell_movie(file: "LightFieldFile") -> None:
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


def tell(name: str, value: Any) -> None:
    typer.echo(f"{name.replace('_', ' '):<22} {value}")


def without_header(card: str) -> str:
    """A model card without the YAML block that the Hub reads."""
    return re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).strip()


def write(movie: "LightField", folder: Path) -> None:
    """Writes all files of `movie` and names them."""
    from diffusers_stale.light_field.movie_folder import write_movie_folder

    paths = write_movie_folder(movie, folder)
    typer.echo("Wrote")
    longest = max(len(str(path)) for path in paths)
    for path in paths:
        typer.echo(f"  {path!s:<{longest}}  {CONTENTS.get(path.name, '')}".rstrip())


def silence_loading() -> None:
    """No progress bars for the fraction of a second in which weights are read: denoising has the only one."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def main() -> None:
    app(prog_name="stale-diffusion")


if __name__ == "__main__":
    main()
