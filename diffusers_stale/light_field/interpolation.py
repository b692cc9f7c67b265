"""Views from between the cameras, for a light field whose disparity nobody knows.

For every camera that is needed, disparity is searched once: candidates move its neighbours onto it, and the one under
which they agree best in a small window is taken. Of the two neighbours along an axis the better one counts, since what
one of them cannot see is mostly seen by the other (S. B. Kang, R. Szeliski and J. Chai, "Handling Occlusions in Dense
Multi-view Stereo", CVPR 2001). What a camera takes for near although its neighbours look through it is no surface
(P. Merrell et al., "Real-Time Visibility-Based Fusion of Depth Maps", ICCV 2007). Disparities are then thrown into the
wanted view, where the nearer hides the farther, and colours fetched from the cameras around it that can see the place.
It invents nothing but what cameras agree on, and is no measurement: evaluation must look at the views themselves.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from diffusers_stale.axes import displaced
from diffusers_stale.light_field.shifting import box_mean, pixel_places, sampled, shifted


SEARCH_SIZE = 128
"""Longest side, in pixels, of the pictures in which disparity is searched; larger ones are reduced for it."""

SEARCH_STEP = 0.5
"""Distance between candidate disparities, in pixels of the searched picture; a parabola finds what is between."""

WINDOW = 7
"""Side of the window in which views must agree, in pixels of the searched picture."""

PREFER_FLAT = 2e-4
"""Cost of a pixel of disparity, so that plain areas, where all candidates agree, do not move at random."""

SEEN_THROUGH = 0.5
"""Disparity, in pixels of the searched picture, by which neighbours must see something farther than a camera does."""

TOLERANCE = 0.4
"""Pixels by which the disparity that a camera sees may differ from what is looked for; beyond, it is hidden there."""

STRICTNESS = 4.0
"""How fast a camera ceases to count beyond `TOLERANCE`, per pixel."""

LEAST_WEIGHT = 1e-4
"""Part that a hidden place keeps, so that what no camera sees is filled from its surroundings."""

NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Rows down and columns to the right."""

EDGE = 2
"""Pixels about a picture for what is thrown beyond its edges."""

NOWHERE = -1e9
"""Disparity of what has not been hit."""


class Interpolator:
    """All views of one moment, those between the cameras included.

    Args:
        views: floating point in [-1, 1], shape `(3, view_rows, view_cols, height, width)`.
        max_disparity: largest shift between neighbouring views that is searched for, in pixels.
        disparity: of every camera, if it is known, in pixels per neighbouring view, shape `(view_rows, view_cols,
            height, width)`; nothing is searched for then.
    """

    def __init__(self, views: torch.Tensor, max_disparity: float, disparity: torch.Tensor | None = None) -> None:
        self.views = views
        self.reach = max_disparity
        known = [] if disparity is None else [(r, c) for r in range(views.shape[1]) for c in range(views.shape[2])]
        self._found: dict[tuple[int, int], torch.Tensor] = {place: disparity[place] for place in known}
        self._alone: dict[tuple[int, int], torch.Tensor] = {}
        self._small: dict[tuple[int, int], torch.Tensor] = {}

    def view(self, row: float, col: float, forward: float = 0.0) -> torch.Tensor:
        """What a camera at the view position `(row, col)` would see; shape `(3, height, width)`.

        Args:
            row, col: position among the views, 0 at the first; `1.5` is halfway between the second and the third.
            forward: how far the camera goes towards the scene, as the distance, in neighbouring views, at which the
                ray through the edge of its longer side passes the plane of the cameras. What has disparity 0 keeps
                its size.

        At a whole position with `forward` 0, exactly the view that is there; differentiable in the views.
        """
        rows, cols = self._positions(row, col, forward)
        sources, weights = self._sources(rows, cols)
        if len(sources) == 1 and forward == 0.0:
            return self.views[:, sources[0][0], sources[0][1]]
        disparity = self._thrown(sources, row, col, forward)
        return self.gathered(disparity, sources, weights, rows, cols)

    def disparity_at(self, row: float, col: float) -> torch.Tensor:
        """Disparity as seen from `(row, col)`, in pixels per neighbouring view, shape `(height, width)`."""
        sources, _ = self._sources(*self._positions(row, col, 0.0))
        return self.disparity(*sources[0]) if len(sources) == 1 else self._thrown(sources, row, col, 0.0)

    def disparity(self, row: int, col: int) -> torch.Tensor:
        """Disparity of a camera that is there, in pixels per neighbouring view, shape `(height, width)`."""
        if (row, col) not in self._found:
            with torch.no_grad():
                self._found[row, col] = self._agreed(row, col)
        return self._found[row, col]

    def gathered(
        self,
        disparity: torch.Tensor,
        sources: Sequence[tuple[int, int]],
        weights: torch.Tensor,
        rows: torch.Tensor | float,
        cols: torch.Tensor | float,
    ) -> torch.Tensor:
        """The mean of what the cameras `sources` see of surfaces of `disparity`, as far as they can see them.

        Args:
            disparity: of the picture that is made, shape `(height, width)`.
            sources: row and column of each camera.
            weights: shape `(count, height, width)` or `(count, 1, 1)`; those of cameras that see nothing fall away.
            rows, cols: view position of the picture, or of each of its pixels.

        Returns:
            Shape `(3, height, width)`, in [-1, 1].
        """
        colours, found, beyond = self.looked_up(disparity, sources, rows, cols)
        seen = torch.exp(-STRICTNESS * ((found - disparity).abs() - TOLERANCE).clamp(min=0.0))
        parts = weights * (seen + LEAST_WEIGHT) * torch.where(beyond, LEAST_WEIGHT, 1.0)
        return ((colours * parts[:, None]).sum(dim=0) / parts.sum(dim=0)).clamp(-1.0, 1.0)

    def looked_up(
        self,
        disparity: torch.Tensor,
        sources: Sequence[tuple[int, int]],
        rows: torch.Tensor | float,
        cols: torch.Tensor | float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where the cameras `sources` see surfaces of `disparity`: colours `(count, 3, height, width)`, the disparity
        that is found there and whether it is beyond the edge, both `(count, height, width)`."""
        height, width = disparity.shape
        y, x = pixel_places(height, width, disparity)
        down = torch.stack([displaced(y, disparity, r - rows) for r, _ in sources])
        across = torch.stack([displaced(x, disparity, c - cols) for _, c in sources])
        pictures = torch.stack([self.views[:, r, c] for r, c in sources])
        maps = torch.stack([self.disparity(r, c) for r, c in sources])[:, None]
        # Bilinear sampling would blur and sharpen as the camera moves.
        colours, found = sampled(pictures, down, across, cubic=True), sampled(maps, down, across)[:, 0]
        return colours, found, _is_beyond(down, across, height, width)

    def _positions(self, row: float, col: float, forward: float) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """View position of every pixel: all the same, unless the camera stands before the plane of the others."""
        if forward == 0.0:
            return row, col
        height, width = self.views.shape[-2:]
        y, x = pixel_places(height, width, self.views)
        slope = self._slope(forward)
        return row + slope * (y - (height - 1) / 2), col + slope * (x - (width - 1) / 2)

    def _slope(self, forward: float) -> float:
        """Views per pixel. Rays of a camera before the others have crossed their plane on the other side."""
        return -forward * 2 / max(self.views.shape[-2:])

    def _sources(
        self, rows: torch.Tensor | float, cols: torch.Tensor | float
    ) -> tuple[list[tuple[int, int]], torch.Tensor]:
        """The cameras around the position of any pixel; bilinear weights `(count, height or 1, width or 1)`."""
        sides = [_sides(rows, self.views.shape[1], self.views), _sides(cols, self.views.shape[2], self.views)]
        pairs = [(r, c, share_r * share_c) for r, share_r in sides[0] for c, share_c in sides[1]]
        return [(r, c) for r, c, _ in pairs], torch.stack([weight for *_, weight in pairs])

    def _thrown(self, sources: Sequence[tuple[int, int]], row: float, col: float, forward: float) -> torch.Tensor:
        """Disparity as seen from `(row, col)`, of what the cameras `sources` see; the nearest counts."""
        height, width = self.views.shape[-2:]
        slope = self._slope(forward)
        field = self.views.new_full((height + 2 * EDGE, width + 2 * EDGE), NOWHERE)
        y, x = pixel_places(height, width, self.views)
        for r, c in sources:
            seen = self.disparity(r, c)
            # A place p of the new picture is found at `displaced(p, d, step)`, with a step that grows along the
            # picture as `_positions` does; this is that equation solved for p.
            growth = 1.0 + slope * seen
            down = (y + seen * (r - row + slope * (height - 1) / 2)) / growth
            across = (x + seen * (c - col + slope * (width - 1) / 2)) / growth
            for places in _pixels_around(down, across, height, width):
                field.view(-1).scatter_reduce_(0, places.flatten(), seen.flatten(), "amax")
        return _filled(field[EDGE:-EDGE, EDGE:-EDGE].contiguous())

    def _agreed(self, row: int, col: int) -> torch.Tensor:
        """What a camera found, less what half of its neighbours look through: they saw what is behind it."""
        own = self._searched(row, col)
        sides = [(down, right) for down, right in NEIGHBOURS if self._is_there(row + down, col + right)]
        if not sides:
            return own
        height, width = own.shape
        y, x = pixel_places(height, width, own)
        rows, cols = (
            torch.stack([displaced(places, own, side[axis]) for side in sides]) for axis, places in ((0, y), (1, x))
        )
        theirs = torch.stack([self._searched(row + down, col + right) for down, right in sides])
        found = sampled(theirs[:, None], rows, cols)[:, 0]
        looks = ~_is_beyond(rows, cols, height, width)
        through = looks & (found < own - SEEN_THROUGH * self._reduction())
        behind = torch.where(through, found, NOWHERE).amax(dim=0)
        return torch.where(through.any(dim=0) & (2 * through.sum(dim=0) >= looks.sum(dim=0)), behind, own)

    def _searched(self, row: int, col: int) -> torch.Tensor:
        if (row, col) not in self._alone:
            self._alone[row, col] = self._search(row, col)
        return self._alone[row, col]

    def _is_there(self, row: int, col: int) -> bool:
        return 0 <= row < self.views.shape[1] and 0 <= col < self.views.shape[2]

    def _search(self, row: int, col: int) -> torch.Tensor:
        height, width = self.views.shape[-2:]
        reduction = self._reduction()
        reach = self.reach / reduction
        count = 2 * max(1, math.ceil(reach / SEARCH_STEP)) + 1
        candidates = torch.linspace(-reach, reach, count, dtype=self.views.dtype, device=self.views.device)
        costs = torch.stack([self._cost(row, col, float(candidate)) for candidate in candidates])
        best = candidates[0] + _lowest(costs) * (candidates[1] - candidates[0])
        return F.interpolate(best[None, None], (height, width), mode="nearest")[0, 0] * reduction

    def _reduction(self) -> float:
        return max(1.0, max(self.views.shape[-2:]) / SEARCH_SIZE)

    def _reduced(self, row: int, col: int) -> torch.Tensor:
        if (row, col) not in self._small:
            picture, reduction = self.views[:, row, col], self._reduction()
            size = tuple(max(1, round(length / reduction)) for length in picture.shape[-2:])
            reduced = picture if reduction == 1.0 else F.interpolate(picture[None], size, mode="area")[0]
            self._small[row, col] = reduced
        return self._small[row, col]

    def _cost(self, row: int, col: int, disparity: float) -> torch.Tensor:
        """How badly neighbours agree with a camera if all has this disparity, about each pixel."""
        own = self._reduced(row, col)
        differences, counts = [], []
        for down, right in ((1, 0), (0, 1)):
            signs = [sign for sign in (-1, 1) if self._is_there(row + sign * down, col + sign * right)]
            counts.append(len(signs))
            for sign in signs:
                # The neighbour has it at `displaced`; moved back by as much it falls on its own place.
                back = -float(displaced(0.0, disparity, float(sign)))
                neighbour = self._reduced(row + sign * down, col + sign * right)
                differences.append((own - shifted(neighbour, back * down, back * right)).abs().mean(dim=0))
        total = own.new_full(own.shape[1:], PREFER_FLAT * abs(disparity))
        if differences:
            for sides in box_mean(torch.stack(differences), WINDOW).split(counts):
                total = total + (sides.amin(dim=0) if len(sides) else 0.0)
        return total


def view_disparity(moment: torch.Tensor, max_disparity: float) -> torch.Tensor:
    """What an `Interpolator` finds for every camera, in pixels between neighbouring views; zero for a single one.

    Shape `(view_rows, view_cols, height, width)` for a `moment` of `(3, view_rows, view_cols, height, width)`.
    """
    view_rows, view_cols = moment.shape[1:3]
    if view_rows * view_cols == 1:
        return moment.new_zeros(1, 1, *moment.shape[-2:])
    views = Interpolator(moment, max_disparity)
    rows = [torch.stack([views.disparity(row, col) for col in range(view_cols)]) for row in range(view_rows)]
    return torch.stack(rows)


def view_between(views: torch.Tensor, row: float, col: float, max_disparity: float) -> torch.Tensor:
    """One view of an `Interpolator`, which is better kept where several are wanted; arguments and result are its."""
    return Interpolator(views, max_disparity).view(row, col)


def _sides(position: torch.Tensor | float, count: int, like: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """Cameras along one axis that are less than a step from the position of some pixel, with their share in each."""
    places = torch.as_tensor(position, dtype=like.dtype, device=like.device).clamp(0.0, count - 1.0)
    places = torch.where((places - places.round()).abs() < 1e-5, places.round(), places)
    places = places.view(1, 1) if places.ndim == 0 else places
    low, high = math.floor(float(places.min())), math.ceil(float(places.max()))
    return [(index, (1.0 - (places - index).abs()).clamp(min=0.0)) for index in range(low, high + 1)]


def _is_beyond(rows: torch.Tensor, cols: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Whether places in pixels are outside of a picture."""
    return (rows < -0.5) | (rows > height - 0.5) | (cols < -0.5) | (cols > width - 0.5)


def _pixels_around(down: torch.Tensor, across: torch.Tensor, height: int, width: int) -> list[torch.Tensor]:
    """Flat indices of the pixels that points fall on, of the four around each those within 3/4 of a pixel.

    They are those of a picture with `EDGE` more pixels on every side, where points beyond the edges fall too; a pixel
    that is farther from its point is the first, which is beyond.
    """
    line = width + 2 * EDGE
    (top, rows), (left, cols) = _sides_of(down, height, line), _sides_of(across, width, 1)
    first = top * line + left
    return [torch.where(near & beside, first + (below + right), 0) for below, near in rows for right, beside in cols]


def _sides_of(places: torch.Tensor, size: int, step: int) -> tuple[torch.Tensor, list[tuple[int, torch.Tensor]]]:
    """The index below places along an axis of `size`; for it, and for the next that is `step` farther, what is near.

    Only one of them where all places are whole, as along an axis that nothing moves along.
    """
    low = places.floor()
    part = places - low
    sides = [(0, part < 0.75), (step, part > 0.25)] if part.any() else [(0, torch.ones_like(part, dtype=torch.bool))]
    return low.clamp_(-EDGE, size).add_(EDGE).long(), sides


def _filled(disparity: torch.Tensor) -> torch.Tensor:
    """Holes get the farthest of the disparities beside them: what was hidden is behind what hid it."""
    hole = disparity <= NOWHERE
    if hole.all():
        return torch.zeros_like(disparity)
    while hole.any():
        known = torch.where(hole, NOWHERE, -disparity)
        beside = -F.max_pool2d(known[None, None], 3, 1, 1)[0, 0]
        disparity = torch.where(hole & (beside < -NOWHERE), beside, disparity)
        hole = disparity <= NOWHERE
    return disparity


def _lowest(costs: torch.Tensor) -> torch.Tensor:
    """Where costs `(candidates, height, width)` are lowest, as an index with a fraction: the foot of a parabola."""
    best = costs.min(dim=0).indices  # much faster than `argmin` along the first axis
    middle = best.clamp(1, len(costs) - 2)
    before, there, after = (costs.gather(0, (middle + offset)[None])[0] for offset in (-1, 0, 1))
    fraction = ((before - after) / (2 * (before - 2 * there + after)).clamp(min=1e-6)).clamp(-0.5, 0.5)
    return best + torch.where(best == middle, fraction, 0.0)
