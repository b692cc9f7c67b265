"""Writes pictures as PNG and moving pictures as MP4 (H.264, yuv420p) or GIF, enlarged so that small ones are crisp.

Enlarging repeats pixels and never blurs them. Values in [-1, 1] or uint8 come in; what they show was decided before.
"""

import math
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusers_stale.axes import check_count
from diffusers_stale.light_field.atomic import atomic_path
from diffusers_stale.light_field.camera_grid import check_number


PICTURE_SIZE = 768
"""Least length of the longer side of a PNG, in pixels, where `zoom` is not given."""

MOVIE_SIZE = 512
"""The same, as closely as whole factors allow, of a moving picture."""

QUALITY = 16
"""Constant rate factor of x264: 0 is lossless, 23 its default; at 16 nobody sees a difference."""

CONVERSION = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
)
"""RGB to YUV, and a note in the file of which YUV it is, so that players need not guess and shift the colours."""


def write_png(path: str | Path, picture: torch.Tensor, zoom: int | None = None) -> None:
    """Writes one picture.

    Args:
        path: the file, replaced if it is there.
        picture: shape `(3, height, width)`, uint8 or floating point in [-1, 1].
        zoom: how often each pixel is repeated along both sides; by default until the longer side is 768 or more.

    Raises:
        ValueError: for another shape, a number that is not finite, a zoom below 1.
        OSError: where the file cannot be written; nothing is left behind then.
    """
    values = _as_uint8(picture, ("channels", "height", "width"))
    zoom = math.ceil(PICTURE_SIZE / max(values.shape[1:])) if zoom is None else zoom
    image = Image.fromarray(_enlarged(values, zoom).permute(1, 2, 0).contiguous().numpy())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def write_gif(path: str | Path, frames: torch.Tensor, frame_rate: float, zoom: int | None = None) -> None:
    """Writes an endless GIF; as `write_mp4`. Its delays are whole hundredths of a second, 2 at least."""
    pictures = _movie_pictures(frames, zoom)
    delay = 10 * max(2, round(100 / check_number("frame_rate", frame_rate, positive=True)))
    images = [Image.fromarray(picture) for picture in pictures]
    with atomic_path(path) as temporary:
        images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:], duration=delay, loop=0)


def write_mp4(path: str | Path, frames: torch.Tensor, frame_rate: float, zoom: int | None = None) -> None:
    """Writes a video that browsers play: H.264, yuv420p, the index in front.

    Args:
        path: the file, replaced if it is there.
        frames: shape `(3, frames, height, width)`, uint8 or floating point in [-1, 1].
        frame_rate: frames a second, above 0.
        zoom: how often each pixel is repeated along both sides; by default until the longer side is about 512. Odd
            sizes are made even by repeating the last row or column.

    Raises:
        ValueError: for another shape, a number that is not finite, a zoom below 1.
        OSError: where there is no encoder or the file cannot be written; nothing is left behind then.
    """
    pictures = _movie_pictures(frames, zoom)
    rate = Fraction(check_number("frame_rate", frame_rate, positive=True)).limit_denominator(1001)
    height, width = pictures.shape[1:3]
    with atomic_path(path) as temporary:
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate), "-i", "-"]
        codec = ["-an", "-vf", CONVERSION, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(QUALITY)]
        target = ["-movflags", "+faststart", "-f", "mp4", str(temporary)]
        _run([ffmpeg_path(), "-v", "error", "-nostdin", "-y", *source, *codec, *target], pictures, path)


def ffmpeg_path() -> str:
    """The ffmpeg that imageio-ffmpeg brings along. Raises `OSError` where there is none."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise OSError(f"No video encoder ({error}); `pip install imageio-ffmpeg` brings one.") from error


def _run(command: list[str], pictures: np.ndarray, path: str | Path) -> None:
    """Feeds raw pictures to ffmpeg. Called directly: imageio's writer hides its exit status and its reason."""
    with tempfile.TemporaryFile() as complaints:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=complaints) as process:
            try:
                for picture in pictures:
                    process.stdin.write(picture.tobytes())
                process.stdin.close()
            except BrokenPipeError:
                pass  # it has ended early; its exit status says so below
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            complaints.seek(0)
            lines = complaints.read().decode(errors="replace").split("\n")
            reason = next((line.strip() for line in reversed(lines) if line.strip()), f"status {process.returncode}")
            raise OSError(f"Could not write {path}: ffmpeg says {reason!r}; choose another place or free some space.")


def _movie_pictures(frames: torch.Tensor, zoom: int | None) -> np.ndarray:
    """uint8, shape `(frames, height, width, 3)`, enlarged, both sides even."""
    values = _as_uint8(frames, ("channels", "frames", "height", "width"))
    zoom = max(1, round(MOVIE_SIZE / max(values.shape[2:]))) if zoom is None else zoom
    enlarged = _enlarged(values, zoom)
    for axis in (2, 3):
        if enlarged.shape[axis] % 2:
            enlarged = torch.cat([enlarged, enlarged.narrow(axis, -1, 1)], dim=axis)
    return enlarged.permute(1, 2, 3, 0).contiguous().numpy()


def _enlarged(values: torch.Tensor, zoom: int) -> torch.Tensor:
    check_count("zoom", zoom)
    return values.repeat_interleave(zoom, dim=-2).repeat_interleave(zoom, dim=-1)


def _as_uint8(values: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
    """`values` on the CPU as uint8, after all checks."""
    if not isinstance(values, torch.Tensor) or values.ndim != len(names) or values.shape[0] != 3 or 0 in values.shape:
        got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise ValueError(f"Expected a tensor of axes {names} with 3 channels, got {got}; a projection makes one.")
    if values.dtype == torch.uint8:
        return values.detach().cpu()
    if not values.is_floating_point() or not torch.isfinite(values).all():
        raise ValueError(
            f"Expected uint8, or finite numbers in [-1, 1], got {values.dtype} with NaN, infinity or whole numbers; "
            "a video of them would be black."
        )
    return values.detach().float().cpu().clamp(-1.0, 1.0).add(1.0).mul_(127.5).round_().to(torch.uint8)
