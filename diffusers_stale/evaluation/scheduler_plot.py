"""A picture of a scheduler: where its steps are, how much entropy each gains, and how old results count."""

import json
from pathlib import Path

import numpy as np
from diffusers.schedulers import AysSchedules

from diffusers_stale.entropic_steps import entropic_clock
from diffusers_stale.scheduling_stale import StaleScheduler


CONFIG_NAME = "scheduler_config.json"

ALIGN_YOUR_STEPS = tuple(AysSchedules["StableDiffusionSigmas"][:-1])
"""Noise-to-signal ratios of ten steps for Stable Diffusion 1.5 (Sabour et al. 2024, arXiv 2404.14507); for other
numbers of steps their logarithms are interpolated, as its authors advise."""

KARRAS_RHO = 7.0
LARGEST_RATIO = 80.0
"""Infinite ratios are drawn here."""


def load_scheduler(path: Path) -> StaleScheduler:
    """The scheduler of a `scheduler_config.json`, of ours or of diffusers; `path` may be its folder, or a pipeline's.

    Raises `ValueError` where there is none.
    """
    places = [path, path / CONFIG_NAME, path / "scheduler" / CONFIG_NAME]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(f"CONFIG must be a {CONFIG_NAME} or a folder that holds one, got {path}; name another.")
    try:
        config = json.loads(found.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{found} must be JSON, and is not ({error}); name another.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{found} must hold a JSON object, got {type(config).__name__}; name another.")
    return StaleScheduler.from_config(config)


def set_steps(scheduler: StaleScheduler, steps: int) -> None:
    """Of flows that are shifted by the size of a picture: those of the largest one."""
    scheduler.set_timesteps(steps, mu=scheduler.config.max_shift if scheduler.config.use_dynamic_shifting else None)


def noise_levels_of(scheduler: StaleScheduler, steps: int) -> dict[str, np.ndarray]:
    """Descending noise-to-signal ratios `(steps,)` of the scheduler, infinite at pure noise, and those of others."""
    set_steps(scheduler, steps)
    process = scheduler.process
    alphas, sigmas = process.levels(scheduler.timesteps.double().numpy())
    highest = min(np.tan(process.start), LARGEST_RATIO)
    lowest = max(np.tan(process.end), 0.02)
    ramp = np.linspace(0.0, 1.0, steps)
    roots = highest ** (1 / KARRAS_RHO) + ramp * (lowest ** (1 / KARRAS_RHO) - highest ** (1 / KARRAS_RHO))
    uniform = process.levels(np.linspace(process.highest, process.lowest, steps + 1)[:-1])
    with np.errstate(divide="ignore"):
        return {
            "StaleScheduler": sigmas / alphas,
            "Karras": roots**KARRAS_RHO,
            "uniform": uniform[1] / uniform[0],
            "Align Your Steps": np.exp(
                np.interp(ramp, np.linspace(0, 1, len(ALIGN_YOUR_STEPS)), np.log(ALIGN_YOUR_STEPS))
            ),
        }


def weights_of(scheduler: StaleScheduler, steps: int) -> np.ndarray:
    """Weights of clean predictions at each step, the newest first: `(steps, most)`, NaN where there is none."""
    set_steps(scheduler, steps)
    rows, _ = scheduler.weights_in_force()
    weights = np.full((steps, max(len(row) for row in rows)), np.nan)
    for index, row in enumerate(rows):
        weights[index, : len(row)] = row
    return weights


def plot_scheduler(scheduler: StaleScheduler, path: Path, steps: int = 10) -> None:
    """Writes the picture to `path`: noise levels, entropy per step, weights.

    Raises `ValueError` for a number of steps that the scheduler does not take, and for a file that is no .png.
    """
    if path.suffix != ".png":
        raise ValueError(f"The picture must be a .png file, got {path}; name another.")
    levels = noise_levels_of(scheduler, steps)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "Plots need matplotlib, which is not here; install it with pip install 'diffusers-stale[plot]'."
        ) from error

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    ratios, entropy, weights = figure.subplots(1, 3)
    numbers = np.arange(1, steps + 1)
    for name, values in levels.items():
        style = {"linewidth": 2.5} if name == "StaleScheduler" else {"linewidth": 1.2, "linestyle": "--"}
        shown = np.minimum(values, LARGEST_RATIO)
        ratios.semilogy(numbers, shown, marker="o", markersize=3, label=name, **style)
        angles = np.append(np.arctan(values), 0.0)
        entropy.plot(
            numbers, np.diff(entropic_clock(angles, scheduler.clock_shift)), marker="o", markersize=3, **style
        )
    ratios.set(title="noise levels", xlabel="step", ylabel="noise-to-signal ratio")
    ratios.legend()
    entropy.set(title="entropy gained, of the prior that knows no scale", xlabel="step", ylim=(0, None))
    table = weights_of(scheduler, steps)
    limit = float(np.nanmax(np.abs(table)))
    picture = weights.imshow(
        table.T,
        cmap="RdBu",
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        extent=(0.5, steps + 0.5, table.shape[1] - 0.5, -0.5),
    )
    weights.set(title="weights of clean predictions", xlabel="step", ylabel="age in steps")
    for axis in (ratios.xaxis, entropy.xaxis, weights.xaxis, weights.yaxis):
        axis.get_major_locator().set_params(integer=True)
    figure.colorbar(picture, ax=weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
