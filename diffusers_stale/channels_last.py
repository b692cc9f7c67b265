"""Images in memory with the channels of a pixel side by side, `channels_last`, where a CPU predicts without gradients.

Convolutions, attention and feed-forward layers then take the same memory as it is: nothing is turned around between
them. Shapes stay as they are everywhere, only strides differ. PyTorch's own group norm is ten times slower in this
layout than in the usual one, so there is one here.
"""

from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn


ENOUGH_PIXELS = 1024
"""From so many pixels of an image on, PyTorch's group norm takes another way, which is fast in this layout too."""

ENOUGH_CHANNELS = 8
"""From so many channels of a group on, it is fast in any case."""


def suits(sample: torch.Tensor, images: int) -> bool:
    """Whether a network should lay out the `images` of `sample` so.

    Seen with float32 on processors with AVX2 only. A single image stays as it is: in the layout of the 2D network it
    runs that network's kernels, and so is equal to the bit.
    """
    plain = not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))
    return plain and images > 1 and sample.device.type == "cpu" and sample.dtype == torch.float32


def layout_of(images: torch.Tensor) -> torch.memory_format:
    """How `images` stand in memory; where both layouts are the same, the usual one."""
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def in_layout_of(images: torch.Tensor, count: int) -> torch.Tensor:
    """Room for so many images of the shape, kind and layout of `images`."""
    shape = (count, *images.shape[1:])
    return torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=layout_of(images))


def has_channels_last(images: torch.Tensor) -> bool:
    """Whether layers that are told to be quick may compute with `images` in the ways of this file."""
    return images.dtype == torch.float32 and layout_of(images) is torch.channels_last


class QuickGroupNorm(nn.GroupNorm):
    """PyTorch's group norm, with a way of its own where PyTorch's is slow: small images of few channels a group."""

    def forward(self, images: torch.Tensor, shift: torch.Tensor | None = None, quick: bool = False) -> torch.Tensor:
        """Normalized images.

        Args:
            images: shape `(images, channels, height, width)`, or without `shift` whatever PyTorch's takes.
            shift: what is to be added to each channel before, `(images, channels)`.
            quick: whether to go that way, where it is one.
        """
        if not (quick and self.affine and self.is_slow(images) and has_channels_last(images)):
            return super().forward(images if shift is None else images + shift[:, :, None, None])
        pixels = images.permute(0, 2, 3, 1).flatten(1, 2)
        mean = pixels.mean(dim=1)
        mean = self.of_groups(mean if shift is None else mean + shift)
        pixels = pixels - (mean if shift is None else mean - shift)[:, None]
        variance = self.of_groups(pixels.square().mean(dim=1))
        factor = self.weight * variance.add_(self.eps).rsqrt_()
        pixels = torch.addcmul(self.bias, pixels, factor[:, None], out=pixels)
        return pixels.unflatten(1, images.shape[2:]).permute(0, 3, 1, 2)

    def is_slow(self, images: torch.Tensor) -> bool:
        """Whether PyTorch's would be, if `images` had channels last."""
        pixels, channels = images.shape[2:].numel(), self.num_channels // self.num_groups
        return images.ndim == 4 and pixels < ENOUGH_PIXELS and channels < ENOUGH_CHANNELS

    def of_groups(self, values: torch.Tensor) -> torch.Tensor:
        """The mean of each group, for each of its channels; `values` and result are of shape `(images, channels)`."""
        means = values.unflatten(1, (self.num_groups, -1)).mean(dim=2)
        return means.repeat_interleave(self.num_channels // self.num_groups, dim=1)


class QuickTransformer(Transformer2DModel):
    """diffusers' transformer over the pixels of images, which leaves channels last where they are."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        quick: bool = False,
        **others: Any,
    ) -> tuple[torch.Tensor] | Transformer2DModelOutput:
        """Images of the same shape.

        Args:
            hidden_states: shape `(images, channels, height, width)`.
            encoder_hidden_states: the text, shape `(movies, words, channels)`.
            cross_attention_kwargs: for the attention processors.
            quick: whether to go this way.
            others: what diffusers' has besides.
        """
        if not (quick and self.is_input_continuous and has_channels_last(hidden_states)):
            return super().forward(
                hidden_states, encoder_hidden_states, cross_attention_kwargs=cross_attention_kwargs, **others
            )
        states = self.norm(hidden_states, quick=True)
        if not self.use_linear_projection:
            states = self.proj_in(states)
        shape = (len(states), *states.shape[2:])
        states = states.permute(0, 2, 3, 1).flatten(1, 2)
        if self.use_linear_projection:
            states = self.proj_in(states)
        for block in self.transformer_blocks:
            states = block(
                states, encoder_hidden_states=encoder_hidden_states, cross_attention_kwargs=cross_attention_kwargs
            )
        if self.use_linear_projection:
            states = self.proj_out(states)
        states = states.unflatten(1, shape[1:]).permute(0, 3, 1, 2)
        if not self.use_linear_projection:
            states = self.proj_out(states)
        output = states.add_(hidden_states)
        return Transformer2DModelOutput(output) if others.get("return_dict", True) else (output,)


class QuickUpsample(Upsample2D):
    """diffusers' upsampler, which convolves before it enlarges.

    Each pixel becomes four that are alike, so a kernel of 3 x 3 sees at most four different pixels: with the sums of
    its taps it is four kernels of 2 x 2, one for each of the four, and 16 products instead of 36.
    """

    def forward(
        self, hidden_states: torch.Tensor, output_size: tuple[int, int] | None = None, quick: bool = False
    ) -> torch.Tensor:
        """Images twice as large (of that `output_size`, if it is given), `(images, channels, height, width)`."""
        if not (quick and output_size is None and self.is_plain() and has_channels_last(hidden_states)):
            return super().forward(hidden_states, output_size)
        count, height, width = len(hidden_states), *hidden_states.shape[2:]
        around = nn.functional.pad(hidden_states, (1, 1, 1, 1))
        enlarged = hidden_states.new_empty(count, height, 2, width, 2, self.out_channels)
        for row, of_row in enumerate(halves(self.conv.weight, dim=2)):
            for col, kernel in enumerate(halves(of_row, dim=3)):
                some = around[:, :, row : row + height + 1, col : col + width + 1]
                enlarged[:, :, row, :, col] = nn.functional.conv2d(some, kernel, self.conv.bias).permute(0, 2, 3, 1)
        return enlarged.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)

    def is_plain(self) -> bool:
        """Whether it enlarges and convolves, with weights that stand where they are used, and nothing else."""
        layer = getattr(self, "conv", None)
        return (
            type(layer) is nn.Conv2d
            and layer.weight.shape[2:] == (3, 3)
            and layer.weight.dtype == torch.float32
            and layer.weight.device.type == "cpu"
            and layer.padding == (1, 1)
            and not (hasattr(layer, "_diffusers_hook") or hasattr(layer, "_hf_hook"))
            and not (layer._forward_pre_hooks or layer._forward_hooks)
            and (self.norm is None and self.interpolate and not self.use_conv_transpose)
        )


def halves(kernel: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a `kernel` of three taps along `dim` does to pixels that come in pairs, for the first and the second."""
    before, here, after = kernel.unbind(dim)
    return torch.stack([before, here + after], dim), torch.stack([before + here, after], dim)


def be_quick(module: nn.Module) -> None:
    """Lets norms, transformers and upsamplers in `module` do as said here; parameters and their names stay."""
    for layer in module.modules():
        if type(layer) is nn.GroupNorm:
            layer.__class__ = QuickGroupNorm
        elif type(layer) is Transformer2DModel:
            layer.__class__ = QuickTransformer
        elif type(layer) is Upsample2D:
            layer.__class__ = QuickUpsample
