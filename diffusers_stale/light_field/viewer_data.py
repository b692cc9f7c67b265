"""What the viewer's page embeds of a movie: one lossless picture a frame of all views, and one of their disparity.

A picture of all views (an atlas) has view (row, col) at `(row * height, col * width)`. Disparity is in it as grey of
8 bits between the movie's lowest and highest.
"""

import base64
import io
from typing import Any

import torch
from PIL import Image

from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.interpolation import view_disparity
from diffusers_stale.light_field.viewpoints import focus_of, moments_of, search_reach


MAX_PIXELS = 32_000_000
"""Pixels of all views and frames: as many as a phone's browser holds with their disparity (160 MB)."""

MAX_SIDE = 4096
"""Longest side of the picture of all views, in pixels: what graphics of every phone take."""

MAX_BYTES = 48_000_000
"""Encoded pictures of a page, before they are written as text, which makes a third more of them."""

LEVELS = 255
"""Steps of disparity in a grey picture."""

FLAT = 1e-6
"""Range of disparity, in pixels, below which there is none to store."""


def check_fits(sizes: dict[str, int]) -> None:
    """Raises `ValueError` for a movie, given by the length of its axes, of more pixels than a page can hold."""
    sides = {"down": ("view_rows", "height"), "across": ("view_cols", "width")}
    for word, (views, pixels) in sides.items():
        if sizes[views] * sizes[pixels] > MAX_SIDE:
            raise ValueError(
                f"All views of a frame beside each other must be at most {MAX_SIDE} pixels {word} to be viewed in a "
                f"page, got {sizes[views]} views of {sizes[pixels]}; take fewer views, "
                f"`movie.select({views}=slice(0, None, 2))`, or smaller pictures."
            )
    names = ("view_rows", "view_cols", "frames", "height", "width")
    count = torch.Size(sizes[name] for name in names).numel()
    if count > MAX_PIXELS:
        frames = max(1, MAX_PIXELS * sizes["frames"] // count)
        raise ValueError(
            f"A movie must have at most {MAX_PIXELS:,} pixels in all views and frames to be viewed in a page, got "
            f"{count:,}; take a part of it, such as `movie.select(frames=slice(0, {frames}))`, or fewer views."
        )


def movie_data(light_field: LightField, title: str) -> dict[str, Any]:
    """What the page needs of a movie, as JSON holds it; pictures are base64 of lossless WebP.

    Disparity and focus are in pixels between neighbouring cameras. Raises `ValueError` for a movie that is too large.
    """
    check_fits(light_field.sizes)
    maps = _disparity(light_field)
    low, high = float(maps.min()), float(maps.max())
    pictures = [_encoded(_atlas(moment)) for moment in light_field.pixels.unbind(3)]
    levels = (maps - low).mul(LEVELS / max(high - low, FLAT)).round_().to(torch.uint8)
    depths = [_encoded(_atlas(level[None])) for level in levels.unbind(2)] if high - low > FLAT else []
    size = sum(map(len, pictures + depths)) * 3 // 4
    if size > MAX_BYTES:
        part = max(1, light_field.num_frames * MAX_BYTES // size)
        raise ValueError(
            f"The pictures of a page must have at most {MAX_BYTES:,} bytes, got {size:,}; take a part of the movie, "
            f"such as `movie.select(frames=slice(0, {part}))`, or fewer views."
        )
    return {
        "title": title,
        "rows": light_field.view_rows,
        "cols": light_field.view_cols,
        "frames": light_field.num_frames,
        "height": light_field.height,
        "width": light_field.width,
        "frameRate": light_field.frame_rate,
        "focus": focus_of(light_field, None),
        "low": low,
        "high": high,
        "known": light_field.disparity is not None,
        "pictures": pictures,
        "depths": depths,
    }


def _disparity(light_field: LightField) -> torch.Tensor:
    """Shape `(view_rows, view_cols, frames, height, width)`, pixels between neighbouring cameras."""
    if light_field.disparity is not None:
        return light_field.disparity * light_field.camera_grid.spacing
    reach = search_reach(light_field)
    return torch.stack([view_disparity(moment, reach) for moment in moments_of(light_field.pixels)], dim=2)


def _atlas(moment: torch.Tensor) -> torch.Tensor:
    """`(channels, view_rows, view_cols, height, width)` beside each other: `(view_rows * height, ..., channels)`."""
    rows = [torch.cat(row.unbind(1), dim=-1) for row in moment.unbind(1)]
    return torch.stack(torch.cat(rows, dim=-2).unbind(0), dim=-1)


def _encoded(atlas: torch.Tensor) -> str:
    file = io.BytesIO()
    picture = atlas.expand(-1, -1, 3).contiguous().cpu().numpy()
    Image.fromarray(picture).save(file, "WEBP", lossless=True, quality=75, method=4)
    return base64.b64encode(file.getvalue()).decode()
