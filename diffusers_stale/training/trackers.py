"""Where the figures and pictures of a run go beside its log, for the main process: TensorBoard's files and trackio."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from diffusers_stale.light_field.export import write_gif
from diffusers_stale.training.config import StageConfig
from diffusers_stale.training.samples import MOVIE_RATE, ZOOM


PROJECT = "diffusers-stale"
"""The project that runs have in trackio."""


class Tracker(Protocol):
    """Takes scalars by name at a step, contact sheets and movies, and is closed in the end.

    A movie comes as a file and as the pixels in it, `(3, frames, height, width)` in [-1, 1].
    """

    def log(self, values: dict[str, float], step: int) -> None: ...

    def show_sheet(self, sheet: Path, step: int) -> None: ...

    def show_movie(self, movie: Path, pixels: torch.Tensor, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Event files in `folder`/tensorboard; what a killed run wrote after `step` is dropped when it is shown."""

    def __init__(self, folder: Path, config: StageConfig, step: int):
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def show_sheet(self, sheet: Path, step: int) -> None:
        self._add_picture("samples/sheet", sheet, step)

    def show_movie(self, movie: Path, pixels: torch.Tensor, step: int) -> None:
        """As a GIF, the one moving picture that TensorBoard shows."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "movie.gif"
            write_gif(path, pixels, MOVIE_RATE, zoom=ZOOM)
            self._add_picture("samples/movie", path, step)

    def _add_picture(self, tag: str, path: Path, step: int) -> None:
        """A picture as it is in its file: `add_video` of torch needs moviepy, and `add_image` loses what moves."""
        with Image.open(path) as opened:
            width, height = opened.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        self.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def close(self) -> None:
        self.writer.close()


class TrackioTracker:
    """A run of the local trackio project `PROJECT`, called as its folder; `trackio show` is its page.

    A resumed run goes on under its name. Raises `ValueError` where trackio is not installed.
    """

    def __init__(self, folder: Path, config: StageConfig, step: int):
        self.trackio = _trackio()
        name = "-".join(folder.resolve().parts[-2:])
        self.trackio.init(
            project=PROJECT, name=name, config=asdict(config), resume="allow" if step else "never", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def log(self, values: dict[str, float], step: int) -> None:
        self.trackio.log(dict(values), step=step)

    def show_sheet(self, sheet: Path, step: int) -> None:
        self.trackio.log({"samples/sheet": self.trackio.Image(str(sheet))}, step=step)

    def show_movie(self, movie: Path, pixels: torch.Tensor, step: int) -> None:
        self.trackio.log({"samples/movie": self.trackio.Video(str(movie))}, step=step)

    def close(self) -> None:
        self.trackio.finish()


def _trackio() -> ModuleType:
    try:
        import trackio
    except ImportError as error:
        raise ValueError(
            "`trackers` names trackio, which is not installed; pip install 'diffusers-stale[trackio]', or take it "
            "out of trackers."
        ) from error
    return trackio


def check_trackers(names: Iterable[str]) -> None:
    """Raises `ValueError` where one of `names` is of a package that is not installed."""
    if "trackio" in names:
        _trackio()


def open_trackers(names: Iterable[str], folder: Path, config: StageConfig, step: int) -> list[Tracker]:
    """The trackers called `names` (of `TRACKERS`) for the run in `folder`, which is at `step`."""
    return [TRACKERS[name](folder, config, step) for name in names]


TRACKERS: dict[str, Callable[[Path, StageConfig, int], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "trackio": TrackioTracker,
}
"""Trackers by name."""
