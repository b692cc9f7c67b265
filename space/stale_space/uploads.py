"""Files that visitors bring: quilts, light fields, short videos. Nothing is decoded before its size is known."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusers_stale import LightField, read_moments, tiles_of_name, video_info
from stale_space.settings import Limits, quoted


PICTURES = (".png", ".jpg", ".jpeg", ".webp")
LIGHT_FIELDS = (".safetensors",)
VIDEOS = (".mp4", ".webm", ".mov", ".gif")

MOST_TILES = 144
VIDEO_PIXELS = 4096 * 2304
"""Of a frame: what telephones film."""

FRAME_RATE = 8.0
"""Frames a second of the movies that are made; videos are read at this rate."""

BOXES, WEBM, GIF = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"), b"\x1a\x45\xdf\xa3", b"GIF8"
"""What files of these kinds begin with (an MP4 after the length of its first box). Ffmpeg itself goes by no name, and
opens play lists too, which name other files."""

MOST_FRAMES = 48
MOST_FRAMES_A_SECOND = 60.0
"""Of videos of quilts; what is longer is cut."""


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
    if suffix in PICTURES or suffix in VIDEOS:
        return _read_quilt(path, limits)
    if suffix in LIGHT_FIELDS:
        return _read_movie(path, limits)
    raise ValueError(
        f"Expected a quilt ({', '.join((*PICTURES, *VIDEOS))}) or a light field (.lf.safetensors), got "
        f"{quoted(path.name)}; choose one of them."
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
    return LightField(movie.pixels, min(movie.frame_rate, MOST_FRAMES_A_SECOND), movie.camera_grid)


def _read_quilt(path: Path, limits: Limits) -> LightField:
    columns, rows = _tiles(path)
    is_video = path.suffix.lower() in VIDEOS
    rate, width, height = FRAME_RATE, 0, 0
    if is_video:
        rate, width, height = _header(path)
        pictures = map(Image.fromarray, _moments(path, _most_frames(width, height, limits), rate))
    else:
        pictures = [_picture(path, limits)]
    quilt = torch.stack([_tidied(picture, columns, rows, limits) for picture in pictures], dim=1)
    return LightField.from_quilt(quilt, columns, rows, frame_rate=min(rate, MOST_FRAMES_A_SECOND))


def _tiles(path: Path) -> tuple[int, int]:
    wanted = (
        f"The name of a quilt must end with columns, rows and shape, such as _qs8x6a0.75.png, with at most "
        f"{MOST_TILES} views in all, got {quoted(path.name)}; rename it."
    )
    try:
        columns, rows = tiles_of_name(path)
    except ValueError as error:
        raise ValueError(wanted) from error
    if columns * rows > MOST_TILES:
        raise ValueError(wanted)
    return columns, rows


def _tidied(picture: Image.Image, columns: int, rows: int, limits: Limits) -> torch.Tensor:
    """`picture` as uint8 `(3, height, width)` whose sides divide into tiles that are no longer than allowed."""
    width, height = picture.size
    if width < columns or height < rows:
        raise ValueError(f"A quilt of {columns}x{rows} views must have a pixel for each, got {width}x{height}.")
    view = (width // columns, height // rows)
    scale = min(1.0, limits.view_size / max(view))
    size = (columns * max(1, int(view[0] * scale)), rows * max(1, int(view[1] * scale)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BOX)
    return torch.from_numpy(np.array(picture)).movedim(-1, 0)


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


def read_video(path: str | Path, most: int, limits: Limits) -> list[np.ndarray]:
    """The first frames of a video, upright, at most `most` of them, at 8 a second.

    Returns arrays `(height, width, 3)` of bytes. Raises `ValueError` for what is no video, and for one too large.
    """
    path = Path(path)
    if path.suffix.lower() not in VIDEOS or path.stat().st_size > limits.upload_bytes:
        raise ValueError(
            f"Expected a video ({', '.join(VIDEOS)}) of at most {limits.upload_bytes / 2**20:.0f} MB, got "
            f"{quoted(path.name)} of {path.stat().st_size / 2**20:.1f}; choose another."
        )
    _header(path)
    return _moments(path, most, FRAME_RATE)


def _header(path: Path) -> tuple[float, int, int]:
    """Frames a second, width and height of a video. Raises `ValueError` for what is none, and for one too large."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
        if not (start[4:8] in BOXES or start.startswith((WEBM, GIF))):
            raise ValueError(start)
        info = video_info(path)
    except ValueError as error:
        raise ValueError(f"{quoted(path.name)} must be a video, but it cannot be read; save it as MP4.") from error
    height, width = info.size
    if width * height > VIDEO_PIXELS or not 0 < info.frame_rate <= 240:
        raise ValueError(
            f"A video must have at most {VIDEO_PIXELS} pixels a frame and 240 frames a second, got {width} x {height} "
            f"at {info.frame_rate:g}; choose another."
        )
    return info.frame_rate, width, height


def _moments(path: Path, most: int, rate: float) -> list[np.ndarray]:
    try:
        return list(read_moments(path, most, rate).movedim(0, -1).numpy())
    except ValueError as error:
        raise ValueError(f"{quoted(path.name)} must be a video, but it has no frames; choose another.") from error


def _most_frames(width: int, height: int, limits: Limits) -> int:
    """Frames of a quilt of this size that a movie may have."""
    return max(1, min(MOST_FRAMES, limits.movie_pixels // (width * height)))
