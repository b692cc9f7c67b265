"""How much memory a movie will take, and how much there is: so that a request that cannot succeed is refused early.

An estimate, not a measurement: within a factor of about two of what was measured (see the constants).
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusers_stale.chunking import rows_of_width
from diffusers_stale.windows import Windows


UNET_COPIES = 9
"""Tensors as large as the UNet's widest that live at once, beside its skips. Measured on a CPU (rise of
the resident set, inflated UNets of 64-128-192 and of 80-160-320-320 channels, 16 to 800 images of 16x16 to 64x64): 5
to 12."""

UNET_COPIES_IN_PARTS = 1
"""As above, where layers see a part of the images at a time."""

COPIES_OF_PART = 20
"""Tensors as large as what a spatial or time layer gets at once that live in it."""

COPIES_OF_VIEWS = 10
"""Tensors as large as what a view layer gets at once that live in it."""

DECODER_COPIES = 5
"""Tensors as large as the decoder's widest that live at once. Measured likewise (decoders of
32-64-64 and of 32-64-128-128 channels, 2 to 16 images): 3.3 to 5.5."""

PIXEL_BYTES = 12
"""Bytes for each colour value of the finished movie: float32, a copy in a caller's layout, and work on it."""

CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Where a container's memory limit and use stand, in bytes: Linux control groups of version 2 and 1."""

MEMINFO = Path("/proc/meminfo")
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes beyond the weights: for `denoising`, for `decoding` afterwards, and for the finished `pixels`.

    `kept` are those of latents that windows keep on the CPU.
    """

    denoising: int
    decoding: int
    pixels: int
    kept: int = 0

    def peak(self, device: torch.device) -> int:
        """Bytes needed on `device`: pixels are collected on the CPU, and so count there only."""
        if device.type != "cpu":
            return max(self.denoising, self.decoding)
        return self.kept + max(self.denoising, self.decoding + self.pixels)


def estimate_memory(
    unet_config: dict[str, Any],
    vae_config: dict[str, Any],
    latent_shape: tuple[int, ...],
    *,
    guided: bool,
    decode_chunk_size: int,
    tokens: int = 77,
    itemsize: int = 4,
    rows_at_once: int | None = None,
    windows: Windows | None = None,
) -> MemoryEstimate:
    """Memory that the pipeline needs beside its weights.

    Args:
        unet_config, vae_config: configurations of a `StaleUNet5DConditionModel` and an `AutoencoderKL`.
        latent_shape: `(batch, channels, view_rows, view_cols, frames, height, width)`.
        guided: whether each movie is predicted twice, with and without text.
        decode_chunk_size: images that are decoded at once.
        tokens: length of a text.
        itemsize: bytes of a value in the network's dtype.
        rows_at_once: pixels that layers of the UNet get at once, see `chunking.py`; None for all.
        windows: into which the grid is cut, if it is.
    """
    movies, channels, *grid, height, width = latent_shape
    images = movies * math.prod(grid)
    seen = tuple(grid) if windows is None else windows.lengths(tuple(grid))
    latents = 5 * images * channels * height * width * 4
    text = tokens * unet_text_channels(unet_config)
    values = unet_values(unet_config, (movies * (2 if guided else 1), *seen), height, width, rows_at_once)
    unet = itemsize * (values + movies * text)
    factor = 2 ** (len(vae_config["block_out_channels"]) - 1)
    decoder = min(decode_chunk_size, images) * itemsize * decoder_values(vae_config, height * width)
    pixels = images * 3 * height * width * factor**2 * PIXEL_BYTES
    kept = 0 if windows is None else latents
    return MemoryEstimate(denoising=unet + latents - kept, decoding=decoder + latents - kept, pixels=pixels, kept=kept)


def unet_values(
    config: dict[str, Any], counts: tuple[int, int, int, int], height: int, width: int, rows_at_once: int | None
) -> int:
    """Values that live at once while the UNet predicts: its skips, copies of its widest tensor, and a part's own.

    `counts` are movies, view rows, view columns and frames. View layers see all views of a frame, whatever
    `rows_at_once` says.
    """
    channels = config["block_out_channels"]
    layers = config["layers_per_block"]
    layers = [layers] * len(channels) if isinstance(layers, int) else layers
    pixels = [-(-height // 2**level) * -(-width // 2**level) for level in range(len(channels))]
    images, views = math.prod(counts), counts[1] * counts[2]
    skips = channels[0] * pixels[0]
    for level, count in enumerate(channels):
        skips += layers[level] * count * pixels[level] + count * pixels[min(level + 1, len(channels) - 1)]
    below = (*channels[1:], channels[-1])
    widest = max(area * (count + deeper) for area, count, deeper in zip(pixels, channels, below, strict=True))
    if rows_at_once is None:
        return images * (skips + UNET_COPIES * widest)
    of_part = max(
        count
        * max(
            COPIES_OF_PART * min(max(rows_of_width(rows_at_once, count), area), images * area),
            COPIES_OF_VIEWS * views * area,
        )
        for area, count in zip(pixels, channels, strict=True)
    )
    return images * (skips + UNET_COPIES_IN_PARTS * widest) + of_part


def unet_text_channels(config: dict[str, Any]) -> int:
    """Channels of the text as cross-attention sees it; the largest, where blocks differ."""
    size = config["cross_attention_dim"]
    return size if isinstance(size, int) else max(size)


def decoder_values(config: dict[str, Any], latent_pixels: int) -> int:
    """Values that live at once while the autoencoder decodes one image: copies of its widest tensor."""
    channels = config["block_out_channels"]
    # Channels from the highest resolution down; each level's input still has the channels of the level below.
    sizes = [
        max(channels[level : level + 2]) * latent_pixels * 4 ** (len(channels) - 1 - level)
        for level in range(len(channels))
    ]
    return DECODER_COPIES * max(sizes)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on `device`; None where there is no telling."""
    if device.type == "cuda":
        unused_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused_by_torch
    return free_host_memory() if device.type == "cpu" else None


def free_host_memory() -> int | None:
    """Bytes that this process can still get from the machine or its container; None where there is no telling."""
    known = [free for free in (machine_memory(), *container_memory()) if free is not None]
    return min(known) if known else None


def machine_memory() -> int | None:
    """What Linux calls available: free, or in use by caches only. Elsewhere free pages, or None."""
    if MEMINFO.exists():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def container_memory() -> list[int]:
    """Bytes below the limit of each control group that has one; file caches that can be dropped count as free."""
    found = []
    for folder, limit_file, used_file in CGROUPS:
        try:
            limit, used = (folder / limit_file).read_text().strip(), int((folder / used_file).read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if limit != "max":
            found.append(max(int(limit) - used + int(statistics.get("inactive_file", 0)), 0))
    return found


def check_memory(estimate: MemoryEstimate, device: torch.device) -> None:
    """Raises `ValueError` with the estimate and remedies where `device`, or the host for pixels, has too little."""
    needs = {device: estimate.peak(device)}
    if device.type != "cpu":
        needs[torch.device("cpu")] = estimate.pixels + estimate.kept
    for where, need in needs.items():
        free = free_memory(where)
        if free is not None and need > free:
            raise ValueError(
                f"The request needs about {need / GIB:.1f} GiB of memory on {where}, and {free / GIB:.1f} GiB are "
                "free; ask for fewer views or frames, a smaller size or one movie at a time, load the pipeline in a "
                "smaller dtype, or pass `force=True` to try all the same."
            )


def refuse_beyond_memory(pipeline: Any, shape: tuple[int, ...], decode_chunk_size: int, device: torch.device) -> None:
    """Raises `ValueError` where latents of this `shape` will probably not fit into the memory that is free.

    `pipeline` is a `StaleDiffusionPipeline` that has been told its guidance scale.
    """
    estimate = estimate_memory(
        pipeline.unet.config,
        pipeline.vae.config,
        shape,
        guided=pipeline.do_classifier_free_guidance,
        decode_chunk_size=decode_chunk_size,
        tokens=pipeline.tokenizer.model_max_length,
        itemsize=pipeline.unet.dtype.itemsize,
        rows_at_once=pipeline.unet.chunking(device).rows,
        windows=pipeline.windows,
    )
    check_memory(estimate, device)
