"""Speed of refocusing, interpolation and quilts on a light field of 9x9 views and 16 frames of 256x256, one CPU.

Each is timed beside another way to the same result, in turns, several times; the ratio of the best times is what
counts, of the processor and by the clock (a busy machine changes the second more), and how near the results are:

- refocusing by whole pixels against shift-and-add in numpy, by slices and by `np.roll`; by parts of pixels against
  `scipy.ndimage.shift` (cubic, one frame: it is slow); against plenpy's `LightField.get_refocus` (linear, one frame)
  where a Python that has it is given;
- interpolation against the same warp by `scipy.ndimage.map_coordinates`;
- quilts of the views that are there, of which both copy every pixel once, against numpy slices and a plain copy;
- a quilt of 45 views between 9 cameras against the same warps.

Memory: the highest resident size while refocusing, less what was there before the light field, as a part of its size.

python scripts/benchmarks/projections.py --plenpy /path/to/venv/bin/python
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.light_field.interpolation import Interpolator
from diffusers_stale.light_field.quilt import assemble_quilt, quilt, quilt_places
from diffusers_stale.light_field.refocus import aperture_weights, refocus
from diffusers_stale.light_field.shifting import sampled
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
weights = np.load(sys.argv[4]).astype(np.float64)
walls, processors = [], []
for _ in range(2):
    wall, processor = time.perf_counter(), time.process_time()
    picture = field.get_refocus(slope, aperture=weights)
    processors.append(time.process_time() - processor)
    walls.append(time.perf_counter() - wall)
np.save(sys.argv[3], picture)
print("seconds", min(walls), min(processors))
"""


def light_field(views: int, frames: int, size: int) -> torch.Tensor:
    """uint8 pixels of a rendered barnyard; one frame is rendered and moved on by a pixel from frame to frame."""
    clip = render_scene(sample_scene(5, 1), views, views, 1, size, size, spacing=0.25)
    moment = clip.pixels.add(1.0).mul_(127.5).round_().to(torch.uint8)[:, :, :, 0]
    return torch.stack([moment.roll(index, -1) for index in range(frames)], dim=3)


@dataclass(frozen=True)
class Timing:
    """Least seconds of several runs: by the clock, and of the processor, which a busy machine changes less."""

    wall: float
    processor: float
    result: object


def in_turns(count: int, *works: Callable[[], object]) -> list[Timing]:
    """Each work `count` times, one after the other, so that all meet the same neighbours on the machine."""
    walls, processors, results = [[] for _ in works], [[] for _ in works], [None] * len(works)
    for _ in range(count):
        for index, work in enumerate(works):
            results[index] = None  # its memory is given back before the next is made
            wall, processor = time.perf_counter(), time.process_time()
            results[index] = work()
            processors[index].append(time.process_time() - processor)
            walls[index].append(time.perf_counter() - wall)
    return [Timing(min(pair[0]), min(pair[1]), pair[2]) for pair in zip(walls, processors, results, strict=True)]


def numpy_refocus(pixels: np.ndarray, disparity: int, weights: np.ndarray) -> np.ndarray:
    """Shift-and-add by whole pixels and slices, without care for edges: uint8 `(3, frames, height, width)`."""
    _, rows, cols, frames, height, width = pixels.shape
    total = np.zeros((3, frames, height, width), dtype=np.float32)
    for row in range(rows):
        for col in range(cols):
            down, right = disparity * (row - rows // 2), disparity * (col - cols // 2)
            (to_y, from_y), (to_x, from_x) = overlap(height, down), overlap(width, right)
            total[..., to_y, to_x] += weights[row, col] * pixels[:, row, col, :, from_y, from_x]
    return np.rint(total / weights.sum()).astype(np.uint8)


def overlap(size: int, shift: int) -> tuple[slice, slice]:
    """Where a line of pixels stands that is moved by `shift`, and which of its pixels are there."""
    return slice(max(0, shift), size + min(0, shift)), slice(max(0, -shift), size - max(0, shift))


def rolled_refocus(pixels: np.ndarray, disparity: int, weights: np.ndarray) -> np.ndarray:
    """The same as it is mostly written: by `np.roll`."""
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
            shift = (disparity * (row - rows // 2), disparity * (col - cols // 2))
            for channel, frame in np.ndindex(3, frames):
                plane = pixels[channel, row, col, frame].astype(np.float32)
                total[channel, frame] += weights[row, col] * ndimage.shift(plane, shift, order=3, mode="nearest")
    return np.rint(np.clip(total / weights.sum(), 0, 255)).astype(np.uint8)


def scipy_warp(pictures: np.ndarray, rows: np.ndarray, cols: np.ndarray, order: int = 3) -> np.ndarray:
    """Pictures `(count, 3, height, width)` at places `(count, height, width)`, cubic or of another order."""
    from scipy import ndimage

    return np.stack(
        [
            np.stack([ndimage.map_coordinates(plane, (r, c), order=order, mode="nearest") for plane in picture])
            for picture, r, c in zip(pictures, rows, cols, strict=True)
        ]
    )


def psnr(one: np.ndarray, other: np.ndarray, edge: int = 24) -> float:
    """Of uint8 pictures, in dB, without their edges, which everyone treats in another way."""
    here = (..., slice(edge, -edge), slice(edge, -edge))
    error = np.square(one[here].astype(np.float64) - other[here].astype(np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def report(name: str, ours: Timing, theirs: Timing, quality: float | None = None) -> None:
    near = "" if quality is None else f"; results {quality:.1f} dB apart"
    print(
        f"{name}: {1e3 * ours.processor:.1f} ms against {1e3 * theirs.processor:.1f} ms of processor, "
        f"{theirs.processor / ours.processor:.1f} times as fast ({1e3 * ours.wall:.1f} and {1e3 * theirs.wall:.1f} ms "
        f"by the clock, {theirs.wall / ours.wall:.1f}){near}",
        flush=True,
    )


def peak_memory() -> int:
    """Highest resident size of this process so far, in bytes (Linux; `getrusage` would tell that of its parent)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def measure_memory(shape: list[int]) -> None:
    """In a process of its own, where nothing else has been in memory; what is refocused does not matter for it."""
    start = peak_memory()
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    refocus(pixels, PART, shape="square")
    print(json.dumps({"part": (peak_memory() - start) / pixels.numel()}))


def compare_plenpy(pixels: torch.Tensor, python: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/in.npy", f"{folder}/out.npy"
        # Its u goes along the first image axis of the transposed picture, with the opposite sign of disparity.
        np.save(f"{folder}/weights.npy", aperture_weights(*pixels.shape[1:3], shape="square").numpy())
        np.save(source, pixels[:, :, :, 0].permute(1, 2, 3, 4, 0).numpy())
        for disparity in (WHOLE, PART):
            one = pixels[:, :, :, :1]
            (ours,) = in_turns(5, lambda one=one, d=disparity: refocus(one, d, shape="square"))
            command = [python, "-c", PLENPY, source, str(disparity), target, f"{folder}/weights.npy"]
            said = subprocess.run(command, capture_output=True, text=True)
            if said.returncode:
                print(f"plenpy: not measured, {said.stderr.strip().splitlines()[-1]}")
                return
            theirs = Timing(*(float(word) for word in said.stdout.split("seconds")[-1].split()), None)
            picture = np.rint(np.clip(np.load(target), 0, 1) * 255).astype(np.uint8).transpose(2, 0, 1)
            quality = psnr(ours.result[:, 0].numpy(), picture)
            report(f"refocusing one frame by {disparity:g} against plenpy", ours, theirs, quality)


def compare_refocus(pixels: torch.Tensor) -> None:
    weights, array = aperture_weights(*pixels.shape[1:3], shape="square").numpy(), pixels.numpy()
    ours, slices, rolled = in_turns(
        5,
        lambda: refocus(pixels, WHOLE, shape="square"),
        lambda: numpy_refocus(array, int(WHOLE), weights),
        lambda: rolled_refocus(array, int(WHOLE), weights),
    )
    for name, theirs in (("numpy slices", slices), ("np.roll", rolled)):
        quality = psnr(ours.result.numpy(), theirs.result)
        report(f"refocusing by whole pixels against {name}", ours, theirs, quality)
    few = pixels[:, :, :, :1].contiguous()
    (ours,) = in_turns(5, lambda: refocus(few, PART, shape="square"))
    (theirs,) = in_turns(1, lambda: scipy_refocus(few.numpy(), PART, weights))
    quality = psnr(ours.result.numpy(), theirs.result)
    report("refocusing one frame by parts of pixels against scipy", ours, theirs, quality)


def compare_interpolation(pixels: torch.Tensor) -> None:
    moment = as_float(pixels[:, 3:6, 3:6, 0])
    views = Interpolator(moment, 3.0)
    (first,) = in_turns(1, lambda: views.view(0.5, 0.5))
    disparity = views.disparity_at(0.5, 0.5).numpy()
    y, x = np.mgrid[: disparity.shape[0], : disparity.shape[1]].astype(np.float32)
    sources = [(0, 0), (0, 1), (1, 0), (1, 1)]
    pictures = torch.stack([moment[:, r, c] for r, c in sources]).numpy()
    rows = np.stack([y - disparity * (r - 0.5) for r, _ in sources])
    cols = np.stack([x - disparity * (c - 0.5) for _, c in sources])
    ours, theirs = in_turns(3, lambda: views.view(0.5, 0.5), lambda: scipy_warp(pictures, rows, cols).mean(axis=0))
    report("a view between four cameras, what hides what included, against scipy's cubic warps alone", ours, theirs)
    print(f"  (with the search for the disparity of four cameras, once a moment: {1e3 * first.processor:.0f} ms)")
    tensors = [torch.from_numpy(part) for part in (pictures, rows, cols)]
    ours, theirs = in_turns(5, lambda: sampled(*tensors), lambda: scipy_warp(pictures, rows, cols, order=1))
    both = [((part + 1) * 127.5).round().astype(np.uint8) for part in (ours.result.numpy(), theirs.result)]
    report("the same warp of four pictures, linear, against scipy", ours, theirs, psnr(*both))


def compare_quilts(pixels: torch.Tensor) -> None:
    row = pixels[:, 4, :9]
    flat = row.contiguous().flatten()

    def slices() -> np.ndarray:
        array = row.numpy()
        _, _, frames, height, width = array.shape
        sheet = np.zeros((3, frames, 3 * height, 3 * width), dtype=np.uint8)
        for view in range(9):
            top, left = (2 - view // 3) * height, view % 3 * width
            sheet[:, :, top : top + height, left : left + width] = array[:, view]
        return sheet

    ours, theirs, plain = in_turns(7, lambda: assemble_quilt(row, 3, 3), slices, flat.clone)
    quality = psnr(ours.result.numpy(), theirs.result)
    report("a quilt of 3x3 views that are there against numpy slices", ours, theirs, quality)
    report("  against a plain copy of as many bytes (nothing can be faster)", ours, plain)
    one = pixels[:, 3:6, :, :1]
    (ours,) = in_turns(1, lambda: quilt(one, columns=9, rows=5, report=False, max_disparity=3.0))
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

    (theirs,) = in_turns(1, warps)
    report(
        "a quilt of 45 views between 9 cameras, one frame, search included, against scipy's warps alone", ours, theirs
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=9, help="rows and columns of views")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; numpy and scipy have one")
    parser.add_argument("--plenpy", help="a Python that has plenpy and scipy below 1.14, whose interp2d it needs")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        measure_memory(json.loads(arguments.memory))
        return
    pixels = light_field(arguments.views, arguments.frames, arguments.size)
    print(f"{tuple(pixels.shape)}, {pixels.numel() / 2**20:.0f} MiB, {arguments.threads} thread(s)", flush=True)
    compare_refocus(pixels)
    if arguments.plenpy:
        compare_plenpy(pixels, arguments.plenpy)
    compare_interpolation(pixels)
    compare_quilts(pixels)
    command = [sys.executable, __file__, "--memory", json.dumps(list(pixels.shape))]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"memory while refocusing: {said['part']:.2f} times the light field, itself included")


if __name__ == "__main__":
    main()
