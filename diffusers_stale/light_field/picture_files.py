"""One projection or display of a movie's file, written to a picture or video whose name players understand.

Reads a frame at a time wherever the result needs no more, so that long movies of many views fit into memory.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffusers_stale.axes import middle_index
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.displays import DISPLAYS, HINTS
from diffusers_stale.light_field.export import write_gif, write_mp4, write_png
from diffusers_stale.light_field.file import LightFieldFile
from diffusers_stale.light_field.movie_folder import LIGHT_FIELD
from diffusers_stale.light_field.projections import PROJECTIONS, swaying_frame_rate
from diffusers_stale.light_field.quilt import (
    QUILTS,
    cropped_size,
    quilt_hint,
    quilt_step,
    quilt_tiles,
)
from diffusers_stale.light_field.refocus import refocus


VIEWS_OF_A_MOVIE: dict[str, Callable[..., torch.Tensor]] = {**PROJECTIONS, "refocus": refocus}
"""Every way to look at a movie on an ordinary screen by its name."""

STILLS = {"views", "time", "epi"}
"""What gives a still picture of the whole movie or of one frame."""

NEEDS_ALL_FRAMES = {"time", "sway", "wiggle"}
"""What cannot be made from one frame after the other."""

MOVING_SUFFIXES = {".mp4": write_mp4, ".gif": write_gif}


def describe(choices: dict[str, Callable[..., torch.Tensor]]) -> list[str]:
    """One line for every choice: its name and the first sentence that its documentation says."""
    longest = max(map(len, choices))
    return [f"{name:<{longest}}  {(inspect.getdoc(entry) or '').splitlines()[0]}" for name, entry in choices.items()]


def describe_quilts() -> list[str]:
    """One line for every preset of a quilt."""
    longest = max(map(len, QUILTS))
    return [f"{name:<{longest}}  {item.device}: {item.columns}x{item.rows} views" for name, item in QUILTS.items()]


def write_picture(
    movie: str | Path,
    name: str,
    output: Path | None = None,
    frame: int | None = None,
    force: bool = False,
    **options: Any,
) -> tuple[Path, list[str]]:
    """Writes the projection or display `name` of a light-field file.

    Args:
        movie: a `*.lf.safetensors` file, or a folder with `movie.lf.safetensors`.
        name: of `VIEWS_OF_A_MOVIE` or `DISPLAYS`.
        output: a `.png` (one frame), `.mp4` or `.gif` file; what players look for is added to its name if it is not
            there. By default `NAME.png` for sheets, `wiggle.gif`, and `NAME.mp4`.
        frame: which frame a `.png` shows, by default the middle one.
        force: replace the file if it is there.
        options: arguments of the projection or display; those that are None are left to it.

    Returns:
        The path that was written, and sentences about it.

    Raises:
        FileExistsError: if the file is there.
        OSError: where it cannot be written; nothing is left behind then.
        ValueError: for what does not go together, and all that projection and file refuse.
    """
    function = _choice(name)
    given = _check_options(name, function, {key: value for key, value in options.items() if value is not None})
    path = _check_suffix(name, output, frame)
    source = Path(movie)
    with LightField.open(source / LIGHT_FIELD if source.is_dir() else source) as file:
        path = _hinted(path, _hint_of(name, given, file.sizes))
        check_place(path, force)
        notes = _quilt_notes(file, given) if name == "quilt" else []
        quiet = {"report": False} if name == "quilt" else {}
        frame_index = middle_index(file.sizes["frames"]) if frame is None else frame
        if path.suffix.lower() == ".png":
            part = file.read() if name in NEEDS_ALL_FRAMES else file.read(frames=frame_index)
            picture = function(part, **given, **quiet)
            write_png(path, picture if picture.ndim == 3 else picture[:, 0])
        else:
            pictures, frame_rate = _moving(file, name, function, {**given, **quiet})
            # A side that is odd would be padded, and tiles and halves would no longer divide it.
            zoom = 2 if pictures.shape[-1] % 2 or pictures.shape[-2] % 2 else None
            MOVING_SUFFIXES[path.suffix.lower()](path, pictures, frame_rate, zoom)
    return path, notes


def _choice(name: str) -> Callable[..., torch.Tensor]:
    choices = {**VIEWS_OF_A_MOVIE, **DISPLAYS}
    if name not in choices:
        raise ValueError(f"Expected one of {', '.join(choices)}, got {name!r}; `--list` describes each.")
    return choices[name]


def _check_options(name: str, function: Callable[..., torch.Tensor], options: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(function).parameters
    strange = [key for key in options if key not in known]
    if strange:
        raise ValueError(f"Expected options of {name}, got `{strange[0]}`, which does nothing for it; leave it out.")
    return options


def _check_suffix(name: str, output: Path | None, frame: int | None) -> Path:
    usual = ".png" if name in STILLS else ".gif" if name == "wiggle" else ".mp4"
    path = Path(f"{name}{usual}") if output is None else Path(output)
    suffix = path.suffix.lower()
    able = set() if name in STILLS else set(MOVING_SUFFIXES)
    if name in STILLS or name not in NEEDS_ALL_FRAMES:
        able.add(".png")
    if suffix not in able:
        raise ValueError(f"{name} must be written to {' or '.join(sorted(able))}, got {path.name!r}; rename it.")
    if frame is not None and (suffix != ".png" or name in NEEDS_ALL_FRAMES):
        raise ValueError(f"`frame` is for a .png of one frame, got {frame} for all in {path.name}; leave it out.")
    return path


def check_place(path: Path, force: bool) -> None:
    """Raises `OSError` of a fitting class unless a file can be made at `path`, or replaced there with `force`."""
    if path.is_dir():
        raise IsADirectoryError(f"Expected a file or nothing at {path}, got a folder; choose another name.")
    if path.exists() and not force:
        raise FileExistsError(f"{path} is there already; choose another name, or replace it with --force.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.absolute().parent}; make it, or choose another place.")


def _hint_of(name: str, options: dict[str, Any], sizes: dict[str, int]) -> str:
    if name != "quilt":
        return HINTS.get(name, "")
    preset = options.get("preset", "portrait")
    quilt_tiles(preset, options.get("columns"), options.get("rows"))
    height, width = sizes["height"], sizes["width"]
    if options.get("crop"):
        height, width = cropped_size(height, width, QUILTS[preset].aspect)
    return quilt_hint(height, width, preset, options.get("columns"), options.get("rows"))


def _hinted(path: Path, hint: str) -> Path:
    return path if path.stem.lower().endswith(hint.lower()) else path.with_name(f"{path.stem}{hint}{path.suffix}")


def _quilt_notes(file: LightFieldFile[LightField], options: dict[str, Any]) -> list[str]:
    """How far things move between tiles, in the middle frame."""
    tiles = quilt_tiles(options.get("preset", "portrait"), options.get("columns"), options.get("rows"))
    moment = file.read(frames=middle_index(file.sizes["frames"]))
    step = quilt_step(moment, tiles[0] * tiles[1], options.get("focus"))
    return [f"Things move up to {step:.2g} pixels between neighbouring tiles."]


def _moving(
    file: LightFieldFile[LightField], name: str, function: Callable[..., torch.Tensor], options: dict[str, Any]
) -> tuple[torch.Tensor, float]:
    """All pictures and how many a second."""
    if name in NEEDS_ALL_FRAMES:
        movie = file.read()
        return function(movie, **options), swaying_frame_rate(movie) if name == "sway" else movie.frame_rate
    indices = tqdm(range(file.sizes["frames"]), desc=name, unit="frame", dynamic_ncols=True, disable=None)
    return torch.cat([function(file.read(frames=index), **options) for index in indices], dim=1), file.frame_rate
