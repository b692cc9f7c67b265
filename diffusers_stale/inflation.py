"""Inflation: a 2D UNet becomes a 5D UNet that, until it is trained, treats every view and frame as its parent did.

Spatial weights move over by name and every one is accounted for; time and view layers are added with outputs of zero.
An AnimateDiff motion adapter may fill the time layers: then every view is the movie that its `UNetMotionModel` makes.
"""

import inspect
from itertools import chain
from typing import Any

import torch
from diffusers import MotionAdapter, UNet2DConditionModel

from diffusers_stale.unet_config import SPATIAL_KEYS, check_inflatable, of_levels
from diffusers_stale.unet_stale import StaleUNet5DConditionModel


NEW_MODULES = ("motion_modules", "view_layers", "view_embedding", "known_in")
"""Names of modules that no 2D UNet has; every parameter below one of them is new."""

NEW_OPTIONS = tuple(
    name
    for name in inspect.signature(StaleUNet5DConditionModel.__init__).parameters
    if name != "self" and name not in SPATIAL_KEYS
)
"""Options of the new layers: what `inflate_unet2d` takes besides the 2D UNet."""

WIDEST_TIME_LAYER = 384
"""Channels that time layers have inside at most, unless told otherwise. As wide as their levels, they would add a
third to the weights of Stable Diffusion 1.5 (levels of up to 1280 channels); like this, a seventeenth."""


def inflate_unet2d(
    unet2d: UNet2DConditionModel, motion_adapter: MotionAdapter | None = None, **new_layer_options: Any
) -> StaleUNet5DConditionModel:
    """The 5D UNet that `unet2d` grows into.

    Its output equals the parent's for every view and frame, until new layers are trained; with a `motion_adapter` it
    equals, for every view, that of `UNetMotionModel.from_unet2d(unet2d, motion_adapter)`. No second copy of weights is
    made: the 5D UNet holds the tensors of its parent, and those of the adapter where it has the parent's device and
    dtype. Training it changes both; inflate a `copy.deepcopy` of what is needed unchanged.

    Args:
        unet2d: any 2D UNet of the Stable Diffusion family, without adapters (fuse or unload LoRAs first); its
            attention processors, FreeU and gradient checkpointing are taken over.
        motion_adapter: AnimateDiff's, for this kind of UNet; it decides on all options of time layers. Where it has
            none in the middle block (versions 1 and 3), the one there stays at zero output.
        new_layer_options: among `NEW_OPTIONS`; see `StaleUNet5DConditionModel`. Where levels are wider than
            `WIDEST_TIME_LAYER`, that is `time_max_channels`, unless another number, or None, is given.

    Returns:
        A network on the parent's device, in its dtype and mode (training or evaluation).

    Raises:
        ValueError: for something else than a 2D UNet, for blocks or options that cannot be inflated, for options that
            new layers do not have, for weights that are left over or lacking, and for an adapter that does not fit.
    """
    if not isinstance(unet2d, UNet2DConditionModel):
        raise ValueError(f"`unet2d` must be a diffusers.UNet2DConditionModel, got {type(unet2d).__name__}; load one.")
    unknown = sorted(set(new_layer_options) - set(NEW_OPTIONS))
    if unknown:
        raise ValueError(f"New layers have the options {', '.join(NEW_OPTIONS)}, got {', '.join(unknown)}.")
    spatial_config = {key: unet2d.config[key] for key in SPATIAL_KEYS}
    check_inflatable(spatial_config)
    if motion_adapter is not None:
        new_layer_options = with_adapter_options(motion_adapter, spatial_config, new_layer_options)
    elif max(spatial_config["block_out_channels"]) > WIDEST_TIME_LAYER:
        new_layer_options = {"time_max_channels": WIDEST_TIME_LAYER, **new_layer_options}
    with torch.device("meta"):
        unet = StaleUNet5DConditionModel(**spatial_config, **new_layer_options)
    move_weights(unet2d, unet)
    if motion_adapter is not None:
        share_motion_adapter(motion_adapter, unet, unet2d.device, unet2d.dtype)
    unet.add_new_layers(unet2d.device, unet2d.dtype, keep_time_layers=motion_adapter is not None)
    take_over_switches(unet2d, unet)
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
            f"{left_over or 'none'}, lacking: {sorted({*missing, *empty}) or 'none'}; fuse or unload adapters first, "
            "and unfuse projections."
        )


def take_over_switches(unet2d: UNet2DConditionModel, unet: StaleUNet5DConditionModel) -> None:
    """Has `unet` use the attention processors of `unet2d`, and FreeU and gradient checkpointing as that does."""
    ours, theirs = unet.attn_processors, unet2d.attn_processors
    unet.set_attn_processor(
        ours | {name: processor for name, processor in theirs.items() if type(processor) is not type(ours[name])}
    )
    first = unet2d.up_blocks[0]
    freeu = {name: getattr(first, name, None) for name in ("s1", "s2", "b1", "b2")}
    if all(freeu.values()):
        unet.enable_freeu(**freeu)
    if unet2d.is_gradient_checkpointing:
        unet.enable_gradient_checkpointing()


def with_adapter_options(
    motion_adapter: MotionAdapter, spatial_config: dict[str, Any], new_layer_options: dict[str, Any]
) -> dict[str, Any]:
    """`new_layer_options` with those of time layers as `motion_adapter` has them.

    Raises `ValueError` for an adapter of another layout than the 2D UNet of `spatial_config`, for one whose layers are
    of a kind that ours are not, and for options that it decides on.
    """
    if not isinstance(motion_adapter, MotionAdapter):
        raise ValueError(
            f"`motion_adapter` must be a diffusers.MotionAdapter, got {type(motion_adapter).__name__}; load one."
        )
    config, levels = motion_adapter.config, len(spatial_config["block_out_channels"])
    check_adapter_channels(motion_adapter, tuple(spatial_config["block_out_channels"]))
    # Each must have these values for every block.
    wanted = {
        "motion_layers_per_block": of_levels("layers_per_block", spatial_config["layers_per_block"], levels),
        "motion_transformer_layers_per_block": (1,) * levels,
        "motion_num_attention_heads": of_levels("heads", config.motion_num_attention_heads, levels)[:1] * levels,
        "motion_mid_block_layers_per_block": (1,) * levels,
        "motion_transformer_layers_per_mid_block": (1,) * levels,
        "conv_in_channels": (None,) * levels,
    }
    for key, expected in wanted.items():
        value = config[key]
        found = tuple(value) if isinstance(value, (list, tuple)) and len(value) > 1 else one_for_all(value, levels)
        if found != tuple(expected):
            raise ValueError(
                f"`motion_adapter` must have {key}={tuple(expected)} to fit this UNet's time layers, got {value!r}; "
                "take an adapter made for this kind of UNet (AnimateDiff v1 to v3 for Stable Diffusion 1.5)."
            )
    decided = {
        "time_layers": True,
        "time_attention_heads": wanted["motion_num_attention_heads"][0],
        "time_max_channels": None,
        "time_max_frames": config.motion_max_seq_length,
        "time_double_self_attention": True,
        "time_activation_fn": "geglu",
        # None: that of the UNet, as `UNetMotionModel` has it whatever the adapter's configuration says.
        "time_norm_num_groups": None,
    }
    clashing = sorted(set(decided) & set(new_layer_options))
    if clashing:
        raise ValueError(f"`motion_adapter` decides on {', '.join(decided)}; leave out {', '.join(clashing)}.")
    return new_layer_options | decided


def check_adapter_channels(motion_adapter: MotionAdapter, expected: tuple[int, ...]) -> None:
    """Raises `ValueError` naming the first layer of `motion_adapter` that has not the UNet's channels at its level."""
    got = tuple(motion_adapter.config.block_out_channels)
    remedy = "take an adapter made for this kind of UNet (AnimateDiff v1 to v3 for Stable Diffusion 1.5)"
    if len(got) != len(expected):
        raise ValueError(
            f"`motion_adapter` must have {len(expected)} levels, of {expected} channels, got {len(got)}, of {got}; "
            f"{remedy}."
        )
    for level, (channels, wanted) in enumerate(zip(got, expected, strict=True)):
        if channels != wanted:
            raise ValueError(
                f"`down_blocks.{level}.motion_modules.0` of `motion_adapter` must have {wanted} channels, as this "
                f"UNet has at that level, got {channels}; {remedy}."
            )


def one_for_all(value: Any, levels: int) -> tuple:
    """A single `value`, or a list of one, for each of `levels`."""
    return (value[0] if isinstance(value, (list, tuple)) else value,) * levels


def share_motion_adapter(
    motion_adapter: MotionAdapter, unet: StaleUNet5DConditionModel, device: torch.device, dtype: torch.dtype
) -> None:
    """Gives the time layers of `unet`, which must have its options, the tensors of `motion_adapter`.

    They are copied where they are not on `device` in `dtype`. Raises `ValueError` unless every weight has its place,
    and every time layer (save the middle block's, where the adapter has none) its weights.
    """
    tensors = {name: tensor.to(device, dtype) for name, tensor in motion_adapter.state_dict().items()}
    missing, left_over = unet.load_state_dict(tensors, strict=False, assign=True)
    without_middle = motion_adapter.mid_block is None
    lacking = [
        name
        for name in missing
        if "motion_modules" in name.split(".") and not (without_middle and name.startswith("mid_block."))
    ]
    if lacking or left_over:
        raise ValueError(
            "Every weight of `motion_adapter` must have its place in the UNet, and every time layer its weights; left "
            f"over: {left_over or 'none'}, lacking: {lacking or 'none'}; take an adapter made for this kind of UNet."
        )


def is_new_parameter(name: str) -> bool:
    """Whether a parameter or buffer of this `name` belongs to a layer that the 2D parent does not have."""
    return not set(NEW_MODULES).isdisjoint(name.split("."))


def new_parameter_names(unet: StaleUNet5DConditionModel) -> list[str]:
    """Names of all parameters of `unet` that its 2D parent does not have: those that start untrained."""
    return [name for name, _ in unet.named_parameters() if is_new_parameter(name)]
