"""What a barnyard scene is, and how one is drawn at random. Nothing here makes pixels or sentences.

Lengths are in *units*: the picture is 64 units high and 64 wide around its middle, so at 64 px a unit is a pixel.
Disparities are in units per view step. The ground is a plane, so its disparity is affine in the row, and whatever
stands on the ground at a row has the disparity of that row.
"""

from dataclasses import dataclass

import numpy as np


UNITS = 64.0
"""Height and width, in units, of the square that every scene fills."""

TIMES_OF_DAY = ("dawn", "day", "sunset", "night")
BARN_COLORS = ("red", "white", "blue", "brown")
ANIMAL_KINDS = ("horse", "cow", "sheep", "pig", "chicken")
ANIMAL_COLORS = ("brown", "black", "white", "grey", "golden", "pink")
DIRECTIONS = ("left", "right")
ACTIONS = ("standing", "walking", "galloping", "leaving", "eating")

ATTRIBUTE_VALUES = {
    "time_of_day": TIMES_OF_DAY,
    "barn": ("none", *BARN_COLORS),
    "fence": ("no", "yes"),
    "number": ("one", "two"),
    "kind": ANIMAL_KINDS,
    "color": ANIMAL_COLORS,
    "direction": DIRECTIONS,
    "action": ACTIONS,
}
"""Every attribute that a caption can state and a classifier can be asked for, with its values."""

SPEEDS = {"standing": 0.0, "eating": 0.0, "walking": 9.0, "galloping": 22.0}
"""Units a second by gait."""


@dataclass(frozen=True, kw_only=True)
class Animal:
    """One animal. `x` (units) is where the middle of its body is at time 0, `feet` the row that it stands on."""

    kind: str
    color: str
    direction: str
    gait: str
    x: float
    feet: float
    size: float
    phase: float
    leaves_barn: bool = False

    @property
    def sign(self) -> int:
        """+1 where the animal faces right, -1 where it faces left."""
        return 1 if self.direction == "right" else -1

    def position(self, seconds: float) -> float:
        """Column of the middle of the body, in units, `seconds` after time 0."""
        return self.x + self.sign * SPEEDS[self.gait] * (0.8 if self.leaves_barn else 1.0) * seconds


@dataclass(frozen=True, kw_only=True)
class Barn:
    """A barn with a gambrel roof and an open door. Lengths in units."""

    color: str
    x: float
    base: float
    width: float
    wall_height: float
    roof_height: float
    door_offset: float
    door_width: float
    door_height: float

    @property
    def door_x(self) -> float:
        return self.x + self.door_offset


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that is seen. The first animal is the nearest one; `scene_attributes` speaks of it."""

    time_of_day: str
    horizon: float
    far_disparity: float
    near_disparity: float
    hill_heights: tuple[float, float, float, float]
    hill_phases: tuple[float, float, float, float]
    light_x: float
    light_y: float
    clouds: tuple[tuple[float, float, float], ...]
    stars: tuple[tuple[float, float], ...]
    tufts: tuple[tuple[float, float, float], ...]
    barn: Barn | None
    fence: bool
    fence_x: float
    animals: tuple[Animal, ...]

    def ground_disparity(self, row: float | np.ndarray) -> float | np.ndarray:
        """Disparity of the ground (units per view step) at a row of the reference view."""
        slope = (self.near_disparity - self.far_disparity) / (UNITS - self.horizon)
        return self.far_disparity + slope * (row - self.horizon)


def random_generator(*key: int) -> np.random.Generator:
    """A generator that depends on the integers in `key` and on nothing else."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([int(part) % 2**63 for part in key])))


def sample_scene(seed: int, index: int) -> Scene:
    """The scene number `index` of the barnyard `seed`; the same two integers always give the same scene."""
    draw = random_generator(seed, index)
    time_of_day = str(draw.choice(TIMES_OF_DAY))
    barn = _sample_barn(draw) if draw.random() < 0.85 else None
    return Scene(
        time_of_day=time_of_day,
        horizon=float(draw.uniform(29.0, 32.0)),
        far_disparity=float(draw.uniform(-1.15, -0.85)),
        near_disparity=float(draw.uniform(1.7, 2.1)),
        hill_heights=tuple(float(height) for height in draw.uniform(1.5, 5.0, 4)),
        hill_phases=tuple(float(phase) for phase in draw.uniform(0.0, 2 * np.pi, 4)),
        light_x=float(draw.uniform(6.0, 58.0)),
        light_y=float(draw.uniform(5.0, 12.0) if time_of_day in ("day", "night") else draw.uniform(17.0, 23.0)),
        clouds=tuple(
            (float(draw.uniform(-4, 68)), float(draw.uniform(4, 18)), float(draw.uniform(4, 8))) for _ in range(2)
        ),
        stars=tuple((float(draw.uniform(-4, 68)), float(draw.uniform(1, 24))) for _ in range(9)),
        tufts=tuple(
            (float(draw.uniform(-8, 72)), float(draw.uniform(36, 63)), float(draw.uniform(1.0, 2.6))) for _ in range(9)
        ),
        barn=barn,
        fence=bool(draw.random() < 0.5),
        fence_x=float(draw.uniform(0.0, 11.0)),
        animals=_sample_animals(draw, barn),
    )


def scene_attributes(scene: Scene) -> dict[str, str]:
    """The value of every attribute in `ATTRIBUTE_VALUES`; the animal's are those of the first animal."""
    animal = scene.animals[0]
    return {
        "time_of_day": scene.time_of_day,
        "barn": scene.barn.color if scene.barn else "none",
        "fence": "yes" if scene.fence else "no",
        "number": "two" if len(scene.animals) == 2 else "one",
        "kind": animal.kind,
        "color": animal.color,
        "direction": animal.direction,
        "action": "leaving" if animal.leaves_barn else animal.gait,
    }


def _sample_barn(draw: np.random.Generator) -> Barn:
    width = float(draw.uniform(27.0, 34.0))
    return Barn(
        color=str(draw.choice(BARN_COLORS)),
        x=float(draw.uniform(19.0, 45.0)),
        base=float(draw.uniform(38.5, 41.0)),
        width=width,
        wall_height=float(draw.uniform(14.0, 16.0)),
        roof_height=float(draw.uniform(9.0, 12.0)),
        door_offset=float(draw.uniform(-0.12, 0.12) * width),
        door_width=float(draw.uniform(10.0, 12.0)),
        door_height=float(draw.uniform(12.0, 13.5)),
    )


def _sample_animals(draw: np.random.Generator, barn: Barn | None) -> tuple[Animal, ...]:
    look = {"kind": str(draw.choice(ANIMAL_KINDS)), "color": str(draw.choice(ANIMAL_COLORS))}
    direction = str(draw.choice(DIRECTIONS))
    if barn is not None and draw.random() < 0.35:
        return (_sample_leaving_animal(draw, barn, look, direction),)
    gait = str(draw.choice(("standing", "walking", "galloping", "eating")))
    shared = {"direction": direction, "gait": gait}
    if draw.random() >= 0.18:
        place = {"x": float(draw.uniform(24.0, 40.0)), "feet": float(draw.uniform(48.0, 54.0))}
        return (Animal(**look, **shared, **place, **_sample_build(draw)),)
    other = dict(look)
    if draw.random() < 0.5:
        other = {"kind": str(draw.choice(ANIMAL_KINDS)), "color": str(draw.choice(ANIMAL_COLORS))}
    columns = [float(draw.uniform(15.0, 21.0)), float(draw.uniform(43.0, 49.0))]
    if draw.random() < 0.5:
        columns.reverse()
    rows = (float(draw.uniform(51.0, 54.5)), float(draw.uniform(46.0, 49.0)))
    return tuple(
        Animal(**appearance, **shared, x=column, feet=row, **_sample_build(draw))
        for appearance, column, row in zip((look, other), columns, rows, strict=True)
    )


def _sample_leaving_animal(draw: np.random.Generator, barn: Barn, look: dict[str, str], direction: str) -> Animal:
    sign = 1 if direction == "right" else -1
    # Far enough in front that its legs stand out against the grass, and the open door is seen behind it.
    feet = barn.base + float(draw.uniform(2.5, 5.5))
    return Animal(
        **look,
        direction=direction,
        gait=str(draw.choice(("walking", "galloping"))),
        x=barn.door_x + sign * float(draw.uniform(3.0, 10.0)),
        feet=feet,
        leaves_barn=True,
        **(_sample_build(draw) | {"size": float(draw.uniform(0.95, 1.05))}),
    )


def _sample_build(draw: np.random.Generator) -> dict[str, float]:
    return {"size": float(draw.uniform(0.98, 1.18)), "phase": float(draw.uniform(0.0, 2 * np.pi))}
