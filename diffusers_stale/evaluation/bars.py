"""What a checkpoint must reach: the bars, and the ratios to rendered scenes that some of them are about."""

from dataclasses import dataclass
from math import isnan
from typing import Any

from diffusers_stale.evaluation.disparity import VIEW_AXES


@dataclass(frozen=True)
class Bar:
    """A figure that a checkpoint must reach: where it stands in the report, and how high it must be.

    `of_movies`: single frames cannot show it, rendered ones no more than generated ones.
    """

    title: str
    path: tuple[str, ...]
    least: float
    of_movies: bool = False


def _aligned(attribute: str) -> tuple[str, ...]:
    return ("generated", "alignment", attribute, "value")


BARS = (
    Bar("time of day", _aligned("time_of_day"), 0.98),
    Bar("barn and its colour", _aligned("barn"), 0.98),
    Bar("fence", _aligned("fence"), 0.98),
    Bar("animal colour", _aligned("color"), 0.95),
    Bar("animal kind", _aligned("kind"), 0.90),
    Bar("direction", _aligned("direction"), 0.95),
    Bar("action", _aligned("action"), 0.75, of_movies=True),
    Bar("disparity of the animal, nearness to rendered", ("ratios", "animal_nearness"), 0.85),
    Bar("disparity of the background, nearness to rendered", ("ratios", "background_nearness"), 0.85),
    Bar("gain of warped neighbours, of rendered", ("ratios", "gain"), 0.60),
    Bar("pixels that match between views, of rendered", ("ratios", "coverage"), 0.50),
    Bar("change that is motion", ("generated", "motion", "prompts_with_motion", "concentration"), 0.50),
    Bar("travels as told", ("generated", "motion", "travels_as_told", "value"), 0.80),
    Bar("flicker allowed over flicker", ("ratios", "flicker_allowed"), 1.00),
    Bar("movies that are novel", ("variety", "novelty", "generated", "novel", "value"), 0.95),
)  # fmt: skip
"""The bars of the default checkpoint. Nearness is 1 for the disparity of rendered scenes, 0.85 for one that is 15 %
too large or too small, and 0 or less where it is twice as large, none, or of the wrong sign. The matching pixels are
there because unrelated views match hardly anywhere, but where they do, by chance, it is at large disparities. Of pure
grain, 0.15 of the change counts as motion; of rendered scenes, all. Rendered scenes have no flicker: allowed is twice
that of rendered scenes that went through the checkpoint's autoencoder, and at least `UNSEEN_FLICKER`."""

UNSEEN_FLICKER = 1.0
"""Grey levels of 255 that nobody sees."""

FLICKER_FACTOR = 2.0
LEAST_FLICKER = 1e-3
"""Grey levels that a movie is taken to flicker at least, so that stillness has a finite ratio."""

NAN = float("nan")


def disparity_ratios(generated: dict[str, Any], rendered: dict[str, Any]) -> dict[str, float]:
    """Generated over rendered, of the worse view axis; empty for a single view.

    A ratio of far or near parts above 0 says that the sign is right.
    """
    axes = [axis for axis in VIEW_AXES if axis in generated]
    names = ("magnitude", "far", "near", "coverage")
    ratios = {name: [generated[axis][name] / rendered[axis][name] for axis in axes] for name in names if axes}
    return {name: min(values) if not any(map(isnan, values)) else NAN for name, values in ratios.items()}


def view_ratios(layer_ratios: dict[str, dict[str, float]], figures: dict[str, Any]) -> dict[str, float]:
    """Nearness of the layers' disparities to the rendered ones, and the share of the rendered gain."""
    nearness = {f"{name}_nearness": 1 - abs(ratio["value"] - 1) for name, ratio in layer_ratios.items()}
    gains = [figures[source]["views"]["gain"]["value"] for source in ("generated", "rendered")]
    return nearness | {"gain": gains[0] / gains[1] if gains[1] else NAN}


def allowed_flicker(figures: dict[str, Any]) -> float:
    """How often the flicker of the generated movies fits into what is allowed; NaN of fewer than three frames."""
    found = figures["generated"]["time"]["flicker"]["value"]
    decoded = figures.get("reconstructed")
    reference = decoded["time"]["flicker"]["value"] if decoded else 0.0
    if isnan(found):
        return NAN
    return max(FLICKER_FACTOR * reference, UNSEEN_FLICKER) / max(found, LEAST_FLICKER)


def check_bars(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bar with the figure reached; those that the grid or the prompts give no figure for are not met."""
    checked = []
    for bar in BARS:
        value: Any = figures
        for key in bar.path:
            value = (value or {}).get(key)
        if bar.of_movies and figures["settings"]["frames"] == 1:
            value = None
        reached = value is not None and not isnan(value)
        checked.append({"title": bar.title, "value": value, "least": bar.least, "met": reached and value >= bar.least})
    return checked
