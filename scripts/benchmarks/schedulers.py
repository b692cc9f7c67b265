"""StaleScheduler against every working deterministic configuration of diffusers' schedulers, on exact problems.

    python scripts/benchmarks/schedulers.py --steps 5 10 20 --seeds 0

Error: distance of the endpoint from that of the exact probability-flow path of the same noise, relative to the data's
deviation. Network evaluations are counted; a configuration competes at N if it needs at most N. For each process and N
it prints the geometric mean over problems of our error, and its ratio to "fixed" (the configuration that is best on
average for that N) and to "oracle" (for each problem the best of all, chosen with hindsight); then the sliced
Wasserstein distance from true samples, relative to that of "fixed". Several seeds are taken together.

Calibration sees other noises than those it is measured on.
"""

import argparse
import math
import sys
import warnings
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import diffusers
import numpy as np
import torch
from stock_schedulers import (
    PROCESSES,
    CountingNetwork,
    Make,
    run_scheduler,
    set_steps,
    signal_levels,
    stock_configurations,
)

from diffusers_stale.evaluation.exact_problems import EXACT_PROBLEMS, SECOND_PROBLEMS, ExactProblem
from diffusers_stale.scheduling_stale import StaleScheduler


OURS = ("uncalibrated", "calibrated")
SUITES = {"core": EXACT_PROBLEMS, "second": SECOND_PROBLEMS}
NOISE_SEED, CALIBRATION_SEED, SAMPLE_SEED = 77, 555, 888
DIRECTIONS = 128
"""Of the sliced Wasserstein distance."""


def our_configuration(process: str, weights: str = "entropic") -> Make:
    """What `StaleScheduler.from_config` makes of a stock scheduler of the process."""
    known = {key: value for key, value in PROCESSES[process].items() if not key.startswith("use_")}
    return lambda: StaleScheduler(**{"rescale_betas_zero_snr": False, "stale_weights": weights} | known)


def error(process: str, problem: ExactProblem, make: Make, evaluations: int, steps: int, paths: tuple) -> float | None:
    """Relative error of one configuration, or None where it does not work or needs more than `steps` evaluations."""
    noise, endpoint = paths
    network = CountingNetwork(process, problem.clean)
    try:
        scheduler = make()
        set_steps(scheduler, steps if evaluations == 1 else (steps + 1) // 2)
        sample = run_scheduler(scheduler, network, noise.float())
    except Exception:  # (many stock schedulers raise on a zero terminal signal: they do not compete)
        return None
    distance = float((sample.double() - endpoint).square().mean().sqrt() / problem.deviation)
    return distance if network.calls <= steps and math.isfinite(distance) else None


def exact_paths(process: str, problem: ExactProblem, seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed + NOISE_SEED)
    noise = torch.randn(count, problem.dimensions, generator=generator, dtype=torch.float64)
    alpha, sigma = signal_levels(process)(1000.0 if process == "flow" else 999.0)
    return noise, problem.endpoint(noise, math.atan2(sigma, alpha))


def calibrated(process: str, problem: ExactProblem, steps: list[int], seed: int) -> Make:
    """Our configuration, calibrated on the problem."""
    scheduler = our_configuration(process)()
    network = CountingNetwork(process, problem.clean)
    generator = torch.Generator().manual_seed(seed + CALIBRATION_SEED)
    scheduler.calibrate(network, (problem.dimensions,), steps, generator, progress_bar=False, batch_size=1024)
    return lambda: scheduler


def sliced_wasserstein(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over random directions of the 1D Wasserstein-2 distance; both `(count, dimensions)`."""
    directions = torch.randn(one.shape[1], DIRECTIONS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    ranked = [(samples.double() @ directions).sort(dim=0).values for samples in (one, other)]
    return float((ranked[0] - ranked[1]).square().mean(dim=0).sqrt().mean())


def distance_from_data(process: str, problem: ExactProblem, make: Make, evaluations: int, steps: int) -> float:
    generator = torch.Generator().manual_seed(SAMPLE_SEED)
    noise = torch.randn(1024, problem.dimensions, generator=generator)
    scheduler = make()
    set_steps(scheduler, steps if evaluations == 1 else (steps + 1) // 2)
    samples = run_scheduler(scheduler, CountingNetwork(process, problem.clean), noise)
    return sliced_wasserstein(samples, problem.true_samples(1024, generator))


def compare(
    process: str, steps: list[int], suite: list[tuple[int, ExactProblem]], samples: int, fit: bool, others: list[str],
    rivals: list[str] | None,
) -> None:  # fmt: skip
    stock = [found for found in stock_configurations(process) if rivals is None or found[0] in rivals]
    errors: dict[tuple[int, str], list[float | None]] = {}
    ours: list[dict[str, Make]] = []
    for seed, problem in suite:
        paths = exact_paths(process, problem, seed, samples)
        ours.append(
            {OURS[0]: our_configuration(process)} | {name: our_configuration(process, name) for name in others}
        )
        if fit:
            ours[-1][OURS[1]] = calibrated(process, problem, steps, seed)
        for name, evaluations, make in [*((name, 1, make) for name, make in ours[-1].items()), *stock]:
            for count in steps:
                result = error(process, problem, make, evaluations, count, paths)
                errors.setdefault((count, name), []).append(result)
    for count in steps:
        theirs = {
            name: np.log(values)
            for (number, name), values in errors.items()
            if number == count and name not in ours[0] and None not in values
        }
        best = min(theirs, key=lambda name: theirs[name].mean())
        oracle = np.min(list(theirs.values()), axis=0)
        fixed_make = next((evaluations, make) for name, evaluations, make in stock if name == best)
        known = [index for index, (_, problem) in enumerate(suite) if problem.condition is None]
        reference = [
            distance_from_data(process, suite[index][1], fixed_make[1], fixed_make[0], count) for index in known
        ]
        for name in ours[0]:
            logs = np.log(errors[count, name])
            away = [distance_from_data(process, suite[index][1], ours[index][name], 1, count) for index in known]
            print(
                f"{process:5} N={count:<3} {name:12} error {math.exp(logs.mean()):.4f}, to fixed "
                f"{math.exp((logs - theirs[best]).mean()):.2f}, to oracle {math.exp((logs - oracle).mean()):.2f}; "
                f"distribution, to fixed {math.exp(np.mean(np.log(away) - np.log(reference))):.2f} "
                f"({len(theirs)} configurations; fixed is {best})",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", default=list(PROCESSES), choices=list(PROCESSES))
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 5, 6, 8, 10, 15, 20, 30, 50])
    parser.add_argument("--problems", nargs="+", default=list(EXACT_PROBLEMS), choices=list(EXACT_PROBLEMS))
    parser.add_argument("--suite", default="core", choices=list(SUITES), help="second: other sizes, for final figures")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--samples", type=int, default=24, help="noises a problem")
    parser.add_argument("--uncalibrated", action="store_true", help="leave out calibration, which takes longest")
    parser.add_argument("--weights", nargs="*", default=[], choices=["gaussian", "multistep", "none"], help="too")
    parser.add_argument(
        "--rivals", nargs="+", metavar="NAME", help="only these configurations of diffusers, as they are printed"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    suite = [(seed, SUITES[arguments.suite][name](seed)) for seed in arguments.seeds for name in arguments.problems]
    for process in arguments.processes:
        fit = not arguments.uncalibrated
        compare(process, arguments.steps, suite, arguments.samples, fit, arguments.weights, arguments.rivals)


if __name__ == "__main__":
    main()
