"""What a model in training makes: samples through the scheduler's own loop, contact sheets and small movies."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image

from diffusers_stale.autoencoding import denormalized
from diffusers_stale.light_field.export import write_mp4
from diffusers_stale.scheduling_stale import StaleScheduler


GAP = 2
"""Pixels between the pictures of a contact sheet, and between the views of a movie."""

ZOOM = 2
"""How many times as long sheets and movies are as what they show."""

MOVIE_RATE = 8.0
"""Frames a second of the movies that a run shows."""

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


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a validation has to show, each as far as there is any.

    `pictures`: `(count, 3, height, width)` in [-1, 1], for a sheet of `columns` columns. `movie`: `(3, frames, height,
    width)` in [-1, 1]. `text`: lines.
    """

    pictures: torch.Tensor | None = None
    columns: int = 1
    movie: torch.Tensor | None = None
    text: str | None = None


def write_shown(shown: Shown, stem: Path) -> tuple[Path | None, Path | None]:
    """Writes `stem`.png, `stem`.mp4 and `stem`.txt of what there is; returns the paths of the sheet and the movie."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    sheet = movie = None
    if shown.text is not None:
        stem.with_suffix(".txt").write_text(shown.text, encoding="utf-8")
    if shown.pictures is not None:
        sheet = stem.with_suffix(".png")
        write_sheet(sheet, shown.pictures, shown.columns)
    if shown.movie is not None:
        movie = stem.with_suffix(".mp4")
        write_mp4(movie, shown.movie, MOVIE_RATE, zoom=ZOOM)
    return sheet, movie


def movie_of_views(movies: torch.Tensor) -> torch.Tensor | None:
    """Light fields side by side, each as all its views in their grid, in time: `(3, frames, height, width)`.

    Of a single frame, the views come one after the other instead, row by row to and fro. None where there is neither.

    Args:
        movies: `(count, 3, view_rows, view_cols, frames, height, width)`.
    """
    rows, cols, frames = movies.shape[2:5]
    if frames == 1:
        there_and_back = [movies[:, :, row].flip(2) if row % 2 else movies[:, :, row] for row in range(rows)]
        movies = torch.cat(there_and_back, dim=2).transpose(2, 3)[:, :, None]
        rows, cols, frames = 1, 1, rows * cols
    if frames == 1:
        return None
    lines = [_beside([movie[:, row, col] for movie in movies for col in range(cols)], dim=3) for row in range(rows)]
    return _beside(lines, dim=2)


def _beside(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    """`parts`, joined along `dim` with white between them."""
    size = list(parts[0].shape)
    size[dim] = GAP
    gap = torch.ones(size, dtype=parts[0].dtype, device=parts[0].device)
    return torch.cat([parts[0], *(piece for part in parts[1:] for piece in (gap, part))], dim=dim)


def write_sheet(path: Path, pixels: torch.Tensor, columns: int, zoom: int = ZOOM) -> None:
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
    scheduler: StaleScheduler,
    noise: torch.Tensor,
    text: torch.Tensor,
    empty_text: torch.Tensor,
    steps: int,
    guidance_scale: float,
) -> torch.Tensor:
    """Samples with classifier-free guidance.

    Args:
        predict: the network: (sample, timesteps of shape `(batch,)`, text) -> prediction.
        scheduler: is told of the guidance.
        noise: `(batch, channels, ...)`, standard normal.
        text, empty_text: `(batch, tokens, channels)`.

    Returns:
        Latents of the shape of `noise`.
    """
    scheduler.set_timesteps(steps, device=noise.device, guidance_scale=guidance_scale)
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
