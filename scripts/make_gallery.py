"""Makes docs/gallery.md and its pictures: every projection and display of one rendered barnyard movie.

What is moving is shown as a small animated WebP. All pictures together stay below 1.5 MB.

python scripts/make_gallery.py
"""

import argparse
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path

import torch

from diffusers_stale.data.captions import caption_of
from diffusers_stale.data.renderer import DEFAULT_FRAME_RATE, render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.light_field import CameraGrid, LightField
from diffusers_stale.light_field.camera_paths import CAMERA_PATHS, pictures_of
from diffusers_stale.light_field.displays import DISPLAYS, wiggle_shots
from diffusers_stale.light_field.export import write_video, write_webp
from diffusers_stale.light_field.projections import PROJECTIONS


SEED, SCENE = 77, 4
VIEWS, FRAMES, SIZE = 5, 8, 128
SPACING = 0.5

LARGEST = 1_500_000
"""All pictures together, in bytes."""

MOVING_PICTURES = 12
"""Of one round of a moving camera."""

SHOWN_SIZE = 384
"""Longer side of a still picture, in pixels, as closely as whole factors come."""

OPTIONS: dict[str, dict[str, object]] = {
    "refocus": {"densify": 4},
    "maximum": {"axis": "frames"},
    "mean": {"axis": "views"},
    "quilt": {"columns": 5, "rows": 3, "report": False},
    "lenticular": {"views": 4, "report": False, "panel_width": 384},
}
"""What differs from what a projection or display does by itself."""

COMMANDS = {
    "maximum": "project MOVIE --to maximum --axis frames",
    "mean": "project MOVIE --to mean --axis views",
    "quilt": "display MOVIE --for quilt --tiles 5x3",
    "lenticular": "display MOVIE --for lenticular --views 4",
}
"""How to make it, where that is not `project MOVIE --to NAME` or `display MOVIE --for NAME` and has no focus."""

WORDS = {
    "views": "The grid of cameras, at one moment.",
    "epi": "Beside the middle view, slices through the views: what is near leans most.",
    "xt": "Beside a frame, slices through time: what walks leans.",
    "refocus": "The focus is on the nearest things.",
    "see-through": "Focused on the distance: cameras whose view is blocked by something nearer do not count.",
    "depth": "Near is bright.",
    "maximum": "The brightest value of every pixel over time.",
    "mean": "A lens that stays at zero disparity, with the ghosts of few cameras: what `refocus` mends.",
    "quilt": "View 0 at the bottom left.",
    "lenticular": "Strips of four views, to be looked at through a sheet of lenses.",
}


def barnyard() -> LightField:
    """The movie that everything is made of."""
    scene = sample_scene(SEED, SCENE)
    clip = render_scene(scene, VIEWS, VIEWS, FRAMES, SIZE, SIZE, spacing=SPACING)
    grid = CameraGrid(view_rows=VIEWS, view_cols=VIEWS, spacing=SPACING)
    made = {"prompt": caption_of(scene, SEED, SCENE), "made_by": "scripts/make_gallery.py"}
    return LightField.from_float(clip.pixels, DEFAULT_FRAME_RATE, grid, clip.disparity / SPACING, made)


def picture_of(
    movie: LightField, name: str, function: Callable[..., torch.Tensor], options: dict[str, object]
) -> torch.Tensor:
    """A still `(3, height, width)`, or a moving picture `(3, frames, height, width)` of a camera that moves."""
    sizes = (movie.view_rows, movie.view_cols, movie.num_frames)
    if name in CAMERA_PATHS:
        shots = CAMERA_PATHS[name](*sizes, movie.frame_rate, num_frames=12 * MOVING_PICTURES // 4)
        return torch.stack(list(pictures_of(movie, shots[:: 36 // MOVING_PICTURES])), dim=1)
    if name == "wiggle":
        shots = itertools.islice(wiggle_shots(*sizes, movie.camera_grid.spacing), 8)
        return torch.stack(list(pictures_of(movie, list(shots))), dim=1)
    stands = name in ("time", "xt", "maximum")
    picture = function(movie if stands else movie.select(frames=FRAMES // 2), **options)
    return picture[:, 0] if picture.ndim == 4 else picture


def write(path: Path, picture: torch.Tensor, frame_rate: float) -> None:
    """Writes a picture in the size that it is shown in."""
    if picture.ndim == 4:
        write_video(path, picture, frame_rate, zoom=1)
    else:
        write_webp(path, picture, zoom=max(1, round(SHOWN_SIZE / max(picture.shape[1:]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path(__file__).resolve().parent.parent / "docs", help="folder")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="pictures that are made again; all by default")
    arguments = parser.parse_args()
    known = {*PROJECTIONS, *DISPLAYS}
    if arguments.only and not known.issuperset(arguments.only):
        parser.error(f"expected names of {', '.join(sorted(known))}, got {' '.join(arguments.only)}")
    folder = arguments.docs / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    movie = barnyard()
    near, far = float(movie.disparity.max()) * SPACING, float(movie.disparity.min()) * SPACING
    options = {**OPTIONS, "refocus": {**OPTIONS["refocus"], "focus": near}, "see-through": {"focus": far}}
    focused = {"refocus": near, "see-through": far}
    commands = {name: f"project MOVIE --to {name} --focus {plane:.2f}" for name, plane in focused.items()}
    commands |= COMMANDS
    lines = [
        "# Gallery",
        "",
        f"Every projection and display of one barnyard movie of {VIEWS}x{VIEWS} views, made by",
        "`python scripts/make_gallery.py`: “" + movie.provenance["prompt"] + "”.",
        "",
    ]
    for title, choices, command in (
        ("Projections", PROJECTIONS, "project MOVIE --to"),
        ("Displays", DISPLAYS, "display MOVIE --for"),
    ):
        lines += [f"## {title}", ""]
        for name, function in choices.items():
            if name in (arguments.only or known):
                picture = picture_of(movie, name, function, options.get(name, {}))
                write(folder / f"{name}.webp", picture, movie.frame_rate)
            said = (inspect.getdoc(function) or "").splitlines()[0]
            lines += [
                f"### {name}",
                "",
                f"{said} {WORDS.get(name, '')}".strip(),
                "",
                f"`stale-diffusion {commands.get(name, f'{command} {name}')}`",
                "",
                f"![{name}](gallery/{name}.webp)",
                "",
            ]
    (arguments.docs / "gallery.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    total = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{len(PROJECTIONS) + len(DISPLAYS)} pictures, {total / 1e6:.2f} MB")
    if total > LARGEST:
        raise SystemExit(f"Expected at most {LARGEST} bytes of pictures, got {total}; make them smaller.")


if __name__ == "__main__":
    main()
