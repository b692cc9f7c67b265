"""An evaluation as one HTML page: tables, drawings and pictures inside it, no other file, no script."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from diffusers_stale.evaluation.charts import COLORS, Curve, line_chart, scale_strip
from diffusers_stale.evaluation.tables import NOTES, SOURCE_TITLES, figure_text, number, settings_text


STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #22242a; background: #faf9f6;
  max-width: 1160px;
  margin: 2rem auto; padding: 0 1.2rem; }
h1, h2 { font-weight: 600; line-height: 1.2; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #d9d7d0; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .22rem .7rem .22rem 0; border-bottom: 1px solid #ebe9e2; vertical-align: middle; }
th { color: #8a8880; font-weight: 500; } td small { color: #8a8880; }
img { max-width: 100%; border: 1px solid #d9d7d0; }
.missed { color: #b3402a; font-weight: 600; }
.met { color: #2f7d4f; } .key span { display: inline-block; width: .8em; height: .8em; margin: 0 .35em 0 1em; }
figure { margin: 1rem 0; } figcaption { color: #6a6860; font-size: 13px; }
.side { display: flex; flex-wrap: wrap; gap: 1rem; }
"""

GROUP_TITLES = {
    "alignment": "Prompt alignment",
    "views": "View consistency",
    "time": "Time consistency",
    "distribution": "Distribution, diversity, novelty, imagination",
    "unusual captions": "Captions that the grammar never wrote",
    "clip": "CLIP score",
}
NOISE_LINES = {
    "error": "among views",
    "single_view": "single view",
    "other_prompt": "another prompt",
    "mirrored": "mirrored cameras",
}
SIGN_LINES = {"mirrored_near": "near part", "mirrored_far": "far part"}


def html_page(figures: dict[str, Any], pictures: Sequence[tuple[str, Path]]) -> str:
    """The page of `figures`; `pictures` are PNG files, each with the sentence that stands beneath it."""
    parts = [
        f"<h1>{escape(figures['title'])}</h1><p>{escape(settings_text(figures['settings']))}</p>",
        "<h2>Bars</h2>" + _bars(figures["bars"]),
        _key(),
        *(_group(figures["measures"], group, title) for group, title in GROUP_TITLES.items()),
        _noise(figures.get("noise_errors")),
        "<h2>Pictures</h2>" + "".join(_picture(caption, path) for caption, path in pictures),
        _unusual(figures.get("unusual")),
        "<h2>How to read this</h2><ul>" + "".join(f"<li>{escape(note)}</li>" for note in NOTES) + "</ul>",
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(figures["title"])}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _bars(bars: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            escape(bar["title"]),
            number(bar["value"]),
            number(bar["least"]),
            '<span class="met">met</span>' if bar["met"] else f'<span class="missed">{_verdict(bar)}</span>',
        ]
        for bar in bars
    ]
    return _table(["measure", "reached", "at least", ""], rows)


def _verdict(bar: dict[str, Any]) -> str:
    return "missed" if bar["value"] is not None else "not measured"


def _key() -> str:
    marks = "".join(f'<span style="background:{color}"></span>{SOURCE_TITLES[name]}' for name, color in COLORS.items())
    return f'<p class="key">On the scales: {marks}. Intervals are of 95 %.</p>'


def _group(measures: Sequence[dict[str, Any]], group: str, title: str) -> str:
    rows = [row for row in measures if row["group"] == group]
    if not rows:
        return ""
    sources = [name for name in SOURCE_TITLES if any(row[name] for row in rows)]
    cells = [
        [
            escape(row["title"]) + (f" <small>{escape(row['unit'])}</small>" if row["unit"] else ""),
            *(escape(figure_text(row[name])) for name in sources),
            scale_strip(row),
        ]
        for row in rows
    ]
    return f"<h2>{escape(title)}</h2>" + _table(["measure", *(SOURCE_TITLES[name] for name in sources), ""], cells)


def _noise(errors: dict[str, Any] | None) -> str:
    if not errors:
        return ""
    charts = [line_chart(_curves(errors, NOISE_LINES), "share of the process that is left", "error")]
    if turned := _curves(errors, SIGN_LINES):
        charts.append(line_chart(turned, "share of the process that is left", "error, mirrored / right"))
    return (
        f"<h2>Errors by noise level</h2><p>Over {errors['scenes']} rendered scenes, in units of the variance of what "
        f'is predicted.</p><div class="side">{"".join(charts)}</div>'
    )


def _curves(errors: dict[str, Any], names: dict[str, str]) -> list[Curve]:
    levels = errors["levels"]
    order = sorted(levels, key=float)
    curves = []
    for name, title in names.items():
        found = [levels[level].get(name) for level in order]
        if all(figure and figure["value"] is not None for figure in found):
            values, lows, highs = ([figure[part] for figure in found] for part in ("value", "low", "high"))
            curves.append(Curve(title, [float(level) for level in order], values, lows, highs))
    return curves


def _picture(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _unusual(unusual: dict[str, Any] | None) -> str:
    if not unusual:
        return ""
    rows = [
        [escape(movie["prompt"]), escape(", ".join(f"{name}: {value}" for name, value in movie["wrong"].items()))]
        for movie in unusual["movies"]
    ]
    return "<h2>Each unusual caption</h2>" + _table(["caption", "seen instead"], rows)
