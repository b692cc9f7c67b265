"""`generate` and `render`: from a sentence, or from a scene, to a folder with a movie."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusers_stale.cli.app import app, silence_loading, user_errors
from diffusers_stale.cli.options import (
    Baseline,
    Device,
    DTypeName,
    Frames,
    Output,
    Seed,
    Views,
    check_natural,
    parse_pair,
    parse_size,
)
from diffusers_stale.version import __version__


if TYPE_CHECKING:
    from diffusers_stale.light_field import LightField


CONTENTS = {
    "movie.lf.safetensors": "the 5D movie itself: every view of every frame, for programs",
    "movie.mp4": "the camera sways over the views while time runs; plays in a browser",
    "views.png": "all views of the middle frame, as the cameras stand",
    "time.png": "frames of the middle view, in order",
    "epi.png": "slices across the views: slanted lines are parallax",
}
"""What the files of a movie's folder are for."""


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
    frame_spacing: Annotated[float, typer.Option(help="Time from frame to frame; 0.5 for slow motion.")] = 1.0,
    negative_baseline: Annotated[
        float | None,
        typer.Option(help="Factor on --baseline in what guidance leads away from: 0 strengthens depth, 1 does not."),
    ] = None,
    negative_frame_spacing: Annotated[
        float | None, typer.Option(help="The same on --frame-spacing: below 1, it strengthens motion.")
    ] = None,
    negative_end: Annotated[
        float | None, typer.Option(help="Share of the noise levels after which those two end; 1 for never.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to begin with, as the middle camera sees it.")] = None,
    video: Annotated[
        Path | None, typer.Option(help="A video of the middle camera, of which the others are to be found.")
    ] = None,
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

        shown = read_shown(image, video, frames)
        silence_loading()
        pipeline = load_pipeline(checkpoint, DTYPES[dtype], choose_device(device))
        pipeline.set_progress_bar_config(desc="Denoising", unit="step", dynamic_ncols=True)
        movie = pipeline(
            prompt,
            negative_prompt=negative,
            negative_baseline=negative_baseline,
            negative_frame_spacing=negative_frame_spacing,
            negative_end=negative_end,
            frame_spacing=frame_spacing,
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
            **shown,
        ).light_fields[0]
        write(movie, output)


def read_shown(image: Path | None, video: Path | None, frames: int) -> dict[str, Any]:
    """What the pipeline is to go on from, read from its file."""
    from diffusers_stale.data.renderer import DEFAULT_FRAME_RATE
    from diffusers_stale.known_pictures import read_image_file, read_video_file

    shown = {}
    if image is not None:
        shown["image"] = read_image_file(image)
    if video is not None:
        shown["video"] = read_video_file(video, frames, DEFAULT_FRAME_RATE)
    return shown


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


def write(movie: "LightField", folder: Path) -> None:
    """Writes all files of `movie` and names them."""
    from diffusers_stale.light_field.movie_folder import write_movie_folder

    paths = write_movie_folder(movie, folder)
    typer.echo("Wrote")
    longest = max(len(str(path)) for path in paths)
    for path in paths:
        typer.echo(f"  {path!s:<{longest}}  {CONTENTS.get(path.name, '')}".rstrip())
