"""From a light field to what a display shows: quilt, stereo pairs, anaglyphs, a wiggling picture.

Like projections, these are functions of a `LightField` or its pixels that write nothing; each gives a moving picture
`(3, frames, height, width)` in the dtype of the pixels. The left eye sees what the left camera saw: a thing nearer
than the screen stands farther right in it (see `axes.py`). Left comes first, in pictures as in file names.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from diffusers_stale.axes import check_count, middle_index
from diffusers_stale.light_field.camera_grid import check_number
from diffusers_stale.light_field.camera_paths import Shot, pictures_of
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.interpolation import Interpolator
from diffusers_stale.light_field.lenticular import lenticular
from diffusers_stale.light_field.quilt import check_columns, quilt
from diffusers_stale.light_field.viewpoints import (
    focus_of,
    in_dtype_of,
    moments_of,
    pixels_of,
    search_reach,
    seen_from,
    spacing_of,
)


DUBOIS_LEFT = ((0.437, 0.449, 0.164), (-0.062, -0.062, -0.024), (-0.048, -0.050, -0.017))
DUBOIS_RIGHT = ((-0.011, -0.032, -0.007), (0.377, 0.761, 0.009), (-0.026, -0.093, 1.234))
"""Red-cyan glasses before an LCD, for linear RGB: E. Dubois, "Conversion of a Stereo Pair to Anaglyph with the
Least-Squares Projection Method", 2009; by the method of "A projection method to generate anaglyph stereo images",
ICASSP 2001."""

LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Of linear red, green and blue: ITU-R BT.709."""

WIGGLE_VIEWS = 3
"""Views that a wiggling picture goes through."""


def stereo_pair(
    light_field: LightField | torch.Tensor,
    baseline: float | None = None,
    focus: float | None = None,
    max_disparity: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the left and the right eye see: two views of the middle row, as far left as right of its middle.

    Args:
        light_field: the movie, or pixels `(3, view_rows, view_cols, frames, height, width)`.
        baseline: distance between the eyes in view steps (neighbouring cameras are `camera_grid.spacing` apart, 1 for
            tensors); by default the first and the last camera. Eyes between cameras see interpolated views.
        focus: what stands on the screen, in pixels of disparity per neighbouring view; by default the focal plane of
            the camera grid, 0 for tensors.
        max_disparity: largest shift between neighbouring views that interpolation looks for, in pixels.

    Returns:
        Two tensors of shape `(3, frames, height, width)`, in the dtype of the pixels.

    Raises:
        ValueError: for pixels of another shape or not finite, a single column of views, and a baseline that is not
            above 0 or is wider than the row.
    """
    pixels = pixels_of(light_field)
    check_columns(pixels.shape[2], "Stereo")
    middle = (pixels.shape[2] - 1) / 2
    half = middle if baseline is None else _half_baseline(baseline, spacing_of(light_field), middle)
    plane, reach = focus_of(light_field, focus), search_reach(light_field, max_disparity)
    row = middle_index(pixels.shape[1])

    eyes: tuple[list, list] = ([], [])
    for moment in moments_of(pixels):
        views = Interpolator(moment, reach)
        for pictures, col in zip(eyes, (middle - half, middle + half), strict=True):
            pictures.append(seen_from(views, row, col, plane))
    left, right = (in_dtype_of(pixels, torch.stack(pictures, dim=1)) for pictures in eyes)
    return left, right


def side_by_side(
    light_field: LightField | torch.Tensor,
    baseline: float | None = None,
    focus: float | None = None,
    max_disparity: float | None = None,
) -> torch.Tensor:
    """Stereo side by side in full width, left first: for VR players.

    Returns shape `(3, frames, height, 2 * width)`. Arguments and errors as `stereo_pair`.
    """
    return torch.cat(stereo_pair(light_field, baseline, focus, max_disparity), dim=-1)


def half_side_by_side(
    light_field: LightField | torch.Tensor,
    baseline: float | None = None,
    focus: float | None = None,
    max_disparity: float | None = None,
) -> torch.Tensor:
    """Stereo side by side squeezed into the width of one view, left first: for 3D televisions.

    Returns shape `(3, frames, height, width)`; pairs of pixels are averaged. Arguments and errors as `stereo_pair`,
    and a `ValueError` for an odd width.
    """
    left, right = stereo_pair(light_field, baseline, focus, max_disparity)
    return torch.cat([_halved(left, -1), _halved(right, -1)], dim=-1)


def top_bottom(
    light_field: LightField | torch.Tensor,
    baseline: float | None = None,
    focus: float | None = None,
    max_disparity: float | None = None,
) -> torch.Tensor:
    """Stereo one above the other in full height, left on top: for VR players.

    Returns shape `(3, frames, 2 * height, width)`. Arguments and errors as `stereo_pair`.
    """
    return torch.cat(stereo_pair(light_field, baseline, focus, max_disparity), dim=-2)


def half_top_bottom(
    light_field: LightField | torch.Tensor,
    baseline: float | None = None,
    focus: float | None = None,
    max_disparity: float | None = None,
) -> torch.Tensor:
    """Stereo one above the other squeezed into the height of one view, left on top: for 3D televisions.

    Returns shape `(3, frames, height, width)`. Arguments and errors as `half_side_by_side`, for the height.
    """
    left, right = stereo_pair(light_field, baseline, focus, max_disparity)
    return torch.cat([_halved(left, -2), _halved(right, -2)], dim=-2)


def anaglyph(
    light_field: LightField | torch.Tensor,
    baseline: float | None = None,
    focus: float | None = None,
    max_disparity: float | None = None,
) -> torch.Tensor:
    """Anaglyph in colour for red-cyan glasses, red on the left (Dubois, in linear light).

    Returns shape `(3, frames, height, width)`. Arguments and errors as `stereo_pair`.
    """
    pair = stereo_pair(light_field, baseline, focus, max_disparity)
    mixed = [
        torch.einsum("ij,j...->i...", _linear(view).new_tensor(matrix), _linear(view))
        for view, matrix in zip(pair, (DUBOIS_LEFT, DUBOIS_RIGHT), strict=True)
    ]
    return in_dtype_of(pair[0], _as_pixels(mixed[0] + mixed[1]))


def grey_anaglyph(
    light_field: LightField | torch.Tensor,
    baseline: float | None = None,
    focus: float | None = None,
    max_disparity: float | None = None,
) -> torch.Tensor:
    """Anaglyph in grey for red-cyan glasses, red on the left: no colours, and no rivalry between them.

    Returns shape `(3, frames, height, width)`. Arguments and errors as `stereo_pair`.
    """
    pair = stereo_pair(light_field, baseline, focus, max_disparity)
    left, right = (torch.einsum("j,j...->...", _linear(view).new_tensor(LUMINANCE), _linear(view)) for view in pair)
    return in_dtype_of(pair[0], _as_pixels(torch.stack([left, right, right])))


def wiggle(
    light_field: LightField | torch.Tensor,
    baseline: float | None = None,
    focus: float | None = None,
    views: int = WIGGLE_VIEWS,
    max_disparity: float | None = None,
) -> torch.Tensor:
    """Wiggling picture: the camera goes to and fro between the eyes while time runs; depth without glasses.

    Args:
        light_field, baseline, focus, max_disparity: as for `stereo_pair`.
        views: how many places the camera goes through from one eye to the other, 2 or more.

    Returns:
        Shape `(3, pictures, height, width)`: the movie at its own frame rate, again and again until the last picture
        leads into the first.

    Raises:
        ValueError: as `stereo_pair`, and for fewer than 2 views.
    """
    pixels = pixels_of(light_field)
    plane, spacing = focus_of(light_field, focus), spacing_of(light_field)
    shots = wiggle_shots(*pixels.shape[1:4], spacing, baseline, plane, views)
    return torch.stack(list(pictures_of(light_field, shots, max_disparity)), dim=1)


def wiggle_shots(
    view_rows: int,
    view_cols: int,
    frames: int,
    spacing: float = 1.0,
    baseline: float | None = None,
    focus: float = 0.0,
    views: int = WIGGLE_VIEWS,
) -> list[Shot]:
    """The path of `wiggle`."""
    check_columns(view_cols, "A wiggling picture")
    if check_count("views", views) < 2:
        raise ValueError(f"`views` must be at least 2, got {views}; with a single one nothing wiggles.")
    middle = (view_cols - 1) / 2
    half = middle if baseline is None else _half_baseline(baseline, spacing, middle)
    places = [middle + half * (2 * index / (views - 1) - 1) for index in range(views)]
    path, row = [*places, *places[-2:0:-1]], middle_index(view_rows)
    return [
        Shot(frame_index=index % frames, row=row, col=path[index % len(path)], focus=focus)
        for index in range(math.lcm(frames, len(path)))
    ]


def _half_baseline(baseline: float, spacing: float, middle: float) -> float:
    """Half of the distance between the eyes, in neighbouring views."""
    half = check_number("baseline", baseline, positive=True) / spacing / 2
    if half > middle + 1e-6:
        raise ValueError(
            f"`baseline` must be at most {2 * middle * spacing:g} view steps, the width of the row of views, got "
            f"{baseline:g}; make it smaller, or the movie with more columns."
        )
    return min(half, middle)


def _halved(view: torch.Tensor, axis: int) -> torch.Tensor:
    """Half as many pixels along `axis` (-1 or -2) of `(3, frames, height, width)`."""
    if view.shape[axis] % 2:
        name = "width" if axis == -1 else "height"
        raise ValueError(
            f"The {name} must be even to be halved, got {view.shape[axis]}; crop it, or use the full form."
        )
    kernel = (1, 2) if axis == -1 else (2, 1)
    values = view if view.is_floating_point() else view.float().div(127.5).sub(1.0)
    return in_dtype_of(view, F.avg_pool2d(values.transpose(0, 1), kernel).transpose(0, 1))


def _linear(view: torch.Tensor) -> torch.Tensor:
    """Linear light in [0, 1] of sRGB pixels (IEC 61966-2-1), which are uint8 or in [-1, 1]."""
    values = view.float().div(255.0) if view.dtype == torch.uint8 else view.float().add(1.0).div(2.0).clamp(0.0, 1.0)
    return torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055).pow(2.4))


def _as_pixels(light: torch.Tensor) -> torch.Tensor:
    """sRGB pixels in [-1, 1] of linear light; what is out of [0, 1] is clamped."""
    light = light.clamp(0.0, 1.0)
    values = torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=1e-9).pow(1 / 2.4) - 0.055)
    return values * 2.0 - 1.0


HINTS = {"sbs": "_LR", "sbs-half": "_HSBS", "tb": "_TB", "tb-half": "_HOU"}
"""What players look for at the end of a file's name; a quilt's is `quilt.quilt_hint`. Stereo:
https://skybox.xyz/en/support/add-suffix-to-filename-to-recognize-the-correct-format/"""

DISPLAYS: dict[str, Callable[..., torch.Tensor]] = {
    "quilt": quilt,
    "sbs": side_by_side,
    "sbs-half": half_side_by_side,
    "tb": top_bottom,
    "tb-half": half_top_bottom,
    "anaglyph": anaglyph,
    "anaglyph-grey": grey_anaglyph,
    "wiggle": wiggle,
    "lenticular": lenticular,
}
"""Every display by its name. Results are moving pictures."""
