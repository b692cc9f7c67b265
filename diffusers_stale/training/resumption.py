"""Whether a run can go on from a checkpoint, and what is no longer as it was when it was written."""

import json
from pathlib import Path
from typing import Any

import torch

from diffusers_stale.training.checkpoints import Checkpoint


BUDGET = ("max_steps", "max_seconds")
"""Settings whose change is how a run is made longer, and nothing to remark."""


def check_fit(path: Path, checkpoint: Checkpoint, parameters: dict[str, torch.Tensor], frozen: str | None) -> None:
    """Raises `ValueError` where `checkpoint`, read from `path`, is not of the weights that are trained now.

    `frozen` is the hash of those beside them that are not trained, which a checkpoint does not hold.
    """
    remedy = f"give the settings of that run ({path.parent.parent / 'config.yaml'}), or another --output."
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.model.items()}
    own = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    different = sorted(name for name in found.keys() | own.keys() if found.get(name) != own.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"{path} must hold the weights that are trained now, got {len(different)} that differ ({name} is "
            f"{found.get(name, 'not there')}, expected {own.get(name, 'none')}); {remedy}"
        )
    before = checkpoint.state.get("frozen_sha256", frozen)
    if None not in (before, frozen) and before != frozen:
        raise ValueError(f"{path} was trained beside other frozen weights than those given now; {remedy}")


def changes_since(path: Path, now: dict[str, Any]) -> list[str]:
    """How `now`, the origin of a resumed run, differs from the one in the file `path`, a phrase each; none if none is.

    Parents are left out: a stage that is exported again, with the time that it took, has another hash.
    """
    if not path.is_file():
        return []
    before, now = json.loads(path.read_text()), json.loads(json.dumps(now))
    changes = [
        f"{name} was {old}, is {now['config'].get(name)}"
        for name, old in before.get("config", {}).items()
        if name not in BUDGET and old != now["config"].get(name)
    ]
    changes += [f"the data {name} are others" for name in _different(before.get("data"), now["data"])]
    packages = before.get("packages", {})
    changes += [
        f"{name} was {packages.get(name)}, is {now['packages'].get(name)}"
        for name in _different(packages, now["packages"])
    ]
    if before.get("code", {}).get("sources_sha256") != now["code"]["sources_sha256"]:
        changes.append(f"the code was that of {before['code'].get('commit')}, is that of {now['code'].get('commit')}")
    if (processes := before.get("processes", now["processes"])) != now["processes"]:
        changes.append(f"processes were {processes}, are {now['processes']}")
    return changes


def _different(before: dict[str, str] | None, now: dict[str, str]) -> list[str]:
    """Names whose values differ; none if nothing was recorded."""
    return (
        []
        if before is None
        else sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    )
