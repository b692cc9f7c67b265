"""Several evaluations in one table: checkpoints, or one checkpoint with several settings of its sampler."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers_stale.evaluation.report import EvaluationSettings
from diffusers_stale.evaluation.tables import figure_text, markdown_table, number


SETTING_TYPES = {
    "steps": int, "guidance": float, "seed": int, "negative": str, "negative_baseline": float,
    "negative_frame_spacing": float, "negative_end": float, "frames": int, "prompts": int,
}  # fmt: skip
"""What a candidate may change, as in "barnyard:steps=8:guidance=2"."""


def parse_candidate(text: str, settings: EvaluationSettings) -> tuple[str, EvaluationSettings]:
    """The checkpoint and settings of "CHECKPOINT" or "CHECKPOINT:name=value:...".

    Raises:
        ValueError: for a name that is not in `SETTING_TYPES`, or a value that is none.
    """
    checkpoint, *changes = text.split(":")
    # A drive letter is no checkpoint.
    if len(checkpoint) == 1 and changes and "=" not in changes[0]:
        checkpoint, changes = f"{checkpoint}:{changes[0]}", changes[1:]
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or name not in SETTING_TYPES:
            raise ValueError(
                f"A candidate must read CHECKPOINT:name=value with a name of {', '.join(SETTING_TYPES)}, "
                f"got {text!r}; for example barnyard:steps=8:guidance=2."
            )
        try:
            settings = replace(settings, **{name: SETTING_TYPES[name](value)})
        except ValueError as error:
            raise ValueError(f"In candidate {text!r}, `{name}` must be a number, got {value!r}; write one.") from error
    return checkpoint, settings


def is_report(path: Path) -> bool:
    """Whether `path` is a folder with a finished report."""
    return (path / "report.json").is_file()


def read_report(folder: Path) -> dict[str, Any]:
    """The figures of a report.

    Raises:
        ValueError: if it was written before reports had rows that can be compared, or is no report.
    """
    path = folder / "report.json"
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, and is not ({error}); evaluate again.") from error
    if not isinstance(figures, dict) or "measures" not in figures:
        raise ValueError(f"{path} must hold `measures`, and does not; evaluate again with this version.")
    return figures


def compare(reports: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Markdown: a column for each named report, a row for every measure and bar, and what rendered scenes have.

    Raises:
        ValueError: for fewer than two reports.
    """
    if len(reports) < 2:
        raise ValueError(f"At least two evaluations must be compared, got {len(reports)}; name another.")
    names = [name for name, _ in reports]
    lines = [
        "# Comparison",
        _differences(reports),
        "## Bars",
        markdown_table(["bar", "at least", *names], _bars(reports)),
    ]
    tables = [{(row["group"], row["title"]): row for row in figures["measures"]} for _, figures in reports]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    for group in dict.fromkeys(group for group, _ in keys):
        rows = [
            [title, *(figure_text(_figure(table, key, "generated")) for table in tables), _reference(tables, key)]
            for key in keys
            for title in (key[1],)
            if key[0] == group
        ]
        lines += [f"## {group.capitalize()}", markdown_table(["measure", *names, "rendered"], rows)]
    return "\n\n".join(lines) + "\n"


def _figure(table: dict[tuple[str, str], dict[str, Any]], key: tuple[str, str], source: str) -> dict[str, Any] | None:
    return table[key][source] if key in table else None


def _reference(tables: Sequence[dict[tuple[str, str], dict[str, Any]]], key: tuple[str, str]) -> str:
    """What rendered scenes have, of the first report that knows it."""
    found = [figure for table in tables if (figure := _figure(table, key, "rendered")) is not None]
    return figure_text(found[0]) if found else "–"


def _bars(reports: Sequence[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    tables = [{bar["title"]: bar for bar in figures["bars"]} for _, figures in reports]
    titles = list(dict.fromkeys(title for table in tables for title in table))
    return [
        [title, number(_first(tables, title)["least"]), *(_bar_text(table.get(title)) for table in tables)]
        for title in titles
    ]


def _first(tables: Sequence[dict[str, dict[str, Any]]], title: str) -> dict[str, Any]:
    return next(table[title] for table in tables if title in table)


def _bar_text(bar: dict[str, Any] | None) -> str:
    if bar is None or bar["value"] is None:
        return "–"
    return f"**{number(bar['value'])}**" if bar["met"] else number(bar["value"])


def _differences(reports: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """In which settings the evaluations differ; figures of different prompts or grids do not compare."""
    settings = [figures["settings"] for _, figures in reports]
    names = list(dict.fromkeys(name for found in settings for name in found))
    differing = [name for name in names if len({json.dumps(found.get(name)) for found in settings}) > 1]
    if not differing:
        return "All with the same settings. Bars that are met are bold."
    rows = [[name, *(str(found.get(name)) for found in settings)] for name in differing]
    return (
        "They differ in these settings; bars that are met are bold.\n\n"
        + markdown_table(["setting", *(name for name, _ in reports)], rows)
    )  # fmt: skip
