"""Loads the parts of a Stable Diffusion checkpoint and inflates its UNet, for `StaleDiffusionPipeline`."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, MotionAdapter, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffusers_stale.added_conditions import takes_pooled_text
from diffusers_stale.inflation import inflate_unet2d
from diffusers_stale.pipeline_checks import check_network
from diffusers_stale.scheduling_stale import StaleScheduler


PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
"""Subfolders of a checkpoint, and components of the pipeline."""

PARTS_OF_XL = ("text_encoder_2", "tokenizer_2")
"""Those that SDXL has besides."""


def load_parts(
    path_or_repo: str | Path,
    motion_adapter: MotionAdapter | str | Path | None,
    dtype: torch.dtype,
    variant: str | None,
    hub: dict[str, Any],
    new_layer_options: dict[str, Any],
) -> dict[str, Any]:
    """The pipeline's components by name; see `StaleDiffusionPipeline.from_stable_diffusion`.

    `hub` holds what every `from_pretrained` takes: revision, token, cache_dir, local_files_only.
    """
    check_folder(Path(path_or_repo), PARTS)
    source = str(path_or_repo)
    weights = {**hub, "variant": variant}
    unet2d = UNet2DConditionModel.from_pretrained(source, subfolder="unet", torch_dtype=dtype, **weights)
    is_xl, pooled_channels = takes_pooled_text(unet2d.config), None
    if is_xl:
        check_folder(Path(path_or_repo), PARTS_OF_XL)
        pooled_channels = CLIPTextConfig.from_pretrained(source, subfolder="text_encoder_2", **hub).projection_dim
    vae = AutoencoderKL.from_pretrained(source, subfolder="vae", torch_dtype=dtype, **weights)
    check_network(unet2d.config, vae.config.latent_channels, pooled_channels)
    check_autoencoder(vae)
    if isinstance(motion_adapter, (str, Path)):
        # The revision is the other checkpoint's.
        own = {**hub, "revision": None}
        motion_adapter = MotionAdapter.from_pretrained(str(motion_adapter), torch_dtype=dtype, **own)
    unet = inflate_unet2d(unet2d, motion_adapter, **new_layer_options)
    unet.register_to_config(_name_or_path=source)
    if is_xl and dtype == torch.float16 and vae.config.force_upcast:
        vae.float()  # SDXL's own autoencoder overflows in half precision.
    parts = {
        "vae": vae,
        "text_encoder": CLIPTextModel.from_pretrained(source, subfolder="text_encoder", dtype=dtype, **weights),
        "tokenizer": CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", **hub),
        "unet": unet,
        "scheduler": StaleScheduler.from_pretrained(source, subfolder="scheduler", **hub),
    }
    return parts | (load_parts_of_xl(source, dtype, hub, weights) if is_xl else {})


def load_parts_of_xl(source: str, dtype: torch.dtype, hub: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """What `StaleDiffusionXLPipeline` is built from besides."""
    index = DiffusionPipeline.load_config(source, **hub)
    text_encoder = CLIPTextModelWithProjection.from_pretrained(
        source, subfolder="text_encoder_2", dtype=dtype, **weights
    )
    return {
        "text_encoder_2": text_encoder,
        "tokenizer_2": CLIPTokenizer.from_pretrained(source, subfolder="tokenizer_2", **hub),
        "force_zeros_for_empty_prompt": index.get("force_zeros_for_empty_prompt", True),
    }


def check_autoencoder(vae: AutoencoderKL) -> None:
    """Raises `ValueError` for an autoencoder whose latents are scaled channel by channel, as Playground's are."""
    if vae.config.latents_mean is not None or vae.config.latents_std is not None:
        raise ValueError(
            "`vae` must scale its latents by `scaling_factor` alone, got one with `latents_mean` or `latents_std`; "
            "load a checkpoint with the autoencoder of Stable Diffusion 1, 2 or XL."
        )


def check_folder(folder: Path, parts: tuple[str, ...]) -> None:
    """Raises `ValueError` for a local folder that lacks one of `parts`; a Hub id is left to the Hub."""
    missing = [part for part in parts if folder.is_dir() and not (folder / part).is_dir()]
    if missing:
        raise ValueError(
            f"`path_or_repo` must have the subfolders {', '.join(parts)}, got {folder} without {', '.join(missing)}; "
            "give a checkpoint of the Stable Diffusion kind in diffusers' layout."
        )
