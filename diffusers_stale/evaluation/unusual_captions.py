"""Sixty sentences that the grammar of captions never writes, and what each asks for.

Other word orders, words that the grammar does not know, typing errors, and two animals told of freely. They were
written before the checkpoint was trained and are never trained on. Of two animals, kind and colour are asked of the
one that is named first, as everywhere.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from diffusers_stale.data.scenes import ATTRIBUTE_VALUES, Animal, Scene, sample_scene, scene_attributes
from diffusers_stale.evaluation.prompts import EvaluationPrompt


CAPTIONS_FILE = Path(__file__).with_name("unusual_captions.json")
"""By group, each sentence with the attributes that it states (of `data.scenes.ATTRIBUTE_VALUES`)."""

GROUPS = ("word order", "synonyms", "typing errors", "two animals")

SCENE_SEED = 3_900_017
"""Of the scenes that are rendered for the sentences."""

SEARCHED_SCENES = 4000


@dataclass(frozen=True)
class UnusualCaption:
    """A sentence, the group that it is in, and the attributes that it states, with their values."""

    text: str
    group: str
    stated: dict[str, str]


def _read() -> tuple[UnusualCaption, ...]:
    groups = json.loads(CAPTIONS_FILE.read_text(encoding="utf-8"))
    return tuple(UnusualCaption(row["text"], group, row["stated"]) for group in GROUPS for row in groups[group])


UNUSUAL_CAPTIONS = _read()
"""Fifteen of each group."""


def unusual_prompts(count: int = len(UNUSUAL_CAPTIONS)) -> tuple[EvaluationPrompt, ...]:
    """`count` of the captions as prompts, evenly taken from all groups, each with a scene that shows what it asks for.

    Raises:
        ValueError: for fewer than one or more than there are.
    """
    if not 1 <= count <= len(UNUSUAL_CAPTIONS):
        raise ValueError(
            f"`count` of unusual captions must be between 1 and {len(UNUSUAL_CAPTIONS)}, got {count}; "
            "write more of them in `unusual_captions`."
        )
    chosen = [UNUSUAL_CAPTIONS[index * len(UNUSUAL_CAPTIONS) // count] for index in range(count)]
    return tuple(EvaluationPrompt(caption.text, dict(caption.stated), scene_of(caption)) for caption in chosen)


def scene_of(caption: UnusualCaption) -> Scene:
    """The first scene of `SCENE_SEED` that, painted in the colours asked for, shows all that `caption` states."""
    for index in range(SEARCHED_SCENES):
        scene = _painted(sample_scene(SCENE_SEED, index), caption.stated)
        shown = scene_attributes(scene)
        if caption.stated.items() <= shown.items():
            return scene
    raise ValueError(f"No scene shows {caption.stated}; ask for attributes of {ATTRIBUTE_VALUES} that go together.")


def _painted(scene: Scene, stated: dict[str, str]) -> Scene:
    """`scene` with time, fence, the barn's colour (if both have a barn) and the first animal's look as `stated`."""
    animals = list(scene.animals)
    look = {name: stated[name] for name in ("kind", "color") if name in stated}
    animals[0] = replace(animals[0], **look)
    barn = scene.barn
    if barn is not None and stated.get("barn", "none") != "none":
        barn = replace(barn, color=stated["barn"])
    return replace(
        scene,
        time_of_day=stated.get("time_of_day", scene.time_of_day),
        fence=stated["fence"] == "yes" if "fence" in stated else scene.fence,
        barn=barn,
        animals=_alike(animals, stated),
    )


def _alike(animals: list[Animal], stated: dict[str, str]) -> tuple[Animal, ...]:
    """The animals, the second as the first wherever a number is stated: two of a kind are what most of them ask."""
    if len(animals) == 2 and "number" in stated:
        animals[1] = replace(animals[1], kind=animals[0].kind, color=animals[0].color)
    return tuple(animals)


def group_of(text: str) -> str:
    """The group of a caption."""
    return next(caption.group for caption in UNUSUAL_CAPTIONS if caption.text == text)
