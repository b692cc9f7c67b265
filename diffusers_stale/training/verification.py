"""Whether a stage is what its record says: the same data and, from the same start, the same first steps to the bit."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusers_stale.manifest import folder_hash
from diffusers_stale.training.config import STAGES
from diffusers_stale.training.provenance import code_version, package_versions, processor_name
from diffusers_stale.training.reports import read_config, read_report
from diffusers_stale.training.stages import retrain


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was compared, a sentence each: what `agrees`, what `differs`, and what could not be `checked`."""

    agrees: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    def __add__(self, other: "Verdict") -> "Verdict":
        return Verdict(
            agrees=self.agrees + other.agrees,
            differs=self.differs + other.differs,
            unchecked=self.unchecked + other.unchecked,
        )


def verify_parents(report: dict[str, Any], run: Path) -> Verdict:
    """Compares the checkpoints that a stage started from with their recorded hashes.

    They are looked for where they were and, for stages, in the run folder.
    """
    verdict = Verdict()
    for name, recorded in report["provenance"]["parents"].items():
        places = [Path(recorded["folder"]), *([run / name] if name in STAGES else [])]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            verdict += Verdict(unchecked=(f"The parent {name} is not at {recorded['folder']}.",))
        elif folder_hash(folder) == recorded["sha256"]:
            verdict += Verdict(agrees=(f"The parent {name} is what it was.",))
        else:
            verdict += Verdict(differs=(f"The parent {name} in {folder} is not what this stage started from.",))
    return verdict


def verify_first_steps(folder: Path, steps: int) -> Verdict:
    """Trains up to `steps` first steps of the stage exported to `folder` again and compares data and weights.

    Its parents must be beside it, as in a run folder.
    """
    report = read_report(folder)
    stage, config = report["stage"], read_config(report)
    if (reason := why_not(report, steps)) is not None:
        return Verdict(unchecked=(reason,))
    wanted = max(int(step) for step in report["fingerprints"] if int(step) <= steps)
    before = torch.get_num_threads()
    torch.set_num_threads(report["machine"]["threads_per_process"])
    try:
        with tempfile.TemporaryDirectory() as work:
            folders = {name: folder.parent / name for name in STAGES}
            found = retrain(stage, config, folders, Path(work), wanted)
    finally:
        torch.set_num_threads(before)
    verdict = _compare("data", report["provenance"]["data"], found.data)
    recorded = {step: digest for step, digest in report["fingerprints"].items() if step in found.steps}
    verdict += _compare("weights after step", recorded, found.steps)
    if verdict.differs and (changes := environment_changes(report)):
        verdict += Verdict(unchecked=(f"Since then, other things have changed too: {'; '.join(changes)}.",))
    return verdict


def why_not(report: dict[str, Any], steps: int) -> str | None:
    """Why the first steps of a run cannot be compared, if they cannot."""
    if not any(int(step) <= steps for step in report.get("fingerprints", {})):
        return f"No weights were recorded within the first {steps} steps."
    if report["processes"] != 1:
        return f"The run was of {report['processes']} processes; its first steps can be compared with as many only."
    if report["config"]["max_seconds"] is not None:
        return "The run was bounded by seconds, so its learning rates depend on the speed of the machine."
    return None


def environment_changes(report: dict[str, Any]) -> list[str]:
    """What differs between now and the record, and can change the last bits of a result."""
    origin, packages = report["provenance"], package_versions()
    changes = [
        f"{name} was {version}, is {packages.get(name)}"
        for name, version in origin["packages"].items()
        if packages.get(name) != version
    ]
    if code_version()["sources_sha256"] != origin["code"]["sources_sha256"]:
        changes.append("the package's code is another")
    if processor_name() != report["machine"]["processor"]:
        changes.append(f"the processor was {report['machine']['processor']}, is {processor_name()}")
    # Two processors of one name may differ in this.
    instructions, recorded = torch.backends.cpu.get_cpu_capability(), report["machine"].get("instructions")
    if recorded not in (None, instructions):
        changes.append(f"the processor computed with {recorded}, computes with {instructions}")
    return changes


def _compare(what: str, recorded: dict[str, str], found: dict[str, str]) -> Verdict:
    verdict = Verdict()
    for name, digest in recorded.items():
        same = found.get(name) == digest
        sentence = f"The {what} {name} {'are' if same else 'are not'} the same to the bit."
        verdict += Verdict(agrees=(sentence,)) if same else Verdict(differs=(sentence,))
    return verdict
