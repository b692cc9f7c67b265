"""Checks of what a caller asks of `StaleDiffusionPipeline`: each raises `ValueError` with expected, got, remedy.

Nothing is allocated, encoded or repaired here. (`check_finite` is of what was made, not of what was asked.)
"""

import inspect
import math
from collections.abc import Iterable

import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import FrozenDict

from diffusers_stale.added_conditions import pooled_text_channels
from diffusers_stale.axes import AXES
from diffusers_stale.text_encoding import check_texts, describe


def check_number(name: str, value: float, above: float | None = None, least: float | None = None) -> float:
    """Returns `value` if it is a finite real number, greater than `above` and at least `least` where those are set."""
    bounds = "" if above is None else f" greater than {above:g}"
    bounds += "" if least is None else f" of at least {least:g}"
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or (above is not None and value <= above) or (least is not None and value < least):
        raise ValueError(f"`{name}` must be a finite number{bounds}, got {describe(value)}; give such a number.")
    return value


def check_size(name: str, value: int, factor: int) -> int:
    """Returns `value` if it is a size in pixels that is a positive multiple of `factor`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value % factor:
        nearest = f"; {max(round(value / factor), 1) * factor} is the nearest" if isinstance(value, int) else ""
        raise ValueError(
            f"`{name}` must be a positive multiple of {factor} (pixels; the autoencoder shrinks by that factor), got "
            f"{describe(value)}{nearest}."
        )
    return value


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Returns `value` if it is one of `choices`."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {describe(value)}.")
    return value


def check_callback_inputs(names: list[str], known: list[str]) -> None:
    """Checks that every tensor that a callback asks for is one that it can get."""
    if not isinstance(names, (list, tuple)):
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` must be a list of names, got {describe(names)}; the names are "
            f"{', '.join(known)}."
        )
    for name in names:
        check_choice("callback_on_step_end_tensor_inputs", name, known)


def check_generator(generator: torch.Generator | list[torch.Generator] | None, movies: int) -> None:
    """Checks that there is no generator, one for all, or one for each of the `movies`."""
    several = isinstance(generator, (list, tuple))
    for item in generator if several else [generator] * (generator is not None):
        if not isinstance(item, torch.Generator):
            raise ValueError(
                f"`generator` must be a torch.Generator, or a list of one for each movie, got {describe(item)}; write "
                "torch.Generator().manual_seed(0)."
            )
    if several and len(generator) != movies:
        raise ValueError(
            f"`generator` must be one generator, or a list of {movies}, one for each movie, got a list of "
            f"{len(generator)}; add or remove some."
        )


def check_prompts(
    prompt: str | list[str] | None,
    negative_prompt: str | list[str] | None,
    prompt_embeds: torch.Tensor | None,
    negative_prompt_embeds: torch.Tensor | None,
    channels: int | None,
) -> int:
    """Number of prompts, after checking that texts and embeddings (of `channels`) are sound and fit each other."""
    if (prompt is None) == (prompt_embeds is None):
        got = "neither" if prompt is None else "both"
        raise ValueError(
            f"Either `prompt` or `prompt_embeds` must be given, got {got}; an empty prompt asks for anything."
        )
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise ValueError(
            "Only one of `negative_prompt` and `negative_prompt_embeds` may be given, got both; leave one out."
        )
    if prompt_embeds is not None:
        check_embeddings("prompt_embeds", prompt_embeds, None, channels)
    prompts = len(prompt_embeds) if prompt is None else len(check_texts("prompt", prompt))
    if negative_prompt is not None:
        negatives = check_texts("negative_prompt", negative_prompt)
        if not isinstance(negative_prompt, str) and len(negatives) not in (1, prompts):
            raise ValueError(
                f"`negative_prompt` must be one string or a list of {prompts}, one for each prompt, got "
                f"{len(negatives)}; give one for all."
            )
    if negative_prompt_embeds is not None:
        check_embeddings("negative_prompt_embeds", negative_prompt_embeds, prompts, channels, prompt_embeds)
    return prompts


def text_channels(unet_config: FrozenDict) -> int | None:
    """Channels that the UNet expects of a text; None where its blocks differ."""
    inner, outer = unet_config.cross_attention_dim, unet_config.encoder_hid_dim
    channels = inner if outer is None else outer
    return channels if isinstance(channels, int) else None


def check_schedule(scheduler: SchedulerMixin, timesteps: list | None, sigmas: list | None) -> dict[str, list]:
    """The one of `timesteps` and `sigmas` that is given, if any, by its name; `scheduler` must take it."""
    own = {name: value for name, value in (("timesteps", timesteps), ("sigmas", sigmas)) if value is not None}
    if len(own) > 1:
        raise ValueError("Only one of `timesteps` and `sigmas` may be given, got both; leave one out.")
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    for name in own:
        if name not in accepted:
            raise ValueError(
                f"`{name}` must be None for {type(scheduler).__name__}, which does not take them, got some; choose "
                "`num_inference_steps`, or another scheduler."
            )
    return own


def check_embeddings(
    name: str, embeddings: torch.Tensor, texts: int | None, channels: int | None, like: torch.Tensor | None = None
) -> None:
    """Checks text embeddings: shape `(texts, tokens, channels)`, the shape of `like` where it is given, finite."""
    expected = f"({'texts' if texts is None else texts}, tokens, {'channels' if channels is None else channels})"
    if not isinstance(embeddings, torch.Tensor) or not embeddings.is_floating_point() or embeddings.ndim != 3:
        got = tuple(embeddings.shape) if isinstance(embeddings, torch.Tensor) else describe(embeddings)
        raise ValueError(f"`{name}` must be a tensor of floats of shape {expected}, got {got}; use `encode_prompt`.")
    if 0 in embeddings.shape or texts not in (None, len(embeddings)) or channels not in (None, embeddings.shape[-1]):
        raise ValueError(f"`{name}` must have shape {expected}, got {tuple(embeddings.shape)}; use `encode_prompt`.")
    if like is not None and embeddings.shape != like.shape:
        raise ValueError(
            f"`{name}` must have the shape of `prompt_embeds`, {tuple(like.shape)}, got {tuple(embeddings.shape)}; "
            "encode both with the same text encoder."
        )
    if not torch.isfinite(embeddings).all():
        raise ValueError(f"`{name}` must be finite, got NaN or infinity; encode the text again.")


def check_latents(latents: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Checks given `latents`: of the `shape` that the request implies, floats, finite."""
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point() or latents.shape != shape:
        got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else describe(latents)
        raise ValueError(
            f"`latents` must be a tensor of floats of shape {shape}, axes {AXES}, got {got}; change the "
            "latents or the requested sizes."
        )
    if not torch.isfinite(latents).all():
        raise ValueError("`latents` must be finite, got NaN or infinity; draw them again.")


def check_finite(latents: torch.Tensor, index: int, steps: int, timestep: torch.Tensor) -> None:
    """Raises `FloatingPointError` naming the step, counted from 1, after which `latents` hold NaN or infinity."""
    if not torch.isfinite(latents).all():
        raise FloatingPointError(
            f"Latents must be finite, got NaN or infinity after step {index + 1} of {steps} (timestep "
            f"{float(timestep):g}); run the UNet in float32 or bfloat16, not {latents.dtype}, lower `guidance_scale`, "
            "or check the checkpoint's weights."
        )


def check_network(unet_config: FrozenDict, latent_channels: int, pooled_channels: int | None = None) -> None:
    """Checks that the network can be fed from a sentence alone, with the latents of the autoencoder.

    `pooled_channels` are those of a second text encoder's pooled text; None where there is none.
    """
    if unet_config.in_channels not in (latent_channels, 2 * latent_channels + 1):
        raise ValueError(
            f"The UNet must take the autoencoder's {latent_channels} latent channels (or, for inpainting, "
            f"{2 * latent_channels + 1}), got `in_channels={unet_config.in_channels}`; upscalers, depth-to-image and "
            "other image-conditioned networks cannot be used by this pipeline: load a text-to-image one."
        )
    needs = {
        "addition_embed_type": (None, "text", "text_time"),
        "class_embed_type": (None,),
        "num_class_embeds": (None, 0),
    }
    for key, supported in needs.items():
        if unet_config.get(key) not in supported:
            raise ValueError(
                f"The UNet must need nothing but a text, got `{key}={unet_config[key]!r}` (class-conditioned networks "
                "need more than this pipeline gives); load a network of the Stable Diffusion 1, 2 or XL kind."
            )
    needed = pooled_text_channels(unet_config)
    if needed != pooled_channels:
        raise ValueError(
            f"The UNet takes {needed or 'no'} channels of pooled text, got {pooled_channels or 'none'} from the text "
            "encoders; StaleDiffusionXLPipeline is for networks of the SDXL kind (not for its refiner, which refines "
            "pictures), StaleDiffusionPipeline for all others."
        )
