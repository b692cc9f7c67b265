"""The card of a checkpoint: what it is made of, what made it, and how well it does, from reports and never by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers_stale.hub import describe_checkpoint


HEADER = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
language: en
tags:
  - light-field
  - multi-view
  - text-to-video
  - diffusers
  - diffusers_stale
---
"""


def commands_of(reports: dict[str, dict[str, Any]]) -> list[str]:
    """The commands of all stages, after those of the checkpoint that a stage was started from."""
    earlier = next((report["started_from"] for report in reports.values() if "started_from" in report), {})
    own = [command for report in reports.values() for command in report["commands"]]
    if not earlier:
        return own
    return [*commands_of(earlier), "# From there on:", *own]


def model_card(
    name: str, about: str, folder: Path, reports: dict[str, dict[str, Any]], evaluations: Sequence[dict[str, Any]]
) -> str:
    """The card as Markdown with the Hub's header.

    Args:
        name: of the checkpoint.
        about: Markdown that only a person can write: what it is for, and its limits.
        folder: the checkpoint.
        reports: training reports by stage, as `training.reports.collect_reports` gives them.
        evaluations: what runs of `scripts/evaluate.py` wrote to `report.json`: of a large model, one run may measure
            time and another one views.
    """
    parts = [
        f"{HEADER}\n# {name}",
        about.strip(),
        f"## What it is made of\n\n{_parts(folder)}",
        f"## How it was made\n\n{_making(reports)}",
        "## Scores\n\n" + ("\n\n".join(map(_scores, evaluations)) or "Not measured."),
    ]
    return "\n\n".join(parts) + "\n"


def _parts(folder: Path) -> str:
    rows = [
        [part.name, f"`{part.class_name}`", f"{part.values:,}" if part.values else "", f"{part.bytes / 1e6:.2f}"]
        for part in describe_checkpoint(folder)
    ]
    return _table(["part", "class", "values", "MB"], rows)


def _making(reports: dict[str, dict[str, Any]]) -> str:
    """Commands, seeds, durations and machine of every stage."""
    rows = [
        [
            stage,
            str(report["steps"]),
            f"{report['images']:,}",
            f"{report['seconds']:.0f}",
            f"{report['core_seconds']:.0f}",
            str(report["processes"]),
            str(report["seed"]),
        ]
        for stage, report in reports.items()
    ]
    table = _table(["stage", "steps", "images", "seconds", "core-seconds", "processes", "seed"], rows)
    commands = "\n".join(commands_of(reports))
    machines = sorted({_machine(report["machine"]) for report in reports.values()})
    return (
        f"{table}\n\nThe commands, in their order (of a stage that was resumed, all of them; stages of two processes "
        f"ran under `torchrun --nproc_per_node 2` with `OMP_NUM_THREADS=1`):\n\n```sh\n{commands}\n```\n\n"
        f"Machine: {'; '.join(machines)}. Data is rendered by `diffusers_stale.data` from the seed: no photographs, "
        "no people, no scraped text."
    )


def _machine(machine: dict[str, Any]) -> str:
    where = machine["gpu"] or f"{machine['processor']}, CPU only"
    return f"{where}, Python {machine['python']}, torch {machine['torch']}"


def _scores(evaluation: dict[str, Any]) -> str:
    """The bars that a run could measure; of a single view it has no disparity, of a single frame no motion."""
    settings = evaluation["settings"]
    grid = f"{settings['view_rows']}x{settings['view_cols']} views, {settings['frames']} frames"
    rows = [
        [bar["title"], f"{bar['least']:.2f}", f"{bar['value']:.3f}", "yes" if bar["met"] else "**no**"]
        for bar in evaluation["bars"]
        if bar["value"] is not None
    ]
    return (
        f"Measured by `python scripts/evaluate.py` over {settings['prompts']} held-out prompts ({grid}, "
        f"{settings['steps']} steps, guidance {settings['guidance']}, seed {settings['seed']}), with a classifier "
        f"trained on rendered frames; disparities are shares of those of rendered scenes.\n\n"
        + _table(["measure", "bar", "reached", "met"], rows)
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))
