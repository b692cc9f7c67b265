"""The reports that stages leave beside their results: what they hold, how they are read back."""

import json
from pathlib import Path
from typing import Any

from diffusers_stale.training.config import STAGES, StageConfig, stage_config
from diffusers_stale.training.vocabulary import CRYING_JOY


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
    """Whether the pipeline in `folder` was taught that the token of tears of joy is what captions are not."""
    if (folder / REPORT).is_file() and read_config(read_report(folder)).trains_joy:
        return True
    index = folder / "model_index.json"
    return index.is_file() and json.loads(index.read_text()).get("default_negative_prompt") == CRYING_JOY


def collect_reports(run_folder: Path) -> dict[str, dict[str, Any]]:
    """The report of every stage in a run folder; raises `FileNotFoundError` naming one that is missing."""
    reports = {}
    for stage in STAGES:
        path = run_folder / stage / REPORT
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: train all stages first (scripts/train.py --stage all).")
        reports[stage] = json.loads(path.read_text())
    return reports
