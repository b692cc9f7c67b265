"""What an autoencoder leaves of rendered movies: nothing that comes out of it later can be better."""

from collections.abc import Sequence
from math import nan
from typing import Any

import torch
from diffusers import AutoencoderKL

from diffusers_stale.axes import IMAGE_AXES, fold, sizes, unfold
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import Scene
from diffusers_stale.evaluation.intervals import mean_interval, ratio_interval
from diffusers_stale.evaluation.layers import LayerFinder, load_layer_finder
from diffusers_stale.evaluation.time_consistency import measure_time
from diffusers_stale.evaluation.view_consistency import measure_views, psnr


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
        `psnr` in dB, over all pixels of a clip; `disparity`: by layer, the mean disparity of what comes back over that
        of what went in; `flicker`: of static regions, in grey levels (rendered scenes have none).
    """
    finder = finder or load_layer_finder()
    likeness, flicker = [], []
    before: dict[str, list[float]] = {name: [] for name in JUDGED_LAYERS}
    after: dict[str, list[float]] = {name: [] for name in JUDGED_LAYERS}
    for scene in scenes:
        truth = render_scene(scene, 3, 3, 3, size, size).pixels[None]
        back = reconstruct(vae, truth)
        likeness.append(psnr(float((back - truth).square().mean())))
        times = measure_time(back, finder)
        flicker.append(times[0].flicker if times else nan)
        for store, movie in ((before, truth), (after, back)):
            measured = measure_views(movie, finder)[0].layers
            for name in JUDGED_LAYERS:
                store[name].append(measured[name])
    return {
        "psnr": mean_interval(likeness),
        "disparity": {name: ratio_interval(after[name], before[name]) for name in JUDGED_LAYERS},
        "flicker": mean_interval(flicker),
    }
