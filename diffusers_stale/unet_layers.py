"""Blocks of the 5D UNet: the layers of one of diffusers' 2D blocks, with time and view layers between them.

A block takes over the modules of the 2D block it is built from, under their own names (`resnets`, `attentions`,
`downsamplers`, `upsamplers`), so that 2D weights load by name. Time layers are diffusers' AnimateDiff transformers
under AnimateDiff's name, `motion_modules`, one after each resnet (and its attention), so that its weights load too.
View layers, `view_layers`, come once a block, after its last resnet: information crosses views as often as it crosses
resolutions, and a layer after every resnet would double their cost.

Everything works on folded images, `(batch * view_rows * view_cols * frames, channels, height, width)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from diffusers.utils.torch_utils import apply_freeu
from torch import nn

from diffusers_stale.view_layers import VIEW_LAYERS, ViewGrid, zeroed


PREFERRED_TIME_HEADS = 8
"""As in AnimateDiff."""

SMALLEST_TIME_HEAD = 32
"""Channels of a head below which the preferred number is halved: short lines cost by the head, not by its width."""

PREFERRED_VIEW_HEADS = 4
"""One for each of the default slopes."""

SMALLEST_VIEW_HEAD = 16
"""Channels of a head below which the preferred number is halved: rotary phases need a few pairs."""


class Conditions(NamedTuple):
    """What every layer of a forward pass is told beside its images.

    `time_embedding` has shape `(images, channels)`, `text` `(images, tokens, channels)`. With `loop` the last frame is
    followed by the first.
    """

    time_embedding: torch.Tensor
    text: torch.Tensor
    grid: ViewGrid
    cross_attention_kwargs: dict[str, Any] | None
    loop: bool = False


@dataclass(frozen=True, kw_only=True)
class NewLayerOptions:
    """How the layers that the 2D parent lacks are built at one level of resolution."""

    view_layer_type: str
    view_attention_heads: int | None
    view_slopes: tuple[float, ...]
    time_layers: bool
    time_attention_heads: int | None
    time_max_frames: int
    time_double_self_attention: bool
    time_activation_fn: str
    time_norm_num_groups: int


class StaleBlock(nn.Module):
    """What down, middle and up blocks share: the modules of the 2D block, and new ones.

    Args:
        block: the 2D block whose modules are taken over.
        motion_count: number of time layers.
        channels: channels that all new layers see.
        options: of the new layers.
    """

    def __init__(self, block: nn.Module, motion_count: int, channels: int, options: NewLayerOptions):
        super().__init__()
        self.resnets = block.resnets
        self.attentions = getattr(block, "attentions", None)
        self.motion_count = motion_count
        self.channels = channels
        self.gradient_checkpointing = False
        self.add_new_layers(options)

    def add_new_layers(self, options: NewLayerOptions) -> None:
        """Builds time and view layers afresh, with outputs of zero, in place of any that are there."""
        self.motion_modules, self.view_layers = None, None
        if options.time_layers:
            self.motion_modules = nn.ModuleList(time_layer(self.channels, options) for _ in range(self.motion_count))
        view_layer = VIEW_LAYERS[options.view_layer_type]
        if view_layer is not None:
            heads = fitting_heads(
                options.view_attention_heads, PREFERRED_VIEW_HEADS, SMALLEST_VIEW_HEAD, self.channels
            )
            self.view_layers = nn.ModuleList([view_layer(self.channels, heads, options.view_slopes)])

    def run(self, layer: nn.Module, *arguments: Any) -> torch.Tensor:
        """Calls `layer`, through gradient checkpointing where that is switched on."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(layer, *arguments)
        return layer(*arguments)

    def attend(self, index: int, hidden_states: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """2D attention after resnet `index`, if the block has any (it does its own checkpointing)."""
        if self.attentions is None:
            return hidden_states
        attention = self.attentions[index]
        if isinstance(attention, Attention):
            if attention.added_kv_proj_dim is None:
                return attention(hidden_states)
            return attention(
                hidden_states, encoder_hidden_states=conditions.text, **(conditions.cross_attention_kwargs or {})
            )
        return attention(
            hidden_states,
            encoder_hidden_states=conditions.text,
            cross_attention_kwargs=conditions.cross_attention_kwargs,
            return_dict=False,
        )[0]

    def move(self, index: int, hidden_states: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Time layer `index`: mixes frames, which are the innermost folded axis, of each view and pixel."""
        if self.motion_modules is None:
            return hidden_states
        no_text, no_timestep, no_labels = None, None, None
        frames, time_layer = conditions.grid.frames, self.motion_modules[index]

        def moved(images: torch.Tensor) -> torch.Tensor:
            return self.run(time_layer, images, no_text, no_timestep, no_labels, frames)

        return circular(moved, hidden_states, frames) if conditions.loop else moved(hidden_states)

    def exchange(self, hidden_states: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """View layers of the block: mix views of each frame."""
        for view_layer in self.view_layers or ():
            hidden_states = self.run(view_layer, hidden_states, conditions.grid)
        return hidden_states


class StaleDownBlock(StaleBlock):
    """One of `unet_config.DOWN_BLOCKS` with time and view layers."""

    def __init__(self, block: nn.Module, options: NewLayerOptions):
        super().__init__(block, len(block.resnets), block.resnets[-1].out_channels, options)
        self.downsamplers = block.downsamplers

    def forward(
        self, hidden_states: torch.Tensor, conditions: Conditions
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Images, and what the up blocks are to get of them."""
        skips = ()
        last = len(self.resnets) - 1
        for index, resnet in enumerate(self.resnets):
            hidden_states = self.run(resnet, hidden_states, conditions.time_embedding)
            hidden_states = self.attend(index, hidden_states, conditions)
            hidden_states = self.move(index, hidden_states, conditions)
            if index == last:
                hidden_states = self.exchange(hidden_states, conditions)
            skips += (hidden_states,)
        for downsampler in self.downsamplers or ():
            is_resnet = isinstance(downsampler, ResnetBlock2D)
            hidden_states = downsampler(hidden_states, *[conditions.time_embedding] * is_resnet)
            skips += (hidden_states,)
        return hidden_states, skips


class StaleMidBlock(StaleBlock):
    """One of `unet_config.MID_BLOCKS` with time and view layers."""

    def __init__(self, block: nn.Module, options: NewLayerOptions):
        super().__init__(block, len(block.attentions), block.resnets[-1].out_channels, options)

    def forward(self, hidden_states: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        hidden_states = self.run(self.resnets[0], hidden_states, conditions.time_embedding)
        for index, resnet in enumerate(self.resnets[1:]):
            hidden_states = self.attend(index, hidden_states, conditions)
            hidden_states = self.move(index, hidden_states, conditions)
            hidden_states = self.run(resnet, hidden_states, conditions.time_embedding)
        return self.exchange(hidden_states, conditions)


class StaleUpBlock(StaleBlock):
    """One of `unet_config.UP_BLOCKS` with time and view layers.

    `freeu` holds the arguments of diffusers' `apply_freeu`, where it is switched on (see `unet_switches.py`).
    """

    def __init__(self, block: nn.Module, options: NewLayerOptions):
        super().__init__(block, len(block.resnets), block.resnets[-1].out_channels, options)
        self.upsamplers = block.upsamplers
        self.freeu: dict[str, float] | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        skips: tuple[torch.Tensor, ...],
        conditions: Conditions,
        upsample_size: tuple[int, int] | None,
    ) -> torch.Tensor:
        """Images from those of the level below and the `skips` of the down path, of which the last come first."""
        for index, (resnet, skip) in enumerate(zip(self.resnets, reversed(skips), strict=True)):
            if self.freeu is not None:
                hidden_states, skip = apply_freeu(hidden_states=hidden_states, res_hidden_states=skip, **self.freeu)
            hidden_states = torch.cat([hidden_states, skip], dim=1)
            hidden_states = self.run(resnet, hidden_states, conditions.time_embedding)
            hidden_states = self.attend(index, hidden_states, conditions)
            hidden_states = self.move(index, hidden_states, conditions)
        hidden_states = self.exchange(hidden_states, conditions)
        for upsampler in self.upsamplers or ():
            is_resnet = isinstance(upsampler, ResnetBlock2D)
            hidden_states = upsampler(hidden_states, conditions.time_embedding if is_resnet else upsample_size)
        return hidden_states


def circular(layer: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, frames: int) -> torch.Tensor:
    """What `layer` makes of each frame when frames are turned around until that one is in the middle of the line.

    A layer that knows positions so treats a loop like a line without ends: turn the frames of `images` around, and the
    result turns with them. It costs as many calls as there are frames.
    """
    lines, middle = images.unflatten(0, (-1, frames)), frames // 2
    turned = (layer(lines.roll(middle - frame, dims=1).flatten(0, 1)) for frame in range(frames))
    return torch.stack([line.unflatten(0, (-1, frames))[:, middle] for line in turned], dim=1).flatten(0, 1)


def time_layer(channels: int, options: NewLayerOptions) -> AnimateDiffTransformer3D:
    """An AnimateDiff motion module (Guo et al. 2023, arXiv 2307.04725) whose output is zero at initialisation."""
    heads = fitting_heads(options.time_attention_heads, PREFERRED_TIME_HEADS, SMALLEST_TIME_HEAD, channels)
    if channels % heads != 0:
        raise ValueError(
            f"`time_attention_heads` must divide the {channels} channels of every level, got {heads}; choose another "
            "count, or None for one that fits each level."
        )
    layer = AnimateDiffTransformer3D(
        num_attention_heads=heads,
        attention_head_dim=channels // heads,
        in_channels=channels,
        norm_num_groups=options.time_norm_num_groups,
        double_self_attention=options.time_double_self_attention,
        activation_fn=options.time_activation_fn,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=options.time_max_frames,
    )
    zeroed(layer.proj_out)
    return layer


def fitting_heads(requested: int | None, preferred: int, smallest: int, channels: int) -> int:
    """The requested number of heads; else the preferred one, halved until it suits the number of channels."""
    if requested is not None:
        return requested
    while preferred > 1 and (channels % (2 * preferred) != 0 or channels // preferred < smallest):
        preferred //= 2
    return preferred
