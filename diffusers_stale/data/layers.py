"""Light fields that are made of ordinary videos by warping layers, to train on before there are real ones.

A video is cut into regions of like colour that lie together. Each gets a made-up disparity, nearer towards the bottom
of the picture, or that of a depth map where there is one. Regions of about one disparity are a layer; layers are moved
for every camera and laid over each other from the farthest to the nearest, and what they uncover is filled from the
layer behind. It shows a network that things move together, hide each other and keep their edges; without a depth map
it does not show what is near. The middle view is the video.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from diffusers_stale.axes import displaced, view_coordinates
from diffusers_stale.data.clips import Clip, Form, Sizes
from diffusers_stale.data.decoding import Part, fitted, header_of, pictures_of
from diffusers_stale.data.scenes import random_generator
from diffusers_stale.light_field.shifting import box_mean, shifted


LAYERS = 6
REGIONS = 14
ROUNDS = 8
"""Layers of a clip, regions that they are made of, and rounds of k-means to find those."""

PLACE_WEIGHT = 0.7
"""How much the place of a pixel counts beside its colour, both in [-1, 1]."""

GUESS = 0.35
"""Deviation of made-up nearness around that of the place in the picture, of the whole range."""

FAR, NEAR = (-1.15, -0.85), (1.7, 2.1)
"""Ranges of the farthest and the nearest disparity, in pixels per view step at 64 pixels a side: the barnyards'."""

REFERENCE_SIZE = 64
SMOOTHING = 5
"""Side of the window in which the most frequent region of each pixel is taken."""

LOOKED_AT = range(0, 64, 16)
"""Frames that regions are found in."""

LAYER_STREAM = 71


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Regions by `centres` `(regions, 5)` (colour, row, column) and the layer of each; or bounds of depth for layers.

    `disparities` `(layers,)` grow, in pixels per view step at `REFERENCE_SIZE`.
    """

    disparities: torch.Tensor
    centres: torch.Tensor | None = None
    layers: torch.Tensor | None = None
    bounds: torch.Tensor | None = None


class Layered:
    """The form of a video that is warped: `view_rows` x `view_cols` views, disparities times `baseline`."""

    def __init__(
        self, video: Form, name: str, view_rows: int, view_cols: int, baseline: float, depth: Part | None = None,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.video, self.name, self.baseline, self.depth, self.seed = video, name, baseline, depth, seed
        self.view_rows, self.view_cols = view_rows, view_cols
        self._found: tuple[Sizes, Plan] | None = None

    def sizes(self) -> Sizes:
        """Raises `ValueError` for a clip of several views, and for a depth map of another length."""
        found = self.video.sizes()
        if found.view_rows * found.view_cols != 1:
            raise ValueError(
                f"Expected a monocular video in {self.name}, got {found.view_rows}x{found.view_cols} views; train on "
                "it as folder:... instead."
            )
        if self.depth is not None and (length := header_of(self.depth).frames) not in (1, found.frames):
            raise ValueError(f"Expected a depth of 1 or {found.frames} frames in {self.depth}, got {length}.")
        return Sizes(
            view_rows=self.view_rows,
            view_cols=self.view_cols,
            frames=found.frames,
            frame_rate=found.frame_rate,
            baseline=self.baseline,
        )

    def read(self, rows: range, cols: range, frames: range, size: int) -> torch.Tensor:
        sizes, plan = self._planned()
        video = _floats(self.video.read(range(1), range(1), frames, size)[:, 0, 0])
        if self.depth is None:
            labels = region_labels(video, plan)
        else:
            labels = torch.bucketize(self._depth(frames, sizes.frames, size), plan.bounds)
        disparities = plan.disparities * (self.baseline * size / REFERENCE_SIZE)
        steps = view_coordinates(self.view_rows)[list(rows)], view_coordinates(self.view_cols)[list(cols)]
        farthest = (max(self.view_rows, self.view_cols) - 1) / 2
        views = layered_views(video, labels, disparities, *steps, farthest)
        return ((views + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)

    def members(self) -> dict[str, Part]:
        return self.video.members()

    def _planned(self) -> tuple[Sizes, Plan]:
        if self._found is None:
            sizes = self.sizes()
            draw = random_generator(self.seed, zlib.crc32(self.name.encode()), LAYER_STREAM)
            looked_at = range(0, min(sizes.frames, LOOKED_AT.stop), LOOKED_AT.step)
            if self.depth is None:
                video = _floats(self.video.read(range(1), range(1), looked_at, REFERENCE_SIZE)[:, 0, 0])
                plan = plan_of_colours(video, draw)
            else:
                plan = plan_of_depth(self._depth(looked_at, sizes.frames, REFERENCE_SIZE), draw)
            self._found = sizes, plan
        return self._found

    def _depth(self, frames: range, count: int, size: int) -> torch.Tensor:
        """Nearness of every pixel, 0 to 255, `(frames, size, size)`."""
        single = header_of(self.depth).frames == 1 and count > 1
        pictures = pictures_of(self.depth, range(1) if single else frames)
        values = torch.stack([fitted(picture, size).float().mean(dim=0) for picture in pictures])
        return values.expand(len(frames), -1, -1).contiguous()


def layered_clip(clip: Clip, view_rows: int, view_cols: int, baselines: tuple[float, ...], seed: int) -> Clip:
    """A monocular clip as a light field of `view_rows` x `view_cols` views, whose baseline is one of `baselines`.

    Raises `ValueError` as `Layered.sizes`.
    """
    draw = random_generator(seed, zlib.crc32(clip.name.encode()), LAYER_STREAM, 1)
    form = Layered(clip.form, clip.name, view_rows, view_cols, float(draw.choice(baselines)), clip.depth, seed)
    sizes = form.sizes()
    return Clip(
        name=clip.name,
        captions=clip.captions,
        form=form,
        view_rows=view_rows,
        view_cols=view_cols,
        frames=clip.frames,
        baseline=sizes.baseline,
        frame_step=clip.frame_step,
        depth=clip.depth,
    )


def layered_views(
    video: torch.Tensor, labels: torch.Tensor, disparities: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor,
    farthest: float,
) -> torch.Tensor:  # fmt: skip
    """What cameras beside that of a video would see, if it were made of flat layers.

    Args:
        video: in [-1, 1], `(3, frames, height, width)`.
        labels: the layer of each pixel, `(frames, height, width)`; a higher one is nearer.
        disparities: of each layer, growing, in pixels per view step, `(layers,)`.
        rows, cols: signed positions of the cameras, in view steps, `(view_rows,)` and `(view_cols,)`.
        farthest: position of the outermost camera that there is; layers reach so far behind others.

    Returns:
        `(3, view_rows, view_cols, frames, height, width)`, in [-1, 1]; at position 0 it is the video.
    """
    pictures = video.transpose(0, 1)
    reach = float(disparities.abs().max()) * farthest
    layers = _layers(pictures, labels[:, None], len(disparities), reach)
    views = []
    for row in rows.tolist():
        line = []
        for col in cols.tolist():
            canvas = None
            for disparity, (colours, cover) in zip(disparities.tolist(), layers, strict=True):
                # What stands at 0 is seen at `displaced`, so the layer moves by as much.
                down, right = (float(displaced(0.0, disparity, step)) for step in (row, col))
                moved = shifted(colours, down, right)
                share = shifted(cover, down, right).clamp_(0, 1)
                canvas = moved if canvas is None else canvas + (moved - canvas) * share
            line.append(canvas.clamp(-1, 1).transpose(0, 1))
        views.append(torch.stack(line, dim=1))
    return torch.stack(views, dim=1)


def plan_of_colours(video: torch.Tensor, draw: np.random.Generator) -> Plan:
    """Regions of a video `(3, frames, height, width)` by k-means, with made-up disparities."""
    points = _features(video)
    centres = points[torch.from_numpy(draw.choice(len(points), REGIONS, replace=len(points) < REGIONS))]
    for _ in range(ROUNDS):
        nearest = torch.cdist(points, centres).argmin(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=REGIONS)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    nearness = centres[:, 3] / PLACE_WEIGHT + 2 * GUESS * torch.from_numpy(draw.standard_normal(REGIONS)).float()
    layers = nearness.argsort().argsort() * LAYERS // REGIONS
    return Plan(disparities=_disparities(draw), centres=centres, layers=layers)


def plan_of_depth(depth: torch.Tensor, draw: np.random.Generator) -> Plan:
    """Layers that divide the range of `depth` evenly."""
    low, high = float(depth.min()), float(depth.max())
    return Plan(disparities=_disparities(draw), bounds=torch.linspace(low, high, LAYERS + 1)[1:-1])


def region_labels(video: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The layer of each pixel of a video `(3, frames, height, width)`, as `plan` has it; `(frames, height, width)`."""
    nearest = torch.cdist(_features(video), plan.centres).argmin(dim=1)
    layers = plan.layers[nearest].reshape(video.shape[1:])
    shares = torch.stack([box_mean((layers == index).float(), SMOOTHING) for index in range(LAYERS)])
    return shares.argmax(dim=0)


def _disparities(draw: np.random.Generator) -> torch.Tensor:
    return torch.linspace(float(draw.uniform(*FAR)), float(draw.uniform(*NEAR)), LAYERS)


def _features(video: torch.Tensor) -> torch.Tensor:
    """Colour, row and column of every pixel, `(frames * height * width, 5)`."""
    frames, height, width = video.shape[1:]
    rows = torch.linspace(-PLACE_WEIGHT, PLACE_WEIGHT, height)[None, :, None].expand(frames, -1, width)
    cols = torch.linspace(-PLACE_WEIGHT, PLACE_WEIGHT, width).expand(frames, height, -1)
    return torch.stack([*video, rows, cols]).flatten(1).T.contiguous()


def _layers(
    pictures: torch.Tensor, labels: torch.Tensor, count: int, reach: float
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Colours of each layer, everywhere, and where it covers what is behind it: also some way behind what hides it."""
    side = 2 * int(np.ceil(reach)) + 1
    found, before = [], pictures
    for index in reversed(range(count)):
        own = (labels == index).float()
        # Of a layer that a frame has nothing of, the one before it tells what is there.
        colours = torch.where(own.flatten(1).any(dim=1)[:, None, None, None], _extended(pictures, own), before)
        cover = functional.max_pool2d(own, side, 1, side // 2) * (labels >= index)
        found.append((colours, cover))
        before = colours
    return found[::-1]


def _extended(pictures: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`pictures` where `mask` is 1, and elsewhere what is near there: means over ever larger squares."""
    if min(mask.shape[-2:]) == 1 or mask.all():
        mean = (pictures * mask).sum(dim=(2, 3), keepdim=True) / mask.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
        return torch.where(mask > 0, pictures, mean)
    weight = functional.avg_pool2d(mask, 2, ceil_mode=True)
    means = functional.avg_pool2d(pictures * mask, 2, ceil_mode=True) / weight.clamp(min=1e-6)
    coarse = _extended(means, (weight > 0).float())
    fine = functional.interpolate(coarse, pictures.shape[-2:], mode="bilinear")
    return torch.where(mask > 0, pictures, fine)


def _floats(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1
