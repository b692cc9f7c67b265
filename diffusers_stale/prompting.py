"""From prompts to what the UNet is told: the part of the pipeline that has text encoders, and LoRA layers in them.

Encoding itself is `text_encoding.py`'s, which training shares; `pipeline_stale_xl.py` says what SDXL does otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.utils import USE_PEFT_BACKEND
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from transformers import CLIPTextModel, CLIPTokenizer

from diffusers_stale.text_encoding import check_texts, encode_tokens, tokenize, warn_of_cuts
from diffusers_stale.unet_stale import StaleUNet5DConditionModel


class PromptingMixin:
    """What `StaleDiffusionPipeline` does with prompts."""

    @staticmethod
    def agree_on_dtype(text_encoder: CLIPTextModel | None, unet: StaleUNet5DConditionModel | None) -> None:
        """Makes a text encoder that was loaded in half precision as exact as the UNet.

        Where no dtype is asked for, transformers keeps that of the file and diffusers takes float32. All parts must
        agree, so that a checkpoint makes the same movies from memory and from its half-precision file.
        """
        loaded_in_half = text_encoder is not None and text_encoder.dtype == torch.float16
        if loaded_in_half and unet is not None and unet.dtype == torch.float32:
            text_encoder.float()

    @property
    def text_parts(self) -> list[tuple[CLIPTokenizer, CLIPTextModel]]:
        """Tokenizers and text encoders."""
        return [(self.tokenizer, self.text_encoder)]

    @property
    def pooled_channels(self) -> int | None:
        """Channels of pooled text; none here."""
        return None

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
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the UNet is told, each of shape `(prompts * num_videos_per_prompt, tokens, channels)`.

        The second is that of negative prompts (the default one, where none are given); None without guidance.
        """
        device = device or self._execution_device
        with self.text_lora_scale(lora_scale):
            if prompt_embeds is None:
                prompt_embeds = self.encode_texts("prompt", self.checked_texts("prompt", prompt, 1), device)
            if do_classifier_free_guidance and negative_prompt_embeds is None:
                given = self.config.get("default_negative_prompt", "") if negative_prompt is None else negative_prompt
                negatives = self.checked_texts("negative_prompt", given, len(prompt_embeds))
                negative_prompt_embeds = self.encode_texts("negative_prompt", negatives, device)
        texts = (prompt_embeds, negative_prompt_embeds if do_classifier_free_guidance else None)
        return self.repeated(texts, device, num_videos_per_prompt)

    @staticmethod
    def checked_texts(name: str, texts: str | list[str] | None, count: int) -> list[str]:
        """`texts` as a list of those that are sound, a single one `count` times."""
        texts = check_texts(name, texts)
        return texts * count if len(texts) == 1 else texts

    def repeated(
        self, embeddings: tuple[torch.Tensor | None, ...], device: torch.device, times: int
    ) -> tuple[torch.Tensor | None, ...]:
        """Each of `embeddings` that is there, on `device` in the UNet's dtype, each prompt's `times` in a row."""
        return tuple(
            None if text is None else text.to(device, self.unet.dtype).repeat_interleave(times, dim=0)
            for text in embeddings
        )

    @contextmanager
    def text_lora_scale(self, scale: float | None) -> Iterator[None]:
        """Has LoRA layers of text encoders count `scale` times as much, as long as the context lasts."""
        if scale is None or not USE_PEFT_BACKEND:
            yield
            return
        self._lora_scale = scale  # Read by diffusers' LoRA loader.
        encoders = [text_encoder for _, text_encoder in self.text_parts]
        for text_encoder in encoders:
            scale_lora_layers(text_encoder, scale)
        try:
            yield
        finally:
            for text_encoder in encoders:
                unscale_lora_layers(text_encoder, scale)

    def token_ids(self, tokenizer: CLIPTokenizer, name: str, texts: list[str]) -> torch.Tensor:
        """Token ids of `texts`, `(texts, tokens)`; logs what was too long, as the argument `name`."""
        words = tokenizer.added_tokens_encoder
        if any(f"{word}_1" in words for word in words):
            # Textual inversions of several vectors, which diffusers numbers.
            texts = self.maybe_convert_prompt(texts, tokenizer)
        warn_of_cuts(tokenizer, name, texts)
        return tokenize(tokenizer, texts)

    def encode_texts(self, name: str, texts: list[str], device: torch.device) -> torch.Tensor:
        """Embeddings of `texts`, `(texts, tokens, channels)`."""
        return encode_tokens(self.text_encoder, self.token_ids(self.tokenizer, name, texts).to(device))
