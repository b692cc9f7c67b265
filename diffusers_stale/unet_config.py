"""Checks of the 5D UNet's configuration: which 2D UNets can be inflated, and what holds for each of its levels."""

import inspect
from typing import Any

from diffusers import UNet2DConditionModel

from diffusers_stale.view_layers import VIEW_LAYERS


DOWN_BLOCKS = (
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "SimpleCrossAttnDownBlock2D",
)
MID_BLOCKS = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", "UNetMidBlock2DSimpleCrossAttn", None)
UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D")

SUPPORTED_VALUES = {
    "addition_embed_type": (None, "text", "text_time"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "attention_type": ("default",),
    "dual_cross_attention": (False,),
}
"""Configuration keys of `UNet2DConditionModel` of which not every value is supported; all others are unrestricted."""

SPATIAL_KEYS = tuple(inspect.signature(UNet2DConditionModel.__init__).parameters)[1:]
"""Configuration keys that a 2D UNet has too."""


def check_inflatable(config: dict[str, Any]) -> None:
    """Raises `ValueError` naming the block or option of a 2D UNet's `config` that has no 5D form."""
    for key, supported in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        for index, block_type in enumerate(config[key]):
            check_supported(f"{key}[{index}]", block_type, supported)
    for key, supported in {"mid_block_type": MID_BLOCKS, **SUPPORTED_VALUES}.items():
        check_supported(key, config[key], supported)


def check_supported(key: str, value: Any, supported: tuple) -> None:
    """Raises `ValueError` unless `value` is among those that are `supported`."""
    if value not in supported:
        raise ValueError(
            f"`{key}` must be one of {', '.join(map(repr, supported))} to be inflated, got {value!r}; start from a 2D "
            "UNet of the Stable Diffusion family."
        )


def view_layer_types_of_levels(types: str | tuple[str, ...] | None, levels: int) -> tuple[str, ...]:
    """The type of view layer of each level; raises `ValueError` for a name that is not in `VIEW_LAYERS`."""
    if types is None:
        return ("epipolar",) * max(levels - 1, 1) + ("same_pixel",) * (levels > 1)
    types = of_levels("view_layer_types", types, levels)
    for level, name in enumerate(types):
        if name not in VIEW_LAYERS:
            raise ValueError(
                f"`view_layer_types[{level}]` must be one of {', '.join(map(repr, VIEW_LAYERS))}, got {name!r}."
            )
    return types


def of_levels(key: str, value: Any, levels: int) -> tuple:
    """`value` for each level: repeated if it is one, checked for its number if there are several."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels
    if len(values) != levels:
        raise ValueError(f"`{key}` must be one value or {levels}, one for each level, got {len(values)}: {value}.")
    return values
