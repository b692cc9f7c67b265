"""States of a run on disk: safetensors and JSON only, hashed, written to a temporary folder and then renamed.

Whatever happens while one is written (the process is killed, the disk is full, the power fails), the one before it
stays and is found.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from diffusers_stale.manifest import MANIFEST, manifest_problems, write_manifest
from diffusers_stale.training.sharding import part_of


PREFIX = "step-"
FILE_MODE, FOLDER_MODE = 0o644, 0o755
TENSOR_FILES = ("model", "ema", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Tensors by name of the model, its moving average and the optimizer, and everything else as JSON values."""

    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


class SaveError(OSError):
    """What was to be saved could not be written; what was saved before is as it was."""


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary folder beside `folder`, which then takes its place (an old one is deleted).

    A manifest of hashes is added. Files and names are on the disk before the old folder is touched.

    Raises `SaveError` where nothing can be written; the temporary folder is deleted then.
    """
    temporary = folder.with_name(f".{folder.name}.writing")
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        # Killed between the two names: the old one is still the one to keep until the new one stands.
        old.rename(folder)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        write_manifest(temporary)
        for path in temporary.rglob("*"):
            path.chmod(FOLDER_MODE if path.is_dir() else FILE_MODE)
            _sync(path)
        _sync(temporary)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise SaveError(
            f"Could not save {folder} ({error}); what was saved before is untouched. Free some space and resume."
        ) from error
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes `checkpoint` as `folder/step-NNNNNNNN` (its state must hold "step") and keeps the newest `keep`.

    Older ones, and those that are damaged, go only after the new one stands. Raises `SaveError` as `write_folder`.
    """
    path = folder / f"{PREFIX}{checkpoint.state['step']:08d}"

    def write(temporary: Path) -> None:
        for name in TENSOR_FILES:
            tensors = {key: value.detach().cpu().contiguous() for key, value in getattr(checkpoint, name).items()}
            save_file(tensors, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(checkpoint.state, indent=1))

    write_folder(path, write)
    kept = checkpoint_folders(folder)[-keep:]
    # What a killed process left half-written or half-deleted goes too.
    for found in (*folder.glob(f"{PREFIX}*"), *folder.glob(f".{PREFIX}*")):
        if found not in kept:
            shutil.rmtree(found)
    return path


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that were written to the end, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "state.json").is_file())


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest sound checkpoint in `folder`, and what is wrong with those that are newer, a sentence each.

    One whose process was killed between its two last names is found under the hidden one. Those of before there were
    manifests are taken if their files can be opened.
    """
    remarks = []
    for hidden in folder.glob(f".{PREFIX}*.old"):
        name = hidden.name.removeprefix(".").removesuffix(".old")
        if not (folder / name).exists():
            hidden.rename(folder / name)
    for path in reversed(checkpoint_folders(folder)):
        problems = checkpoint_problems(path)
        if not problems:
            return path, remarks
        remarks.append(f"{path.name} is damaged and left aside: {problems[0]}")
    return None, remarks


def checkpoint_problems(path: Path) -> list[str]:
    """What is wrong with the checkpoint in `path`, a sentence each."""
    if (path / MANIFEST).is_file():
        try:
            return manifest_problems(path)
        except ValueError as error:
            return [str(error)]
    try:
        load_checkpoint(path)
    except (OSError, ValueError, SafetensorError) as error:
        return [f"it cannot be read ({error})."]
    return []


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
        placed = tensor if entry == "step" else part_of(tensor, parameter.detach())
        optimizer.state[parameter][entry] = placed.clone(memory_format=torch.preserve_format)


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk (Windows cannot open a folder: skipped there)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
