"""Stage 3: 2D text-to-image on encoded single frames of barnyards."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers import __version__ as diffusers_version

from diffusers_stale.autoencoding import pixels_a_latent
from diffusers_stale.data.scenes import random_generator
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.training.clip_data import Piece
from diffusers_stale.training.components import build_unet, take_weights
from diffusers_stale.training.config import ImageConfig
from diffusers_stale.training.denoising import (
    BATCH_STREAM,
    DenoisingTask,
    held_out_captions,
    load_text,
    stacked,
    take,
)
from diffusers_stale.training.grids import Grid
from diffusers_stale.training.latents import LatentPool, PoolRequest, cached_pool, render_pool
from diffusers_stale.training.provenance import tensors_hash
from diffusers_stale.training.samples import PROMPTS, Shown, decode_images
from diffusers_stale.training.vocabulary import save_tokenizer


HELD_OUT = 64
HELD_OUT_KEY = (9, 9, 9)


class ImageTask(DenoisingTask):
    """A 2D UNet from nothing, on the latents of one frame of each of many scenes."""

    config: ImageConfig

    def __init__(
        self, config: ImageConfig, vae_folder: Path, text_folder: Path, run_folder: Path, device: torch.device,
        rank: int = 0, processes: int = 1,
    ):  # fmt: skip
        vae = AutoencoderKL.from_pretrained(vae_folder).to(device)
        earlier = Path(config.start_from) if config.start_from else None
        if earlier is not None and not (earlier / "text_encoder").is_dir():
            raise FileNotFoundError(f"`start_from` must hold text_encoder and unet, got {earlier}; name a pipeline.")
        text_encoder, tokenizer = load_text(earlier or text_folder)
        torch.manual_seed(config.seed)
        latent_size = config.image_size // pixels_a_latent(vae.config)
        unet = build_unet(config, vae.config.latent_channels, latent_size, text_encoder.config.hidden_size)
        if earlier is not None:
            take_weights(unet, unet.state_dict(), earlier)
        scheduler = StaleScheduler(prediction_type=config.prediction_type)
        super().__init__(config, unet, text_encoder, tokenizer, vae, scheduler, device)
        self.run_folder = run_folder
        self.grids = (Grid(view_rows=1, view_cols=1, frames=1, batch_size=config.batch_size, weight=1.0),)
        self.pool: LatentPool | None = None
        if config.renders:
            count = max(config.pool_frames // processes, 1)
            request = PoolRequest(
                seed=config.seed, count=count, rank=rank, image_size=config.image_size, single_frames=True,
                split=self.make_split("frames", count, processes),
            )  # fmt: skip
            self.pool = cached_pool(vae, request, config.encode_batch, run_folder / f"frames-{rank}.safetensors")
        self.mixture = self.open_mixture(self.grids, run_folder, rank, processes, BarnyardFrames(self))
        self.held_out: LatentPool | None = None

    def fingerprints(self) -> dict[str, str]:
        if self.mixture is not None:
            return self.mixture.fingerprints()
        return {"frames": tensors_hash(vars(self.pool))}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.module.unet.parameters()), "lr": 1.0},
            {"params": list(self.module.text_encoder.parameters()), "lr": self.config.text_rate},
        ]

    def batch(self, step: int, rank: int, fraction: float) -> dict[str, torch.Tensor]:
        if self.mixture is not None:
            pieces = self.mixture.batch(step, rank, self.grids[0], lambda later: self.grids[0])
            return self.piece_batch([one_frame(piece) for piece in pieces], step, rank, fraction)
        draw = random_generator(self.config.seed, step, rank, BATCH_STREAM)
        chosen = draw.integers(len(self.pool), size=self.config.batch_size).tolist()
        latents, shares, scenes = take(self.pool, chosen)
        return self.training_batch(
            latents[:, :, 0, 0, 0],
            shares[:, :, 0, 0, 0],
            self.captions(scenes, self.splits["frames"], draw),
            step,
            rank,
            fraction,
        )

    def batch_images(self, batch: dict[str, torch.Tensor]) -> int:
        return len(batch["latents"])

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Unweighted denoising loss, with the same noise every time: on frames of another seed, on held-out clips."""
        losses = {"held_out_loss": self.rendered_loss()} if self.config.renders else {}
        if self.config.held_out_data is not None:
            pieces = self.held_out_pieces(self.run_folder, self.grids, HELD_OUT)
            latents, shares = stacked([one_frame(piece) for piece in pieces])
            batch = self.noised_batch(latents, shares, [piece.caption for piece in pieces], HELD_OUT_KEY, 0.0)
            losses["held_out_clips_loss"] = float(self.module(**batch | {"pixel_weights": None}))
        return losses

    def rendered_loss(self) -> float:
        if self.held_out is None:
            count = min(HELD_OUT, 4 * self.config.batch_size)
            request = PoolRequest(
                seed=self.config.held_out_seed, count=count, rank=0, image_size=self.config.image_size,
                single_frames=True,
            )  # fmt: skip
            self.held_out = render_pool(self.vae, request, self.config.encode_batch)
        latents, shares, scenes = take(self.held_out, list(range(len(self.held_out))))
        captions = held_out_captions(self.config, scenes)
        batch = self.noised_batch(latents[:, :, 0, 0, 0], shares[:, :, 0, 0, 0], captions, HELD_OUT_KEY, 0.0)
        return float(self.module(**batch | {"pixel_weights": None}))

    def sample(self) -> Shown:
        latents = self.sample_prompts(self.prompts(PROMPTS), self.latent_shape())
        return Shown(pictures=decode_images(self.vae, latents), columns=8)

    def export(self, folder: Path) -> None:
        """A folder of Stable Diffusion's shape, in float32, with the LoRA beside it where one was trained."""
        self.export_adapter(folder)
        self.vae.save_pretrained(folder / "vae")
        self.module.unet.save_pretrained(folder / "unet")
        self.module.text_encoder.save_pretrained(folder / "text_encoder")
        self.scheduler.save_pretrained(folder / "scheduler")
        save_tokenizer(self.tokenizer, folder / "tokenizer")
        index = {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": diffusers_version,
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers_stale", "StaleScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


class BarnyardFrames:
    """The pool of a task as one source among others."""

    weight, streams = 1.0, False

    def __init__(self, task: ImageTask) -> None:
        self.task = task

    def serves(self, grid: Grid) -> bool:
        return grid.view_rows * grid.view_cols * grid.frames == 1

    def piece(self, grid: Grid, position: int, attempt: int, draw: np.random.Generator) -> Piece:
        pool = self.task.pool
        index = int(draw.integers(len(pool)))
        caption = self.task.caption(int(pool.scenes[index]), self.task.splits["frames"], draw)
        return Piece(caption=caption, baseline=1.0, latents=pool.latents[index], shares=pool.foreground[index])

    def fingerprint(self) -> str:
        return tensors_hash(vars(self.task.pool))


def one_frame(piece: Piece) -> Piece:
    """A piece of one view and frame without the axes of those."""
    shares = None if piece.shares is None else piece.shares[:, 0, 0, 0]
    return replace(piece, latents=piece.latents[:, 0, 0, 0], shares=shares)
