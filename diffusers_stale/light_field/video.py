"""Writes and reads videos through the ffmpeg that imageio-ffmpeg brings along, a picture at a time.

Memory stays flat however long a movie is: pictures are pulled one after the other and given to the encoder.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from diffusers_stale.light_field.atomic import atomic_path


CONVERSION = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
)
"""RGB to YUV, and a note in the file of which YUV it is, so that players need not guess and shift the colours."""

LARGEST_H264 = 4096
"""Side, in pixels, beyond which the decoders of most devices refuse H.264; HEVC goes to 8192."""

MAX_SIDE = 16384
"""Largest side of a video that is read, and of what is enlarged, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How a kind of video is made: its file's suffixes and format, its encoder, and the encoder's options."""

    suffixes: tuple[str, ...]
    form: str
    encoder: str
    options: tuple[str, ...]
    subsampled: bool = True


def write_pictures(
    path: str | Path, pictures: Iterable[np.ndarray], frame_rate: str, size: tuple[int, int], codec: str
) -> None:
    """Encodes uint8 pictures `(height, width, 3)`, all of one `size` (height, width), as they come.

    Raises `OSError` where there is no such encoder, or the file cannot be written; nothing is left behind then.
    """
    kind = CODECS[codec]
    if kind.encoder not in encoders():
        raise OSError(
            f"Expected an ffmpeg with the encoder {kind.encoder} for {codec}, got one without; choose another of "
            f"{', '.join(CODECS)}, or install a newer imageio-ffmpeg."
        )
    height, width = size
    with atomic_path(path) as temporary:
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", frame_rate, "-i", "-"]
        colours = ["-vf", CONVERSION, "-pix_fmt", "yuv420p"] if kind.subsampled else []
        target = ["-an", *colours, "-c:v", kind.encoder, *kind.options, "-f", kind.form, str(temporary)]
        _encode([ffmpeg_path(), "-v", "error", "-nostdin", "-y", *source, *target], pictures, path)


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video's header says: height and width in pixels as it is shown, frames a second."""

    size: tuple[int, int]
    frame_rate: float


def read_video(path: str | Path, frames: range | None = None) -> torch.Tensor:
    """The chosen frames of a video, by default all: uint8, shape `(3, frames, height, width)`.

    One picture after the other is decoded; no more is allocated than the file really holds. Raises
    `FileNotFoundError` for a file that is not there, and `ValueError` for one that is no video or has fewer frames.
    """
    pictures, index = [], 0
    for index, picture in enumerate(_decoded(path, None if frames is None else frames[-1] + 1), start=1):
        if frames is None or index - 1 in frames:
            pictures.append(picture)
    if not pictures or (frames is not None and len(pictures) < len(frames)):
        wanted = "pictures" if frames is None else f"{frames[-1] + 1} pictures"
        raise ValueError(f"Expected a video with {wanted} at {path}, but only {index} can be read; write it again.")
    return torch.stack(pictures).permute(3, 0, 1, 2).contiguous()


def read_moments(path: str | Path, count: int, frame_rate: float) -> torch.Tensor:
    """The first `count` pictures of a video, or fewer if it is shorter, of `frame_rate` moments a second.

    Shape, dtype and errors as of `read_video`.
    """
    pictures = list(_decoded(path, count, frame_rate))
    if not pictures:
        raise ValueError(f"Expected a video with pictures at {path}, but none can be read; write it again.")
    return torch.stack(pictures).permute(3, 0, 1, 2).contiguous()


def _decoded(path: str | Path, most: int | None, frame_rate: float | None = None) -> Iterator[torch.Tensor]:
    """Pictures `(height, width, 3)` of bytes, `most` at the most: all there are, or so many a second."""
    size = video_info(path).size
    command = [ffmpeg_path(), "-v", "error", "-nostdin", "-i", str(path)]
    timing = "" if frame_rate is None else f"fps={frame_rate:g},"
    command += ["-vf", f"{timing}scale=flags=accurate_rnd+full_chroma_int+full_chroma_inp+bicubic"]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    if most is not None:
        command[-5:-5] = ["-frames:v", str(most)]
    length = size[0] * size[1] * 3
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while len(picture := process.stdout.read(length)) == length:
            yield torch.frombuffer(bytearray(picture), dtype=torch.uint8).view(*size, 3)


def video_info(path: str | Path) -> VideoInfo:
    """What the header of a video says. Raises as `read_video`; for one whose sides are out of range too."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no video at {path}; check the path.")
    command = [ffmpeg_path(), "-hide_banner", "-nostdin", "-i", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, errors="replace").stderr
    line = next((line for line in said.splitlines() if " Video: " in line), "")
    sides, rate = re.search(r", (\d{1,6})x(\d{1,6})", line), re.search(r"([\d.]+) fps", line)
    if not sides:
        raise ValueError(f"Expected a video at {path}, got something else or one that is damaged; write it again.")
    width, height = int(sides[1]), int(sides[2])
    turned = re.search(r"rotation of (-?[\d.]+) degrees", said)
    if turned and round(float(turned[1]) / 90) % 2:
        width, height = height, width  # as decoding turns it, and as it is shown: telephones film so
    if not 0 < min(width, height) <= max(width, height) <= MAX_SIDE:
        raise ValueError(f"Expected a video of 1 to {MAX_SIDE} pixels a side at {path}, got {height}x{width}.")
    return VideoInfo(size=(height, width), frame_rate=float(rate[1]) if rate else 25.0)


def usual_codec(suffix: str, size: tuple[int, int]) -> str:
    """The codec for a file of this suffix: the first of `CODECS`, but HEVC for an MP4 beyond H.264's size."""
    able = [name for name, kind in CODECS.items() if suffix.lower() in kind.suffixes]
    if not able:
        known = sorted({suffix for kind in CODECS.values() for suffix in kind.suffixes})
        raise ValueError(f"A video must be written to {', '.join(known)}, got a name with {suffix!r}; rename it.")
    large = able[0] == "h264" and max(size) > LARGEST_H264 and CODECS["hevc"].encoder in encoders()
    return "hevc" if large else able[0]


@cache
def encoders() -> frozenset[str]:
    """Names of what ffmpeg can encode. Raises `OSError` where there is no ffmpeg."""
    said = subprocess.run([ffmpeg_path(), "-hide_banner", "-encoders"], capture_output=True, text=True).stdout
    lines = [line.split() for line in said.splitlines()]
    return frozenset(words[1] for words in lines if len(words) > 1 and words[0].startswith("V"))


def ffmpeg_path() -> str:
    """The ffmpeg that imageio-ffmpeg brings along. Raises `OSError` where there is none."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise OSError(f"No video encoder ({error}); `pip install imageio-ffmpeg` brings one.") from error


def _encode(command: list[str], pictures: Iterable[np.ndarray], path: str | Path) -> None:
    """Feeds raw pictures to ffmpeg. Called directly: imageio's writer hides its exit status and its reason."""
    with tempfile.TemporaryFile() as complaints:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=complaints) as process:
            try:
                _feed(process.stdin, pictures)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            complaints.seek(0)
            lines = complaints.read().decode(errors="replace").split("\n")
            reason = next((line.strip() for line in reversed(lines) if line.strip()), f"status {process.returncode}")
            raise OSError(f"Could not write {path}: ffmpeg says {reason!r}; choose another place or free some space.")


def _feed(pipe: BinaryIO, pictures: Iterable[np.ndarray]) -> None:
    for picture in pictures:
        try:
            pipe.write(picture.tobytes())
        except BrokenPipeError:
            return  # the encoder has ended early; its exit status says so
    try:
        pipe.close()
    except BrokenPipeError:
        return


CODECS: dict[str, Codec] = {
    "h264": Codec(
        suffixes=(".mp4",),
        form="mp4",
        encoder="libx264",
        # 16: nobody sees a difference (0 is lossless, 23 the encoder's default). The index comes in front.
        options=("-profile:v", "high", "-crf", "16", "-movflags", "+faststart"),
    ),
    "hevc": Codec(
        suffixes=(".mp4",),
        form="mp4",
        encoder="libx265",
        options=("-crf", "18", "-tag:v", "hvc1", "-x265-params", "log-level=error", "-movflags", "+faststart"),
    ),
    "vp9": Codec(
        suffixes=(".webm",),
        form="webm",
        encoder="libvpx-vp9",
        options=("-crf", "20", "-b:v", "0", "-deadline", "good", "-cpu-used", "4", "-row-mt", "1"),
    ),
    "av1": Codec(
        suffixes=(".webm",),
        form="webm",
        encoder="libsvtav1",
        options=("-crf", "24", "-preset", "8"),
    ),
    "webp": Codec(
        suffixes=(".webp",),
        form="webp",
        encoder="libwebp_anim",
        options=("-lossless", "1", "-loop", "0"),
        subsampled=False,
    ),
}
"""Every kind of video by its name; the first of those with a file's suffix is the usual one."""
