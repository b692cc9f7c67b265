"""Writes an evaluation to a folder: `report.json`, `report.md` and sheets of middle views. It measures nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers_stale.data.scenes import ATTRIBUTE_VALUES
from diffusers_stale.evaluation.alignment import wrong_attributes
from diffusers_stale.evaluation.contact_sheet import contact_sheet
from diffusers_stale.evaluation.disparity import VIEW_AXES
from diffusers_stale.evaluation.measures import MovieMeasures
from diffusers_stale.evaluation.prompts import EvaluationPrompt
from diffusers_stale.evaluation.report import Evaluation


NOTES = """\
- *rendered*: the scenes that the prompts were written about, measured in the same way: what a perfect model reaches.
- *shuffled*: chance. For attributes and travel, the movies against other prompts than their own; for disparity,
  rendered middle views among the other views of other scenes.
- Attributes are told by a classifier of the middle view, and scored where the prompt states them. Of two animals it
  means the nearer one, which prompts name first. Intervals are Wilson's, of 95 %.
- Disparities are in pixels per view step at 64 px, positive is nearer than the plane of zero disparity, over the
  pixels that match between views; *matching pixels* is their share. Far is the upper part of the picture, near the
  lower. Where hardly any pixels match, the disparities of those few mean nothing.
- Change is between successive frames, in grey levels of 255: in the 15 % of the picture that change most (*moving*)
  and in the half that changes least (*quiet*). *Share in the moving part* is 0.15 of pure grain and 1 of pure motion.
"""


def write_report(evaluation: Evaluation, folder: Path, title: str) -> list[Path]:
    """Writes all files to `folder` (made if need be) and returns their paths; `title` names what was evaluated."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts, figures = evaluation.prompts, {"title": title} | evaluation.figures
    return [
        _replace(folder / "report.json", lambda path: path.write_text(json.dumps(figures, indent=1, allow_nan=False))),
        _replace(folder / "report.md", lambda path: path.write_text(markdown(figures))),
        _replace(folder / "generated.png", lambda path: _sheet(prompts, evaluation.generated, path)),
        _replace(folder / "rendered.png", lambda path: _sheet(prompts, evaluation.rendered, path)),
    ]


def _replace(path: Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` fill a temporary file that then takes the place of `path`."""
    temporary = path.with_name(f".{path.name}")
    write(temporary)
    temporary.replace(path)
    return path


def _sheet(prompts: tuple[EvaluationPrompt, ...], measures: MovieMeasures, path: Path) -> None:
    wrong = [wrong_attributes(shown, prompt) for shown, prompt in zip(measures.predictions, prompts, strict=True)]
    remarks = [", ".join(f"{name}: {value}" for name, value in movie.items()) for movie in wrong]
    contact_sheet(measures.pictures, [prompt.text for prompt in prompts], remarks).save(path, format="PNG")


def markdown(figures: dict[str, Any]) -> str:
    """The report as a page."""
    settings = ", ".join(f"{name} {value}" for name, value in figures["settings"].items() if value is not None)
    parts = [
        f"# Evaluation of {figures['title']}\n\nSettings: {settings}.",
        _bars(figures),
        _alignment(figures),
        _disparity(figures),
        _motion(figures),
        "![generated](generated.png)\n\nRemarks in red say what the classifier sees instead. "
        "The scenes that the prompts were written about: [rendered.png](rendered.png).",
        f"## How to read this\n\n{NOTES}",
    ]
    return "\n\n".join(part for part in parts if part)


def _bars(figures: dict[str, Any]) -> str:
    rows = [
        [bar["title"], _number(bar["value"]), _number(bar["least"]), "yes" if bar["met"] else "**no**"]
        for bar in figures["bars"]
    ]
    return "## Bars\n\n" + _table(["measure", "reached", "at least", "met"], rows)


def _alignment(figures: dict[str, Any]) -> str:
    rows = [
        [name, str(figures["prompts_stating"][name])]
        + [_share(figures[source]["alignment"][name]) for source in ("generated", "rendered", "shuffled")]
        for name in ATTRIBUTE_VALUES
    ]
    return "## Prompt alignment\n\n" + _table(["attribute", "prompts", "generated", "rendered", "shuffled"], rows)


def _disparity(figures: dict[str, Any]) -> str:
    sources = {name: figures[name]["disparity"] for name in ("generated", "rendered", "shuffled")}
    titles = {"magnitude": "mean size", "signed": "mean", "far": "far", "near": "near", "coverage": "matching pixels"}
    rows = [
        [axis, title, *(_number(source.get(axis, {}).get(key)) for source in sources.values())]
        for axis in VIEW_AXES
        if axis in sources["generated"]
        for key, title in titles.items()
    ]
    if not rows:
        return ""
    rows.append(["both", "pixels that agree", *(_number(source["agreement"]) for source in sources.values())])
    rows.append(["all", "movies of right signs", *(_share(source["right_signs"]) for source in sources.values())])
    return "## Parallax\n\n" + _table(["axis", "measure", *sources], rows)


def _motion(figures: dict[str, Any]) -> str:
    sources = {name: figures[name]["motion"] for name in ("generated", "rendered")}
    if sources["generated"] is None:
        return ""
    titles = {
        "moving": "change, moving part",
        "quiet": "change, quiet part",
        "concentration": "share in the moving part",
        "speed": "speed, pixels a frame",
    }
    rows = [
        [group.replace("_", " "), title, *(_number(source[group][key]) for source in sources.values()), ""]
        for group in ("prompts_with_motion", "prompts_without_motion")
        for key, title in titles.items()
    ]
    told = [figures[name]["motion"]["travels_as_told"] for name in ("generated", "rendered", "shuffled")]
    rows.append(["prompts with motion and side", "travels as told", *map(_share, told)])
    return "## Motion\n\n" + _table(["prompts", "measure", "generated", "rendered", "shuffled"], rows)


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _share(share: dict[str, Any]) -> str:
    if share["value"] is None or "low" not in share:
        return _number(share["value"])
    return f"{share['value']:.3f} ({share['low']:.2f} to {share['high']:.2f})"
