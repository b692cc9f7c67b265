"""Stage 1: the autoencoder of single frames, trained on rendered views of barnyards."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn

from diffusers_stale.axes import IMAGE_AXES, fold
from diffusers_stale.data.folders import BrokenFiles
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import random_generator, sample_scene
from diffusers_stale.data.sources import BARNYARD, parse_sources
from diffusers_stale.training.clip_data import drawn_frames
from diffusers_stale.training.components import build_autoencoder, standardize_latents, take_autoencoder
from diffusers_stale.training.config import AutoencoderConfig
from diffusers_stale.training.losses import peak_signal_to_noise, reconstruction_loss
from diffusers_stale.training.provenance import tensors_hash
from diffusers_stale.training.samples import Shown


POOL_STREAM, BATCH_STREAM = 11, 12
"""Numbers that keep the random streams of one seed apart."""

LINES = ((1, 3), (3, 1))
"""Grids of views that frames are rendered in."""

START_SECONDS = 0.45
"""Clips begin at most this long before or after time 0."""

SHOWN = 8


def render_frames(config: AutoencoderConfig, seed: int, count: int, rank: int = 0) -> torch.Tensor:
    """`count` frames of random scenes, views, moments and baselines; uint8 `(count, 3, height, width)`."""
    frames: list[torch.Tensor] = []
    index = rank * 10_000_000
    while sum(map(len, frames)) < count:
        draw = random_generator(seed, index, POOL_STREAM)
        rows, cols = LINES[int(draw.integers(len(LINES)))]
        clip = render_scene(
            sample_scene(seed, index),
            rows,
            cols,
            1,
            config.image_size,
            config.image_size,
            baseline=float(draw.choice(config.baselines)),
            start_seconds=float(draw.uniform(-START_SECONDS, START_SECONDS)),
        )
        frames.append(((fold(clip.pixels[None], IMAGE_AXES) + 1) * 127.5).round().to(torch.uint8))
        index += 1
    return torch.cat(frames)[:count]


def frames_of(
    config: AutoencoderConfig, data: str, seed: int, count: int, problems: BrokenFiles, rank: int = 0
) -> torch.Tensor:
    """`count` frames of `data`, of each source as many as its weight says; shape as of `render_frames`."""
    settings = parse_sources(data)
    shares = np.cumsum([0.0, *(setting.weight for setting in settings)])
    bounds = np.rint(shares / shares[-1] * count).astype(int).tolist()
    parts = []
    for setting, start, stop in zip(settings, bounds, bounds[1:], strict=False):
        if setting.kind == BARNYARD:
            parts.append(render_frames(config, seed, stop - start, rank))
        elif stop > start:
            parts.append(drawn_frames(setting, config, config.image_size, stop - start, seed + rank, problems))
    return torch.cat(parts)


class AutoencoderModule(nn.Module):
    """The autoencoder with its loss, so that what is trained is one module with one forward call."""

    def __init__(self, vae: AutoencoderKL, config: AutoencoderConfig):
        super().__init__()
        self.vae = vae
        self.config = config

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * noise
        config = self.config
        loss = reconstruction_loss(
            self.vae.decode(latents).sample, pixels, config.l1_weight, config.mse_weight, config.gradient_weight
        )
        return loss + config.kl_weight * posterior.kl().float().mean() if config.kl_weight else loss


class AutoencoderTask:
    """Frames from a pool that is rendered once; PSNR on frames of another seed."""

    def __init__(self, config: AutoencoderConfig, device: torch.device, rank: int = 0):
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.vae = build_autoencoder(config)
        if config.start_from is not None:
            take_autoencoder(self.vae, Path(config.start_from))
        if config.trainable == "decoder":
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        self.module = AutoencoderModule(self.vae, config)
        self.problems = BrokenFiles(config.max_broken)
        self.pool = frames_of(config, config.data, config.seed, config.pool_frames, self.problems, rank)
        measured = config.held_out_data or (BARNYARD if config.renders else config.data)
        held_out = frames_of(config, measured, config.held_out_seed, config.held_out_frames, self.problems)
        self.held_out = held_out.float() / 127.5 - 1
        self.noise_shape = (config.latent_channels, *self.latent_size())

    def latent_size(self) -> tuple[int, int]:
        size = self.config.image_size // 2 ** (len(self.config.block_channels) - 1)
        return size, size

    def fingerprints(self) -> dict[str, str]:
        return {"frames": tensors_hash({"pixels": self.pool})}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.vae.parameters()), "lr": 1.0}]

    def batch(self, step: int, rank: int, fraction: float) -> dict[str, torch.Tensor]:
        draw = random_generator(self.config.seed, step, rank, BATCH_STREAM)
        chosen = torch.from_numpy(draw.integers(len(self.pool), size=self.config.batch_size))
        pixels = self.pool[chosen].float() / 127.5 - 1
        noise = draw.standard_normal((len(pixels), *self.noise_shape), dtype=np.float32)
        return {
            "pixels": pixels.to(self.device),
            "noise": torch.from_numpy(noise).to(self.device),
        }

    def batch_images(self, batch: dict[str, torch.Tensor]) -> int:
        return len(batch["pixels"])

    def batch_tokens(self, batch: dict[str, torch.Tensor]) -> int:
        """Latent pixels."""
        return batch["noise"][:, 0].numel()

    @torch.no_grad()
    def reconstruct(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encoded (without noise) and decoded frames, in float32."""
        parts = [self.vae.decode(self.vae.encode(part).latent_dist.mode()).sample for part in pixels.split(16)]
        return torch.cat(parts).float().cpu()

    def evaluate(self) -> dict[str, float]:
        quality = peak_signal_to_noise(self.reconstruct(self.held_out.to(self.device)), self.held_out)
        return {"psnr": float(quality.mean()), "psnr_worst": float(quality.min())}

    def sample(self) -> Shown:
        """Held-out frames, and below them what is left of them."""
        pixels = self.held_out[:: max(len(self.held_out) // SHOWN, 1)][:SHOWN]
        pictures = torch.cat([pixels, self.reconstruct(pixels.to(self.device))])
        return Shown(pictures=pictures, columns=len(pixels))

    @torch.no_grad()
    def finish(self) -> AutoencoderKL:
        """The trained autoencoder, its latents of mean 0 and deviation 1 in each channel, or as they were."""
        if self.config.trainable == "decoder":
            return self.vae
        pixels = (self.pool[:1024].float() / 127.5 - 1).to(self.device)
        latents = torch.cat([self.vae.encode(part).latent_dist.mode() for part in pixels.split(32)]).float()
        standardize_latents(self.vae, latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))
        return self.vae

    def report(self) -> dict[str, Any]:
        return {"broken_clips": self.problems.found}

    def export(self, folder: Path) -> None:
        self.finish().save_pretrained(folder)
