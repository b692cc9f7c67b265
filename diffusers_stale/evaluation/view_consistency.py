"""Do the views of a movie show one scene? Warping, cycles, straight epipolar lines, and disparity by layer.

All of it on pixels and on the regular grid's exact epipolar lines: along view columns a point stays in its row, along
view rows in its column. Edges between layers, where one view sees what another does not, are counted apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10, nan

import torch

from diffusers_stale.axes import check_light_field, middle_index
from diffusers_stale.evaluation.classifier import resize_clips
from diffusers_stale.evaluation.disparity import MEASURE_SIZE, VIEW_AXES, sampled_frames
from diffusers_stale.evaluation.layers import LAYERS, LayerFinder, edges, find_layers, grown
from diffusers_stale.evaluation.matching import Match, match


PEAK_SQUARED = 4.0
"""Of pixels in [-1, 1], for PSNR."""

CYCLE_TOLERANCE = 0.5
"""Pixels by which the way there and back may miss its start and still be consistent."""

LAYER_MARGIN = 2
"""Pixels around edges that are left out of the disparity of what may stand behind something: windows there see two
layers, and an edge moves with the nearer one."""

FRONT_LAYERS = ("animal", "fence")
"""What stands before others: its edges are its own, and with its plain coat often all that can be matched."""

LEAST_LAYER_PIXELS = 12
"""Trusted pixels of a layer without which its disparity is not told."""


@dataclass(frozen=True)
class ViewMeasure:
    """Of one movie, over all its view axes; NaN where it has nothing to measure. Lengths in pixels at 64 px.

    `gain`: dB by which the neighbours, warped by the disparity found, are nearer to the middle view than unwarped;
    `warped`: their PSNR then, in dB. `gain_edges`, `warped_edges`: the same within 2 pixels of edges between layers,
    where `gain` and `warped` do not look. `bend`: how far the images of a point in three neighbouring views are from
    a straight epipolar line, as the mean size of the second difference, over pixels trusted in both neighbours.
    `cycle`: of the pixels with anything to match, the share that is found in a neighbour and comes back from it
    within half a pixel. `layers`: disparity of each of `layers.LAYERS`, signed.
    """

    gain: float
    warped: float
    gain_edges: float
    warped_edges: float
    bend: float
    cycle: float
    layers: dict[str, float]


@dataclass(frozen=True)
class _Line:
    """Middle view and its neighbours along one axis, turned so that the axis runs along the
    width.

    `pictures`: `(batch * frames, 3, 64, 64)` each; `places`: signed view coordinates, of the neighbours.
    """

    middle: torch.Tensor
    neighbours: list[tuple[float, torch.Tensor]]


@torch.no_grad()
def measure_views(light_field: torch.Tensor, finder: LayerFinder) -> list[ViewMeasure] | None:
    """Measures each movie of a light field of the seven axes, 3 channels, in [-1, 1]; None of a single view."""
    lines = {axis: line for axis in VIEW_AXES if (line := _line(light_field, axis)) is not None}
    if not lines:
        return None
    batch = len(light_field)
    rows, cols = (middle_index(count) for count in light_field.shape[2:4])
    frames = sampled_frames(light_field.shape[4])
    stills = resize_clips(light_field[:, :, rows, cols, frames].float(), MEASURE_SIZE).transpose(1, 2)
    layers = find_layers(finder, stills).flatten(0, 1)
    maps = [_measure_line(line, layers.transpose(-2, -1) if axis == "view_rows" else layers)
            for axis, line in lines.items()]  # fmt: skip
    return [_summary(maps, movie, batch) for movie in range(batch)]


def _line(light_field: torch.Tensor, axis: str) -> _Line | None:
    rows, cols = check_light_field(light_field).shape[2:4]
    line = light_field[:, :, middle_index(rows)] if axis == "view_cols" else light_field[:, :, :, middle_index(cols)]
    count = line.shape[2]
    if count == 1:
        return None
    frames, middle = sampled_frames(line.shape[3]), middle_index(count)

    def pictures(view: int) -> torch.Tensor:
        clips = resize_clips(line[:, :, view, frames].float(), MEASURE_SIZE).transpose(1, 2).flatten(0, 1)
        return clips if axis == "view_cols" else clips.transpose(-2, -1)

    places = [view for view in (middle - 1, middle + 1) if 0 <= view < count]
    return _Line(pictures(middle), [(float(view - middle), pictures(view)) for view in places])


@dataclass(frozen=True)
class _Maps:
    """Per pixel, `(batch * frames, 64, 64)`: squared errors warped and not, which of them count, and the rest."""

    warped: torch.Tensor
    unwarped: torch.Tensor
    valid: torch.Tensor
    edge: torch.Tensor
    bend: torch.Tensor
    bend_known: torch.Tensor
    cycle: torch.Tensor
    cycle_known: torch.Tensor
    disparity: torch.Tensor
    disparity_known: torch.Tensor
    inside: torch.Tensor
    layers: torch.Tensor


def _measure_line(line: _Line, layers: torch.Tensor) -> _Maps:
    together = match(line.middle, line.neighbours)
    warped, unwarped, valid = _warping(line, together)
    apart = [match(line.middle, [neighbour]) for neighbour in line.neighbours]
    cycles = [_cycle(line, found, place, picture)
              for found, (place, picture) in zip(apart, line.neighbours, strict=True)]  # fmt: skip
    edge = edges(layers)
    if len(apart) == 2:
        bend = (apart[0].displacement - apart[1].displacement).abs()
        bend_known = apart[0].trusted & apart[1].trusted
    else:
        bend, bend_known = torch.zeros_like(apart[0].displacement), torch.zeros_like(apart[0].trusted)
    return _Maps(
        warped, unwarped, valid, edge, bend, bend_known & ~edge,
        torch.stack([close for close, _ in cycles]), torch.stack([known for _, known in cycles]),
        together.displacement, together.trusted, ~grown(edge, LAYER_MARGIN), layers,
    )  # fmt: skip


def _warping(line: _Line, found: Match) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Squared errors of the neighbours against the middle view, warped by what matching found and unwarped, and
    where both can be read; each summed over the neighbours, `(neighbours, pictures, 64, 64)`."""
    warped, unwarped, valid = [], [], []
    for place, picture in line.neighbours:
        columns = torch.arange(MEASURE_SIZE) - place * found.displacement
        warped.append((read_columns(picture, columns) - line.middle).square().mean(dim=1))
        unwarped.append((picture - line.middle).square().mean(dim=1))
        valid.append((columns >= 0) & (columns <= MEASURE_SIZE - 1))
    return torch.stack(warped), torch.stack(unwarped), torch.stack(valid)


def _cycle(line: _Line, there: Match, place: float, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each pixel comes back from the neighbour, and where that can be told."""
    back = match(picture, [(-place, line.middle)])
    columns = (torch.arange(MEASURE_SIZE) - place * there.displacement).clamp(0, MEASURE_SIZE - 1)
    nearest = columns.round().long()
    returned = back.displacement.gather(-1, nearest)
    close = (there.displacement - returned).abs() < CYCLE_TOLERANCE
    return close & there.trusted, there.textured


def read_columns(pictures: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """`pictures` `(batch, channels, height, width)` read at fractional `columns` `(batch, height, width)`, linearly;
    edges are repeated."""
    width = pictures.shape[-1]
    columns = columns.clamp(0, width - 1)
    left = columns.floor().long().clamp(max=width - 2)
    part = (columns - left)[:, None]
    index = left[:, None].expand(-1, pictures.shape[1], -1, -1)
    return pictures.gather(-1, index) * (1 - part) + pictures.gather(-1, index + 1) * part


def _summary(maps: Sequence[_Maps], movie: int, batch: int) -> ViewMeasure:
    """Of one movie: sums over its frames, axes and neighbours."""

    def part(values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-3, (batch, -1)).select(-4, movie)

    inner, edge = ([_errors(one, part, at_edges) for one in maps] for at_edges in (False, True))
    gain, warped = _gain(inner)
    gain_edges, warped_edges = _gain(edge)
    return ViewMeasure(
        gain=gain,
        warped=warped,
        gain_edges=gain_edges,
        warped_edges=warped_edges,
        bend=_mean([(part(one.bend), part(one.bend_known)) for one in maps]),
        cycle=_mean([(part(one.cycle).float(), part(one.cycle_known)) for one in maps]),
        layers={
            name: _mean([(part(one.disparity), part(_of_layer(one, name))) for one in maps], LEAST_LAYER_PIXELS)
            for name in LAYERS
        },
    )


def _of_layer(maps: _Maps, name: str) -> torch.Tensor:
    """Where the disparity of a layer can be told."""
    known = maps.disparity_known & (maps.layers == LAYERS.index(name))
    return known if name in FRONT_LAYERS else known & maps.inside


def _errors(maps: _Maps, part: Callable[[torch.Tensor], torch.Tensor], at_edges: bool) -> tuple[float, float, int]:
    chosen = part(maps.valid) & (part(maps.edge) == at_edges)
    return float(part(maps.warped)[chosen].sum()), float(part(maps.unwarped)[chosen].sum()), int(chosen.sum())


def _gain(sums: Sequence[tuple[float, float, int]]) -> tuple[float, float]:
    warped, unwarped, count = (sum(values) for values in zip(*sums, strict=True))
    if not count:
        return nan, nan
    reached, before = psnr(warped / count), psnr(unwarped / count)
    return reached - before, reached


def psnr(squared: float) -> float:
    """In dB, of a mean squared error of pixels in [-1, 1]; at most 60, more than 8 bits tell."""
    return min(10 * log10(PEAK_SQUARED / squared), 60.0) if squared > 0 else 60.0


def _mean(parts: Sequence[tuple[torch.Tensor, torch.Tensor]], least: int = 1) -> float:
    chosen = torch.cat([values[known].flatten() for values, known in parts])
    return float(chosen.mean()) if len(chosen) >= least else nan
