"""No run is lost: killed at any moment, told to stop, or out of room, it goes on to the bit as if nothing had been.

Runs are forked from this process, which has imported everything, so that each costs a fraction of a second.
"""

import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from small_runs import SmallRuns, assert_same, killed_at_random
from typer.testing import CliRunner

from diffusers_stale.cli import app
from diffusers_stale.training.checkpoints import (
    Checkpoint,
    SaveError,
    checkpoint_folders,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    write_folder,
)
from diffusers_stale.training.stage_text import TextTask
from diffusers_stale.training.stages import train_stage
from diffusers_stale.training.stopping import DivergedError


pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
STEPS = 6
RUNS = SmallRuns(STEPS)
config, train, end, at_moment = RUNS.config, RUNS.train, RUNS.end, RUNS.at_moment
KILLED, DONE = -signal.SIGKILL, 0


def forked(function: Callable[[], object], kill: Callable[[int], None] = lambda process: None) -> int:
    """Runs `function` in a forked process, to which `kill` may do something; returns how it ended."""
    process = os.fork()
    if process == 0:
        status = 70
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            function()
            status = 0
        except SystemExit as error:
            status = error.code
        finally:
            os._exit(status)
    kill(process)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The end of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert forked(lambda: train(folder)) == DONE
    return end(folder)


def killing_at(folder: Path, moment: int) -> int:
    """Trains, and kills itself at that moment."""
    return at_moment(folder, moment, lambda: os.kill(os.getpid(), signal.SIGKILL))


def moments_of_a_run(folder: Path) -> int:
    """How many moments there are in a whole run."""
    pipe = os.pipe()
    assert forked(lambda: os.write(pipe[1], str(killing_at(folder, 0)).encode())) == DONE
    return int(os.read(pipe[0], 32))


def assert_resumes(folder: Path, whole: Checkpoint) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            assert path.suffix not in (".pt", ".pkl", ".bin")
    assert forked(lambda: train(folder)) == DONE
    RUNS.assert_ended_as(whole, folder)


@pytest.mark.parametrize("share", [0.31, 0.77])
def test_killed_while_saving_a_run_goes_on_to_the_bit(tmp_path: Path, whole: Checkpoint, share: float):
    moment = max(round(share * moments_of_a_run(tmp_path / "counted")), 1)
    assert forked(lambda: killing_at(tmp_path / "run", moment)) == KILLED
    assert_resumes(tmp_path / "run", whole)


@pytest.mark.slow
def test_killed_at_every_moment_of_saving_a_run_goes_on_to_the_bit(tmp_path: Path, whole: Checkpoint):
    """Every moment of the third save, in which an old checkpoint is deleted; and some of the others."""
    total = moments_of_a_run(tmp_path / "counted")
    for moment in [*range(total // STEPS * 2, total // STEPS * 3 + 2), *range(1, total, 17)]:
        folder = tmp_path / f"run-{moment}"
        assert forked(lambda folder=folder, moment=moment: killing_at(folder, moment)) == KILLED
        assert_resumes(folder, whole)
        shutil.rmtree(folder)


def killed_after(run: Path, seconds: float | None, draw: random.Random) -> bool:
    """Trains, killed after so many seconds if there are any; returns whether it was."""

    def kill(process: int) -> None:
        if seconds is not None:
            time.sleep(seconds)
            os.kill(process, signal.SIGKILL)

    status = forked(lambda: train(run), kill)
    assert seconds is not None or status == DONE
    return status == KILLED


def test_killed_at_a_random_moment_a_run_goes_on_to_the_bit(tmp_path: Path, whole: Checkpoint):
    killed_at_random(tmp_path, 2, 0, killed_after, lambda run: assert_resumes(run, whole))


@pytest.mark.slow
def test_killed_at_fifty_random_moments_runs_go_on_to_the_bit(tmp_path: Path, whole: Checkpoint):
    assert killed_at_random(tmp_path, 50, 1, killed_after, lambda run: assert_resumes(run, whole)) > 25


def stopped(folder: Path, kind: signal.Signals, moment: int) -> tuple[int, float]:
    """How a run ends that gets the signal at that moment, and how many seconds later."""
    pipe = os.pipe()

    def stop() -> None:
        os.write(pipe[1], str(time.monotonic()).encode())
        os.kill(os.getpid(), kind)

    status = forked(lambda: at_moment(folder, moment, stop))
    return status, time.monotonic() - float(os.read(pipe[0], 32))


def told_to_stop(folder: Path, whole: Checkpoint, count: int, kind: signal.Signals) -> None:
    """The first in the middle of the run; the others anywhere from its first save on, the last one included."""
    draw, total = random.Random(2), moments_of_a_run(folder / "counted")
    for number in range(count):
        run = folder / f"run-{number}"
        moment = draw.randint(total // STEPS, total) if number else total // 2
        status, seconds = stopped(run, kind, moment)
        assert status == 128 + kind if number == 0 else status in (DONE, 128 + kind)
        assert seconds < 20
        assert newest_checkpoint(run / "text_run" / "checkpoints")[1] == []
        assert_resumes(run, whole)


def test_told_to_stop_a_run_saves_ends_and_goes_on_to_the_bit(tmp_path: Path, whole: Checkpoint):
    told_to_stop(tmp_path, whole, 2, signal.SIGTERM)


@pytest.mark.slow
def test_told_to_stop_twenty_times_runs_save_end_and_go_on_to_the_bit(tmp_path: Path, whole: Checkpoint):
    told_to_stop(tmp_path, whole, 20, signal.SIGTERM)


@pytest.mark.parametrize("moment", ["saving", "evaluating", "exporting"])
def test_told_to_stop_at_its_end_a_run_leaves_the_rest_to_a_resumption(
    tmp_path: Path, whole: Checkpoint, monkeypatch: pytest.MonkeyPatch, moment: str
):
    """A stage that ends must not swallow the signal, or the next stage would go on training."""
    last, export = moments_of_a_run(tmp_path / "counted"), TextTask.export
    kill = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    run = tmp_path / "run"
    if moment == "saving":
        assert stopped(run, signal.SIGTERM, last)[0] == 128 + signal.SIGTERM
    with monkeypatch.context() as patch:
        if moment == "evaluating":
            patch.setattr(TextTask, "evaluate", lambda task: kill())
            assert forked(lambda: train(run)) == 128 + signal.SIGTERM
        if moment == "exporting":
            patch.setattr(TextTask, "export", lambda task, folder: (export(task, folder), kill()))
            assert forked(lambda: train(run)) == -signal.SIGTERM
    assert not (run / "text").exists()
    assert_resumes(run, whole)
    assert (run / "text" / "training_report.json").is_file()


def test_told_to_stop_while_it_shows_what_it_can_do_a_run_does_not_finish_showing(
    tmp_path: Path, whole: Checkpoint, monkeypatch: pytest.MonkeyPatch
):
    """Movies of validation may take minutes, and who told it to stop kills after some seconds."""

    def evaluate(task: TextTask) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(600):
            time.sleep(0.1)
        raise AssertionError("It went on.")

    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(TextTask, "evaluate", evaluate)
        assert forked(lambda: train(tmp_path, sample_every=3)) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 20
    assert newest_checkpoint(tmp_path / "text_run" / "checkpoints")[0].name == "step-00000003"
    assert_resumes(tmp_path, whole)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_run_resumes_to_the_bit_at_every_step(tmp_path: Path, accumulation: int):
    """Stopped after each step in turn, three times over the captions; the learning rate is annealed throughout."""
    changes = {"accumulation": accumulation, "schedule": "cosine", "batch_size": 4 // min(accumulation, 2)}
    assert forked(lambda: train(tmp_path / "whole", **changes)) == DONE
    expected = end(tmp_path / "whole")
    assert expected.state["images"] == STEPS * accumulation * changes["batch_size"]
    batch_of = TextTask.batch

    def stopping(task: TextTask, step: int, rank: int, fraction: float) -> dict[str, torch.Tensor]:
        # Once in every process, during its first step.
        if not getattr(task, "told", False):
            task.told = True
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_of(task, step, rank, fraction)

    def one_step() -> None:
        TextTask.batch = stopping
        train(tmp_path / "parted", **changes)

    statuses = [forked(one_step) for _ in range(STEPS)]
    assert statuses[:-1] == [128 + signal.SIGTERM] * (STEPS - 1)
    assert forked(lambda: train(tmp_path / "parted", **changes)) == DONE
    assert_same(end(tmp_path / "parted"), expected)


@pytest.mark.usefixtures("other_precision")
def test_accumulated_gradients_are_those_of_one_large_batch(tmp_path: Path):
    """The four batches of an accumulated step, put together by hand, move the weights as it did."""
    settings = config(accumulation=4, max_steps=1, batch_size=2, precision="no").text
    task = TextTask(settings, torch.device("cpu"))
    task.module.train()
    batches = [task.batch(number, 0, 0.0) for number in range(4)]
    sum(task.module(**batch) for batch in batches).div(4).backward()
    gradients = [parameter.grad.clone() for parameter in task.module.parameters() if parameter.grad is not None]
    seen = []
    original = torch.nn.utils.clip_grad_norm_

    def spy(parameters: object, limit: float) -> torch.Tensor:
        parameters = list(parameters)
        seen.extend(parameter.grad.clone() for parameter in parameters if parameter.grad is not None)
        return original(parameters, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
        train(tmp_path, accumulation=4, max_steps=1, batch_size=2, precision="no")
    assert len(seen) == len(gradients)
    for ours, theirs in zip(seen, gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.fixture
def other_precision():
    """Accelerate keeps one precision a process; what is trained here may have another."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def state_of(step: int) -> Checkpoint:
    tensors = {"weight": torch.full((40,), float(step))}
    return Checkpoint(model=tensors, ema=tensors, optimizer=tensors, state={"step": step})


def test_the_newest_sound_checkpoint_is_chosen_and_damage_is_named(tmp_path: Path):
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, state_of(step), keep=4)
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-00000004", [])
    model = tmp_path / "step-00000004" / "model.safetensors"
    whole = model.read_bytes()
    model.write_bytes(whole[:-4])
    (tmp_path / "step-00000003" / "ema.safetensors").unlink()
    path, remarks = newest_checkpoint(tmp_path)
    assert path.name == "step-00000002"
    assert [remark.split()[0] for remark in remarks] == ["step-00000004", "step-00000003"]
    # A flipped bit, which safetensors itself does not see.
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert newest_checkpoint(tmp_path)[0].name == "step-00000002"
    model.write_bytes(whole)
    assert newest_checkpoint(tmp_path)[0].name == "step-00000004"


def test_checkpoints_of_before_there_were_manifests_are_taken_if_they_open(tmp_path: Path):
    for step in (1, 2):
        (save_checkpoint(tmp_path, state_of(step), keep=4) / "manifest.json").unlink()
    assert newest_checkpoint(tmp_path) == (tmp_path / "step-00000002", [])
    (tmp_path / "step-00000002" / "optimizer.safetensors").write_bytes(b"\0" * 50)
    assert newest_checkpoint(tmp_path)[0].name == "step-00000001"


def test_a_checkpoint_between_its_two_names_is_found(tmp_path: Path):
    path = save_checkpoint(tmp_path, state_of(1), keep=4)
    path.rename(tmp_path / ".step-00000001.old")
    assert newest_checkpoint(tmp_path) == (path, [])
    path.rename(tmp_path / ".step-00000001.old")
    # So it is if the next thing that happens is another save, which fails.
    with pytest.raises(SaveError, match="step-00000001"):
        write_folder(path, lambda temporary: (temporary / "missing" / "file").write_text(""))
    assert newest_checkpoint(tmp_path) == (path, [])


def test_keep_deletes_only_after_the_new_one_stands_and_files_can_be_read_by_all(tmp_path: Path):
    for step in (1, 2):
        save_checkpoint(tmp_path, state_of(step), keep=1)
    broken = replace(state_of(3), state={"step": 3, "not JSON": object()})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, broken, keep=1)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-00000002"]
    for path in (tmp_path / "step-00000002").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.fixture
def small_disk(tmp_path: Path):
    """A disk of 1 MB; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs takes root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_on_a_full_disk_the_last_checkpoint_stays_and_there_is_one_clear_error(small_disk: Path, whole: Checkpoint):
    """Checkpoints of this run take 0.4 MB each: the third does not fit beside the two that are kept."""
    folder = small_disk.parent / "run"
    (folder / "text_run").mkdir(parents=True)
    (folder / "text_run" / "checkpoints").symlink_to(small_disk)
    size = sum(part.nbytes for name in ("model", "ema", "optimizer") for part in getattr(whole, name).values())
    (small_disk / "ballast").write_bytes(b"\0" * max(2**20 - int(2.6 * size) - 2**16, 0))
    with pytest.raises(SaveError, match=r"[Nn]o space left.*Free some space and resume"):
        train(folder)
    path, remarks = newest_checkpoint(small_disk)
    assert path is not None
    assert remarks == []
    assert not [each for each in small_disk.iterdir() if each.name.startswith(".")]
    (small_disk / "ballast").unlink()
    # A larger disk takes the place of the full one.
    (folder / "text_run" / "checkpoints").unlink()
    shutil.copytree(small_disk, folder / "text_run" / "checkpoints")
    train(folder)
    assert_same(end(folder), whole)


@pytest.mark.parametrize("share", [0.2, 0.95])
def test_where_no_more_can_be_written_the_last_checkpoint_stays(tmp_path: Path, whole: Checkpoint, share: float):
    """As on a full disk, a file ends in its midst: no file may be longer than that share of the optimizer's state."""
    train(tmp_path, keep_checkpoints=STEPS)
    for later in checkpoint_folders(tmp_path / "text_run" / "checkpoints")[2:]:
        shutil.rmtree(later)
    size = sum(part.nbytes for part in whole.optimizer.values())

    def confined() -> None:
        # Else the signal ends the process, and nothing can be said.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), resource.RLIM_INFINITY))
        with pytest.raises(SaveError, match="Free some space and resume"):
            train(tmp_path)

    assert forked(confined) == DONE
    checkpoints = tmp_path / "text_run" / "checkpoints"
    assert newest_checkpoint(checkpoints) == (checkpoints / "step-00000002", [])
    assert not [path for path in checkpoints.iterdir() if path.name.startswith(".")]
    train(tmp_path)
    assert_same(end(tmp_path), whole)


def test_gradients_that_are_not_finite_are_skipped_counted_and_end_the_run_if_they_persist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from diffusers_stale.training.stage_text import AttributeReader

    forward, calls = AttributeReader.forward, []

    def broken(self: AttributeReader, **batch: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return forward(self, **batch) * (float("nan") if len(calls) in bad else 1.0)

    monkeypatch.setattr(AttributeReader, "forward", broken)
    bad = {2, 5}
    report = train_stage("text", config(max_skipped=2), tmp_path / "some")
    assert report["skipped_steps"] == 2
    tensors = load_checkpoint(newest_checkpoint(tmp_path / "some" / "text_run" / "checkpoints")[0]).model
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    calls.clear()
    bad = {3, 4}
    with pytest.raises(DivergedError, match="2 steps in a row up to step 4.*smaller learning_rate"):
        train_stage("text", config(max_skipped=2), tmp_path / "many")


def torchrun(folder: Path, *more: str, timeout: float = 240) -> subprocess.CompletedProcess:
    """Two processes of the text stage, as users start them."""
    settings = [f"--set={name}={value}" for name, value in (("save_every", 0), ("precision", "no"))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(ROOT / "scripts" / "train.py"), "--stage", "text", "--preset", "smoke", "--output", str(folder)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *script, *settings, *more], env=environment, capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.slow
def test_two_processes_resume_to_the_bit(tmp_path: Path):
    """A run of four steps, and one of two that goes on to four: constant rates, so that the ends do not show."""
    constant = ["--set=schedule=constant"]
    for name, steps in (("whole", 4), ("parted", 2), ("parted", 4)):
        result = torchrun(tmp_path / name, "--resume", f"--max-steps={steps}", *constant)
        assert result.returncode == 0, result.stderr[-2000:]
    ends = [newest_checkpoint(tmp_path / name / "text_run" / "checkpoints")[0] for name in ("whole", "parted")]
    assert [path.name for path in ends] == ["step-00000004"] * 2
    assert_same(*map(load_checkpoint, ends))
    assert load_checkpoint(ends[0]).state["processes"] == 2


GRADIENTS = '''
"""Prints the gradient of two processes, or of one with the batches of both."""
import sys, torch
from safetensors.torch import save_file
from diffusers_stale.training.config import PRESETS
from diffusers_stale.training.processes import make_accelerator
from diffusers_stale.training.stage_text import TextTask
from dataclasses import replace
accelerator = make_accelerator("no")
settings = replace(PRESETS["smoke"].text, batch_size=8)
task = TextTask(settings, accelerator.device)
whole = {name: torch.cat([task.batch(0, rank, 0.0)[name] for rank in (0, 1)]) for name in ("input_ids", "labels")}
# Every attribute is stated by as many captions of each half, so that means of halves are means of all.
whole["labels"] = whole["labels"].clamp_min(0)
half = len(whole["labels"]) // 2
part = slice(accelerator.process_index * half, (accelerator.process_index + 1) * half)
batch = {name: value[part] for name, value in whole.items()} if accelerator.num_processes == 2 else whole
model = accelerator.prepare_model(task.module)
accelerator.backward(model(**batch))
if accelerator.is_main_process:
    save_file({name: p.grad for name, p in task.module.named_parameters() if p.grad is not None}, sys.argv[1])
accelerator.end_training()
'''


@pytest.mark.slow
def test_the_gradients_of_two_processes_are_those_of_one_with_twice_the_batch(tmp_path: Path):
    from safetensors.torch import load_file

    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for count in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        command = [sys.executable, *launcher, str(script), str(tmp_path / f"{count}.safetensors")]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, result.stderr[-2000:]
    one, two = (load_file(tmp_path / f"{count}.safetensors") for count in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)


def test_no_tensor_file_of_a_run_is_a_pickle(tmp_path: Path):
    """What looks like a checkpoint but is pickled is not read."""
    path = save_checkpoint(tmp_path, state_of(1), keep=2)
    torch.save({"weight": torch.zeros(1)}, path / "model.safetensors")
    (path / "manifest.json").unlink()
    assert newest_checkpoint(tmp_path)[0] is None
    save_file({"weight": torch.zeros(1)}, path / "model.safetensors")
    assert newest_checkpoint(tmp_path)[0] == path


def test_a_stage_that_was_trained_is_not_overwritten(tmp_path: Path):
    """Without `resume` its checkpoints would be kept in place of new ones that have fewer steps."""
    train_stage("text", config(), tmp_path)
    before = sorted(path.name for path in (tmp_path / "text_run" / "checkpoints").iterdir())
    with pytest.raises(FileExistsError, match=r"must not have stage text yet, got a run of it up to step-0+6; go on"):
        train_stage("text", config(max_steps=2), tmp_path)
    assert sorted(path.name for path in (tmp_path / "text_run" / "checkpoints").iterdir()) == before
    shutil.rmtree(tmp_path / "text_run")
    with pytest.raises(FileExistsError, match="got its result"):
        train_stage("text", config(max_steps=2), tmp_path)


def test_the_script_looks_for_all_stages_before_it_trains_the_first(tmp_path: Path):
    train_stage("text", config(max_steps=1), tmp_path)
    command = [sys.executable, "scripts/train.py", "--stage=all", "--preset=smoke", f"--output={tmp_path}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "stage text yet, got a run of it up to step-00000001" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "autoencoder_run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, r"weights that are trained now, got \d+ that differ.*config\.yaml"),
        ({"layers": 2}, r"layers\.1\.\S+ is not there, expected"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, changes: dict, message: str):
    train_stage("text", config(max_steps=1), tmp_path)
    before = (tmp_path / "text_run" / "config.yaml").read_text()
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **changes)
    assert (tmp_path / "text_run" / "config.yaml").read_text() == before


def test_what_changed_before_a_run_went_on_is_said_and_reported(tmp_path: Path):
    train_stage("text", config(max_steps=2), tmp_path)
    train(tmp_path, max_steps=3)
    report = json.loads((tmp_path / "text" / "training_report.json").read_text())
    assert report["resumptions"] == []
    train(tmp_path, max_steps=4, seed=5, learning_rate=0.5, tokenizer_captions=201)
    report = json.loads((tmp_path / "text" / "training_report.json").read_text())
    (resumption,) = report["resumptions"]
    assert resumption["step"] == 3
    assert "seed was 0, is 5" in resumption["changes"]
    assert "the data corpus are others" in resumption["changes"]
    told = CliRunner().invoke(app, ["info", str(tmp_path / "text")]).output
    assert "after step 3: seed was 0, is 5" in " ".join(told.split())
    log = (tmp_path / "text_run" / "log.txt").read_text()
    assert "not as before step 3: seed was 0, is 5; learning_rate was" in log
