"""The command line: what it writes, what it says, and that no mistake of a user ends in a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import diffusers_stale.hub
from diffusers_stale import LightField, StaleDiffusionPipeline, StaleScheduler, __version__
from diffusers_stale.calibration import cost
from diffusers_stale.cli import app
from diffusers_stale.cli.app import one_line
from diffusers_stale.cli.generation import CONTENTS
from diffusers_stale.cli.inspection import without_header
from diffusers_stale.cli.options import parse_pair, parse_size
from diffusers_stale.light_field.movie_folder import FILE_NAMES


SMALL = ["--frames", "2", "--steps", "2", "--views", "1x2"]
RENDER_SMALL = ["render", "--frames", "2", "--views", "1x2", "--size", "16"]


@pytest.fixture(scope="module")
def checkpoint(tiny_pipeline: StaleDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A very small barnyard\n")
    return folder


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Output and errors of the command, which must end with `code` and not by an exception."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="stale-diffusion")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def error(*arguments: object) -> str:
    """The one line that a user error gets."""
    _, errors = run(*arguments, code=1)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert errors.splitlines()[-1] == lines[0]
    return lines[0]


def run_as_a_user_does(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "diffusers_stale.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, check=False, timeout=600
    )


def test_every_file_is_explained():
    assert tuple(CONTENTS) == FILE_NAMES


def test_generate_writes_and_names_every_file(checkpoint: Path, tmp_path: Path):
    output, _ = run("generate", "a brown horse", "--checkpoint", checkpoint, "--output", tmp_path / "movie", *SMALL)
    lines = [line.split() for line in output.splitlines()[-len(FILE_NAMES) :]]
    assert [Path(line[0]).name for line in lines] == list(FILE_NAMES)
    assert all(Path(line[0]).stat().st_size > 0 and len(line) > 3 for line in lines)


def test_generate_makes_what_was_asked_for(checkpoint: Path, tmp_path: Path):
    options = ["--views", "2x3", "--frames", 2, "--steps", 3, "--size", "8x16", "--seed", 7, "--guidance", 1.5]
    options += ["--baseline", 0.5, "--negative", "a cow", "--device", "cpu"]
    run("generate", "a brown horse", "--checkpoint", checkpoint, "-o", tmp_path, *options)
    movie = LightField.load(tmp_path / "movie.lf.safetensors")
    assert movie.shape == (3, 2, 3, 2, 8, 16)
    assert movie.camera_grid.baseline == 0.5
    expected = {"prompt": "a brown horse", "negative_prompt": "a cow", "seed": 7, "guidance_scale": 1.5}
    expected |= {"num_inference_steps": 3, "checkpoint": checkpoint.name}
    assert expected.items() <= movie.provenance.items()


def test_the_same_seed_is_the_same_movie_and_another_is_another(checkpoint: Path, tmp_path: Path):
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        run("generate", "", "--checkpoint", checkpoint, "-o", tmp_path / name, "--seed", seed, *SMALL)
    first, again, other = (
        LightField.load(tmp_path / name / "movie.lf.safetensors").pixels for name in ("first", "again", "other")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_progress_is_told_with_step_and_time_left_where_there_is_no_terminal(checkpoint: Path, tmp_path: Path):
    options = ["--checkpoint", checkpoint, "--output", tmp_path / "movie", *SMALL]
    result = run_as_a_user_does("generate", "a brown horse", *options)
    assert result.returncode == 0, result.stderr
    assert "Denoising: 100%" in result.stderr
    assert "2/2 [" in result.stderr
    assert "Loading" not in result.stderr


def test_render_writes_the_truth_and_tells_its_caption(tmp_path: Path):
    output, _ = run(*RENDER_SMALL, "--output", tmp_path, "--seed", 3, "--index", 2)
    movie = LightField.load(tmp_path / "movie.lf.safetensors")
    assert movie.shape == (3, 1, 2, 2, 16, 16)
    assert movie.disparity is not None
    assert f"Caption: {movie.provenance['caption']}" in output
    assert {path.name for path in tmp_path.iterdir()} == set(FILE_NAMES)


def test_info_of_a_checkpoint(checkpoint: Path):
    output, _ = run("info", checkpoint)
    assert "StaleUNet5DConditionModel" in output
    assert "MB" in output
    assert output.rstrip().endswith("# A very small barnyard")
    assert "license" not in output


def test_info_of_a_movie(tmp_path: Path):
    run(*RENDER_SMALL, "--output", tmp_path)
    output, _ = run("info", tmp_path / "movie.lf.safetensors")
    for said in ("1 down, 2 across", "2 at 8 a second", "16 high, 16 wide", "of every pixel", "caption"):
        assert said in output


def test_the_version_is_told():
    assert run("--version")[0].split() == ["stale-diffusion", __version__]


@pytest.mark.parametrize("command", ["generate", "render", "info"])
def test_help_is_there_for_every_option(command: str):
    output, _ = run(command, "--help")
    for option in {"generate": ["--output", "--checkpoint", "--steps", "--seed", "--views", "--frames", "--size",
                                "--guidance", "--baseline", "--negative", "--device", "--dtype", "--force"],
                   "render": ["--output", "--seed", "--index", "--views", "--frames", "--size", "--baseline"],
                   "info": []}[command]:  # fmt: skip
        assert option in output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["generate"],
        ["generate", "x", "--views", "3"],
        ["generate", "x", "--views", "3x3x3"],
        ["generate", "x", "--views", "-1x3"],
        ["generate", "x", "--size", "big"],
        ["generate", "x", "--size", "٣"],
        ["generate", "x", "--steps", "few"],
        ["generate", "x", "--seed", "-1"],
        ["generate", "x", "--seed", str(2**63)],
        ["generate", "x", "--dtype", "float128"],
        ["generate", "x", "--colour", "red"],
        ["render", "--index", "1.5"],
        ["dream"],
    ],
)
def test_a_wrong_way_of_calling_is_exit_code_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run(*arguments, code=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--views", "0x3"], "view_rows"),
        (["--frames", "0"], "num_frames"),
        (["--frames", "400"], "num_frames"),
        (["--steps", "0"], "num_inference_steps"),
        (["--size", "7"], "height"),
        (["--size", "8x9"], "width"),
        (["--guidance", "nan"], "guidance_scale"),
        (["--baseline", "inf"], "baseline"),
        (["--device", "toaster"], "device"),
        (["--views", "3000x3000"], "GiB"),
    ],
)
def test_what_cannot_be_made_is_one_clear_line(checkpoint: Path, tmp_path: Path, options: list[str], message: str):
    output = tmp_path / "movie"
    line = error("generate", "a horse", "--checkpoint", checkpoint, "--output", output, *SMALL, *options)
    assert message in line
    assert not output.exists()


def test_prompts_that_are_no_text_are_one_clear_line(checkpoint: Path, tmp_path: Path):
    assert "surrogate" in error("generate", "horse \udcff", "--checkpoint", checkpoint, "-o", tmp_path / "m", *SMALL)


def test_a_checkpoint_that_is_not_there_is_one_clear_line(tmp_path: Path):
    assert "nowhere" in error("generate", "a horse", "--checkpoint", "nowhere", "--output", tmp_path / "movie")
    assert "nowhere" in error("info", "nowhere")
    assert "model_index.json" in error("info", tmp_path)
    assert "nothing.lf.safetensors" in error("info", tmp_path / "nothing.lf.safetensors")


def test_the_output_folder_is_tried_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(diffusers_stale.hub, "load_pipeline", lambda *_: pytest.fail("loaded first"))
    (tmp_path / "file").write_text("in the way")
    line = error("generate", "a horse", "--output", tmp_path / "file")
    assert str(tmp_path / "file") in line
    assert "Errno" not in line


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_clear_line(tmp_path: Path):
    tmp_path.chmod(0o500)
    assert str(tmp_path) in error(*RENDER_SMALL, "--output", tmp_path)


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "Interrupted"),
        (FloatingPointError("NaN after step 2"), 1, "error: NaN after step 2"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "error: CUDA out of memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), 1, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "can't allocate memory"),
        (RuntimeError("std::bad_alloc"), 1, "bad_alloc"),
        (ValueError("two\nlines"), 1, "error: two lines"),
    ],
)
def test_what_goes_wrong_meanwhile_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, said: str
):
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(diffusers_stale.hub, "load_pipeline", fail)
    _, errors = run("generate", "a horse", "--output", tmp_path / "movie", code=code)
    assert said in errors
    assert not (tmp_path / "movie").exists()


def test_a_bug_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("a shape does not fit")

    monkeypatch.setattr(diffusers_stale.hub, "load_pipeline", fail)
    result = CliRunner().invoke(app, ["generate", "a horse", "--output", str(tmp_path / "movie")])
    assert isinstance(result.exception, RuntimeError)


def test_a_user_error_ends_the_process_with_1_and_without_a_traceback(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    result = run_as_a_user_does("render", "--output", tmp_path / "file")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_pairs_and_sizes():
    assert parse_pair("--views", " 3x12 ") == (3, 12)
    assert parse_size("--size", "64") == (64, 64)
    assert parse_size("--size", "48X64") == (48, 64)


def test_errors_of_the_system_lose_their_numbers():
    assert one_line(PermissionError(13, "Permission denied", "here")) == "Permission denied: here"
    assert one_line(ValueError("")) == "ValueError"


def test_a_card_is_shown_without_what_only_the_hub_reads():
    assert without_header("---\na: b\n---\n# Card\n\n---\nrule\n") == "# Card\n\n---\nrule"
    assert without_header("# Card") == "# Card"


def test_calibrate_says_the_cost_first_and_leaves_what_the_pipeline_then_uses(checkpoint, tmp_path):
    sentences = tmp_path / "prompts.txt"
    sentences.write_text("a red barn\na brown horse\n")
    options = ["--steps", "2,4", "--noises", "4", "--teacher-steps", "12", "--guidance", "2", "--prompts", sentences]
    written, _ = run("calibrate", checkpoint, "--output", tmp_path / "scheduler", *options)
    lines = written.splitlines()
    told = cost((2, 4), 4, 1, 12)
    assert lines[0] == f"This takes {told:,} evaluations of the network, a sample each."
    scheduler = StaleScheduler.from_pretrained(tmp_path / "scheduler")
    assert list(scheduler.calibration.entries) == [2, 4]
    made_for = scheduler.calibration.provenance
    assert made_for["guidance_scale"] == 2.0
    assert made_for["prompts"] == ["a red barn", "a brown horse"]
    assert len(made_for["weights_sha256"]) == 64
    assert scheduler.suggest_steps(max_error=1e6) == 2
    assert "--output must be given" in error("calibrate", "barnyard", *options)


def test_the_scheduler_of_a_checkpoint_is_plotted(checkpoint, tmp_path):
    written, _ = run("scheduler-plot", checkpoint, "-o", tmp_path / "plot.png", "--steps", "5")
    assert str(tmp_path / "plot.png") in written
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert ".png" in error("scheduler-plot", checkpoint, "-o", tmp_path / "plot.jpeg")
    assert "scheduler_config.json" in error("scheduler-plot", tmp_path / "nowhere")
