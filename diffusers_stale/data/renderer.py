"""Renders a scene for any camera grid, number of frames and size, with the true disparity of every pixel.

Painter's algorithm, far to near: what does not move is painted once a view, the animals once a view and frame.
"""

from dataclasses import dataclass

import numpy as np
import torch

from diffusers_stale.axes import check_count
from diffusers_stale.data.animals import Capsules, pose
from diffusers_stale.data.painting import Cameras, Canvas
from diffusers_stale.data.scenes import UNITS, Animal, Barn, Scene


DEFAULT_FRAME_RATE = 8.0
"""Frames a second."""

MAX_SIZE = 4096
"""Largest height or width in pixels."""


@dataclass(frozen=True)
class Light:
    """Colours of a time of day, RGB in 0..255, and the tint that multiplies everything lit by it."""

    zenith: tuple[int, int, int]
    horizon: tuple[int, int, int]
    far_hill: tuple[int, int, int]
    near_hill: tuple[int, int, int]
    far_ground: tuple[int, int, int]
    near_ground: tuple[int, int, int]
    disc: tuple[int, int, int]
    disc_radius: float
    cloud: tuple[int, int, int]
    tint: tuple[float, float, float]


LIGHTS = {
    "dawn": Light(
        (150, 170, 222), (255, 206, 214), (172, 160, 196), (128, 150, 142), (150, 178, 122), (108, 148, 92),
        (255, 240, 214), 3.4, (255, 226, 226), (1.0, 0.93, 0.96),
    ),
    "day": Light(
        (74, 150, 232), (190, 226, 250), (126, 170, 178), (94, 158, 98), (136, 192, 92), (84, 150, 58),
        (255, 244, 150), 3.8, (255, 255, 255), (1.0, 1.0, 1.0),
    ),
    "sunset": Light(
        (128, 74, 132), (255, 160, 72), (150, 86, 108), (116, 84, 70), (158, 126, 64), (108, 98, 48),
        (255, 226, 120), 4.4, (255, 176, 130), (1.0, 0.86, 0.72),
    ),
    "night": Light(
        (14, 20, 58), (44, 58, 116), (34, 44, 88), (28, 48, 70), (44, 76, 76), (28, 56, 58),
        (238, 240, 226), 3.6, (66, 78, 130), (0.66, 0.72, 0.95),
    ),
}  # fmt: skip

BARN_PAINT = {"red": (186, 38, 34), "white": (236, 234, 228), "blue": (58, 98, 176), "brown": (116, 80, 56)}
TRIM = (246, 242, 234)
WOOD = (172, 138, 98)
DOORWAY = (38, 30, 34)
ROOF = (92, 84, 92)
LAMP = (255, 214, 110)
COAT_TINT = 0.6
"""Exponent on the tint of animals: they keep more of their own colour than barns do, so that it can be told."""


@dataclass(frozen=True)
class RenderedClip:
    """A rendered scene.

    `pixels`: `(3, view_rows, view_cols, frames, height, width)`, float32 in [-1, 1].
    `disparity`: `(view_rows, view_cols, frames, height, width)`, float32, pixels per view step at this size, seen from
    each view. `foreground`: the same shape, bool, true on the animals.
    """

    pixels: torch.Tensor
    disparity: torch.Tensor
    foreground: torch.Tensor


def render_scene(
    scene: Scene,
    view_rows: int = 3,
    view_cols: int = 3,
    num_frames: int = 8,
    height: int = 64,
    width: int = 64,
    baseline: float = 1.0,
    spacing: float = 1.0,
    frame_rate: float = DEFAULT_FRAME_RATE,
    start_seconds: float | None = None,
) -> RenderedClip:
    """Renders `scene` from a planar grid of `view_rows` x `view_cols` cameras.

    Args:
        scene: what to render.
        view_rows, view_cols, num_frames: size of the grid, each at least 1.
        height, width: pixels, 8 to 4096.
        baseline: factor on all disparities; 0 makes all views equal.
        spacing: distance between neighbouring cameras in view steps; 0.5 renders twice as densely.
        frame_rate: frames a second of the scene's time.
        start_seconds: time of the first frame; by default the clip is centred on time 0.

    Returns:
        `RenderedClip`; its disparity is per step of `spacing`, in pixels.

    Raises:
        ValueError: for counts and sizes out of range.
    """
    for name, value in (("view_rows", view_rows), ("view_cols", view_cols), ("num_frames", num_frames)):
        check_count(name, value)
    for name, value in (("height", height), ("width", width)):
        if check_count(name, value, MAX_SIZE) < 8:
            raise ValueError(
                f"`{name}` must be between 8 and {MAX_SIZE} pixels, got {value}; ask for a larger picture."
            )
    if not (np.isfinite(baseline) and np.isfinite(spacing) and np.isfinite(frame_rate) and frame_rate > 0):
        raise ValueError(
            f"`baseline`, `spacing` and `frame_rate` must be finite, the last above 0, "
            f"got {baseline}, {spacing}, {frame_rate}; pass ordinary numbers."
        )
    start = -(num_frames - 1) / 2 / frame_rate if start_seconds is None else start_seconds
    cameras = Cameras.grid(view_rows, view_cols, height, width, baseline * spacing)
    light = LIGHTS[scene.time_of_day]
    back, front = Canvas(cameras), Canvas(cameras)
    _paint_sky(back, scene, light)
    _paint_land(back, scene, light)
    _paint_front(front, scene, light)
    frames = [_paint_frame(back, front, scene, light, start + frame / frame_rate) for frame in range(num_frames)]
    rgb, disparity, foreground = (np.stack(part, axis=2) for part in zip(*frames, strict=True))
    pixels = torch.from_numpy(rgb).permute(5, 0, 1, 2, 3, 4).contiguous().mul_(2.0).sub_(1.0).clamp_(-1.0, 1.0)
    scaled = torch.from_numpy(disparity).mul_(cameras.scale * baseline * spacing)
    return RenderedClip(pixels, scaled, torch.from_numpy(foreground))


def _paint_frame(
    back: Canvas, front: Canvas, scene: Scene, light: Light, seconds: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One moment in all views: colours, disparity (units) and which pixels are animal."""
    frame = Canvas.__new__(Canvas)
    frame.cameras, frame.rgb, frame.disparity = back.cameras, back.rgb.copy(), back.disparity.copy()
    frame.alpha = np.zeros_like(back.alpha)
    tint = np.asarray(light.tint, dtype=np.float32) ** COAT_TINT
    for animal in reversed(scene.animals):
        right_of, left_of = _door_cut(animal, scene.barn)
        frame.capsules(pose(animal, seconds), float(scene.ground_disparity(animal.feet)), tint, left_of, right_of)
    foreground = (frame.alpha > 0.5) & (front.alpha < 0.5)
    frame.rgb *= 1.0 - front.alpha[..., None]
    frame.rgb += front.rgb
    np.copyto(frame.disparity, front.disparity, where=front.alpha > 0.5)
    return frame.rgb, frame.disparity, foreground


def _door_cut(animal: Animal, barn: Barn | None) -> tuple[float, float]:
    """The columns between which an animal that comes out of the barn is seen; the rest of it is still inside."""
    if barn is None or not animal.leaves_barn:
        return -np.inf, np.inf
    jamb = barn.door_width / 2
    return (barn.door_x - jamb, np.inf) if animal.sign > 0 else (-np.inf, barn.door_x + jamb)


def _rgb(color: tuple[int, int, int], light: Light | None = None) -> np.ndarray:
    value = np.asarray(color, dtype=np.float32) / 255
    return value if light is None else value * np.asarray(light.tint, dtype=np.float32)


def _paint_sky(canvas: Canvas, scene: Scene, light: Light) -> None:
    far = scene.far_disparity
    rows = canvas.cameras.reference_rows(far)
    mix = np.clip(rows / scene.horizon, 0.0, 1.0)[:, None, :, None, None]
    canvas.rgb[:] = _rgb(light.zenith) * (1.0 - mix) + _rgb(light.horizon) * mix
    canvas.alpha[:] = 1.0
    canvas.disparity[:] = far
    if scene.time_of_day == "night":
        for x, y in scene.stars:
            _paint_disc(canvas, (x, y), 0.55, _rgb((235, 238, 255)), far)
    else:
        for x, y, size in scene.clouds:
            for shift, rise, radius in ((-0.7, 0.2, 0.32), (0.0, -0.2, 0.46), (0.7, 0.15, 0.34)):
                _paint_disc(
                    canvas, (x + shift * size, y + rise * size * 0.4), radius * size * 0.7, _rgb(light.cloud), far
                )
    _paint_disc(canvas, (scene.light_x, scene.light_y), light.disc_radius, _rgb(light.disc), far)
    if scene.time_of_day == "night":
        _paint_disc(
            canvas, (scene.light_x + 1.7, scene.light_y - 0.9), light.disc_radius * 0.86, _rgb(light.zenith), far
        )


def _paint_disc(
    canvas: Canvas, center: tuple[float, float], radius: float, color: np.ndarray, disparity: float
) -> None:
    point = np.asarray([center], dtype=np.float32)
    shape = Capsules(
        point, point, np.full((1, 2), radius, dtype=np.float32), color[None], np.ones(1, dtype=np.float32)
    )
    canvas.capsules(shape, disparity, np.ones(3, dtype=np.float32), np.inf, -np.inf)


def _paint_land(canvas: Canvas, scene: Scene, light: Light) -> None:
    everywhere = (-1e4, 1e4)
    far = scene.far_disparity
    for order, (color, nearness, wave) in enumerate(((light.far_hill, 0.03, 0.13), (light.near_hill, 0.16, 0.19))):

        def ridge(x: np.ndarray, order: int = order, wave: float = wave) -> np.ndarray:
            high, low = scene.hill_heights[2 * order : 2 * order + 2]
            first, second = scene.hill_phases[2 * order : 2 * order + 2]
            bumps = high * np.sin(wave * x + first) + low * 0.5 * np.sin(2.3 * wave * x + second)
            return scene.horizon - (3.0 if order == 0 else 0.5) - 0.6 * bumps

        canvas.span(_rgb(color), far + nearness, everywhere, ridge, 1e4)
    _paint_ground(canvas, scene, light)
    if scene.barn is not None:
        _paint_barn(canvas, scene, scene.barn, light)
    for x, row, size in sorted(scene.tufts, key=lambda tuft: tuft[1]):
        _paint_tuft(canvas, scene, light, (x, row), size)


def _paint_ground(canvas: Canvas, scene: Scene, light: Light) -> None:
    """The ground plane. Its disparity is affine in the row, `d = a + b * row`, so the reference row has a closed form:
    from row_view = row - v * d(row) follows row = (row_view + v * a) / (1 - v * b)."""
    cameras = canvas.cameras
    slope = (scene.near_disparity - scene.far_disparity) / (UNITS - scene.horizon)
    offset = scene.far_disparity - slope * scene.horizon
    steps = cameras.vertical[:, None]
    rows = (cameras.rows + steps * offset) / (1.0 - steps * slope)
    disparity = (offset + slope * rows)[:, None, :, None]
    coverage = np.clip((rows - scene.horizon) * cameras.scale + 0.5, 0.0, 1.0)[:, None, :, None]
    depth = np.clip((rows - scene.horizon) / (UNITS - scene.horizon), 0.0, 1.3)[:, None, :, None, None]
    color = _rgb(light.far_ground) * (1.0 - depth) + _rgb(light.near_ground) * depth
    full = (slice(None), slice(None))
    shape = cameras.shape
    canvas.lay(full, np.broadcast_to(coverage, shape), color, np.broadcast_to(disparity, shape))
    x = cameras.columns + disparity * cameras.horizontal[None, :, None, None]
    start = scene.barn.door_x if scene.barn else UNITS / 2
    middle = start + (scene.fence_x * 4 - 22.0 - start + UNITS / 2) * depth[..., 0]
    half = 1.6 + 8.0 * depth[..., 0]
    path = np.clip((half - np.abs(x - middle)) * cameras.scale + 0.5, 0.0, 1.0) * coverage
    canvas.lay(full, path * 0.75, _rgb((206, 178, 132), light), np.broadcast_to(disparity, shape))


def _paint_tuft(canvas: Canvas, scene: Scene, light: Light, place: tuple[float, float], size: float) -> None:
    x, row = place
    blade = (_rgb(light.near_ground) * 0.72).astype(np.float32)
    lean = np.asarray([-0.8, 0.0, 0.8], dtype=np.float32) * size
    starts = np.stack([np.full(3, x), np.full(3, row)], axis=1).astype(np.float32)
    ends = np.stack([x + lean, np.full(3, row) - size * np.asarray([1.0, 1.6, 1.0])], axis=1).astype(np.float32)
    radii = np.tile(np.asarray([[0.55, 0.3]], dtype=np.float32), (3, 1))
    shapes = Capsules(starts, ends, radii, np.tile(blade, (3, 1)), np.ones(3, dtype=np.float32))
    canvas.capsules(shapes, float(scene.ground_disparity(row)), np.ones(3, dtype=np.float32), np.inf, -np.inf)


def _paint_barn(canvas: Canvas, scene: Scene, barn: Barn, light: Light) -> None:
    disparity = float(scene.ground_disparity(barn.base))
    left, right = barn.x - barn.width / 2, barn.x + barn.width / 2
    eaves, ridge = barn.base - barn.wall_height, barn.base - barn.wall_height - barn.roof_height
    paint, trim = _rgb(BARN_PAINT[barn.color], light), _rgb(TRIM if barn.color != "white" else (150, 156, 168), light)

    def gambrel(x: np.ndarray, grow: float = 0.0) -> np.ndarray:
        side = np.abs(x - barn.x) / (barn.width / 2)
        return (
            np.interp(side, (0.0, 0.58, 1.0, 1.3), (ridge, ridge + 0.42 * barn.roof_height, eaves, eaves + 4)) - grow
        )

    canvas.span(_rgb(ROOF, light), disparity, (left - 1.2, right + 1.2), lambda x: gambrel(x, 1.5), eaves + 0.8)
    canvas.span(paint, disparity, (left, right), gambrel, barn.base)
    for seam in np.arange(left + 3.2, right - 1.0, 3.4):
        canvas.span(paint * 0.84, disparity, (seam, seam + 0.5), eaves, barn.base)
    canvas.span(trim, disparity, (left, right), eaves - 0.4, eaves + 0.4)
    night = scene.time_of_day == "night"
    loft = _rgb(LAMP) if night else _rgb(DOORWAY, light)
    canvas.span(trim, disparity, (barn.x - 2.9, barn.x + 2.9), ridge + 3.4, ridge + 8.6)
    canvas.span(loft, disparity, (barn.x - 2.1, barn.x + 2.1), ridge + 4.2, ridge + 7.8)
    jamb, lintel = barn.door_width / 2, barn.base - barn.door_height
    canvas.span(trim, disparity, (barn.door_x - jamb - 1.0, barn.door_x + jamb + 1.0), lintel - 1.0, barn.base)
    canvas.span(_rgb(DOORWAY), disparity, (barn.door_x - jamb, barn.door_x + jamb), lintel, barn.base)


def _paint_front(canvas: Canvas, scene: Scene, light: Light) -> None:
    if not scene.fence:
        return
    base = 63.0
    disparity = float(scene.ground_disparity(base))
    wood = _rgb(WOOD, light)
    for top in (55.2, 59.0):
        canvas.span(wood, disparity, (-1e4, 1e4), top, top + 1.5)
        canvas.span(wood * 0.7, disparity, (-1e4, 1e4), top + 1.5, top + 1.9)
    reach = (canvas.cameras.columns.min() - 8.0, canvas.cameras.columns.max() + 8.0)
    for x in np.arange(scene.fence_x - 110.0, 180.0, 11.0):
        if reach[0] < x < reach[1]:
            canvas.span(wood, disparity, (x, x + 2.2), 53.2, base)
            canvas.span(wood * 0.7, disparity, (x + 1.7, x + 2.2), 53.2, base)
