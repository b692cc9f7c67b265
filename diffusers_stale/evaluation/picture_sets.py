"""Sets of pictures to search for near-duplicates: rendered barnyards, folders of pictures, videos and light fields."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from diffusers_stale.axes import middle_index
from diffusers_stale.data.clips import Clip
from diffusers_stale.data.folders import METADATA, BrokenFiles, folder_clips
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.data.shards import SHARD_SUFFIX, shard_clips, shards_of
from diffusers_stale.light_field import LightField


Pictures = Iterator[tuple[str, torch.Tensor]]
"""Names and pictures, each `(3, height, width)` in [-1, 1]."""

BARNYARD = "barnyard:"
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".gif")
LIGHT_FIELD_SUFFIX = ".lf.safetensors"
SIZE = 64
CLIP_SIZE = 128
"""Side of the squares that clips are cut to."""

NO_BROKEN = "Mend it or take it out of its folder: what cannot be read cannot be searched."
MOMENTS = 3
"""Frames that are taken of a video or light field, evenly spaced."""


def pictures_of(source: str) -> Pictures:
    """The pictures that `source` names.

    "barnyard:SEED:COUNT" renders that many scenes. A folder gives all pictures, videos and light fields in it, at any
    depth; of videos `MOMENTS` frames, of light fields those of the middle view. A folder with metadata.jsonl, and one
    of WebDataset shards, gives the middle views of its clips, whatever their form. A file gives its own.

    Raises `ValueError` for a source that is nothing of the kind, and for a file that cannot be decoded.
    """
    if source.startswith(BARNYARD):
        return _barnyards(source)
    path = Path(source)
    if path.is_file():
        return _file(path, path.name)
    if (path / METADATA).is_file():
        return _clips(folder_clips(path, 0, BrokenFiles(0, remedy=NO_BROKEN)), path)
    if path.is_dir() and any(path.glob(f"*{SHARD_SUFFIX}")):
        problems = BrokenFiles(0, remedy=NO_BROKEN)
        return _clips((clip for shard in shards_of(path) for clip in shard_clips(shard, 0, problems)), path)
    if path.is_dir():
        return _folder(path)
    raise ValueError(f"A set must be a folder, a file or {BARNYARD}SEED:COUNT, got {source!r}; check the spelling.")


def _barnyards(source: str) -> Pictures:
    parts = source.removeprefix(BARNYARD).split(":")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"A rendered set must read {BARNYARD}SEED:COUNT, got {source!r}; as in {BARNYARD}7:1000.")
    seed, count = map(int, parts)
    for index in range(count):
        clip = render_scene(sample_scene(seed, index), 1, 1, 1, SIZE, SIZE)
        yield f"{BARNYARD}{seed}:{index}", clip.pixels[:, 0, 0, 0]


def _folder(folder: Path) -> Pictures:
    for path in sorted(folder.rglob("*")):
        known = path.suffix.lower() in (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES) or path.name.endswith(LIGHT_FIELD_SUFFIX)
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and known and not hidden:
            yield from _file(path, path.relative_to(folder).as_posix())


def _clips(clips: Iterable[Clip], folder: Path) -> Pictures:
    for clip in clips:
        row, col = middle_index(clip.view_rows), middle_index(clip.view_cols)
        for frame in _moments(clip.frames):
            place = (range(index, index + 1) for index in (row, col, frame))
            try:
                pixels = clip.read(*place, CLIP_SIZE)
            except (ValueError, OSError) as error:
                raise ValueError(f"{clip.name} in {folder} could not be decoded ({error}); leave it out.") from error
            yield f"{clip.name}#{frame}", pixels[:, 0, 0, 0].float() / 127.5 - 1


def _file(path: Path, name: str) -> Pictures:
    try:
        if path.name.endswith(LIGHT_FIELD_SUFFIX):
            yield from _light_field(path, name)
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            yield from _video(path, name)
        else:
            with Image.open(path) as image:
                yield name, _to_tensor(np.asarray(image.convert("RGB")))
    except (OSError, UnidentifiedImageError, IndexError) as error:
        raise ValueError(f"{path} could not be decoded ({error}); leave it out or copy it again.") from error


def _light_field(path: Path, name: str) -> Pictures:
    with LightField.open(path) as file:
        counts = file.sizes
        row, col = middle_index(counts["view_rows"]), middle_index(counts["view_cols"])
        for frame in _moments(counts["frames"]):
            pixels = file.read(view_rows=row, view_cols=col, frames=frame).to_float()
            yield f"{name}#{frame}", pixels[:, 0, 0, 0]


def _video(path: Path, name: str) -> Pictures:
    frames = imageio.imread(path, index=None) if path.suffix.lower() == ".gif" else imageio.imread(path)
    for index in _moments(len(frames)):
        yield f"{name}#{index}", _to_tensor(frames[index][..., :3])


def _moments(count: int) -> list[int]:
    """Frames of a movie of `count`: different ones, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, MOMENTS)})


def _to_tensor(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values).movedim(-1, 0).float() / 127.5 - 1
