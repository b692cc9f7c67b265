"""Switches of the 5D UNet that users of diffusers' 2D UNet know: attention processors, fused projections, FreeU.

Each does to the spatial layers what `UNet2DConditionModel`'s of the same name does; what it does to time and view
layers is said where it is not the same. No switch changes a parameter's name, so checkpoints do not know of them.
"""

from typing import Any

from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0

from diffusers_stale.view_layers import ViewAttnProcessor


class SwitchesMixin(AttentionMixin):
    """What can be switched on a `StaleUNet5DConditionModel` between its construction and its calls."""

    def set_attn_processor(self, processor: Any) -> None:
        """Sets the processors of attention layers.

        Args:
            processor: one for all spatial and time layers (view layers keep theirs: only a `ViewAttnProcessor`, which
                then is for them alone, knows of rotary phases), or a dict with one for each name in `attn_processors`.

        Raises:
            ValueError: for a dict that lacks a layer or has one too many, and for a processor of view layers that is
                none.
        """
        processors = self.attn_processors
        if not isinstance(processor, dict):
            is_for_views = isinstance(processor, ViewAttnProcessor)
            changed = {name for name, old in processors.items() if isinstance(old, ViewAttnProcessor) == is_for_views}
            processor = {name: processor if name in changed else old for name, old in processors.items()}
        misfits = sorted(set(processor) ^ set(processors))
        if misfits:
            raise ValueError(
                f"`processor` must have the {len(processors)} keys of `attn_processors`, got {len(processor)}, which "
                f"differ in {', '.join(misfits[:3])}; change a copy of `attn_processors`."
            )
        for name, new in processor.items():
            if isinstance(processors[name], ViewAttnProcessor) and not isinstance(new, ViewAttnProcessor):
                raise ValueError(
                    f"`processor[{name!r}]` must be a ViewAttnProcessor, since view layers have rotary phases, got "
                    f"{type(new).__name__}; keep the one of `attn_processors`, or derive yours from it."
                )
        super().set_attn_processor(dict(processor))

    def fuse_qkv_projections(self) -> None:
        """Has spatial and time layers compute query, key and value in one product; view layers stay as they are.

        Raises:
            ValueError: for networks with added keys and values, such as DeepFloyd IF's.
        """
        attentions = [module for module in self.modules() if isinstance(module, Attention)]
        if any(attention.added_kv_proj_dim is not None for attention in attentions):
            raise ValueError(
                "`fuse_qkv_projections` needs attention layers without added keys and values, got some with; leave "
                "it out for this network."
            )
        if getattr(self, "_unfused_processors", None) is None:
            self._unfused_processors = self.attn_processors
        for attention in attentions:
            attention.fuse_projections(fuse=True)
        self.set_attn_processor(FusedAttnProcessor2_0())

    def unfuse_qkv_projections(self) -> None:
        """Undoes `fuse_qkv_projections`, and removes the fused weights."""
        if getattr(self, "_unfused_processors", None) is None:
            return
        self.set_attn_processor(self._unfused_processors)
        self._unfused_processors = None
        for attention in self.modules():
            if isinstance(attention, Attention):
                attention.fused_projections = False
                for name in ("to_qkv", "to_kv"):
                    attention._modules.pop(name, None)

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU (arXiv 2309.11497): weighs skips against the path through the middle in the two lowest up blocks.

        Args:
            s1, s2: factors on the low frequencies of skips, in the first and in the second up block.
            b1, b2: factors on half of the other channels, likewise.
        """
        for index, block in enumerate(self.up_blocks):
            block.freeu = {"resolution_idx": index, "s1": s1, "s2": s2, "b1": b1, "b2": b2}

    def disable_freeu(self) -> None:
        """Undoes `enable_freeu`."""
        for block in self.up_blocks:
            block.freeu = None
