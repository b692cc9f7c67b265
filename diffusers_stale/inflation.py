"""Inflation: a 2D UNet becomes a 5D UNet that, until it is trained, treats every view and frame as its parent did.

Spatial weights move over by name and every one is accounted for; time and view layers are added with outputs of zero.
"""

import inspect
from itertools import chain
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from diffusers_stale.unet_config import SPATIAL_KEYS, check_inflatable
from diffusers_stale.unet_stale import StaleUNet5DConditionModel


NEW_MODULES = ("motion_modules", "view_layers", "view_embedding")
"""Names of modules that no 2D UNet has; every parameter below one of them is new."""

NEW_OPTIONS = tuple(
    name
    for name in inspect.signature(StaleUNet5DConditionModel.__init__).parameters
    if name != "self" and name not in SPATIAL_KEYS
)
"""Options of the new layers: what `inflate_unet2d` takes besides the 2D UNet."""


def inflate_unet2d(unet2d: UNet2DConditionModel, **new_layer_options: Any) -> StaleUNet5DConditionModel:
    """The 5D UNet that `unet2d` grows into.

    Its output equals the parent's for every view and frame, until new layers are trained. No second copy of weights is
    made: both networks hold the same tensors, so training the 5D UNet changes its parent; inflate a `copy.deepcopy` of
    the parent where it is needed unchanged.

    Args:
        unet2d: any 2D UNet of the Stable Diffusion family, without adapters (fuse or unload LoRAs first).
        new_layer_options: among `NEW_OPTIONS`; see `StaleUNet5DConditionModel`.

    Returns:
        A network on the parent's device, in its dtype and mode (training or evaluation).

    Raises:
        ValueError: for something else than a 2D UNet, for blocks or options that cannot be inflated, for options that
            new layers do not have, and for weights that are left over or lacking.
    """
    if not isinstance(unet2d, UNet2DConditionModel):
        raise ValueError(f"`unet2d` must be a diffusers.UNet2DConditionModel, got {type(unet2d).__name__}; load one.")
    unknown = sorted(set(new_layer_options) - set(NEW_OPTIONS))
    if unknown:
        raise ValueError(f"New layers have the options {', '.join(NEW_OPTIONS)}, got {', '.join(unknown)}.")
    spatial_config = {key: unet2d.config[key] for key in SPATIAL_KEYS}
    check_inflatable(spatial_config)
    with torch.device("meta"):
        unet = StaleUNet5DConditionModel(**spatial_config, **new_layer_options)
    move_weights(unet2d, unet)
    unet.add_new_layers()
    for module in new_modules(unet):
        module.to(device=unet2d.device, dtype=unet2d.dtype)
    return unet.train(unet2d.training)


def move_weights(unet2d: UNet2DConditionModel, unet: StaleUNet5DConditionModel) -> None:
    """Gives `unet` the tensors of `unet2d`; raises `ValueError` unless tensors and places match one to one."""
    missing, left_over = unet.load_state_dict(unet2d.state_dict(), strict=False, assign=True)
    missing = [name for name in missing if not is_new_parameter(name)]
    tensors = chain(unet.named_parameters(), unet.named_buffers())
    empty = [name for name, tensor in tensors if tensor.is_meta and not is_new_parameter(name)]
    if missing or left_over or empty:
        raise ValueError(
            "Every weight of `unet2d` must have its place in the 5D UNet, and every place its weight; left over: "
            f"{left_over or 'none'}, lacking: {sorted({*missing, *empty}) or 'none'}; fuse or unload adapters first."
        )


def new_modules(unet: StaleUNet5DConditionModel) -> list[torch.nn.Module]:
    """The outermost modules that the 2D parent does not have."""
    return [module for name, module in unet.named_modules() if name.rpartition(".")[2] in NEW_MODULES]


def is_new_parameter(name: str) -> bool:
    """Whether a parameter or buffer of this `name` belongs to a layer that the 2D parent does not have."""
    return not set(NEW_MODULES).isdisjoint(name.split("."))


def new_parameter_names(unet: StaleUNet5DConditionModel) -> list[str]:
    """Names of all parameters of `unet` that its 2D parent does not have: those that start untrained."""
    return [name for name, _ in unet.named_parameters() if is_new_parameter(name)]
