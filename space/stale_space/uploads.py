"""Files that visitors bring: quilts, light fields, short videos. Nothing is decoded before its size is known."""

import math
import re
from pathlib import Path

import imageio.v3 as imageio
import torch
from PIL import Image

from diffusers_stale import LightField, quilt_views
from stale_space.settings import Limits, quoted


PICTURES = (".png", ".jpg", ".jpeg", ".webp")
LIGHT_FIELDS = (".safetensors",)
VIDEOS = (".mp4", ".webm", ".mov", ".gif")

QUILT = re.compile(r"_qs(\d{1,3})x(\d{1,3})a(\d{1,2}(?:\.\d{1,6})?)(?=[_.]|$)", re.IGNORECASE)
"""What the name of a quilt ends with: columns, rows, and the width / height of a view."""

MOST_TILES = 144
VIDEO_SIDE = 4096
FRAME_RATE = 8.0
"""Frames a second of the movies that are made; videos are read at this rate."""


def read_light_field(path: str | Path, limits: Limits) -> LightField:
    """The light field in a file that a visitor has uploaded: a quilt, or a `.lf.safetensors`.

    Views of a quilt that are longer than `limits.view_size` are made smaller.

    Raises:
        ValueError: for another kind of file, one that is damaged, and one that is too large.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.stat().st_size > limits.upload_bytes:
        raise ValueError(
            f"The file must have at most {limits.upload_bytes / 2**20:.0f} MB, got {path.stat().st_size / 2**20:.1f}; "
            "make it smaller."
        )
    if suffix in PICTURES:
        return _read_quilt(path, limits)
    if suffix in LIGHT_FIELDS:
        return _read_movie(path, limits)
    raise ValueError(
        f"Expected a quilt ({', '.join(PICTURES)}) or a light field (.lf.safetensors), got {quoted(path.name)}; "
        "choose one of them."
    )


def _read_movie(path: Path, limits: Limits) -> LightField:
    try:
        file = LightField.open(path)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), "this place")) from error
    with file:
        sizes = file.sizes
        pixels = math.prod(sizes[name] for name in ("view_rows", "view_cols", "frames", "height", "width"))
        if max(sizes["height"], sizes["width"]) > limits.view_size or pixels > limits.movie_pixels:
            raise ValueError(
                f"A light field must have views of at most {limits.view_size} pixels and {limits.movie_pixels} "
                f"pixels in all, got {sizes['height']}x{sizes['width']} and {pixels}; cut it with `LightField.select`."
            )
        # Its disparity and its provenance are the visitor's business, and may be anything.
        movie = file.read()
    return LightField(movie.pixels, min(movie.frame_rate, 60.0), movie.camera_grid)


def _read_quilt(path: Path, limits: Limits) -> LightField:
    named = QUILT.search(path.stem)
    columns, rows = (int(named[1]), int(named[2])) if named else (0, 0)
    if not named or not columns or not rows or columns * rows > MOST_TILES:
        raise ValueError(
            f"The name of a quilt must end with columns, rows and shape, such as _qs8x6a0.75.png, with at most "
            f"{MOST_TILES} views in all, got {quoted(path.name)}; rename it."
        )
    picture = _picture(path, limits)
    width, height = picture.size
    if width < columns or height < rows:
        raise ValueError(f"A quilt of {columns}x{rows} views must have a pixel for each, got {width}x{height}.")
    view = (max(1, width // columns), max(1, height // rows))
    scale = min(1.0, limits.view_size / max(view))
    view = tuple(max(1, int(side * scale)) for side in view)
    if (view[0] * columns, view[1] * rows) != picture.size:
        picture = picture.resize((view[0] * columns, view[1] * rows), Image.Resampling.BOX)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = pixels.reshape(1, view[1] * rows, view[0] * columns, 3).movedim(-1, 0)
    return LightField(quilt_views(pixels, columns, rows).contiguous())


def _picture(path: Path, limits: Limits) -> Image.Image:
    """RGB, decoded after its size has been looked at."""
    problem = f"{quoted(path.name)} must be a picture, but it cannot be read; save it again."
    try:
        image = Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(problem) from error
    with image:
        width, height = image.size
        if width * height > limits.upload_pixels:
            raise ValueError(
                f"A quilt must have at most {limits.upload_pixels} pixels, got {width} x {height}; make it smaller."
            )
        try:
            return image.convert("RGB")
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise ValueError(problem) from error


def read_video(path: str | Path, most: int, limits: Limits) -> list[Image.Image]:
    """The first frames of a video, at most `most` of them, at 8 a second.

    Raises `ValueError` for what is no video, and for one that is too large.
    """
    path = Path(path)
    if path.suffix.lower() not in VIDEOS or path.stat().st_size > limits.upload_bytes:
        raise ValueError(
            f"Expected a video ({', '.join(VIDEOS)}) of at most {limits.upload_bytes / 2**20:.0f} MB, got "
            f"{quoted(path.name)} of {path.stat().st_size / 2**20:.1f}; choose another."
        )
    try:
        metadata = imageio.immeta(path, plugin="FFMPEG")
        width, height = metadata["size"]
        rate = float(metadata.get("fps") or FRAME_RATE)
        if max(width, height) > VIDEO_SIDE or not 0 < rate <= 240:
            raise ValueError(
                f"A video must have at most {VIDEO_SIDE} pixels a side and 240 frames a second, got {width}x{height} "
                f"at {rate:g}; choose another."
            )
        frames, wanted = [], 0
        for index, frame in enumerate(imageio.imiter(path, plugin="FFMPEG")):
            if index >= round(wanted * max(1.0, rate / FRAME_RATE)):
                frames.append(Image.fromarray(frame))
                wanted += 1
            if len(frames) == most:
                break
    except (OSError, RuntimeError, KeyError, StopIteration) as error:
        raise ValueError(f"{quoted(path.name)} must be a video, but it cannot be read; save it as MP4.") from error
    if not frames:
        raise ValueError(f"{quoted(path.name)} must be a video, but it has no frames; choose another.")
    return frames
