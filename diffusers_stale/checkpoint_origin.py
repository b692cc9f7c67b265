"""Where a checkpoint comes from, as the reports in its folder tell: for `info`, in lines. Nothing is loaded."""

import json
from pathlib import Path
from typing import Any


SHIPPED, EXPORTED = "provenance.json", "training_report.json"
"""What holds the reports: of all stages by name in a checkpoint that ships, of one in a stage that was exported."""


def read_origin(folder: Path) -> dict[str, dict[str, Any]]:
    """The reports of the stages that made the checkpoint in `folder`, by stage; none where there is no record.

    Raises `ValueError` for a record that cannot be read.
    """
    for name in (SHIPPED, EXPORTED):
        path = folder / name
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                return found if name == SHIPPED else {found["stage"]: found}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} must hold training reports, but cannot be read ({error}).") from error
    return {}


def check_no_run(folder: Path) -> None:
    """Raises `ValueError` where `folder` holds a run, not a checkpoint, with the checkpoints that there are in it."""
    stages = sorted(str(path.parent) for path in folder.glob(f"*/{EXPORTED}"))
    if stages:
        raise ValueError(f"Expected a checkpoint, got the run in {folder}; name one of {', '.join(stages)}.")


def read_run(folder: Path) -> dict[str, Any] | None:
    """What the folder of a stage that is being trained (`<stage>_run`) tells of its origin; None for other folders."""
    path = folder / SHIPPED
    if not (path.is_file() and (folder / "checkpoints").is_dir()):
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def without_repeats(record: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`record` with what its stages started from (`started_from`, a record too) at the first that did, not at each.

    Stages that start from one checkpoint would else double its whole history with every generation.
    """
    seen: list[dict[str, Any]] = []
    kept = {}
    for stage, report in record.items():
        earlier = report.get("started_from")
        kept[stage] = {name: value for name, value in report.items() if name != "started_from"}
        if earlier and earlier not in seen:
            seen.append(earlier)
            kept[stage]["started_from"] = without_repeats(earlier)
    return kept


def whole(record: dict[str, dict[str, Any]], figure: str) -> float:
    """Sum of a figure, such as "core_seconds", of all stages in `record` and of what they started from.

    What was passed on from one checkpoint to the next counts once.
    """
    runs: dict[str, float] = {}
    waiting = [record]
    while waiting:
        for report in waiting.pop().values():
            own = {name: value for name, value in report.items() if name != "started_from"}
            runs[json.dumps(own, sort_keys=True)] = report[figure]
            if report.get("started_from"):
                waiting.append(report["started_from"])
    return sum(runs.values())


def origin_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what a stage's report tells; older reports tell less."""
    lines = [("steps", f"{report['steps']:,} ({report['images']:,} pictures), seed {report['seed']}")]
    joules = report.get("joules")
    energy = f", {joules / 3600:.1f} Wh" if joules is not None else ""
    lines.append(("time", f"{report['seconds']:.0f} s, {report['core_seconds']:.0f} core-seconds{energy}"))
    lines.append(("machine", machine_line(report["machine"])))
    if "processes" in report:
        lines.append(("processes", str(report["processes"])))
    for pool, leak in (report.get("contamination") or {}).items():
        share = f"{leak['leaked_fraction']:.2%} of {leak['test_scenes']} test scenes"
        lines.append(("contamination", f"{share} leaked into {pool}"))
    if (origin := report.get("provenance")) is None:
        return lines
    lines += provenance_lines(origin)
    lines += [("command", command) for command in report.get("commands", ())]
    resumptions = report.get("resumptions", ())
    lines += [("changed", f"after step {each['step']}: {'; '.join(each['changes'])}") for each in resumptions]
    return [*lines, settings_line(report.get("config", {}))]


def provenance_lines(origin: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what can be told before a stage is trained."""
    lines, code = [], origin["code"]
    clean = {True: "clean", False: "with changes", None: "no repository"}[code["clean"]]
    lines.append(("code", f"{code['version']}, commit {(code['commit'] or 'unknown')[:12]}, {clean}"))
    lines.append(("packages", ", ".join(f"{name} {version}" for name, version in origin["packages"].items())))
    lines += [("data", f"{name} {digest[:16]}") for name, digest in origin["data"].items()]
    parents = origin["parents"].items()
    return lines + [("parent", f"{name}: {each['folder']} {each['sha256'][:16]}") for name, each in parents]


def settings_line(config: dict[str, Any]) -> tuple[str, str]:
    """All settings of a stage as the command line takes them."""
    return "settings", ", ".join(f"{name}={_setting(value)}" for name, value in config.items())


def machine_line(machine: dict[str, Any]) -> str:
    """What a stage ran on, as far as its report tells."""
    parts = [machine["gpu"] or machine["processor"]]
    if "cores" in machine:
        parts.append(f"{machine['cores']} cores")
    if machine.get("memory_bytes"):
        parts.append(f"{machine['memory_bytes'] / 2**30:.0f} GiB")
    parts += [machine[name] for name in ("instructions", "system") if machine.get(name)]
    python = [f"Python {machine['python']}"] if "python" in machine else []
    return ", ".join([*parts, *python, f"torch {machine['torch']}"])


def _setting(value: Any) -> str:
    """A setting as the command line takes it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)
