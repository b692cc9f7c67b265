"""What `data=` can say, and the order in which clips are taken. Opens no files."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from diffusers_stale.data.scenes import random_generator


BARNYARD = "barnyard"
KINDS = (BARNYARD, "folder", "shards", "monocular")
"""Rendered scenes; a folder of clips with metadata; WebDataset shards; either of them with videos of one view."""

EXAMPLE = "folder:my/clips:3, shards:my/shards, monocular:my/videos, barnyard:0.5"

ORDER_STREAM = 72
MIXED_SHARDS = 4
"""Shards whose clips are shuffled among each other."""


@dataclass(frozen=True, kw_only=True)
class SourceSetting:
    """One source: its kind, where it lies (None for barnyards) and how often it is drawn from, beside the others."""

    kind: str
    place: Path | None = None
    weight: float = 1.0

    def __str__(self) -> str:
        return self.kind if self.place is None else f"{self.kind}:{self.place}"


def parse_sources(text: str, name: str = "data") -> tuple[SourceSetting, ...]:
    """The sources in `text`, written "kind:place:weight" and separated by commas; the weight is 1 if left out.

    Barnyards have no place. Raises `ValueError` for another form, unknown kinds, and the same source twice.
    """
    sources = tuple(_parse_source(part.strip(), name) for part in text.split(",") if part.strip())
    if not sources:
        raise ValueError(f"`{name}` must have at least one source, got {text!r}; for example {EXAMPLE}.")
    if len({str(source) for source in sources}) < len(sources):
        raise ValueError(f"`{name}` must name each source once, got {text!r}; give it the sum of its weights.")
    return sources


def kinds(text: str, name: str = "data") -> set[str]:
    """The kinds of the sources in `text`; raises as `parse_sources`."""
    return {source.kind for source in parse_sources(text, name)}


def _parse_source(text: str, name: str) -> SourceSetting:
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"`{name}` must have sources of a kind among {', '.join(KINDS)}, got {text!r}; did you mean {near}? "
            f"It reads like {EXAMPLE}."
        )
    place, weight = rest, 1.0
    before, _, last = rest.rpartition(":")
    if _number(last) is not None and (before or kind == BARNYARD):
        place, weight = before, _number(last)
    if not 0 < weight < float("inf"):
        raise ValueError(f"`{name}` must have weights above 0, got {text!r}; leave the source out instead.")
    if (kind == BARNYARD) != (place == ""):
        wanted = f"{BARNYARD}:WEIGHT" if kind == BARNYARD else f"{kind}:PLACE:WEIGHT"
        raise ValueError(f"`{name}` must have sources like {wanted}, got {text!r}; as in {EXAMPLE}.")
    return SourceSetting(kind=kind, place=Path(place) if place else None, weight=weight)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class Order:
    """An endless order of clips in groups, in which every epoch has each clip once, shuffled anew.

    What stands at a position follows from the integers in `key` and the position alone. Groups are taken in a random
    order, `MIXED_SHARDS` at a time, so that what is read lies together.
    """

    def __init__(self, groups: Sequence[Sequence[int]], key: tuple[int, ...]) -> None:
        self.groups = [tuple(group) for group in groups if group]
        self.key = key
        self.length = sum(map(len, self.groups))
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def at(self, position: int) -> int:
        """The clip at `position`, 0 or more."""
        epoch, place = divmod(position, self.length)
        return self._epoch(epoch)[place]

    def _shuffled(self, epoch: int) -> tuple[int, ...]:
        draw = random_generator(*self.key, epoch, ORDER_STREAM)
        groups = [self.groups[index] for index in draw.permutation(len(self.groups))]
        order: list[int] = []
        for start in range(0, len(groups), MIXED_SHARDS):
            near = [clip for group in groups[start : start + MIXED_SHARDS] for clip in group]
            order += [near[index] for index in draw.permutation(len(near))]
        return tuple(order)
