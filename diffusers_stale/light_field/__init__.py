"""Light-field movies: the container, its file, and the ways to pictures and videos that a person can look at."""

from diffusers_stale.light_field.compressed import LightFieldFolder
from diffusers_stale.light_field.container import CameraGrid, LightField
from diffusers_stale.light_field.file import LightFieldFile
from diffusers_stale.light_field.resampling import resample


__all__ = ["CameraGrid", "LightField", "LightFieldFile", "LightFieldFolder", "resample"]
