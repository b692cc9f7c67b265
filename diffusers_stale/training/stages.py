"""Runs a stage: builds its task from what earlier stages left in the run folder, trains it, exports the result."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffusers_stale.training.checkpoints import write_folder
from diffusers_stale.training.config import (
    STAGES,
    AutoencoderConfig,
    ImageConfig,
    MovieConfig,
    StageConfig,
    TextConfig,
    TrainingConfig,
)
from diffusers_stale.training.loop import Task, Trainer, make_accelerator
from diffusers_stale.training.reports import REPORT, machine
from diffusers_stale.training.stage_autoencoder import AutoencoderTask
from diffusers_stale.training.stage_text import TextTask


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a stage runs: folders of exported stages by name, the folder for its own work, and the processes."""

    folders: dict[str, Path]
    work_folder: Path
    accelerator: Accelerator

    def place(self) -> tuple[torch.device, int, int]:
        """Device, number of this process, number of processes."""
        return self.accelerator.device, self.accelerator.process_index, self.accelerator.num_processes


def train_stage(
    stage: str, config: TrainingConfig, run_folder: Path, resume: bool = False, parents: dict[str, Path] | None = None
) -> dict[str, Any]:
    """Trains one stage and writes `run_folder/<stage>` (the result) and `run_folder/<stage>_run` (how it came about).

    Args:
        stage: one of `config.STAGES`.
        config: all stages' configurations.
        run_folder: where results of earlier stages are, unless `parents` says otherwise.
        resume: go on from the newest checkpoint in `run_folder/<stage>_run`.
        parents: folders of exported stages by name, in place of those in `run_folder`.

    Returns:
        The figures that `training_report.json` holds.

    Raises:
        ValueError: for an unknown stage.
        FileNotFoundError: where an earlier stage has not been exported.
    """
    if stage not in TASKS:
        raise ValueError(f"`stage` must be one of {', '.join(TASKS)}, got {stage!r}; choose one of them.")
    settings: StageConfig = getattr(config, stage)
    accelerator = make_accelerator(settings.precision)
    folders = {name: run_folder / name for name in STAGES} | (parents or {})
    run = Run(folders=folders, work_folder=run_folder / f"{stage}_run", accelerator=accelerator)
    began = time.monotonic()
    task = TASKS[stage](settings, run)
    preparation = {"preparation_seconds": round(time.monotonic() - began, 3)}
    figures = Trainer(task, settings, run.work_folder, accelerator, resume).run()
    report = {"stage": stage, "seed": settings.seed} | figures | preparation | task.report() | machine()
    report["config"] = asdict(settings)
    if accelerator.is_main_process:
        write_folder(run_folder / stage, lambda folder: _export(task, folder, report))
    accelerator.wait_for_everyone()
    return report


def _export(task: Task, folder: Path, report: dict[str, Any]) -> None:
    task.export(folder)
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")


def needed(folder: Path, stage: str) -> Path:
    """`folder` if it is there; raises `FileNotFoundError` saying which stage makes it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: run --stage {stage} first, or say --{stage} PATH.")
    return folder


def _autoencoder_task(settings: AutoencoderConfig, run: Run) -> Task:
    return AutoencoderTask(settings, run.accelerator.device, run.accelerator.process_index)


def _text_task(settings: TextConfig, run: Run) -> Task:
    return TextTask(settings, run.accelerator.device)


def _image_task(settings: ImageConfig, run: Run) -> Task:
    from diffusers_stale.training.stage_image import ImageTask

    parents = needed(run.folders["autoencoder"], "autoencoder"), needed(run.folders["text"], "text")
    return ImageTask(settings, *parents, run.work_folder, *run.place())


def _movie_task(settings: MovieConfig, run: Run) -> Task:
    from diffusers_stale.training.stage_movie import MovieTask

    return MovieTask(settings, needed(run.folders["image"], "image"), run.work_folder, *run.place())


TASKS: dict[str, Callable[[Any, Run], Task]] = {
    "autoencoder": _autoencoder_task,
    "text": _text_task,
    "image": _image_task,
    "movie": _movie_task,
}
"""How to build the task of each stage from its configuration and its run."""
