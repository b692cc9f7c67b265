"""Beyond video: StaleScheduler on time series, height maps and a physics field, each trained on the spot.

    python scripts/other_domains.py [series|heights|field|all] [--output FOLDER] [--seconds N]

For each domain a small network is trained for N seconds on data made here. It then samples the same noises with
StaleScheduler, without and with a calibration, and with schedulers of diffusers. Error: root mean square distance of
the endpoints from those of a fine Runge-Kutta reference, relative to the data's standard deviation. The Markdown
tables also hold statistics that people of the domain would look at; with --output, pictures go to FOLDER/DOMAIN.png.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch.nn import functional

from diffusers_stale.scheduling_stale import StaleScheduler


STEPS = (5, 10, 20)
POOL, REAL_SAMPLES = 8192, 1024
"""Samples that are made to train on, and to tell what is real."""
CALIBRATED = "StaleScheduler, calibrated"
REFERENCE_STEPS = 50
"""Of the Runge-Kutta reference, with four network evaluations each."""

SERIES_ASSETS, SERIES_DAYS = 3, 64
DAILY_DEVIATION, VOLATILITY_SPREAD, VOLATILITY_MEMORY, ASSET_CORRELATION = 0.012, 0.9, 0.95, 0.6
HEIGHT_SIZE, HEIGHT_EXPONENT = 32, 3.0
FIELD_SIZE, FIELD_FRAMES, FIELD_VELOCITY, FIELD_DIFFUSIVITY = 24, 3, (0.15, 0.08), 0.002


def market_series(count: int, seed: int) -> torch.Tensor:
    """Daily log returns `(count, assets, days)` of correlated assets. Their common log variance is an autoregression
    of deviation `VOLATILITY_SPREAD`: wild days come in clusters, and the kurtosis is 3 exp(spread^2)."""
    random = np.random.default_rng(seed)
    steps = random.standard_normal((count, SERIES_DAYS)) * VOLATILITY_SPREAD
    fresh = math.sqrt(1.0 - VOLATILITY_MEMORY**2)
    log_variance = steps.copy()
    for day in range(1, SERIES_DAYS):
        log_variance[:, day] = VOLATILITY_MEMORY * log_variance[:, day - 1] + fresh * steps[:, day]
    correlation = ASSET_CORRELATION + (1.0 - ASSET_CORRELATION) * np.eye(SERIES_ASSETS)
    shocks = np.linalg.cholesky(correlation) @ random.standard_normal((count, SERIES_ASSETS, SERIES_DAYS))
    scale = DAILY_DEVIATION * np.exp(0.5 * log_variance - 0.25 * VOLATILITY_SPREAD**2)
    return torch.from_numpy(scale[:, None] * shocks).float()


def height_maps(count: int, seed: int, ridges: float = 0.5) -> torch.Tensor:
    """Terrain `(count, 1, 32, 32)`, in no unit: Gaussian noise of power |k|^-3 and, for the share `ridges` of it,
    folded noise, whose zero lines become crests. Periodic."""
    random = np.random.default_rng(seed)
    waves = np.hypot(np.fft.fftfreq(HEIGHT_SIZE)[:, None], np.fft.rfftfreq(HEIGHT_SIZE)[None]) * HEIGHT_SIZE
    amplitude = np.where(waves > 0, np.maximum(waves, 1.0) ** (-HEIGHT_EXPONENT / 2), 0.0)
    white = random.standard_normal((2, count, HEIGHT_SIZE, HEIGHT_SIZE))
    smooth = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=(HEIGHT_SIZE, HEIGHT_SIZE))
    hills, folded = smooth / smooth.std()
    crests = math.sqrt(2.0 / math.pi) - np.abs(folded)
    return torch.from_numpy((1.0 - ridges) * hills + 2.0 * ridges * crests).float()[:, None]


def tracer_fields(count: int, seed: int) -> torch.Tensor:
    """Concentration `(count, 3, 24, 24)` of a tracer on the periodic unit square at times 0, 1 and 2. One to three
    Gaussian puffs are blown away and spread: du/dt = D laplace(u) - v grad(u), solved exactly, wave by wave."""
    random, (rows, columns) = np.random.default_rng(seed), _field_waves()
    puffs = random.integers(1, 4, (count, 1, 1))
    spectrum = np.zeros((count, FIELD_SIZE, FIELD_SIZE // 2 + 1), dtype=np.complex128)
    for puff in range(3):
        row, column = random.uniform(0.0, 1.0, (2, count, 1, 1))
        height, width = random.uniform(0.5, 1.5, puffs.shape), random.uniform(0.07, 0.12, puffs.shape)
        mass = (puff < puffs) * height * 2.0 * np.pi * (width * FIELD_SIZE) ** 2
        spread = np.exp(-2.0 * (np.pi * width) ** 2 * (rows**2 + columns**2))
        spectrum += mass * spread * np.exp(-2j * np.pi * (rows * row + columns * column))
    frames = [torch.from_numpy(np.fft.irfft2(spectrum, s=(FIELD_SIZE, FIELD_SIZE)))]
    while len(frames) < FIELD_FRAMES:
        frames.append(transported(frames[-1]))
    return torch.stack(frames, dim=1).float()


def transported(field: torch.Tensor) -> torch.Tensor:
    """The tracer `(..., 24, 24)` one unit of time later."""
    rows, columns = _field_waves()
    rate = 4.0 * np.pi**2 * FIELD_DIFFUSIVITY * (rows**2 + columns**2)
    phase = 2.0 * np.pi * (FIELD_VELOCITY[0] * rows + FIELD_VELOCITY[1] * columns)
    after = np.fft.rfft2(field.double().numpy()) * np.exp(-rate - 1j * phase)
    return torch.from_numpy(np.fft.irfft2(after, s=field.shape[-2:]))


def _field_waves() -> tuple[np.ndarray, np.ndarray]:
    return np.fft.fftfreq(FIELD_SIZE)[:, None] * FIELD_SIZE, np.fft.rfftfreq(FIELD_SIZE)[None] * FIELD_SIZE


def kurtosis(returns: torch.Tensor) -> float:
    """Fourth moment over squared second moment of returns `(count, assets, days)`; 3 for Gaussian ones."""
    return float(returns.double().pow(4).mean() / returns.double().square().mean().square())


def volatility_memory(returns: torch.Tensor) -> float:
    """Autocorrelation of absolute returns `(count, assets, days)`, mean of lags 1 to 5; 0 where nothing clusters."""
    size = returns.double().abs() - returns.double().abs().mean()
    lags = [(size[..., lag:] * size[..., :-lag]).mean() for lag in range(1, 6)]
    return float(torch.stack(lags).mean() / size.square().mean())


def spectral_slope(maps: torch.Tensor) -> float:
    """Slope of log power over log wave number of maps `(count, 1, size, size)`, between 2 and 12 waves a side."""
    size = maps.shape[-1]
    power = np.abs(np.fft.fft2(maps[:, 0].double().numpy())) ** 2
    waves, numbers = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))) * size, np.arange(2, 13)
    rings = [power[:, np.abs(waves - number) < 0.5].mean() for number in numbers]
    return float(np.polyfit(np.log(numbers), np.log(rings), 1)[0])


def transport_residual(fields: torch.Tensor) -> float:
    """How far frames 1 and 2 of fields `(count, 3, size, size)` are from what the equation makes of frames 0 and 1;
    root mean square, relative to the frames' deviation. 0 for solutions."""
    later = fields[:, 1:].double()
    return float((later - transported(fields[:, :-1])).square().mean().sqrt() / later.std())


class SeriesNetwork(torch.nn.Module):
    """A residual convolution network over days, dilated so that it sees all of them."""

    def __init__(self, channels: int = 32, dilations: Sequence[int] = (1, 2, 4, 8, 16)):
        super().__init__()
        self.embed = diffusers.models.embeddings.Timesteps(channels, True, 0)
        self.enter = torch.nn.Conv1d(SERIES_ASSETS, channels, 3, padding=1)
        mixes = [torch.nn.Conv1d(channels, channels, 3, padding=width, dilation=width) for width in dilations]
        self.mixes = torch.nn.ModuleList(mixes)
        self.norms = torch.nn.ModuleList(torch.nn.GroupNorm(4, channels) for _ in mixes)
        self.times = torch.nn.ModuleList(torch.nn.Linear(channels, 2 * channels) for _ in mixes)
        self.leave = torch.nn.Conv1d(channels, SERIES_ASSETS, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """`sample` `(batch, assets, days)`, `timestep` `()` or `(batch,)`."""
        embedded = self.embed(timestep.float().reshape(-1).expand(len(sample)))
        hidden = self.enter(sample)
        for norm, time_layer, mix in zip(self.norms, self.times, self.mixes, strict=True):
            scale, shift = time_layer(embedded)[..., None].chunk(2, dim=1)
            hidden = hidden + mix(functional.silu(norm(hidden) * (1.0 + scale) + shift))
        return self.leave(functional.silu(hidden))


class PictureNetwork(torch.nn.Module):
    """A small `UNet2DModel` that sees blocks of 2x2 pixels as channels, which is four times as fast, beside the best
    guess for white data of deviation `detail`: it need not learn to copy noise. All schedulers see the same."""

    def __init__(self, prediction_type: str, channels: int, size: int, detail: float):
        super().__init__()
        self.detail, widths = detail, (24, 48, 48)
        self.scheduler = StaleScheduler(prediction_type=prediction_type)
        down, up = (("DownBlock2D",) * len(widths), ("UpBlock2D",) * len(widths))
        self.unet = diffusers.UNet2DModel(
            size // 2, 4 * channels, 4 * channels, down_block_types=down, up_block_types=up, layers_per_block=1,
            block_out_channels=widths, norm_num_groups=8, add_attention=False,
        )  # fmt: skip

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """`sample` `(batch, channels, size, size)`, `timestep` `()` or `(batch,)`."""
        alpha, sigma = (level.reshape(-1, 1, 1, 1) for level in self.scheduler.noise_levels(timestep))
        signal = alpha * self.detail**2
        guess = sigma - signal if self.scheduler.is_flow else alpha * sigma - sigma * signal
        seen = self.unet(functional.pixel_unshuffle(sample, 2), timestep).sample
        return functional.pixel_shuffle(seen, 2) + guess / (alpha * signal + sigma**2) * sample


@dataclass(frozen=True)
class Domain:
    """A kind of data. `generate`: (count, seed) -> data in its own units; `samples`: compared on so many noises."""

    title: str
    prediction_type: str
    generate: Callable[[int, int], torch.Tensor]
    build: Callable[[], torch.nn.Module]
    statistics: dict[str, Callable[[torch.Tensor], float]]
    samples: int
    batch_size: int
    learning_rate: float


DOMAINS = {
    "series": Domain(
        "Returns of three assets, 64 days", "v_prediction", market_series, SeriesNetwork,
        {"kurtosis": kurtosis, "autocorrelation": volatility_memory}, 256, 32, 3e-3,
    ),
    "heights": Domain(
        "Height maps, 32x32", "v_prediction", height_maps,
        lambda: PictureNetwork("v_prediction", 1, HEIGHT_SIZE, 0.25), {"spectral slope": spectral_slope}, 32, 16, 4e-3,
    ),
    "field": Domain(
        "Tracer in a wind, three times, 24x24", "flow_prediction", tracer_fields,
        lambda: PictureNetwork("flow_prediction", FIELD_FRAMES, FIELD_SIZE, 0.1),
        {"residual": transport_residual}, 32, 16, 4e-3,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A network, the scale of its data in the domain's units, and the loss of each update."""

    network: torch.nn.Module
    mean: float
    deviation: float
    losses: list[float]

    def in_units(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples of the network, of any shape, in the domain's units."""
        return samples * self.deviation + self.mean


def train(domain: Domain, seconds: float, most_updates: int | None = None, seed: int = 0, pool: int = POOL) -> Trained:
    """Trains until `seconds` of processor time or `most_updates` are over, while the learning rate falls."""
    if not seconds > 0:
        raise ValueError(f"`seconds` must be greater than 0, got {seconds}; 40 are enough for each domain.")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data = domain.generate(pool, seed)
    mean, deviation = float(data.mean()), float(data.std())
    scheduler = StaleScheduler(prediction_type=domain.prediction_type)
    network, losses = domain.build().train(), []
    optimizer = torch.optim.AdamW(network.parameters(), lr=domain.learning_rate)
    begin = time.process_time()
    while True:
        done = max((time.process_time() - begin) / seconds, len(losses) / (most_updates or math.inf))
        if done >= 1.0:
            return Trained(network.eval().requires_grad_(False), mean, deviation, losses)
        for group in optimizer.param_groups:
            group["lr"] = domain.learning_rate * (1.0 - done) * min(1.0, (len(losses) + 1) / 20)
        clean = (data[torch.randint(pool, (domain.batch_size,), generator=generator)] - mean) / deviation
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = scheduler.sample_training_timesteps(len(clean), generator, density="entropic")
        predicted = network(scheduler.add_noise(clean, noise, timesteps), timesteps)
        missed = (predicted - scheduler.training_target(clean, noise, timesteps)).square().flatten(1).mean(dim=1)
        loss = (scheduler.loss_weights(timesteps) * missed).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))


def stock_schedulers(prediction_type: str) -> dict[str, Any]:
    """Schedulers of diffusers that know the process, with trailing timesteps."""
    if prediction_type == "flow_prediction":
        options = {"prediction_type": prediction_type, "use_flow_sigmas": True, "flow_shift": 1.0}
        first = {"FlowMatchEuler": diffusers.FlowMatchEulerDiscreteScheduler()}
    else:
        options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        options |= {"prediction_type": prediction_type, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        first = {"DDIM": diffusers.DDIMScheduler(**options, clip_sample=False)}
    return first | {
        "DPM-Solver++ 2M": diffusers.DPMSolverMultistepScheduler(**options, solver_order=2),
        "UniPC, order 2": diffusers.UniPCMultistepScheduler(**options, solver_order=2),
    }


@torch.no_grad()
def run(scheduler: Any, network: torch.nn.Module, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Endpoints of `noise` `(count, ...)` after `steps` network evaluations."""
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
    else:
        scheduler.set_timesteps(steps)
    sample = noise
    for timestep in scheduler.timesteps:
        sample = scheduler.step(network(sample, timestep), timestep, sample).prev_sample
    return sample


@torch.no_grad()
def reference(scheduler: StaleScheduler, network: torch.nn.Module, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Endpoints of `noise` by the classical Runge-Kutta method of order 4, which none of the schedulers is: a v
    prediction is the derivative of the sample by the angle of its noise level, a flow prediction that by flow time.
    The last, tiny noise is taken off by one clean prediction, as schedulers do."""
    total, process = scheduler.config.num_train_timesteps, scheduler.process
    ends = (1.0, 1.0 / total) if scheduler.is_flow else (process.start, process.end)

    def timestep(place: float) -> torch.Tensor:
        return torch.tensor(float(place * total if scheduler.is_flow else process.timesteps(np.array([place]))[0]))

    sample, places = noise, np.linspace(*ends, steps + 1)
    width = float(places[1] - places[0])
    for here, there in zip(places[:-1], places[1:], strict=True):
        first = network(sample, timestep(here))
        second = network(sample + width / 2 * first, timestep((here + there) / 2))
        third = network(sample + width / 2 * second, timestep((here + there) / 2))
        fourth = network(sample + width * third, timestep(there))
        sample = sample + width / 6 * (first + 2 * second + 2 * third + fourth)
    last = timestep(places[-1])
    alpha, sigma = (float(level) for level in scheduler.noise_levels(last))
    return scheduler.clean_prediction(network(sample, last), sample, alpha, sigma)


@dataclass(frozen=True)
class Comparison:
    """`figures` of each scheduler: `error` and statistics, a number for each of `steps` (one for real data and the
    reference). `samples`: of the calibrated scheduler at the middle number of steps, `(count, ...)`, in the domain's
    units. `calibration_seconds`: of processor time."""

    steps: list[int]
    figures: dict[str, dict[str, list[float]]]
    samples: torch.Tensor
    calibration_seconds: float


def compare(
    domain: Domain, trained: Trained, steps: Sequence[int] = STEPS, samples: int | None = None, seed: int = 1,
    reference_steps: int = REFERENCE_STEPS, **calibration: Any,
) -> Comparison:  # fmt: skip
    """Samples the same noises with all schedulers. `calibration`: further arguments of `StaleScheduler.calibrate`."""
    network, steps = trained.network, sorted(steps)
    generator = torch.Generator().manual_seed(seed)
    real = domain.generate(REAL_SAMPLES, seed + 1_000_000)
    noise = torch.randn(samples or domain.samples, *real.shape[1:], generator=generator)
    plain, calibrated = (StaleScheduler(prediction_type=domain.prediction_type) for _ in range(2))
    options = {"noises": 16, "held_out": 8, "batch_size": 64, "progress_bar": False} | calibration
    begin = time.process_time()
    calibrated.calibrate(network, real.shape[1:], num_inference_steps=steps, generator=generator, **options)
    spent = time.process_time() - begin
    exact = reference(plain, network, noise, reference_steps)

    def statistics(batches: Sequence[torch.Tensor]) -> dict[str, list[float]]:
        return {key: [statistic(batch) for batch in batches] for key, statistic in domain.statistics.items()}

    shown = trained.in_units(exact)
    figures = {"real data": statistics([real]), "reference": statistics([shown])}
    schedulers = {"StaleScheduler": plain, CALIBRATED: calibrated} | stock_schedulers(domain.prediction_type)
    for name, scheduler in schedulers.items():
        ends = [run(scheduler, network, noise, count) for count in steps]
        # (the network's data has a standard deviation of 1)
        errors = [float((end - exact).square().mean().sqrt()) for end in ends]
        figures[name] = {"error": errors} | statistics([trained.in_units(end) for end in ends])
        shown = trained.in_units(ends[len(ends) // 2]) if name == CALIBRATED else shown
    return Comparison(steps, figures, shown, spent)


def markdown(comparison: Comparison) -> str:
    """The table: a row for each scheduler, a column for the error and for each statistic."""
    names = ["error", *comparison.figures["real data"]]
    counts = ", ".join(str(count) for count in comparison.steps)
    lines = [f"| {counts} steps | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for row, figures in comparison.figures.items():
        cells = [", ".join(f"{figure:#.3g}" for figure in figures.get(name, [])) for name in names]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(name: str, real: torch.Tensor, made: torch.Tensor, path: Path, examples: int = 6) -> None:
    """Writes a PNG: real examples in the upper half, generated ones in the lower half, one a column."""
    from matplotlib.figure import Figure

    frames = 2 if name == "series" else real.shape[1]
    figure = Figure(figsize=(2 * examples, 3.8 * frames), layout="constrained")
    for (row, column), axis in np.ndenumerate(figure.subplots(2 * frames, examples, squeeze=False)):
        half, frame = divmod(row, frames)
        shown = (real, made)[half][column]
        if name == "series":
            axis.plot((shown if frame else shown.cumsum(dim=1).exp()).T.numpy(), linewidth=0.8)
            axis.set_ylim(*((-0.08, 0.08) if frame else (0.6, 1.6)))
        else:
            axis.imshow(shown[frame].numpy(), vmin=float(real.min()), vmax=float(real.max()))
            axis.set(xticks=[], yticks=[])
        if column == 0:
            what = ("price", "return")[frame] if name == "series" else f"frame {frame}"
            axis.set_ylabel(f"{('real', 'generated')[half]}, {what}")
    figure.savefig(path, dpi=60)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="StaleScheduler beyond video, in three small examples.")
    parser.add_argument("domain", nargs="?", default="all", choices=[*DOMAINS, "all"])
    parser.add_argument("--output", type=Path, help="folder for pictures (needs matplotlib)")
    parser.add_argument("--seconds", type=float, default=40.0, help="of processor time to train, for each domain")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # (tiny networks run fastest so)
    for name in DOMAINS if options.domain == "all" else [options.domain]:
        domain = DOMAINS[name]
        trained = train(domain, options.seconds)
        begin = time.process_time()
        comparison = compare(domain, trained)
        spent = time.process_time() - begin
        first, last = np.mean(trained.losses[:20]), np.mean(trained.losses[-20:])
        print(f"\n## {name}: {domain.title}, {domain.prediction_type}\n")
        print(f"{len(trained.losses)} updates in {options.seconds:g} s, loss {first:.3f} to {last:.3f}.", end=" ")
        print(f"Comparison {spent:.0f} s, of which calibration {comparison.calibration_seconds:.0f} s.\n")
        print(markdown(comparison), flush=True)
        if options.output is not None:
            options.output.mkdir(parents=True, exist_ok=True)
            draw(name, domain.generate(8, 2), comparison.samples, options.output / f"{name}.png")


if __name__ == "__main__":
    main()
