"""Loads the parts of a Stable Diffusion checkpoint and inflates its UNet, for `StaleDiffusionPipeline`."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from diffusers_stale.inflation import inflate_unet2d
from diffusers_stale.pipeline_checks import check_network
from diffusers_stale.scheduling_stale import StaleScheduler


PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
"""Subfolders of a checkpoint, and components of the pipeline."""


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
    check_folder(Path(path_or_repo))
    source = str(path_or_repo)
    weights = {**hub, "variant": variant}
    unet2d = UNet2DConditionModel.from_pretrained(source, subfolder="unet", torch_dtype=dtype, **weights)
    vae = AutoencoderKL.from_pretrained(source, subfolder="vae", torch_dtype=dtype, **weights)
    check_network(unet2d.config, vae.config.latent_channels)
    if isinstance(motion_adapter, (str, Path)):
        # The revision is the other checkpoint's.
        own = {**hub, "revision": None}
        motion_adapter = MotionAdapter.from_pretrained(str(motion_adapter), torch_dtype=dtype, **own)
    unet = inflate_unet2d(unet2d, motion_adapter, **new_layer_options)
    unet.register_to_config(_name_or_path=source)
    return {
        "vae": vae,
        "text_encoder": CLIPTextModel.from_pretrained(source, subfolder="text_encoder", dtype=dtype, **weights),
        "tokenizer": CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", **hub),
        "unet": unet,
        "scheduler": StaleScheduler.from_pretrained(source, subfolder="scheduler", **hub),
    }


def check_folder(folder: Path) -> None:
    """Raises `ValueError` for a local folder that lacks a part; a Hub id is left to the Hub."""
    missing = [part for part in PARTS if folder.is_dir() and not (folder / part).is_dir()]
    if missing:
        raise ValueError(
            f"`path_or_repo` must have the subfolders {', '.join(PARTS)}, got {folder} without {', '.join(missing)}; "
            "give a checkpoint of the Stable Diffusion kind in diffusers' layout."
        )
