"""The card of a checkpoint: what it is made of, what made it, and how well it does, from reports and never by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers_stale.checkpoint_origin import whole
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


WATTS_A_CORE = 10.0
"""Assumed where no meter tells: a server processor of 64 cores may draw 280 W (AMD EPYC 7763, its data sheet), that is
4.4 W a core, and memory, supply and cooling about as much again."""

PICTURES = "pictures"
"""The folder of a checkpoint that holds the pictures of its card."""


@dataclass(frozen=True)
class CardPicture:
    """A picture of the card: the file, what it is called in the checkpoint's folder of pictures, and what it shows."""

    source: Path
    name: str
    caption: str


def commands_of(reports: dict[str, dict[str, Any]]) -> list[str]:
    """The commands of all stages, after those of the checkpoint that a stage was started from."""
    earlier = next((report["started_from"] for report in reports.values() if "started_from" in report), {})
    own = [command for report in reports.values() for command in report["commands"]]
    if not earlier:
        return own
    return [*commands_of(earlier), "# From there on:", *own]


def model_card(
    name: str,
    about: str,
    folder: Path,
    reports: dict[str, dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
    pictures: Sequence[CardPicture] = (),
) -> str:
    """The card as Markdown with the Hub's header.

    Args:
        name: of the checkpoint.
        about: Markdown that only a person can write: what it is for, and its limits.
        folder: the checkpoint.
        reports: training reports by stage, as `training.reports.collect_reports` gives them.
        evaluations: what runs of `scripts/evaluate.py` wrote to `report.json`: of a large model, one run may measure
            time and another one views.
        pictures: shown after the scores, from the folder `PICTURES` beside the card.
    """
    parts = [
        f"{HEADER}\n# {name}",
        about.strip(),
        f"## What it is made of\n\n{_parts(folder)}",
        f"## How it was made\n\n{_making(reports)}",
        "## Scores\n\n" + ("\n\n".join(map(_scores, evaluations)) or "Not measured."),
    ]
    if pictures:
        shown = [f"![{picture.caption}]({PICTURES}/{picture.name})\n\n{picture.caption}" for picture in pictures]
        parts.append("## Pictures\n\n" + "\n\n".join(shown))
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
        f"Machine: {'; '.join(machines)}. {_effort(reports)} Data is rendered by `diffusers_stale.data` from the "
        f"seed: no photographs, no people, no scraped text.{_fingerprints(reports)}"
    )


def _effort(reports: dict[str, dict[str, Any]]) -> str:
    """Processor time with all ancestors, and the energy of it."""
    hours = whole(reports, "core_seconds") / 3600
    joules = [report.get("joules") for report in reports.values()]
    if reports and None not in joules:
        return f"All in all {hours:.1f} core-hours; these stages took {sum(joules) / 3600:.0f} Wh, measured."
    return (
        f"With all that it was started from, {hours:.1f} core-hours; about {WATTS_A_CORE * hours:.0f} Wh, estimated "
        f"at {WATTS_A_CORE:g} W a core, since no meter can be read there."
    )


def _fingerprints(reports: dict[str, dict[str, Any]]) -> str:
    """SHA-256 of what was trained on, by stage and pool."""
    found = [
        f"{stage} {name} `{digest[:16]}`"
        for stage, report in reports.items()
        for name, digest in report.get("provenance", {}).get("data", {}).items()
    ]
    return f" Fingerprints of the data (SHA-256): {', '.join(found)}." if found else ""


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
