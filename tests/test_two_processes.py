"""No run of two processes is lost either: whichever is killed, at whatever moment, both go on to the bit."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pairs import DONE, KILLED, STOPPED, together

from diffusers_stale.training.checkpoints import Checkpoint, checkpoint_folders, load_checkpoint, newest_checkpoint
from diffusers_stale.training.config import PRESETS, TrainingConfig
from diffusers_stale.training.stages import train_stage


pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="processes are watched as Linux lets one"),
]

ROOT = Path(__file__).resolve().parent.parent
SMOKE = PRESETS["smoke"]
STEPS = 5
EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "shutil.rmtree"}
"""What the interpreter reports of itself while it changes files."""


def config(**changes: object) -> TrainingConfig:
    """The text stage, which needs no other one, saving after every step."""
    settings = {"max_steps": STEPS, "save_every": 0.0, "sample_every": 1000, "keep_checkpoints": 2}
    return replace(SMOKE, text=replace(SMOKE.text, **settings | changes))


def train(folder: Path) -> None:
    train_stage("text", config(), folder, resume=True)


def checkpoints(folder: Path) -> Path:
    return folder / "text_run" / "checkpoints"


def end(folder: Path) -> Checkpoint:
    found = checkpoint_folders(checkpoints(folder))
    assert found[-1].name == f"step-{STEPS:08d}"
    return load_checkpoint(found[-1])


def assert_same(ours: Checkpoint, theirs: Checkpoint) -> None:
    for part in ("model", "ema", "optimizer"):
        expected, got = getattr(ours, part), getattr(theirs, part)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected), part
    for name in ("step", "images", "skipped_steps", "fingerprints", "processes"):
        assert ours.state[name] == theirs.state[name], name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The end of a run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert together(lambda rank: train(folder)) == (DONE, DONE)
    state = end(folder)
    assert state.state["processes"] == 2
    return state


def assert_resumes(folder: Path, whole: Checkpoint) -> None:
    assert newest_checkpoint(checkpoints(folder))[1] == []
    assert together(lambda rank: train(folder)) == (DONE, DONE)
    assert_same(end(folder), whole)
    left = [path.name for path in checkpoints(folder).iterdir()]
    assert sorted(left) == [f"step-{STEPS - 1:08d}", f"step-{STEPS:08d}"]


def at_moment(folder: Path, moment: int, act: Callable[[], object]) -> int:
    """Trains, and acts when files of checkpoints are changed for the `moment`th time; returns how often they are."""
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in EVENTS and arguments and str(checkpoints(folder)) in str(arguments[0]):
            seen += 1
            if seen == moment:
                act()

    sys.addaudithook(watch)
    train(folder)
    return seen


def moments_of_a_run(folder: Path) -> int:
    """How many moments there are in a whole run, of the process that writes."""
    pipe = os.pipe()

    def counted(rank: int) -> None:
        seen = at_moment(folder, 0, lambda: None)
        if rank == 0:
            os.write(pipe[1], str(seen).encode())

    assert together(counted) == (DONE, DONE)
    return int(os.read(pipe[0], 32))


def killed_at(folder: Path, moment: int, victims: tuple[int, ...]) -> tuple[int, int]:
    """Trains; at that moment of the process that writes, `victims` are killed. Returns how both ended."""
    pids = os.pipe()

    def run(rank: int) -> None:
        if rank == 1:
            os.write(pids[1], str(os.getpid()).encode())
            train(folder)
            return
        other = int(os.read(pids[0], 32))

        def kill() -> None:
            for victim in sorted(victims, reverse=True):
                os.kill(other if victim == 1 else os.getpid(), signal.SIGKILL)

        at_moment(folder, moment, kill)

    return together(run)


@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)], ids=["writer", "other", "both"])
def test_killed_while_saving_two_processes_go_on_to_the_bit(tmp_path: Path, whole: Checkpoint, victims: tuple):
    moment = moments_of_a_run(tmp_path / "counted") * 2 // 5 + 7
    statuses = killed_at(tmp_path / "run", moment, victims)
    assert all(statuses[victim] == KILLED for victim in victims)
    # Who is left cannot go on alone.
    assert DONE not in statuses
    assert_resumes(tmp_path / "run", whole)


@pytest.mark.slow
def test_killed_at_every_moment_of_saving_two_processes_go_on_to_the_bit(tmp_path: Path, whole: Checkpoint):
    """Every moment of the third save, in which an old checkpoint is deleted; victims in turn."""
    total = moments_of_a_run(tmp_path / "counted")
    for moment in range(total // STEPS * 2, total // STEPS * 3 + 2):
        folder, victims = tmp_path / f"run-{moment}", ((0,), (1,), (0, 1))[moment % 3]
        statuses = killed_at(folder, moment, victims)
        assert all(statuses[victim] == KILLED for victim in victims)
        assert_resumes(folder, whole)


def killed_at_random(folder: Path, whole: Checkpoint, count: int, seed: int) -> int:
    """Kills one or both of `count` runs, each after a random time, and goes on; returns how many were killed."""
    draw, killed = random.Random(seed), 0
    began = time.monotonic()
    assert together(lambda rank: train(folder / "timed")) == (DONE, DONE)
    seconds = time.monotonic() - began
    for number in range(count):
        run, after, victims = folder / f"run-{number}", draw.uniform(0, seconds), draw.choice(((0,), (1,), (0, 1)))

        def kill(processes: list[int], after: float = after, victims: tuple[int, ...] = victims) -> None:
            time.sleep(after)
            for victim in victims:
                os.kill(processes[victim], signal.SIGKILL)

        killed += KILLED in together(lambda rank, run=run: train(run), kill)
        assert_resumes(run, whole)
    return killed


def test_killed_at_a_random_moment_two_processes_go_on_to_the_bit(tmp_path: Path, whole: Checkpoint):
    killed_at_random(tmp_path, whole, 1, seed=0)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_two_processes_go_on_to_the_bit(tmp_path: Path, whole: Checkpoint):
    assert killed_at_random(tmp_path, whole, 20, seed=1) > 10


def told_to_stop(folder: Path, whole: Checkpoint, moment: int, told: tuple[int, ...]) -> tuple[int, int]:
    """Tells one process, or both, to stop at that moment of saving: both save, end in time, and go on.

    Returns how they ended.
    """
    pipe, pids = os.pipe(), os.pipe()

    def run(rank: int) -> None:
        if rank == 1:
            os.write(pids[1], str(os.getpid()).encode())
            train(folder)
            return
        other = int(os.read(pids[0], 32))

        def stop() -> None:
            os.write(pipe[1], str(time.monotonic()).encode())
            for each in told:
                os.kill(other if each == 1 else os.getpid(), signal.SIGTERM)

        at_moment(folder, moment, stop)

    statuses = together(run)
    seconds = time.monotonic() - float(os.read(pipe[0], 32))
    assert seconds < 20
    assert_resumes(folder, whole)
    return statuses


@pytest.mark.parametrize("told", [(0,), (1,), (0, 1)], ids=["writer", "other", "both"])
def test_told_to_stop_two_processes_save_end_and_go_on_to_the_bit(tmp_path: Path, whole: Checkpoint, told: tuple):
    moment = moments_of_a_run(tmp_path / "counted") // 2
    assert told_to_stop(tmp_path / "run", whole, moment, told) == (STOPPED, STOPPED)


@pytest.mark.slow
def test_told_to_stop_ten_times_two_processes_save_end_and_go_on_to_the_bit(tmp_path: Path, whole: Checkpoint):
    draw, total = random.Random(2), moments_of_a_run(tmp_path / "counted")
    for number in range(10):
        moment, told = draw.randint(total // STEPS, total), draw.choice(((0,), (1,), (0, 1)))
        statuses = told_to_stop(tmp_path / f"run-{number}", whole, moment, told)
        # Where the signal comes in the last save there is nothing left to stop.
        assert statuses in ((STOPPED, STOPPED), (DONE, DONE))


@pytest.mark.slow
def test_a_launcher_that_is_told_to_stop_leaves_a_run_that_goes_on(tmp_path: Path):
    """As on a cluster: torchrun gets the signal, hands it on, and waits."""
    settings = [f"--set={name}={value}" for name, value in (("save_every", 1e9), ("precision", "no"))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(ROOT / "scripts" / "train.py"), "--stage", "text", "--preset", "smoke", "--output", str(tmp_path)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    log = tmp_path / "text_run" / "log.txt"
    with subprocess.Popen(
        [*command, *script, "--max-steps=100000", *settings], env=environment, stdout=subprocess.DEVNULL
    ) as launcher:
        while launcher.poll() is None and not (log.is_file() and "step 3 " in log.read_text()):
            time.sleep(0.1)
        assert launcher.poll() is None
        began = time.monotonic()
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(timeout=60)
        assert time.monotonic() - began < 20
    newest, remarks = newest_checkpoint(checkpoints(tmp_path))
    assert remarks == []
    assert load_checkpoint(newest).state["step"] >= 3
    assert "stopped by SIGTERM and saved" in log.read_text()
