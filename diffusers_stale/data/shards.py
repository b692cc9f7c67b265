"""WebDataset shards: plain tar files of clips, of which only headers are read until a clip is asked for.

The files of a clip share the part of their names before the first dot (https://github.com/webdataset/webdataset):
`000007.json` with the keys of `folders.py` (or `000007.txt` with a caption) and one of

    000007.view_00_00.mp4, 000007.view_00_01.mp4, ...   a video or picture for each view
    000007.view_00_00.00000.png, ...                    a picture for each view and frame
    000007.qs8x6.mp4                                    a quilt of 8 columns and 6 rows
    000007.lf.safetensors                               a light field
    000007.mp4                                          one view (and 000007.depth.mp4, for monocular clips)

Archives are not streams here: every clip is read where it lies, so the order is a matter of counters and nothing is
lost with a process.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from diffusers_stale.data.clips import LIGHT_FIELD_SUFFIX, Clip, Form, Quilt, Sizes, Stored, ViewFiles, make_clip
from diffusers_stale.data.decoding import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Part
from diffusers_stale.data.folders import BrokenFiles, entry_of
from diffusers_stale.light_field.atomic import atomic_path


SHARD_SUFFIX = ".tar"
VIEW = re.compile(r"view_(\d{1,4})_(\d{1,4})(?:\.(\d{1,8}))?\.\w+$")
QUILT = re.compile(r"qs(\d{1,3})x(\d{1,3})(?:a[\d.]+)?\.\w+$")
BLOCK = 512
"""Bytes that all parts of a tar file are a multiple of."""

MAX_TEXT = 2**20
"""Largest JSON or text that is read, in bytes."""


def shards_of(folder: Path) -> list[Path]:
    """The shards in a folder. Raises `FileNotFoundError` where there is none."""
    found = sorted(folder.glob(f"*{SHARD_SUFFIX}")) if folder.is_dir() else []
    if not found:
        raise FileNotFoundError(f"Expected *{SHARD_SUFFIX} in {folder}, got none; scripts/make_shards.py writes them.")
    return found


def shard_clips(shard: Path, frame_rate: float, problems: BrokenFiles) -> Iterator[Clip]:
    """The clips of a shard in its order; broken ones, and what cannot be read of a shard, are told to `problems`."""
    for key, parts in _samples(shard, problems).items():
        try:
            clip = _clip(f"{shard.name}/{key}", parts, frame_rate)
        except (ValueError, OSError, TypeError, KeyError) as error:
            problems.add(f"{shard}, in it {key}", error)
            continue
        yield clip


def write_shards(clips: Iterable[Clip], folder: Path, clips_a_shard: int) -> list[Path]:
    """Packs clips into `folder/shard-00000.tar` and so on, each whole or not at all; returns the shards.

    Raises `FileExistsError` for a folder that holds some.
    """
    if folder.is_dir() and any(folder.glob(f"*{SHARD_SUFFIX}")):
        raise FileExistsError(f"There are shards in {folder} already; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    written, left = [], iter(clips)
    while group := list(islice(left, clips_a_shard)):
        first = len(written) * clips_a_shard
        written.append(folder / f"shard-{len(written):05}{SHARD_SUFFIX}")
        with atomic_path(written[-1]) as temporary, tarfile.open(temporary, "w") as archive:
            for index, clip in enumerate(group, start=first):
                _add(archive, f"{index:08}", clip)
    return written


def _add(archive: tarfile.TarFile, key: str, clip: Clip) -> None:
    values: dict[str, Any] = {
        "file_name": clip.name,
        "text": list(clip.captions),
        "baseline": clip.baseline,
        "view_step": clip.view_step,
        "sizes": asdict(clip.form.sizes()),
    }
    if isinstance(clip.form, ViewFiles) and clip.form.kept is not None:
        values["kept"] = list(clip.form.kept)
    _member(archive, f"{key}.json", json.dumps(values, ensure_ascii=False).encode())
    depth = {} if clip.depth is None else {f"depth{clip.depth.suffix}": clip.depth}
    for name, part in (clip.form.members() | depth).items():
        _member(archive, f"{key}.{name}", part.read())


def _member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    # Nothing but name and content, so that the same clips make the same archive.
    header = tarfile.TarInfo(name)
    header.size = len(content)
    archive.addfile(header, io.BytesIO(content))


def _samples(shard: Path, problems: BrokenFiles) -> dict[str, dict[str, Part]]:
    """The files of each clip by what follows its key."""
    samples: dict[str, dict[str, Part]] = {}
    length, end = shard.stat().st_size, 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                folder, _, base = member.name.rpartition("/")
                key, dot, rest = base.partition(".")
                if member.isfile() and dot:
                    part = Part(name=member.name, path=shard, offset=member.offset_data, size=member.size)
                    samples.setdefault(f"{folder}/{key}" if folder else key, {})[rest.lower()] = part
        # Python takes an archive that is cut between two files for a whole one; those end with an empty block.
        if length < end + BLOCK:
            raise tarfile.ReadError(f"its end is missing after {end} bytes")
    except (tarfile.TarError, EOFError) as error:
        problems.add(str(shard), ValueError(f"Expected a plain tar file, but {error}; write or download it again."))
        # The clip at the end may lack files.
        for key in list(samples)[-1:]:
            del samples[key]
    return samples


def _clip(name: str, parts: dict[str, Part], frame_rate: float) -> Clip:
    values = _values(parts)
    entry = entry_of({"file_name": name} | values, "its JSON")
    depth = next((parts.pop(rest) for rest in list(parts) if rest.startswith("depth.")), None)
    form = _form(name, parts, values)
    sizes = Sizes(**values["sizes"]) if "sizes" in values else form.sizes()
    return make_clip(name, entry.captions, form, sizes, frame_rate, entry.baseline, entry.view_step, depth)


def _values(parts: dict[str, Part]) -> dict[str, Any]:
    """Captions and all else that is said of a clip."""
    text = parts.get("json", parts.get("txt"))
    if text is None:
        raise ValueError(f"Expected a .json or .txt with a caption, got {', '.join(sorted(parts))}; add one.")
    if text.length() > MAX_TEXT:
        raise ValueError(f"Expected at most {MAX_TEXT} bytes of {text.name}, got {text.length()}.")
    content = text.read().decode()
    values = json.loads(content) if "json" in parts else {"text": content.strip()}
    if not isinstance(values, dict):
        raise ValueError(f"Expected a JSON object in {text.name}, got {content[:60]!r}.")
    return values


def _form(name: str, parts: dict[str, Part], values: dict[str, Any]) -> Form:
    views: dict[tuple[int, int], dict[int, Part]] = {}
    for rest, part in parts.items():
        if f".{rest}".endswith(LIGHT_FIELD_SUFFIX):
            return Stored(part=part)
        if found := QUILT.match(rest):
            return Quilt(part=part, columns=int(found[1]), rows=int(found[2]))
        if found := VIEW.match(rest):
            views.setdefault((int(found[1]), int(found[2])), {})[int(found[3] or 0)] = part
    if views:
        _check_grid(views, name)
        ordered = {place: tuple(files[frame] for frame in sorted(files)) for place, files in views.items()}
        kept = values.get("kept")
        return ViewFiles(name=name, views=ordered, kept=None if kept is None else (int(kept[0]), int(kept[1])))
    single = [part for part in parts.values() if part.suffix in (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES)]
    if len(single) != 1:
        raise ValueError(f"Expected the views of a clip, got {', '.join(sorted(parts))}; see data/shards.py.")
    return ViewFiles(name=name, views={(0, 0): (single[0],)})


def _check_grid(views: dict[tuple[int, int], dict[int, Part]], name: str) -> None:
    rows, cols = (1 + max(place[axis] for place in views) for axis in (0, 1))
    missing = [(row, col) for row in range(rows) for col in range(cols) if (row, col) not in views]
    if missing:
        raise ValueError(
            f"Expected one view for each place of a {rows}x{cols} grid in {name}, got none for row {missing[0][0]} "
            f"column {missing[0][1]}; write the shard again."
        )
