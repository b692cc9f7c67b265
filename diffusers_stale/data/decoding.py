"""Videos and pictures for training, from files or from bytes, decoded by PyAV a picture at a time and made to fit.

Pictures are cut to a square from their middle and reduced as they come, so that memory holds the small ones only. All
views of a clip are cut alike, so cameras stay where they are; disparity shrinks with the pictures.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional


if TYPE_CHECKING:
    import av
    from av.filter import Graph

VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

COLOURS = "flags=accurate_rnd+full_chroma_int+full_chroma_inp+bicubic"
"""How YUV becomes RGB: as `light_field.video` has it, to the bit."""

SEEK_FROM = 32
"""First frame from which on a video is not decoded from its beginning."""

MAX_SIDE = 16384
"""Largest side of what is read, in pixels."""


MAX_SIXTEEN_BITS = 2**16 - 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file, or the bytes of one that lie within another (of an archive, `size` bytes from `offset` on)."""

    name: str
    path: Path
    offset: int = 0
    size: int | None = None

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower()

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read() if self.size is None else file.read(self.size)

    def source(self) -> str | io.BytesIO:
        """What PyAV and Pillow open."""
        return str(self.path) if self.size is None else io.BytesIO(self.read())

    def length(self) -> int:
        """In bytes."""
        return self.path.stat().st_size if self.size is None else self.size

    def __str__(self) -> str:
        return str(self.path) if self.size is None else f"{self.path}, in it {self.name}"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is known of a picture or video before it is decoded; `frame_rate` is None for a picture."""

    height: int
    width: int
    frames: int
    frame_rate: float | None


def header_of(part: Part) -> Header:
    """Size, length and frame rate. Raises `ValueError`, naming the file, for what cannot be read."""
    if part.suffix in VIDEO_SUFFIXES:
        with _video(part) as (container, stream):
            frames = stream.frames or len(_times(container, stream))
            rate = stream.average_rate or stream.guessed_rate or 25
            height, width = stream.codec_context.height, stream.codec_context.width
            # Without decoding one cannot know whether it is turned; a picture tells.
            container.seek(0)
            turned = next(container.decode(stream)).rotation // 90 % 2 if frames else 0
            header = Header(
                height=width if turned else height,
                width=height if turned else width,
                frames=frames,
                frame_rate=float(rate),
            )
    else:
        with _picture(part) as image:
            header = Header(height=image.height, width=image.width, frames=1, frame_rate=None)
    if not 0 < min(header.height, header.width) <= max(header.height, header.width) <= MAX_SIDE or not header.frames:
        raise broken(part, f"{header.height}x{header.width} pixels and {header.frames} frames")
    return header


def pictures_of(part: Part, wanted: range) -> Iterator[np.ndarray]:
    """The frames numbered `wanted`, uint8 `(height, width, 3)`; a picture has frame 0 only.

    Raises `ValueError`, naming the file, for what cannot be decoded or ends before.
    """
    if part.suffix not in VIDEO_SUFFIXES:
        with _picture(part) as image:
            yield _eight_bits(image, part)
        return
    found = 0
    with _video(part) as (container, stream):
        first = 0
        if wanted.start >= SEEK_FROM:
            first = _sought(container, stream, wanted.start, part)
        graph = _rgb(stream)
        for index, frame in enumerate(container.decode(stream), start=first):
            if index in wanted:
                if frame.is_corrupt:
                    raise broken(part, f"frame {index}, which is damaged")
                graph.push(frame)
                yield np.rot90(graph.pull().to_ndarray(), frame.rotation // 90 % 4)
                found += 1
            if index >= wanted[-1]:
                break
    if found < len(wanted):
        raise broken(part, f"only {found} of the frames {wanted[0]} to {wanted[-1]}")


def fitted(picture: np.ndarray, size: int) -> torch.Tensor:
    """The middle square of a picture `(height, width, 3)` at `size` x `size` pixels; uint8 `(3, size, size)`."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(picture[top : top + side, left : left + side].copy()).movedim(-1, 0)
    if side == size:
        return square.contiguous()
    resized = functional.interpolate(square[None].float(), (size, size), mode="bilinear", antialias=True)
    return resized[0].round_().clamp_(0, 255).to(torch.uint8)


def broken(part: Part | Path, what: str) -> ValueError:
    """The error for a file with which something is wrong."""
    return ValueError(f"Expected a sound picture or video at {part}, got {what}; write or download it again.")


def _pyav() -> ModuleType:
    """PyAV, which only those need who train; raises `ImportError` where there is none."""
    try:
        import av
    except ImportError as error:
        raise ImportError("Clips are decoded by PyAV: pip install 'diffusers-stale[train]' brings it.") from error
    return av


def _rgb(stream: "av.VideoStream") -> "Graph":
    graph = _pyav().filter.Graph()
    nodes = [
        graph.add_buffer(template=stream),
        graph.add("scale", COLOURS),
        graph.add("format", "pix_fmts=rgb24"),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    return graph


@contextmanager
def _video(part: Part) -> Iterator[tuple["av.container.InputContainer", "av.VideoStream"]]:
    if not part.path.is_file():
        raise FileNotFoundError(f"There is no file {part.path}; check the path.")
    av = _pyav()
    try:
        with av.open(part.source()) as container:
            if not container.streams.video:
                raise broken(part, "sound alone, or nothing at all")
            stream = container.streams.video[0]
            # One thread: others decode other clips at the same time.
            stream.thread_type = "NONE"
            yield container, stream
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise broken(part, f"what cannot be decoded ({error})") from error


@contextmanager
def _picture(part: Part) -> Iterator[Image.Image]:
    if not part.path.is_file():
        raise FileNotFoundError(f"There is no file {part.path}; check the path.")
    try:
        with Image.open(part.source()) as image:
            # Cameras that were held upright say so beside the pixels.
            ImageOps.exif_transpose(image, in_place=True)
            yield image
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise broken(part, f"what cannot be decoded ({error})") from error


def _eight_bits(image: Image.Image, part: Part) -> np.ndarray:
    """RGB of `image`, uint8 `(height, width, 3)`. Of 16 bits (depth maps) Pillow would keep the lowest."""
    if image.mode == "F":
        raise broken(part, "numbers that are no integers, so that black and white are unknown")
    if not image.mode.startswith("I"):
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image).astype(np.int64)
    if not 0 <= values.min() <= values.max() <= MAX_SIXTEEN_BITS:
        raise broken(part, f"numbers from {values.min()} to {values.max()}, which 16 bits do not hold")
    return np.repeat((values * 255 / MAX_SIXTEEN_BITS).round().astype(np.uint8)[..., None], 3, axis=-1)


def _times(container: "av.container.InputContainer", stream: "av.VideoStream") -> list[int]:
    """When each frame is shown, in order; read from the packets, without decoding."""
    return sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None and not packet.is_discard)


def _sought(container: "av.container.InputContainer", stream: "av.VideoStream", index: int, part: Part) -> int:
    """Goes to the last key frame that is not after the frame `index`; returns its number."""
    times = _times(container, stream)
    if index >= len(times):
        raise broken(part, f"{len(times)} frames and none numbered {index}")
    container.seek(times[index], stream=stream)
    first = next(container.decode(stream))
    container.seek(times[index], stream=stream)
    if first.pts not in times:
        # No frame says which one it is: from the beginning, then.
        container.seek(0, stream=stream)
        return 0
    return times.index(first.pts)
