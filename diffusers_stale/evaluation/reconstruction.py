"""What an autoencoder leaves of rendered movies: nothing that comes out of it later can be better."""

from collections.abc import Sequence
from math import nan
from typing import Any

import torch
from diffusers import AutoencoderKL

from diffusers_stale.axes import IMAGE_AXES, fold, sizes, unfold
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import Scene
from diffusers_stale.evaluation.classifier import middle_clips, resize_clips
from diffusers_stale.evaluation.disparity import VIEW_AXES, match_views
from diffusers_stale.evaluation.intervals import mean_interval, ratio_interval
from diffusers_stale.evaluation.layers import LayerFinder, find_layers, layer, load_layer_finder
from diffusers_stale.evaluation.time_consistency import measure_time
from diffusers_stale.evaluation.view_consistency import psnr


JUDGED_LAYERS = ("background", "ground", "animal")
"""Layers whose disparity is far enough from 0 to speak of a ratio; barns stand near the zero plane."""


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, light_field: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """`light_field` in [-1, 1] encoded (to the posterior's mode) and decoded; of the same shape, float32, CPU."""
    images = fold(light_field, IMAGE_AXES)
    parts = [
        vae.decode(vae.encode(part.to(vae.device, vae.dtype)).latent_dist.mode()).sample.float().cpu()
        for part in images.split(batch)
    ]
    return unfold(torch.cat(parts).clamp(-1, 1), IMAGE_AXES, sizes(light_field))


def measure_autoencoder(
    vae: AutoencoderKL,
    scenes: Sequence[Scene],
    size: int = 64,
    finder: LayerFinder | None = None,
) -> dict[str, Any]:
    """Figures (value, low, high, total) of `vae` on rendered scenes of 3x3 views and 3 frames.

    Returns:
        `psnr` in dB, over all pixels of a clip; `disparity`: by layer, the slope of the disparity that comes back over
        that which went in, over the pixels where both are told (means of each would be over different pixels);
        `flicker`: of static regions, in grey levels (rendered scenes have none).
    """
    finder = finder or load_layer_finder()
    likeness, flicker = [], []
    products: dict[str, list[tuple[float, float]]] = {name: [] for name in JUDGED_LAYERS}
    for scene in scenes:
        truth = render_scene(scene, 3, 3, 3, size, size).pixels[None]
        back = reconstruct(vae, truth)
        likeness.append(psnr(float((back - truth).square().mean())))
        times = measure_time(back, finder)
        flicker.append(times[0].flicker if times else nan)
        layers = find_layers(finder, resize_clips(middle_clips(truth)).transpose(1, 2))
        for name in JUDGED_LAYERS:
            products[name].append(_products(truth, back, layers == layer(name)))
    return {
        "psnr": mean_interval(likeness),
        "disparity": {name: ratio_interval(*zip(*pairs, strict=True)) for name, pairs in products.items()},
        "flicker": mean_interval(flicker),
    }


def _products(truth: torch.Tensor, back: torch.Tensor, inside: torch.Tensor) -> tuple[float, float]:
    """Sums of true times found and of squared true disparity, of both axes, where both are told `inside` a layer."""
    crossed, squared = 0.0, 0.0
    for axis in VIEW_AXES:
        before, after = match_views(truth, axis), match_views(back, axis)
        known = before.trusted & after.trusted & inside
        crossed += float((before.displacement * after.displacement)[known].sum())
        squared += float(before.displacement.square()[known].sum())
    return crossed, squared
