"""Batches of clips of one's own: from folders, shards and monocular videos, and from barnyards beside them.

What a batch holds follows from counters (seed, step, process, index) and the files alone: neither the number of
workers nor what was read before counts. Clips of folders are encoded before training and kept beside the run; those of
shards are decoded by threads some steps ahead and encoded when they are needed.
"""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from diffusers_stale.data.clips import Clip
from diffusers_stale.data.folders import BrokenDataError, BrokenFiles, folder_clips, read_metadata
from diffusers_stale.data.layers import Layered, layered_clip
from diffusers_stale.data.scenes import random_generator
from diffusers_stale.data.shards import SHARD_SUFFIX, shard_clips, shards_of
from diffusers_stale.data.sources import BARNYARD, Order, SourceSetting, parse_sources
from diffusers_stale.training.clip_settings import ClipSettings
from diffusers_stale.training.grids import Grid
from diffusers_stale.training.latents import encode, fingerprint
from diffusers_stale.training.provenance import tensors_hash


PIECE_STREAM = 52
AHEAD = 2
"""Batches that are decoded before they are needed."""

ATTEMPTS = 20
"""Clips that are tried for one place of a batch before it is given up."""

CHUNK_BYTES = 2**26
"""Pixels of a clip that are decoded at once, to be encoded."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One sample of a batch: latents `(channels, view_rows, view_cols, frames, height, width)`, or pixels to encode.

    `pixels` are uint8 with 3 channels; `shares`, the part of animal in each latent pixel, are None where nobody knows.
    """

    caption: str
    baseline: float
    latents: torch.Tensor | None = None
    pixels: torch.Tensor | None = None
    shares: torch.Tensor | None = None


class Source(Protocol):
    """What a batch can be drawn from.

    `piece` gives a part of the size of `grid`: of the clip that stands at `position` in the source's order, or of
    another one if that has to be replaced, for the `attempt`th time. It raises `ValueError` and `OSError` for broken
    files, which `name_of` the clip tells.
    """

    weight: float
    streams: bool

    def serves(self, grid: Grid) -> bool: ...

    def piece(self, grid: Grid, position: int, attempt: int, draw: np.random.Generator) -> Piece: ...

    def fingerprint(self) -> str: ...


class BrokenClipError(ValueError):
    """A clip could not be read; `clip` is its name."""

    def __init__(self, clip: str, reason: Exception) -> None:
        super().__init__(str(reason))
        self.clip = clip


class ClipSource:
    """Clips of a folder or of shards, this process's share of them.

    Args:
        latents: where encoded clips are; without them clips are decoded.
        keeps: whether what is decoded stays in memory, every clip as a whole.
    """

    def __init__(
        self, setting: SourceSetting, groups: list[list[Clip]], image_size: int, key: tuple[int, ...],
        latents: "LatentFiles | None" = None, keeps: bool = False,
    ) -> None:  # fmt: skip
        self.setting, self.weight, self.image_size, self.key = setting, setting.weight, image_size, key
        self.clips = [clip for group in groups for clip in group]
        starts = np.cumsum([0, *map(len, groups)]).tolist()
        self.groups = [range(start, stop) for start, stop in zip(starts, starts[1:], strict=False)]
        self.latents, self.streams = latents, latents is None
        self._kept: dict[int, torch.Tensor] | None = {} if keeps else None
        self._orders: dict[tuple[int, int, int], Order] = {}

    def order(self, grid: Grid) -> Order:
        """The order of those clips that are large enough for `grid`."""
        size = (grid.view_rows, grid.view_cols, grid.frames)
        if size not in self._orders:
            groups = [[index for index in group if self.clips[index].serves(*size)] for group in self.groups]
            self._orders[size] = Order(groups, self.key)
        return self._orders[size]

    def serves(self, grid: Grid) -> bool:
        return self.order(grid).length > 0

    def piece(self, grid: Grid, position: int, attempt: int, draw: np.random.Generator) -> Piece:
        place = position if attempt == 0 else int(draw.integers(2**31))
        number = self.order(grid).at(place)
        clip = self.clips[number]
        caption = clip.captions[int(draw.integers(len(clip.captions)))]
        part = [
            range(first := int(draw.integers(most - wanted + 1)), first + wanted)
            for most, wanted in (
                (clip.view_rows, grid.view_rows),
                (clip.view_cols, grid.view_cols),
                (clip.frames, grid.frames),
            )
        ]
        try:
            if self.latents is not None:
                return Piece(caption=caption, baseline=clip.baseline, latents=self.latents.read(clip, *part))
            return Piece(caption=caption, baseline=clip.baseline, pixels=self._pixels(number, part))
        except (ValueError, OSError) as error:
            raise BrokenClipError(f"{self.setting}, {clip.name}", error) from error

    def _pixels(self, number: int, part: list[range]) -> torch.Tensor:
        """Pixels of a part of the clip with that number."""
        clip = self.clips[number]
        if self._kept is None:
            return clip.read(*part, self.image_size)
        if number not in self._kept:
            whole = (range(clip.view_rows), range(clip.view_cols), range(clip.frames))
            self._kept[number] = clip.read(*whole, self.image_size)
        return self._kept[number][(slice(None), *(slice(each.start, each.stop) for each in part))]

    def fingerprint(self) -> str:
        """Of names, captions and sizes; of encoded clips also of all latents."""
        digest = hashlib.sha256()
        for clip in self.clips:
            encoded = "" if self.latents is None else self.latents.digest(clip)
            digest.update(f"{clip.name}\n{clip.captions}\n{clip.baseline}\n{clip.length()}\n{encoded}\n".encode())
        return digest.hexdigest()


class LatentFiles:
    """Encoded clips, a file for each, made once: `(channels, view_rows, view_cols, frames, height, width)`, float16.

    A file is made again when its clip, the autoencoder or the size of pictures has changed.
    """

    def __init__(self, folder: Path, vae: AutoencoderKL, image_size: int, encode_batch: int) -> None:
        self.folder, self.vae, self.image_size, self.encode_batch = folder, vae, image_size, encode_batch
        self.vae_hash = fingerprint(vae)
        self._paths: dict[str, Path] = {}

    def path(self, clip: Clip) -> Path:
        """Where the latents of `clip` are, whose files are looked at once."""
        if clip.name not in self._paths:
            self._paths[clip.name] = self._path(clip)
        return self._paths[clip.name]

    def _path(self, clip: Clip) -> Path:
        form = clip.form
        made = [form.view_rows, form.view_cols, form.baseline, form.seed] if isinstance(form, Layered) else []
        parts = [*form.members().values(), *([clip.depth] if clip.depth is not None else [])]
        files = [[str(part), part.length(), part.path.stat().st_mtime_ns] for part in parts]
        label = [files, clip.view_step, clip.frame_step, made, self.image_size, self.vae_hash]
        return self.folder / f"{hashlib.sha256(json.dumps(label).encode()).hexdigest()[:32]}.safetensors"

    def add(self, clip: Clip) -> None:
        """Encodes `clip` if it is not there. Raises `ValueError` and `OSError` for broken files."""
        path = self.path(clip)
        if path.is_file():
            return
        chunk = max(1, CHUNK_BYTES // (clip.view_rows * clip.view_cols * 3 * self.image_size**2))
        views, encoded = (range(clip.view_rows), range(clip.view_cols)), []
        for start in range(0, clip.frames, chunk):
            frames = range(start, min(start + chunk, clip.frames))
            pixels = clip.read(*views, frames, self.image_size)
            encoded.append(encode(self.vae, pixels[None].float() / 127.5 - 1, self.encode_batch)[0].half())
        latents = {"latents": torch.cat(encoded, dim=3).contiguous()}
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may encode the same clip, for validation.
        temporary = path.with_name(f".{os.getpid()}-{path.name}")
        save_file(latents, temporary, metadata={"clip": clip.name, "digest": tensors_hash(latents)})
        temporary.chmod(0o644)
        temporary.rename(path)

    def read(self, clip: Clip, rows: range, cols: range, frames: range) -> torch.Tensor:
        """The latents of a part of a clip that was added."""
        chosen = (slice(None), *(slice(part.start, part.stop) for part in (rows, cols, frames)))
        try:
            with safe_open(self.path(clip), framework="pt") as file:
                return file.get_slice("latents")[chosen].clone()
        except SafetensorError as error:
            raise ValueError(f"{self.path(clip)} is damaged ({error}); delete it.") from error

    def digest(self, clip: Clip) -> str:
        with safe_open(self.path(clip), framework="pt") as file:
            return file.metadata()["digest"]


class Mixture:
    """Several sources, drawn from as often as their weights say, of those that are large enough for a batch's grid.

    Args:
        sources: what is drawn from.
        seed: of the run.
        batch: samples of the largest batch; positions in the orders of sources are `step * batch + index`.
        vae, encode_batch: what encodes pixels.
        workers: threads that decode, 0 for none.
        problems: told of broken clips, which are replaced.
    """

    def __init__(
        self, sources: list[Source], seed: int, batch: int, vae: AutoencoderKL, encode_batch: int, workers: int,
        problems: BrokenFiles,
    ) -> None:  # fmt: skip
        self.sources, self.seed, self.largest_batch = sources, seed, batch
        self.vae, self.encode_batch, self.problems = vae, encode_batch, problems
        self.workers = workers if any(source.streams for source in sources) else 0
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: dict[tuple[int, int, Grid], list[Future[Piece]]] = {}

    def check(self, grids: tuple[Grid, ...]) -> None:
        """Raises `ValueError` where no source can serve one of `grids`."""
        for grid in grids:
            if not any(source.serves(grid) for source in self.sources):
                size = f"{grid.view_rows}x{grid.view_cols}x{grid.frames}"
                clips = [clip for source in self.sources for clip in getattr(source, "clips", ())]
                there = sorted({f"{clip.view_rows}x{clip.view_cols}x{clip.frames}" for clip in clips})
                raise ValueError(
                    f"A clip must have the {size} views and frames of a grid to train on, got {', '.join(there)}; set "
                    "static_grids and moving_grids to what the clips have, or data_frame_rate higher."
                )

    def batch(self, step: int, rank: int, grid: Grid, grid_of: Callable[[int], Grid] | None = None) -> list[Piece]:
        """The pieces of the batch number `step` of a process, all with latents.

        `grid_of` guesses the grid of a later step, so that it can be decoded ahead; a wrong guess costs time only.
        """
        waiting = self._waiting.pop((step, rank, grid), None)
        self._look_ahead(step, rank, grid_of)
        if waiting is None:
            pieces = [self.piece(step, rank, index, grid) for index in range(grid.batch_size)]
        else:
            pieces = [future.result() for future in waiting]
        return self._encoded(pieces)

    def piece(self, step: int, rank: int, index: int, grid: Grid) -> Piece:
        """The piece number `index` of a batch. Raises `BrokenDataError` where no sound clip is found."""
        sources = [source for source in self.sources if source.serves(grid)]
        weights = np.asarray([source.weight for source in sources])
        for attempt in range(ATTEMPTS):
            draw = random_generator(self.seed, step, rank, index, attempt, PIECE_STREAM)
            source = sources[int(draw.choice(len(sources), p=weights / weights.sum()))]
            try:
                return source.piece(grid, step * self.largest_batch + index, attempt, draw)
            except BrokenClipError as error:
                self.problems.add(error.clip, error)
        raise BrokenDataError(f"None of {ATTEMPTS} clips could be read; see the files named above.")

    def fingerprints(self) -> dict[str, str]:
        return {str(getattr(source, "setting", "barnyard")): source.fingerprint() for source in self.sources}

    def _look_ahead(self, step: int, rank: int, grid_of: Callable[[int], Grid] | None) -> None:
        if not self.workers or grid_of is None:
            return
        self._threads = self._threads or ThreadPoolExecutor(self.workers, "decoding")
        wanted = {(later, rank, grid_of(later)) for later in range(step + 1, step + 1 + AHEAD)}
        for stale in [key for key in self._waiting if key not in wanted]:
            for future in self._waiting.pop(stale):
                future.cancel()
        for key in sorted(wanted - self._waiting.keys(), key=lambda item: item[0]):
            later, _, grid = key
            self._waiting[key] = [
                self._threads.submit(self.piece, later, rank, index, grid) for index in range(grid.batch_size)
            ]

    def _encoded(self, pieces: list[Piece]) -> list[Piece]:
        """`pieces`, those that have pixels with latents."""
        raw = [piece for piece in pieces if piece.pixels is not None]
        if not raw:
            return pieces
        pixels = torch.stack([piece.pixels for piece in raw]).float() / 127.5 - 1
        latents = iter(encode(self.vae, pixels, self.encode_batch).half())
        return [
            piece
            if piece.pixels is None
            else Piece(caption=piece.caption, baseline=piece.baseline, latents=next(latents))
            for piece in pieces
        ]


def open_groups(
    setting: SourceSetting, frame_rate: float, problems: BrokenFiles, rank: int = 0, processes: int = 1
) -> list[list[Clip]]:
    """This process's share of the clips of a source, in groups that lie together: a folder is one, a shard another.

    Shards are dealt to processes whole where there are enough; of everything else each takes every n-th clip. Raises
    what `folder_clips` and `shards_of` raise, and `ValueError` where nothing is left.
    """
    whole = False
    if is_in_shards(setting):
        shards = shards_of(setting.place)
        whole = len(shards) >= processes
        chosen = shards[rank::processes] if whole else shards
        groups = [list(shard_clips(shard, frame_rate, problems)) for shard in chosen]
    else:
        groups = [list(folder_clips(setting.place, frame_rate, problems))]
    if not whole:
        turns = cycle(range(processes))
        groups = [[clip for clip in group if next(turns) == rank] for group in groups]
    groups = [group for group in groups if group]
    if not groups:
        share = f" for process {rank} of {processes}" if processes > 1 else ""
        raise ValueError(f"{setting} must have a sound clip{share}, got none; mend it, or start fewer processes.")
    return groups


def is_in_shards(setting: SourceSetting) -> bool:
    return setting.kind == "shards" or (setting.kind == "monocular" and any(setting.place.glob(f"*{SHARD_SUFFIX}")))


def make_layered(
    groups: list[list[Clip]], size: tuple[int, int], baselines: tuple[float, ...], seed: int, problems: BrokenFiles
) -> list[list[Clip]]:
    """Monocular clips as light fields of `size` views; those that are none are told to `problems`."""
    layered: list[list[Clip]] = []
    for group in groups:
        layered.append([])
        for clip in group:
            try:
                layered[-1].append(layered_clip(clip, *size, baselines, seed))
            except (ValueError, OSError) as error:
                problems.add(clip.name, error)
    return layered


def encode_all(
    groups: list[list[Clip]], files: LatentFiles, problems: BrokenFiles, title: str, quiet: bool = False
) -> list[list[Clip]]:
    """Encodes every clip that is not encoded yet; returns those that could be, the others are told to `problems`."""
    sound: list[list[Clip]] = []
    for group in groups:
        sound.append([])
        for clip in tqdm(group, title, mininterval=5, disable=quiet):
            try:
                files.add(clip)
            except (ValueError, OSError) as error:
                problems.add(clip.name, error)
            else:
                sound[-1].append(clip)
    return sound


def captions_of(data: str) -> list[str]:
    """All captions of the clips in `data`, of none of which more than the text is read if they lie in folders."""
    found: list[str] = []
    for setting in parse_sources(data):
        if setting.kind == BARNYARD:
            continue
        if is_in_shards(setting):
            clips = (clip for shard in shards_of(setting.place) for clip in shard_clips(shard, 0, BrokenFiles(10**9)))
        else:
            clips = read_metadata(setting.place)
        found += [caption for clip in clips for caption in clip.captions]
    return found


def drawn_frames(
    setting: SourceSetting, config: ClipSettings, image_size: int, count: int, seed: int, problems: BrokenFiles
) -> torch.Tensor:
    """`count` frames of the clips of a source, of random views and moments; uint8 `(count, 3, height, width)`."""
    groups = open_groups(setting, config.data_frame_rate, problems)
    there = sum(clip.view_rows * clip.view_cols * clip.frames for group in groups for clip in group)
    # Where frames are drawn more than once, each is decoded once, and there is room for all of them.
    source = ClipSource(setting, groups, image_size, (seed, 0), keeps=there <= count)
    grid = Grid(view_rows=1, view_cols=1, frames=1, batch_size=count, weight=1.0)
    mixture = Mixture([source], seed, count, None, 1, 0, problems)
    numbers = tqdm(range(count), f"reading {setting}", mininterval=5)
    return torch.stack([mixture.piece(0, 0, index, grid).pixels[:, 0, 0, 0] for index in numbers])
