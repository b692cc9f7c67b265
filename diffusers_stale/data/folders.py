"""Folders of clips with captions in `metadata.jsonl`, as Hugging Face datasets have them; what becomes of broken ones.

Every line is a JSON object: `file_name` (a file, or the folder of a clip, relative to the folder), `text` (a caption
or a list of them) and, if wanted, `baseline` (factor on disparity), `view_step` (take every n-th view) and `depth`
(for monocular clips: a picture or video that is brighter where things are nearer). Other keys are for others.
"""

import difflib
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers_stale.data.clips import LIGHT_FIELD_SUFFIX, Clip, form_of, make_clip
from diffusers_stale.data.decoding import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Part


METADATA = "metadata.jsonl"
KEYS = ("file_name", "text", "baseline", "view_step", "depth")
NEARLY = 0.85
"""How like a key another one must be to be taken for a slip."""

SHOWN = 5
"""Names that a sentence lists before it only counts."""


class BrokenDataError(ValueError):
    """More files are broken than the run was told to put up with."""


class BrokenFiles:
    """Says what is broken, once for every clip, and ends the run when it is more than `limit` clips.

    `remedy` is what the error advises.
    """

    def __init__(
        self, limit: int, say: Callable[[str], None] = print, remedy: str = "Mend them, or set max_broken higher."
    ) -> None:
        self.limit, self.say, self.remedy = limit, say, remedy
        self.found: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, name: str, error: Exception) -> None:
        """Raises `BrokenDataError` beyond the limit."""
        with self._lock:
            if name in self.found:
                return
            self.found[name] = str(error)
            self.say(f"left out, {len(self.found)} of at most {self.limit} broken clips: {name}: {error}")
            if len(self.found) > self.limit:
                raise BrokenDataError(
                    f"At most {self.limit} broken clips may be left out, got {len(self.found)}, the last one {name}: "
                    f"{error} {self.remedy}"
                )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of metadata, checked."""

    file_name: str
    captions: tuple[str, ...]
    baseline: float | None = None
    view_step: int = 1
    depth: str | None = None


def entry_of(values: Any, where: str) -> Entry:
    """The entry that JSON `values` state. Raises `ValueError`, beginning with `where`, for what cannot be."""
    if not isinstance(values, dict) or not isinstance(values.get("file_name"), str) or not values["file_name"]:
        raise ValueError(f'{where}: expected an object like {{"file_name": ..., "text": ...}}, got {values!r}.')
    for key in values.keys() - set(KEYS):
        if near := difflib.get_close_matches(key, KEYS, n=1, cutoff=NEARLY):
            raise ValueError(f"{where}: there is no key {key!r}; did you mean {near[0]!r}?")
    texts = values.get("text")
    captions = texts if isinstance(texts, list) else [texts]
    if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
        raise ValueError(f"{where}: `text` must be a caption or a list of some, got {texts!r}; write what is seen.")
    baseline, view_step, depth = values.get("baseline"), values.get("view_step", 1), values.get("depth")
    if baseline is not None and not (_is_number(baseline) and math.isfinite(baseline) and baseline > 0):
        raise ValueError(f"{where}: `baseline` must be a number above 0, got {baseline!r}; 1 is that of the model.")
    if isinstance(view_step, bool) or not isinstance(view_step, int) or view_step < 1:
        raise ValueError(f"{where}: `view_step` must be an integer of at least 1, got {view_step!r}.")
    if depth is not None and not isinstance(depth, str):
        raise ValueError(f"{where}: `depth` must be the name of a file, got {depth!r}.")
    return Entry(
        file_name=values["file_name"],
        captions=tuple(captions),
        baseline=None if baseline is None else float(baseline),
        view_step=view_step,
        depth=depth,
    )


def read_metadata(folder: Path) -> list[Entry]:
    """The entries of a folder's metadata.

    Raises `FileNotFoundError` where there is no folder, no metadata, or no file of a name in it; `ValueError` for
    lines that are no entry, names that are there twice or lead out of the folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}; check the path.")
    path = folder / METADATA
    if not path.is_file():
        inside = sorted(found.parent.name for found in folder.glob(f"*/{METADATA}"))
        remedy = f"name one of its folders {', '.join(inside)}" if inside else "write a line for each clip"
        raise FileNotFoundError(f"There is no {METADATA} in {folder}, so nothing has a caption; {remedy}.")
    entries: dict[str, Entry] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            entry = _entry_of_line(line, f"{path}, line {number}", folder)
            if entry.file_name in entries:
                raise ValueError(
                    f"{path}, line {number}: {entry.file_name} has a caption already; give `text` a list for several."
                )
            entries[entry.file_name] = entry
    if not entries:
        raise ValueError(f"{path} has no line; write one for each clip.")
    named = [name for entry in entries.values() for name in (entry.file_name, entry.depth) if name is not None]
    missing = [name for name in named if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(f"{path} names what is not there: {listed(missing)}; add it, or take out the lines.")
    return list(entries.values())


def _entry_of_line(line: str, where: str, folder: Path) -> Entry:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON, got {line[:60]!r} ({error}); mend the line.") from error
    entry = entry_of(values, where)
    for name in (entry.file_name, entry.depth):
        if name is not None and not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{where}: {name} lies outside of {folder}; move it there.")
    return entry


def folder_clips(
    folder: Path, frame_rate: float, problems: BrokenFiles, say: Callable[[str], None] = print
) -> Iterator[Clip]:
    """The clips of a folder in the order of their names, broken ones left out and told to `problems`.

    What has no caption is left out too, and told to `say`. Raises as `read_metadata` does.
    """
    entries = read_metadata(folder)
    strangers = without_captions(folder, entries)
    if strangers:
        say(f"left out, no line in {folder / METADATA}: {listed(strangers)}")
    for entry in sorted(entries, key=lambda item: item.file_name):
        path = folder / entry.file_name
        try:
            form = form_of(path)
            sizes = form.sizes()
        except (ValueError, OSError) as error:
            problems.add(str(path), error)
            continue
        depth = None if entry.depth is None else Part(name=Path(entry.depth).name, path=folder / entry.depth)
        yield make_clip(
            entry.file_name, entry.captions, form, sizes, frame_rate, entry.baseline, entry.view_step, depth
        )


def without_captions(folder: Path, entries: list[Entry]) -> list[str]:
    """Names of clips that lie beside those that have captions, and have none."""
    named = {name for entry in entries for name in (entry.file_name, entry.depth) if name is not None}
    tops = {Path(name).parts[0] for name in named}
    known = (*VIDEO_SUFFIXES, *PICTURE_SUFFIXES, LIGHT_FIELD_SUFFIX)
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in tops and not path.name.startswith(".") and (path.is_dir() or path.name.endswith(known))
    )


def listed(names: list[str]) -> str:
    """Some of `names`, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
