"""Stage 3: 2D text-to-image on encoded single frames of barnyards."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers import __version__ as diffusers_version

from diffusers_stale.data.scenes import random_generator
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.training.components import build_unet, take_weights
from diffusers_stale.training.config import ImageConfig
from diffusers_stale.training.denoising import BATCH_STREAM, DenoisingTask, held_out_captions, load_text, take
from diffusers_stale.training.latents import LatentPool, PoolRequest, cached_pool, render_pool
from diffusers_stale.training.provenance import tensors_hash
from diffusers_stale.training.samples import PROMPTS, decode_images, write_sheet
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
        text_encoder, tokenizer = load_text(earlier or text_folder)
        torch.manual_seed(config.seed)
        latent_size = config.image_size // 2 ** (len(vae.config.block_out_channels) - 1)
        unet = build_unet(config, vae.config.latent_channels, latent_size, text_encoder.config.hidden_size)
        if earlier is not None:
            take_weights(unet, unet.state_dict(), earlier)
        scheduler = StaleScheduler(prediction_type=config.prediction_type)
        super().__init__(config, unet, text_encoder, tokenizer, vae, scheduler, device)
        count = max(config.pool_frames // processes, 1)
        request = PoolRequest(
            seed=config.seed, count=count, rank=rank, image_size=config.image_size, single_frames=True,
            split=self.make_split("frames", count, processes),
        )  # fmt: skip
        self.pool = cached_pool(vae, request, config.encode_batch, run_folder / f"frames-{rank}.safetensors")
        self.held_out: LatentPool | None = None

    def fingerprints(self) -> dict[str, str]:
        return {"frames": tensors_hash(vars(self.pool))}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.module.unet.parameters()), "lr": 1.0},
            {"params": list(self.module.text_encoder.parameters()), "lr": self.config.text_rate},
        ]

    def batch(self, step: int, rank: int, fraction: float) -> dict[str, torch.Tensor]:
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
        """Unweighted denoising loss on frames of another seed, with the same noise every time."""
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
        return {"held_out_loss": float(self.module(**batch | {"pixel_weights": None}))}

    def sample(self, path: Path) -> None:
        latents = self.sample_prompts(list(PROMPTS), tuple(self.pool.latents.shape[i] for i in (1, -2, -1)))
        write_sheet(path, decode_images(self.vae, latents), columns=8)

    def export(self, folder: Path) -> None:
        """A folder of Stable Diffusion's shape, in float32."""
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
