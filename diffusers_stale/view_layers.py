"""Layers through which the views of a light field see each other, and the embedding that tells views apart.

A regular planar grid of cameras has exact epipolar lines: along view columns a point stays in its row, along view rows
it stays in its column. `EpipolarViewLayer` attends along those lines; `SamePixelViewLayer`, for levels so coarse that
disparity is far below a pixel, attends among the views of one pixel.

Every layer takes and returns the folded images of the 2D network, `(batch * view_rows * view_cols * frames, channels,
height, width)`, adds a residual that is exactly zero at initialisation, and knows positions of cameras only through
signed physical coordinates, never through indices: the same weights serve any grid. Nothing here mixes frames.
"""

import math
from typing import NamedTuple

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

from diffusers_stale.axes import IMAGE_AXES, fold, unfold
from diffusers_stale.recomputation import made_again


SHORTEST_POSITION_WAVELENGTH = 2.0
"""Of the rotary embedding of positions, in pixels of a level: the Nyquist limit."""

LONGEST_POSITION_WAVELENGTH = 128.0
"""In pixels of a level: twice the width of the widest usual latents, so that no two positions look alike."""

SHORTEST_VIEW_WAVELENGTH = 4.0
"""In view steps. Over a grid that spans -1 to 1 nothing is faster than a quarter period, so that views between the
trained ones, as a denser grid has them, interpolate instead of meeting a feature that training never varied."""

LONGEST_VIEW_WAVELENGTH = 32.0
"""In view steps: tells the ends of a 17 x 17 grid apart."""

VIEW_FEATURES = 4
"""Number of wavelengths in the view embedding, per view axis."""

ALONG_COLUMNS = ("view_cols", "width", "channels")
ALONG_ROWS = ("view_rows", "height", "channels")
ACROSS_VIEWS = ("view_rows", "view_cols", "channels")


class ViewGrid(NamedTuple):
    """What a layer has to know of the light field whose folded images it is given.

    Coordinates are signed, in trained view steps from the middle, baseline included; shape `(batch or 1, count)`.
    """

    batch: int
    view_rows: int
    view_cols: int
    frames: int
    row_coordinates: torch.Tensor
    col_coordinates: torch.Tensor

    def of_part(self, movie: int, frames: int) -> "ViewGrid":
        """The grid of so many frames of one movie."""
        rows, cols = (
            coordinates if len(coordinates) == 1 else coordinates[movie : movie + 1]
            for coordinates in (self.row_coordinates, self.col_coordinates)
        )
        return self._replace(batch=1, frames=frames, row_coordinates=rows, col_coordinates=cols)

    def axis_sizes(self, images: torch.Tensor) -> dict[str, int]:
        """Length of every axis, for folded `images` of this grid at whichever resolution they have."""
        channels, height, width = images.shape[1:]
        return {
            "batch": self.batch,
            "channels": channels,
            "view_rows": self.view_rows,
            "view_cols": self.view_cols,
            "frames": self.frames,
            "height": height,
            "width": width,
        }


def angular_frequencies(count: int, shortest: float, longest: float, device: torch.device) -> torch.Tensor:
    """`count` angular frequencies in geometric progression, between two wavelengths; shape `(count,)`, float32."""
    exponents = torch.arange(count, device=device, dtype=torch.float32) / max(count - 1, 1)
    return 2 * math.pi / shortest * (shortest / longest) ** exponents


def view_angles(coordinates: torch.Tensor, count: int) -> torch.Tensor:
    """Phases of signed view `coordinates` of any shape at `count` frequencies; shape `(*coordinates.shape, count)`."""
    frequencies = angular_frequencies(count, SHORTEST_VIEW_WAVELENGTH, LONGEST_VIEW_WAVELENGTH, coordinates.device)
    return coordinates[..., None].float() * frequencies


def rotary_factors(angles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and signed sine with which `rotate` turns channel pairs by `angles`, once for each channel of a pair."""
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([cosine, cosine], dim=-1).to(dtype), torch.cat([-sine, sine], dim=-1).to(dtype)


def rotate(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary embedding (Su et al. 2021, arXiv 2104.09864) of channel pairs `(i, i + half)`.

    Written so that all but the swap of halves runs over long contiguous rows; half as costly as pair by pair.

    Args:
        heads: shape `(batch, lines, tokens, heads, head_dim)`.
        cosine: as `rotary_factors` gives it, shape `(batch or 1, 1, tokens, heads or 1, head_dim)`.
        sine: likewise.
    """
    swapped = torch.cat(heads.chunk(2, dim=-1)[::-1], dim=-1)
    return torch.addcmul(heads * cosine, swapped, sine)


class ViewAttnProcessor:
    """Rotary self-attention by whichever backend diffusers is set to (PyTorch's own, unless told otherwise)."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn: "ViewAttention", hidden_states: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (attn.heads, -1))
            for projection in (attn.to_q, attn.to_k, attn.to_v)
        )
        attended = made_again(self.attend, query, key, value, angles)
        return attn.to_out[0](attended.flatten(2).unflatten(0, hidden_states.shape[:2]))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, angles: torch.Tensor
    ) -> torch.Tensor:
        """What tokens see of each other; shape `(lines of all movies, tokens, heads, head_dim)`.

        It is not kept for gradients, since the rotated copies would be twice as large as all that is rotated, and
        attention along lines is a small part of the arithmetic.
        """
        cosine, sine = rotary_factors(angles, query.dtype)
        query, key = rotate(query, cosine, sine), rotate(key, cosine, sine)
        return dispatch_attention_fn(
            query.flatten(0, 1),
            key.flatten(0, 1),
            value.flatten(0, 1),
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )


class ViewAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention over tokens with given rotary phases; its output is zero at initialisation.

    Args:
        channels: of the tokens.
        heads: number of heads; must divide `channels` into an even number of channels each (`ValueError` otherwise).
    """

    _default_processor_cls = ViewAttnProcessor
    _available_processors = [ViewAttnProcessor]
    _supports_qkv_fusion = False

    def __init__(self, channels: int, heads: int):
        super().__init__()
        if channels % (2 * heads) != 0:
            raise ValueError(
                f"`view_attention_heads` must divide the {channels} channels of every level into heads of an even "
                f"number of channels, got {heads}; choose another count, or None for one that fits each level."
            )
        self.heads = heads
        self.pairs = channels // heads // 2
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([zeroed(nn.Linear(channels, channels))])
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """Attends among the tokens of each line.

        Args:
            hidden_states: shape `(batch, lines, tokens, channels)`.
            angles: shape `(batch or 1, 1, tokens, heads or 1, pairs)`, float32.
        """
        return self.processor(self, hidden_states, angles)


class EpipolarAttention(nn.Module):
    """Attention along epipolar lines of one direction: over all views and positions of a line.

    A quarter of each head's channels turns with the view coordinate `u`, the others with the position along the line,
    which each head shears: `x - slope * u`. To a head whose slope is `-d`, all images of a point of disparity `d` (at
    `x - d * u`, see `axes`) stand at one place. Slopes are learned.

    Args:
        channels: of the tokens.
        heads: number of heads.
        slopes: initial slopes in pixels of this level per view step, spread over the heads by linear interpolation.
    """

    def __init__(self, channels: int, heads: int, slopes: tuple[float, ...]):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = ViewAttention(channels, heads)
        self.slopes = nn.Parameter(torch.tensor(spread(slopes, heads)))
        self.view_pairs = self.attention.pairs // 4 if self.attention.pairs >= 4 else self.attention.pairs // 2
        self.position_pairs = self.attention.pairs - self.view_pairs

    def forward(self, lines: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        """The residual for `lines`.

        Args:
            lines: shape `(batch, lines, views, positions, channels)`.
            coordinates: signed view coordinates along the line, shape `(batch or 1, views)`.
        """
        angles = self.angles(coordinates, positions=lines.shape[3])
        attended = self.attention(self.norm(lines).flatten(2, 3), angles)
        return attended.unflatten(2, lines.shape[2:4])

    def angles(self, coordinates: torch.Tensor, positions: int) -> torch.Tensor:
        """Rotary phases of the tokens of a line; shape `(batch or 1, 1, views * positions, heads, pairs)`, float32."""
        position = torch.arange(positions, device=coordinates.device, dtype=torch.float32)
        shear = coordinates[:, :, None, None].float() * self.slopes.float()
        sheared = position[:, None] - shear
        frequencies = angular_frequencies(
            self.position_pairs, SHORTEST_POSITION_WAVELENGTH, LONGEST_POSITION_WAVELENGTH, coordinates.device
        )
        of_position = sheared[..., None] * frequencies
        of_view = view_angles(coordinates, self.view_pairs)[:, :, None, None, :]
        of_view = of_view.expand(*of_position.shape[:4], self.view_pairs)
        return torch.cat([of_view, of_position], dim=-1).flatten(1, 2)[:, None]


class EpipolarViewLayer(nn.Module):
    """Epipolar attention along view columns, then along view rows.

    Args:
        channels: of the images.
        heads: number of heads of each attention.
        slopes: initial slopes of the heads, in pixels of this level per view step.
    """

    def __init__(self, channels: int, heads: int, slopes: tuple[float, ...]):
        super().__init__()
        self.along_columns = EpipolarAttention(channels, heads, slopes)
        self.along_rows = EpipolarAttention(channels, heads, slopes)

    def forward(self, hidden_states: torch.Tensor, grid: ViewGrid) -> torch.Tensor:
        """Folded images in, folded images of the same shape out."""
        axis_sizes = grid.axis_sizes(hidden_states)
        light_field = unfold(hidden_states, IMAGE_AXES, axis_sizes)
        lines = fold(light_field, ALONG_COLUMNS).unflatten(0, (grid.batch, -1))
        residual = self.along_columns(lines, grid.col_coordinates)
        light_field = light_field + unfold(residual.flatten(0, 1), ALONG_COLUMNS, axis_sizes)
        lines = fold(light_field, ALONG_ROWS).unflatten(0, (grid.batch, -1))
        residual = self.along_rows(lines, grid.row_coordinates)
        light_field = light_field + unfold(residual.flatten(0, 1), ALONG_ROWS, axis_sizes)
        return fold(light_field, IMAGE_AXES)


class ViewConvolution(nn.Module):
    """Depthwise 3 x 3 convolution over the view axes with taps at -1, 0 and 1 *view steps*, not indices.

    A tap reads the views around it with a hat-shaped weight, as their mean where there are several. At the trained
    spacing that is a plain convolution with zero padding; a denser grid applies the same kernel of the same physical
    size. The kernel is zero at initialisation.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(channels, 3, 3))

    def forward(self, views: torch.Tensor, grid: ViewGrid) -> torch.Tensor:
        """The residual for `views`, shape `(batch, pixels, view_rows, view_cols, channels)`."""
        rows = tap_weights(grid.row_coordinates).to(views.dtype)
        cols = tap_weights(grid.col_coordinates).to(views.dtype)
        mixing = torch.einsum("zitj,zkul,ctu->zcikjl", rows, cols, self.kernel.to(views.dtype))
        mixing = mixing.flatten(4, 5).flatten(2, 3)
        mixed = torch.matmul(mixing, views.flatten(2, 3).permute(0, 3, 2, 1))
        return mixed.permute(0, 3, 2, 1).unflatten(2, views.shape[2:4])


def tap_weights(coordinates: torch.Tensor) -> torch.Tensor:
    """Weight with which each view is read by each tap of each view; shape `(batch or 1, views, 3 taps, views)`."""
    taps = torch.arange(-1, 2, device=coordinates.device, dtype=torch.float32)
    coordinates = coordinates.float()
    offsets = coordinates[:, None, None, :] - coordinates[:, :, None, None] - taps[:, None]
    hats = (1 - offsets.abs()).clamp(min=0)
    return hats / hats.sum(dim=-1, keepdim=True).clamp(min=1)


class SamePixelViewLayer(nn.Module):
    """Attention among all views of a pixel, beside a small view convolution; for the coarsest levels.

    Half of each head's channels turns with the row coordinate of the view, half with the column coordinate.

    Args:
        channels: of the images.
        heads: number of heads.
        slopes: not used here; every view layer is built with the same arguments.
    """

    def __init__(self, channels: int, heads: int, slopes: tuple[float, ...]):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = ViewAttention(channels, heads)
        self.convolution = ViewConvolution(channels)

    def forward(self, hidden_states: torch.Tensor, grid: ViewGrid) -> torch.Tensor:
        """Folded images in, folded images of the same shape out."""
        axis_sizes = grid.axis_sizes(hidden_states)
        light_field = unfold(hidden_states, IMAGE_AXES, axis_sizes)
        views = self.norm(fold(light_field, ACROSS_VIEWS)).unflatten(0, (grid.batch, -1))
        attended = self.attention(views.flatten(2, 3), self.angles(grid)).unflatten(2, views.shape[2:4])
        residual = attended + self.convolution(views, grid)
        return fold(light_field + unfold(residual.flatten(0, 1), ACROSS_VIEWS, axis_sizes), IMAGE_AXES)

    def angles(self, grid: ViewGrid) -> torch.Tensor:
        """Rotary phases of the views of a pixel; shape `(batch or 1, 1, view_rows * view_cols, 1, pairs)`, float32."""
        row_pairs = self.attention.pairs // 2
        of_row = view_angles(grid.row_coordinates, row_pairs)[:, :, None]
        of_col = view_angles(grid.col_coordinates, self.attention.pairs - row_pairs)[:, None, :]
        both = torch.cat(
            [of_row.expand(-1, -1, grid.view_cols, -1), of_col.expand(-1, grid.view_rows, -1, -1)], dim=-1
        )
        return both.flatten(1, 2)[:, None, :, None]


class ViewEmbedding(nn.Module):
    """Tells the network which view it renders: an addition to the time embedding; zero at initialisation.

    Args:
        channels: length of the time embedding.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.linear_1 = nn.Linear(4 * VIEW_FEATURES, channels)
        self.act = nn.SiLU()
        self.linear_2 = zeroed(nn.Linear(channels, channels))

    def forward(self, grid: ViewGrid, dtype: torch.dtype) -> torch.Tensor:
        """Embedding of every view of the grid; shape `(batch or 1, view_rows, view_cols, channels)`."""
        of_row = view_angles(grid.row_coordinates, VIEW_FEATURES)[:, :, None].expand(-1, -1, grid.view_cols, -1)
        of_col = view_angles(grid.col_coordinates, VIEW_FEATURES)[:, None].expand(-1, grid.view_rows, -1, -1)
        features = torch.cat([of_row.sin(), of_row.cos(), of_col.sin(), of_col.cos()], dim=-1)
        return self.linear_2(self.act(self.linear_1(features.to(dtype))))


def zeroed(linear: nn.Linear) -> nn.Linear:
    """`linear` with all its parameters set to zero, so that the layer it ends adds nothing at first."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def spread(values: tuple[float, ...], count: int) -> list[float]:
    """`values` resampled to `count` by linear interpolation, ends kept; a count of one takes the middle."""
    if len(values) == 1:
        return [float(values[0])] * count
    places = [(len(values) - 1) * (index / (count - 1) if count > 1 else 0.5) for index in range(count)]
    lower = [min(int(place), len(values) - 2) for place in places]
    return [values[i] + (place - i) * (values[i + 1] - values[i]) for i, place in zip(lower, places, strict=True)]


VIEW_LAYERS: dict[str, type[nn.Module] | None] = {
    "epipolar": EpipolarViewLayer,
    "same_pixel": SamePixelViewLayer,
    "none": None,
}
"""View layers by the names that `view_layer_types` of the UNet takes."""
