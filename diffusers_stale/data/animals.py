"""The animals as skeletons of tapered capsules that move with their gait. Nothing here knows views or pixels.

A skeleton stands in its own coordinates: x forward, y up, feet at y = 0, in units at size 1.
"""

from dataclasses import dataclass

import numpy as np

from diffusers_stale.data.scenes import Animal


Point = tuple[float, float]
Color = tuple[int, int, int]

COAT_COLORS = {
    "brown": (156, 96, 46),
    "black": (34, 31, 40),
    "white": (243, 240, 233),
    "grey": (138, 143, 154),
    "golden": (233, 178, 58),
    "pink": (241, 146, 168),
}
DARK = (40, 32, 30)
FLESH = (236, 158, 156)
IVORY = (240, 226, 190)
SCARLET = (214, 40, 36)
BEAK = (244, 164, 32)

CYCLES_PER_SECOND = {"standing": 0.25, "eating": 0.5, "walking": 1.0, "galloping": 2.0}


@dataclass(frozen=True)
class Capsules:
    """Tapered capsules, painted in order. `starts`, `ends`: `(capsules, 2)`; `radii`: `(capsules, 2)` at start and
    end; `colors`: `(capsules, 3)` in [0, 1]; `alphas`: `(capsules,)`."""

    starts: np.ndarray
    ends: np.ndarray
    radii: np.ndarray
    colors: np.ndarray
    alphas: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Build:
    """Proportions of a four-legged animal, in units."""

    leg: float
    half_length: float
    girth: float
    neck_base: tuple[float, float]
    neck: tuple[float, float]
    neck_girth: tuple[float, float]
    head: tuple[float, float]
    head_girth: tuple[float, float]
    leg_girth: float
    low_head: tuple[float, float]


BUILDS = {
    "horse": Build(
        leg=10.0,
        half_length=7.2,
        girth=3.7,
        neck_base=(7.5, 14.0),
        neck=(5.0, 6.5),
        neck_girth=(2.9, 1.9),
        head=(4.8, -2.6),
        head_girth=(1.9, 1.2),
        leg_girth=1.5,
        low_head=(5.2, -8.6),
    ),
    "cow": Build(
        leg=6.5,
        half_length=7.6,
        girth=5.2,
        neck_base=(9.0, 12.8),
        neck=(3.6, 1.6),
        neck_girth=(3.4, 2.6),
        head=(3.8, -2.4),
        head_girth=(2.6, 1.9),
        leg_girth=1.6,
        low_head=(4.0, -7.4),
    ),
    "sheep": Build(
        leg=5.0,
        half_length=4.6,
        girth=4.8,
        neck_base=(6.4, 11.4),
        neck=(2.6, 1.6),
        neck_girth=(2.8, 2.3),
        head=(2.8, -1.6),
        head_girth=(2.3, 1.5),
        leg_girth=1.0,
        low_head=(3.0, -6.4),
    ),
    "pig": Build(
        leg=3.2,
        half_length=5.6,
        girth=5.0,
        neck_base=(6.6, 8.6),
        neck=(2.6, 0.6),
        neck_girth=(4.2, 3.6),
        head=(3.0, -1.0),
        head_girth=(3.2, 1.9),
        leg_girth=1.5,
        low_head=(3.2, -4.2),
    ),
}


class _Sketch:
    """Collects capsules in the animal's own coordinates."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []

    def limb(
        self, start: Point, end: Point, radius: float, color: Color, taper: float | None = None, alpha: float = 1.0
    ) -> None:
        """A capsule from `start` to `end`; `radius` at the start and `taper` (or the same) at the end."""
        end_radius = radius if taper is None else taper
        self.rows.append((*start, *end, radius, end_radius, *(channel / 255 for channel in color), alpha))

    def spot(self, center: Point, radius: float, color: Color, alpha: float = 1.0) -> None:
        self.limb(center, (center[0] + 0.05, center[1]), radius, color, alpha=alpha)

    def capsules(self) -> Capsules:
        table = np.asarray(self.rows, dtype=np.float32)
        return Capsules(table[:, 0:2], table[:, 2:4], table[:, 4:6], table[:, 6:9], table[:, 9])


def pose(animal: Animal, seconds: float) -> Capsules:
    """The capsules of `animal` in scene units (x right, y down), `seconds` after time 0."""
    phase = animal.phase + 2 * np.pi * CYCLES_PER_SECOND[animal.gait] * seconds
    sketch = _Sketch()
    length = 6.0 if animal.kind == "chicken" else BUILDS[animal.kind].half_length + 3.0
    sketch.limb((-length, -0.1), (length, -0.1), 1.2, (20, 24, 30), alpha=0.38)
    if animal.kind == "chicken":
        _sketch_chicken(sketch, animal, phase)
    else:
        _sketch_quadruped(sketch, animal, phase)
    local = sketch.capsules()
    scale = np.array([animal.sign * animal.size, -animal.size], dtype=np.float32)
    origin = np.array([animal.position(seconds), animal.feet], dtype=np.float32)
    return Capsules(
        local.starts * scale + origin,
        local.ends * scale + origin,
        local.radii * animal.size,
        local.colors,
        local.alphas,
    )


def _shade(color: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    return tuple(min(255, int(channel * factor)) for channel in color)


def _sketch_quadruped(sketch: _Sketch, animal: Animal, phase: float) -> None:
    build = BUILDS[animal.kind]
    coat = COAT_COLORS[animal.color]
    bob = {"walking": 0.3, "galloping": 1.0}.get(animal.gait, 0.0) * np.sin(
        2 * phase if animal.gait == "walking" else phase
    )
    back = build.leg + build.girth * 0.7 + bob
    legs = coat if animal.kind != "sheep" else (78, 70, 68)
    _sketch_legs(sketch, build, animal.gait, phase, legs, near=False)
    _sketch_tail(sketch, animal.kind, build, coat, back, phase)
    pitch = 0.9 * np.cos(phase) if animal.gait == "galloping" else 0.0
    hip, shoulder = (-build.half_length, back - pitch), (build.half_length, back + pitch)
    if animal.kind == "sheep":
        _sketch_wool(sketch, build, coat, back)
    else:
        sketch.limb(hip, shoulder, build.girth, coat, taper=build.girth * (1.04 if animal.kind == "horse" else 0.96))
    if animal.kind == "cow":
        _sketch_patches(sketch, animal.color, back)
    _sketch_legs(sketch, build, animal.gait, phase, legs, near=True)
    _sketch_head(sketch, animal, build, coat, bob + pitch, phase)


def _sketch_legs(
    sketch: _Sketch, build: Build, gait: str, phase: float, color: tuple[int, int, int], *, near: bool
) -> None:
    swing = {"walking": 0.45, "galloping": 0.85}.get(gait, 0.0)
    offsets = {"walking": (0.0, 0.5 * np.pi), "galloping": (0.0, 0.8 * np.pi)}.get(gait, (0.0, 0.0))
    shift = np.pi if gait == "walking" else 0.5
    tone = color if near else _shade(color, 0.68)
    for place, offset, rest in ((-1.0, offsets[0], -0.10), (0.92, offsets[1], 0.06)):
        angle_phase = phase + offset + (0.0 if near else shift)
        angle = rest + swing * np.sin(angle_phase) + (0.0 if near else 0.14)
        bend = swing * 1.1 * max(0.0, float(np.cos(angle_phase)))
        hip = np.array([place * build.half_length, build.leg + 1.0])
        half = (build.leg + 1.0) / 2
        knee = hip + half * np.array([np.sin(angle), -np.cos(angle)])
        lower = angle - bend
        foot = knee + (half - 0.6) * np.array([np.sin(lower), -np.cos(lower)])
        sketch.limb(hip, knee, build.leg_girth * 1.15, tone, taper=build.leg_girth * 0.8)
        sketch.limb(knee, foot, build.leg_girth * 0.8, tone, taper=build.leg_girth * 0.65)
        sketch.spot((foot[0] + 0.25, foot[1] + 0.1), build.leg_girth * 0.72, _shade(DARK, 1.0 if near else 0.7))


def _sketch_tail(
    sketch: _Sketch, kind: str, build: Build, coat: tuple[int, int, int], back: float, phase: float
) -> None:
    root = (-build.half_length - build.girth * 0.85, back + 1.0)
    sway = float(np.sin(phase))
    if kind == "horse":
        sketch.limb(root, (root[0] - 3.4 + 0.9 * sway, root[1] - 7.0), 1.0, _shade(coat, 0.55), taper=1.5)
    elif kind == "cow":
        sketch.limb(root, (root[0] - 0.9 + 0.8 * sway, root[1] - 7.6), 0.6, _shade(coat, 0.8), taper=0.5)
        sketch.spot((root[0] - 0.9 + 0.8 * sway, root[1] - 8.0), 1.1, DARK)
    elif kind == "pig":
        sketch.limb(root, (root[0] - 1.8, root[1] + 1.6 + 0.4 * sway), 0.7, _shade(coat, 0.85), taper=0.5)
        sketch.limb((root[0] - 1.8, root[1] + 1.6), (root[0] - 0.6, root[1] + 2.6), 0.5, _shade(coat, 0.85))
    else:
        sketch.spot((root[0] - 0.2, root[1] - 0.5), 1.4, coat)


def _sketch_wool(sketch: _Sketch, build: Build, coat: tuple[int, int, int], back: float) -> None:
    for angle in np.linspace(0.0, 2 * np.pi, 8, endpoint=False):
        center = (1.25 * build.half_length * np.cos(angle), back + 2.6 * np.sin(angle))
        sketch.spot(center, 2.9, _shade(coat, 0.94 if np.sin(angle) < -0.1 else 1.0))
    sketch.limb((-3.6, back), (3.6, back), 3.8, coat)


def _sketch_patches(sketch: _Sketch, color: str, back: float) -> None:
    patch = (74, 66, 66) if color == "white" else (246, 243, 236)
    sketch.limb((-4.8, back + 1.6), (-3.4, back + 0.4), 1.9, patch, taper=1.4)
    sketch.limb((2.6, back + 2.2), (4.0, back + 1.8), 1.5, patch, taper=1.2)
    sketch.spot((-4.0, back - 5.4), 1.7, FLESH)


def _sketch_head(
    sketch: _Sketch, animal: Animal, build: Build, coat: tuple[int, int, int], lift: float, phase: float
) -> None:
    base = np.array(build.neck_base) + (0.0, lift)
    nod = {"standing": 0.25, "eating": 0.7, "walking": 0.35, "galloping": 0.8}[animal.gait] * float(np.sin(phase))
    reach = build.low_head if animal.gait == "eating" else build.neck
    poll = base + np.array(reach) + (0.0, nod)
    direction = np.array(build.head) if animal.gait != "eating" else np.array([build.head[0] * 0.6, -2.6])
    muzzle = poll + direction
    muzzle[1] = max(muzzle[1], 1.2)
    face = (70, 62, 62) if animal.kind == "sheep" and animal.color != "black" else coat
    face = (150, 140, 132) if animal.kind == "sheep" and animal.color == "black" else face
    sketch.limb(base - (1.2, 0.6), poll, build.neck_girth[0], coat, taper=build.neck_girth[1])
    if animal.kind == "horse":
        sketch.limb(base + (-1.8, 2.4), poll + (-1.4, 1.0), 1.2, _shade(coat, 0.55), taper=1.0)
    sketch.limb(poll, muzzle, build.head_girth[0], face, taper=build.head_girth[1])
    _sketch_features(sketch, animal, coat, poll, muzzle)
    eye = (250, 250, 250) if animal.color in ("black", "brown") or animal.kind == "sheep" else (20, 18, 24)
    sketch.spot(poll + 0.3 * (muzzle - poll) + (0.0, 0.5), 0.55, eye)


def _sketch_features(
    sketch: _Sketch, animal: Animal, coat: tuple[int, int, int], poll: np.ndarray, muzzle: np.ndarray
) -> None:
    if animal.kind == "horse":
        sketch.limb(poll + (-0.3, 1.3), poll + (0.0, 3.4), 0.9, _shade(coat, 0.85), taper=0.4)
    elif animal.kind == "cow":
        for side in (-1.6, 0.9):
            sketch.limb(poll + (side, 1.9), poll + (side * 1.7, 4.8), 0.8, IVORY, taper=0.4)
        sketch.spot(muzzle, 1.7, FLESH)
    elif animal.kind == "sheep":
        sketch.limb(poll + (-1.6, 1.8), poll + (0.8, 2.0), 1.5, coat)
        sketch.limb(poll + (-0.8, 0.4), poll + (-2.6, -0.6), 0.8, (56, 50, 50))
    elif animal.kind == "pig":
        sketch.limb(poll + (-1.2, 2.4), poll + (0.6, 4.6), 1.5, _shade(coat, 0.8), taper=0.4)
        sketch.limb(muzzle, muzzle + (1.1, 0.0), 1.6, _shade(FLESH, 0.86))
        sketch.spot(muzzle + (1.9, 0.1), 0.4, DARK)


def _sketch_chicken(sketch: _Sketch, animal: Animal, phase: float) -> None:
    coat = COAT_COLORS[animal.color]
    swing = {"walking": 0.5, "galloping": 0.9}.get(animal.gait, 0.0)
    bob = swing * 0.8 * abs(float(np.sin(phase)))
    for near in (False, True):
        angle = swing * np.sin(phase + (0.0 if near else np.pi)) + (0.0 if near else 0.2)
        hip = np.array([-0.3, 4.6 + bob])
        foot = hip + 4.2 * np.array([np.sin(angle), -np.cos(angle)])
        sketch.limb(hip, foot, 0.7, _shade(BEAK, 1.0 if near else 0.7))
        sketch.limb(foot, foot + (1.6, 0.0), 0.55, _shade(BEAK, 1.0 if near else 0.7))
    body = 8.0 + bob
    for lift, reach in ((3.4, -9.4), (5.2, -8.0), (6.4, -6.4)):
        sketch.limb((-4.0, body + 0.6), (reach, body + lift), 1.9, _shade(coat, 0.72), taper=0.9)
    sketch.limb((-2.6, body), (2.6, body + 0.2), 4.5, coat, taper=3.8)
    eating = animal.gait == "eating"
    nod = (0.9 if eating else 0.4) * float(np.sin(phase))
    head = np.array([8.2, 4.6 + nod]) if eating else np.array([5.8 + 0.5 * nod, body + 7.2])
    sketch.limb((3.4, body + 1.6), head, 2.8, coat, taper=2.1)
    sketch.limb((-2.8, body + 0.4), (0.6, body - 0.6), 2.2, _shade(coat, 0.78), taper=1.6)
    down = np.array([0.9, -1.2]) if eating else np.array([1.5, -0.2])
    for place in (-0.9, 0.3, 1.4):
        sketch.spot(head + (place, 2.3 - 0.3 * abs(place)), 1.0, SCARLET)
    sketch.limb(head + down, head + down * 2.2, 1.0, BEAK, taper=0.4)
    sketch.spot(head + (0.9, -2.2), 0.9, SCARLET)
    sketch.spot(head + (0.5, 0.5), 0.55, (250, 250, 250) if animal.color in ("black", "brown") else (20, 18, 24))
