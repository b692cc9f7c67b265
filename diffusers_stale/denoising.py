"""The denoising loop of the pipeline: from noise to clean latents, with guidance, callbacks and interruption."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline

from diffusers_stale.calibration import sample_weights_of
from diffusers_stale.pipeline_checks import check_finite
from diffusers_stale.pipeline_output import Generators
from diffusers_stale.scheduling_stale import StaleScheduler


Callback = Callable[[DiffusionPipeline, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


class DenoisingMixin:
    """What `StaleDiffusionPipeline` does at its timesteps."""

    _clean_latents: torch.Tensor | None = None

    @property
    def clean_latents(self) -> torch.Tensor | None:
        """For live previews from a callback: the result as the newest step predicts it, of the shape of latents.

        The noisy latents themselves with schedulers that do not tell; None outside a run.
        """
        return self._clean_latents

    def check_calibration(self) -> None:
        """Has a calibrated scheduler leave its calibration aside, with a warning, where it is for something else."""
        if isinstance(self.scheduler, StaleScheduler) and self.scheduler.calibration is not None:
            guidance = self.guidance_scale if self.do_classifier_free_guidance else 1.0
            self.scheduler.check_calibration(guidance, sample_weights_of(self.unet))

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
                prediction = self.predict(latents, timestep, prompt_embeds, conditions, guidance_rescale)
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
    ) -> torch.Tensor:
        """What the UNet says of `latents`, guided; of their shape."""
        inputs = latents
        if self.do_classifier_free_guidance:
            inputs = torch.cat([latents] * 2)
            # Numbers are for all movies, tensors hold something of each.
            conditions = {
                name: torch.cat([value] * 2) if isinstance(value, torch.Tensor) else value
                for name, value in conditions.items()
            }
        inputs = self.scheduler.scale_model_input(inputs, timestep)
        if "inpainting" in conditions:
            conditions = dict(conditions)
            inputs = torch.cat([inputs, conditions.pop("inpainting")], dim=1)
        if "added_cond_kwargs" in conditions:
            # The last ones are those of prompts: all that is needed once a callback has switched guidance off.
            added = {name: value[-len(inputs) :] for name, value in conditions["added_cond_kwargs"].items()}
            conditions = conditions | {"added_cond_kwargs": added}
        prediction = self.unet(inputs, timestep, encoder_hidden_states=prompt_embeds, **conditions).sample
        if not self.do_classifier_free_guidance:
            return prediction
        without, with_text = prediction.chunk(2)
        guided = without + self.guidance_scale * (with_text - without)
        return rescaled(guided, with_text, guidance_rescale) if guidance_rescale else guided


def rescaled(guided: torch.Tensor, with_text: torch.Tensor, strength: float) -> torch.Tensor:
    """`guided` with the deviation of the unguided prediction, as far as `strength` says (0 to 1).

    "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891), equations 15 and 16.
    """
    axes = tuple(range(1, guided.ndim))
    deviations = with_text.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return strength * guided * deviations + (1 - strength) * guided
