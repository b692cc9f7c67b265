"""A movie as one web page that needs no network: move the head, turn focus and aperture, play time.

The page is `viewer_page.html` with its style and scripts beside it; `docs/viewer.md` says what it can do and how other
pages talk to it. What it embeds is made by `viewer_data.py`.
"""

import html
import json
from importlib import resources
from pathlib import Path

from diffusers_stale.light_field.atomic import atomic_path
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.picture_files import check_place, opened
from diffusers_stale.light_field.viewer_data import check_fits, movie_data


PAGE = "viewer_page.html"

PARTS = {
    "/*STYLE*/": ("viewer_page.css",),
    "/*SCRIPTS*/": ("viewer_canvas.js", "viewer_webgl.js", "viewer_page.js"),
}
"""What stands in the page for each of its other files."""

SUFFIXES = (".html", ".htm")

TITLE = "Light-field movie"
"""Of a movie that says nothing of its own."""


def viewer_html(light_field: LightField, title: str | None = None, embed: bool = False) -> str:
    """A whole web page in which a person looks at `light_field`. It asks the network for nothing.

    Args:
        light_field: the movie. Where it knows its disparity, views between cameras are warped by it; else by an
            estimate.
        title: what stands above the picture; by default the movie's own prompt or caption.
        embed: for a frame inside another page, such as an iframe's `srcdoc`: no title, no margins, no background.

    Returns:
        HTML. Every pixel of the movie is in it, losslessly.

    Raises:
        ValueError: for a movie of more than `viewer_data.MAX_PIXELS`, whose views beside each other are larger than
            `MAX_SIDE`, or of more than `MAX_BYTES` when encoded; the message says which part would fit.
    """
    said = _title(light_field) if title is None else title
    data = json.dumps({**movie_data(light_field, said), "embed": embed})
    page = _read(PAGE)
    for mark, names in PARTS.items():
        page = page.replace(mark, "\n".join(map(_read, names)))
    # Nothing in the data can end its element: no "<" is left in it.
    return page.replace("__TITLE__", html.escape(said)).replace("__MOVIE__", data.replace("<", "\\u003c"))


def write_viewer(light_field_or_path: LightField | str | Path, path: str | Path, force: bool = False) -> Path:
    """Writes `viewer_html` of a movie to a file, whole or not at all.

    Args:
        light_field_or_path: the movie, what `LightField.open` takes, or a folder with `movie.lf.safetensors`.
        path: an `.html` file.
        force: replace the file if it is there.

    Returns:
        The path that was written.

    Raises:
        FileExistsError: if the file is there.
        FileNotFoundError: if there is no movie, or no folder for the page.
        OSError: where the page cannot be written; nothing is left behind then.
        ValueError: for another suffix, a movie's file that is not sound, and a movie that is too large for a page.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise ValueError(f"A viewer must be written to {' or '.join(SUFFIXES)}, got {target.name!r}; rename it.")
    check_place(target, force)
    page = viewer_html(_movie(light_field_or_path))
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _movie(light_field_or_path: LightField | str | Path) -> LightField:
    if isinstance(light_field_or_path, LightField):
        return light_field_or_path
    with opened(light_field_or_path) as file:
        check_fits(file.sizes)
        return file.read()


def _title(light_field: LightField) -> str:
    said = (light_field.provenance.get(name) for name in ("prompt", "caption"))
    return next((text for text in said if isinstance(text, str) and text.strip()), TITLE)


def _read(name: str) -> str:
    return resources.files("diffusers_stale.light_field").joinpath(name).read_text(encoding="utf-8")
