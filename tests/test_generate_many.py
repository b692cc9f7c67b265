"""Movies of many sentences: the same on one process and on two, and what is there already is not made again."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from diffusers_stale.data.captions import caption_of
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.light_field import LightField


ROOT = Path(__file__).resolve().parent.parent
SENTENCES = ["a brown horse", "a white cow stands by a blue barn", "a red barn at sunset"]
SMALL = [f"--{name}={value}" for name, value in (("view-rows", 1), ("view-cols", 3), ("frames", 2), ("steps", 2))]


@pytest.fixture(scope="module")
def checkpoint(make_pipeline: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_pipeline().save_pretrained(folder)
    return folder


def generate(checkpoint: Path, output: Path, *more: str, processes: int = 1) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    script = [str(ROOT / "scripts" / "generate_many.py"), "--checkpoint", str(checkpoint), "--output", str(output)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *(launcher if processes > 1 else []), *script, *SMALL, *more]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("generate_many", ROOT / "scripts" / "generate_many.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_process_makes_what_two_made_and_only_what_is_missing(checkpoint: Path, tmp_path: Path):
    sentences, output = tmp_path / "sentences.txt", tmp_path / "movies"
    sentences.write_text("\n\n".join(SENTENCES) + "\n", encoding="utf-8")
    result = generate(checkpoint, output, "--prompts", str(sentences), processes=2)
    assert result.returncode == 0, result.stderr[-2000:]
    paths = [output / f"{number:06d}.lf.safetensors" for number in range(3)]
    assert sorted(path.name for path in output.iterdir()) == [*(p.name for p in paths), "index.jsonl", "request.json"]
    before, untouched = [LightField.load(path) for path in paths], paths[2].stat().st_mtime_ns
    # A movie of each process got lost, and there is what a killed one was writing.
    for path in paths[:2]:
        path.unlink()
    (output / ".writing-x.safetensors").write_text("half")
    result = generate(checkpoint, output, "--prompts", str(sentences))
    assert result.returncode == 0, result.stderr[-2000:]
    assert paths[2].stat().st_mtime_ns == untouched
    after = [LightField.load(path) for path in paths]
    for old, new, sentence in zip(before, after, SENTENCES, strict=True):
        assert torch.equal(old.pixels, new.pixels)
        assert old.provenance == new.provenance
        assert new.provenance["prompt"] == sentence
        assert (new.view_rows, new.view_cols, new.num_frames) == (1, 3, 2)
    assert not torch.equal(after[0].pixels, after[1].pixels)
    assert not list(output.glob(".*"))
    listed = [json.loads(line) for line in (output / "index.jsonl").read_text().splitlines()]
    assert listed == [{"file": path.name, "prompt": text} for path, text in zip(paths, SENTENCES, strict=True)]


def test_sentences_may_be_added_and_nothing_else_may_change(tmp_path: Path):
    agree = script().agree
    agree(tmp_path, {"steps": 2}, ["a cow"])
    agree(tmp_path, {"steps": 2}, ["a cow", "a horse"])
    with pytest.raises(ValueError, match="steps was 2, is 3"):
        agree(tmp_path, {"steps": 3}, ["a cow", "a horse"])
    for others, number in ((["a cow", "a pig"], 1), (["a cow"], 1), (["a hen", "a horse"], 0)):
        with pytest.raises(ValueError, match=f"from number {number} on"):
            agree(tmp_path, {"steps": 2}, others)
    assert json.loads((tmp_path / "request.json").read_text())["prompts"] == ["a cow", "a horse"]


def test_sentences_are_those_of_the_grammar_or_the_lines_of_a_file(tmp_path: Path):
    read_prompts = script().read_prompts
    asked = argparse.Namespace(prompts=None, count=2, seed=4)
    assert read_prompts(asked) == [caption_of(sample_scene(4, index), 4, index) for index in range(2)]
    path = tmp_path / "sentences.txt"
    path.write_text("a cow\n\n  a horse \n", encoding="utf-8")
    assert read_prompts(argparse.Namespace(prompts=path)) == ["a cow", "a horse"]
    for text, message in (("\n", "a sentence at least"), ("a cow\nnul \0", "NUL")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_prompts(argparse.Namespace(prompts=path))
