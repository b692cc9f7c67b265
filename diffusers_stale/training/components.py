"""Builds the untrained parts of a checkpoint from a stage's configuration.

Sizes are the configuration's; the classes are Stable Diffusion's, so that everything around them works.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusers_stale.training.config import AutoencoderConfig, ImageConfig, TextConfig


WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"

START_LOG_VARIANCE = -7.0
"""Bias of the latents' log variance before training: latents start as nearly exact."""


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """An untrained autoencoder without attention, whose latents start with little noise."""
    levels = len(config.block_channels)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=config.latent_channels,
        block_out_channels=config.block_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        mid_block_add_attention=False,
        sample_size=config.image_size,
        force_upcast=False,
    )
    with torch.no_grad():
        vae.quant_conv.weight[config.latent_channels :].mul_(0.1)
        vae.quant_conv.bias[config.latent_channels :].fill_(START_LOG_VARIANCE)
    return vae


@torch.no_grad()
def standardize_latents(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Makes latents of the measured `mean` and `std` (each `(channels,)`) have mean 0 and deviation 1 in each channel.

    Scale and shift go into the 1x1 convolutions before and after the latents, so reconstructions stay as they are,
    `scaling_factor` is 1 and `shift_factor` 0: a single factor could not do channels of different deviation justice.
    """
    channels = len(mean)
    to_latent, from_latent = vae.quant_conv, vae.post_quant_conv
    to_latent.weight[:channels].div_(std[:, None, None, None])
    to_latent.bias[:channels].sub_(mean).div_(std)
    to_latent.bias[channels:].sub_(2 * std.log())
    from_latent.bias.add_(from_latent.weight[:, :, 0, 0] @ mean)
    from_latent.weight.mul_(std[None, :, None, None])
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)


def take_autoencoder(vae: AutoencoderKL, folder: Path) -> None:
    """Gives `vae` the weights, scale and shift of the autoencoder in `folder`, or of the pipeline there.

    Raises `FileNotFoundError` if there is none, `ValueError` if it is of another shape.
    """
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (folder / WEIGHTS_NAME).is_file():
        raise FileNotFoundError(f"`start_from` must hold vae/{WEIGHTS_NAME}, got {folder}; name a pipeline.")
    earlier = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    found, own = earlier.state_dict(), vae.state_dict()
    different = [name for name in own if name not in found or found[name].shape != own[name].shape]
    if different or len(found) != len(own):
        raise ValueError(
            f"`start_from` must hold an autoencoder of the configured shape, got another in {folder} (see "
            f"{(different or sorted(set(found) - set(own)))[0]}); set block_channels and latent_channels as there."
        )
    vae.load_state_dict(found)
    vae.register_to_config(
        scaling_factor=earlier.config.scaling_factor,
        shift_factor=earlier.config.shift_factor,
        latents_mean=earlier.config.latents_mean,
        latents_std=earlier.config.latents_std,
    )


def build_text_encoder(config: TextConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder for `tokenizer`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            projection_dim=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.max_tokens,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(config: ImageConfig, latent_channels: int, latent_size: int, text_size: int) -> UNet2DConditionModel:
    """An untrained 2D UNet with attention on all levels but the highest, and with the text added to the timestep."""
    levels = len(config.block_channels)
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=config.layers_per_block,
        block_out_channels=config.block_channels,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * (levels - 1)),
        up_block_types=(*["CrossAttnUpBlock2D"] * (levels - 1), "UpBlock2D"),
        cross_attention_dim=text_size,
        # In this class the number of heads goes by the name of their size.
        attention_head_dim=config.attention_heads,
        norm_num_groups=config.norm_num_groups,
        addition_embed_type="text",
        addition_embed_type_num_heads=config.attention_heads,
    )


@torch.no_grad()
def take_weights(model: ModelMixin, names: Iterable[str], pipeline_folder: Path) -> None:
    """Overwrites the parameters and buffers of `model` called `names` by those of the UNet in `pipeline_folder`.

    Raises `FileNotFoundError` if there is no UNet, `ValueError` if it lacks one of them or has it in another shape.
    """
    path = pipeline_folder / "unet" / WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"`start_from` must hold unet/{WEIGHTS_NAME}, got {pipeline_folder}; name a pipeline.")
    found, own = load_file(path), model.state_dict()
    for name in names:
        if name not in found or found[name].shape != own[name].shape:
            shape = tuple(found[name].shape) if name in found else "nothing"
            raise ValueError(
                f"`start_from` must have {name} of shape {tuple(own[name].shape)}, got {shape} in {path}; start from "
                "a checkpoint of the same configuration."
            )
        own[name].copy_(found[name])
