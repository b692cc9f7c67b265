"""Version of the package: the one place that states it, read by the build and written into every movie."""

__version__ = "0.1.0"
