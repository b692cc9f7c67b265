"""The Space on a port of this machine, for tests: with any pipeline, in a folder of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffusers_stale import LightField, StaleDiffusionPipeline
from stale_space.generation import Studio
from stale_space.page import build_page
from stale_space.results import Results
from stale_space.serving import launch
from stale_space.settings import Limits


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running Space and its parts."""

    address: str
    studio: Studio
    results: Results
    limits: Limits


@contextmanager
def served(
    pipeline: StaleDiffusionPipeline, folder: Path, welcome: LightField | None = None, **limits: object
) -> Iterator[Served]:
    """Runs the Space; `limits` differ from the usual ones."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        own = Limits(**limits)
        results = Results(folder, own.keep_seconds, own.disk_bytes)
        studio = Studio(pipeline, own)
        page = build_page(studio, results, own, welcome)
        try:
            address = launch(page, results, own, wait=False)
            yield Served(address=address, studio=studio, results=results, limits=own)
        finally:
            page.close(verbose=False)
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
