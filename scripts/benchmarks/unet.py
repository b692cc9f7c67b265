"""Time and peak memory of the 5D UNet beside diffusers' video UNets of the same widths, on the same images.

    python scripts/benchmarks/unet.py --widths middle --size 16 32 --repeats 5
    python scripts/benchmarks/unet.py --widths small --size 16 --threads 1 --backward

Every network is built with random weights, the same channels, layers and heads, and predicts the same number of images
for the same text of 77 tokens. Ours sees one movie of `--grid` (rows x cols x frames); to the others, which have no
view axes, each camera is a movie of its own (`--one-movie`: all images are one long movie).

Each measurement is a process of its own, the networks taking turns, since machines are shared and noisy: of the
repeats, the least time and the least memory count. Seconds are of the fastest call after a first one; core-seconds are
what the process's threads computed in it, which suffers less from neighbours. Memory is the rise of the resident set
above what it was once the network was loaded and had predicted a single image, at the highest, over all calls; on a
GPU, of allocated memory. Linux only.
"""

import argparse
import gc
import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from diffusers import UNet3DConditionModel, UNetMotionModel, UNetSpatioTemporalConditionModel

from diffusers_stale.unet_stale import StaleUNet5DConditionModel


WIDTHS = {
    "small": {"channels": (64, 128, 256, 256), "text": 256, "heads": 8},
    "middle": {"channels": (128, 256, 512, 512), "text": 512, "heads": 8},
    "stable-diffusion-1.5": {"channels": (320, 640, 1280, 1280), "text": 768, "heads": 8},
}
"""Channels of the levels, channels of the text, and heads of every attention, by name."""

TOKENS = 77
SAMPLING_SECONDS = 0.002


def stale(channels: tuple[int, ...], text: int, heads: int, frames: int) -> torch.nn.Module:
    return StaleUNet5DConditionModel(
        block_out_channels=channels,
        cross_attention_dim=text,
        attention_head_dim=heads,
        time_max_frames=max(frames, 32),
    )


def motion(channels: tuple[int, ...], text: int, heads: int, frames: int) -> torch.nn.Module:
    return UNetMotionModel(
        block_out_channels=channels,
        cross_attention_dim=text,
        num_attention_heads=heads,
        motion_num_attention_heads=heads,
        motion_max_seq_length=max(frames, 32),
    )


def three_dimensional(channels: tuple[int, ...], text: int, heads: int, frames: int) -> torch.nn.Module:
    # It takes one width of a head for all levels: that of the first, and so more heads below.
    return UNet3DConditionModel(
        block_out_channels=channels, cross_attention_dim=text, attention_head_dim=channels[0] // heads
    )


def spatio_temporal(channels: tuple[int, ...], text: int, heads: int, frames: int) -> torch.nn.Module:
    return UNetSpatioTemporalConditionModel(
        in_channels=4,
        block_out_channels=channels,
        cross_attention_dim=text,
        num_attention_heads=(heads,) * len(channels),
        num_frames=frames,
    )


NETWORKS = {
    "StaleUNet5DConditionModel": stale,
    "UNetMotionModel": motion,
    "UNet3DConditionModel": three_dimensional,
    "UNetSpatioTemporalConditionModel": spatio_temporal,
}


def sample_and_arguments(
    name: str, grid: tuple[int, int, int], size: int, text: int, one_movie: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Noise in the layout of the network `name`, and what it is told beside the timestep."""
    rows, cols, frames = grid
    movies, length = (1, rows * cols * frames) if one_movie else (rows * cols, frames)
    if name == "StaleUNet5DConditionModel":
        return torch.randn(1, 4, *grid, size, size), {"encoder_hidden_states": torch.randn(1, TOKENS, text)}
    words = torch.randn(1, TOKENS, text).expand(movies, -1, -1)
    if name == "UNetSpatioTemporalConditionModel":
        numbers = torch.zeros(movies, 3)
        return torch.randn(movies, length, 4, size, size), {"encoder_hidden_states": words, "added_time_ids": numbers}
    if name == "UNetMotionModel":
        words = words.repeat_interleave(length, dim=0)  # (its pipeline does so: a text for each image)
    return torch.randn(movies, 4, length, size, size), {"encoder_hidden_states": words}


class PeakOfMemory:
    """Highest rise of the resident set (or of the GPU's allocated memory) within a `with` block, in bytes."""

    def __init__(self, device: torch.device):
        self.device, self.bytes = device, 0

    def used(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

    def __enter__(self) -> "PeakOfMemory":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.before, self.highest, self.done = self.used(), 0, threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()
        return self

    def watch(self) -> None:
        while not self.done.wait(SAMPLING_SECONDS):
            self.highest = max(self.highest, self.used())

    def __exit__(self, *exception: object) -> None:
        self.done.set()
        self.watcher.join()
        self.bytes = max(self.highest, self.used()) - self.before


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """One network in this process: seconds, core-seconds and bytes of its forward (and backward) pass."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    grid, widths = tuple(arguments.grid), WIDTHS[arguments.widths[0]]
    rows, cols, frames = grid
    length = rows * cols * frames if arguments.one_movie else frames
    network = NETWORKS[arguments.network](**widths, frames=length).to(device, dtype)
    network.requires_grad_(arguments.backward).train(arguments.backward)

    def evaluate(grid: tuple[int, int, int]) -> None:
        torch.manual_seed(1)
        sample, told = sample_and_arguments(
            arguments.network, grid, arguments.size[0], widths["text"], arguments.one_movie
        )
        told = {key: value.to(device, dtype) for key, value in told.items()}
        with torch.set_grad_enabled(arguments.backward):
            prediction = network(sample.to(device, dtype), 500, **told, return_dict=False)[0]
            if arguments.backward:
                prediction.square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    evaluate((1, 1, 1))  # gradients of weights, thread pools and kernels exist from here on
    seconds, core_seconds = [], []
    with PeakOfMemory(device) as peak:
        for _ in range(arguments.calls):
            started, worked = time.perf_counter(), time.process_time()
            evaluate(grid)
            seconds.append(time.perf_counter() - started)
            core_seconds.append(time.process_time() - worked)
    return {"seconds": min(seconds), "core_seconds": min(core_seconds), "bytes": peak.bytes}


def in_a_process(arguments: argparse.Namespace, network: str, widths: str, size: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--network", network, "--widths", widths, "--size", str(size)]
    command += ["--grid", *map(str, arguments.grid), "--calls", str(arguments.calls)]
    command += ["--device", arguments.device, "--dtype", arguments.dtype, "--threads", str(arguments.threads)]
    command += ["--backward"] * arguments.backward + ["--one-movie"] * arguments.one_movie
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        print(f"{network} ended with {ended.returncode} (-9: killed, as when memory is short)", flush=True)
        return dict.fromkeys(("seconds", "core_seconds", "bytes"), math.inf)
    return json.loads(ended.stdout.splitlines()[-1])


def compare(arguments: argparse.Namespace, widths: str, size: int) -> None:
    """Prints a table of all networks, and our ratios to the best of the others."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("StaleUNet5DConditionModel", *arguments.against)}
    for _ in range(arguments.repeats):
        for name, found in runs.items():
            found.append(in_a_process(arguments, name, widths, size))
    kind = "forward and backward" if arguments.backward else "forward"
    print(f"\n{widths} {WIDTHS[widths]['channels']}, {arguments.grid} images of {size} x {size}, {kind}:")
    best = {
        name: {key: min(run[key] for run in found) for key in ("seconds", "core_seconds", "bytes")}
        for name, found in runs.items()
    }
    for name, figures in best.items():
        print(
            f"| {name} | {figures['seconds']:.2f} | {figures['core_seconds']:.2f} | {figures['bytes'] / 2**20:.0f} |",
            flush=True,
        )
    ours, *others = best.values()
    ratios = {key: ours[key] / min(figures[key] for figures in others) for key in ours}
    print("of the best other: " + ", ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", nargs="+", choices=WIDTHS, default=["small"])
    parser.add_argument("--size", nargs="+", type=int, default=[16, 32], help="height and width of latents")
    parser.add_argument("--grid", nargs=3, type=int, default=[3, 3, 8], help="view rows, view columns, frames")
    parser.add_argument("--one-movie", action="store_true", help="to other networks, all images are one long movie")
    parser.add_argument("--backward", action="store_true", help="forward and backward, with gradients of all weights")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each network")
    parser.add_argument("--calls", type=int, default=3, help="calls in a process, of which the fastest counts")
    parser.add_argument("--threads", type=int, default=0, help="0 for as many as there are cores")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--against", nargs="+", choices=list(NETWORKS)[1:], default=list(NETWORKS)[1:])
    parser.add_argument("--network", choices=NETWORKS, help="measure only this one, here, and print the figures")
    arguments = parser.parse_args()
    if arguments.network:
        print(json.dumps(measure(arguments)))
        return
    print(f"{torch.get_num_threads()} threads at most, {arguments.threads or 'all'} used; torch {torch.__version__}")
    print("| network | seconds | core-seconds | peak MiB |")
    for widths in arguments.widths:
        for size in arguments.size:
            compare(arguments, widths, size)


if __name__ == "__main__":
    main()
