"""StaleScheduler against diffusers' schedulers on trained networks, and what a step costs.

    python scripts/benchmarks/scheduler_on_networks.py --networks barnyard-2d flow --steps 5 10 20
    python scripts/benchmarks/scheduler_on_networks.py --networks barnyard-5d --grid 2 2 2 --samples 2 --noises 4
    python scripts/benchmarks/scheduler_on_networks.py --step-time

Networks: the default checkpoint, with each `--guidance`, as pictures (`barnyard-2d`) and as movies of a `--grid`
(`barnyard-5d`), and two small UNets of diffusers trained on the spot on renderings of 16 x 16 (`epsilon`, `flow`),
four times as many samples.
Error: root mean square distance of endpoints from those of a reference trajectory of DPM-Solver++ 2M in 200 steps from
the same noise, relative to the deviation of endpoints; over samples again the root mean square, and the geometric mean
("typical"). "best" is the best of `RIVALS` for each number of steps, chosen with hindsight; "fixed" the one of them
that is best over all of them, by the geometric mean: what a user would set. Calibration sees other noises, and other
prompts.
"""

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import diffusers
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from stock_schedulers import PROCESSES, STABLE_DIFFUSION, Make, set_steps, stock_configurations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusers_stale.data.captions import caption_of
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.hub import load_pipeline
from diffusers_stale.pipeline_calibration import CalibrationSettings, calibrate_pipeline
from diffusers_stale.scheduling_stale import StaleScheduler


Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

RIVALS = (
    "DPMSolverMultistep(solver_order=2, timestep_spacing=trailing)",
    "DPMSolverMultistep(solver_order=2, use_lu_lambdas=True)",
    "DPMSolverMultistep(solver_order=3, use_karras_sigmas=True)",
    "UniPCMultistep(solver_order=2, timestep_spacing=trailing)",
    "UniPCMultistep(solver_order=3, timestep_spacing=trailing)",
    "UniPCMultistep(solver_order=2, use_exponential_sigmas=True)",
    "DEISMultistep(solver_order=2, timestep_spacing=trailing)",
    "DEISMultistep(solver_order=3, use_karras_sigmas=True)",
    "DDIM(clip_sample=False, set_alpha_to_one=True, timestep_spacing=trailing)",
    "SASolver(timestep_spacing=trailing)",
    "FlowMatchEuler",
)
"""The configurations of `stock_configurations` that win somewhere on exact problems, and what users have."""

SMALL_UNETS = {"epsilon": "sd", "flow": "flow"}
"""Process of each."""

REFERENCE_STEPS = 200
PROMPT_SEED, CALIBRATION_SEED = 4_000_037, 1_000_003


def walk(network: Network, scheduler: object, noise: torch.Tensor, steps: int) -> torch.Tensor:
    set_steps(scheduler, steps)
    sample = noise.clone()
    for timestep in scheduler.timesteps:
        shown = scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
        sample = scheduler.step(network(shown, timestep), timestep, sample).prev_sample
    return sample


def our_options(process: str) -> dict[str, object]:
    known = {key: value for key, value in PROCESSES[process].items() if not key.startswith("use_")}
    return {"rescale_betas_zero_snr": False} | known


def means(errors: torch.Tensor) -> tuple[float, float]:
    """Root mean square and geometric mean over samples: the first is ruled by samples that went another way."""
    return float(errors.square().mean().sqrt()), float(errors.log().mean().exp())


def compare(
    name: str, process: str, network: Network, noise: torch.Tensor, steps: list[int], ours: dict[str, StaleScheduler]
) -> None:
    """Prints for each of `ours` a line for each number of steps, then the geometric means over numbers of steps."""
    options = our_options(process)
    reference = walk(network, StaleScheduler(**options, stale_weights="multistep"), noise, REFERENCE_STEPS)
    rivals: dict[str, Make] = {label: make for label, _, make in stock_configurations(process) if label in RIVALS}

    def errors(scheduler: object, count: int) -> tuple[float, float]:
        distance = walk(network, scheduler, noise, count) - reference
        return means(distance.square().flatten(1).mean(1).sqrt() / reference.std())

    def theirs(make: Make, count: int) -> tuple[float, float]:
        try:
            found = errors(make(), count)
        except Exception:  # (some stock schedulers raise on a zero terminal signal: they do not compete)
            return (math.inf, math.inf)
        return (math.inf, math.inf) if math.isnan(found[0]) else found

    labels = list(rivals)
    rows = [[theirs(make, count) for count in steps] for make in rivals.values()]
    table = torch.tensor(rows, dtype=torch.float64)  # (rivals, steps, kinds of means)
    winners, fixed = table.argmin(dim=0), table.log().mean(dim=1).argmin(dim=0)
    for label, scheduler in ours.items():
        found = torch.tensor([errors(scheduler, count) for count in steps], dtype=torch.float64)
        to_best = found / table.amin(dim=0)
        to_fixed = torch.stack([found[:, kind] / table[fixed[kind], :, kind] for kind in (0, 1)], dim=1)
        for index, count in enumerate(steps):
            print(
                f"{name:12} N={count:<3} {label:18} {_words(found[index], to_best[index], to_fixed[index])}; best "
                f"{labels[winners[index, 0]]}, typical {labels[winners[index, 1]]}",
                flush=True,
            )
        overall = [part.log().mean(dim=0).exp() for part in (found, to_best, to_fixed)]
        print(
            f"{name:12} all N   {label:18} {_words(*overall)}; fixed {labels[fixed[0]]}, typical {labels[fixed[1]]}",
            flush=True,
        )


def _words(error: torch.Tensor, to_best: torch.Tensor, to_fixed: torch.Tensor) -> str:
    """Of two kinds of means, `(2,)` each."""
    return ", ".join(
        f"{kind} {error[index]:.4f} ({to_best[index]:.2f} of best, {to_fixed[index]:.2f} of fixed)"
        for index, kind in enumerate(("rms", "typical"))
    )


def with_plain(
    process: str, fitted: StaleScheduler, max_stale: list[int], guidance: float = 1.0
) -> dict[str, StaleScheduler]:
    """What is compared: the uncalibrated form, as it is and with fewer stale outputs, and any calibrated one.

    They know the guidance, as they do in `StaleDiffusionPipeline`.
    """
    options = our_options(process) | {"guidance_scale": guidance}
    fewer = {f"at most {count} stale": StaleScheduler(**options, max_stale=count) for count in max_stale}
    calibrated = {} if fitted.calibration is None else {"calibrated": fitted}
    return {"uncalibrated": StaleScheduler(**options)} | fewer | calibrated


def barnyard(
    grid: tuple[int, int, int], guidance: float, steps: list[int], samples: int, noises: int, max_stale: list[int],
    seed: int,
) -> None:  # fmt: skip
    """The default checkpoint on a `grid` of view rows, view columns and frames."""
    pipeline = load_pipeline("barnyard", torch.float32, torch.device("cpu"))
    prompt_seed = PROMPT_SEED + seed
    sentences = [caption_of(sample_scene(prompt_seed, index), prompt_seed, index) for index in range(64)]
    rows, cols, frames = grid
    pipeline.scheduler = StaleScheduler(**our_options("zsnr"))
    if noises:
        settings = CalibrationSettings(
            num_inference_steps=tuple(steps), guidance_scale=guidance, view_rows=rows, view_cols=cols,
            num_frames=frames, noises=noises, held_out=noises // 2, teacher_steps=64, seed=seed,
        )  # fmt: skip
        calibrate_pipeline(pipeline, sentences[samples:], settings)
    fitted = pipeline.scheduler
    told, negative = pipeline.encode_prompt(sentences[:samples], torch.device("cpu"), 1, guidance != 1.0)
    texts = told if negative is None else torch.cat([negative, told])
    size = pipeline.unet.config.sample_size
    channels = pipeline.vae.config.latent_channels
    noise = torch.randn(samples, channels, *grid, size, size, generator=torch.Generator().manual_seed(9 + seed))
    pipeline._guidance_scale = guidance

    def network(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return pipeline.predict(sample, timestep, texts, {}, 0.0)

    name = f"{'x'.join(map(str, grid))} guided {guidance:g}"
    compare(name, "zsnr", network, noise, steps, with_plain("zsnr", fitted, max_stale, guidance))


def trained_unet(kind: str, updates: int, seed: int, cache: Path | None) -> Network:
    """A UNet of diffusers on renderings of 16 x 16, trained for so many `updates`; its averaged weights, which `cache`
    keeps."""
    kept = None if cache is None else cache / f"{kind}-{updates}-{seed}.safetensors"
    torch.manual_seed(seed)
    model = UNet2DModel(
        sample_size=16, block_out_channels=(32, 64), norm_num_groups=16, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    if kept is not None and kept.exists():
        model.load_state_dict(load_file(kept))
    else:
        model = _trained(model, StaleScheduler(**our_options(SMALL_UNETS[kind])), updates, seed)
        if kept is not None:
            cache.mkdir(parents=True, exist_ok=True)
            save_file(model.state_dict(), kept)
    model.eval().requires_grad_(False)

    def network(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return model(sample, timestep).sample

    return network


def _trained(model: UNet2DModel, scheduler: StaleScheduler, updates: int, seed: int) -> torch.nn.Module:
    pictures = torch.stack(
        [render_scene(sample_scene(5 + seed, index), 1, 1, 1, 16, 16).pixels[:, 0, 0, 0] for index in range(2000)]
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1.0 - update / updates)
        clean = pictures[torch.randint(len(pictures), (32,))]
        noise, timesteps = torch.randn_like(clean), scheduler.sample_training_timesteps(32)
        prediction = model(scheduler.add_noise(clean, noise, timesteps), timesteps).sample
        loss = (prediction - scheduler.training_target(clean, noise, timesteps)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averaged.update_parameters(model)
    return averaged.module


def small_unet(
    kind: str, updates: int, steps: list[int], samples: int, noises: int, max_stale: list[int], seed: int,
    cache: Path | None,
) -> None:  # fmt: skip
    process = SMALL_UNETS[kind]
    network = trained_unet(kind, updates, seed, cache)
    scheduler = StaleScheduler(**our_options(process))
    noise = torch.randn(samples, 3, 16, 16, generator=torch.Generator().manual_seed(9 + seed))
    generator = torch.Generator().manual_seed(CALIBRATION_SEED + seed)
    with torch.no_grad():
        if noises:
            held_out = noises // 2
            scheduler.calibrate(
                network, (3, 16, 16), steps, generator, noises=noises, held_out=held_out, batch_size=64
            )
        compare(f"small {kind}", process, network, noise, steps, with_plain(process, scheduler, max_stale))


def step_time(rounds: int = 30, steps: int = 20) -> None:
    """Median time of a run's steps, ours relative to `DPMSolverMultistepScheduler`'s, taking turns."""
    stock = diffusers.DPMSolverMultistepScheduler(**STABLE_DIFFUSION)
    fitted = StaleScheduler(**our_options("sd"))

    def towards_zero(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tanh(sample)

    generator = torch.Generator().manual_seed(0)
    fitted.calibrate(towards_zero, (4,), [steps], generator, noises=64, held_out=32, progress_bar=False)
    timed = {"uncalibrated": StaleScheduler(**our_options("sd")), "calibrated": fitted, "theirs": stock}
    for shape in ((1, 4, 64, 64), (2, 4, 128, 128), (1, 8, 3, 3, 8, 16, 16)):
        times: dict[str, list[float]] = {name: [] for name in timed}
        sample, output = torch.randn(shape), torch.randn(shape)
        for _ in range(rounds):
            for name, scheduler in timed.items():
                scheduler.set_timesteps(steps)
                scheduler.step(output, scheduler.timesteps[0], sample)
                began = time.perf_counter()
                for timestep in scheduler.timesteps[1:]:
                    scheduler.step(output, timestep, sample)
                times[name].append((time.perf_counter() - began) / (steps - 1))
        medians = {name: sorted(values)[rounds // 2] * 1e6 for name, values in times.items()}
        ratios = ", ".join(
            f"{name} {value:.0f} us ({value / medians['theirs']:.2f})" for name, value in medians.items()
        )
        print(f"step of {shape}: {ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["barnyard-2d", "barnyard-5d", "epsilon", "flow"]
    parser.add_argument("--networks", nargs="+", default=names, choices=names)
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 8, 10, 15, 20])
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0, 5.0])
    parser.add_argument("--grid", nargs=3, type=int, default=[3, 3, 4], help="view rows, view columns, frames")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--noises", type=int, default=16, help="to calibrate on, and half as many held out; 0: do not")
    parser.add_argument("--updates", type=int, default=600, help="of each small UNet in training")
    parser.add_argument("--cache", type=Path, help="folder that keeps small UNets, to train each only once")
    parser.add_argument("--max-stale", nargs="*", type=int, default=[], help="also uncalibrated, with at most so many")
    parser.add_argument("--seed", type=int, default=0, help="of small UNets, what they learn from, prompts and noises")
    parser.add_argument("--step-time", action="store_true", help="time steps, and nothing else")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if arguments.step_time:
        step_time()
        return
    with torch.no_grad():
        for network in arguments.networks:
            for guidance in arguments.guidance if network.startswith("barnyard") else ():
                grid = (1, 1, 1) if network == "barnyard-2d" else tuple(arguments.grid)
                sizes = (arguments.samples, arguments.noises, arguments.max_stale, arguments.seed)
                barnyard(grid, guidance, arguments.steps, *sizes)
    for network in arguments.networks:
        if not network.startswith("barnyard"):
            sizes = (4 * arguments.samples, 2 * arguments.noises, arguments.max_stale, arguments.seed)
            small_unet(network, arguments.updates, arguments.steps, *sizes, arguments.cache)


if __name__ == "__main__":
    main()
