"""Light-field movies: the container, its file, and the ways to pictures and videos that a person can look at."""

from diffusers_stale.light_field.container import CameraGrid, LightField
from diffusers_stale.light_field.file import LightFieldFile


__all__ = ["CameraGrid", "LightField", "LightFieldFile"]
