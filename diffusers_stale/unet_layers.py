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
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from diffusers.utils.torch_utils import apply_freeu
from torch import nn

from diffusers_stale.channels_last import QuickGroupNorm, QuickUpsample, be_quick, has_channels_last, layout_of
from diffusers_stale.chunking import EVERYTHING, Chunking, joined, parts, parts_within
from diffusers_stale.moments import frames_apart, know_moments, runs
from diffusers_stale.recomputation import keep_less
from diffusers_stale.shared_text import share_text
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

    `time_embedding` has shape `(images, channels)`, `text` `(movies, tokens, channels)`. With `loop` the last frame is
    followed by the first. `frame_spacing` is that of each movie, None where it is 1. `chunking` says how much layers
    get at once, `quick` whether to go the ways of `channels_last.py`.
    """

    time_embedding: torch.Tensor
    text: torch.Tensor
    grid: ViewGrid
    cross_attention_kwargs: dict[str, Any] | None
    loop: bool = False
    frame_spacing: tuple[float, ...] | None = None
    chunking: Chunking = EVERYTHING
    quick: bool = False

    def text_of_images(self) -> torch.Tensor:
        """The text of each image, for layers that cannot share one; shape `(images, tokens, channels)`."""
        return self.text.repeat_interleave(len(self.time_embedding) // len(self.text), dim=0)

    def of_part(self, movies: slice, images: slice) -> "Conditions":
        """What spatial layers are to be told of some of the images, which belong to some of the movies."""
        return self._replace(time_embedding=self.time_embedding[images], text=self.text[movies])


@dataclass(frozen=True, kw_only=True)
class NewLayerOptions:
    """How the layers that the 2D parent lacks are built at one level of resolution."""

    view_layer_type: str
    view_attention_heads: int | None
    view_slopes: tuple[float, ...]
    time_layers: bool
    time_attention_heads: int | None
    time_max_channels: int | None
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
        if self.attentions is not None:
            share_text(self.attentions)
            keep_less(self.attentions)
        keep_less(self.resnets)
        self.motion_count = motion_count
        self.channels = channels
        self.gradient_checkpointing = False
        self.add_new_layers(options)

    def add_new_layers(self, options: NewLayerOptions, keep_time_layers: bool = False) -> None:
        """Builds time and view layers afresh, with outputs of zero, in place of any that are there."""
        if not keep_time_layers:
            self.motion_modules = None
            if options.time_layers:
                layers = (time_layer(self.channels, options) for _ in range(self.motion_count))
                self.motion_modules = nn.ModuleList(layers)
        self.view_layers = None
        view_layer = VIEW_LAYERS[options.view_layer_type]
        if view_layer is not None:
            heads = fitting_heads(
                options.view_attention_heads, PREFERRED_VIEW_HEADS, SMALLEST_VIEW_HEAD, self.channels
            )
            self.view_layers = nn.ModuleList([view_layer(self.channels, heads, options.view_slopes)])

    def has_time_weights(self) -> bool:
        """Whether there are time layers, with values."""
        return self.motion_modules is not None and not any(one.is_meta for one in self.motion_modules.parameters())

    def run(self, layer: nn.Module, *arguments: Any) -> torch.Tensor:
        """Calls `layer`, through gradient checkpointing where that is switched on."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(layer, *arguments)
        return layer(*arguments)

    def by_images(
        self,
        layer: Callable[..., torch.Tensor],
        images: tuple[torch.Tensor, ...],
        conditions: Conditions,
    ) -> torch.Tensor:
        """`layer`, which knows no neighbours, over some of the images (of each of several tensors) at a time.

        It is called with the images and, last, what it is to be told of them; never with images of a part of one movie
        and a part of another.
        """
        total, movies = len(images[0]), len(conditions.text)
        at_once = conditions.chunking.count(images[0])
        results = (
            (part, layer(*(one[part] for one in images), conditions.of_part(some, part)))
            for some, part in parts_within(movies, total // movies, at_once)
        )
        return joined(results, total)

    def resolve(self, index: int, hidden_states: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Resnet `index`."""
        how = (True,) if conditions.quick else ()
        return self.run(self.resnets[index], hidden_states, conditions.time_embedding, *how)

    def see(self, index: int, hidden_states: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Resnet `index` and the 2D attention after it."""
        hidden_states = self.resolve(index, hidden_states, conditions)
        return self.attend(index, hidden_states, conditions)

    def attend(self, index: int, hidden_states: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """2D attention after resnet `index`, if the block has any (it does its own checkpointing)."""
        if self.attentions is None:
            return hidden_states
        attention = self.attentions[index]
        if isinstance(attention, Attention):
            if attention.added_kv_proj_dim is None:
                return attention(hidden_states)
            return attention(
                hidden_states,
                encoder_hidden_states=conditions.text_of_images(),
                **(conditions.cross_attention_kwargs or {}),
            )
        return attention(
            hidden_states,
            encoder_hidden_states=conditions.text,
            cross_attention_kwargs=conditions.cross_attention_kwargs,
            quick=conditions.quick,
            return_dict=False,
        )[0]

    def move(self, index: int, hidden_states: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Time layer `index`: mixes frames, which are the innermost folded axis, of each view and pixel."""
        if self.motion_modules is None:
            return hidden_states
        frames, time_layer = conditions.grid.frames, self.motion_modules[index]
        if conditions.frame_spacing is not None:
            parts_moved = []
            for spacing, images in runs(conditions.frame_spacing, hidden_states):
                with frames_apart(time_layer, spacing):
                    parts_moved.append(self.move(index, images, conditions._replace(frame_spacing=None)))
            return torch.cat(parts_moved).contiguous(memory_format=layout_of(hidden_states))

        def moved(images: torch.Tensor) -> torch.Tensor:
            if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
                lines = conditions.chunking.lines(images, frames)
                return moved_in_parts(time_layer, images, frames, lines, conditions.quick)
            no_text, no_timestep, no_labels = None, None, None
            return self.run(time_layer, images, no_text, no_timestep, no_labels, frames)

        return circular(moved, hidden_states, frames) if conditions.loop else moved(hidden_states)

    def exchange(self, hidden_states: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """View layers of the block: mix views of each frame."""
        for view_layer in self.view_layers or ():
            hidden_states = self.exchange_in_parts(view_layer, hidden_states, conditions)
        return hidden_states

    def exchange_in_parts(
        self, view_layer: nn.Module, hidden_states: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """`view_layer` over some frames of one movie at a time."""
        grid = conditions.grid
        views = grid.view_rows * grid.view_cols
        at_once = conditions.chunking.frames(hidden_states, views)
        if at_once is None or at_once >= grid.batch * grid.frames:
            return self.run(view_layer, hidden_states, grid)
        light_field = hidden_states.unflatten(0, (grid.batch, views, grid.frames))
        results = []
        whole = None if hidden_states.requires_grad else torch.empty_like(light_field)
        for movie in range(grid.batch):
            for part in parts(grid.frames, at_once):
                some = light_field[movie, :, part]
                images = some.permute(0, 1, 3, 4, 2).flatten(0, 1).permute(0, 3, 1, 2)
                seen = self.run(view_layer, images, grid.of_part(movie, some.shape[1]))
                seen = seen.unflatten(0, some.shape[:2])
                if whole is None:
                    results.append(seen)
                else:
                    whole[movie, :, part] = seen
        if whole is None:
            each = len(results) // grid.batch
            movies = [torch.cat(results[each * movie : each * (movie + 1)], dim=1) for movie in range(grid.batch)]
            whole = torch.stack(movies)
        return whole.flatten(0, 2)


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
        for index in range(len(self.resnets)):
            hidden_states = self.by_images(partial(self.see, index), (hidden_states,), conditions)
            hidden_states = self.move(index, hidden_states, conditions)
            if index == last:
                hidden_states = self.exchange(hidden_states, conditions)
            skips += (hidden_states,)
        for downsampler in self.downsamplers or ():
            hidden_states = self.by_images(partial(resample, downsampler), (hidden_states,), conditions)
            skips += (hidden_states,)
        return hidden_states, skips


class StaleMidBlock(StaleBlock):
    """One of `unet_config.MID_BLOCKS` with time and view layers."""

    def __init__(self, block: nn.Module, options: NewLayerOptions):
        super().__init__(block, len(block.attentions), block.resnets[-1].out_channels, options)

    def forward(self, hidden_states: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        hidden_states = self.by_images(partial(self.resolve, 0), (hidden_states,), conditions)
        for index in range(len(self.resnets) - 1):
            hidden_states = self.by_images(partial(self.attend, index), (hidden_states,), conditions)
            hidden_states = self.move(index, hidden_states, conditions)
            hidden_states = self.by_images(partial(self.resolve, index + 1), (hidden_states,), conditions)
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
        self, states: list[torch.Tensor], conditions: Conditions, upsample_size: tuple[int, int] | None
    ) -> torch.Tensor:
        """Images from `states`: the skips that the block is to take, from the last to the first, after its images.

        States are dropped from the list as soon as they have been used, so that none is kept longer than needed.
        """
        states.reverse()
        hidden_states = states.pop()
        for index in range(len(self.resnets)):
            inputs = (hidden_states, states.pop())
            del hidden_states
            hidden_states = self.by_images(partial(self.join, index), inputs, conditions)
            del inputs
            hidden_states = self.move(index, hidden_states, conditions)
        hidden_states = self.exchange(hidden_states, conditions)
        for upsampler in self.upsamplers or ():
            hidden_states = self.by_images(
                partial(resample, upsampler, size=upsample_size), (hidden_states,), conditions
            )
        return hidden_states

    def join(
        self, index: int, hidden_states: torch.Tensor, skip: torch.Tensor, conditions: Conditions
    ) -> torch.Tensor:
        """Resnet `index`, of images and skips, and the 2D attention after it."""
        if self.freeu is not None:
            hidden_states, skip = apply_freeu(hidden_states=hidden_states, res_hidden_states=skip, **self.freeu)
        return self.see(index, torch.cat([hidden_states, skip], dim=1), conditions)


def resample(
    layer: nn.Module, images: torch.Tensor, conditions: Conditions, size: tuple[int, int] | None = None
) -> torch.Tensor:
    """Images at another resolution: of that `size`, where an upsampler is told one."""
    if isinstance(layer, ResnetBlock2D):
        resampled = layer(images, conditions.time_embedding)
    elif isinstance(layer, QuickUpsample):
        resampled = layer(images, size, conditions.quick)
    else:
        resampled = layer(images)
    # (diffusers' upsampler turns many images to the usual layout.)
    return resampled.contiguous(memory_format=torch.channels_last) if conditions.quick else resampled


def circular(layer: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, frames: int) -> torch.Tensor:
    """What `layer` makes of each frame when frames are turned around until that one is in the middle of the line.

    A layer that knows positions so treats a loop like a line without ends: turn the frames of `images` around, and the
    result turns with them. It costs as many calls as there are frames.
    """
    lines, middle = images.unflatten(0, (-1, frames)), frames // 2
    turned = (layer(lines.roll(middle - frame, dims=1).flatten(0, 1)) for frame in range(frames))
    whole = torch.stack([line.unflatten(0, (-1, frames))[:, middle] for line in turned], dim=1).flatten(0, 1)
    return whole.contiguous(memory_format=layout_of(images))


def moved_in_parts(
    layer: AnimateDiffTransformer3D, images: torch.Tensor, frames: int, lines_at_once: int | None, quick: bool
) -> torch.Tensor:
    """What `layer` makes of `images`, some views at a time, and of these some lines of pixels through time at a time.

    The same as its own `forward`, whose transformer knows nothing of neighbouring lines; only its normalization does.
    """
    height, width = images.shape[2:]
    whole = torch.empty_like(images)
    views_at_once = None if lines_at_once is None else max(lines_at_once // (height * width), 1)
    movies, results = images.unflatten(0, (-1, frames)), whole.unflatten(0, (-1, frames))
    for views in parts(len(movies), views_at_once):
        lines = normed_movies(layer.norm, movies[views], quick).permute(0, 3, 4, 2, 1).flatten(0, 2)
        for part in parts(len(lines), lines_at_once):
            states = layer.proj_in(lines[part])
            for block in layer.transformer_blocks:
                states = block(states)
            lines[part] = layer.proj_out(states)
        residual = lines.unflatten(0, (-1, height, width)).permute(0, 3, 4, 1, 2)
        torch.add(movies[views], residual, out=results[views])
    return whole


def normed_movies(norm: QuickGroupNorm, movies: torch.Tensor, quick: bool) -> torch.Tensor:
    """What `norm` makes of each of `movies`; shape `(views, channels, frames, height, width)`.

    `movies` has shape `(views, frames, channels, height, width)`. With channels last it is normed as one tall image.
    """
    if not (quick and has_channels_last(movies[0])):
        return norm(movies.transpose(1, 2))
    tall = movies.permute(0, 1, 3, 4, 2).flatten(1, 2).permute(0, 3, 1, 2)
    return norm(tall, quick=True).unflatten(2, (movies.shape[1], -1))


def time_layer(channels: int, options: NewLayerOptions) -> AnimateDiffTransformer3D:
    """An AnimateDiff motion module (Guo et al. 2023, arXiv 2307.04725) whose output is zero at initialisation."""
    width = channels if options.time_max_channels is None else min(channels, options.time_max_channels)
    heads = fitting_heads(options.time_attention_heads, PREFERRED_TIME_HEADS, SMALLEST_TIME_HEAD, width)
    if width % heads != 0:
        raise ValueError(
            f"`time_attention_heads` must divide the {width} channels of every time layer, got {heads}; choose "
            "another count, or None for one that fits each level."
        )
    layer = AnimateDiffTransformer3D(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=channels,
        norm_num_groups=options.time_norm_num_groups,
        double_self_attention=options.time_double_self_attention,
        activation_fn=options.time_activation_fn,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=options.time_max_frames,
    )
    zeroed(layer.proj_out)
    keep_less(layer)
    be_quick(layer)
    know_moments(layer)
    return layer


def fitting_heads(requested: int | None, preferred: int, smallest: int, channels: int) -> int:
    """The requested number of heads; else the preferred one, halved until it suits the number of channels."""
    if requested is not None:
        return requested
    while preferred > 1 and (channels % (2 * preferred) != 0 or channels // preferred < smallest):
        preferred //= 2
    return preferred
