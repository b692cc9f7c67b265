"""Deterministic configurations of diffusers' schedulers that StaleScheduler is measured against, and a run of any.

What a network would see is the timestep, so a denoiser is asked at the noise level of the timestep, also where a
scheduler has rounded it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import torch


TRAIN_TIMESTEPS = 1000
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROCESSES: dict[str, dict[str, Any]] = {
    "sd": STABLE_DIFFUSION | {"prediction_type": "epsilon"},
    "zsnr": STABLE_DIFFUSION | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "flow": {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0},
}
"""Stable Diffusion's forward process, the same with zero terminal signal, and rectified flow, as configurations."""

SPACINGS: tuple[dict[str, Any], ...] = (
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "linspace"},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
)
FEW_SPACINGS = (SPACINGS[0], *SPACINGS[3:5])

Make = Callable[[], Any]


def stock_configurations(process: str) -> Iterator[tuple[str, int, Make]]:
    """Name, network evaluations a step, and a function that makes the scheduler. Not all of them work everywhere."""
    base = PROCESSES[process]
    solvers: list[tuple[str, int, dict[str, Any], tuple[dict[str, Any], ...]]] = [
        ("DDIMScheduler", 1, {"clip_sample": False, "set_alpha_to_one": True}, SPACINGS[:3]),
        ("PNDMScheduler", 1, {"skip_prk_steps": True}, SPACINGS[:2]),
        ("EulerDiscreteScheduler", 1, {}, SPACINGS),
        ("LMSDiscreteScheduler", 1, {}, SPACINGS),
        ("HeunDiscreteScheduler", 2, {}, SPACINGS),
        ("KDPM2DiscreteScheduler", 2, {}, FEW_SPACINGS),
        ("DPMSolverMultistepScheduler", 1, {"solver_order": 2}, (*SPACINGS, {"use_lu_lambdas": True})),
        ("DPMSolverMultistepScheduler", 1, {"solver_order": 2, "solver_type": "heun"}, FEW_SPACINGS),
        ("DPMSolverMultistepScheduler", 1, {"solver_order": 2, "euler_at_final": True}, FEW_SPACINGS),
        ("DPMSolverMultistepScheduler", 1, {"solver_order": 3}, SPACINGS),
        ("DPMSolverSinglestepScheduler", 1, {"solver_order": 2}, FEW_SPACINGS),
        ("DPMSolverSinglestepScheduler", 1, {"solver_order": 3}, FEW_SPACINGS),
        ("DEISMultistepScheduler", 1, {"solver_order": 2}, SPACINGS),
        ("DEISMultistepScheduler", 1, {"solver_order": 3}, SPACINGS),
        ("UniPCMultistepScheduler", 1, {"solver_order": 2}, SPACINGS),
        ("UniPCMultistepScheduler", 1, {"solver_order": 3}, SPACINGS),
        ("UniPCMultistepScheduler", 1, {"solver_order": 2, "solver_type": "bh1"}, FEW_SPACINGS),
        ("SASolverScheduler", 1, {"tau_func": _no_noise}, SPACINGS),
    ]
    for class_name, evaluations, options, spacings in solvers:
        for spacing in spacings:
            chosen = {key: value for key, value in (options | spacing).items() if key != "tau_func"}
            label = ", ".join(f"{key}={value}" for key, value in chosen.items())
            make = _maker(getattr(diffusers, class_name), base | options | spacing)
            yield f"{class_name.removesuffix('Scheduler')}({label})", evaluations, make
    if process == "flow":
        yield "FlowMatchEuler", 1, diffusers.FlowMatchEulerDiscreteScheduler
        yield "FlowMatchHeun", 2, diffusers.FlowMatchHeunDiscreteScheduler


def _no_noise(time: float) -> float:
    return 0.0


def _maker(scheduler_class: type, options: dict[str, Any]) -> Make:
    if hasattr(scheduler_class, "_backends"):
        # What diffusers has in the place of a class whose libraries are missing.
        raise SystemExit(f"error: {scheduler_class.__name__} needs scipy; pip install 'diffusers-stale[dev]'.")
    accepted = {key: value for key, value in options.items() if key in scheduler_class._get_init_keys(scheduler_class)}
    lacks_flow = options["prediction_type"] == "flow_prediction" and "use_flow_sigmas" not in accepted
    lacks_zero = options.get("rescale_betas_zero_snr", False) and "rescale_betas_zero_snr" not in accepted
    if lacks_zero:
        # The process as betas: what a user would have to do.
        plain = diffusers.DDIMScheduler(**STABLE_DIFFUSION, rescale_betas_zero_snr=True)
        accepted |= {"trained_betas": plain.betas.tolist()}

    def make() -> Any:
        if lacks_flow:
            raise ValueError("does not know flow matching")
        return scheduler_class(**accepted)

    return make


def signal_levels(process: str) -> Callable[[float], tuple[float, float]]:
    """Noise level (alpha, sigma) of a timestep of the process, whole or not."""
    if process == "flow":
        return lambda time: (1.0 - time / TRAIN_TIMESTEPS, time / TRAIN_TIMESTEPS)
    zero = process == "zsnr"
    table = diffusers.DDIMScheduler(**STABLE_DIFFUSION, rescale_betas_zero_snr=zero).alphas_cumprod.double().numpy()
    angles = np.arccos(np.sqrt(table))

    def levels(time: float) -> tuple[float, float]:
        angle = float(np.interp(time, np.arange(len(angles)), angles))
        return float(np.cos(angle)), float(np.sin(angle))

    return levels


Denoiser = Callable[[torch.Tensor, float, float], torch.Tensor]


class CountingNetwork:
    """A perfect network of the process: predicts what schedulers expect, and counts how often it is asked."""

    def __init__(self, process: str, denoise: Denoiser):
        self.kind, self.denoise, self.levels = PROCESSES[process]["prediction_type"], denoise, signal_levels(process)
        self.calls = 0

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor | float) -> torch.Tensor:
        self.calls += 1
        alpha, sigma = self.levels(float(timestep))
        clean = self.denoise(sample, alpha, sigma)
        if self.kind == "flow_prediction":
            return (sample - clean) / sigma
        noise = (sample - alpha * clean) / sigma
        return noise if self.kind == "epsilon" else alpha * noise - sigma * clean


def run_scheduler(scheduler: Any, network: CountingNetwork, noise: torch.Tensor) -> torch.Tensor:
    """Samples from `noise` `(batch, ...)`; timesteps have been set."""
    sample = noise * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise.clone()
    scaled = hasattr(scheduler, "scale_model_input")
    for timestep in scheduler.timesteps:
        shown = scheduler.scale_model_input(sample, timestep) if scaled else sample
        sample = scheduler.step(network(shown, timestep), timestep, sample).prev_sample
    return sample


def set_steps(scheduler: Any, steps: int) -> None:
    """Sets timesteps as pipelines do: flow matching's are given as sigmas."""
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
    else:
        scheduler.set_timesteps(steps)
