"""Text to light-field movies with diffusers. Importing this makes every class of ours loadable by diffusers.

`ModelMixin`, `SchedulerMixin` and `DiffusionPipeline` are names here because diffusers looks for them; see
`registration.py`.
"""

from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

from diffusers_stale.checkpoints import checkpoint_path
from diffusers_stale.inflation import inflate_unet2d
from diffusers_stale.light_field import CameraGrid, LightField
from diffusers_stale.light_field.displays import DISPLAYS
from diffusers_stale.light_field.picture_files import write_picture
from diffusers_stale.light_field.projections import PROJECTIONS
from diffusers_stale.light_field.quilt import quilt_views
from diffusers_stale.light_field.quilt_layout import tiles_of_name
from diffusers_stale.light_field.video import read_moments, video_info
from diffusers_stale.light_field.viewer import viewer_html
from diffusers_stale.memory import estimate_memory
from diffusers_stale.pipeline_output import StaleDiffusionPipelineOutput
from diffusers_stale.pipeline_stale import StaleDiffusionPipeline
from diffusers_stale.pipeline_stale_xl import StaleDiffusionXLPipeline
from diffusers_stale.registration import register
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.unet_stale import StaleUNet5DConditionModel
from diffusers_stale.version import __version__


__all__ = [
    "DISPLAYS",
    "PROJECTIONS",
    "CameraGrid",
    "DiffusionPipeline",
    "LightField",
    "ModelMixin",
    "SchedulerMixin",
    "StaleDiffusionPipeline",
    "StaleDiffusionPipelineOutput",
    "StaleDiffusionXLPipeline",
    "StaleScheduler",
    "StaleUNet5DConditionModel",
    "__version__",
    "checkpoint_path",
    "estimate_memory",
    "inflate_unet2d",
    "quilt_views",
    "read_moments",
    "tiles_of_name",
    "video_info",
    "viewer_html",
    "write_picture",
]

register()
