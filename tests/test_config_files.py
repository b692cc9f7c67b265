"""Configurations in YAML: what is written is read back, values mean what they mean on the command line, mistakes are
named.
"""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from diffusers_stale.training.config import PRESETS, STAGES, ImageConfig, with_changes
from diffusers_stale.training.config_files import config_yaml, read_configs
from diffusers_stale.training.processes import chosen_precision
from diffusers_stale.training.stages import train_stage


SMOKE = PRESETS["smoke"]


def written(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_is_read_back(tmp_path: Path, name: str):
    config = with_changes(
        PRESETS[name], ["movie.baselines=0.25,3", "image.learning_rate=1e-5", "precision=no", "max_seconds=none",
                        "max_steps=7"],
    )  # fmt: skip
    assert read_configs([written(tmp_path, config_yaml(config))], "smoke") == config
    # Any YAML reader sees the same values, of the same types.
    plain = yaml.safe_load(config_yaml(config))
    assert list(plain) == list(STAGES)
    assert plain["image"]["learning_rate"] == 1e-5
    assert plain["image"]["precision"] == "no"
    assert plain["movie"]["baselines"] == [0.25, 3.0]
    assert plain["image"].keys() == {field.name for field in fields(ImageConfig)}


def test_values_are_those_of_the_command_line(tmp_path: Path):
    path = written(
        tmp_path,
        "preset: smoke\nseed: 5\nimage:\n  learning_rate: 3e-4\n  precision: no\n  max_seconds: null\n  start_from:\n"
        "movie:\n  baselines: [1, 2.5]\n  seed: 6\ntext: {}\n",
    )
    config = read_configs([path])
    assert config == with_changes(
        SMOKE, ["seed=5", "image.learning_rate=3e-4", "image.precision=no", "movie.baselines=1,2.5", "movie.seed=6"]
    )
    assert config.image.start_from is None
    assert read_configs([path, written(tmp_path, "image: {learning_rate: 1}", "later.yaml")]).image.learning_rate == 1
    assert read_configs([]) == PRESETS["barnyard"]
    assert read_configs([written(tmp_path, "# nothing\n")], "smoke") == SMOKE


def test_settings_that_belong_together_are_checked_together(tmp_path: Path):
    text = "preset: smoke\nmovie: {view_rows: 5, view_cols: 5, static_grids: '5x5x1:1:1', moving_grids: '5x5x2:1:1'}"
    assert read_configs([written(tmp_path, text)]).movie.view_rows == 5
    changed = with_changes(SMOKE, ["max_steps=none", "max_seconds=3"], ["image"])
    assert (changed.image.max_steps, changed.image.max_seconds) == (None, 3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image: {learning_rat: 1}", "config.yaml.*did you mean 'image.learning_rate'"),
        ("sed: 1", "did you mean 'seed'"),
        ("imag: {seed: 1}", "no stage 'imag'; did you mean 'image'"),
        ("preset: barnyrd", "did you mean 'barnyard'"),
        ("image: {batch_size: many}", "of type int, got 'many'"),
        ("image: {batch_size: 0}", "greater than 0"),
        ("image: {gradient_checkpointing: maybe}", "true or false"),
        ("image: {seed: 1, seed: 2}", "seed is given twice"),
        ("image: [1, 2]", "`image` must map settings"),
        ("image: {seed: {a: 1}}", "a value or a list of values"),
        ("- image", "must map stages"),
        ("image: {seed: [", "must be YAML"),
        ("image: {precision: fp8}", "no, bf16, fp16"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_configs([written(tmp_path, text)])


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"absent.yaml is missing"):
        read_configs([tmp_path / "absent.yaml"])


@pytest.mark.usefixtures("one_thread")
def test_a_run_leaves_the_file_that_repeats_it(tmp_path: Path):
    config = replace(SMOKE, text=replace(SMOKE.text, seed=9, max_steps=1))
    train_stage("text", config, tmp_path)
    again = read_configs([tmp_path / "text_run" / "config.yaml"])
    # What the hardware decided is part of it.
    assert again.text == replace(config.text, precision=chosen_precision(config.text.precision))
    assert again.image == PRESETS["barnyard"].image
