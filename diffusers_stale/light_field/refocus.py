"""Refocusing after the fact: views are shifted until one plane of the scene agrees in all of them, and added.

What is off that plane is blurred as by a lens as large as the aperture. Where few views stand far apart, the blur
falls into separate copies (ghosts) as soon as a thing moves by more than about a pixel from view to view, beyond what
the shift makes up for; `densify` interpolates views between the cameras first, and at zero disparity, where nothing
moves so far, it takes what `between_cameras` makes of the cameras themselves. Method: R. Ng et al., "Light Field
Photography with a Hand-held Plenoptic Camera", 2005.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from diffusers_stale.axes import check_count, displaced, view_coordinates
from diffusers_stale.light_field.antialiasing import prefiltered
from diffusers_stale.light_field.between_cameras import shares_of_cameras, stillness
from diffusers_stale.light_field.camera_grid import check_number
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.file import LightFieldFile
from diffusers_stale.light_field.interpolation import Interpolator
from diffusers_stale.light_field.moved_sums import inside, moved_sum, moved_sums_of_bytes
from diffusers_stale.light_field.viewpoints import as_float, focus_of, in_dtype_of, pixels_of, search_reach


Shape = Literal["disc", "square"]

MAX_DENSIFY = 64
"""Most views for one step between neighbouring cameras."""


def refocus(
    light_field: LightField | torch.Tensor,
    focus: float | None = None,
    aperture: float | None = None,
    shape: Shape = "disc",
    densify: int = 1,
    max_disparity: float | None = None,
    prefilter: bool = False,
) -> torch.Tensor:
    """The movie through a large lens: one plane is sharp, what is nearer or farther is blurred.

    Args:
        light_field: the movie, or pixels `(3, view_rows, view_cols, frames, height, width)`.
        focus: what is sharp, in pixels of disparity per neighbouring view (positive: near; see `axes.py`); by default
            the focal plane of the camera grid, 0 for tensors.
        aperture: radius of the lens, in distances between neighbouring views; 0 is the middle view, all sharp. By
            default it touches the outermost cameras. Views at its rim count in part, so that it opens smoothly.
        shape: "disc", or "square" (whose radius is half of its side).
        densify: views for one step between cameras, those between them interpolated: 4 makes 9x9 of 3x3.
        max_disparity: largest shift between neighbouring views that interpolation looks for, in pixels; by default
            what the movie's own disparity says, or a twentieth of the width.
        prefilter: blur what is off the plane before views are added (`antialiasing.prefiltered`): against ghosts too,
            faster than `densify` and less exact.

    Returns:
        Shape `(3, frames, height, width)`, in the dtype of the pixels; differentiable in floating-point pixels.
        Beyond the edge of a view that view does not count, so that a plain picture stays plain.

    Raises:
        ValueError: for pixels of another shape or not finite, for an aperture that is larger than the grid or has no
            view in it, for a focus that would shift views by more than half of the picture, an unknown shape.
    """
    pixels = pixels_of(light_field)
    plane, reach = focus_of(light_field, focus), search_reach(light_field, max_disparity)
    lens = Lens.of(pixels, plane, aperture, shape, densify)
    if prefilter:
        pixels = _spread_within(pixels, lens, plane, reach, densify)
    pictures = _pictures(lens, pixels, plane, densify, reach)
    return torch.stack([_as_pixels(pixels, picture, densify) for picture in pictures], dim=1)


def refocused_frames(
    movie: LightField | LightFieldFile[LightField],
    focus: float | None = None,
    aperture: float | None = None,
    shape: Shape = "disc",
    densify: int = 1,
    max_disparity: float | None = None,
    prefilter: bool = False,
) -> Iterator[torch.Tensor]:
    """`refocus`, one frame `(3, height, width)` after the other; of an open file, nothing but that frame is read."""
    part = movie.select if isinstance(movie, LightField) else movie.read
    for index in range(movie.sizes["frames"]):
        yield refocus(part(frames=index), focus, aperture, shape, densify, max_disparity, prefilter)[:, 0]


@dataclass(frozen=True)
class Lens:
    """What of which view goes where: the weight of each view, and by how much it moves back onto the focal plane.

    `weights`: by row and column. `down`, `right`: pixels, of each row and column. `met`: the sum of weights with which
    each place of the picture is met, shape `(height, width)`.
    """

    weights: list[list[float]]
    down: list[float]
    right: list[float]
    met: torch.Tensor

    @staticmethod
    def of(pixels: torch.Tensor, focus: float, aperture: float | None, shape: Shape, densify: int) -> "Lens":
        """Raises `ValueError` as `refocus` does."""
        step = 1.0 / check_count("densify", densify, MAX_DENSIFY)
        weights = aperture_weights(*pixels.shape[1:3], aperture, shape, densify)
        rows, cols = (view_coordinates(count, step).tolist() for count in weights.shape)
        used = torch.nonzero(weights).tolist()
        height, width = pixels.shape[-2:]
        _check_focus(focus, [abs(rows[r]) for r, _ in used], height)
        _check_focus(focus, [abs(cols[c]) for _, c in used], width)
        # A point on the focal plane is found at `displaced` in a view; moved back by as much it is on itself.
        down, right = ([-float(displaced(0.0, focus, place)) for place in places] for places in (rows, cols))
        seen = [
            torch.stack([inside(size, shift) for shift in shifts]) for size, shifts in ((height, down), (width, right))
        ]
        met = seen[0].T @ weights @ seen[1]
        return Lens(weights.tolist(), down, right, met.to(pixels.device))

    def gathered(self, view: Callable[[int, int], torch.Tensor]) -> torch.Tensor:
        """The weighted mean of all views `view(row, col)` `(3, height, width)`, each moved onto the focal plane."""
        total = moved_sum(view, self.weights, self.down, self.right)
        return total.div_(self.met.to(total.dtype))

    def gathered_bytes(self, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
        """The same of uint8 `(3, view_rows, view_cols, frames, height, width)`, one frame after the other.

        Faster where all move by whole pixels.
        """
        if all(float(shift).is_integer() for shift in (*self.down, *self.right)):
            for total in moved_sums_of_bytes(pixels, self.weights, self.down, self.right):
                yield total.div_(self.met)
        else:
            for moment in pixels.unbind(3):
                yield self.gathered(lambda r, c, moment=moment: moment[:, r, c])

    def interpolated(self, views: Interpolator, focus: float, densify: int) -> torch.Tensor:
        """What the lens sees at `focus` through views from between the cameras, shape `(3, height, width)`."""
        moving = self.gathered(lambda r, c: views.view(r / densify, c / densify))
        shares = shares_of_cameras(torch.tensor(self.weights), densify)
        # Off that plane cameras have to be moved: nearly whole pixels were tried there, and lost.
        if shares is None or focus != 0.0:
            return moving
        still = sum(views.views[:, r, c] * float(shares[r, c]) for r, c in torch.nonzero(shares).tolist())
        return moving + stillness(views, shares) * (still - moving)


def _spread_within(pixels: torch.Tensor, lens: Lens, focus: float, reach: float, densify: int) -> torch.Tensor:
    """Pixels that are prefiltered as far as the lens goes; beyond it nothing is spread into the picture."""
    used = torch.nonzero(torch.tensor(lens.weights))
    low, high = used.amin(dim=0).div(densify, rounding_mode="floor"), (used.amax(dim=0) + densify - 1) // densify
    rows, cols = (slice(int(low[axis]), int(high[axis]) + 1) for axis in (0, 1))
    spread = pixels.clone()
    spread[:, rows, cols] = prefiltered(pixels[:, rows, cols], focus, reach)
    return spread


def _pictures(lens: Lens, pixels: torch.Tensor, focus: float, densify: int, reach: float) -> Iterator[torch.Tensor]:
    """Every moment through the lens, of the grid that is `densify` times as dense; of bytes between 0 and 255."""
    if densify == 1 and pixels.dtype == torch.uint8:
        yield from lens.gathered_bytes(pixels)
        return
    for moment in pixels.unbind(3):
        if densify == 1:
            yield lens.gathered(lambda r, c, moment=moment: moment[:, r, c])
        else:
            yield lens.interpolated(Interpolator(as_float(moment), reach), focus, densify)


def _as_pixels(pixels: torch.Tensor, picture: torch.Tensor, densify: int) -> torch.Tensor:
    """The mean of pixels in their dtype; that of bytes is between 0 and 255, unless they were interpolated."""
    if densify == 1 and not pixels.is_floating_point():
        return picture.round_().clamp_(0.0, 255.0).to(pixels.dtype)
    return in_dtype_of(pixels, picture)


def aperture_weights(
    view_rows: int, view_cols: int, aperture: float | None = None, shape: Shape = "disc", densify: int = 1
) -> torch.Tensor:
    """How much each view counts: 1 well inside the aperture, less at its rim, 0 outside.

    Returns shape `((view_rows - 1) * densify + 1, (view_cols - 1) * densify + 1)`. A rim that goes through a view
    gives it a half, so that the sum over views is a trapezoidal rule and grids of any density stand for the same lens.
    Raises `ValueError` as `refocus` does.
    """
    if shape not in SHAPES:
        raise ValueError(f"`shape` must be one of {', '.join(SHAPES)}, got {shape!r}; choose one.")
    largest = (max(view_rows, view_cols) - 1) / 2
    radius = largest if aperture is None else check_number("aperture", aperture)
    if not 0.0 <= radius <= largest:
        raise ValueError(
            f"`aperture` must be between 0 and {largest:g} for {view_rows}x{view_cols} views, got {radius:g}; make it "
            "smaller, or make the movie with more views."
        )
    rows, cols = (view_coordinates((count - 1) * densify + 1, 1 / densify) for count in (view_rows, view_cols))
    weights = SHAPES[shape](rows[:, None], cols[None], radius, 1 / densify)
    if not weights.any():
        raise ValueError(
            f"`aperture` must hold a view of the {view_rows}x{view_cols}, of which none is in the middle, got "
            f"{radius:g}; make it larger, or `densify` an even number, which puts a view there."
        )
    return weights


def _disc(rows: torch.Tensor, cols: torch.Tensor, radius: float, step: float) -> torch.Tensor:
    return _within(torch.hypot(rows, cols), radius, step)


def _square(rows: torch.Tensor, cols: torch.Tensor, radius: float, step: float) -> torch.Tensor:
    return _within(rows.abs(), radius, step) * _within(cols.abs(), radius, step)


def _within(distance: torch.Tensor, radius: float, step: float) -> torch.Tensor:
    """Part of a stretch of length `step` about `distance` that ends before `radius`."""
    return ((radius - distance) / step + 0.5).clamp(0.0, 1.0)


def _check_focus(focus: float, coordinates: list[float], size: int) -> None:
    """Every pixel is seen by some view as long as none is shifted by more than half of the picture."""
    most = (size - 1) / 2 / max(coordinates) if max(coordinates) > 0 else math.inf
    if abs(focus) > most:
        raise ValueError(
            f"`focus` must be between {-most:.3g} and {most:.3g} pixels per view for {size} pixels and this aperture, "
            f"got {focus:g}; choose a plane of the scene, or a smaller aperture."
        )


SHAPES: dict[str, Callable[[torch.Tensor, torch.Tensor, float, float], torch.Tensor]] = {
    "disc": _disc,
    "square": _square,
}
"""Every shape of an aperture by its name: weights from signed rows, columns, the radius, the distance of views."""
