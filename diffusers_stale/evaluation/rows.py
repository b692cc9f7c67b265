"""The figures of an evaluation as one list of rows, each with its scale: generated, rendered, decoded, shuffled.

Pages, Markdown and comparisons are made of these rows.
"""

from typing import Any

from diffusers_stale.evaluation.layers import LAYERS


Figure = dict[str, Any] | float | None

SOURCES = ("generated", "rendered", "reconstructed", "shuffled")
"""`reconstructed`: rendered scenes that went through the checkpoint's autoencoder."""

ATTRIBUTE_TITLES = {
    "time_of_day": "time of day",
    "barn": "barn and its colour",
    "fence": "fence",
    "number": "number of animals",
    "kind": "animal kind",
    "color": "animal colour",
    "direction": "direction",
    "action": "action",
}
VIEW_TITLES = {
    "gain": ("warped over unwarped neighbour", "dB"),
    "warped": ("warped neighbour, PSNR", "dB"),
    "gain_edges": ("the same gain at occlusion edges", "dB"),
    "warped_edges": ("PSNR at occlusion edges", "dB"),
    "bend": ("bend of epipolar lines", "px"),
    "cycle": ("pixels back after a cycle", "share"),
}
PARALLAX_TITLES = {
    "magnitude": ("size of disparity", "px"),
    "far": ("disparity, upper part", "px"),
    "near": ("disparity, lower part", "px"),
    "coverage": ("pixels that match", "share"),
    "agreement": ("rows and columns agree", "share"),
}
TIME_TITLES = {
    "warped": ("flow-warped next frame, PSNR", "dB"),
    "gain": ("flow-warped over unwarped", "dB"),
    "flicker": ("flicker of static regions", "grey"),
    "drift": ("drift of static regions", "grey"),
}
MOVEMENT_TITLES = {
    "moving": ("change in the moving part", "grey"),
    "quiet": ("change in the quiet part", "grey"),
    "concentration": ("share of change that moves", "share"),
    "speed": ("speed", "px/frame"),
}
GROUP_TITLES = {"moving": "prompts with motion", "still": "prompts without motion"}
AXIS_TITLES = {"view_cols": "along columns", "view_rows": "along rows", "both": "both axes"}


def measure_rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of `group`, `title`, `unit` and a figure (value, low, high; or None) of each of `SOURCES`."""
    return [
        *_alignment_rows(figures),
        *_view_rows(figures),
        *_time_rows(figures),
        *_distribution_rows(figures),
        *_unusual_rows(figures),
        *_clip_rows(figures),
    ]


def row(group: str, title: str, unit: str, values: dict[str, Figure]) -> dict[str, Any]:
    """One row; plain numbers become figures without an interval."""
    return {"group": group, "title": title, "unit": unit} | {name: as_figure(values.get(name)) for name in SOURCES}


def as_figure(value: Figure) -> dict[str, Any] | None:
    """Value, low, high of a figure or number; None of None."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {name: value.get(name) for name in ("value", "low", "high")}
    return {"value": value, "low": None, "high": None}


def _at(figures: dict[str, Any], *path: str) -> dict[str, Figure]:
    """What stands at `path` in each source; None where it is not."""
    found: dict[str, Figure] = {}
    for source in SOURCES:
        value: Any = figures.get(source)
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        found[source] = value
    return found


def _alignment_rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        row("alignment", title, "share", _at(figures, "alignment", name)) for name, title in ATTRIBUTE_TITLES.items()
    ]


def _view_rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    generated = figures["generated"]
    if not generated.get("views"):
        return []
    rows = [row("views", f"disparity of the {name}", "px", _at(figures, "views", "layers", name)) for name in LAYERS]
    rows += [row("views", title, unit, _at(figures, "views", name)) for name, (title, unit) in VIEW_TITLES.items()]
    for axis, found in generated["parallax"].items():
        rows += [
            row("views", f"{title}, {AXIS_TITLES[axis]}", unit, _at(figures, "parallax", axis, name))
            for name, (title, unit) in PARALLAX_TITLES.items()
            if name in found
        ]
    rows.append(row("views", "movies of right signs", "share", _at(figures, "disparity", "right_signs")))
    return rows


def _time_rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    if not figures["generated"].get("time"):
        return []
    rows = [row("time", title, unit, _at(figures, "time", name)) for name, (title, unit) in TIME_TITLES.items()]
    for group, group_title in GROUP_TITLES.items():
        rows += [
            row("time", f"{title}, {group_title}", unit, _at(figures, "movement", group, name))
            for name, (title, unit) in MOVEMENT_TITLES.items()
        ]
    rows.append(row("time", "travels as told", "share", _at(figures, "motion", "travels_as_told")))
    return rows


def _distribution_rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [
        row("distribution", f"Frechet distance, {name} ({found['samples']} movies)", "", found)
        for name, found in figures["frechet"].items()
    ]
    variety = figures["variety"]
    novelty = variety["novelty"]
    of_novelty = {
        name: {source: novelty[source][name] for source in ("generated", "rendered")}
        for name in ("distance", "percentile", "novel")
    }
    rows.append(row("distribution", "Vendi score", "movies", variety["vendi"]))
    rows.append(row("distribution", "distance to the nearest training scene", "grey", of_novelty["distance"]))
    rows.append(row("distribution", "rank of it among held-out scenes", "share", of_novelty["percentile"]))
    rows.append(row("distribution", "movies that are novel", "share", of_novelty["novel"]))
    rows.append(row("distribution", "imagination", "", variety["imagination"]))
    return rows


def _unusual_rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    unusual = figures.get("unusual")
    if not unusual:
        return []
    rows = [
        row("unusual captions", ATTRIBUTE_TITLES[name], "share", {source: unusual[source][name] for source in SHARED})
        for name in ATTRIBUTE_TITLES
        if unusual["generated"][name]["total"] and name != "action"
    ]
    return rows + [
        row("unusual captions", f"all of it: {group}", "share", found) for group, found in unusual["groups"].items()
    ]


SHARED = ("generated", "rendered", "shuffled")


def _clip_rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    return [row("clip", "CLIP score", "", figures["clip"])] if figures.get("clip") else []
