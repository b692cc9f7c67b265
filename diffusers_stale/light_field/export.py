"""Writes pictures as PNG and WebP, and moving pictures as MP4, WebM, WebP or GIF, enlarged so that small ones show.

Enlarging repeats pixels, or goes smoothly between them. Values in [-1, 1] or uint8 come in; what they show was decided
before. Moving pictures may come one by one: those but GIF are written while they come.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from diffusers_stale.axes import check_count
from diffusers_stale.light_field.atomic import atomic_path
from diffusers_stale.light_field.camera_grid import check_finite, check_number
from diffusers_stale.light_field.video import CODECS, MAX_SIDE, ffmpeg_path, usual_codec, write_pictures


__all__ = ["ffmpeg_path", "write_gif", "write_mp4", "write_png", "write_video", "write_webp"]

PICTURE_SIZE = 768
"""Least length of the longer side of a picture, in pixels, where `zoom` is not given."""

MOVIE_SIZE = 512
"""The same, as closely as whole factors allow, of a moving picture."""

Frames = torch.Tensor | Iterable[torch.Tensor]
"""A moving picture `(3, frames, height, width)`, or its pictures `(3, height, width)` one after the other."""


def write_png(path: str | Path, picture: torch.Tensor, zoom: int | None = None, smooth: bool = False) -> None:
    """Writes one picture.

    Args:
        path: the file, replaced if it is there.
        picture: shape `(3, height, width)`, uint8 or floating point in [-1, 1].
        zoom: how many times as long both sides get; by default until the longer side is 768 or more. No side is
            enlarged beyond 16384 pixels.
        smooth: go smoothly from pixel to pixel (bicubic); otherwise each is repeated and none is blurred.

    Raises:
        ValueError: for another shape, a number that is not finite, a zoom below 1 or beyond that side.
        OSError: where the file cannot be written; nothing is left behind then.
    """
    _write_still(path, picture, zoom, smooth, {"format": "PNG"})


def write_webp(path: str | Path, picture: torch.Tensor, zoom: int | None = None, smooth: bool = False) -> None:
    """Writes one picture as WebP without loss; arguments and errors as `write_png`."""
    _write_still(path, picture, zoom, smooth, {"format": "WEBP", "lossless": True})


def write_gif(
    path: str | Path, frames: Frames, frame_rate: float, zoom: int | None = None, smooth: bool = False
) -> None:
    """Writes an endless GIF; as `write_video`. Its delays are whole hundredths of a second, 2 at least.

    Its pictures are held until the end, a byte a pixel: for long movies `.webp` is better.
    """
    delay = 10 * max(2, round(100 / check_number("frame_rate", frame_rate, positive=True)))
    images = map(Image.fromarray, _enlarged_pictures(frames, zoom, smooth, even=True))
    with atomic_path(path) as temporary:
        first = next(images)
        first.save(temporary, format="GIF", save_all=True, append_images=images, duration=delay, loop=0)


def write_mp4(
    path: str | Path, frames: Frames, frame_rate: float, zoom: int | None = None, smooth: bool = False
) -> None:
    """Writes a video that browsers play: H.264 (high profile), yuv420p, BT.709; see `write_video`."""
    write_video(path, frames, frame_rate, zoom, smooth, "h264")


def write_video(
    path: str | Path,
    frames: Frames,
    frame_rate: float,
    zoom: int | None = None,
    smooth: bool = False,
    codec: str | None = None,
) -> None:
    """Writes a video while its pictures come: memory does not grow with its length.

    Args:
        path: the file, replaced if it is there: `.mp4`, `.webm`, or `.webp` (animated, without loss, endless).
        frames: shape `(3, frames, height, width)`, or pictures `(3, height, width)` of one size from any iterable;
            uint8 or floating point in [-1, 1].
        frame_rate: frames a second, above 0.
        zoom, smooth: as for `write_png`; by default until the longer side is about 512. Odd sizes are made even by
            repeating the last row or column, never by scaling.
        codec: of `CODECS`; by default H.264 for `.mp4` (HEVC where a side is above 4096 pixels), VP9 for `.webm`.

    Raises:
        ValueError: for another shape, no pictures, numbers that are not finite, a zoom as `write_png` refuses it, a
            codec that is unknown or does not go into such a file.
        OSError: where the file cannot be written or the encoder is missing; nothing is left behind then.
    """
    rate = Fraction(check_number("frame_rate", frame_rate, positive=True)).limit_denominator(1001)
    suffix = Path(path).suffix.lower()
    if codec is not None and (codec not in CODECS or suffix not in CODECS[codec].suffixes):
        able = [f"{name} ({', '.join(kind.suffixes)})" for name, kind in CODECS.items()]
        raise ValueError(f"Expected a codec of {', '.join(able)}, got {codec!r} for {suffix!r}; choose one that fits.")
    pictures = _enlarged_pictures(frames, zoom, smooth, even=suffix != ".webp")
    first = next(pictures)
    size = first.shape[:2]
    write_pictures(path, itertools.chain([first], pictures), str(rate), size, codec or usual_codec(suffix, size))


def _write_still(
    path: str | Path, picture: torch.Tensor, zoom: int | None, smooth: bool, options: dict[str, object]
) -> None:
    values = _as_uint8(picture, ("channels", "height", "width"))
    zoom = math.ceil(PICTURE_SIZE / max(values.shape[1:])) if zoom is None else zoom
    image = Image.fromarray(_enlarged(values, zoom, smooth).permute(1, 2, 0).contiguous().numpy())
    with atomic_path(path) as temporary:
        image.save(temporary, **options)


def _enlarged_pictures(frames: Frames, zoom: int | None, smooth: bool, even: bool) -> Iterator[np.ndarray]:
    """uint8 pictures `(height, width, 3)`, enlarged, both sides even if wanted. Raises `ValueError` for none."""
    if isinstance(frames, torch.Tensor):
        _check_values(frames, ("channels", "frames", "height", "width"))
        frames = frames.unbind(1)
    shape = None
    for picture in frames:
        values = _as_uint8(picture, ("channels", "height", "width"))
        shape = shape or values.shape
        if values.shape != shape:
            raise ValueError(
                f"Expected pictures of one size, got {tuple(values.shape)} after {tuple(shape)}; crop or pad them."
            )
        wanted = max(1, round(MOVIE_SIZE / max(shape[1:]))) if zoom is None else zoom
        enlarged = _enlarged(values, wanted, smooth)
        for axis in (1, 2) if even else ():
            if enlarged.shape[axis] % 2:
                enlarged = torch.cat([enlarged, enlarged.narrow(axis, -1, 1)], dim=axis)
        yield enlarged.permute(1, 2, 0).contiguous().numpy()
    if shape is None:
        raise ValueError("Expected at least one picture, got none; a video needs something to show.")


def _enlarged(values: torch.Tensor, zoom: int, smooth: bool) -> torch.Tensor:
    if check_count("zoom", zoom) > 1 and zoom * max(values.shape[1:]) > MAX_SIDE:
        raise ValueError(
            f"`zoom` must be at most {max(1, MAX_SIDE // max(values.shape[1:]))} for a picture of "
            f"{values.shape[1]}x{values.shape[2]}, whose sides may get {MAX_SIDE} pixels long, got {zoom}; make "
            "it smaller."
        )
    if smooth and zoom > 1:
        size = [length * zoom for length in values.shape[1:]]
        larger = F.interpolate(values[None].float(), size, mode="bicubic", align_corners=False)[0]
        return larger.round_().clamp_(0.0, 255.0).to(torch.uint8)
    return values.repeat_interleave(zoom, dim=-2).repeat_interleave(zoom, dim=-1)


def _as_uint8(values: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
    """`values` on the CPU as uint8, after all checks."""
    _check_values(values, names)
    if values.dtype == torch.uint8:
        return values.detach().cpu()
    return values.detach().float().cpu().clamp(-1.0, 1.0).add(1.0).mul_(127.5).round_().to(torch.uint8)


def _check_values(values: torch.Tensor, names: tuple[str, ...]) -> None:
    if not isinstance(values, torch.Tensor) or values.ndim != len(names) or values.shape[0] != 3 or 0 in values.shape:
        got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise ValueError(f"Expected a tensor of axes {names} with 3 channels, got {got}; a projection makes one.")
    if values.dtype != torch.uint8 and not values.is_floating_point():
        raise ValueError(f"Expected uint8, or floating point in [-1, 1], got {values.dtype}; convert the pixels.")
    check_finite(values, names)
