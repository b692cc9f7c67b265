"""From a light field to pictures `(3, height, width)` and moving pictures `(3, frames, height, width)`: all by name.

Pure functions: they take a `LightField`, or pixels `(3, view_rows, view_cols, frames, height, width)` of any floating
or uint8 dtype, and return the dtype they got. They write nothing; each says where it is differentiable.
"""

from collections.abc import Callable

import torch

from diffusers_stale.light_field.camera_paths import (
    camera_path,
    dollying_camera,
    moving_frame_rate,
    orbiting_camera,
    swaying_camera,
)
from diffusers_stale.light_field.depth import depth_map
from diffusers_stale.light_field.reductions import maximum_over, mean_over, single_view
from diffusers_stale.light_field.refocus import refocus
from diffusers_stale.light_field.sheets import epipolar_sheet, time_sheet, time_slices, views_sheet
from diffusers_stale.light_field.synthetic_aperture import all_in_focus, see_through


__all__ = [
    "PROJECTIONS",
    "all_in_focus",
    "camera_path",
    "depth_map",
    "dollying_camera",
    "epipolar_sheet",
    "maximum_over",
    "mean_over",
    "moving_frame_rate",
    "orbiting_camera",
    "refocus",
    "see_through",
    "single_view",
    "swaying_camera",
    "time_sheet",
    "time_slices",
    "views_sheet",
]

PROJECTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "view": single_view,
    "views": views_sheet,
    "time": time_sheet,
    "epi": epipolar_sheet,
    "xt": time_slices,
    "sway": swaying_camera,
    "orbit": orbiting_camera,
    "dolly": dollying_camera,
    "refocus": refocus,
    "all-in-focus": all_in_focus,
    "see-through": see_through,
    "depth": depth_map,
    "mean": mean_over,
    "maximum": maximum_over,
}
"""Every projection by its name. A result of 3 axes is a still picture, one of 4 axes a moving one."""
