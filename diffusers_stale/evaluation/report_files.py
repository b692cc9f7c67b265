"""Writes an evaluation to a folder: `report.json`, `report.md`, `report.html` and sheets of pictures. It measures
nothing."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from diffusers_stale.evaluation.alignment import wrong_attributes
from diffusers_stale.evaluation.contact_sheet import contact_sheet
from diffusers_stale.evaluation.measures import MovieMeasures
from diffusers_stale.evaluation.page import html_page
from diffusers_stale.evaluation.prompts import EvaluationPrompt
from diffusers_stale.evaluation.report import Evaluation
from diffusers_stale.evaluation.tables import markdown


REPORT = "report.json"
RANKED = 8
"""Movies that the sheet of ranks shows of the best, of those in the middle, and of the worst."""

STRIP_ZOOM = 8
STRIP_MOVIES = 6
STRIP_GAP = 6


def write_report(evaluation: Evaluation, folder: Path, title: str) -> list[Path]:
    """Writes all files to `folder` (made if need be) and returns their paths; `title` names what was evaluated."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"title": title} | evaluation.figures | {"ranking": list(evaluation.ranking)}
    prompts, every = evaluation.prompts, range(len(evaluation.prompts))
    best, middle, worst = ranks(evaluation.ranking)
    sheets: dict[str, tuple[str, Callable[[Path], object]]] = {
        "ranked.png": (
            f"By rank of what the classifier makes of their prompts: {len(best)} best, {len(middle)} in the middle, "
            f"{len(worst)} worst; not chosen by hand. In red: what it sees instead.",
            lambda path: _sheet(prompts, evaluation.generated, [*best, *middle, *worst], path),
        ),
        "generated.png": ("All movies.", lambda path: _sheet(prompts, evaluation.generated, every, path)),
        "rendered.png": (
            "The scenes that the prompts were written about.",
            lambda path: _sheet(prompts, evaluation.rendered, every, path),
        ),
    }
    if evaluation.generated.views:
        sheets["epipolar.png"] = (
            "Epipolar strips of the first movies, generated left and rendered right: one row of pixels as each view "
            "sees it, high up, in the middle and low. Slanted lines are parallax.",
            lambda path: _strips(evaluation.generated, evaluation.rendered, path),
        )
    if evaluation.unusual_prompts:
        several = range(len(evaluation.unusual_prompts))
        sheets["unusual.png"] = (
            "Captions that the grammar never wrote.",
            lambda path: _sheet(evaluation.unusual_prompts, evaluation.unusual, several, path),
        )
    files = [_replace(folder / name, write) for name, (_, write) in sheets.items()]
    captioned = [(caption, folder / name) for name, (caption, _) in sheets.items()]
    return [
        _replace(folder / REPORT, lambda path: path.write_text(json.dumps(figures, indent=1, allow_nan=False))),
        _replace(folder / "report.md", lambda path: path.write_text(markdown(figures), encoding="utf-8")),
        _replace(
            folder / "report.html", lambda path: path.write_text(html_page(figures, captioned), encoding="utf-8")
        ),
        *files,
    ]


def ranks(ranking: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """The best, middle and worst of movies that are listed from best to worst; each once, up to `RANKED` of each."""
    count = min(RANKED, len(ranking) // 3)
    if count == 0:
        return list(ranking), [], []
    first = (len(ranking) - count) // 2
    return list(ranking[:count]), list(ranking[first : first + count]), list(ranking[-count:])


def _replace(path: Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` fill a temporary file that then takes the place of `path`."""
    temporary = path.with_name(f".{path.name}")
    write(temporary)
    temporary.replace(path)
    return path


def _sheet(prompts: Sequence[EvaluationPrompt], measures: MovieMeasures, chosen: Sequence[int], path: Path) -> None:
    wrong = [wrong_attributes(measures.predictions[index], prompts[index]) for index in chosen]
    remarks = [", ".join(f"{name}: {value}" for name, value in movie.items()) for movie in wrong]
    pictures = [measures.pictures[index] for index in chosen]
    contact_sheet(pictures, [prompts[index].text for index in chosen], remarks).save(path, format="PNG")


def _strips(generated: MovieMeasures, rendered: MovieMeasures, path: Path) -> None:
    """Epipolar strips of both, a row for each of the first movies, enlarged."""
    rows = []
    for one, other in zip(generated.strips[:STRIP_MOVIES], rendered.strips[:STRIP_MOVIES], strict=True):
        gap = torch.full((3, one.shape[1], 2), 255, dtype=torch.uint8)
        rows.append(torch.cat([one, gap, other], dim=2))
    images = [Image.fromarray(row.movedim(0, -1).contiguous().numpy()) for row in rows]
    width, height = images[0].width * STRIP_ZOOM, images[0].height * STRIP_ZOOM
    sheet = Image.new("RGB", (width, len(images) * (height + STRIP_GAP)), (250, 249, 246))
    for place, image in enumerate(images):
        enlarged = image.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (0, place * (height + STRIP_GAP)))
    sheet.save(path, format="PNG")
