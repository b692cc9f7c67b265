"""StaleScheduler against every working deterministic configuration of diffusers' schedulers, on exact problems.

    python scripts/benchmarks/schedulers.py --steps 5 10 20 --seeds 0

Error: distance of the endpoint from that of the exact probability-flow path of the same noise, relative to the data's
deviation. Network evaluations are counted; a configuration competes at N if it needs at most N. For each process and N
it prints the geometric mean over problems of our error, and its ratio to "fixed" (the configuration that is best on
average for that N) and to "oracle" (for each problem the best of all, chosen with hindsight).
"""

import argparse
import math
import warnings

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

from diffusers_stale.evaluation.exact_problems import EXACT_PROBLEMS, ExactProblem
from diffusers_stale.scheduling_stale import StaleScheduler


OURS = "StaleScheduler"
NOISE_SEED = 77


def our_configuration(process: str) -> Make:
    """What `StaleScheduler.from_config` makes of a stock scheduler of the process."""
    known = {key: value for key, value in PROCESSES[process].items() if not key.startswith("use_")}
    return lambda: StaleScheduler(**{"rescale_betas_zero_snr": False} | known)


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


def compare(process: str, steps: list[int], problems: list[ExactProblem], seed: int, samples: int) -> None:
    configurations = [(OURS, 1, our_configuration(process)), *stock_configurations(process)]
    errors: dict[tuple[int, str], list[float | None]] = {}
    for problem in problems:
        paths = exact_paths(process, problem, seed, samples)
        for name, evaluations, make in configurations:
            for count in steps:
                result = error(process, problem, make, evaluations, count, paths)
                errors.setdefault((count, name), []).append(result)
    for count in steps:
        ours = np.log(errors[count, OURS])
        stock = {
            name: np.log(values)
            for (number, name), values in errors.items()
            if number == count and name != OURS and None not in values
        }
        fixed = min(stock, key=lambda name: stock[name].mean())
        oracle = np.min(list(stock.values()), axis=0)
        print(
            f"{process:5} N={count:<3} error {math.exp(ours.mean()):.4f}, ratio to fixed "
            f"{math.exp((ours - stock[fixed]).mean()):.2f}, to oracle {math.exp((ours - oracle).mean()):.2f} "
            f"({len(stock)} configurations; fixed is {fixed})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", default=list(PROCESSES), choices=list(PROCESSES))
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 5, 6, 8, 10, 15, 20, 30, 50])
    parser.add_argument("--problems", nargs="+", default=list(EXACT_PROBLEMS), choices=list(EXACT_PROBLEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--samples", type=int, default=16)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        problems = [EXACT_PROBLEMS[name](seed) for name in arguments.problems]
        for process in arguments.processes:
            compare(process, arguments.steps, problems, seed, arguments.samples)


if __name__ == "__main__":
    main()
