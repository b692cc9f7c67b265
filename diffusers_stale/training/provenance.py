"""Where a checkpoint comes from: code, packages, machine, energy, data and parents, each as exactly as can be told."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from diffusers_stale.manifest import file_hash, file_hashes, folder_hash
from diffusers_stale.version import __version__


PACKAGE = Path(__file__).resolve().parent.parent

PACKAGES = ("accelerate", "diffusers", "numpy", "pillow", "safetensors", "tokenizers", "torch", "transformers")
"""Those whose version can change what a run computes."""

POWERCAP = Path("/sys/class/powercap")
"""Where Linux tells the energy that processor packages have used (RAPL), if it tells at all."""


class EnergyMeter:
    """Energy that the processor packages of this machine use from now on, whoever uses them.

    `joules` is None where the machine does not tell: in most containers and virtual machines, and where the counters
    are for root only. Of GPUs nothing is known here.
    """

    def __init__(self, folder: Path = POWERCAP):
        self.domains = sorted(path for path in folder.glob("intel-rapl:*") if path.name.count(":") == 1)
        self.before = self._read()
        self.used = 0.0

    @property
    def joules(self) -> float | None:
        """Since the meter was made; must be read more often than counters wrap, which takes minutes at least."""
        now = self._read()
        if self.before is None or now is None:
            return None
        for domain, value in now.items():
            passed = value - self.before[domain]
            self.used += (passed if passed >= 0 else passed + self._number(domain / "max_energy_range_uj")) / 1e6
        self.before = now
        return self.used

    def _read(self) -> dict[Path, int] | None:
        try:
            return {domain: self._number(domain / "energy_uj") for domain in self.domains} or None
        except (OSError, ValueError):
            return None

    def _number(self, path: Path) -> int:
        return int(path.read_text())


def tensors_hash(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of names and values, to the bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def code_version() -> dict[str, Any]:
    """Version, commit, whether the working tree was clean, and a hash of the package's own files.

    Commit and cleanliness are None for a package that was installed without its repository.
    """
    sources = {name: value for name, value in file_hashes(PACKAGE).items() if name.endswith(".py")}
    digest = hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return {
        "version": __version__,
        "commit": commit or None,
        "clean": None if changes is None else changes == "",
        "sources_sha256": digest,
    }


def _git(*arguments: str) -> str | None:
    """What git says of the repository that the package lies in; None if there is none, or no git."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    command = ["git", "-C", str(PACKAGE.parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def package_versions() -> dict[str, str]:
    """The versions of `PACKAGES`."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def hardware() -> dict[str, Any]:
    """What a run runs on."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "threads_per_process": torch.get_num_threads(),
        "gpu": gpus[0] if gpus else None,
        "gpus": gpus,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> int | None:
    names = getattr(os, "sysconf_names", {})
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in names else None


def parent(folder: Path) -> dict[str, str]:
    """A checkpoint that a run starts from: where it was, and the hash of all that is in it."""
    return {"folder": str(folder), "sha256": folder_hash(folder) if folder.is_dir() else file_hash(folder)}


def provenance(data: dict[str, str], parents: dict[str, Path]) -> dict[str, Any]:
    """What can be told before a run begins.

    Args:
        data: fingerprints of what is trained on, by name.
        parents: folders of the checkpoints that it starts from, by their part.
    """
    return {
        "code": code_version(),
        "packages": package_versions(),
        "data": data,
        "parents": {name: parent(folder) for name, folder in parents.items()},
    }
