"""Pools of rendered and encoded clips: made once before training, kept beside the run, drawn from at every step."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional
from tqdm import tqdm

from diffusers_stale.autoencoding import normalized
from diffusers_stale.axes import IMAGE_AXES, fold, sizes, unfold
from diffusers_stale.data.renderer import DEFAULT_FRAME_RATE, RenderedClip, render_scene
from diffusers_stale.data.scenes import random_generator, sample_scene
from diffusers_stale.data.splits import RANK_STRIDE, ContaminatedSplit
from diffusers_stale.precision import fast_autocast


POOL_STREAM = 31
LINES = ((1, 1), (1, 3), (3, 1))
"""Grids of which single frames take a view: frames of all views are worth knowing, whole grids are slow to render."""


@dataclass(frozen=True, kw_only=True)
class PoolRequest:
    """What a pool is to hold. With `single_frames`, frames of random views; else clips of the size given.

    Moments are those of the frames of a movie of `moments` frames around time 0. A `split` that is not clean puts test
    scenes in the place of some of this seed's, rendered as the test set renders them.
    """

    seed: int
    count: int
    rank: int
    image_size: int
    single_frames: bool = False
    view_rows: int = 1
    view_cols: int = 1
    frames: int = 1
    moments: int = 8
    baselines: tuple[float, ...] = (1.0,)
    # Not in the representation, which labels pools on disk: those of clean splits are as they were before splits.
    split: ContaminatedSplit | None = field(default=None, repr=False)

    def key(self, number: int) -> tuple[int, int]:
        """Seed and number of the scene of the clip `number`."""
        return (self.seed, number) if self.split is None else self.split.key(number)

    def label(self) -> str:
        leaks = self.split is not None and self.split.count > 0
        return f"{self!r} with {self.split!r}" if leaks else repr(self)


@dataclass(frozen=True, kw_only=True)
class LatentPool:
    """Encoded clips.

    `latents`: `(count, channels, view_rows, view_cols, frames, height, width)`, normalised, float16. `foreground`: the
    same with one channel, uint8: the share of animal in each latent pixel, 255 for all. `scenes`: the scene's index;
    `baselines`: the factor on disparity; both `(count,)`.
    """

    latents: torch.Tensor
    foreground: torch.Tensor
    scenes: torch.Tensor
    baselines: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents)


def cached_pool(vae: AutoencoderKL, request: PoolRequest, encode_batch: int, path: Path) -> LatentPool:
    """The pool in the file `path` if it is of this `request` and autoencoder, else a new one, written there."""
    label = json.dumps({"request": request.label(), "vae": fingerprint(vae)}, sort_keys=True)
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("label") == label:
                return LatentPool(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    pool = render_pool(vae, request, encode_batch, f"encoding {path.stem}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    save_file(vars(pool), temporary, metadata={"label": label})
    temporary.chmod(0o644)
    temporary.rename(path)
    return pool


def render_pool(
    vae: AutoencoderKL,
    request: PoolRequest,
    encode_batch: int,
    title: str = "encoding",
    numbers: Sequence[int] | None = None,
) -> LatentPool:
    """Renders and encodes what `request` asks for, or its clips called `numbers`; only the first process says so."""
    parts: list[dict[str, torch.Tensor]] = []
    first = request.rank * RANK_STRIDE
    wanted = range(first, first + request.count) if numbers is None else numbers
    for index in tqdm(wanted, title, disable=request.rank > 0, mininterval=5):
        clip, baseline = render_clip(request, index)
        parts.append(
            {
                "pixels": ((clip.pixels + 1) * 127.5).round().to(torch.uint8),
                "foreground": clip.foreground[None],
                "scenes": torch.tensor(index),
                "baselines": torch.tensor(baseline),
            }
        )
        waiting = [part for part in parts if "pixels" in part]
        if sum(part["pixels"][0].flatten(0, 2).shape[0] for part in waiting) >= encode_batch:
            _encode_parts(vae, waiting, encode_batch)
    _encode_parts(vae, [part for part in parts if "pixels" in part], encode_batch)
    names = ("latents", "foreground", "scenes", "baselines")
    return LatentPool(**{name: torch.stack([part[name] for part in parts]) for name in names})


def render_clip(request: PoolRequest, index: int) -> tuple[RenderedClip, float]:
    """The clip number `index` and its baseline."""
    seed, scene = request.key(index)
    draw = random_generator(seed, scene, POOL_STREAM)
    rows, cols = request.view_rows, request.view_cols
    if request.single_frames:
        rows, cols = LINES[int(draw.integers(len(LINES)))]
    baseline = float(draw.choice(request.baselines))
    moment = float(draw.integers(request.moments)) - (request.moments - 1) / 2
    start = moment / DEFAULT_FRAME_RATE if request.frames == 1 else None
    clip = render_scene(
        sample_scene(seed, scene),
        rows,
        cols,
        request.frames,
        request.image_size,
        request.image_size,
        baseline=baseline,
        start_seconds=start,
    )
    if request.single_frames:
        clip = _one_view(clip, int(draw.integers(rows)), int(draw.integers(cols)))
    return clip, baseline


def _one_view(clip: RenderedClip, row: int, col: int) -> RenderedClip:
    rows, cols = slice(row, row + 1), slice(col, col + 1)
    return RenderedClip(clip.pixels[:, rows, cols], clip.disparity[rows, cols], clip.foreground[rows, cols])


def _encode_parts(vae: AutoencoderKL, parts: list[dict[str, Any]], encode_batch: int) -> None:
    """Puts latents in the place of the pixels of `parts`, and the foreground on their grid."""
    if not parts:
        return
    latents = encode(vae, torch.stack([part.pop("pixels") for part in parts]).float() / 127.5 - 1, encode_batch)
    foreground = torch.stack([part["foreground"] for part in parts]).float()
    shares = functional.adaptive_avg_pool2d(fold(foreground, IMAGE_AXES), latents.shape[-2:])
    shares = (unfold(shares, IMAGE_AXES, sizes(foreground)) * 255).round().to(torch.uint8)
    for part, latent, share in zip(parts, latents, shares, strict=True):
        part["latents"], part["foreground"] = latent.half().contiguous(), share.contiguous()


@torch.no_grad()
def encode(vae: AutoencoderKL, light_field: torch.Tensor, batch: int) -> torch.Tensor:
    """Normalised latents (the posterior's mode) of a light field in [-1, 1], on the CPU, float32."""
    images = fold(light_field, IMAGE_AXES)
    with fast_autocast(vae.device):
        parts = [vae.encode(part.to(vae.device)).latent_dist.mode().float().cpu() for part in images.split(batch)]
    return unfold(normalized(torch.cat(parts), vae.config), IMAGE_AXES, sizes(light_field))


def fingerprint(vae: AutoencoderKL) -> str:
    """A hash of the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
