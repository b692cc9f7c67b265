"""`project`, `display`, `view`: from movies to pictures, videos, what 3D displays take, and a page to look around."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffusers_stale.cli.app import app, one_line, user_errors
from diffusers_stale.cli.options import Focus, Movie, OneFrame, Replace, parse_pair


Movies = Annotated[
    list[Path], typer.Argument(metavar="MOVIE...", help="Files *.lf.safetensors, or folders with a movie.")
]
Pictures = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="A .png, .webp, .mp4, .webm or .gif file; of several movies, a folder."),
]
Suffix = Annotated[str | None, typer.Option(help="Of several movies: kind of the files, as .webp.")]
Zoom = Annotated[int | None, typer.Option(help="How many times as large; by default until it can be looked at.")]
Smooth = Annotated[bool, typer.Option("--smooth", help="Enlarge smoothly; otherwise pixels stay squares.")]
CodecName = Annotated[
    Literal["h264", "hevc", "vp9", "av1"] | None,
    typer.Option(help="Of a video; by default what its file usually has."),
]
Every = Annotated[int, typer.Option(help="How many frames become one.")]
Shutter = Annotated[float, typer.Option(help="Part of the time until the next frame that is exposed: 1 is all.")]
Widest = Annotated[
    float | None, typer.Option(help="Largest shift between neighbouring views that is looked for, in pixels.")
]


def list_projections(wanted: bool) -> None:
    if wanted:
        from diffusers_stale.light_field.picture_files import describe
        from diffusers_stale.light_field.projections import PROJECTIONS

        typer.echo("\n".join(describe(PROJECTIONS)))
        raise typer.Exit


def list_displays(wanted: bool) -> None:
    if wanted:
        from diffusers_stale.light_field.displays import DISPLAYS
        from diffusers_stale.light_field.picture_files import describe, describe_quilts
        from diffusers_stale.light_field.video_row import write_video_row

        lines = [*describe({**DISPLAYS, "row": write_video_row}), "", "Presets of a quilt:", *describe_quilts()]
        typer.echo("\n".join(lines))
        raise typer.Exit


@app.command()
def project(
    movies: Movies,
    to: Annotated[str, typer.Option("--to", help="What to make; --list describes each.")] = "refocus",
    output: Pictures = None,
    focus: Focus = None,
    aperture: Annotated[
        float | None, typer.Option(help="Radius of the lens in distances between views; 0: all sharp.")
    ] = None,
    shape: Annotated[Literal["disc", "square"] | None, typer.Option(help="Of the lens.")] = None,
    densify: Annotated[
        int | None,
        typer.Option(help="Views for one step between cameras, against ghosts; 4 for refocusing, 1: cameras only."),
    ] = None,
    prefilter: Annotated[
        bool, typer.Option("--prefilter", help="Of refocusing: blur against ghosts, faster than --densify.")
    ] = False,
    radius: Annotated[
        float | None, typer.Option(help="Of orbit and dolly: how much of the grid, in views from its middle.")
    ] = None,
    axis: Annotated[
        Literal["views", "view_rows", "view_cols", "frames", "height", "width"] | None,
        typer.Option(help="Of mean and maximum: what is taken out."),
    ] = None,
    view: Annotated[str | None, typer.Option(metavar="ROWxCOL", help="Of a single view: which, from 0x0.")] = None,
    max_disparity: Widest = None,
    every: Every = 1,
    shutter: Shutter = 1.0,
    frame: OneFrame = None,
    zoom: Zoom = None,
    smooth: Smooth = False,
    codec: CodecName = None,
    suffix: Suffix = None,
    force: Replace = False,
    describe: Annotated[
        bool, typer.Option("--list", callback=list_projections, is_eager=True, help="Describe each and end.")
    ] = False,
) -> None:
    """Make [bold]ordinary pictures or videos[/bold] of movies: refocused, depth, a moving camera, sheets."""
    row, col = parse_pair("--view", view) if view is not None else (None, None)
    with user_errors():
        densify = 4 if densify is None and to == "refocus" and not prefilter else densify
        options = {
            "focus": focus,
            "aperture": aperture,
            "shape": shape,
            "densify": densify,
            "prefilter": prefilter or None,
            "radius": radius,
            "axis": axis,
            "row": row,
            "col": col,
            "max_disparity": max_disparity,
        }
        look = {"zoom": zoom, "smooth": smooth, "codec": codec, "every": every, "shutter": shutter, "force": force}
        write_all(movies, to, output, frame, suffix, {**options, **look})


@app.command()
def display(
    movies: Movies,
    what: Annotated[str, typer.Option("--for", help="A kind of display; --list describes each.")] = "quilt",
    output: Pictures = None,
    preset: Annotated[str | None, typer.Option(help="Of a quilt: which display, by default portrait.")] = None,
    tiles: Annotated[
        str | None, typer.Option(metavar="COLUMNSxROWS", help="Of a quilt: tiles, instead of the preset's.")
    ] = None,
    crop: Annotated[bool, typer.Option("--crop", help="Of a quilt: cut views to the shape of the screen.")] = False,
    baseline: Annotated[
        float | None, typer.Option(help="Of stereo: distance of the eyes in view steps, by default the widest.")
    ] = None,
    views: Annotated[
        int | None, typer.Option(help="Of lenticular, wiggle and row: how many views from left to right.")
    ] = None,
    pitch: Annotated[float | None, typer.Option(help="Of lenticular: width of a lens in pixels of the panel.")] = None,
    slant: Annotated[float | None, typer.Option(help="Of lenticular: pixels to the right per row.")] = None,
    panel_width: Annotated[int | None, typer.Option(help="Of lenticular: width of the panel in pixels.")] = None,
    subpixels: Annotated[
        bool, typer.Option("--subpixels", help="Of lenticular: red, green and blue stand side by side (screens).")
    ] = False,
    focus: Focus = None,
    max_disparity: Widest = None,
    every: Every = 1,
    shutter: Shutter = 1.0,
    frame: OneFrame = None,
    zoom: Zoom = None,
    smooth: Smooth = False,
    codec: CodecName = None,
    suffix: Suffix = None,
    force: Replace = False,
    describe: Annotated[
        bool, typer.Option("--list", callback=list_displays, is_eager=True, help="Describe each and end.")
    ] = False,
) -> None:
    """Make movies fit for a [bold]3D display[/bold]: quilt, stereo, anaglyph, wiggling picture, lenticular, row."""
    columns, rows = parse_pair("--tiles", tiles) if tiles is not None else (None, None)
    with user_errors():
        options = {
            "preset": preset,
            "columns": columns,
            "rows": rows,
            "crop": crop or None,
            "baseline": baseline,
            "views": views,
            "pitch": pitch,
            "slant": slant,
            "panel_width": panel_width,
            "subpixels": subpixels or None,
            "focus": focus,
            "max_disparity": max_disparity,
        }
        look = {"zoom": zoom, "smooth": smooth, "codec": codec, "every": every, "shutter": shutter, "force": force}
        if what == "row":
            write_rows(movies, output, {**options, **look, "frame": frame, "suffix": suffix})
        else:
            write_all(movies, what, output, frame, suffix, {**options, **look})


@app.command()
def view(
    movie: Movie,
    output: Annotated[Path, typer.Option("--output", "-o", help="An .html file.")] = Path("viewer.html"),
    force: Replace = False,
) -> None:
    """Make a [bold]page to look around in[/bold]: one HTML file, for any browser or phone, that needs no network."""
    with user_errors():
        from diffusers_stale.light_field.viewer import write_viewer

        typer.echo(f"Wrote {write_viewer(movie, output, force)}")


def write_all(
    movies: Sequence[Path],
    name: str,
    output: Path | None,
    frame: int | None,
    suffix: str | None,
    options: dict[str, Any],
) -> None:
    """Writes one projection or display of each movie and names it; of many, one that fails does not stop the rest."""
    from diffusers_stale.light_field.picture_files import paths_of_many, write_picture

    if len(movies) == 1 and suffix is None:
        tell_written(*write_picture(movies[0], name, output, frame, **options))
        return
    failed, paths = 0, paths_of_many(movies, name, output or Path(), frame, suffix, **options)
    for movie, path in zip(movies, paths, strict=True):
        try:
            tell_written(*write_picture(movie, name, path, frame, **options))
        except (ValueError, OSError) as error:
            typer.echo(f"error: {movie}: {one_line(error)}", err=True)
            failed += 1
    if failed:
        typer.echo(f"Could not do {failed} of {len(movies)} movies; what is wrong with each is said above.", err=True)
        raise typer.Exit(1)


def tell_written(path: Path, notes: Sequence[str]) -> None:
    typer.echo("\n".join([*notes, f"Wrote {path}"]))


def write_rows(movies: Sequence[Path], output: Path | None, options: dict[str, Any]) -> None:
    """Writes the row of videos of one movie and names its ends."""
    from diffusers_stale.light_field.video_row import write_row_of

    paths = write_row_of(movies, output, options)
    typer.echo(f"Wrote {paths[0]} to {paths[-1].name}")
