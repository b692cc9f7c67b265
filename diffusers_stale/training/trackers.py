"""Where the figures of a run go beside its log, for the main process: TensorBoard's files and trackio."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from diffusers_stale.training.config import StageConfig


PROJECT = "diffusers-stale"
"""The project that runs have in trackio."""


class Tracker(Protocol):
    """Takes scalars by name at a step, and is closed in the end."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Event files in `folder`/tensorboard; what a killed run wrote after `step` is dropped when it is shown."""

    def __init__(self, folder: Path, config: StageConfig, step: int):
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class TrackioTracker:
    """A run of the local trackio project `PROJECT`, called as its folder; `trackio show` is its page.

    A resumed run goes on under its name. Raises `ValueError` where trackio is not installed.
    """

    def __init__(self, folder: Path, config: StageConfig, step: int):
        try:
            import trackio
        except ImportError as error:
            raise ValueError(
                "`trackers` names trackio, which is not installed; pip install 'diffusers-stale[trackio]', or take it "
                "out of trackers."
            ) from error
        self.trackio = trackio
        name = "-".join(folder.resolve().parts[-2:])
        trackio.init(
            project=PROJECT, name=name, config=asdict(config), resume="allow" if step else "never", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def log(self, values: dict[str, float], step: int) -> None:
        self.trackio.log(dict(values), step=step)

    def close(self) -> None:
        self.trackio.finish()


def open_trackers(names: Iterable[str], folder: Path, config: StageConfig, step: int) -> list[Tracker]:
    """The trackers called `names` (of `TRACKERS`) for the run in `folder`, which is at `step`."""
    return [TRACKERS[name](folder, config, step) for name in names]


TRACKERS: dict[str, Callable[[Path, StageConfig, int], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "trackio": TrackioTracker,
}
"""Trackers by name."""
