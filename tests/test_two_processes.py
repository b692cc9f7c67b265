"""No run of two processes is lost either: whichever is killed, at whatever moment, both go on to the bit."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pairs import DONE, KILLED, STOPPED, together
from small_runs import SmallRuns, checkpoints, killed_at_random

from diffusers_stale.training.checkpoints import Checkpoint, load_checkpoint, newest_checkpoint


pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="processes are watched as Linux lets one"),
]

ROOT = Path(__file__).resolve().parent.parent
STEPS = 5
RUNS = SmallRuns(STEPS)
train, end, at_moment = RUNS.train, RUNS.end, RUNS.at_moment


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
    RUNS.assert_ended_as(whole, folder)


def moments_of_a_run(folder: Path) -> int:
    """How many moments there are in a whole run, of the process that writes."""
    pipe = os.pipe()

    def counted(rank: int) -> None:
        seen = at_moment(folder, 0, lambda: None)
        if rank == 0:
            os.write(pipe[1], str(seen).encode())

    assert together(counted) == (DONE, DONE)
    return int(os.read(pipe[0], 32))


def signalled_at(
    folder: Path,
    moment: int,
    kind: signal.Signals,
    ranks: tuple[int, ...],
    before: Callable[[], object] = lambda: None,
) -> tuple[int, int]:
    """Trains; at that moment of the process that writes, `ranks` get a signal. Returns how both ended.

    `before` is called in the process that writes, before it sends them.
    """
    pids = os.pipe()

    def run(rank: int) -> None:
        if rank == 1:
            os.write(pids[1], str(os.getpid()).encode())
            train(folder)
            return
        processes = os.getpid(), int(os.read(pids[0], 32))

        def send() -> None:
            before()
            # The one that writes comes last, or it could not send the others.
            for each in sorted(ranks, reverse=True):
                os.kill(processes[each], kind)

        at_moment(folder, moment, send)

    return together(run)


@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)], ids=["writer", "other", "both"])
def test_killed_while_saving_two_processes_go_on_to_the_bit(tmp_path: Path, whole: Checkpoint, victims: tuple):
    moment = moments_of_a_run(tmp_path / "counted") * 2 // 5 + 7
    statuses = signalled_at(tmp_path / "run", moment, signal.SIGKILL, victims)
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
        statuses = signalled_at(folder, moment, signal.SIGKILL, victims)
        assert all(statuses[victim] == KILLED for victim in victims)
        assert_resumes(folder, whole)


def killed_after(run: Path, seconds: float | None, draw: random.Random) -> bool:
    """Trains, one or both killed after so many seconds if there are any; returns whether one was."""
    victims = () if seconds is None else draw.choice(((0,), (1,), (0, 1)))

    def kill(processes: list[int]) -> None:
        time.sleep(seconds or 0.0)
        for victim in victims:
            os.kill(processes[victim], signal.SIGKILL)

    statuses = together(lambda rank: train(run), kill)
    assert seconds is not None or statuses == (DONE, DONE)
    return KILLED in statuses


def test_killed_at_a_random_moment_two_processes_go_on_to_the_bit(tmp_path: Path, whole: Checkpoint):
    killed_at_random(tmp_path, 1, 0, killed_after, lambda run: assert_resumes(run, whole))


@pytest.mark.slow
def test_killed_at_twenty_random_moments_two_processes_go_on_to_the_bit(tmp_path: Path, whole: Checkpoint):
    assert killed_at_random(tmp_path, 20, 1, killed_after, lambda run: assert_resumes(run, whole)) > 10


def told_to_stop(folder: Path, whole: Checkpoint, moment: int, told: tuple[int, ...]) -> tuple[int, int]:
    """Tells one process, or both, to stop at that moment of saving: both save, end in time, and go on.

    Returns how they ended.
    """
    pipe = os.pipe()

    def note() -> None:
        os.write(pipe[1], str(time.monotonic()).encode())

    statuses = signalled_at(folder, moment, signal.SIGTERM, told, note)
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
