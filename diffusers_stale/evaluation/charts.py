"""Small drawings as SVG text, for pages that need no other file: a figure on its scale, and lines with bands."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any


INK, FAINT, MUTED = "#22242a", "#d9d7d0", "#8a8880"
COLORS = {"generated": "#b3402a", "rendered": "#2f7d4f", "reconstructed": "#4a7fb5", "shuffled": "#8a8880"}
LINE_COLORS = ("#b3402a", "#2f7d4f", "#4a7fb5", "#b08a1e", "#7a4fa3")

SCALE_WIDTH, SCALE_HEIGHT, SCALE_MARGIN = 220, 22, 10
CHART_WIDTH, CHART_HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 34
TICKS = 4


def scale_strip(row: dict[str, Any]) -> str:
    """A row of `rows.measure_rows` on its own scale: where shuffled, rendered and decoded data are, and between them
    the generated figure with its interval. Empty where there is only one figure."""
    figures = {name: row[name] for name in COLORS if row.get(name) and row[name]["value"] is not None}
    if len(figures) < 2 or "generated" not in figures:
        return ""
    values = [figure["value"] for figure in figures.values()]
    own = figures["generated"]
    values += [own[end] for end in ("low", "high") if own[end] is not None]
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return SCALE_MARGIN + (value - low) / span * (SCALE_WIDTH - 2 * SCALE_MARGIN)

    middle = SCALE_HEIGHT / 2
    parts = [_line(SCALE_MARGIN, middle, SCALE_WIDTH - SCALE_MARGIN, middle, FAINT, 2)]
    for name in ("shuffled", "reconstructed", "rendered"):
        if name in figures:
            x = place(figures[name]["value"])
            parts.append(_line(x, 4, x, SCALE_HEIGHT - 4, COLORS[name], 3))
    if own["low"] is not None:
        parts.append(_line(place(own["low"]), middle, place(own["high"]), middle, COLORS["generated"], 2))
    parts.append(f'<circle cx="{place(own["value"]):.1f}" cy="{middle}" r="4.5" fill="{COLORS["generated"]}"/>')
    return _svg(SCALE_WIDTH, SCALE_HEIGHT, parts)


@dataclass(frozen=True)
class Curve:
    """One line of a chart: a name, places, values, and (where known) the ends of its band."""

    name: str
    places: Sequence[float]
    values: Sequence[float]
    lows: Sequence[float] | None = None
    highs: Sequence[float] | None = None


def line_chart(curves: Sequence[Curve], across: str, up: str) -> str:
    """Lines with bands, axes from 0 (or below it) on, and a legend; `across` and `up` name the axes."""
    places = [place for curve in curves for place in curve.places]
    values = [value for curve in curves for part in (curve.values, curve.highs or ()) for value in part]
    left, right, low, high = min(places), max(places), min(0.0, *values), max(values) * 1.05 or 1.0
    inner_width, inner_height = CHART_WIDTH - LEFT - RIGHT, CHART_HEIGHT - TOP - BOTTOM

    def x(place: float) -> float:
        return LEFT + (place - left) / ((right - left) or 1.0) * inner_width

    def y(value: float) -> float:
        return TOP + (high - value) / ((high - low) or 1.0) * inner_height

    parts = []
    for tick in range(TICKS + 1):
        value = low + (high - low) * tick / TICKS
        parts.append(_line(LEFT, y(value), CHART_WIDTH - RIGHT, y(value), FAINT, 1))
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value:.2g}", "end"))
    for place in sorted(set(places)):
        parts.append(_text(x(place), CHART_HEIGHT - BOTTOM + 16, f"{place:g}", "middle"))
    parts.append(_text(LEFT + inner_width / 2, CHART_HEIGHT - 3, across, "middle"))
    parts.append(
        f'<text x="12" y="{TOP + inner_height / 2}" transform="rotate(-90 12 {TOP + inner_height / 2})" '
        f'text-anchor="middle">{escape(up)}</text>'
    )
    for index, curve in enumerate(curves):
        color = LINE_COLORS[index % len(LINE_COLORS)]
        if curve.lows is not None and curve.highs is not None:
            outline = [*zip(curve.places, curve.highs, strict=True)]
            outline += [*zip(curve.places, curve.lows, strict=True)][::-1]
            points = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in outline)
            parts.append(f'<polygon points="{points}" fill="{color}" opacity="0.15"/>')
        points = " ".join(
            f"{x(place):.1f},{y(value):.1f}" for place, value in zip(curve.places, curve.values, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(
            _line(CHART_WIDTH - 128, TOP + 10 + 15 * index, CHART_WIDTH - 110, TOP + 10 + 15 * index, color, 3)
        )
        parts.append(_text(CHART_WIDTH - 104, TOP + 14 + 15 * index, curve.name, "start"))
    return _svg(CHART_WIDTH, CHART_HEIGHT, parts)


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="{INK}">{"".join(parts)}</svg>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}" '
        'stroke-linecap="round"/>'
    )


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{MUTED}">{escape(words)}</text>'
