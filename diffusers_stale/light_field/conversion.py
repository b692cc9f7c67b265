"""Pixels of a light field from what others have: arrays, quilts, folders of views, stereo pictures. And back.

Works on plain tensors; `LightField.from_numpy`, `from_quilt`, `from_view_folder` and `from_side_by_side` use it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, ImageSequence

from diffusers_stale.axes import check_count
from diffusers_stale.light_field.quilt_layout import quilt_views
from diffusers_stale.light_field.video import read_video, video_info


VIDEO_SUFFIXES = {".mp4", ".webm", ".mov", ".mkv", ".avi"}
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
ANIMATED = {"GIF", "WEBP", "PNG"}
"""Kinds of pictures that may move."""

EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}
"""What Pillow calls pictures that it turns into bytes of red, green and blue without cutting numbers off."""

MAX_FRAMES = 10_000
"""Most frames of an animated picture that is read."""

NUMPY_AXES = ("view_rows", "view_cols", "frames", "height", "width", "channels")

Source = torch.Tensor | str | Path
"""A moving picture `(3, frames, height, width)`, a still `(3, height, width)`, or the path of a picture or video."""


def pixels_from_numpy(array: np.ndarray) -> torch.Tensor:
    """`(view_rows, view_cols, frames, height, width, 3)`, uint8 or floating point in [0, 1], as uint8 pixels.

    Returns shape `(3, view_rows, view_cols, frames, height, width)`. Raises `ValueError` for another shape or dtype,
    for numbers that are not finite, of which it names the first, and for those out of [0, 1].
    """
    if not isinstance(array, np.ndarray) or array.ndim != len(NUMPY_AXES) or array.shape[-1] != 3 or 0 in array.shape:
        got = array.shape if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"Expected an array of axes {NUMPY_AXES} with 3 channels, got {got}; add axes of length 1.")
    if array.dtype != np.uint8:
        array = _bytes_of(array)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 0)))


def pixels_to_numpy(pixels: torch.Tensor) -> np.ndarray:
    """uint8 pixels as an array `(view_rows, view_cols, frames, height, width, 3)`, a copy."""
    return np.ascontiguousarray(np.moveaxis(pixels.cpu().numpy(), 0, -1))


def pixels_from_quilt(source: Source, columns: int, rows: int) -> torch.Tensor:
    """A quilt as a row of cameras, uint8, shape `(3, 1, columns * rows, frames, height, width)`."""
    return quilt_views(read_moving(source), columns, rows).contiguous()


def pixels_from_side_by_side(source: Source, half: bool = False, swapped: bool = False) -> torch.Tensor:
    """A stereo picture side by side as two cameras, uint8, shape `(3, 1, 2, frames, height, width)`.

    `half`: the eyes are squeezed, and made as wide as the picture again (bicubic). `swapped`: the right eye comes
    first. Raises `ValueError` for an odd width.
    """
    picture = read_moving(source)
    height, width = picture.shape[-2:]
    if width % 2:
        raise ValueError(f"Expected stereo of an even width, got {width}; it is no picture of two halves.")
    eyes = picture.unflatten(-1, (2, width // 2)).unbind(-2)
    eyes = eyes[::-1] if swapped else eyes
    if half:
        eyes = [
            F.interpolate(eye.transpose(0, 1).float(), (height, width), mode="bicubic")
            .round_()
            .clamp_(0.0, 255.0)
            .to(torch.uint8)
            .transpose(0, 1)
            for eye in eyes
        ]
    return torch.stack(list(eyes), dim=1)[:, None].contiguous()


def pixels_from_view_folder(
    folder: str | Path, view_rows: int | None = None, view_cols: int | None = None
) -> torch.Tensor:
    """A folder with a picture, a video, or a folder of frames for each view, as uint8 pixels.

    Args:
        folder: names end with row and column, as `pigs_00_02.png` and `view_1_0.mp4`; or, where the size of the grid
            is given, they are in the order of the grid, row by row (`2` before `10`).
        view_rows, view_cols: the grid; by default what the names say.

    Returns:
        Shape `(3, view_rows, view_cols, frames, height, width)`.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for a grid with gaps or too many views, views of different sizes or lengths, files that are
            no pictures.
    """
    places = view_places(folder, view_rows, view_cols)
    rows, cols = (1 + max(place[axis] for place in places) for axis in (0, 1))
    views = {place: _read_view(path) for place, path in places.items()}
    shapes = {tuple(view.shape) for view in views.values()}
    if len(shapes) > 1:
        raise ValueError(f"Expected views of one size and length in {folder}, got {sorted(shapes)}; make them alike.")
    return torch.stack([torch.stack([views[r, c] for c in range(cols)], dim=1) for r in range(rows)], dim=1)


def view_places(
    folder: str | Path, view_rows: int | None = None, view_cols: int | None = None
) -> dict[tuple[int, int], Path]:
    """The file or folder of every view in a folder, by row and column; arguments and errors as above."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; check the path.")
    known = PICTURE_SUFFIXES | VIDEO_SUFFIXES
    found = [path for path in folder.iterdir() if path.is_dir() or path.suffix.lower() in known]
    found = sorted((path for path in found if not path.name.startswith(".")), key=in_natural_order)
    return _places(folder, found, view_rows, view_cols)


def read_moving(source: Source) -> torch.Tensor:
    """Any source as uint8, shape `(3, frames, height, width)`, as it is shown; animated pictures with all frames.

    Raises `ValueError` for what is no picture, and for one of more than 8 bits a colour that would lose them.
    """
    if isinstance(source, torch.Tensor):
        picture = source[:, None] if source.ndim == 3 else source
        if picture.ndim != 4 or picture.shape[0] != 3 or picture.dtype != torch.uint8 or 0 in picture.shape:
            raise ValueError(
                f"Expected uint8 of shape (3, frames, height, width) or (3, height, width), got {source.dtype} of "
                f"{tuple(source.shape)}; convert it."
            )
        return picture
    path = Path(source)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return read_video(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no picture at {path}; check the path.")
    try:
        with Image.open(path) as image:
            if image.mode not in EIGHT_BITS:
                raise ValueError(
                    f"Expected a picture of 8 bits a colour at {path}, got mode {image.mode}; scale it to 0 to 255."
                )
            frames = _frames(path, image) if _is_moving(image) else [image]
            pictures = [np.array(ImageOps.exif_transpose(frame).convert("RGB")) for frame in frames]
            return torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2).contiguous()
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"Expected a picture or video at {path}, but it cannot be read: {error}.") from error


def frame_rate_of(source: Source, otherwise: float) -> float:
    """Frames a second of a video or an animated picture; `otherwise` for anything else."""
    if isinstance(source, torch.Tensor):
        return otherwise
    if Path(source).suffix.lower() in VIDEO_SUFFIXES:
        return video_info(source).frame_rate
    with Image.open(source) as image:
        return 1000.0 / min(_milliseconds(image)) if _is_moving(image) else otherwise


def _is_moving(image: Image.Image) -> bool:
    return image.format in ANIMATED and getattr(image, "n_frames", 1) > 1


def _milliseconds(image: Image.Image) -> list[float]:
    """How long each frame of an animated picture lasts; one that does not say lasts a tenth of a second."""
    lasting = []
    for frame in ImageSequence.Iterator(image):
        frame.load()  # WebP tells how long a frame lasts once it is decoded
        lasting.append(float(frame.info.get("duration") or 100.0))
    return lasting


def _frames(path: Path, image: Image.Image) -> Iterator[Image.Image]:
    """The frames of an animated picture, one that lasts longer than others again and again, as writers thin them out.

    Raises `ValueError` for more than `MAX_FRAMES` of them.
    """
    lasting = _milliseconds(image)
    times = [round(duration / min(lasting)) for duration in lasting]
    if sum(times) > MAX_FRAMES:
        raise ValueError(f"Expected at most {MAX_FRAMES} frames at {path}, got {sum(times)}; make a video of it.")
    for frame, count in zip(ImageSequence.Iterator(image), times, strict=True):
        yield from [frame] * count


def in_natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """Numbers in names by what they count, so that 2 comes before 10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _bytes_of(array: np.ndarray) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"Expected an array of uint8, or of floating point in [0, 1], got {array.dtype}; convert it.")
    wrong = ~((array >= 0.0) & (array <= 1.0))  # NaN is neither
    if wrong.any():
        place = [int(index) for index in np.argwhere(wrong)[0]]
        where = ", ".join(f"{name} {index}" for name, index in zip(NUMPY_AXES, place, strict=True))
        raise ValueError(
            f"Expected numbers in [0, 1], got {array[tuple(place)]} first at {where}; scale or mend them."
        )
    return np.rint(array * 255.0).astype(np.uint8)


def _places(
    folder: Path, found: list[Path], view_rows: int | None, view_cols: int | None
) -> dict[tuple[int, int], Path]:
    """The path of every view by its row and column."""
    if not found:
        raise ValueError(f"Expected pictures or videos in {folder}, got none; give the folder that holds the views.")
    names = [re.search(r"(\d{1,4})[_x-](\d{1,4})$", path.stem if path.is_file() else path.name) for path in found]
    if view_rows is not None and view_cols is not None:
        count = check_count("view_rows", view_rows) * check_count("view_cols", view_cols)
        if len(found) != count:
            raise ValueError(f"Expected {view_rows}x{view_cols} views in {folder}, got {len(found)}; count again.")
        return {divmod(index, view_cols): path for index, path in enumerate(found)}
    if not all(names):
        path = found[names.index(None)]
        raise ValueError(
            f"Expected a name like view_00_02{path.suffix}, got {path.name!r}; rename it or give the grid."
        )
    numbers = [(int(match[1]), int(match[2])) for match in names]
    first = [min(number[axis] for number in numbers) for axis in (0, 1)]
    places = {(r - first[0], c - first[1]): path for (r, c), path in zip(numbers, found, strict=True)}
    size = [1 + max(place[axis] for place in places) for axis in (0, 1)]
    missing = [(r, c) for r in range(size[0]) for c in range(size[1]) if (r, c) not in places]
    if missing or len(places) != len(found):
        what = f"none for row {missing[0][0]} column {missing[0][1]}" if missing else "two for one place"
        raise ValueError(
            f"Expected one view for each place of a {size[0]}x{size[1]} grid in {folder}, got {what} ({len(found)} in "
            "all); add what is missing, rename what is there twice."
        )
    return places


def _read_view(path: Path) -> torch.Tensor:
    """One view, shape `(3, frames, height, width)`; of a folder, its pictures are the frames."""
    if not path.is_dir():
        return read_moving(path)
    frames = sorted((item for item in path.iterdir() if item.suffix.lower() in PICTURE_SUFFIXES), key=in_natural_order)
    if not frames:
        raise ValueError(f"Expected pictures in {path}, got none; each is a frame.")
    return torch.cat([read_moving(frame) for frame in frames], dim=1)
