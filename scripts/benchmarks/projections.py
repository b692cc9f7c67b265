"""Speed of refocusing, interpolation and quilts on a light field of 9x9 views and 16 frames of 256x256, one CPU.

Each is timed beside another way to the same result, in the same process, one after the other, several times; the ratio
of the best times is what counts, and how near the results are is told with it:

- refocusing by whole pixels and by parts of them against shift-and-add in numpy (shifts by slices, whole; and cubic by
  `scipy.ndimage.shift`, one frame: it is slow), and against plenpy's `LightField.get_refocus` (linear, one frame)
  where a Python that has it is given;
- interpolation against the same warp by `scipy.ndimage.map_coordinates`;
- quilts of the views that are there, of which both copy every pixel once, against numpy slices;
- a quilt of 45 views between 9 cameras against the same warps.

Memory: the highest resident size while refocusing, less what was there before the light field, as a part of its size.

python scripts/benchmarks/projections.py --plenpy /path/to/venv/bin/python
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.interpolation import Interpolator
from diffusers_stale.light_field.quilt import assemble_quilt, quilt, quilt_places
from diffusers_stale.light_field.refocus import aperture_weights, refocus
from diffusers_stale.light_field.viewpoints import as_float


WHOLE, PART = 1.0, 0.7
"""Disparities that are refocused on, in pixels per view."""

PLENPY = """
import json, sys, time
import numpy as np
from plenpy.lightfields import LightField
pixels = np.load(sys.argv[1]).astype(np.float64) / 255
field = LightField(np.ascontiguousarray(pixels))
views = pixels.shape[0]
slope = float(sys.argv[2]) * (views - 1) / views  # its slopes are spread over all views, not over the gaps between
start = time.perf_counter()
weights = np.load(sys.argv[4]).astype(np.float64)
picture = field.get_refocus(slope, aperture=weights)
spent = time.perf_counter() - start
np.save(sys.argv[3], picture)
print("seconds", spent)
"""


def light_field(views: int, frames: int, size: int) -> torch.Tensor:
    """uint8 pixels of a rendered barnyard; one frame is rendered and moved on by a pixel from frame to frame."""
    clip = render_scene(sample_scene(5, 1), views, views, 1, size, size, spacing=0.25)
    moment = clip.pixels.add(1.0).mul_(127.5).round_().to(torch.uint8)[:, :, :, 0]
    return torch.stack([moment.roll(index, -1) for index in range(frames)], dim=3)


def best_of(count: int, work: Callable[[], object]) -> tuple[float, object]:
    """Least seconds of several runs, and the result."""
    times, result = [], None
    for _ in range(count):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return min(times), result


def numpy_refocus(pixels: np.ndarray, disparity: int, weights: np.ndarray) -> np.ndarray:
    """Shift-and-add by whole pixels, without care for edges: uint8 `(3, frames, height, width)`."""
    _, rows, cols, frames, height, width = pixels.shape
    total = np.zeros((3, frames, height, width), dtype=np.float32)
    for row in range(rows):
        for col in range(cols):
            shift = disparity * (row - rows // 2), disparity * (col - cols // 2)
            total += weights[row, col] * np.roll(pixels[:, row, col].astype(np.float32), shift, axis=(-2, -1))
    return np.rint(total / weights.sum()).astype(np.uint8)


def scipy_refocus(pixels: np.ndarray, disparity: float, weights: np.ndarray) -> np.ndarray:
    """The same by parts of pixels, cubic."""
    from scipy import ndimage

    _, rows, cols, frames, height, width = pixels.shape
    total = np.zeros((3, frames, height, width), dtype=np.float32)
    for row in range(rows):
        for col in range(cols):
            shift = (0, 0, disparity * (row - rows // 2), disparity * (col - cols // 2))
            moved = ndimage.shift(pixels[:, row, col].astype(np.float32), shift, order=3, mode="nearest")
            total += weights[row, col] * moved
    return np.rint(np.clip(total / weights.sum(), 0, 255)).astype(np.uint8)


def scipy_warp(pictures: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Pictures `(count, 3, height, width)` at places `(count, height, width)`, cubic."""
    from scipy import ndimage

    return np.stack(
        [
            np.stack([ndimage.map_coordinates(plane, (r, c), order=3, mode="nearest") for plane in picture])
            for picture, r, c in zip(pictures, rows, cols, strict=True)
        ]
    )


def psnr(one: np.ndarray, other: np.ndarray, edge: int = 24) -> float:
    """Of uint8 pictures, in dB, without their edges, which everyone treats in another way."""
    here = (..., slice(edge, -edge), slice(edge, -edge))
    error = np.square(one[here].astype(np.float64) - other[here].astype(np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def report(name: str, ours: float, theirs: float, quality: float | None = None) -> None:
    near = "" if quality is None else f", results {quality:.1f} dB apart"
    print(f"{name}: {ours:.3f} s against {theirs:.3f} s, {theirs / ours:.1f} times as fast{near}", flush=True)


def peak_memory() -> int:
    """Highest resident size so far, in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_memory(arguments: argparse.Namespace) -> None:
    """In a process of its own: the light field comes from a file, so that nothing else has been in memory."""
    path = Path(arguments.memory)
    start = peak_memory()
    pixels = LightField.load(path).pixels
    refocus(pixels, PART, shape="square")
    print(json.dumps({"part": (peak_memory() - start) / pixels.numel()}))


def compare_plenpy(pixels: torch.Tensor, python: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/in.npy", f"{folder}/out.npy"
        # Its u goes along the first image axis of the transposed picture, with the opposite sign of disparity.
        np.save(f"{folder}/weights.npy", aperture_weights(*pixels.shape[1:3], shape="square").numpy())
        np.save(source, pixels[:, :, :, 0].permute(1, 2, 3, 4, 0).numpy())
        for disparity in (WHOLE, PART):
            ours, mine = best_of(3, lambda d=disparity: refocus(pixels[:, :, :, :1], d, shape="square"))
            command = [python, "-c", PLENPY, source, str(disparity), target, f"{folder}/weights.npy"]
            said = subprocess.run(command, capture_output=True, text=True)
            if said.returncode:
                print(f"plenpy: not measured, {said.stderr.strip().splitlines()[-1]}")
                return
            theirs = float(said.stdout.split("seconds")[-1])
            picture = np.rint(np.clip(np.load(target), 0, 1) * 255).astype(np.uint8).transpose(2, 0, 1)
            report(
                f"refocusing one frame by {disparity:g} against plenpy",
                ours,
                theirs,
                psnr(mine[:, 0].numpy(), picture),
            )


def compare_refocus(pixels: torch.Tensor) -> None:
    weights = aperture_weights(*pixels.shape[1:3], shape="square").numpy()
    ours, mine = best_of(5, lambda: refocus(pixels, WHOLE, shape="square"))
    theirs, plain = best_of(5, lambda: numpy_refocus(pixels.numpy(), int(WHOLE), weights))
    report("refocusing by whole pixels against numpy slices", ours, theirs, psnr(mine.numpy(), plain))
    few = pixels[:, :, :, :1].contiguous()
    ours, mine = best_of(5, lambda: refocus(few, PART, shape="square"))
    theirs, plain = best_of(1, lambda: scipy_refocus(few.numpy(), PART, weights))
    report("refocusing one frame by parts of pixels against scipy", ours, theirs, psnr(mine.numpy(), plain))


def compare_interpolation(pixels: torch.Tensor) -> None:
    moment = as_float(pixels[:, 3:6, 3:6, 0])
    views = Interpolator(moment, 3.0)
    start = time.perf_counter()
    views.view(0.5, 0.5)
    first = time.perf_counter() - start
    ours, mine = best_of(3, lambda: views.view(0.5, 0.5))
    disparity = views.disparity_at(0.5, 0.5).numpy()
    y, x = np.mgrid[: disparity.shape[0], : disparity.shape[1]].astype(np.float32)
    sources = [(0, 0), (0, 1), (1, 0), (1, 1)]
    pictures = torch.stack([moment[:, r, c] for r, c in sources]).numpy()
    rows = np.stack([y - disparity * (r - 0.5) for r, _ in sources])
    cols = np.stack([x - disparity * (c - 0.5) for _, c in sources])
    theirs, warped = best_of(2, lambda: scipy_warp(pictures, rows, cols).mean(axis=0))
    report("a view between four cameras, its warps alone, against scipy", ours, theirs)
    print(f"  (with the search for the disparity of four cameras, once a moment: {first:.3f} s)")
    del mine, warped


def compare_quilts(pixels: torch.Tensor) -> None:
    row = pixels[:, 4]
    ours, mine = best_of(5, lambda: assemble_quilt(row, 3, 3))

    def slices() -> np.ndarray:
        array = row.numpy()
        _, count, frames, height, width = array.shape
        sheet = np.zeros((3, frames, 3 * height, 3 * width), dtype=np.uint8)
        for view in range(count):
            top, left = (2 - view // 3) * height, view % 3 * width
            sheet[:, :, top : top + height, left : left + width] = array[:, view]
        return sheet

    theirs, plain = best_of(5, slices)
    report("a quilt of 3x3 views that are there against numpy slices", ours, theirs, psnr(mine.numpy(), plain))
    one = pixels[:, 3:6, :, :1]
    ours, _ = best_of(1, lambda: quilt(one, columns=9, rows=5, report=False, max_disparity=3.0))
    views = Interpolator(as_float(one[:, :, :, 0]), 3.0)
    places = quilt_places(45, one.shape[2])
    y, x = np.mgrid[: one.shape[-2], : one.shape[-1]].astype(np.float32)

    def warps() -> None:
        for place in places:
            disparity = views.disparity(1, round(place)).numpy()
            sides = sorted({math.floor(place), math.ceil(place)})
            pictures = torch.stack([views.views[:, 1, side] for side in sides]).numpy()
            columns = np.stack([x - disparity * (side - place) for side in sides])
            scipy_warp(pictures, np.stack([y] * len(sides)), columns)

    theirs, _ = best_of(1, warps)
    report(
        "a quilt of 45 views between 9 cameras, one frame, search included, against scipy's warps alone", ours, theirs
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=9, help="rows and columns of views")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--plenpy", help="a Python that has plenpy and scipy below 1.14, whose interp2d it needs")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        measure_memory(arguments)
        return
    pixels = light_field(arguments.views, arguments.frames, arguments.size)
    print(f"{tuple(pixels.shape)}, {pixels.numel() / 2**20:.0f} MiB, one thread", flush=True)
    compare_refocus(pixels)
    if arguments.plenpy:
        compare_plenpy(pixels, arguments.plenpy)
    compare_interpolation(pixels)
    compare_quilts(pixels)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big.lf.safetensors"
        LightField(pixels).save(path)
        command = [sys.executable, __file__, "--memory", str(path)]
        said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"memory while refocusing: {said['part']:.2f} times the light field, itself included")


if __name__ == "__main__":
    main()
