"""What the 2D and the 5D stage share: the module that is trained, batches from pools, captions, sampling."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from diffusers_stale.data.captions import caption_of, mirrored
from diffusers_stale.data.scenes import random_generator, sample_scene
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.text_encoding import encode_tokens, tokenize
from diffusers_stale.training.config import DenoisingConfig
from diffusers_stale.training.latents import LatentPool
from diffusers_stale.training.losses import cr_hinge, sample_errors
from diffusers_stale.training.noise_meter import NoiseErrorMeter
from diffusers_stale.training.samples import sample_latents


BATCH_STREAM, NOISE_STREAM, SAMPLE_STREAM = 41, 42, 43
WORDINGS = 2**31
"""Number of wordings that a caption of a scene is drawn from."""


class DenoisingModule(nn.Module):
    """A UNet (2D or 5D) and its text encoder with the denoising loss, in one module so that gradients sync at once."""

    def __init__(
        self, unet: nn.Module, text_encoder: CLIPTextModel, scheduler: StaleScheduler, config: DenoisingConfig
    ):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        self.scheduler, self.config = scheduler, config
        self.meter = NoiseErrorMeter(scheduler)

    def predict(
        self, sample: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, **conditions: Any
    ) -> torch.Tensor:
        return self.unet(sample, timesteps, text, **conditions).sample

    def forward(
        self,
        latents: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        input_ids: torch.Tensor,
        pixel_weights: torch.Tensor | None = None,
        baselines: torch.Tensor | None = None,
        wrong_ids: torch.Tensor | None = None,
        wrong_samples: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss.

        Args:
            latents, noise: `(batch, channels, ..., height, width)`.
            timesteps: `(batch,)`.
            input_ids: captions, `(batch, tokens)`.
            pixel_weights: `(batch, 1, ..., height, width)`.
            baselines: `(batch,)`, for the 5D UNet only.
            wrong_ids: wrong captions of the samples numbered `wrong_samples`, for the hinge; in training only.
            known_mask: where the network is shown the clean latents, `(batch, 1, view_rows, view_cols, frames, 1, 1)`.
        """
        config, scheduler = self.config, self.scheduler
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = scheduler.training_target(latents, noise, timesteps)
        pixel_weights = torch.ones_like(latents[:, :1]) if pixel_weights is None else pixel_weights
        pixel_weights = pixel_weights / pixel_weights.mean()

        def errors(ids: torch.Tensor, chosen: torch.Tensor | slice) -> torch.Tensor:
            conditions = {} if baselines is None else {"view_baseline": baselines[chosen]}
            if known_mask is not None:
                conditions |= {"known": latents[chosen], "known_mask": known_mask[chosen]}
            text = encode_tokens(self.text_encoder, ids)
            prediction = self.predict(noisy[chosen], timesteps[chosen], text, **conditions)
            return sample_errors(prediction, target[chosen], config.loss, pixel_weights[chosen])

        true_errors = errors(input_ids, slice(None))
        if self.training and config.loss == "mse":
            self.meter.add(true_errors, timesteps)
        loss = (true_errors * scheduler.loss_weights(timesteps, config.loss_weighting)).mean()
        if self.training and wrong_samples is not None and len(wrong_samples) > 0:
            hinge = cr_hinge(true_errors[wrong_samples], errors(wrong_ids, wrong_samples), config.hinge_margin)
            loss = loss + config.hinge_weight * hinge.sum() / len(latents)
        return loss


class DenoisingTask:
    """Base of the 2D and the 5D task: builds their batches from counters, and samples from fixed prompts."""

    def __init__(
        self,
        config: DenoisingConfig,
        unet: nn.Module,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        vae: AutoencoderKL,
        scheduler: StaleScheduler,
        device: torch.device,
    ):
        self.config, self.device = config, device
        self.tokenizer, self.vae, self.scheduler = tokenizer, vae.eval().requires_grad_(False), scheduler
        self.module = DenoisingModule(unet, text_encoder, scheduler, config)

    def report(self) -> dict[str, Any]:
        """What the run has learnt about its data: the measured entropic clock."""
        return {"entropy_clock": self.module.meter.clock()}

    def captions(self, scenes: list[int], draw: np.random.Generator) -> list[str]:
        """A new wording for each scene; some are empty, for guidance."""
        config = self.config
        wordings = draw.integers(WORDINGS, size=len(scenes)).tolist()
        dropped = draw.random(len(scenes)) < config.caption_dropout
        return [
            "" if drop else caption_of(sample_scene(config.seed, scene), config.seed, wording)
            for scene, wording, drop in zip(scenes, wordings, dropped, strict=True)
        ]

    def noised_batch(
        self, latents: torch.Tensor, shares: torch.Tensor, captions: list[str], key: tuple[int, ...], fraction: float
    ) -> dict[str, torch.Tensor]:
        """A batch for the module; noise and timesteps follow from the integers in `key`."""
        generator = torch.Generator().manual_seed(int(random_generator(*key).integers(2**62)))
        latents = latents.float()
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = self.scheduler.sample_training_timesteps(len(latents), generator)
        batch = {
            "latents": latents,
            "noise": noise,
            "timesteps": timesteps,
            "input_ids": tokenize(self.tokenizer, captions),
            "pixel_weights": self.pixel_weights(shares, fraction),
        }
        batch |= self.wrong_captions(captions, timesteps)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def wrong_captions(self, captions: list[str], timesteps: torch.Tensor) -> dict[str, torch.Tensor]:
        """Mirror images of the captions that state a direction, at the noise levels where the hinge counts."""
        first = self.config.hinge_from * self.scheduler.config.num_train_timesteps
        chosen = [
            index
            for index, caption in enumerate(captions)
            if self.config.hinge_weight > 0 and float(timesteps[index]) >= first and mirrored(caption) != caption
        ]
        if not chosen:
            return {}
        wrong = tokenize(self.tokenizer, [mirrored(captions[index]) for index in chosen])
        return {"wrong_ids": wrong, "wrong_samples": torch.tensor(chosen)}

    def pixel_weights(self, shares: torch.Tensor, fraction: float) -> torch.Tensor:
        """Weight of every latent pixel when `fraction` of the run is over; `shares` are uint8."""
        config = self.config
        fade = min(1.0, (1.0 - fraction) / config.foreground_anneal) if config.foreground_anneal else 1.0
        return 1 + config.foreground_weight * fade * shares.float() / 255

    def batch_key(self, step: int, rank: int) -> tuple[int, ...]:
        return (self.config.seed, step, rank, NOISE_STREAM)

    def sample_prompts(self, prompts: list[str], shape: tuple[int, ...], **conditions: Any) -> torch.Tensor:
        """Latents `(len(prompts), *shape)` sampled with guidance, from the same noise every time."""
        generator = torch.Generator().manual_seed(self.config.seed + SAMPLE_STREAM)
        noise = torch.randn((len(prompts), *shape), generator=generator).to(self.device)
        module = self.module
        with torch.autocast(self.device.type, torch.bfloat16):
            texts = encode_tokens(module.text_encoder, tokenize(self.tokenizer, [*prompts, ""]).to(self.device))
            text, empty = texts[:-1], texts[-1:].expand_as(texts[:-1])
            return sample_latents(
                lambda sample, timesteps, both: module.predict(sample, timesteps, both, **conditions),
                StaleScheduler.from_config(self.scheduler.config),
                noise,
                text,
                empty,
                self.config.sample_steps,
                self.config.guidance_scale,
            )


def held_out_captions(config: DenoisingConfig, scenes: list[int]) -> list[str]:
    """One caption for each scene of the held-out seed, always the same."""
    seed = config.held_out_seed
    return [caption_of(sample_scene(seed, scene), seed, scene) for scene in scenes]


def load_text(folder: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """Text encoder and tokenizer of an exported stage, in float32."""
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    return encoder, CLIPTokenizer.from_pretrained(folder / "tokenizer")


def take(pool: LatentPool, chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Latents, foreground and scene indices of the clips numbered `chosen`."""
    return pool.latents[chosen], pool.foreground[chosen], pool.scenes[chosen].tolist()
