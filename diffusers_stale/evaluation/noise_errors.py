"""How wrong the network is at every noise level, on rendered scenes: alone, among views, and with turned cameras.

What the error among views is less than that of single views says how much the network takes from other views; what it
rises when all cameras are mirrored says whether it knows which way things shift, near and far apart.
"""

from dataclasses import dataclass
from typing import Any

import torch

from diffusers_stale.autoencoding import normalized
from diffusers_stale.axes import IMAGE_AXES, fold, middle_index, sizes, unfold
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.evaluation.disparity import FAR_PART, NEAR_PART
from diffusers_stale.evaluation.intervals import mean_interval, ratio_interval
from diffusers_stale.evaluation.prompts import EvaluationPrompt


LEVELS = (0.95, 0.85, 0.7, 0.5, 0.3, 0.1)
"""Shares of the process at which errors are measured, from noise to picture."""

NOISE_SEED = 11


@dataclass(frozen=True)
class _Encoded:
    """Normalised latents of rendered scenes, their noise, and embeddings of their prompts and of other ones."""

    latents: torch.Tensor
    noise: torch.Tensor
    texts: torch.Tensor
    other_texts: torch.Tensor


def can_measure(pipeline: Any) -> bool:
    """Whether `pipeline` has the parts of a `StaleDiffusionPipeline` whose network is asked here."""
    return all(
        getattr(pipeline, name, None) is not None for name in ("unet", "vae", "scheduler", "encode_prompt")
    ) and hasattr(pipeline.scheduler, "training_target")


@torch.no_grad()
def measure_noise_errors(
    pipeline: Any, prompts: tuple[EvaluationPrompt, ...], views: tuple[int, int], frames: int, batch: int = 4
) -> dict[str, Any]:
    """Mean squared errors of the network's predictions on the scenes of `prompts`, over their target's variance.

    Returns:
        `levels`: by the share of the process, as text, figures (value, low, high, total) named `error`, `single_view`
        (of the middle view alone), `other_prompt` (with the next scene's prompt), `mirrored` (all view coordinates
        negated), and the ratios `mirrored_far`, `mirrored_near` of the latter to `error` in the far and near parts of
        the picture: 1 where the network does not know the sign of the parallax.
    """
    encoded = _encode(pipeline, prompts, views, frames)
    levels = {}
    for level in LEVELS:
        parts = [
            _errors_at(pipeline, encoded, level, slice(first, first + batch))
            for first in range(0, len(prompts), batch)
        ]
        errors = {name: torch.cat([part[name] for part in parts]).tolist() for name in parts[0]}
        figures = {name: mean_interval(errors[name]) for name in PLAIN if name in errors}
        for part in ("far", "near"):
            if f"mirrored_{part}" in errors:
                figures[f"mirrored_{part}"] = ratio_interval(errors[f"mirrored_{part}"], errors[f"error_{part}"])
        levels[f"{level:g}"] = figures
    return {"scenes": len(prompts), "levels": levels}


PLAIN = ("error", "single_view", "other_prompt", "mirrored")


def _encode(pipeline: Any, prompts: tuple[EvaluationPrompt, ...], views: tuple[int, int], frames: int) -> _Encoded:
    vae = pipeline.vae
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    pixels = torch.stack([render_scene(prompt.scene, *views, frames, size, size).pixels for prompt in prompts])
    images = fold(pixels, IMAGE_AXES).to(vae.device, vae.dtype)
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in images.split(64)])
    latents = unfold(normalized(latents.float(), vae.config), IMAGE_AXES, sizes(pixels))
    texts = pipeline.encode_texts("prompt", [prompt.text for prompt in prompts], pipeline.unet.device)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(NOISE_SEED)).to(latents.device)
    return _Encoded(latents, noise, texts, texts.roll(1, dims=0))


def _errors_at(pipeline: Any, encoded: _Encoded, level: float, chosen: slice) -> dict[str, torch.Tensor]:
    """Errors of each chosen scene, `(scenes,)`, by name."""
    latents, noise = encoded.latents[chosen], encoded.noise[chosen]
    scheduler, unet = pipeline.scheduler, pipeline.unet
    timesteps = torch.full((len(latents),), level * scheduler.config.num_train_timesteps, device=latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.training_target(latents, noise, timesteps)
    variance = target.square().mean()

    def ask(sample: torch.Tensor, texts: torch.Tensor, baseline: float = 1.0) -> torch.Tensor:
        conditions = {"view_baseline": torch.full((len(sample),), baseline, device=sample.device)}
        return unet(sample.to(unet.dtype), timesteps, encoder_hidden_states=texts, **conditions).sample.float()

    rows, cols = (middle_index(count) for count in latents.shape[2:4])
    middle = (slice(None), slice(None), slice(rows, rows + 1), slice(cols, cols + 1))
    squares = (ask(noisy, encoded.texts[chosen]) - target).square() / variance
    other = (ask(noisy, encoded.other_texts[chosen]) - target).square() / variance
    errors = {"error": squares, "other_prompt": other}
    if latents.shape[2] * latents.shape[3] > 1:
        single = (ask(noisy[middle], encoded.texts[chosen]) - target[middle]).square() / variance
        mirrored = (ask(noisy, encoded.texts[chosen], -1.0) - target).square() / variance
        far, near = round(FAR_PART * latents.shape[-2]), round(NEAR_PART * latents.shape[-2])
        errors |= {"single_view": single, "mirrored": mirrored}
        errors |= {"error_far": squares[..., :far, :], "mirrored_far": mirrored[..., :far, :]}
        errors |= {"error_near": squares[..., near:, :], "mirrored_near": mirrored[..., near:, :]}
    return {name: values.flatten(1).mean(dim=1).cpu() for name, values in errors.items()}
