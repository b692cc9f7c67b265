"""Frames a second of the barnyard renderer on one core, against the floor of 1,000 that training needs.

python scripts/benchmarks/renderer.py
"""

import argparse
import time

import torch

from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene


GRIDS = ((3, 3, 8), (3, 3, 16), (1, 1, 8), (1, 1, 1))
REQUIRED_FRAMES_PER_SECOND = 1000


def frames_per_second(grid: tuple[int, int, int], size: int, seconds: float) -> float:
    """Renders scene after scene for about `seconds` and counts frames of all views."""
    count, index, start = 0, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        render_scene(sample_scene(0, index), *grid, height=size, width=size)
        count, index = count + grid[0] * grid[1] * grid[2], index + 1
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--seconds", type=float, default=5.0, help="time a grid")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for grid in GRIDS:
        rate = frames_per_second(grid, arguments.size, arguments.seconds)
        label = "x".join(str(count) for count in grid)
        print(
            f"{label:>8} at {arguments.size} px: {rate:7.0f} frames/s, {rate / REQUIRED_FRAMES_PER_SECOND:.2f} x floor"
        )


if __name__ == "__main__":
    main()
