"""What some networks are told beside the words of a movie: SDXL's pooled text and picture sizes, embedded guidance.

Both come from the 2D networks that a pipeline is inflated from, and are passed as those of diffusers pass them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.embeddings import get_timestep_embedding

from diffusers_stale.text_encoding import describe


Size = tuple[int, int] | None
"""Height and width in pixels."""

SIZES = 6
"""Numbers that SDXL is told: of the original picture, its crop's top left corner, and the target, two each."""


def takes_pooled_text(unet_config: FrozenDict) -> bool:
    """Whether the network is told pooled text and picture sizes, as SDXL is."""
    return unet_config.addition_embed_type == "text_time"


def pooled_text_channels(unet_config: FrozenDict) -> int | None:
    """Channels of the pooled text that the network takes; None where it takes none."""
    if not takes_pooled_text(unet_config):
        return None
    return unet_config.projection_class_embeddings_input_dim - SIZES * unet_config.addition_time_embed_dim


def check_added(unet_config: FrozenDict, given: dict[str, Any], texts: dict[str, torch.Tensor | None]) -> None:
    """Checks what a caller gives for SDXL only.

    Args:
        unet_config: of the network.
        given: `original_size`, `crops_coords_top_left`, `target_size`, `pooled_prompt_embeds` and
            `negative_pooled_prompt_embeds`, any of them None.
        texts: `prompt_embeds` and `negative_prompt_embeds`, which must be given if and only if those pooled are.

    Raises:
        ValueError: for what the network does not take, and for wrong shapes and numbers.
    """
    channels = pooled_text_channels(unet_config)
    for name, value in given.items():
        if value is not None and channels is None:
            raise ValueError(
                f"`{name}` must be None, since this network is told no pooled text and no sizes, got "
                f"{describe(value) if not isinstance(value, torch.Tensor) else tuple(value.shape)}; leave it out."
            )
        if value is not None and "embeds" not in name:
            check_pair(name, value)
    for name, embeddings in texts.items() if channels is not None else ():
        pooled = given[name.replace("prompt", "pooled_prompt")]
        check_pooled(name.replace("prompt", "pooled_prompt"), pooled, name, embeddings, channels)


def check_pair(name: str, value: Size) -> None:
    """Raises `ValueError` unless `value` is a pair of counts of pixels."""
    fits = isinstance(value, (list, tuple)) and len(value) == 2
    if not fits or any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in value):
        raise ValueError(
            f"`{name}` must be a pair of whole numbers of at least 0, down and to the right in pixels, got "
            f"{describe(value)}; give such a pair, or leave it out."
        )


def check_pooled(
    name: str, pooled: torch.Tensor | None, text_name: str, embeddings: torch.Tensor | None, channels: int
) -> None:
    """Raises `ValueError` unless `pooled` text of `channels` is there just where its `embeddings` are, and sound."""
    if (pooled is None) != (embeddings is None):
        there, missing = (text_name, name) if pooled is None else (name, text_name)
        raise ValueError(f"`{missing}` must be given together with `{there}`, got none; `encode_prompt` makes both.")
    if pooled is None:
        return
    expected = (len(embeddings), channels)
    if not isinstance(pooled, torch.Tensor) or not pooled.is_floating_point() or pooled.shape != expected:
        got = tuple(pooled.shape) if isinstance(pooled, torch.Tensor) else describe(pooled)
        raise ValueError(
            f"`{name}` must be a tensor of floats of shape (prompts, channels) = {expected}, got {got}; use "
            "`encode_prompt`."
        )
    if not torch.isfinite(pooled).all():
        raise ValueError(f"`{name}` must be finite, got NaN or infinity; encode the text again.")


def added_conditions(
    unet_config: FrozenDict,
    guidance_scale: float,
    text: torch.Tensor,
    pooled: Sequence[torch.Tensor | None],
    sizes: Sequence[Size],
) -> dict[str, Any]:
    """Arguments of the UNet's `forward` that this network needs beside those that every one does.

    Args:
        unet_config: of the network.
        guidance_scale: for networks that guidance was distilled into.
        text: embeddings of prompts, `(movies, tokens, channels)`; the others go to their device and dtype.
        pooled: for SDXL, pooled prompts and (None without guidance) negative prompts, `(movies, channels)` each.
        sizes: for SDXL, the original picture's, the crop's corner, and the target's.

    Returns:
        `timestep_cond` of shape `(movies, channels)`; in `added_cond_kwargs`, `text_embeds` and `time_ids` of the
        negative prompts and, after them, the prompts.
    """
    added = {}
    if unet_config.time_cond_proj_dim is not None:
        embedding = guidance_embedding(guidance_scale, unet_config.time_cond_proj_dim)
        added["timestep_cond"] = embedding.to(text).expand(len(text), -1)
    if pooled:
        prompts, negatives = pooled
        both = prompts if negatives is None else torch.cat([negatives, prompts])
        numbers = [number for size in sizes for number in size]
        time_ids = torch.tensor(numbers, device=text.device, dtype=text.dtype)
        added["added_cond_kwargs"] = {"text_embeds": both.to(text), "time_ids": time_ids.expand(len(both), -1)}
    return added


def guidance_embedding(guidance_scale: float, channels: int) -> torch.Tensor:
    """The strength of guidance as latent consistency models are told it (arXiv 2310.04378); shape `(1, channels)`."""
    excess = torch.tensor([guidance_scale - 1.0])
    return get_timestep_embedding(excess, channels, downscale_freq_shift=1, scale=1000)
