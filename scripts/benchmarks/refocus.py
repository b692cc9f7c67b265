"""How near interpolated views and refocusing from 3x3 cameras come to what a dense grid shows, on rendered barnyards.

Two bars: views interpolated between 3x3 cameras reach 32 dB against those rendered at twice the density; refocusing
3x3 through interpolation is at least 6 dB nearer to the refocused 17x17 truth than shift-and-add on 3x3. The scenes
are of a seed that nothing was tuned on; another can be given. `--bound` tells beside it what interpolation would gain
that knew the true disparity of every camera: what is missing then is not a matter of finding it.

Plain is `refocus` of the nine cameras, which counts those at the rim of the lens in part: better than what is mostly
done. "Alike" is shift-and-add as numpy and plenpy do it, all views counting the same, in the truth as well; told at
zero disparity, where nothing has to be moved for it.

python scripts/benchmarks/refocus.py
"""

import argparse

import torch

from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.light_field.interpolation import Interpolator
from diffusers_stale.light_field.refocus import Lens, refocus


VIEW_BAR = 32.0
GAIN_BAR = 6.0
FOCUS = ["far", "zero", "near"]
"""On the least disparity of the scene, on none, on the largest."""

MARGIN = 0.5
"""Pixels that are searched beyond the largest disparity of the scene."""


def psnr(picture: torch.Tensor, truth: torch.Tensor) -> float:
    """Of pictures in [-1, 1], in dB."""
    return float(10 * torch.log10(4 / (picture - truth).square().mean()))


def view_quality(seed: int, index: int, size: int) -> list[float]:
    """PSNR of every view of a 5x5 grid that is not among the 3x3 it is interpolated from."""
    clip = render_scene(sample_scene(seed, index), 5, 5, 1, size, size, spacing=0.5)
    dense = clip.pixels[:, :, :, 0]
    views = Interpolator(dense[:, ::2, ::2], 2 * float(clip.disparity.abs().max()) + MARGIN)
    between = [(r, c) for r in range(5) for c in range(5) if r % 2 or c % 2]
    return [psnr(views.view(r / 2, c / 2), dense[:, r, c]) for r, c in between]


def refocus_quality(
    seed: int, index: int, size: int, densify: int, bound: bool, focus: list[str]
) -> dict[str, dict[str, float]]:
    """PSNR against the refocused 17x17 grid, focused far, at 0 and near, by every way."""
    clip = render_scene(sample_scene(seed, index), 17, 17, 1, size, size, spacing=1 / 8)
    dense, sparse = clip.pixels, clip.pixels[:, ::8, ::8]
    reach, known = 8 * float(clip.disparity.abs().max()) + MARGIN, 8 * clip.disparity[::8, ::8, 0]
    planes = {"far": 8 * float(clip.disparity.min()), "zero": 0.0, "near": 8 * float(clip.disparity.max())}
    found = {}
    for name in focus:
        plane = planes[name]
        truth = refocus(dense, plane / 8)
        ways = {"plain": {}, "prefiltered": {"prefilter": True}, "densified": {"densify": densify}}
        found[name] = {
            way: psnr(refocus(sparse, plane, max_disparity=reach, **options), truth) for way, options in ways.items()
        }
        if bound:
            views = Interpolator(sparse[:, :, :, 0], reach, known)
            lens = Lens.of(sparse, plane, None, "disc", densify)
            found[name]["bound"] = psnr(lens.interpolated(views, plane, densify), truth[:, 0])
        if name == "zero":
            truth, square = dense.mean(dim=(1, 2)), {"shape": "square", "densify": densify}
            found["zero, alike"] = {
                "plain": psnr(sparse.mean(dim=(1, 2)), truth),
                "densified": psnr(refocus(sparse, plane, max_disparity=reach, **square), truth),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2027, help="of the scenes")
    parser.add_argument("--scenes", type=int, default=12, help="how many")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--densify", type=int, default=4, help="views for one step between cameras")
    parser.add_argument("--bound", action="store_true", help="interpolate by true disparities too")
    parser.add_argument("--focus", nargs="+", choices=FOCUS, default=FOCUS, help="where; all by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    views, gains = [], {}
    for index in range(arguments.scenes):
        quality = view_quality(arguments.seed, index, arguments.size)
        views.append(quality)
        line = f"scene {index:2}: views {sum(quality) / len(quality):.1f} dB, worst {min(quality):.1f}"
        sizes = arguments.size, arguments.densify
        found = refocus_quality(arguments.seed, index, *sizes, arguments.bound, arguments.focus)
        for name, ways in found.items():
            plain = ways.pop("plain")
            gains.setdefault(name, []).append({way: value - plain for way, value in ways.items()})
            line += f"; {name} {plain:.1f}" + "".join(f", {way} {value - plain:+.1f}" for way, value in ways.items())
        print(line, flush=True)
    every = [value for quality in views for value in quality]
    print(
        f"views: mean {sum(every) / len(every):.1f} dB, worst {min(every):.1f}, "
        f"{sum(value >= VIEW_BAR for value in every)} of {len(every)} at or above {VIEW_BAR:g}"
    )
    for name, scenes in gains.items():
        for way in scenes[0]:
            every = [scene[way] for scene in scenes]
            print(
                f"{name}, {way}: {sum(every) / len(every):+.1f} dB on average, least {min(every):+.1f}, "
                f"{sum(gain >= GAIN_BAR for gain in every)} of {len(every)} at or above {GAIN_BAR:g}"
            )


if __name__ == "__main__":
    main()
