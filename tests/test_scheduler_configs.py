"""Configurations of `StaleScheduler`: those of published checkpoints, those it refuses, and the way back."""

import json
import math

import diffusers
import numpy as np
import pytest
import torch

from diffusers_stale.scheduling_stale import StaleScheduler


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "trained_betas": None}
OLD = BETAS | {"num_train_timesteps": 1000, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
PUBLISHED = {
    "Stable Diffusion 1.5": OLD | {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "Stable Diffusion 2.1": OLD
    | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "skip_prk_steps": True},
    "Stable Diffusion XL": OLD
    | {
        "_class_name": "EulerDiscreteScheduler",
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
    "PixArt": {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "lambda_min_clipped": -math.inf,
        "prediction_type": "epsilon",
        "solver_order": 2,
        "timestep_spacing": "linspace",
        "variance_type": None,
    },
}
"""By betas, as they stand on the Hub."""

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
SIZES = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
PUBLISHED_FLOWS = {
    "Stable Diffusion 3": FLOW | {"shift": 3.0},
    "Flux, dev": FLOW | SIZES | {"shift": 3.0, "use_dynamic_shifting": True},
    "Flux, schnell": FLOW | SIZES | {"shift": 1.0, "use_dynamic_shifting": False},
    "LTX": FLOW
    | SIZES
    | {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "invert_sigmas": False, "shift": 1.0}
    | {"shift_terminal": 0.1, "use_dynamic_shifting": True, "use_karras_sigmas": False, "use_beta_sigmas": False},
}


def stock_of(config: dict) -> diffusers.SchedulerMixin:
    return getattr(diffusers, config["_class_name"]).from_config(dict(config))


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_noise_schedules_are_those_of_their_own_schedulers(name):
    config = PUBLISHED[name]
    ours, stock = StaleScheduler.from_config(dict(config)), stock_of(config)
    assert torch.allclose(ours.alphas_cumprod, stock.alphas_cumprod, rtol=1e-4)
    assert ours.config.prediction_type == stock.config.prediction_type
    assert not ours.config.clip_sample
    ours.set_timesteps(10)
    assert 999 >= ours.timesteps[0] > 900


@pytest.mark.parametrize("name", list(PUBLISHED_FLOWS))
def test_published_flows_are_shifted_as_by_their_own_schedulers(name):
    config = PUBLISHED_FLOWS[name]
    ours, stock = StaleScheduler.from_config(dict(config)), stock_of(config)
    options = {"sigmas": np.linspace(1.0, 0.125, 8), "mu": 0.9 if config.get("use_dynamic_shifting") else None}
    for scheduler in (ours, stock):
        scheduler.set_timesteps(**options)
    assert torch.allclose(ours.sigmas, stock.sigmas, atol=1e-5)
    assert torch.allclose(ours.timesteps, stock.timesteps, atol=1e-2)


def test_a_linear_dynamic_shift_is_that_of_flow_matching():
    config = PUBLISHED_FLOWS["Flux, dev"] | {"time_shift_type": "linear"}
    schedulers = StaleScheduler.from_config(dict(config)), stock_of(config)
    for scheduler in schedulers:
        scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.2], mu=1.7)
    assert torch.allclose(*(each.sigmas for each in schedulers), atol=1e-6)


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "PNDM", "EulerDiscrete"])
def test_what_a_configuration_leaves_unsaid_is_what_its_scheduler_does(name):
    stock = getattr(diffusers, f"{name}Scheduler")()
    ours = StaleScheduler.from_config({"_class_name": f"{name}Scheduler"})
    assert ours.config.clip_sample == stock.config.get("clip_sample", False)
    assert ours.config.prediction_type == "epsilon"
    assert torch.allclose(ours.alphas_cumprod, stock.alphas_cumprod, rtol=1e-4)


def test_wan_and_video_diffusion_say_it_in_their_own_words():
    wan = {"_class_name": "UniPCMultistepScheduler", "beta_schedule": "linear", "prediction_type": "flow_prediction"}
    ours = StaleScheduler.from_config(wan | {"use_flow_sigmas": True, "flow_shift": 5.0, "solver_type": "bh2"})
    assert ours.is_flow
    ours.set_timesteps(sigmas=[1.0, 0.5])
    assert ours.sigmas.tolist() == pytest.approx([1.0, 2.5 / 3.0, 0.0])
    video = OLD | {"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction", "sigma_max": 700.0}
    video |= {"sigma_min": 0.002, "timestep_type": "continuous", "use_karras_sigmas": True}
    ours, stock = StaleScheduler.from_config(dict(video)), stock_of(video)
    for scheduler in (ours, stock):
        scheduler.set_timesteps(9)
    ours.set_timesteps(sigmas=stock.sigmas.tolist())
    assert torch.allclose(ours.timesteps, stock.timesteps.float(), atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        FLOW | {"invert_sigmas": True},
        {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "prediction_type": "epsilon"},
        dict(diffusers.EDMDPMSolverMultistepScheduler().config),
        dict(diffusers.CogVideoXDDIMScheduler().config),
        {"_class_name": "DDPMWuerstchenScheduler", "scaler": 1.0, "s": 0.008},
        dict(diffusers.CMStochasticIterativeScheduler().config),
        dict(diffusers.IPNDMScheduler().config),
        {"_class_name": "UNet2DConditionModel", "sample_size": 64},
        {},
    ],
)
def test_what_would_lose_its_meaning_is_not_taken_over(config):
    """Noise levels of another kind would be sampled as if they were Stable Diffusion's."""
    with pytest.raises(ValueError, match="must speak of noise levels"):
        StaleScheduler.from_config(config)


@pytest.mark.parametrize("name", ["PNDM", "DDIM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
@pytest.mark.parametrize("saved", [True, False])
def test_other_schedulers_take_over_again(name, saved, tmp_path):
    """They know no entropic steps, and keep all else."""
    scheduler = StaleScheduler()
    if saved:
        scheduler.save_pretrained(tmp_path)
        scheduler = StaleScheduler.from_pretrained(tmp_path)
    other = getattr(diffusers, f"{name}Scheduler").from_config(scheduler.config)
    other.set_timesteps(5)
    assert other.config.prediction_type == "v_prediction"
    assert other.config.beta_schedule == "scaled_linear"
    assert other.config.beta_end == scheduler.config.beta_end
    assert StaleScheduler.from_config(scheduler.config).config.timestep_spacing == "entropic"
    spaced = StaleScheduler(timestep_spacing="trailing")
    assert diffusers.DDIMScheduler.from_config(spaced.config).config.timestep_spacing == "trailing"


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "num_train_timesteps": (0, 1, -5, 2.5, None),
        "sigma_min": (0.0, -1.0),
        "sigma_max": (math.inf, "700"),
        "flow_shift": (0.0, -1.0, math.nan, math.inf, "3"),
        "shift_terminal": (1.0, -0.5),
        "dynamic_thresholding_ratio": (2.0,),
        "sample_max_value": (0.0,),
        "clip_sample_range": (-1.0,),
        "steps_offset": (-1, 0.5),
        "max_stale": (-1, 1.5, "2"),
        "guidance_scale": (math.nan, math.inf, "7", None),
        "trained_betas": ([],),
    }.items(),
)
def test_numbers_out_of_range_are_refused_by_name(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"`{name}`"):
            StaleScheduler(**{name: value})


def test_ends_that_are_exchanged_are_refused():
    with pytest.raises(ValueError, match="`sigma_min` must be less"):
        StaleScheduler(timestep_type="continuous", sigma_min=10.0, sigma_max=1.0)


def test_configurations_are_plain_json(tmp_path):
    scheduler = StaleScheduler.from_config(dict(PUBLISHED_FLOWS["LTX"]))
    scheduler.save_pretrained(tmp_path)
    found = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert found["timestep_spacing"] == "entropic"
    assert found["shift_terminal"] == 0.1
    assert not any(name.startswith("_use") for name in found)


@pytest.mark.parametrize(
    "clock", [[1.0, 0.0], "fast", {"angles": [1.0, 0.0]}, {"angles": [1.0, "x"], "times": [0.0, 1.0]}, {"angles": 1.0}]
)
def test_clocks_that_are_none_are_refused(clock):
    with pytest.raises(ValueError, match="`clock` must .* got .* calibrate again, or pass None"):
        StaleScheduler(clock=clock)
