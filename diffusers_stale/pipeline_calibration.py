"""Calibration of a pipeline's scheduler: prompts, guidance and grid of the runs that it is to serve."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusers_stale.calibration import cost
from diffusers_stale.calibration_record import Calibration, sample_weights_of
from diffusers_stale.pipeline_stale import StaleDiffusionPipeline
from diffusers_stale.scheduling_stale import StaleScheduler


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """What to calibrate for: numbers of steps, guidance, grid, and how much to spend (see `StaleScheduler.calibrate`).

    `height` and `width` in pixels; None: what the checkpoint was trained for.
    """

    num_inference_steps: tuple[int, ...] = (5, 8, 10, 12, 15, 20)
    guidance_scale: float = 3.0
    view_rows: int = 1
    view_cols: int = 1
    num_frames: int = 1
    height: int | None = None
    width: int | None = None
    noises: int = 32
    held_out: int = 16
    teacher_steps: int = 128
    batch_size: int = 16
    seed: int = 0

    @property
    def evaluations(self) -> int:
        """Of the network, a sample each; with guidance each of them is two."""
        return cost(self.num_inference_steps, self.noises, self.held_out, self.teacher_steps)


@torch.no_grad()
def calibrate_pipeline(
    pipeline: StaleDiffusionPipeline, prompts: Sequence[str], settings: CalibrationSettings, progress_bar: bool = True
) -> Calibration:
    """Calibrates the scheduler of `pipeline` on `prompts`, which noises take in turn.

    Raises `ValueError` for a scheduler that is no `StaleScheduler`, for no prompts, and as `calibrate` does.
    """
    scheduler = pipeline.scheduler
    if not isinstance(scheduler, StaleScheduler):
        raise ValueError(
            f"The scheduler must be a StaleScheduler, got {type(scheduler).__name__}; set "
            "pipe.scheduler = StaleScheduler.from_config(pipe.scheduler.config)."
        )
    if not prompts:
        raise ValueError("`prompts` must hold at least one sentence, got none; write what users will ask for.")
    height, width = pipeline.default_size(settings.height, settings.width)
    grid = (settings.view_rows, settings.view_cols, settings.num_frames)
    factor = pipeline.vae_scale_factor
    shape = (pipeline.vae.config.latent_channels, *grid, height // factor, width // factor)
    device = pipeline._execution_device
    pipeline._guidance_scale = settings.guidance_scale
    pipeline.be_unlike()
    count = settings.noises + settings.held_out
    told = [prompts[index % len(prompts)] for index in range(count)]
    embeddings, negative = pipeline.encode_prompt(told, device, 1, pipeline.do_classifier_free_guidance)

    def model(sample: torch.Tensor, timestep: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        both = texts if negative is None else torch.cat([negative[:1].expand_as(texts), texts])
        return pipeline.predict(sample.to(pipeline.unet.dtype), timestep, both, {}, 0.0)

    provenance = {
        "guidance_scale": pipeline.guidance_in_force,
        "negative_conditions": pipeline.negative_conditions,
        "prompts": list(dict.fromkeys(told)),
        "grid": list(grid),
        "seed": settings.seed,
        "weights_sha256": hash_of_weights(pipeline.unet),
        "weights": sample_weights_of(pipeline.unet),
    }
    return scheduler.calibrate(
        model,
        shape,
        settings.num_inference_steps,
        torch.Generator("cpu").manual_seed(settings.seed),
        progress_bar,
        settings.noises,
        settings.held_out,
        settings.teacher_steps,
        settings.batch_size,
        device,
        embeddings,
        provenance,
    )


def hash_of_weights(network: torch.nn.Module) -> str:
    """SHA-256 of all parameters in float16, in the order of their names: the same for every dtype above it."""
    digest = hashlib.sha256()
    for name, parameter in sorted(network.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
