"""One projection or display of a movie's file, written to a picture or video whose name players understand.

Frames are read, turned into pictures and encoded one after the other, so that memory does not grow with the movie.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffusers_stale.axes import middle_index
from diffusers_stale.light_field.antialiasing import Exposures
from diffusers_stale.light_field.camera_paths import (
    CAMERA_PATHS,
    PICTURES_A_FRAME,
    Movie,
    moving_frame_rate,
    pictures_of,
)
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.depth import measured_depth, smooth_disparity
from diffusers_stale.light_field.displays import DISPLAYS, HINTS, wiggle_shots
from diffusers_stale.light_field.export import write_gif, write_png, write_video, write_webp
from diffusers_stale.light_field.lenticular import LENTICULAR_VIEWS
from diffusers_stale.light_field.movie_folder import LIGHT_FIELD
from diffusers_stale.light_field.projections import PROJECTIONS
from diffusers_stale.light_field.quilt import (
    QUILTS,
    cropped_size,
    quilt_hint,
    quilt_step,
    quilt_tiles,
)
from diffusers_stale.light_field.video import CODECS
from diffusers_stale.light_field.viewpoints import focus_of, spacing_of


STILLS = {"views", "time", "epi", "xt"}
"""What gives a still picture of the whole movie or of one frame."""

OF_THE_MIDDLE_VIEW = {"time", "xt"}
"""What shows all frames of the middle view; `mean` and `maximum` do too, along some axes."""

STILL_AXES = {"frames", "height", "width"}
"""Axes whose mean or maximum is a still picture."""

PATHS = {*CAMERA_PATHS, "wiggle"}
"""What takes a list of shots, each of one frame."""

STILL_SUFFIXES = {".png": write_png, ".webp": write_webp}
MOVING_SUFFIXES = {".gif", *(suffix for kind in CODECS.values() for suffix in kind.suffixes)}


def describe(choices: dict[str, Callable[..., Any]]) -> list[str]:
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
    zoom: int | None = None,
    smooth: bool = False,
    codec: str | None = None,
    every: int = 1,
    shutter: float = 1.0,
    **options: Any,
) -> tuple[Path, list[str]]:
    """Writes the projection or display `name` of a light-field file.

    Args:
        movie: what `LightField.open` takes, or a folder with `movie.lf.safetensors`.
        name: of `PROJECTIONS` or `DISPLAYS`.
        output: a `.png` or `.webp` (of one frame, or of all in an animated `.webp`), `.mp4`, `.webm` or `.gif` file;
            what players look for is added to its name if it is not there. By default `NAME.png` for still pictures,
            `wiggle.gif`, and `NAME.mp4`.
        frame: which frame a still picture shows, by default the middle one.
        force: replace the file if it is there.
        zoom, smooth, codec: as for `export.write_video`.
        every, shutter: frames that become one, and how long it is exposed; see `antialiasing.with_shutter`.
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
    is_still = _is_still(name, given)
    path = _check_suffix(name, output, frame, is_still)
    with opened(movie, every, shutter) as file:
        path = _hinted(path, _hint_of(name, given, file.sizes))
        check_place(path, force)
        notes = _depth_notes(file, name, given)
        quiet = {"report": False} if "report" in inspect.signature(function).parameters else {}
        camera, given = _only_camera(name, given, file.sizes)
        if is_still or frame is not None or path.suffix.lower() == ".png":
            picture = function(_part(file, name, is_still, frame, camera), **given, **quiet)
            still = picture if picture.ndim == 3 else picture[:, 0]
            STILL_SUFFIXES[path.suffix.lower()](path, still, zoom, smooth)
        else:
            pictures, count, frame_rate = _moving(file, name, function, {**given, **quiet}, camera)
            bar = tqdm(pictures, desc=name, total=count, unit="frame", dynamic_ncols=True, disable=None)
            _write_moving(path, bar, frame_rate, zoom, smooth, codec)
    return path, notes


def paths_of_many(
    movies: Sequence[str | Path],
    name: str,
    folder: str | Path,
    frame: int | None = None,
    suffix: str | None = None,
    **options: Any,
) -> list[Path]:
    """Where `write_picture` puts each of several movies: in a folder, which is made if missing, `MOVIE_NAME.suffix`.

    `suffix` may lack its dot. Raises `ValueError` for movies of the same name and for a kind of file that `name` is
    not written to, `NotADirectoryError` where the folder is a file.
    """
    if len({_stem(movie) for movie in movies}) < len(movies):
        raise ValueError("Expected movies of different names, got some twice, and one would replace the other.")
    is_still = _is_still(name, options)
    chosen = _usual_suffix(name, is_still or frame is not None) if suffix is None else f".{suffix.lstrip('.')}"
    _check_suffix(name, Path(f"{name}{chosen}"), frame, is_still)
    if Path(folder).is_file():
        raise NotADirectoryError(
            f"Expected a folder at {folder} for {len(movies)} movies, got a file; choose another."
        )
    Path(folder).mkdir(parents=True, exist_ok=True)
    return [Path(folder) / f"{_stem(movie)}_{name}{chosen}" for movie in movies]


def _stem(movie: str | Path) -> str:
    """What a movie is called: the name of its file, or of the folder that holds it."""
    path = Path(movie)
    name = path.absolute().parent.name if path.name == LIGHT_FIELD else path.absolute().name
    return name.removesuffix(".lf.safetensors").removesuffix(".lf")


@contextmanager
def opened(movie: str | Path, every: int = 1, shutter: float = 1.0) -> Iterator[Movie]:
    """The light field at a path, or in a folder with `movie.lf.safetensors`, open for reading in parts."""
    source = Path(movie)
    with LightField.open(source / LIGHT_FIELD if (source / LIGHT_FIELD).is_file() else source) as file:
        yield file if every == 1 else Exposures(file, every, shutter)


def check_place(path: Path, force: bool) -> None:
    """Returns if a file may be written to `path`; raises an `OSError` with a remedy otherwise."""
    if path.is_dir():
        raise IsADirectoryError(f"Expected a file or nothing at {path}, got a folder; choose another name.")
    if path.exists() and not force:
        raise FileExistsError(f"{path} is there already; choose another name, or replace it with --force.")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.absolute().parent}; make it, or choose another place.")


def _choice(name: str) -> Callable[..., torch.Tensor]:
    choices = {**PROJECTIONS, **DISPLAYS}
    if name not in choices:
        raise ValueError(
            f"Expected a projection ({', '.join(PROJECTIONS)}) or a display ({', '.join(DISPLAYS)}), got {name!r}; "
            "`--list` describes each."
        )
    return choices[name]


def _check_options(name: str, function: Callable[..., torch.Tensor], options: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(function).parameters
    strange = [key for key in options if key not in known]
    if strange:
        raise ValueError(f"Expected options of {name}, got `{strange[0]}`, which does nothing for it; leave it out.")
    return options


def _usual_suffix(name: str, is_still: bool) -> str:
    return ".png" if is_still else ".gif" if name == "wiggle" else ".mp4"


def _is_still(name: str, options: dict[str, Any]) -> bool:
    """Whether it is one picture of the whole movie, or of one frame, and never a moving one."""
    axis = options.get("axis") or _axis_of(_choice(name))
    return name in STILLS or axis in STILL_AXES


def _axis_of(function: Callable[..., torch.Tensor]) -> str | None:
    """The axis that a mean or maximum takes out if nobody says."""
    parameter = inspect.signature(function).parameters.get("axis")
    return None if parameter is None else parameter.default


def _check_suffix(name: str, output: Path | None, frame: int | None, is_still: bool) -> Path:
    if output is None:
        output = Path(f"{name}{_usual_suffix(name, is_still or frame is not None)}")
    path = Path(output)
    suffix = path.suffix.lower()
    able = {*STILL_SUFFIXES} if is_still else {*MOVING_SUFFIXES}
    if name not in PATHS:
        able.add(".png")
    if suffix not in able:
        raise ValueError(f"{name} must be written to {' or '.join(sorted(able))}, got {path.name!r}; rename it.")
    if frame is not None and (suffix not in STILL_SUFFIXES or name in PATHS or (is_still and name not in STILLS)):
        raise ValueError(f"`frame` is for a picture of one frame, got {frame} for {path.name}; leave it out.")
    return path


def _only_camera(name: str, options: dict[str, Any], sizes: dict[str, int]) -> tuple[dict[str, int], dict[str, Any]]:
    """The one camera that has to be read, if it is only one, as `read` takes it; and options of what is read."""
    if name != "view":
        return {}, options
    cameras = {"view_rows": options.get("row"), "view_cols": options.get("col")}
    chosen = {axis: middle_index(sizes[axis]) if index is None else index for axis, index in cameras.items()}
    return chosen, {key: value for key, value in options.items() if key not in ("row", "col")}


def _part(file: Movie, name: str, is_still: bool, frame: int | None, camera: dict[str, int]) -> LightField:
    """What a still picture is made of."""
    if name in OF_THE_MIDDLE_VIEW or (is_still and name not in STILLS):
        rows, cols = file.sizes["view_rows"], file.sizes["view_cols"]
        return file.read(view_rows=middle_index(rows), view_cols=middle_index(cols))
    return file.read(**camera, frames=middle_index(file.sizes["frames"]) if frame is None else frame)


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


def _depth_notes(file: Movie, name: str, options: dict[str, Any]) -> list[str]:
    """How far things move between the views of a display, in the middle frame."""
    if name == "quilt":
        columns, rows = quilt_tiles(options.get("preset", "portrait"), options.get("columns"), options.get("rows"))
        count = columns * rows
    elif name == "lenticular":
        count = options.get("views", LENTICULAR_VIEWS)
    else:
        return []
    moment = file.read(frames=middle_index(file.sizes["frames"]))
    step = quilt_step(moment, count, options.get("focus"))
    return [f"Things move up to {step:.2g} pixels between neighbouring views."]


def _moving(
    file: Movie, name: str, function: Callable[..., torch.Tensor], options: dict[str, Any], camera: dict[str, int]
) -> tuple[Iterator[torch.Tensor], int, float]:
    """Pictures as they are pulled, how many there will be, and how many a second."""
    if name in PATHS:
        return _along_a_path(file, name, dict(options))
    count = file.sizes["frames"]
    if name == "depth":
        middle = smooth_disparity(measured_depth(file.read(frames=middle_index(count)), options.get("max_disparity")))
        options = {**options, "ends": (float(middle.min()), float(middle.max()))}
    pictures = (function(file.read(**camera, frames=index), **options)[:, 0] for index in range(count))
    return pictures, count, file.frame_rate


def _along_a_path(file: Movie, name: str, options: dict[str, Any]) -> tuple[Iterator[torch.Tensor], int, float]:
    sizes = [file.sizes[axis] for axis in ("view_rows", "view_cols", "frames")]
    reach, interpolate = options.pop("max_disparity", None), options.pop("interpolate", True)
    if name in ("orbit", "wiggle"):
        options["focus"] = focus_of(file, options.get("focus"))
    if name == "wiggle":
        shots, frame_rate = wiggle_shots(*sizes, spacing_of(file), **options), file.frame_rate
    else:
        shots = CAMERA_PATHS[name](*sizes, file.frame_rate, **options)
        frame_rate = moving_frame_rate(file, options.get("pictures_a_frame", PICTURES_A_FRAME))
    return pictures_of(file, shots, reach, interpolate), len(shots), frame_rate


def _write_moving(
    path: Path, pictures: Iterator[torch.Tensor], frame_rate: float, zoom: int | None, smooth: bool, codec: str | None
) -> None:
    if path.suffix.lower() == ".gif":
        write_gif(path, pictures, frame_rate, zoom, smooth)
    else:
        write_video(path, pictures, frame_rate, zoom, smooth, codec)
