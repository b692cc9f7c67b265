"""Small runs of the text stage that save after every step, and what can be done to them while they do.

Moments of saving are found by audit hooks: every time the interpreter opens, renames, makes or removes something under
the folder of checkpoints is one.
"""

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diffusers_stale.training.checkpoints import Checkpoint, checkpoint_folders, load_checkpoint
from diffusers_stale.training.config import PRESETS, TrainingConfig
from diffusers_stale.training.stages import train_stage


SMOKE = PRESETS["smoke"]
EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "shutil.rmtree"}
"""What the interpreter reports of itself while it changes files."""


def checkpoints(folder: Path) -> Path:
    return folder / "text_run" / "checkpoints"


@dataclass(frozen=True)
class SmallRuns:
    """Runs of so many steps of the text stage, which needs no other one."""

    steps: int

    def config(self, **changes: object) -> TrainingConfig:
        settings = {"max_steps": self.steps, "save_every": 0.0, "sample_every": 1000, "keep_checkpoints": 2}
        return replace(SMOKE, text=replace(SMOKE.text, **settings | changes))

    def train(self, folder: Path, **changes: object) -> None:
        train_stage("text", self.config(**changes), folder, resume=True)

    def end(self, folder: Path) -> Checkpoint:
        found = checkpoint_folders(checkpoints(folder))
        assert found[-1].name == f"step-{self.steps:08d}"
        return load_checkpoint(found[-1])

    def assert_ended_as(self, whole: Checkpoint, folder: Path) -> None:
        """The run ended with the state of `whole`, and nothing is left but its last two checkpoints."""
        assert_same(self.end(folder), whole)
        left = [path.name for path in checkpoints(folder).iterdir()]
        assert sorted(left) == [f"step-{self.steps - 1:08d}", f"step-{self.steps:08d}"]

    def at_moment(self, folder: Path, moment: int, act: Callable[[], object]) -> int:
        """Trains, and acts when files of checkpoints are changed the `moment`th time; returns how often they are."""
        seen = 0

        def watch(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event in EVENTS and arguments and str(checkpoints(folder)) in str(arguments[0]):
                seen += 1
                if seen == moment:
                    act()

        sys.addaudithook(watch)
        self.train(folder)
        return seen


def assert_same(ours: Checkpoint, theirs: Checkpoint) -> None:
    for part in ("model", "ema", "optimizer"):
        expected, got = getattr(ours, part), getattr(theirs, part)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected), part
    for name in ("step", "images", "skipped_steps", "fingerprints", "processes"):
        assert ours.state[name] == theirs.state[name], name


def killed_at_random(
    folder: Path,
    count: int,
    seed: int,
    killed_after: Callable[[Path, float | None, random.Random], bool],
    assert_resumes: Callable[[Path], object],
) -> int:
    """Kills `count` runs, each after a random time, and goes on with them; returns how many were killed.

    `killed_after` trains in a folder, kills after so many seconds if there are any, and says whether anything was
    killed; it may draw more.
    """
    draw, killed = random.Random(seed), 0
    began = time.monotonic()
    assert not killed_after(folder / "timed", None, draw)
    seconds = time.monotonic() - began
    for number in range(count):
        run = folder / f"run-{number}"
        killed += killed_after(run, draw.uniform(0, seconds), draw)
        assert_resumes(run)
    return killed
