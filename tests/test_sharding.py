"""Weights sharded over two processes are trained as whole ones are, saved whole, and resumed to the bit."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pairs import DONE, STOPPED, together
from safetensors.torch import load_file
from torch import nn

from diffusers_stale.training.checkpoints import Checkpoint, load_checkpoint, newest_checkpoint
from diffusers_stale.training.config import PRESETS, ImageConfig, MovieConfig
from diffusers_stale.training.loop import Trainer
from diffusers_stale.training.processes import LaunchError, make_accelerator
from diffusers_stale.training.sharding import ShardedWeights, collected
from diffusers_stale.training.stages import train_stage


pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="processes are watched as Linux lets one"),
]

SMOKE = PRESETS["smoke"]
SETTINGS = {
    "precision": "no", "schedule": "constant", "warmup_steps": 0, "sample_every": 1000, "learning_rate": 1e-3,
    "ema_decay": 0.5, "text_rate": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the stages before the movie stage."""
    folder = tmp_path_factory.mktemp("parents")
    for stage in ("autoencoder", "text", "image"):
        config = replace(getattr(SMOKE, stage), sample_every=1000)
        train_stage(stage, replace(SMOKE, **{stage: config}), folder)
    return folder


def trainer_of(stage: str, parents: Path, folder: Path, resume: bool = False, **changes: object) -> Callable:
    """What one of two processes does to train a stage."""
    config = replace(SMOKE, **{stage: replace(getattr(SMOKE, stage), **SETTINGS | changes)})
    folders = {name: parents / name for name in ("autoencoder", "text", "image") if name != stage}
    return lambda rank: train_stage(stage, config, folder, resume, folders)


def end(folder: Path, stage: str) -> Checkpoint:
    return load_checkpoint(newest_checkpoint(folder / f"{stage}_run" / "checkpoints")[0])


def assert_same(ours: Checkpoint, theirs: Checkpoint) -> None:
    for part in ("model", "ema", "optimizer"):
        expected, got = getattr(ours, part), getattr(theirs, part)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected), part
    assert ours.state["fingerprints"] == theirs.state["fingerprints"]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("image", {"accumulation": 2}),
        # The hinge counts in the noisiest tenth, so that some batches have nobody who pays for it.
        pytest.param("movie", {"hinge_from": 0.9, "gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
)
def test_sharded_weights_are_trained_as_whole_ones(parents: Path, tmp_path: Path, stage: str, changes: dict):
    for name, sharded in (("whole", False), ("sharded", True)):
        run = trainer_of(stage, parents, tmp_path / name, max_steps=3, shard_weights=sharded, **changes)
        assert together(run) == (DONE, DONE)
    whole, sharded = (end(tmp_path / name, stage) for name in ("whole", "sharded"))
    for part in ("model", "ema", "optimizer"):
        expected, got = getattr(whole, part), getattr(sharded, part)
        assert expected.keys() == got.keys()
        for name, tensor in expected.items():
            # Adam divides by what may be next to nothing: where a gradient is all rounding, so is its step.
            torch.testing.assert_close(got[name], tensor, rtol=2e-3, atol=2e-4, msg=f"{part} {name}")
    ours, theirs = (tmp_path / name / stage / "unet" for name in ("sharded", "whole"))
    assert json.loads((ours / "config.json").read_text()) == json.loads((theirs / "config.json").read_text())
    weights = [load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (ours, theirs)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[0][name], tensor, rtol=2e-3, atol=2e-3, msg=name)


def test_sharded_weights_are_trained_in_bfloat16_too(parents: Path, tmp_path: Path):
    """Weights, gradients and moments stay in float32; passes round as much as those of whole weights do."""
    runs = {"whole": ("bf16", False), "sharded": ("bf16", True), "float32": ("no", True)}
    for name, (precision, sharded) in runs.items():
        run = trainer_of("image", parents, tmp_path / name, max_steps=1, precision=precision, shard_weights=sharded)
        assert together(run) == (DONE, DONE)
    # A tenth of the first gradient, which is clipped: the step of the weights themselves is nearly its sign.
    gradients = {}
    for name in runs:
        checkpoint = end(tmp_path / name, "image")
        moments = {key: tensor for key, tensor in checkpoint.optimizer.items() if key.endswith("exp_avg")}
        assert {tensor.dtype for tensor in (*moments.values(), *checkpoint.model.values())} == {torch.float32}
        gradients[name] = torch.cat([moments[key].flatten() for key in sorted(moments)])
    exact = gradients["float32"]
    whole, sharded = ((gradients[name] - exact).norm() / exact.norm() for name in ("whole", "sharded"))
    assert 1e-3 < whole < 0.1
    assert 0.5 * whole < sharded < 2 * whole


@pytest.mark.slow
def test_a_sharded_run_resumes_to_the_bit_and_as_an_unsharded_one(parents: Path, tmp_path: Path):
    settings = {"max_steps": 4, "shard_weights": True, "save_every": 0.0, "keep_checkpoints": 4}
    assert together(trainer_of("image", parents, tmp_path / "whole", **settings)) == (DONE, DONE)

    def stopped(rank: int) -> None:
        """Told to stop during the second step, as `StopRequest` notes it."""
        agreed = Trainer.agreed

        def told(trainer: Trainer, stop: object) -> tuple[float, int]:
            stop.signal = 15 if trainer.step == 2 and rank == 1 else 0
            return agreed(trainer, stop)

        Trainer.agreed = told
        trainer_of("image", parents, tmp_path / "parted", **settings)(rank)

    assert together(stopped) == (STOPPED, STOPPED)
    assert end(tmp_path / "parted", "image").state["step"] == 2
    assert together(trainer_of("image", parents, tmp_path / "parted", resume=True, **settings)) == (DONE, DONE)
    assert_same(end(tmp_path / "parted", "image"), end(tmp_path / "whole", "image"))
    # What is saved is whole: two processes that do not shard go on from it, and end nearly the same.
    newest = tmp_path / "parted" / "image_run" / "checkpoints"
    for step in (3, 4):
        for path in (newest / f"step-{step:08d}").iterdir():
            path.unlink()
    plain = trainer_of("image", parents, tmp_path / "parted", True, **settings | {"shard_weights": False})
    assert together(plain) == (DONE, DONE)
    ours, theirs = end(tmp_path / "parted", "image"), end(tmp_path / "whole", "image")
    assert ours.state["step"] == 4
    for name, tensor in theirs.model.items():
        torch.testing.assert_close(ours.model[name], tensor, rtol=2e-3, atol=2e-4, msg=name)


class Tower(nn.Module):
    """A child with blocks, and one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.top = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        self.top._no_split_modules = ["Linear"]
        self.base = nn.Linear(4, 8).requires_grad_(False)


def test_each_process_holds_its_half_and_the_first_gets_all_back(tmp_path: Path):
    expected = {name: tensor.clone() for name, tensor in Tower().state_dict().items()}

    def halved(rank: int) -> None:
        tower = Tower()
        before = tower.top
        device = make_accelerator("no").device
        sharded = ShardedWeights(tower, device)
        assert type(tower.base.weight) is nn.Parameter
        held = sum(parameter.to_local().numel() for parameter in tower.top.parameters())
        total = sum(parameter.numel() for parameter in tower.top.parameters())
        assert 0.3 * total < held < 0.7 * total
        tower.top(torch.ones(2, 8))
        assert sum(parameter.to_local().numel() for parameter in tower.top.parameters()) == held
        whole = collected(dict(tower.named_parameters()))
        assert (whole == {}) == (rank == 1)
        for name, tensor in whole.items():
            assert torch.equal(tensor, expected[name])
        with torch.no_grad():
            for parameter in tower.top.parameters():
                parameter.mul_(2)
            tower.top[1].running_mean.fill_(7)
        sharded.dissolve()
        if rank == 0:
            assert tower.top is before
            for name, parameter in tower.named_parameters():
                assert torch.equal(parameter, expected[name] * (2 if name.startswith("top") else 1))
            assert torch.equal(tower.top[1].running_mean, torch.full((8,), 7.0))

    assert together(halved) == (DONE, DONE)


def test_what_cannot_be_sharded_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="shard_weights.*precision bf16 or no.*fp16"):
        ImageConfig(shard_weights=True, precision="fp16")
    with pytest.raises(ValueError, match="shard_weights.*local_steps"):
        MovieConfig(shard_weights=True, local_steps=4)
    with pytest.raises(ValueError, match="needs processes to share among.*torchrun"):
        ShardedWeights(Tower(), torch.device("cpu"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(LaunchError, match="shard_weights=true"):
        make_accelerator("no")
