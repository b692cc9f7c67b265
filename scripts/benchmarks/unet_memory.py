"""Memory and seconds of the 5D UNet as grids grow: all at once, in parts (as by itself), and in windows.

    python scripts/benchmarks/unet_memory.py --network barnyard --grids 3x3x8 5x5x8 9x9x8 9x9x32
    python scripts/benchmarks/unet_memory.py --network stable-diffusion-1.5 --size 8 --window 3x3x2 \\
        --grids 3x3x2 3x3x4 5x5x4

Networks other than `barnyard` have random weights and are as inflation makes them.

One evaluation of the network for each grid, in a forked process of its own, without guidance. `whole`: nothing cut;
`parts`: forward chunking as it happens by itself; `windows`: besides, windows of `--window`, from the CPU and back.
Memory is the network's: the rise of the resident set above the loaded network that has predicted one image, at the
highest, less the noise and the prediction themselves (which windows keep on the CPU). The exponent is the slope of its
logarithm over that of the number of images. Linux only.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from unet import WIDTHS, PeakOfMemory

from diffusers_stale.hub import load_pipeline
from diffusers_stale.inflation import WIDEST_TIME_LAYER
from diffusers_stale.unet_stale import StaleUNet5DConditionModel
from diffusers_stale.windows import Windows, predict_in_windows


MODES = ("whole", "parts", "windows")
TOKENS = 77


def grid_of(text: str) -> tuple[int, int, int]:
    rows, cols, frames = map(int, text.split("x"))
    return rows, cols, frames


def network_of(name: str, frames: int) -> StaleUNet5DConditionModel:
    if name == "barnyard":
        return load_pipeline("barnyard").unet.float()
    widths = WIDTHS[name]
    with torch.device("meta"):  # (a gigaparameter takes a minute to initialise as it should be, and seconds like this)
        network = StaleUNet5DConditionModel(
            block_out_channels=widths["channels"],
            cross_attention_dim=widths["text"],
            attention_head_dim=widths["heads"],
            time_max_channels=WIDEST_TIME_LAYER,
            time_max_frames=max(frames, 32),
        )
    network.to_empty(device="cpu")
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data.uniform_(-0.02, 0.02)
    return network


@torch.no_grad()
def measure(
    network: StaleUNet5DConditionModel, grid: tuple[int, int, int], mode: str, arguments: argparse.Namespace
) -> dict[str, float]:
    """One grid in one mode, in this process."""
    torch.set_num_threads(arguments.threads or os.cpu_count())
    window = grid_of(arguments.window)
    if mode == "whole":
        network.disable_forward_chunking()
    text = torch.randn(1, TOKENS, network.config.cross_attention_dim)
    windows = Windows(view_rows=window[0], view_cols=window[1], frames=window[2])

    def evaluate(grid: tuple[int, int, int]) -> None:
        sample = torch.randn(1, network.config.in_channels, *grid, arguments.size, arguments.size)
        told = {"loop": False, "view_spacing": 1.0}
        if mode == "windows":
            predict_in_windows(lambda piece, told: network(piece, 500, text, **told).sample, sample, told, windows, 0)
        else:
            network(sample, 500, text, **told)

    evaluate((1, 1, 1))
    started, worked = time.perf_counter(), time.process_time()
    with PeakOfMemory(torch.device("cpu")) as peak:
        evaluate(grid)
    seconds, core_seconds = time.perf_counter() - started, time.process_time() - worked
    values = math.prod(grid) * arguments.size**2 * (network.config.in_channels + network.config.out_channels)
    return {"seconds": seconds, "core_seconds": core_seconds, "bytes": peak.bytes - 4 * values}


def in_a_fork(task: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `task` returns in a process that begins as a copy of this one; `EOFError` if it is killed."""
    context = get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sending.send(task()))
    process.start()
    sending.close()
    figures = receiving.recv()
    process.join()
    return figures


def exponent(images: list[int], figures: list[float]) -> float:
    """Slope of a straight line through the logarithms, by least squares."""
    across, up = ([math.log(value) for value in values] for values in (images, figures))
    middle = sum(across) / len(across)
    return sum((x - middle) * y for x, y in zip(across, up, strict=True)) / sum((x - middle) ** 2 for x in across)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("barnyard", *WIDTHS), default="barnyard")
    parser.add_argument("--grids", nargs="+", default=["3x3x8", "5x5x8", "9x9x8"], help="rows x columns x frames")
    parser.add_argument("--size", type=int, default=16, help="height and width of latents")
    parser.add_argument("--window", default="3x3x8")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--threads", type=int, default=0, help="0 for as many as there are cores")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # A process whose threads have worked cannot be forked.
    network = network_of(arguments.network, max(grid_of(grid)[2] for grid in arguments.grids)).eval()
    print(f"{arguments.network}, latents of {arguments.size} x {arguments.size}, windows of {arguments.window}")
    print("| grid | images | " + " | ".join(f"{mode}: MiB, s, core-s" for mode in arguments.modes) + " |", flush=True)
    images = [math.prod(grid_of(grid)) for grid in arguments.grids]
    memory: dict[str, list[float]] = {mode: [] for mode in arguments.modes}
    for grid, count in zip(arguments.grids, images, strict=True):
        cells = []
        for mode, found in memory.items():
            figures = in_a_fork(partial(measure, network, grid_of(grid), mode, arguments))
            found.append(figures["bytes"])
            cells.append(f"{figures['bytes'] / 2**20:.0f}, {figures['seconds']:.1f}, {figures['core_seconds']:.1f}")
        print(f"| {grid} | {count} | " + " | ".join(cells) + " |", flush=True)
    cells = [f"{exponent(images, found):.2f}" for found in memory.values()]
    print("| exponent | | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
