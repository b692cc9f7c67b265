"""Runs a stage: builds its task from what earlier stages left in the run folder, trains it, exports the result."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffusers_stale.light_field.atomic import atomic_path
from diffusers_stale.training.checkpoints import checkpoint_folders, write_folder
from diffusers_stale.training.config import (
    STAGES,
    AutoencoderConfig,
    ImageConfig,
    MovieConfig,
    StageConfig,
    TextConfig,
    TrainingConfig,
)
from diffusers_stale.training.config_files import config_yaml
from diffusers_stale.training.loop import Task, Trainer
from diffusers_stale.training.processes import chosen_precision, make_accelerator
from diffusers_stale.training.provenance import hardware, provenance
from diffusers_stale.training.reports import REPORT
from diffusers_stale.training.resumption import changes_since
from diffusers_stale.training.stage_autoencoder import AutoencoderTask
from diffusers_stale.training.stage_text import TextTask
from diffusers_stale.training.trackers import check_trackers


ORIGIN = "provenance.json"
"""Where a run's folder tells of its origin."""

CONFIG_FILE = "config.yaml"
"""What a run's folder holds of its configuration, to be given back with `scripts/train.py --config`."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a stage runs: folders of exported stages by name, the folder for its own work, and the processes."""

    folders: dict[str, Path]
    work_folder: Path
    accelerator: Accelerator

    def place(self) -> tuple[torch.device, int, int]:
        """Device, number of this process, number of processes."""
        return self.accelerator.device, self.accelerator.process_index, self.accelerator.num_processes


@dataclass(frozen=True, kw_only=True)
class Retrained:
    """Fingerprints of the data of a stage, by name, and of its weights, by step."""

    data: dict[str, str]
    steps: dict[str, str]


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
        FileExistsError: where the stage has been trained before and is not to be resumed.
        FileNotFoundError: where an earlier stage has not been exported.
    """
    if stage not in TASKS:
        raise ValueError(f"`stage` must be one of {', '.join(TASKS)}, got {stage!r}; choose one of them.")
    if not resume:
        check_unused(run_folder, (stage,))
    settings: StageConfig = getattr(config, stage)
    settings = replace(settings, precision=chosen_precision(settings.precision))
    # Before data is made, which may take long.
    check_trackers(settings.trackers)
    accelerator = make_accelerator(settings.precision)
    folders = {name: run_folder / name for name in STAGES} | (parents or {})
    run = Run(folders=folders, work_folder=run_folder / f"{stage}_run", accelerator=accelerator)
    began = time.monotonic()
    task = TASKS[stage](settings, run)
    preparation = {"preparation_seconds": round(time.monotonic() - began, 3)}
    trainer = Trainer(task, settings, run.work_folder, accelerator, resume)
    origin = origin_of(stage, task, settings, run)
    told = origin | {"config": asdict(settings), "processes": accelerator.num_processes}
    if accelerator.is_main_process:
        trainer.note_changes(changes_since(run.work_folder / ORIGIN, told))
        write_origin(run.work_folder, told)
        with atomic_path(run.work_folder / CONFIG_FILE) as path:
            path.write_text(config_yaml(replace(config, **{stage: settings}), [stage]), encoding="utf-8")
    figures = trainer.run()
    report = {"stage": stage, "seed": settings.seed} | figures | preparation | task.report()
    report |= {"machine": hardware(), "provenance": origin, "config": asdict(settings)}
    if accelerator.is_main_process:
        write_folder(run_folder / stage, lambda folder: _export(task, folder, report))
    accelerator.wait_for_everyone()
    return report


def check_unused(run_folder: Path, stages: Iterable[str]) -> None:
    """Raises `FileExistsError` where one of `stages` has been trained in `run_folder`: it would be overwritten."""
    for stage in stages:
        checkpoints = checkpoint_folders(run_folder / f"{stage}_run" / "checkpoints")
        if checkpoints or (run_folder / stage / REPORT).is_file():
            held = f"a run of it up to {checkpoints[-1].name}" if checkpoints else "its result"
            raise FileExistsError(
                f"{run_folder} must not have stage {stage} yet, got {held}; go on with it by --resume, or choose "
                "another --output."
            )


def origin_of(stage: str, task: Task, settings: StageConfig, run: Run) -> dict[str, Any]:
    """The provenance of a stage that is about to be trained."""
    parents = {name: run.folders[name] for name in PARENTS[stage]}
    if (started_from := getattr(settings, "start_from", None)) is not None:
        parents["start_from"] = Path(started_from)
    return provenance(task.fingerprints(), parents)


def write_origin(work_folder: Path, origin: dict[str, Any]) -> None:
    """Leaves the provenance in the run folder from the start, so that a run that never ends has it too."""
    work_folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(work_folder / ORIGIN) as path:
        path.write_text(json.dumps(origin, indent=1) + "\n")


def retrain(stage: str, settings: StageConfig, folders: dict[str, Path], work_folder: Path, steps: int) -> Retrained:
    """Trains the first `steps` steps of a stage anew, from the parents in `folders`; saves nothing that lasts.

    Returns fingerprints of the data, and of the weights by step.
    """
    accelerator = make_accelerator(settings.precision)
    run = Run(folders=folders, work_folder=work_folder, accelerator=accelerator)
    task = TASKS[stage](settings, run)
    trainer = Trainer(task, settings, work_folder, accelerator, resume=False)
    return Retrained(data=task.fingerprints(), steps=trainer.first_steps(steps))


def _export(task: Task, folder: Path, report: dict[str, Any]) -> None:
    task.export(folder)
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")


def needed(folder: Path, stage: str) -> Path:
    """`folder` if `stage` is there; raises `FileNotFoundError` saying what makes it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: run --stage {stage} first, or say --{stage} PATH.")
    lacking = [name for name in HOLDS[stage] if not (folder / name).is_file()]
    if lacking:
        raise FileNotFoundError(
            f"{folder} must hold what --stage {stage} leaves, got no {lacking[0]} in it; say --{stage} PATH."
        )
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


PARENTS = {"autoencoder": (), "text": (), "image": ("autoencoder", "text"), "movie": ("image",)}
"""The stages that each needs."""

HOLDS = {
    "autoencoder": ("config.json",),
    "text": ("text_encoder/config.json",),
    "image": ("vae/config.json", "text_encoder/config.json", "unet/config.json"),
}
"""Files by which the results of stages that others need are known; an image stage may be any Stable Diffusion."""

TASKS: dict[str, Callable[[Any, Run], Task]] = {
    "autoencoder": _autoencoder_task,
    "text": _text_task,
    "image": _image_task,
    "movie": _movie_task,
}
"""How to build the task of each stage from its configuration and its run."""
