"""Slow science: every run says where it comes from, and what it says can be checked to the bit."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from diffusers_stale.checkpoint_origin import origin_lines, read_origin
from diffusers_stale.checkpoints import checkpoint_path
from diffusers_stale.cli import app
from diffusers_stale.manifest import MANIFEST, file_hash, folder_hash, manifest_problems, write_manifest
from diffusers_stale.training.config import PRESETS, STAGES
from diffusers_stale.training.provenance import EnergyMeter, code_version, tensors_hash
from diffusers_stale.training.reports import read_report
from diffusers_stale.training.stages import train_stage
from diffusers_stale.training.verification import environment_changes, verify_first_steps, verify_parents


pytestmark = pytest.mark.usefixtures("one_thread")

SMOKE = PRESETS["smoke"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for stage in STAGES:
        train_stage(stage, SMOKE, folder)
    return folder


@pytest.fixture
def copied(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "copy"))


def report_of(folder: Path) -> dict:
    return json.loads((folder / "training_report.json").read_text())


def test_hashes_are_those_of_the_usual_tool(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"stale" * 10**6)
    expected = subprocess.run(["sha256sum", tmp_path / "file"], capture_output=True, text=True).stdout.split()[0]
    assert file_hash(tmp_path / "file") == expected


def test_a_manifest_tells_what_is_missing_changed_and_added(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    for name in ("one", "deep/two", "three"):
        (tmp_path / name).write_text(name)
    before = folder_hash(tmp_path)
    write_manifest(tmp_path)
    assert manifest_problems(tmp_path) == []
    assert folder_hash(tmp_path) == before
    (tmp_path / "one").unlink()
    (tmp_path / "deep" / "two").write_text("twO")
    (tmp_path / "four").write_text("four")
    problems = manifest_problems(tmp_path)
    assert [problem.split()[0] for problem in problems] == ["one", "deep/two", "four"]
    assert folder_hash(tmp_path) != before
    for damage in ("{", "[]"):
        (tmp_path / MANIFEST).write_text(damage)
        with pytest.raises(ValueError, match="must hold hashes"):
            manifest_problems(tmp_path)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_records_its_origin_from_the_start_and_at_the_end(run_folder: Path, stage: str):
    report = report_of(run_folder / stage)
    origin = report["provenance"]
    assert json.loads((run_folder / f"{stage}_run" / "provenance.json").read_text())["code"] == origin["code"]
    assert len(origin["code"]["sources_sha256"]) == 64
    assert origin["packages"]["torch"] == torch.__version__.partition("+")[0] or origin["packages"]["torch"]
    assert all(len(digest) == 64 for digest in origin["data"].values())
    for name, recorded in origin["parents"].items():
        assert folder_hash(run_folder / name) == recorded["sha256"]
    assert set(origin["parents"]) == {"movie": {"image"}, "image": {"autoencoder", "text"}}.get(stage, set())
    assert set(report["fingerprints"]) == {"1", "2"}
    assert report["machine"]["cores"] >= 1
    assert manifest_problems(run_folder / stage) == []


def test_the_code_version_knows_commit_and_changes():
    code = code_version()
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        pytest.skip("not in a repository")
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert code["commit"] == head
    assert isinstance(code["clean"], bool)


def test_energy_is_counted_over_wraps_and_unknown_without_counters(tmp_path: Path):
    assert EnergyMeter(tmp_path).joules is None
    domain = tmp_path / "intel-rapl:0"
    domain.mkdir()
    (tmp_path / "intel-rapl:0:0").mkdir()
    (domain / "max_energy_range_uj").write_text("10000000")
    (domain / "energy_uj").write_text("9000000")
    meter = EnergyMeter(tmp_path)
    (domain / "energy_uj").write_text("9500000")
    assert meter.joules == pytest.approx(0.5)
    (domain / "energy_uj").write_text("500000")
    assert meter.joules == pytest.approx(1.5)


def test_the_hash_of_tensors_sees_every_bit():
    tensors = {"a": torch.zeros(3), "b": torch.ones(2, dtype=torch.float16)}
    flipped = {**tensors, "a": torch.tensor([0.0, -0.0, 0.0])}
    hashes = {tensors_hash(each) for each in (tensors, flipped, {**tensors, "a": torch.zeros(3, 1)})}
    assert len(hashes) == 3
    assert tensors_hash(dict(reversed(tensors.items()))) == tensors_hash(tensors)


@pytest.mark.parametrize("stage", STAGES)
def test_the_first_steps_of_a_stage_are_repeated_to_the_bit(run_folder: Path, stage: str):
    verdict = verify_first_steps(run_folder / stage, 2)
    assert not verdict.differs
    assert any("after step 2 are the same" in sentence for sentence in verdict.agrees)
    assert any(sentence.startswith("The data") for sentence in verdict.agrees)


def test_another_seed_and_another_parent_are_found_out(copied: Path):
    path = copied / "image" / "training_report.json"
    report = json.loads(path.read_text())
    report["config"]["seed"] = 5
    path.write_text(json.dumps(report))
    verdict = verify_first_steps(copied / "image", 2)
    assert len(verdict.differs) == 3
    (copied / "text" / "note.txt").write_text("another one")
    report["provenance"]["parents"]["text"]["folder"] = "/nowhere"
    verdict = verify_parents(report, copied)
    assert [sentence.split()[2] for sentence in verdict.differs] == ["text"]
    report["provenance"]["parents"]["start_from"] = {"folder": "/nowhere", "sha256": ""}
    assert "start_from is not at /nowhere" in verify_parents(report, copied).unchecked[0]


def test_what_cannot_be_repeated_is_said(copied: Path):
    path = copied / "text" / "training_report.json"
    report = json.loads(path.read_text())
    for change, reason in (({"processes": 2}, "2 processes"), ({"fingerprints": {}}, "No weights were recorded")):
        path.write_text(json.dumps(report | change))
        assert reason in verify_first_steps(copied / "text", 2).unchecked[0]
    path.write_text(json.dumps(report | {"config": report["config"] | {"max_seconds": 3.0}}))
    assert "bounded by seconds" in verify_first_steps(copied / "text", 2).unchecked[0]
    report["provenance"]["packages"]["torch"] = "1.0"
    report["machine"]["instructions"] = "an abacus"
    changes = environment_changes(report)
    assert changes[0].startswith("torch was 1.0, is")
    assert changes[-1].startswith("the processor computed with an abacus, computes with")


def test_the_command_verifies_and_info_tells(copied: Path):
    run = CliRunner().invoke
    result = run(app, ["verify", str(copied / "movie")])
    assert result.exit_code == 0, result.output
    assert "All files are as they were written." in result.output
    assert "The parent image is what it was." in result.output
    assert "weights after step 2 are the same to the bit" in result.output
    told = run(app, ["info", str(copied / "movie")]).output
    assert "stage movie" in told
    assert "0.00% of 1000 test scenes leaked into static" in told
    # All that is recorded: hardware, packages, the command, and every setting.
    settings = read_report(copied / "movie")["config"]
    assert all(f"{name}=" in told for name in settings)
    assert f"torch {torch.__version__}" in told
    assert "cores" in told
    assert "  command " in told
    config = copied / "movie" / "unet" / "config.json"
    config.write_text(config.read_text() + " ")
    result = run(app, ["verify", str(copied / "movie"), "--steps", "0"])
    assert result.exit_code == 1
    assert "unet/config.json is not what was written." in result.output


def test_old_checkpoints_load_and_are_described_without_what_they_never_recorded(copied: Path):
    shipped = read_origin(checkpoint_path("barnyard"))
    assert list(shipped) == list(STAGES)
    assert all(dict(origin_lines(report))["steps"] for report in shipped.values())
    (copied / "movie" / MANIFEST).unlink()
    result = CliRunner().invoke(app, ["verify", str(copied / "movie")])
    assert result.exit_code == 1
    assert "written without hashes" in result.output


def test_a_stage_says_which_checkpoint_it_started_from(copied: Path):
    config = replace(SMOKE, movie=replace(SMOKE.movie, start_from=str(copied / "movie")))
    expected = folder_hash(copied / "movie")
    shutil.rmtree(copied / "movie_run")
    (copied / "earlier").mkdir()
    (copied / "movie").rename(copied / "earlier" / "movie")
    config = replace(SMOKE, movie=replace(config.movie, start_from=str(copied / "earlier" / "movie")))
    report = train_stage("movie", config, copied)
    assert report["provenance"]["parents"]["start_from"]["sha256"] == expected


def test_info_tells_of_every_stage_and_of_what_is_being_trained(run_folder: Path):
    run = CliRunner().invoke
    for stage in STAGES:
        result = run(app, ["info", str(run_folder / stage)])
        assert result.exit_code == 0, result.output
        assert f"stage {stage}" in result.output
        result = run(app, ["info", str(run_folder / f"{stage}_run")])
        assert result.exit_code == 0, result.output
        told = " ".join(result.output.split())
        assert "step-00000002" in told
        assert "torch" in told
        assert "learning_rate=" in told


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_run_is_no_checkpoint_and_its_checkpoints_are_named(run_folder: Path, command: str):
    result = CliRunner().invoke(app, [command, str(run_folder)])
    assert result.exit_code == 1
    assert f"{run_folder}/autoencoder, {run_folder}/image" in " ".join(result.output.split())
