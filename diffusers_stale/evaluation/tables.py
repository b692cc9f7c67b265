"""How figures are written as text, and the Markdown page of an evaluation."""

from collections.abc import Sequence
from typing import Any


SOURCE_TITLES = {
    "generated": "generated",
    "rendered": "rendered",
    "reconstructed": "after the autoencoder",
    "shuffled": "shuffled",
}

NOTES = (
    "rendered: the scenes that the prompts were written about, measured in the same way: what a perfect model "
    "reaches. After the autoencoder: the same scenes, encoded and decoded by the checkpoint: what its network "
    "could reach.",
    "shuffled: chance. For attributes, travel and motion, the movies against other prompts than their own; for "
    "views, time and Frechet distances, rendered pictures each of another scene than its neighbours.",
    "Attributes are told by a classifier of the middle view, and scored where the prompt states them. Of two "
    "animals it means the nearer one, which prompts name first. Intervals of shares are Wilson's, others are "
    "bootstrapped over movies.",
    "Disparities are in pixels per view step at 64 px, positive is nearer than the plane of zero disparity, over "
    "the pixels that match between views. Where hardly any match, those of the few mean nothing. Layers are told "
    "by a network of their own, on the middle view; upper and lower parts are those of the picture.",
    "Warped neighbours are read where matching found each pixel, away from edges between layers and at them "
    "apart. Bend: how far the images of a point in three views are from a straight line. Cycle: of the pixels "
    "with anything to match, the share that is found in a neighbour and comes back from it within half a pixel.",
    "Flow is matched in whole pixels, around the animal. Flicker is what white noise of that deviation would "
    "change from frame to frame in regions that no animal touches, in grey levels of 255; rendered scenes have "
    "none.",
    "Change is between successive frames: in the 15 % of the picture that change most (moving) and in the half "
    "that changes least (quiet). The share of change that moves is 0.15 of pure grain and 1 of pure motion.",
    "Frechet distances are between features of the classifier along time, views, diagonally and in raster order, "
    "to those of the rendered scenes, in units of their variance. Few samples differ by chance: as rendered stands "
    "the distance of as many other rendered scenes; movies of the same prompts may come nearer.",
    "Vendi score: an effective number of different pictures. Novel: farther from every training scene than the "
    "1st percentile of held-out scenes. Imagination: alignment times diversity (of rendered, at most 1) times "
    "novelty.",
    "Errors by noise level: with mirrored cameras the error must rise, in the near and in the far part of the "
    "picture; a ratio of 1 says that the network does not know which way things shift there.",
)


def number(value: float | None) -> str:
    """Three decimals, fewer of large numbers; a dash of None."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def figure_text(figure: dict[str, Any] | None) -> str:
    """Value, and its interval where there is one."""
    if figure is None or figure["value"] is None:
        return "–"
    if figure["low"] is None:
        return number(figure["value"])
    return f"{number(figure['value'])} ({number(figure['low'])} to {number(figure['high'])})"


def settings_text(settings: dict[str, Any]) -> str:
    """In one sentence."""
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if value is not None)
    return f"Settings: {told}."


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def markdown(figures: dict[str, Any]) -> str:
    """The report as a page."""
    parts = [
        f"# Evaluation of {figures['title']}\n\n{settings_text(figures['settings'])}",
        "## Bars\n\n" + markdown_table(["measure", "reached", "at least", "met"], _bar_rows(figures["bars"])),
        *_groups(figures["measures"]),
        _noise(figures.get("noise_errors")),
        "## Pictures\n\n![best, typical, worst](ranked.png)\n\nAll movies: [generated.png](generated.png); remarks in "
        "red say what the classifier sees instead. The scenes that the prompts were written about: "
        "[rendered.png](rendered.png).",
        "## How to read this\n\n" + "\n".join(f"- {note}" for note in NOTES),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bar_rows(bars: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [[bar["title"], number(bar["value"]), number(bar["least"]), _verdict(bar)] for bar in bars]


def _verdict(bar: dict[str, Any]) -> str:
    if bar["value"] is None:
        return "not measured"
    return "yes" if bar["met"] else "**no**"


def _groups(measures: Sequence[dict[str, Any]]) -> list[str]:
    groups = list(dict.fromkeys(row["group"] for row in measures))
    return [_group([row for row in measures if row["group"] == group], group) for group in groups]


def _group(rows: Sequence[dict[str, Any]], group: str) -> str:
    sources = [name for name in SOURCE_TITLES if any(row[name] for row in rows)]
    cells = [
        [row["title"] + (f" [{row['unit']}]" if row["unit"] else ""), *(figure_text(row[name]) for name in sources)]
        for row in rows
    ]
    return f"## {group.capitalize()}\n\n" + markdown_table(
        ["measure", *(SOURCE_TITLES[name] for name in sources)], cells
    )


def _noise(errors: dict[str, Any] | None) -> str:
    if not errors:
        return ""
    levels = errors["levels"]
    names = list(dict.fromkeys(name for found in levels.values() for name in found))
    rows = [[level, *(figure_text(levels[level].get(name)) for name in names)] for level in levels]
    header = ["share of the process left", *(name.replace("_", " ") for name in names)]
    return f"## Errors by noise level\n\nOver {errors['scenes']} scenes.\n\n" + markdown_table(header, rows)
