"""`StaleDiffusionPipeline`: a sentence in, a light-field movie out.

Nearest relative: diffusers' `AnimateDiffPipeline`. Unlike it, a movie has two view axes beside time, its pixels are
decoded in chunks and collected on the CPU, and what comes out is a `LightField` that knows its cameras and its origin.

This file wires text encoder, UNet, scheduler and autoencoder together. Noise mathematics is the scheduler's, the way
from prompts to embeddings is in `prompting.py`, and what a caller may ask is checked in `pipeline_checks.py`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, MotionAdapter
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPTextModel, CLIPTokenizer

from diffusers_stale.added_conditions import Size, added_conditions, check_added, takes_pooled_text
from diffusers_stale.autoencoding import denormalized, pixels_a_latent
from diffusers_stale.axes import IMAGE_AXES, axis_index, check_count, check_light_field, fold, sizes, unfold
from diffusers_stale.denoising import Callback, DenoisingMixin
from diffusers_stale.known_pictures import Picture, Video, inpainting_channels, known_pictures
from diffusers_stale.light_field import CameraGrid, LightField
from diffusers_stale.memory import refuse_beyond_memory
from diffusers_stale.pipeline_checks import (
    check_callback_inputs,
    check_choice,
    check_generator,
    check_latents,
    check_network,
    check_number,
    check_prompts,
    check_schedule,
    check_size,
    text_channels,
)
from diffusers_stale.pipeline_output import (
    Generators,
    StaleDiffusionPipelineOutput,
    checkpoint_name,
    light_fields,
    origins,
)
from diffusers_stale.prompting import PromptingMixin
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.stable_diffusion import load_parts
from diffusers_stale.unet_stale import StaleUNet5DConditionModel


OutputType = Literal["light_field", "pt", "np", "latent"]


class StaleDiffusionPipeline(
    DenoisingMixin, PromptingMixin, DiffusionPipeline, StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
):
    """Text to light-field movie.

    Args:
        vae: between pixels and latents, one frame of one view at a time.
        text_encoder: its last hidden state is what the UNet is told.
        tokenizer: of the text encoder.
        unet: predicts what the scheduler asks for.
        scheduler: a `StaleScheduler`, or any scheduler of diffusers with the UNet's `prediction_type`.
        default_negative_prompt: what guidance leads away from where no negative prompt is given. Checkpoints that were
            trained to (`hinge_caption`, the crying-joy hinge of arXiv 2404.01079) have the token of tears of joy here.
        default_negative_baseline, default_negative_frame_spacing, default_negative_end: what calls take for
            `negative_baseline` and so on where none is given.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: StaleUNet5DConditionModel,
        scheduler: StaleScheduler,
        default_negative_prompt: str = "",
        default_negative_baseline: float = 1.0,
        default_negative_frame_spacing: float = 1.0,
        default_negative_end: float = 1.0,
    ):
        super().__init__()
        self.agree_on_dtype(text_encoder, unet)
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        if default_negative_prompt:
            self.register_to_config(default_negative_prompt=default_negative_prompt)
        defaults = {
            "default_negative_baseline": default_negative_baseline,
            "default_negative_frame_spacing": default_negative_frame_spacing,
            "default_negative_end": default_negative_end,
        }
        self.register_to_config(**{name: value for name, value in defaults.items() if value != 1})
        self._guidance_scale, self._num_timesteps, self._interrupt = 1.0, 0, False

    @classmethod
    def from_stable_diffusion(
        cls,
        path_or_repo: str | Path,
        motion_adapter: MotionAdapter | str | Path | None = None,
        *,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        new_layer_options: dict[str, Any] | None = None,
    ) -> "StaleDiffusionPipeline":
        """A pipeline whose UNet is inflated from a Stable Diffusion checkpoint: same picture in every view.

        For one of the SDXL kind it is a `StaleDiffusionXLPipeline`.

        Args:
            path_or_repo: folder or Hub id with the subfolders `vae, text_encoder, tokenizer, unet, scheduler`, and
                `text_encoder_2, tokenizer_2` for SDXL.
            motion_adapter: an AnimateDiff motion adapter, or the folder or Hub id of one, for the time layers.
            torch_dtype: of the weights; None for float32.
            variant: of the weight files, such as `"fp16"`.
            revision, token, cache_dir, local_files_only: as everywhere on the Hub.
            new_layer_options: of view and time layers; see `inflation.inflate_unet2d`.

        Raises:
            ValueError: for a folder that lacks one of these parts, and for networks that need more than a text.
        """
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        dtype = torch_dtype or torch.float32
        parts = load_parts(path_or_repo, motion_adapter, dtype, variant, hub, new_layer_options or {})
        if "text_encoder_2" not in parts:
            return cls(**parts)
        from diffusers_stale.pipeline_stale_xl import StaleDiffusionXLPipeline  # here, since it builds on this file

        return StaleDiffusionXLPipeline(**parts)

    @property
    def guidance_scale(self) -> float:
        """Strength of guidance; may be changed from a callback through `_guidance_scale`."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether each movie is predicted twice, with its prompt and with its negative prompt.

        Never by networks that guidance was distilled into: they are told its strength instead.
        """
        return self._guidance_scale > 1 and self.unet.config.time_cond_proj_dim is None

    @property
    def num_timesteps(self) -> int:
        """Number of denoising steps of the current or last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether to skip all further steps; set from a callback through `_interrupt`."""
        return self._interrupt

    @property
    def is_inpainting(self) -> bool:
        """Whether the UNet was inflated from an inpainting one, and takes a mask and masked latents besides."""
        return self.unet.config.in_channels == 2 * self.vae.config.latent_channels + 1

    @property
    def longest_movie(self) -> int | None:
        """Frames that a movie may have; None for any number, as with windows along time."""
        any_length = self.windows is not None and self.windows.frames is not None
        config = self.unet.config
        return None if any_length or not any(config.time_layers) else config.time_max_frames

    @property
    def vae_scale_factor(self) -> int:
        """Pixels to a latent pixel, along height and along width."""
        return pixels_a_latent(self.vae.config)

    def default_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in pixels, where None stands for the size that the UNet was trained for."""
        trained = self.unet.config.sample_size
        if trained is None and (height is None or width is None):
            raise ValueError(
                "`height` and `width` must be given, got None: this UNet's config states no `sample_size`."
            )
        trained = trained if isinstance(trained, (list, tuple)) else (trained, trained)
        given = zip((height, width), trained, strict=True)
        return tuple(size * self.vae_scale_factor if value is None else value for value, size in given)

    def check_inputs(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        view_rows: int,
        view_cols: int,
        num_frames: int,
        height: int,
        width: int,
        num_videos_per_prompt: int = 1,
        generator: Generators = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
    ) -> tuple[int, tuple[int, ...]]:
        """Checks texts and sizes before anything is allocated; raises `ValueError` saying expected, got, remedy.

        Returns:
            The number of prompts, and the shape of the latents, `(batch, channels, view_rows, view_cols, frames,
            latent height, latent width)`.
        """
        config = self.unet.config
        check_network(config, self.vae.config.latent_channels, self.pooled_channels)
        prompts = check_prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, text_channels(config))
        check_count("view_rows", view_rows)
        check_count("view_cols", view_cols)
        check_count("num_frames", num_frames, self.longest_movie)
        check_count("num_videos_per_prompt", num_videos_per_prompt)
        factor = self.vae_scale_factor
        check_size("height", height, factor)
        check_size("width", width, factor)
        movies = prompts * num_videos_per_prompt
        check_generator(generator, movies)
        grid = (view_rows, view_cols, num_frames)
        shape = (movies, self.vae.config.latent_channels, *grid, height // factor, width // factor)
        if latents is not None:
            check_latents(latents, shape)
        return prompts, shape

    def prepare_latents(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The noise to begin with: independent in every view and frame; given `latents` as they are, scaled alike."""
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        return latents.to(device, dtype) * self.scheduler.init_noise_sigma

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor, decode_chunk_size: int = 16) -> torch.Tensor:
        """Pixels in [-1, 1], float32, on the CPU.

        At most `decode_chunk_size` images of all views and frames are on the device at once.

        Args:
            latents: `(batch, channels, view_rows, view_cols, frames, latent height, latent width)`.
            decode_chunk_size: number of images.

        Returns:
            `(batch, 3, view_rows, view_cols, frames, height, width)`.

        Raises:
            FloatingPointError: where the autoencoder makes NaN or infinity.
        """
        check_count("decode_chunk_size", decode_chunk_size)
        axis_sizes = sizes(check_light_field(latents, "latents"))
        config, factor = self.vae.config, self.vae_scale_factor
        images = fold(latents, IMAGE_AXES)
        images = denormalized(images, config)
        height, width = axis_sizes["height"] * factor, axis_sizes["width"] * factor
        pixels = torch.empty(len(images), config.out_channels, height, width)
        chunks = zip(pixels.split(decode_chunk_size), images.split(decode_chunk_size), strict=True)
        for target, chunk in chunks:
            target.copy_(self.vae.decode(chunk.to(self._execution_device, self.vae.dtype)).sample)
        if not torch.isfinite(pixels).all():
            raise FloatingPointError(
                f"Decoded pixels must be finite, got NaN or infinity from the autoencoder in {self.vae.dtype}; run it "
                "in float32: pipeline.vae.to(torch.float32)."
            )
        return unfold(pixels.clamp_(-1.0, 1.0), IMAGE_AXES, axis_sizes)

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device, timesteps: list | None, sigmas: list | None
    ) -> torch.Tensor:
        """Tells the scheduler how to go; returns its timesteps.

        Raises `ValueError` for both `timesteps` and `sigmas`, and for one that this scheduler does not take.
        """
        own: dict[str, Any] = check_schedule(self.scheduler, timesteps, sigmas)
        if not own:
            check_count("num_inference_steps", num_inference_steps)
            own = {"num_inference_steps": num_inference_steps}
        if isinstance(self.scheduler, StaleScheduler):
            own |= {"guidance_scale": self.guidance_in_force}
        self.scheduler.set_timesteps(**own, device=device)
        self._num_timesteps = len(self.scheduler.timesteps)
        return self.scheduler.timesteps

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        view_rows: int = 3,
        view_cols: int = 3,
        num_frames: int = 8,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        guidance_rescale: float = 0.0,
        baseline: float = 1.0,
        negative_baseline: float | None = None,
        view_spacing: float = 1.0,
        frame_spacing: float = 1.0,
        negative_frame_spacing: float | None = None,
        negative_end: float | None = None,
        loop: bool = False,
        frame_rate: float = 8.0,
        num_videos_per_prompt: int = 1,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        original_size: Size = None,
        crops_coords_top_left: Size = None,
        target_size: Size = None,
        output_type: OutputType = "light_field",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' signature; not changed)
        cross_attention_kwargs: dict[str, Any] | None = None,
        decode_chunk_size: int = 16,
        force: bool = False,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        image: Picture | None = None,
        video: Video | None = None,
        known: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
    ) -> StaleDiffusionPipelineOutput | tuple[list[LightField] | torch.Tensor | np.ndarray]:
        """Makes a movie for each prompt.

        Args:
            prompt: one text or several; empty for anything. Text beyond the tokenizer's length is cut, with a warning.
            negative_prompt: what the movie is to be unlike; one for all, or one for each prompt.
            view_rows, view_cols: cameras of the grid, downward and to the right.
            num_frames: moments in time.
            height, width: pixels; None for the size that the UNet was trained for.
            num_inference_steps: more take longer and are more exact.
            guidance_scale: how much the text is to count; 1 (and less) is without guidance, at half the cost.
            guidance_rescale: from 0 to 1, how far to undo what guidance does to contrast.
            baseline: factor on the distance of all cameras, and so on disparity.
            negative_baseline: factor on `baseline` in the negative prediction, which guidance leads away from: at 0 it
                is of cameras that all stand in one place, so that guidance strengthens parallax as it does words; at 1
                it does not. None for the checkpoint's default. Costs nothing.
            view_spacing: distance of neighbouring cameras in trained view steps; 0.5 for a grid twice as dense.
            frame_spacing: time between frames in trained frame steps; 0.5 for slow motion.
            negative_frame_spacing: factor on `frame_spacing` in the negative prediction, as `negative_baseline` for
                cameras: below 1, guidance leads away from standing still.
            negative_end: share of the timesteps, from the noisiest on, after which the two end; 1 for never.
            loop: the last frame is followed by the first; takes longer, see `StaleUNet5DConditionModel.forward`.
            frame_rate: frames a second that the light field is to be shown at.
            num_videos_per_prompt: movies for each prompt.
            generator: of the noise; a list of one for each movie makes each the same as it would be alone.
            latents: noise to begin with, `(batch, channels, view_rows, view_cols, frames, latent height and width)`.
            prompt_embeds, negative_prompt_embeds: `(prompts, tokens, channels)`, in place of texts.
            pooled_prompt_embeds, negative_pooled_prompt_embeds: `(prompts, channels)`, along with those; SDXL only.
            original_size, crops_coords_top_left, target_size: what SDXL is told of the picture, in pixels down and to
                the right; None for `height` and `width`, and for no crop.
            output_type: `"light_field"`, `"pt"`, `"np"` or `"latent"`; see `StaleDiffusionPipelineOutput`.
            return_dict: whether to return a `StaleDiffusionPipelineOutput` instead of a tuple.
            callback_on_step_end: called after each step as `callback(pipeline, step, timestep, tensors)`; returns
                those tensors that it wants to replace. `pipeline._interrupt = True` ends the run early.
            callback_on_step_end_tensor_inputs: which tensors it gets, among `_callback_tensor_inputs`.
            cross_attention_kwargs: for the 2D attention processors; `scale` scales LoRA layers.
            decode_chunk_size: images that are decoded at once.
            force: try even if memory will probably not suffice.
            timesteps, sigmas: of sampling, in place of `num_inference_steps`, if the scheduler takes them.
            image: the first frame of the middle view, which all movies go on from; PIL, an array or a tensor, see
                `KnownPictures.from_video`. Only for a UNet with `known_conditioning`, or inflated from an inpainting
                one, as are the following.
            video: the first frames of the middle view, which is to become a light field.
            known: pixels in [-1, 1], `(1, 3, view_rows, view_cols, frames, height, width)`, where some are known.
            known_mask: bool, `(view_rows, view_cols, frames)`, true where `known` is known.

        Raises:
            ValueError: for a request that is unsound, or too large for the memory that is free.
            FloatingPointError: as soon as latents or pixels are not finite; names the step.
        """
        height, width = self.default_size(height, width)
        if negative_prompt is None and negative_prompt_embeds is None:
            # Here, so that movies record it; none at all where it is empty.
            negative_prompt = self.config.get("default_negative_prompt")
        prompts, shape = self.check_inputs(
            prompt, negative_prompt, view_rows, view_cols, num_frames, height, width, num_videos_per_prompt, generator,
            prompt_embeds, negative_prompt_embeds, latents,
        )  # fmt: skip
        check_number("guidance_scale", guidance_scale)
        check_number("guidance_rescale", guidance_rescale, least=0.0)
        check_number("baseline", baseline)
        check_number("frame_spacing", frame_spacing, least=0.0)
        check_number("view_spacing", view_spacing, above=0.0)
        check_number("frame_rate", frame_rate, above=0.0)
        check_count("decode_chunk_size", decode_chunk_size)
        check_choice("output_type", output_type, ("light_field", "pt", "np", "latent"))
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        shown = known_pictures(
            image, video, known, known_mask, (view_rows, view_cols, num_frames), height, width,
            self.unet.config.get("known_conditioning", False) or self.is_inpainting,
        )  # fmt: skip
        pooled = {
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "negative_pooled_prompt_embeds": negative_pooled_prompt_embeds,
        }
        picture = {
            "original_size": original_size,
            "crops_coords_top_left": crops_coords_top_left,
            "target_size": target_size,
        }
        check_added(
            self.unet.config,
            {**pooled, **picture},
            {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds},
        )
        self._guidance_scale, self._interrupt = guidance_scale, False
        self.be_unlike(negative_baseline, negative_frame_spacing, negative_end)
        device = self._execution_device
        self.check_calibration()
        # With windows the device sees pieces of the grid only, and all else happens on the CPU.
        home = device if self.windows is None else torch.device("cpu")
        self.set_timesteps(num_inference_steps, home, timesteps, sigmas)
        if not force:
            refuse_beyond_memory(self, shape, decode_chunk_size, device)

        texts = self.encode_prompt(
            prompt, device, num_videos_per_prompt, self.do_classifier_free_guidance, negative_prompt, prompt_embeds,
            negative_prompt_embeds, (cross_attention_kwargs or {}).get("scale"),
            **(pooled if takes_pooled_text(self.unet.config) else {}),
        )  # fmt: skip
        noise = self.prepare_latents(shape, self.unet.dtype, home, generator, latents)
        conditions = {
            "view_baseline": baseline,
            "view_spacing": view_spacing,
            "frame_spacing": frame_spacing,
            "loop": loop,
            "cross_attention_kwargs": cross_attention_kwargs,
        }
        if shown is not None:
            latents_shown, mask = shown.encode(self.vae, len(noise), self.unet.dtype, device, decode_chunk_size)
            latents_shown, mask = latents_shown.to(home), mask.to(home)
            conditions |= {"known": latents_shown, "known_mask": mask}
        if self.is_inpainting:
            channels = inpainting_channels(
                self.vae, noise, conditions.pop("known", None), conditions.pop("known_mask", None)
            )
            conditions |= {"inpainting": channels}
        size = (height, width)
        picture_sizes = (original_size or size, crops_coords_top_left or (0, 0), target_size or size)
        conditions |= added_conditions(self.unet.config, guidance_scale, texts[0], texts[2:], picture_sizes)
        denoised = self.denoise(
            noise, *texts[:2], conditions, guidance_rescale, generator, callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )  # fmt: skip

        if shown is not None:
            denoised = torch.where(mask > 0, latents_shown, denoised)
        movies = self.output_of(denoised, output_type, decode_chunk_size)
        if output_type == "light_field":
            cameras = CameraGrid(view_rows=view_rows, view_cols=view_cols, spacing=view_spacing, baseline=baseline)
            settings = {
                "num_inference_steps": self.num_timesteps,
                "guidance_scale": guidance_scale,
                "guidance_rescale": guidance_rescale,
                "frame_spacing": frame_spacing,
                "negative_conditions": self.negative_conditions,
                "loop": loop,
                "latents_given": latents is not None,
                "windows": None if self.windows is None else asdict(self.windows),
                "pictures_given": 0 if shown is None else int(shown.mask.sum()),
                "checkpoint": checkpoint_name(self.config.get("_name_or_path"), self.unet.config.get("_name_or_path")),
                "dtype": str(self.unet.dtype).removeprefix("torch."),
            }
            provenance = origins(len(movies), prompts, prompt, negative_prompt, generator, self.scheduler, settings)
            movies = light_fields(movies, frame_rate, cameras, provenance)
        self.maybe_free_model_hooks()
        return StaleDiffusionPipelineOutput(light_fields=movies) if return_dict else (movies,)

    def output_of(self, latents: torch.Tensor, output_type: OutputType, decode_chunk_size: int) -> Any:
        """`latents` as `output_type` says; for light fields, pixels in [-1, 1]."""
        if output_type == "latent":
            return latents
        pixels = self.decode_latents(latents, decode_chunk_size)
        if output_type == "light_field":
            return pixels
        pixels = pixels.add_(1).div_(2)
        return pixels if output_type == "pt" else pixels.movedim(axis_index("channels"), -1).numpy()
