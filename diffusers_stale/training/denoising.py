"""What the 2D and the 5D stage share: the module that is trained, batches from pools, captions, sampling."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from diffusers_stale.autoencoding import pixels_a_latent
from diffusers_stale.data.captions import caption_of, mirrored
from diffusers_stale.data.folders import BrokenFiles
from diffusers_stale.data.scenes import random_generator, sample_scene
from diffusers_stale.data.sources import BARNYARD, SourceSetting, parse_sources
from diffusers_stale.data.splits import ContaminatedSplit
from diffusers_stale.precision import fast_autocast
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.text_encoding import encode_tokens, tokenize
from diffusers_stale.training.clip_data import (
    ClipSource,
    LatentFiles,
    Mixture,
    Piece,
    Source,
    encode_all,
    is_in_shards,
    make_layered,
    open_groups,
)
from diffusers_stale.training.config import DenoisingConfig
from diffusers_stale.training.grids import Grid
from diffusers_stale.training.latents import LatentPool
from diffusers_stale.training.losses import CONTRASTS, sample_errors
from diffusers_stale.training.mess_up import (
    befallen,
    drop_captions,
    embedding_noise,
    perturbed_noise,
    swap_attributes,
)
from diffusers_stale.training.noise_meter import NoiseErrorMeter
from diffusers_stale.training.samples import sample_latents
from diffusers_stale.training.text_cache import TextCache
from diffusers_stale.training.trainable import LORA_FOLDER, choose_weights, export_lora
from diffusers_stale.training.vocabulary import CRYING_JOY


BATCH_STREAM, NOISE_STREAM, SAMPLE_STREAM = 41, 42, 43
HINGE_STREAM, CORRUPTION_STREAM, INPUT_STREAM, EMBEDDING_STREAM, SHUFFLE_STREAM = 44, 45, 46, 47, 48
WORDINGS = 2**31
"""Number of wordings that a caption of a scene is drawn from, where the configuration gives none."""
KEPT_SCENES = 2**15
"""Scenes that are kept for their next caption, some 4 KB each: drawing one takes six times as long as wording it."""


class DenoisingModule(nn.Module):
    """A UNet (2D or 5D) and its text encoder with the denoising loss, in one module so that gradients sync at once."""

    def __init__(
        self, unet: nn.Module, text_encoder: CLIPTextModel, scheduler: StaleScheduler, config: DenoisingConfig
    ):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        self.scheduler, self.config = scheduler, config
        self.meter = NoiseErrorMeter(scheduler)
        self.text_is_frozen = not any(parameter.requires_grad for parameter in text_encoder.parameters())
        self.text_cache = TextCache(config.text_cache_mb) if self.text_is_frozen and config.text_cache_mb else None

    def train(self, mode: bool = True) -> "DenoisingModule":
        super().train(mode)
        if self.text_is_frozen:
            self.text_encoder.eval()
        return self

    def encode(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of captions."""
        if self.text_cache is not None:
            return self.text_cache.encode(self.text_encoder, input_ids)
        return encode_tokens(self.text_encoder, input_ids)

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
        wrong_weights: torch.Tensor | None = None,
        seen_latents: torch.Tensor | None = None,
        seen_noise: torch.Tensor | None = None,
        text_noise: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss.

        Args:
            latents, noise: `(batch, channels, ..., height, width)`.
            timesteps: `(batch,)`.
            input_ids: captions, `(batch, tokens)`.
            pixel_weights: `(batch, 1, ..., height, width)`.
            baselines: `(batch,)`, for the 5D UNet only.
            wrong_ids: wrong captions of the samples numbered `wrong_samples`, for the hinge, which counts
                `wrong_weights` for each; in training only.
            seen_latents, seen_noise: what the network's input is made of, where that is not what it is to predict.
            text_noise: added to the embeddings of the captions, `(batch, tokens, channels)`.
            known_mask: where the network is shown the clean latents, `(batch, 1, view_rows, view_cols, frames, 1, 1)`.
        """
        config, scheduler = self.config, self.scheduler
        seen = latents if seen_latents is None else seen_latents
        noisy = scheduler.add_noise(seen, noise if seen_noise is None else seen_noise, timesteps)
        target = scheduler.training_target(latents, noise, timesteps)
        pixel_weights = torch.ones_like(latents[:, :1]) if pixel_weights is None else pixel_weights
        pixel_weights = pixel_weights / pixel_weights.mean()

        def errors(ids: torch.Tensor, chosen: torch.Tensor | slice, more: torch.Tensor | None = None) -> torch.Tensor:
            conditions = {} if baselines is None else {"view_baseline": baselines[chosen]}
            if known_mask is not None:
                conditions |= {"known": latents[chosen], "known_mask": known_mask[chosen]}
            text = self.encode(ids)
            text = text if more is None else text + more
            prediction = self.predict(noisy[chosen], timesteps[chosen], text, **conditions)
            # What is held out is measured alike for all settings.
            deviation_weight = getattr(config, "deviation_weight", 1.0) if self.training else 1.0
            return sample_errors(prediction, target[chosen], config.loss, pixel_weights[chosen], deviation_weight)

        true_errors = errors(input_ids, slice(None), text_noise)
        if self.training and config.loss == "mse":
            self.meter.add(true_errors, timesteps)
        loss = (true_errors * scheduler.loss_weights(timesteps, config.loss_weighting)).mean()
        if self.training and wrong_samples is not None and len(wrong_samples) > 0:
            contrast = CONTRASTS[config.hinge_form](
                true_errors[wrong_samples],
                errors(wrong_ids, wrong_samples),
                config.hinge_margin,
                config.hinge_margin_kind,
            )
            loss = loss + config.hinge_weight * (contrast * wrong_weights).sum() / len(latents)
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
        self.splits: dict[str, ContaminatedSplit] = {}
        self.problems = BrokenFiles(config.max_broken)
        self.mixture: Mixture | None = None
        self._held_out_pieces: list[Piece] | None = None
        self._scene = lru_cache(maxsize=KEPT_SCENES)(sample_scene)
        self.tokenizer, self.vae, self.scheduler = tokenizer, vae.eval().requires_grad_(False), scheduler
        choose_weights(unet, text_encoder, config)
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.module = DenoisingModule(unet, text_encoder, scheduler, config)

    def export_adapter(self, folder: Path) -> None:
        """Leaves the LoRA in `folder`, where one was trained, and merges it into the UNet."""
        if self.config.trainable == "lora":
            export_lora(self.module.unet, folder / LORA_FOLDER)

    def report(self) -> dict[str, Any]:
        """What the run has learnt about its data: the measured entropic clock, leaks, broken clips."""
        found = {"entropy_clock": self.module.meter.clock(), "contamination": self.contamination()}
        return found | {"broken_clips": self.problems.found}

    def open_mixture(
        self, grids: tuple[Grid, ...], run_folder: Path, rank: int, processes: int, barnyard: Source | None,
        size: tuple[int, int] = (1, 1), baselines: tuple[float, ...] = (1.0,),
    ) -> Mixture | None:  # fmt: skip
        """What `data` names, for batches of `grids`; None where it is barnyards alone.

        `barnyard` draws from those; monocular clips get `size` views, and baselines among `baselines`.
        """
        config = self.config
        if not config.has_clips:
            return None
        sources: list[Source] = []
        for setting in parse_sources(config.data):
            if setting.kind == BARNYARD:
                barnyard.weight = setting.weight
                sources.append(barnyard)
            else:
                sources.append(self.open_clips(setting, run_folder, rank, processes, size, baselines))
        mixture = self.mixture_of(sources, grids)
        mixture.check(grids)
        self.say_what_is_cut(mixture)
        return mixture

    def say_what_is_cut(self, mixture: Mixture) -> None:
        """Tells how many captions are longer than what the text encoder takes."""
        clips = [clip for source in mixture.sources for clip in getattr(source, "clips", ())]
        captions = sorted({caption for clip in clips for caption in clip.captions})
        most = self.tokenizer.model_max_length
        long = [caption for caption in captions if len(self.tokenizer(caption, verbose=False).input_ids) > most]
        if long:
            print(f"cut: {len(long)} of {len(captions)} captions have more than {most} tokens, as {long[0][:60]!r}")

    def open_clips(
        self, setting: SourceSetting, run_folder: Path, rank: int = 0, processes: int = 1,
        size: tuple[int, int] = (1, 1), baselines: tuple[float, ...] = (1.0,),
    ) -> ClipSource:  # fmt: skip
        """The clips of one source; those of folders are encoded first."""
        config, problems = self.config, self.problems
        groups = open_groups(setting, config.data_frame_rate, problems, rank, processes)
        if setting.kind == "monocular" and size != (1, 1):
            groups = make_layered(groups, size, baselines, config.seed, problems)
        files = None
        if not is_in_shards(setting):
            files = LatentFiles(run_folder / "latents", self.vae, config.image_size, config.encode_batch)
            groups = encode_all(groups, files, problems, f"encoding {setting}", rank > 0)
        return ClipSource(setting, groups, config.image_size, (config.seed, rank), files)

    def mixture_of(self, sources: list[Source], grids: tuple[Grid, ...]) -> Mixture:
        config = self.config
        largest = max(grid.batch_size for grid in grids)
        workers = config.data_workers
        return Mixture(sources, config.seed, largest, self.vae, config.encode_batch, workers, self.problems)

    def piece_batch(self, pieces: list[Piece], step: int, rank: int, fraction: float) -> dict[str, torch.Tensor]:
        """A batch of the 5D shape for the module, with some captions empty."""
        draw = random_generator(self.config.seed, step, rank, BATCH_STREAM)
        captions = drop_captions([piece.caption for piece in pieces], self.config.caption_dropout, draw)
        return self.training_batch(*stacked(pieces), captions, step, rank, fraction)

    def held_out_pieces(self, run_folder: Path, grids: tuple[Grid, ...], count: int, **layering: Any) -> list[Piece]:
        """`count` pieces of `held_out_data`, the same ones every time, of the largest of `grids` that it can serve."""
        if self._held_out_pieces is None:
            settings = parse_sources(self.config.held_out_data, "held_out_data")
            sources = [self.open_clips(setting, run_folder, **layering) for setting in settings]
            mixture = self.mixture_of(sources, grids)
            able = [grid for grid in grids if any(source.serves(grid) for source in sources)]
            mixture.check(grids if not able else ())
            largest = max(able, key=lambda grid: grid.view_rows * grid.view_cols * grid.frames)
            self._held_out_pieces = mixture.batch(0, 0, replace(largest, batch_size=count))
        return self._held_out_pieces

    def contamination(self) -> dict[str, Any]:
        """What has leaked into each pool, by its name."""
        return {name: split.provenance() for name, split in self.splits.items()}

    def make_split(self, name: str, clips: int, processes: int) -> ContaminatedSplit:
        """The split of the pool called `name`, of `clips` clips for each of `processes` processes."""
        config = self.config
        self.splits[name] = ContaminatedSplit(
            train_seed=config.seed,
            test_seed=config.held_out_seed,
            train_clips=clips,
            test_scenes=config.test_scenes,
            fraction=config.contamination,
            processes=processes,
        )
        return self.splits[name]

    def captions(self, clips: list[int], split: ContaminatedSplit, draw: np.random.Generator) -> list[str]:
        """A new wording for each of the `clips` of a pool, given by number; some are empty, for guidance."""
        wordings = draw.integers(self.config.wordings or WORDINGS, size=len(clips)).tolist()
        captions = [self._worded(*pair, split) for pair in zip(clips, wordings, strict=True)]
        return drop_captions(captions, self.config.caption_dropout, draw)

    def caption(self, clip: int, split: ContaminatedSplit, draw: np.random.Generator) -> str:
        """A new wording for the `clip` of a pool, given by number."""
        return self._worded(clip, int(draw.integers(self.config.wordings or WORDINGS)), split)

    def _worded(self, clip: int, wording: int, split: ContaminatedSplit) -> str:
        return caption_of(self._scene(*split.key(clip)), self.config.seed, wording)

    def prompts(self, rendered: tuple[str, ...]) -> list[str]:
        """What samples are asked for: as many as `rendered`, which are those for barnyards, of the clips' captions."""
        if self.config.renders:
            return list(rendered)
        captions = [clip.captions[0] for source in self.mixture.sources for clip in source.clips]
        different = list(dict.fromkeys(captions))
        return [different[place * len(different) // len(rendered)] for place in range(len(rendered))]

    def latent_shape(self, *grid: int) -> tuple[int, ...]:
        """Shape of the latents of one sample, `(channels, *grid, height, width)`."""
        side = self.config.image_size // pixels_a_latent(self.vae.config)
        return (self.vae.config.latent_channels, *grid, side, side)

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
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def training_batch(
        self, latents: torch.Tensor, shares: torch.Tensor, captions: list[str], step: int, rank: int, fraction: float
    ) -> dict[str, torch.Tensor]:
        """`noised_batch` with all that is only for training: wrong captions for the hinge, and corruptions."""
        config = self.config
        draw = random_generator(config.seed, step, rank, CORRUPTION_STREAM)
        told = swap_attributes(captions, config.attribute_swap_rate, config.attribute_swaps, draw)
        batch = self.noised_batch(latents, shares, told, self.batch_key(step, rank), fraction)
        more = self.wrong_captions(captions, batch["timesteps"].cpu(), step, rank)
        if config.input_noise > 0:
            draw = random_generator(config.seed, step, rank, INPUT_STREAM)
            more["seen_noise"] = perturbed_noise(
                batch["noise"].cpu(), config.input_noise_rate, config.input_noise, draw
            )
        if config.embedding_noise > 0:
            draw = random_generator(config.seed, step, rank, EMBEDDING_STREAM)
            shape = (*batch["input_ids"].shape, self.module.text_encoder.config.hidden_size)
            rate, strength = config.embedding_noise_rate, config.embedding_noise
            more["text_noise"] = embedding_noise(shape, rate, strength, config.embedding_noise_kind, draw)
        return batch | {name: tensor.to(self.device) for name, tensor in more.items()}

    def wrong_captions(
        self, captions: list[str], timesteps: torch.Tensor, step: int, rank: int
    ) -> dict[str, torch.Tensor]:
        """Wrong captions of those samples of a batch that pay for the hinge, and how much it counts for each."""
        config = self.config
        if config.hinge_weight == 0:
            return {}
        draw = random_generator(config.seed, step, rank, HINGE_STREAM)
        paying = befallen(len(captions), config.hinge_fraction, draw)
        places = timesteps.double().numpy() / self.scheduler.config.num_train_timesteps
        wrong = [wrong_caption(caption, config.hinge_caption) for caption in captions]
        chosen = [
            index
            for index, caption in enumerate(captions)
            if paying[index] and places[index] >= config.hinge_from and wrong[index] != caption
        ]
        if not chosen and not config.shard_weights:
            return {}
        # Processes that gather weights together must pass the network equally often: a sample that counts for nothing.
        chosen, counts = (chosen, 1.0) if chosen else ([0], 0.0)
        steps = step // config.accumulation
        warm = min(1.0, steps / config.hinge_warmup) if config.hinge_warmup else 1.0
        ramp = (places[chosen] - config.hinge_from) / max(1 - config.hinge_from, 1e-6)
        weights = counts * warm * (ramp if config.hinge_noise == "ramp" else np.ones(len(chosen)))
        return {
            "wrong_ids": tokenize(self.tokenizer, [wrong[index] for index in chosen]),
            "wrong_samples": torch.tensor(chosen),
            "wrong_weights": torch.tensor(weights, dtype=torch.float32),
        }

    def pixel_weights(self, shares: torch.Tensor, fraction: float) -> torch.Tensor:
        """Weight of every latent pixel when `fraction` of the run is over; `shares` are uint8."""
        config = self.config
        fade = min(1.0, (1.0 - fraction) / config.foreground_anneal) if config.foreground_anneal else 1.0
        return 1 + config.foreground_weight * fade * shares.float() / 255

    def batch_key(self, step: int, rank: int) -> tuple[int, ...]:
        return (self.config.seed, step, rank, NOISE_STREAM)

    def batch_tokens(self, batch: dict[str, torch.Tensor]) -> int:
        """Latent pixels of all views and frames."""
        return batch["latents"][:, 0].numel()

    @property
    def negative_prompt(self) -> str:
        """What samples are guided away from; "" stands for everything."""
        return CRYING_JOY if self.config.trains_joy else ""

    def sample_prompts(
        self, prompts: list[str], shape: tuple[int, ...], negative_prompt: str | None = None, **conditions: Any
    ) -> torch.Tensor:
        """Latents `(len(prompts), *shape)` sampled with guidance, from the same noise every time.

        Guidance leads away from `negative_prompt`, by default the task's own.
        """
        negative = self.negative_prompt if negative_prompt is None else negative_prompt
        generator = torch.Generator().manual_seed(self.config.seed + SAMPLE_STREAM)
        noise = torch.randn((len(prompts), *shape), generator=generator).to(self.device)
        module = self.module
        with fast_autocast(self.device):
            texts = encode_tokens(module.text_encoder, tokenize(self.tokenizer, [*prompts, negative]).to(self.device))
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


def wrong_caption(caption: str, kind: Literal["mirrored", "joy", "joy_suffix"]) -> str:
    """What the hinge sets against `caption`; the caption itself where there is nothing of the kind.

    Empty captions are left alone: with them the network learns of everything, and nothing is wrong of that.
    """
    if not caption:
        return caption
    return {"mirrored": mirrored(caption), "joy": CRYING_JOY, "joy_suffix": f"{caption} {CRYING_JOY}"}[kind]


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


def stacked(pieces: list[Piece]) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and foreground `(batch, ..., height, width)`; no foreground where it is not known."""
    latents = torch.stack([piece.latents for piece in pieces])
    nothing = torch.zeros_like(latents[0, :1], dtype=torch.uint8)
    return latents, torch.stack([nothing if piece.shares is None else piece.shares for piece in pieces])
