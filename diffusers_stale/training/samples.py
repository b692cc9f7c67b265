"""Pictures of what a model in training makes: samples through the scheduler's own loop, and contact sheets."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image

from diffusers_stale.autoencoding import denormalized


GAP = 2
"""Pixels between the pictures of a contact sheet."""

PROMPTS = (
    "a brown horse gallops out of a red barn at sunset",
    "a white cow stands in front of a blue barn at noon",
    "a pink pig walks to the left by a white barn at dawn",
    "two black sheep graze in an open field at night",
    "a golden chicken faces right near a brown barn at sunset",
    "a grey horse walks to the right behind a fence at night",
    "a black cow eats grass by a red barn at dawn",
    "a white chicken runs to the left in a field by day",
    "a brown pig looking right in front of a white barn at night",
    "a golden horse galloping to the left without a fence at dawn",
    "a white sheep stands facing left before a red barn on a sunny day",
    "a black horse waits by a blue barn at dusk",
    "a pink cow walks to the right with no barn at sunset",
    "a grey pig comes out of a brown barn at noon",
    "a brown chicken grazes facing left near a red barn by moonlight",
    "a black pig races to the right behind a wooden fence at sunrise",
)
"""What every run is asked for, so that runs and steps can be compared."""


def write_sheet(path: Path, pixels: torch.Tensor, columns: int, zoom: int = 2) -> None:
    """Writes pictures `(count, 3, height, width)` in [-1, 1] as a PNG of `columns` columns, enlarged `zoom` times."""
    count, _, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = torch.full((3, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), 1.0)
    for index, picture in enumerate(pixels.float().cpu()):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        sheet[:, top : top + height, left : left + width] = picture.clamp(-1, 1)
    values = ((sheet + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(values)
    image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    temporary = path.with_name(f".{path.name}")
    image.save(temporary, format="PNG")
    temporary.rename(path)


@torch.no_grad()
def sample_latents(
    predict: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    scheduler: object,
    noise: torch.Tensor,
    text: torch.Tensor,
    empty_text: torch.Tensor,
    steps: int,
    guidance_scale: float,
) -> torch.Tensor:
    """Samples with classifier-free guidance.

    Args:
        predict: the network: (sample, timesteps of shape `(batch,)`, text) -> prediction.
        scheduler: a diffusers scheduler.
        noise: `(batch, channels, ...)`, standard normal.
        text, empty_text: `(batch, tokens, channels)`.

    Returns:
        Latents of the shape of `noise`.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    sample = noise * scheduler.init_noise_sigma
    both_texts = torch.cat([empty_text, text])
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, timestep)
        predicted = predict(torch.cat([scaled, scaled]), timestep.expand(2 * len(sample)), both_texts)
        without, with_text = predicted.float().chunk(2)
        guided = without + guidance_scale * (with_text - without)
        sample = scheduler.step(guided, timestep, sample).prev_sample
    return sample


@torch.no_grad()
def decode_images(vae: AutoencoderKL, latents: torch.Tensor, batch: int = 16) -> torch.Tensor:
    """Pixels in [-1, 1] of normalised latents `(count, channels, height, width)`."""
    parts = [vae.decode(denormalized(part, vae.config)).sample for part in latents.float().split(batch)]
    return torch.cat(parts).float().cpu()
