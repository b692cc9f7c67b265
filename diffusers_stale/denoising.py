"""The denoising loop of the pipeline: from noise to clean latents, with guidance, callbacks and interruption."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline

from diffusers_stale.axes import check_count
from diffusers_stale.calibration_record import sample_weights_of
from diffusers_stale.pipeline_checks import check_finite, check_number
from diffusers_stale.pipeline_output import Generators
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.windows import Windows, predict_in_windows


Callback = Callable[[DiffusionPipeline, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


NEGATIVE_CONDITIONS = ("negative_baseline", "negative_frame_spacing", "negative_end")
"""What else guidance leads away from (`be_unlike`), and for how long; configurations have them as `default_` of it."""


class DenoisingMixin:
    """What `StaleDiffusionPipeline` does at its timesteps."""

    windows: Windows | None = None
    negative_conditions: dict[str, float] = {}
    _clean_latents: torch.Tensor | None = None

    @property
    def clean_latents(self) -> torch.Tensor | None:
        """For live previews from a callback: the result as the newest step predicts it, of the shape of latents.

        The noisy latents themselves with schedulers that do not tell; None outside a run.
        """
        return self._clean_latents

    def enable_windows(
        self,
        view_rows: int | None = 3,
        view_cols: int | None = 3,
        frames: int | None = None,
        overlap: float = 0.25,
        alternate: bool = True,
    ) -> None:
        """Has the UNet see a window of the grid at a time, for grids larger than memory.

        Latents stay on the CPU, and the memory that denoising takes on the device no longer depends on the size of the
        grid. Each window knows where in the grid its cameras stand. Movies may then be longer than the UNet's
        `time_max_frames`, as long as windows are not.

        Args:
            view_rows, view_cols, frames: of a window; None for all there are. Best the grid that the UNet learned.
            overlap: share of a window in common with the next, see `windows.Windows`; the more, the smoother and the
                slower.
            alternate: whether rows, columns and time take turns in overlapping, step by step.

        Raises:
            ValueError: for lengths that are no integers of at least 1 or exceed `time_max_frames`, and for an
                `overlap` out of range.
        """
        windows = Windows(
            view_rows=view_rows, view_cols=view_cols, frames=frames, overlap=overlap, alternate=alternate
        )
        config = self.unet.config
        if frames is not None and any(config.time_layers):
            check_count("frames", frames, config.time_max_frames)
        self.windows = windows

    def disable_windows(self) -> None:
        """Has the UNet see the whole grid at once."""
        self.windows = None

    @property
    def guidance_in_force(self) -> float:
        """The guidance scale of the run; 1 without guidance."""
        return self.guidance_scale if self.do_classifier_free_guidance else 1.0

    def check_calibration(self) -> None:
        """Has a calibrated scheduler leave its calibration aside, with a warning, where it is for something else."""
        if isinstance(self.scheduler, StaleScheduler) and self.scheduler.calibration is not None:
            self.scheduler.check_calibration(self.guidance_in_force, sample_weights_of(self.unet))

    def denoise(
        self,
        latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None,
        conditions: dict[str, Any],
        guidance_rescale: float,
        generator: Generators,
        callback: Callback | None,
        callback_inputs: list[str],
    ) -> torch.Tensor:
        """Walks the scheduler's timesteps from noise to clean latents.

        In callbacks, as in diffusers' own pipelines, `prompt_embeds` holds negative embeddings and, after them, those
        of prompts while guidance is on.
        """
        if self.do_classifier_free_guidance:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if takes_generator else {}
        self._clean_latents = None
        with self.progress_bar(total=self.num_timesteps) as progress_bar:
            for index, timestep in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    break
                prediction = self.predict(latents, timestep, prompt_embeds, conditions, guidance_rescale, index)
                stepped = self.scheduler.step(prediction, timestep, latents, **extra, return_dict=False)
                latents, self._clean_latents = stepped[0], stepped[-1]
                check_finite(latents, index, self.num_timesteps, timestep)
                if callback is not None:
                    names = self._callback_tensor_inputs
                    known = dict(zip(names, (latents, prompt_embeds, negative_prompt_embeds), strict=True))
                    known |= callback(self, index, timestep, {name: known[name] for name in callback_inputs}) or {}
                    latents, prompt_embeds, negative_prompt_embeds = (known[name] for name in names)
                    check_finite(latents, index, self.num_timesteps, timestep)
                progress_bar.update()
        self._clean_latents = None
        return latents

    def predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        conditions: dict[str, Any],
        guidance_rescale: float,
        step: int = 0,
    ) -> torch.Tensor:
        """What the UNet says of `latents` at a step of that number, guided; of their shape."""
        inputs = latents
        if self.do_classifier_free_guidance:
            inputs = torch.cat([latents] * 2)
            # Numbers are for all movies, tensors hold something of each.
            conditions = {
                name: torch.cat([value] * 2) if isinstance(value, torch.Tensor) else value
                for name, value in conditions.items()
            }
            conditions |= self.guided_conditions(conditions, len(latents), timestep)
        inputs = self.scheduler.scale_model_input(inputs, timestep)
        if "inpainting" in conditions:
            conditions = dict(conditions)
            inputs = torch.cat([inputs, conditions.pop("inpainting")], dim=1)
        if "added_cond_kwargs" in conditions:
            # The last ones are those of prompts: all that is needed once a callback has switched guidance off.
            added = {name: value[-len(inputs) :] for name, value in conditions["added_cond_kwargs"].items()}
            conditions = conditions | {"added_cond_kwargs": added}
        evaluate = partial(self.evaluate, timestep, prompt_embeds)
        if self.windows is None:
            prediction = evaluate(inputs, conditions)
        else:
            prediction = predict_in_windows(evaluate, inputs, conditions, self.windows, step)
        if not self.do_classifier_free_guidance:
            return prediction
        without, with_text = prediction.chunk(2)
        guided = without + self.guidance_scale * (with_text - without)
        return rescaled(guided, with_text, guidance_rescale) if guidance_rescale else guided

    def be_unlike(
        self,
        negative_baseline: float | None = None,
        negative_frame_spacing: float | None = None,
        negative_end: float | None = None,
    ) -> None:
        """Sets by what factors conditions are smaller in the negative prediction; None for the checkpoint's own.

        Guidance so leads away from flat or still movies as it leads away from other words. InstructPix2Pix (Brooks et
        al. 2022, arXiv 2211.09800, equation 3) has one more evaluation for a second condition, with a scale of its
        own; here one evaluation serves for all, and how far a condition is taken off sets its scale. As with words
        (Kynkaanniemi et al. 2024, arXiv 2404.07724), too much is done where little noise is left, unless it ends.

        Raises `ValueError` for factors that are not finite, for a negative spacing of frames, and for an end outside
        of 0 to 1.
        """
        given = zip(NEGATIVE_CONDITIONS, (negative_baseline, negative_frame_spacing, negative_end), strict=True)
        known = {name: self.config.get(f"default_{name}", 1.0) if value is None else value for name, value in given}
        check_number("negative_baseline", known["negative_baseline"])
        check_number("negative_frame_spacing", known["negative_frame_spacing"], least=0.0)
        if check_number("negative_end", known["negative_end"], least=0.0) > 1:
            raise ValueError(f"`negative_end` must be from 0 to 1, got {known['negative_end']}; 1 never ends.")
        self.negative_conditions = known

    def guided_conditions(
        self, conditions: dict[str, Any], movies: int, timestep: torch.Tensor | float
    ) -> dict[str, torch.Tensor]:
        """Those conditions that negative predictions are told otherwise: theirs and, after them, those of prompts."""
        unlike = self.negative_conditions
        end = 1 - unlike.get("negative_end", 1.0)
        if end > 0 and float(timestep) < end * self.scheduler.config.num_train_timesteps:
            return {}
        guided = {}
        for name, factor in (("view_baseline", "negative_baseline"), ("frame_spacing", "negative_frame_spacing")):
            if unlike.get(factor, 1.0) != 1:
                guided[name] = torch.full((2 * movies,), float(conditions.get(name, 1.0)))
                guided[name][:movies] *= unlike[factor]
        return guided

    def evaluate(
        self, timestep: torch.Tensor, prompt_embeds: torch.Tensor, sample: torch.Tensor, conditions: dict[str, Any]
    ) -> torch.Tensor:
        """One call of the UNet, with `sample` and `conditions` brought to its device; shape of `sample`."""
        device = self._execution_device
        there = {name: value.to(device) if torch.is_tensor(value) else value for name, value in conditions.items()}
        return self.unet(sample.to(device), timestep, encoder_hidden_states=prompt_embeds, **there).sample


def rescaled(guided: torch.Tensor, with_text: torch.Tensor, strength: float) -> torch.Tensor:
    """`guided` with the deviation of the unguided prediction, as far as `strength` says (0 to 1).

    "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891), equations 15 and 16.
    """
    axes = tuple(range(1, guided.ndim))
    deviations = with_text.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return strength * guided * deviations + (1 - strength) * guided
