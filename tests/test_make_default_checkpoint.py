"""The default checkpoint is made from nothing by one command, which goes on where it was, and stops at its gates."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from diffusers_stale.evaluation.gates import Gate
from diffusers_stale.training.config import PRESETS, STAGES


SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "make_default_checkpoint.py"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("make_default_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("default")
    assert script.main(["--output", str(folder), "--smoke"]) == 0
    return folder


@pytest.mark.slow
def test_everything_is_made_gated_and_reported(run: Path):
    for stage in STAGES:
        assert (run / stage / "training_report.json").is_file()
    assert (run / "movie" / "model_index.json").is_file()
    record = json.loads((run / "gates.json").read_text())
    assert {stage: len(record[stage]["gates"]) for stage in STAGES} == {
        "autoencoder": 5, "text": 0, "image": 2, "movie": 0,
    }  # fmt: skip
    # Two steps of training pass no gate; smoke goes on all the same.
    assert not any(gate["met"] for gate in record["autoencoder"]["gates"] if "PSNR" in gate["title"])
    for name in ("report_views", "report_time"):
        assert json.loads((run / name / "report.json").read_text())["bars"]
        assert "<svg" in (run / name / "report.html").read_text()


@pytest.mark.slow
def test_what_is_done_is_left_as_it_is(script: ModuleType, run: Path):
    files = [run / stage / "training_report.json" for stage in STAGES] + [run / "report_time" / "report.json"]
    before = [path.stat().st_mtime_ns for path in files]
    assert script.main(["--output", str(run), "--smoke"]) == 0
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_missed_gate_lengthens_its_stage_and_then_stops(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    budgets: list[tuple[str, int]] = []
    monkeypatch.setattr(script, "make_instruments", lambda: None)
    monkeypatch.setattr(
        script, "train", lambda stage, config, *rest: budgets.append((stage, getattr(config, stage).max_steps))
    )
    likeness = iter((20.0, 25.0, 33.0))
    monkeypatch.setitem(
        script.GATES, "autoencoder", lambda folder, sizes: [Gate("likeness", next(likeness), 32.0, 60.0)]
    )
    command = ["--output", str(tmp_path), "--attempts", "2", "--stretch", "2", "--set", "autoencoder.max_steps=100"]
    assert script.main(command) == script.GATE_MISSED
    assert "The autoencoder stage missed likeness after 2 attempts" in capsys.readouterr().err
    assert budgets == [("autoencoder", 100), ("autoencoder", 200)]
    # Asked again, it tries once more, with a budget that goes on growing, and passes on to the next stage.
    monkeypatch.setitem(script.GATES, "image", lambda folder, sizes: [Gate("obedience", 0.5, 0.9, 1.0)])
    assert script.main(command) == script.GATE_MISSED
    assert budgets[2] == ("autoencoder", 400)
    assert [stage for stage, _ in budgets[3:]] == ["text", "image", "image"]


def test_a_budget_of_seconds_is_stretched_too(script: ModuleType):
    config = PRESETS["barnyard"]
    longer = script.stretched(config, "movie", 1.5)
    assert longer.movie.max_seconds == 1.5 * config.movie.max_seconds
    assert longer.movie.max_steps is None
    assert replace(longer, movie=config.movie) == config


def test_several_processes_are_started_by_torchrun(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[list[str]] = []
    monkeypatch.setattr(script, "call", calls.append)
    options = script.parse_arguments(["--output", str(tmp_path), "--processes", "2", "--set", "image.seed=3"])
    script.train("image", PRESETS["barnyard"], options, script.Sizes())
    line = " ".join(calls[0])
    assert "torch.distributed.run --nproc_per_node 2 scripts/train.py --stage image" in line
    assert "--resume --set image.seed=3 --set image.max_steps=None --set image.max_seconds=7200" in line


def test_senseless_numbers_are_refused_in_one_line(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert script.main(["--output", str(tmp_path), "--stretch", "1"]) == 1
    assert "--stretch must be greater than 1, got 1.0" in capsys.readouterr().err
    assert script.main(["--output", str(tmp_path), "--set", "image.moods=3"]) == 1
    assert "moods" in capsys.readouterr().err
