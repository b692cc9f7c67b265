"""The reports that stages leave beside their results: what they hold, how they are read back."""

import json
import platform
from pathlib import Path
from typing import Any

import torch

from diffusers_stale.training.config import STAGES, StageConfig, stage_config


REPORT = "training_report.json"
"""What a stage leaves beside its result."""


def read_report(folder: Path) -> dict[str, Any]:
    """The report of the stage exported to `folder`; raises `FileNotFoundError` naming one that is missing."""
    path = folder / REPORT
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: train this stage first (scripts/train.py).")
    return json.loads(path.read_text())


def read_config(report: dict[str, Any]) -> StageConfig:
    """The configuration that a stage's report records."""
    return stage_config(report["stage"], report["config"])


def taught_joy(folder: Path) -> bool:
    """Whether the stage exported to `folder` was taught that the token of tears of joy is what captions are not."""
    return (folder / REPORT).is_file() and read_config(read_report(folder)).trains_joy


def collect_reports(run_folder: Path) -> dict[str, dict[str, Any]]:
    """The report of every stage in a run folder; raises `FileNotFoundError` naming one that is missing."""
    reports = {}
    for stage in STAGES:
        path = run_folder / stage / REPORT
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: train all stages first (scripts/train.py --stage all).")
        reports[stage] = json.loads(path.read_text())
    return reports


def machine() -> dict[str, Any]:
    """What the run ran on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": {
            "processor": _processor_name(),
            "threads_per_process": torch.get_num_threads(),
            "gpu": gpu,
            "system": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
    }


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
