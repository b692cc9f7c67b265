"""Between an autoencoder and the latents that networks see: their scale, shift and size, written once."""

import torch
from diffusers.configuration_utils import FrozenDict


def pixels_a_latent(vae_config: FrozenDict) -> int:
    """Pixels to a latent pixel, along height and along width, of the autoencoder of this configuration."""
    return 2 ** (len(vae_config.block_out_channels) - 1)


def normalized(latents: torch.Tensor, vae_config: FrozenDict) -> torch.Tensor:
    """What the autoencoder of this configuration encodes to, as networks are trained on it."""
    return (latents - (vae_config.shift_factor or 0.0)) * vae_config.scaling_factor


def denormalized(latents: torch.Tensor, vae_config: FrozenDict) -> torch.Tensor:
    """Undoes `normalized`: what the autoencoder decodes."""
    return latents / vae_config.scaling_factor + (vae_config.shift_factor or 0.0)
