"""`StaleUNet5DConditionModel`: a text-conditioned UNet for light-field movies, grown from a `UNet2DConditionModel`.

How it differs from its nearest relatives:
- From `UNet2DConditionModel` it has the spatial layers, their parameter names and all configuration keys, so that 2D
  weights and LoRAs load by name. It is composed of the modules of a 2D network rather than derived from it.
- From `UNetMotionModel` it has the time layers, under their names. `inflation.py` says how both come in.
- Its own are the view layers (`view_layers.py`) and the order in which all are called (`unet_layers.py`).

This file checks input, embeds the conditions and walks through the blocks. It knows no noise.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.utils import BaseOutput, apply_lora_scale

from diffusers_stale.axes import (
    AXES,
    IMAGE_AXES,
    check_count,
    check_light_field,
    fold,
    sizes,
    unfold,
    view_coordinates,
)
from diffusers_stale.channels_last import be_quick, suits
from diffusers_stale.chunking import in_parts
from diffusers_stale.moments import spacings_of_movies
from diffusers_stale.unet_config import SPATIAL_KEYS, check_inflatable, of_levels, view_layer_types_of_levels
from diffusers_stale.unet_layers import Conditions, NewLayerOptions, StaleDownBlock, StaleMidBlock, StaleUpBlock
from diffusers_stale.unet_switches import SwitchesMixin
from diffusers_stale.view_layers import ViewEmbedding, ViewGrid


@dataclass
class StaleUNet5DOutput(BaseOutput):
    """Output of `StaleUNet5DConditionModel`.

    Args:
        sample: shape `(batch, channels, view_rows, view_cols, frames, height, width)`.
    """

    sample: torch.Tensor


class StaleUNet5DConditionModel(ModelMixin, SwitchesMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts, from a noisy light-field movie, a timestep and a text, what its scheduler wants to know.

    All arguments up to `addition_embed_type_num_heads` are those of `diffusers.UNet2DConditionModel`, with the same
    defaults. A "level" is a resolution, counted from the highest; the middle block belongs to the last.

    Args:
        view_layer_types: for each level (or one for all) `"epipolar"`, `"same_pixel"` or `"none"`. None stands for
            epipolar, and same-pixel at the last of several levels.
        view_attention_heads: heads of the view layers; None takes 4, or fewer where channels are few.
        view_slopes: initial slopes of the heads of epipolar layers, in pixels of the first level per view step; halved
            from level to level, as disparity is.
        time_layers: for each level (or one for all) whether it has time layers.
        time_attention_heads: heads of the time layers; None takes 8, or fewer where channels are few.
        time_max_channels: channels that time layers have inside at most; None for as many as their level has.
        time_max_frames: longest movie that time layers have positions for, in frames.
        time_double_self_attention: whether each time layer attends twice, as AnimateDiff's motion modules do.
        time_activation_fn: activation in the time layers: `"gelu"`, or `"geglu"` as in AnimateDiff, whose feed-forward
            layers have half as many weights again.
        time_norm_num_groups: groups of the time layers' normalization; None takes `norm_num_groups`.
        known_conditioning: whether it can be shown clean latents of views and frames that are known (`known` in
            `forward`): an image, a video, some views.

    Raises:
        ValueError: for blocks and options of a 2D UNet that cannot be inflated, and for view options that do not fit.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["StaleDownBlock", "StaleMidBlock", "StaleUpBlock"]
    _skip_layerwise_casting_patterns = ["norm"]
    _repeated_blocks = ["BasicTransformerBlock", "EpipolarViewLayer", "SamePixelViewLayer"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: tuple[str, ...] = (
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int, ...] = 1280,
        transformer_layers_per_block: int | tuple[int, ...] | tuple[tuple, ...] = 1,
        reverse_transformer_layers_per_block: tuple[tuple[int, ...], ...] | None = None,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float = 1.0,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        time_embedding_act_fn: str | None = None,
        timestep_post_act: str | None = None,
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        projection_class_embeddings_input_dim: int | None = None,
        attention_type: str = "default",
        class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: bool | None = None,
        cross_attention_norm: str | None = None,
        addition_embed_type_num_heads: int = 64,
        view_layer_types: str | tuple[str, ...] | None = None,
        view_attention_heads: int | None = None,
        view_slopes: tuple[float, ...] = (-1.0, -0.4, 0.4, 1.0),
        time_layers: bool | tuple[bool, ...] = True,
        time_attention_heads: int | None = None,
        time_max_channels: int | None = None,
        time_max_frames: int = 32,
        time_double_self_attention: bool = False,
        time_activation_fn: Literal["gelu", "geglu"] = "gelu",
        time_norm_num_groups: int | None = None,
        known_conditioning: bool = False,
    ):
        super().__init__()
        check_inflatable(dict(self.config))
        check_count("time_max_frames", time_max_frames)
        if time_max_channels is not None:
            check_count("time_max_channels", time_max_channels)
        self.sample_size = sample_size
        self.register_to_config(
            view_layer_types=view_layer_types_of_levels(view_layer_types, len(block_out_channels)),
            time_layers=of_levels("time_layers", time_layers, len(block_out_channels)),
        )

        # The 2D network itself interprets its dozens of options: the modules it builds are the spatial layers here,
        # so that their names, shapes and numbers agree with it in every configuration.
        spatial = UNet2DConditionModel(**{key: self.config[key] for key in SPATIAL_KEYS})
        self.time_proj = spatial.time_proj
        self.time_embedding = spatial.time_embedding
        self.time_embed_act = spatial.time_embed_act
        self.class_embedding = spatial.class_embedding
        self.add_time_proj = getattr(spatial, "add_time_proj", None)
        self.add_embedding = getattr(spatial, "add_embedding", None)
        self.encoder_hid_proj = spatial.encoder_hid_proj
        self.conv_in = spatial.conv_in
        levels = len(block_out_channels)
        self.down_blocks = torch.nn.ModuleList(
            StaleDownBlock(block, self.new_layer_options(level)) for level, block in enumerate(spatial.down_blocks)
        )
        self.mid_block = None
        if spatial.mid_block is not None:
            self.mid_block = StaleMidBlock(spatial.mid_block, self.new_layer_options(levels - 1))
        self.up_blocks = torch.nn.ModuleList(
            StaleUpBlock(block, self.new_layer_options(levels - 1 - index))
            for index, block in enumerate(spatial.up_blocks)
        )
        self.conv_norm_out = spatial.conv_norm_out
        self.conv_act = spatial.conv_act
        self.conv_out = spatial.conv_out
        self.view_embedding = self.new_view_embedding()
        self.known_in = self.new_known_in()
        be_quick(self)

    @classmethod
    def from_unet2d(cls, unet2d: UNet2DConditionModel, **new_layer_options: Any) -> "StaleUNet5DConditionModel":
        """The 5D UNet that `unet2d` grows into; see `inflation.inflate_unet2d`, which this calls."""
        from diffusers_stale.inflation import inflate_unet2d  # here, since inflation builds on this file

        return inflate_unet2d(unet2d, **new_layer_options)

    def new_layer_options(self, level: int) -> NewLayerOptions:
        """How time and view layers are built at `level`."""
        config = self.config
        return NewLayerOptions(
            view_layer_type=config.view_layer_types[level],
            view_attention_heads=config.view_attention_heads,
            view_slopes=tuple(slope / 2**level for slope in config.view_slopes),
            time_layers=config.time_layers[level],
            time_attention_heads=config.time_attention_heads,
            time_max_channels=config.time_max_channels,
            time_max_frames=config.time_max_frames,
            time_double_self_attention=config.time_double_self_attention,
            time_activation_fn=config.time_activation_fn,
            time_norm_num_groups=config.time_norm_num_groups or config.norm_num_groups,
        )

    def new_view_embedding(self) -> ViewEmbedding:
        """A view embedding as long as the time embedding that the blocks get."""
        return ViewEmbedding(self.down_blocks[0].resnets[0].time_emb_proj.in_features)

    def new_known_in(self) -> torch.nn.Conv2d | None:
        """What looks at known latents and their mask, with weights of zero; None without `known_conditioning`."""
        if not self.config.known_conditioning:
            return None
        kernel = self.config.conv_in_kernel
        layer = torch.nn.Conv2d(
            self.config.out_channels + 1,
            self.config.block_out_channels[0],
            kernel,
            padding=(kernel - 1) // 2,
            bias=False,
        )
        torch.nn.init.zeros_(layer.weight)
        return layer

    def add_new_layers(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None, keep_time_layers: bool = False
    ) -> None:
        """Builds every layer that the 2D parent lacks afresh, with outputs of zero, in place of those there are.

        With `keep_time_layers` those of time that have values already stay. Blocks are cast one by one, so that in
        half precision no more than one is ever held in full.
        """
        last = len(self.down_blocks) - 1
        blocks = [*enumerate(self.down_blocks), *((last - index, block) for index, block in enumerate(self.up_blocks))]
        blocks += [(last, self.mid_block)] if self.mid_block is not None else []
        for level, block in blocks:
            keep = keep_time_layers and block.has_time_weights()
            block.add_new_layers(self.new_layer_options(level), keep_time_layers=keep)
            for layers in filter(None, (block.motion_modules, block.view_layers)):
                layers.to(device=device, dtype=dtype)
        self.view_embedding = self.new_view_embedding().to(device=device, dtype=dtype)
        self.known_in = self.new_known_in()
        if self.known_in is not None:
            self.known_in.to(device=device, dtype=dtype)

    @apply_lora_scale("cross_attention_kwargs")
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        view_baseline: float | torch.Tensor = 1.0,
        view_spacing: float = 1.0,
        view_centre: tuple[float, float] = (0.0, 0.0),
        loop: bool = False,
        frame_spacing: float | torch.Tensor = 1.0,
        known: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> StaleUNet5DOutput | tuple[torch.Tensor]:
        """One evaluation of the network.

        Args:
            sample: noisy light fields, shape `(batch, channels, view_rows, view_cols, frames, height, width)`; every
                axis of any length from 1, frames up to `time_max_frames`.
            timestep: one for all, or of shape `(batch,)`.
            encoder_hidden_states: text, shape `(batch, tokens, cross_attention_dim)`.
            view_baseline: factor on the distance of cameras, and so on disparity; one for all, or of shape `(batch,)`.
            view_spacing: distance of neighbouring views in trained view steps; 0.5 for a grid twice as dense.
            view_centre: row and column, in trained view steps, where the middle of this grid stands: not at 0 where it
                is a window of a larger one.
            loop: time is a circle, the last frame is followed by the first; time layers cost as many times as much as
                there are frames.
            frame_spacing: trained frame steps between frames, for all or `(batch,)`; 0.5 is slow motion, 0 one moment.
            known: clean latents of what is known, of the shape of `sample` but with `out_channels` channels; what they
                are elsewhere does not matter. For networks with `known_conditioning` only.
            known_mask: 1 where `known` is known and 0 elsewhere, `(batch, 1, view_rows, view_cols, frames, height,
                width)`, in which every axis may be 1 long and stand for all.
            class_labels: shape `(batch,)` or what `class_embed_type` asks for.
            timestep_cond: shape `(batch, time_cond_proj_dim)`, added to the embedded timestep (guidance embedding).
            added_cond_kwargs: `text_embeds` and `time_ids`, each of first axis `batch`, for `"text_time"` (SDXL).
            cross_attention_kwargs: for the 2D attention processors; `scale` scales LoRA layers.
            return_dict: whether to return a `StaleUNet5DOutput` instead of a tuple.

        Raises:
            ValueError: for a sample, timestep, text, or condition of wrong shape, or a movie that is too long.
        """
        axis_sizes = self.check_inputs(sample, encoder_hidden_states)
        grid = self.view_grid(sample, view_baseline, view_spacing, view_centre)
        time_embedding = self.embed_conditions(
            sample, timestep, encoder_hidden_states, class_labels, timestep_cond, added_cond_kwargs
        )
        conditions = Conditions(
            time_embedding=self.embed_views(time_embedding, grid),
            text=self.text_of_movies(encoder_hidden_states),
            grid=grid,
            cross_attention_kwargs=cross_attention_kwargs,
            loop=loop,
            frame_spacing=spacings_of_movies(frame_spacing, len(sample)),
            chunking=self.chunking(sample.device),
            quick=suits(sample, grid.view_rows * grid.view_cols * grid.frames),
        )
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0

        # From here on every frame of every view is an image: (batch * view_rows * view_cols * frames, ...).
        folded = fold(sample, IMAGE_AXES)
        if conditions.quick:
            folded = folded.contiguous(memory_format=torch.channels_last)
        hidden_states = self.conv_in(folded)
        if known is not None or known_mask is not None:
            hidden_states = hidden_states + self.known_in(self.known_images(sample, known, known_mask))
        skips = [hidden_states]
        for block in self.down_blocks:
            hidden_states, block_skips = block(hidden_states, conditions)
            skips += block_skips
            del block_skips
        if self.mid_block is not None:
            hidden_states = self.mid_block(hidden_states, conditions)
        odd_sizes = any(axis_sizes[name] % 2 ** (len(self.up_blocks) - 1) for name in ("height", "width"))
        for block in self.up_blocks:
            # Only the list holds them, and the block takes them from it, so that each is freed where it is used up.
            states = [hidden_states, *(skips.pop() for _ in block.resnets)]
            del hidden_states
            upsample_size = skips[-1].shape[2:] if odd_sizes and skips else None
            hidden_states = block(states, conditions, upsample_size)
        prediction = unfold(self.read_out(hidden_states, conditions), IMAGE_AXES, axis_sizes).contiguous()
        return StaleUNet5DOutput(sample=prediction) if return_dict else (prediction,)

    def read_out(self, hidden_states: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The prediction for each image; shape `(images, out_channels, height, width)`."""

        def layer(images: torch.Tensor) -> torch.Tensor:
            if self.conv_norm_out is not None:
                images = self.conv_act(self.conv_norm_out(images, quick=conditions.quick))
            return self.conv_out(images)

        return in_parts(layer, hidden_states, conditions.chunking.count(hidden_states))

    def check_inputs(self, sample: torch.Tensor, encoder_hidden_states: torch.Tensor) -> dict[str, int]:
        """Length of every axis of `sample`; raises `ValueError` where sample or text do not fit the network."""
        axis_sizes = sizes(check_light_field(sample, "sample"))
        if axis_sizes["channels"] != self.config.in_channels:
            raise ValueError(
                f"`sample` must have {self.config.in_channels} channels, got {axis_sizes['channels']} in shape "
                f"{tuple(sample.shape)}; its axes are {AXES}."
            )
        longest = self.config.time_max_frames
        if any(self.config.time_layers) and axis_sizes["frames"] > longest:
            raise ValueError(
                f"`sample` must have between 1 and {longest} frames, got {axis_sizes['frames']}; shorten the movie "
                "or inflate with a larger `time_max_frames`."
            )
        if encoder_hidden_states.ndim != 3 or len(encoder_hidden_states) != axis_sizes["batch"]:
            raise ValueError(
                f"`encoder_hidden_states` must have shape (batch={axis_sizes['batch']}, tokens, channels), got "
                f"{tuple(encoder_hidden_states.shape)}; give one text for each movie, not for each view or frame."
            )
        return axis_sizes

    def known_images(
        self, sample: torch.Tensor, known: torch.Tensor | None, known_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Known latents, zero where unknown, and their mask, image by image; `(images, out_channels + 1, ...)`."""
        if self.known_in is None:
            raise ValueError(
                "`known` must be None for a network without `known_conditioning`, got some; train one with it."
            )
        expected = (len(sample), self.config.out_channels, *sample.shape[2:])
        got = [None if tensor is None else tuple(tensor.shape) for tensor in (known, known_mask)]
        shape = (expected[0], 1, *expected[2:])
        fits = None not in got and len(got[1]) == len(shape)
        if not fits or got[0] != expected or any(n not in (1, most) for n, most in zip(got[1], shape, strict=True)):
            raise ValueError(
                f"`known` must have shape {expected} and `known_mask` {shape} (or 1 along some axes), got {got[0]} "
                f"and {got[1]}; give both, with the axes {AXES}."
            )
        mask = known_mask.to(sample.dtype).expand(shape)
        return fold(torch.cat([torch.where(mask > 0, known.to(sample.dtype), 0.0), mask], dim=1), IMAGE_AXES)

    def view_grid(
        self,
        sample: torch.Tensor,
        view_baseline: float | torch.Tensor,
        view_spacing: float,
        view_centre: tuple[float, float],
    ) -> ViewGrid:
        """The grid of `sample`, with the signed physical coordinates of its cameras."""
        axis_sizes = sizes(sample)
        baseline = torch.as_tensor(view_baseline, dtype=torch.float32, device=sample.device)
        if baseline.shape not in ((), (1,), (axis_sizes["batch"],)):
            raise ValueError(
                f"`view_baseline` must be a number or have shape (batch={axis_sizes['batch']},), got shape "
                f"{tuple(baseline.shape)}; give one baseline for each movie."
            )
        if not view_spacing > 0:
            raise ValueError(f"`view_spacing` must be greater than 0, got {view_spacing}; 1 is the trained spacing.")
        rows, cols = (
            (view_coordinates(axis_sizes[name], view_spacing, sample.device) + centre) * baseline.reshape(-1, 1)
            for name, centre in zip(("view_rows", "view_cols"), view_centre, strict=True)
        )
        grid_axes = {name: axis_sizes[name] for name in ("batch", "view_rows", "view_cols", "frames")}
        return ViewGrid(**grid_axes, row_coordinates=rows, col_coordinates=cols)

    def embed_conditions(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor | None,
        timestep_cond: torch.Tensor | None,
        added_cond_kwargs: dict[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        """Embedding of all that is said about a whole movie except its words; shape `(batch, channels)`."""
        timesteps = self.timesteps_of_batch(sample, timestep)
        guidance_shape = (len(sample), self.config.time_cond_proj_dim)
        if timestep_cond is not None and timestep_cond.shape != guidance_shape:
            raise ValueError(
                f"`timestep_cond` must have shape (batch, time_cond_proj_dim) = {guidance_shape}, got "
                f"{tuple(timestep_cond.shape)}; give one for each movie, or None where there is no such dimension."
            )
        embedding = self.time_embedding(self.time_proj(timesteps).to(sample.dtype), timestep_cond)
        if self.class_embedding is not None:
            labels = self.embed_class(sample, class_labels)
            concatenate = self.config.class_embeddings_concat
            embedding = torch.cat([embedding, labels], dim=-1) if concatenate else embedding + labels
        if self.config.addition_embed_type == "text":
            embedding = embedding + self.add_embedding(encoder_hidden_states)
        elif self.config.addition_embed_type == "text_time":
            embedding = embedding + self.embed_text_time(added_cond_kwargs, embedding)
        return embedding

    def timesteps_of_batch(self, sample: torch.Tensor, timestep: torch.Tensor | float | int) -> torch.Tensor:
        """`timestep` as a tensor of shape `(batch,)`; raises `ValueError` where it is neither that nor one value."""
        timesteps = torch.as_tensor(timestep, device=sample.device)
        if timesteps.shape not in ((), (1,), (len(sample),)):
            raise ValueError(
                f"`timestep` must be a number or have shape (batch={len(sample)},), got shape "
                f"{tuple(timesteps.shape)}; give one timestep for each movie."
            )
        return timesteps.expand(len(sample))

    def embed_class(self, sample: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        """Embedding of `class_labels`; shape `(batch, channels)`."""
        if class_labels is None or len(class_labels) != len(sample):
            got = None if class_labels is None else tuple(class_labels.shape)
            raise ValueError(
                f"`class_labels` must be given for each of the {len(sample)} movies, since this network has class "
                f"embeddings; got {got}."
            )
        if self.config.class_embed_type == "timestep":
            class_labels = self.time_proj(class_labels).to(sample.dtype)
        return self.class_embedding(class_labels).to(sample.dtype)

    def embed_text_time(
        self, added_cond_kwargs: dict[str, torch.Tensor] | None, embedding: torch.Tensor
    ) -> torch.Tensor:
        """SDXL's embedding of pooled text and sizes, for the timestep's `embedding`; both `(batch, channels)`."""
        missing = {"text_embeds", "time_ids"} - set(added_cond_kwargs or ())
        if missing:
            raise ValueError(
                "`added_cond_kwargs` must hold `text_embeds` and `time_ids`, since `addition_embed_type` is "
                f"'text_time'; missing: {', '.join(sorted(missing))}."
            )
        pooled, time_ids = added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"]
        if not len(pooled) == len(time_ids) == len(embedding):
            raise ValueError(
                f"`text_embeds` and `time_ids` must have the first axis batch={len(embedding)}, got {len(pooled)} and "
                f"{len(time_ids)}; give both for each movie."
            )
        embedded_ids = self.add_time_proj(time_ids.flatten()).reshape(len(pooled), -1)
        return self.add_embedding(torch.cat([pooled, embedded_ids], dim=-1).to(embedding.dtype))

    def embed_views(self, time_embedding: torch.Tensor, grid: ViewGrid) -> torch.Tensor:
        """The embedding of each movie, with that of each view added, for each image; shape `(images, channels)`."""
        of_views = time_embedding[:, None, None] + self.view_embedding(grid, time_embedding.dtype)
        if self.time_embed_act is not None:
            of_views = self.time_embed_act(of_views)
        return of_views.flatten(0, 2).repeat_interleave(grid.frames, dim=0)

    def text_of_movies(self, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """The text of each movie as attention sees it; shape `(batch, tokens, channels)`."""
        return encoder_hidden_states if self.encoder_hid_proj is None else self.encoder_hid_proj(encoder_hidden_states)
