"""`project`, `display`, `view`: from a movie to pictures, videos, what 3D displays take, and a page to look around."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffusers_stale.cli.app import app, user_errors
from diffusers_stale.cli.options import (
    Focus,
    Movie,
    OneFrame,
    Picture,
    Replace,
    parse_pair,
)


if TYPE_CHECKING:
    pass


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


def write_one(
    movie: Path, name: str, output: Path | None, frame: int | None, force: bool, options: dict[str, Any]
) -> None:
    """Writes one projection or display and names it."""
    from diffusers_stale.light_field.picture_files import write_picture

    path, notes = write_picture(movie, name, output, frame, force, **options)
    typer.echo("\n".join([*notes, f"Wrote {path}"]))
