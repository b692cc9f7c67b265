"""States of a run on disk: safetensors and JSON only, written to a temporary folder and then renamed."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


PREFIX = "step-"
FILE_MODE = 0o644
TENSOR_FILES = ("model", "ema", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors by name of the model, its moving average and the optimizer, and everything else as JSON values."""

    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary folder beside `folder`, which then takes its place (an old one is deleted)."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.writing")
    old = folder.with_name(f".{folder.name}.old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    write(temporary)
    for path in temporary.rglob("*"):
        if path.is_file():
            path.chmod(FILE_MODE)
            _sync(path)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes `checkpoint` as `folder/step-NNNNNNNN` (its state must hold "step") and keeps the newest `keep`."""
    path = folder / f"{PREFIX}{checkpoint.state['step']:08d}"

    def write(temporary: Path) -> None:
        for name in TENSOR_FILES:
            tensors = {key: value.detach().cpu().contiguous() for key, value in getattr(checkpoint, name).items()}
            save_file(tensors, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(checkpoint.state, indent=1))

    write_folder(path, write)
    for old in checkpoint_folders(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def checkpoint_folders(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "state.json").is_file())


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint that `save_checkpoint` wrote to `path`."""
    tensors = {name: load_file(path / f"{name}.safetensors") for name in TENSOR_FILES}
    return Checkpoint(**tensors, state=json.loads((path / "state.json").read_text()))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, torch.Tensor]:
    """The state of `optimizer` by "parameter/key"; `names` gives the name of each parameter by its `id`."""
    return {
        f"{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter], tensors: dict[str, torch.Tensor]
) -> None:
    """Gives `optimizer` the state that `optimizer_tensors` told, for `parameters` by name."""
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        placed = tensor if entry == "step" else tensor.to(parameter.device)
        optimizer.state[parameter][entry] = placed.clone(memory_format=torch.preserve_format)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
