"""Lenses that no glass has: everything in focus at once, and a wide one that looks past what stands in the way.

Both know from which camera a surface can be seen: `interpolation.Interpolator` finds the disparity of every camera.
"""

from collections.abc import Callable

import torch

from diffusers_stale.axes import middle_index
from diffusers_stale.light_field.container import LightField
from diffusers_stale.light_field.interpolation import TOLERANCE, Interpolator
from diffusers_stale.light_field.refocus import Shape, aperture_weights
from diffusers_stale.light_field.viewpoints import (
    focus_of,
    in_dtype_of,
    moments_of,
    pixels_of,
    search_reach,
)


HIDDEN = 1e-4
"""Weight of cameras whose view is blocked: where no camera sees the plane, what blocks it is shown."""


def all_in_focus(
    light_field: LightField | torch.Tensor,
    aperture: float | None = None,
    shape: Shape = "disc",
    max_disparity: float | None = None,
) -> torch.Tensor:
    """Everything is sharp, yet gathered by the whole lens: each surface is the mean of all cameras that see it.

    Grain and flicker of single views go down with the number of views; a single view is the same for a light field
    without noise.

    Args:
        light_field: the movie, or pixels `(3, view_rows, view_cols, frames, height, width)`.
        aperture, shape: of the lens, as for `refocus.refocus`; by default it touches the outermost cameras.
        max_disparity: largest shift between neighbouring views that is looked for, in pixels; by default what the
            movie's own disparity says, or a twentieth of the width.

    Returns:
        Shape `(3, frames, height, width)`, in the dtype of the pixels; differentiable in floating-point pixels.

    Raises:
        ValueError: as `refocus.refocus`.
    """
    pixels = pixels_of(light_field)
    weights, sources = _lens(pixels, aperture, shape)
    row, col = (middle_index(count) for count in pixels.shape[1:3])

    def picture(views: Interpolator) -> torch.Tensor:
        return views.gathered(views.disparity(row, col), sources, weights.to(views.views), row, col)

    return _pictures(light_field, max_disparity, picture)


def see_through(
    light_field: LightField | torch.Tensor,
    focus: float | None = None,
    aperture: float | None = None,
    shape: Shape = "disc",
    max_disparity: float | None = None,
) -> torch.Tensor:
    """A wide lens focused behind a fence or leaves, which counts no ray that something nearer stops.

    Method: V. Vaish et al., "Reconstructing Occluded Surfaces using Synthetic Apertures", CVPR 2006; here rays are
    left out by the disparity that their camera found for what it sees.

    Args:
        light_field, aperture, shape, max_disparity: as for `all_in_focus`.
        focus: what is looked at, in pixels of disparity per neighbouring view; what is nearer by half a pixel or more
            is looked past, what is farther is blurred. By default the focal plane of the camera grid, 0 for tensors.

    Returns:
        Shape `(3, frames, height, width)`, in the dtype of the pixels; differentiable in floating-point pixels. Where
        no camera sees the plane, what is before it is shown, blurred.

    Raises:
        ValueError: as `refocus.refocus`.
    """
    pixels = pixels_of(light_field)
    weights, sources = _lens(pixels, aperture, shape)
    plane = focus_of(light_field, focus)
    row, col = ((count - 1) / 2 for count in pixels.shape[1:3])

    def picture(views: Interpolator) -> torch.Tensor:
        surface = views.views.new_full(views.views.shape[-2:], plane)
        colours, found, beyond = views.looked_up(surface, sources, row, col)
        blocked = (found > plane + TOLERANCE) | beyond
        parts = weights.to(views.views) * torch.where(blocked, HIDDEN, 1.0)
        return (colours * parts[:, None]).sum(dim=0) / parts.sum(dim=0)

    return _pictures(light_field, max_disparity, picture)


def _lens(pixels: torch.Tensor, aperture: float | None, shape: Shape) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Weights `(count, 1, 1)` and the cameras within the aperture."""
    weights = aperture_weights(*pixels.shape[1:3], aperture, shape)
    sources = [(int(row), int(col)) for row, col in torch.nonzero(weights)]
    return torch.stack([weights[source] for source in sources])[:, None, None], sources


def _pictures(
    light_field: LightField | torch.Tensor,
    max_disparity: float | None,
    picture: Callable[[Interpolator], torch.Tensor],
) -> torch.Tensor:
    pixels, reach = pixels_of(light_field), search_reach(light_field, max_disparity)
    seen = [picture(Interpolator(moment, reach)) for moment in moments_of(pixels)]
    return in_dtype_of(pixels, torch.stack(seen, dim=1))
