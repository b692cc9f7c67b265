"""Between what an autoencoder gives and the latents that networks see: one scale and shift, written once."""

import torch
from diffusers.configuration_utils import FrozenDict


def normalized(latents: torch.Tensor, vae_config: FrozenDict) -> torch.Tensor:
    """What the autoencoder of this configuration encodes to, as networks are trained on it."""
    return (latents - (vae_config.shift_factor or 0.0)) * vae_config.scaling_factor


def denormalized(latents: torch.Tensor, vae_config: FrozenDict) -> torch.Tensor:
    """Undoes `normalized`: what the autoencoder decodes."""
    return latents / vae_config.scaling_factor + (vae_config.shift_factor or 0.0)
