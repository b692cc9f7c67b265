"""`StaleDiffusionXLPipeline`: the pipeline for networks of the SDXL kind, which two text encoders speak to.

All it changes is how words are told: each token by the last hidden state but one of both encoders, side by side, and
the whole text by the pooled output of the second. Sizes of pictures go along as SDXL was trained with them.
"""

import torch
from diffusers import AutoencoderKL
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffusers_stale.pipeline_stale import StaleDiffusionPipeline
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.text_encoding import encode_penultimate
from diffusers_stale.unet_stale import StaleUNet5DConditionModel


class StaleDiffusionXLPipeline(StableDiffusionXLLoraLoaderMixin, StaleDiffusionPipeline):
    """Text to light-field movie, for a UNet with `addition_embed_type="text_time"`.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: as of `StaleDiffusionPipeline`.
        text_encoder_2: the one whose pooled output the UNet is told.
        tokenizer_2: of that text encoder.
        force_zeros_for_empty_prompt: whether a negative prompt that is not given is told as zeros, instead of as the
            empty text; as the checkpoint was trained.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: StaleUNet5DConditionModel,
        scheduler: StaleScheduler,
        force_zeros_for_empty_prompt: bool = True,
    ):
        super().__init__(vae, text_encoder, tokenizer, unet, scheduler)
        self.agree_on_dtype(text_encoder_2, unet)
        self.register_modules(text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2)
        self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)

    @property
    def text_parts(self) -> list[tuple[CLIPTokenizer, CLIPTextModel | CLIPTextModelWithProjection]]:
        """Tokenizers and text encoders, in the order in which their embeddings stand side by side."""
        return [(self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)]

    @property
    def pooled_channels(self) -> int:
        """Channels of pooled text."""
        return self.text_encoder_2.config.projection_dim

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device | None = None,
        num_videos_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """What the UNet is told: prompts, negative prompts (None without guidance), and both pooled.

        The first two have shape `(prompts * num_videos_per_prompt, tokens, channels)`, pooled ones no tokens.
        """
        device = device or self._execution_device
        guided = do_classifier_free_guidance
        with self.text_lora_scale(lora_scale):
            if prompt_embeds is None:
                texts = self.checked_texts("prompt", prompt, 1)
                prompt_embeds, pooled_prompt_embeds = self.encode_texts_pooled("prompt", texts, device)
            if guided and negative_prompt_embeds is None:
                if negative_prompt is None and self.config.force_zeros_for_empty_prompt:
                    negative_prompt_embeds = torch.zeros_like(prompt_embeds)
                    negative_pooled_prompt_embeds = torch.zeros_like(pooled_prompt_embeds)
                else:
                    texts = self.checked_texts("negative_prompt", negative_prompt or "", len(prompt_embeds))
                    negative_prompt_embeds, negative_pooled_prompt_embeds = self.encode_texts_pooled(
                        "negative_prompt", texts, device
                    )
        negatives = (negative_prompt_embeds, negative_pooled_prompt_embeds) if guided else (None, None)
        told = (prompt_embeds, negatives[0], pooled_prompt_embeds, negatives[1])
        return self.repeated(told, device, num_videos_per_prompt)

    def encode_texts_pooled(
        self, name: str, texts: list[str], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of `texts`, `(texts, tokens, channels)`, and pooled, `(texts, channels)`."""
        side_by_side, pooled = [], None
        for tokenizer, text_encoder in self.text_parts:
            ids = self.token_ids(tokenizer, name, texts).to(device)
            states, pooled = encode_penultimate(text_encoder, ids)
            side_by_side.append(states)
        return torch.cat(side_by_side, dim=-1), pooled
