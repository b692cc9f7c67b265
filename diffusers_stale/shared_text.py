"""Cross-attention that takes one text for many images, instead of a copy of it for each.

A 2D network projects the text of each image to keys and values. All images of a movie have the same text, and queries
do not see each other: seen as one long image, they attend to one copy, and 77 words cost as much for a movie as for a
picture. (On a grid of 4 x 4 pixels that is more than all else.)
"""

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import nn


class SharedTextAttention(Attention):
    """diffusers' attention, to which `encoder_hidden_states` may come once for several neighbours in the batch."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> torch.Tensor:
        """Attends as `Attention` does; for each processor.

        Args:
            hidden_states: shape `(images, tokens, channels)`.
            encoder_hidden_states: shape `(movies, words, channels)`, where `images` is a multiple of `movies`.
            attention_mask: None, unless there are as many movies as images.
            cross_attention_kwargs: for the processor.
        """
        attend = super().forward
        if encoder_hidden_states is None or len(encoder_hidden_states) == len(hidden_states):
            return attend(hidden_states, encoder_hidden_states, attention_mask, **cross_attention_kwargs)
        lengths = (len(hidden_states) // len(encoder_hidden_states), hidden_states.shape[1])
        together = hidden_states.reshape(len(encoder_hidden_states), -1, hidden_states.shape[2])
        attended = attend(together, encoder_hidden_states, attention_mask, **cross_attention_kwargs)
        return attended.unflatten(1, lengths).flatten(0, 1)


def share_text(module: nn.Module) -> None:
    """Lets the transformers in `module` take one text for several images; parameters and their names stay."""
    for block in module.modules():
        if isinstance(block, BasicTransformerBlock):
            for attention in (block.attn1, block.attn2):
                if type(attention) is Attention:
                    attention.__class__ = SharedTextAttention
