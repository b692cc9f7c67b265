"""Training that keeps less: what is cheap to make again is made again in the backward pass.

Normalizations, activations, rotary embeddings and what is inside feed-forward layers are a small part of the
arithmetic and half of what PyTorch keeps for gradients. Here only what goes into them is kept. Convolutions are never
made twice, and of projections only the first of feed-forward layers of few channels, so a training step takes little
longer than if all were kept; results and gradients stay as they are. (Gradient checkpointing, which makes whole blocks
again, keeps far less still.)
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.activations import GEGLU, GELU
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffusers_stale.channels_last import has_channels_last


FEW_CHANNELS = 64
"""Channels up to which the first projection of a feed-forward layer is made again."""


def made_again(function: Callable[..., torch.Tensor], *arguments: Any, random: bool = False) -> torch.Tensor:
    """`function` of `arguments`; what it keeps for the backward pass is made again there.

    Making it again stops at the last thing that is needed: a convolution at the end is not computed twice. It is a
    plain call where it `is_pointless`.

    Args:
        function: of tensors.
        arguments: its arguments, which are kept.
        random: whether it draws random numbers, which must be the same again.
    """
    if is_pointless():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random, determinism_check="none")


def is_pointless() -> bool:
    """Whether no gradients are wanted, or a graph is compiled, which decides for itself what to keep."""
    return not torch.is_grad_enabled() or torch.compiler.is_compiling()


class ThriftyResnet(ResnetBlock2D):
    """diffusers' residual block, which keeps its input and what its first convolution makes."""

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor, quick: bool = False) -> torch.Tensor:
        """Images of another number of channels, shape `(images, channels, height, width)`; for any but resamplers.

        Args:
            input_tensor: images.
            temb: embedding of the timestep, shape `(images, channels)`.
            quick: whether to go the way of `channels_last.py`; without gradients only.
        """
        if quick and has_channels_last(input_tensor):
            return self.hurry(input_tensor, temb)
        if is_pointless():
            return super().forward(input_tensor, temb)
        shift = None
        if self.time_emb_proj is not None:
            shift = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))[:, :, None, None]
        hidden_states = made_again(self.enter, input_tensor)
        random = self.training and self.dropout.p > 0
        hidden_states = made_again(self.leave, hidden_states, shift, random=random)
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor.contiguous() if self.training else input_tensor)
        return (input_tensor + hidden_states) / self.output_scale_factor

    def hurry(self, images: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """As `forward`, for images with channels last, of which as few copies are made as can be."""
        shift, scale = None, None
        if self.time_emb_proj is not None:
            shift = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
        states = self.conv1(self.nonlinearity(self.norm1(images, quick=True)))
        if self.time_embedding_norm == "scale_shift":
            scale, shift = shift[:, :, None, None].chunk(2, dim=1)
            states = self.norm2(states, quick=True).mul_(1 + scale).add_(shift)
        else:
            states = self.norm2(states, shift, quick=True)
        states = self.conv2(self.dropout(self.nonlinearity(states)))
        states += images if self.conv_shortcut is None else self.conv_shortcut(images)
        return states if self.output_scale_factor == 1 else states.div_(self.output_scale_factor)

    def enter(self, images: torch.Tensor) -> torch.Tensor:
        """The first convolution, of what is normalized and activated."""
        return self.conv1(self.nonlinearity(self.norm1(images)))

    def leave(self, images: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
        """The second convolution, of what is told the timestep, normalized and activated."""
        if self.time_embedding_norm == "scale_shift":
            scale, shift = shift.chunk(2, dim=1)
            images = self.norm2(images) * (1 + scale) + shift
        else:
            images = self.norm2(images if shift is None else images + shift)
        return self.conv2(self.dropout(self.nonlinearity(images)))


class ThriftyFeedForward(FeedForward):
    """diffusers' feed-forward layer, which keeps its input where channels are few, and else its first projection too.

    Its inside is four to twelve times as large as its input. What a row takes grows with its channels, what it costs
    to make again with their square: so most is gained where channels are few.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Tokens of the same shape, `(images, tokens, channels)`."""
        first = self.net[0]
        random = self.training and any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in self.net)
        if not isinstance(first, (GELU, GEGLU)):
            return made_again(super().forward, hidden_states, random=random)
        if hidden_states.shape[-1] <= FEW_CHANNELS:
            return made_again(lambda states: self.leave(first.proj(states)), hidden_states, random=random)
        return made_again(self.leave, first.proj(hidden_states), random=random)

    def leave(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """All but the first projection."""
        first = self.net[0]
        if isinstance(first, GEGLU):
            hidden_states, gate = hidden_states.chunk(2, dim=-1)
            gate = first.gelu(gate)
            hidden_states = hidden_states * gate if torch.is_grad_enabled() else gate.mul_(hidden_states)
        else:
            hidden_states = first.gelu(hidden_states)
        for layer in self.net[1:]:
            hidden_states = layer(hidden_states)
        return hidden_states


def keep_less(module: nn.Module) -> None:
    """Lets resnets and feed-forward layers in `module` keep less for gradients; parameters and their names stay."""
    for layer in module.modules():
        if type(layer) is ResnetBlock2D and layer.upsample is None and layer.downsample is None:
            layer.__class__ = ThriftyResnet
        elif type(layer) is FeedForward:
            layer.__class__ = ThriftyFeedForward
