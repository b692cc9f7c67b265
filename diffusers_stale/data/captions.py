"""Sentences that describe a scene: a small grammar with synonyms, word orders, plurals and omissions.

A caption may leave things out; it never says what is not so. Nothing here makes pixels.
"""

import re
from dataclasses import dataclass

import numpy as np

from diffusers_stale.data.scenes import BARN_COLORS, Animal, Scene, random_generator


NOUNS = {
    "horse": (("horse", "horses"), ("horse", "horses"), ("pony", "ponies")),
    "cow": (("cow", "cows"),),
    "sheep": (("sheep", "sheep"),),
    "pig": (("pig", "pigs"), ("pig", "pigs"), ("hog", "hogs")),
    "chicken": (("chicken", "chickens"), ("chicken", "chickens"), ("hen", "hens")),
}
ADJECTIVES = {
    "brown": ("brown", "brown", "chestnut"),
    "black": ("black",),
    "white": ("white",),
    "grey": ("grey", "grey", "gray"),
    "golden": ("golden", "golden", "yellow"),
    "pink": ("pink",),
}
TIMES = {
    "dawn": ("at dawn", "at dawn", "at sunrise", "in the early morning"),
    "day": ("by day", "on a sunny day", "at noon", "in daylight"),
    "sunset": ("at sunset", "at sunset", "at dusk", "in the evening"),
    "night": ("at night", "at night", "under the moon", "by moonlight"),
}
VERBS = {
    "standing": (("stands", "stand", "standing"), ("waits", "wait", "waiting")),
    "walking": (("walks", "walk", "walking"), ("walks", "walk", "walking"), ("strolls", "stroll", "strolling")),
    "galloping": (("gallops", "gallop", "galloping"), ("runs", "run", "running"), ("races", "race", "racing")),
    "eating": (("eats", "eat", "eating"), ("eats grass", "eat grass", "eating grass"), ("grazes", "graze", "grazing")),
}
EXITS = {
    "walking": ("walks", "walks", "comes", "steps"),
    "galloping": ("gallops", "gallops", "runs", "comes"),
}
PARTICIPLES = {
    "walks": "walking",
    "comes": "coming",
    "steps": "stepping",
    "gallops": "galloping",
    "runs": "running",
}
GAZES = ("facing {}", "facing {}", "looking {}", "looking to the {}")
HEADINGS = ("to the {}", "to the {}", "{}ward", "towards the {}")
NEAR_BARN = ("in front of {}", "in front of {}", "by {}", "near {}", "before {}")
NO_BARN = ("in an open field", "in a field", "with no barn")
FENCES = ("behind a fence", "behind a wooden fence", "with a fence", "by a fence")
NO_FENCES = ("without a fence", "with no fence")

SIDES = re.compile(r"\b(left|right)(ward|)\b")
OMISSION = {"color": 0.08, "direction": 0.25, "action": 0.10, "barn": 0.10, "fence": 0.25, "time_of_day": 0.08}
"""Probability that a caption leaves an attribute out; a direction only if it is `TACIT_DIRECTION`."""

TACIT_DIRECTION = "right"
"""Where an animal faces of which nothing is said: a sentence that leaves both open is drawn as one with two heads."""


@dataclass(frozen=True)
class Caption:
    """A sentence and the names of the attributes that it states (of `scenes.ATTRIBUTE_VALUES`)."""

    text: str
    stated: frozenset[str]


def caption_of(scene: Scene, seed: int, index: int) -> str:
    """The sentence number `index` about `scene`; another `index` words it differently."""
    return describe(scene, seed, index).text


def describe(scene: Scene, seed: int, index: int, complete: bool = False) -> Caption:
    """As `caption_of`, with the attributes that the sentence states; `complete` leaves none out."""
    draw = random_generator(seed, index, 0x9E3779B9)
    said = {name for name, share in OMISSION.items() if draw.random() >= share or complete}
    said |= {"kind", "number"}
    animal = scene.animals[0]
    if animal.direction != TACIT_DIRECTION:
        said.add("direction")
    if scene.barn is None and not complete and draw.random() < 0.6:
        said.discard("barn")
    if not scene.fence and not complete and draw.random() < 0.6:
        said.discard("fence")
    if animal.leaves_barn and "action" in said:
        said.add("barn")
    text = _sentence(scene, said, draw)
    return Caption(text, frozenset(said))


def mirrored(caption: str) -> str:
    """`caption` with left for right and right for left: wrong of its scene, and as close to the truth as can be.

    A caption that states no direction stays as it is.
    """
    return SIDES.sub(lambda found: ("right" if found[1] == "left" else "left") + found[2], caption)


def swapped(caption: str, count: int, draw: np.random.Generator) -> str:
    """`caption` with up to `count` of the attributes that it states changed to another value, each in its own way.

    Kinds, coats, barns, directions and times of day can be changed; a caption that states fewer is changed in all.
    """
    stated = [pattern for pattern in _SWAPS if pattern.search(caption)]
    for place in draw.permutation(len(stated))[:count]:
        pattern = stated[place]
        word = pattern.search(caption)[0]
        values = _SWAPS[pattern]
        own = next(value for value in values if word in value)
        others = [value for value in values if value is not own]
        # The same form of another value: plural for plural.
        column = own.index(word) if len(own) > 1 and pattern is _KIND else int(draw.integers(2**16))
        other = others[int(draw.integers(len(others)))]
        replacement = other[column % len(other)]
        caption = pattern.sub(lambda found, old=word, new=replacement: new if found[0] == old else found[0], caption)
    return caption


def _words(values: list[tuple[str, ...]]) -> str:
    return "|".join(sorted({re.escape(word) for value in values for word in value}, key=len, reverse=True))


# Every kind's forms in the same order, singular and plural in turn; where it has one name only, that is there twice.
_KIND_VALUES = [tuple(form for place in (0, -1) for form in names[place]) for names in NOUNS.values()]
_COAT_VALUES = [tuple(dict.fromkeys(words)) for words in ADJECTIVES.values()]
_BARN_VALUES = [(color,) for color in BARN_COLORS]
_TIME_VALUES = [tuple(dict.fromkeys(words)) for words in TIMES.values()]
_KIND = re.compile(rf"\b(?:{_words(_KIND_VALUES)})\b")
_SWAPS = {
    _KIND: _KIND_VALUES,
    re.compile(rf"\b(?:{_words(_COAT_VALUES)})\b(?= (?:{_words(_KIND_VALUES)})\b)"): _COAT_VALUES,
    re.compile(rf"\b(?:{_words(_BARN_VALUES)})\b(?= barn)|(?<=painted )(?:{_words(_BARN_VALUES)})\b"): _BARN_VALUES,
    re.compile(r"\b(?:left|right)(?=ward|\b)"): [("left",), ("right",)],
    re.compile(rf"\b(?:{_words(_TIME_VALUES)})\b"): _TIME_VALUES,
}
"""What is stated of each attribute, and the words for each of its values."""


def _pick(draw: np.random.Generator, options: tuple) -> object:
    return options[int(draw.integers(len(options)))]


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _noun_phrase(animal: Animal, count: int, said: set[str], draw: np.random.Generator) -> str:
    noun = _pick(draw, NOUNS[animal.kind])[count - 1]
    phrase = f"{_pick(draw, ADJECTIVES[animal.color])} {noun}" if "color" in said else noun
    return f"two {phrase}" if count == 2 else _article(phrase)


def _subject(scene: Scene, said: set[str], draw: np.random.Generator) -> str:
    first = scene.animals[0]
    if len(scene.animals) == 1:
        return _noun_phrase(first, 1, said, draw)
    second = scene.animals[1]
    if (first.kind, first.color) == (second.kind, second.color):
        return _noun_phrase(first, 2, said, draw)
    return f"{_noun_phrase(first, 1, said, draw)} and {_noun_phrase(second, 1, said, draw)}"


def _barn_name(scene: Scene, draw: np.random.Generator) -> str:
    return f"{scene.barn.color} barn" if draw.random() < 0.85 else f"barn painted {scene.barn.color}"


def _action(scene: Scene, said: set[str], form: int, draw: np.random.Generator) -> str:
    """The verb phrase; `form`: 0 singular, 1 plural, 2 participle."""
    animal = scene.animals[0]
    if "action" in said and animal.leaves_barn:
        verb = _pick(draw, EXITS[animal.gait])
        return f"{PARTICIPLES[verb] if form == 2 else verb} out of {_article(_barn_name(scene, draw))}"
    if "action" in said:
        return _pick(draw, VERBS[animal.gait])[form]
    return ("is", "are", "")[form]


def _direction(scene: Scene, said: set[str], draw: np.random.Generator) -> str:
    if "direction" not in said:
        return ""
    animal = scene.animals[0]
    moves = "action" in said and animal.gait in ("walking", "galloping")
    return str(_pick(draw, HEADINGS if moves else GAZES)).format(animal.direction)


def _surroundings(scene: Scene, said: set[str], draw: np.random.Generator) -> list[str]:
    parts = []
    leaves = scene.animals[0].leaves_barn and "action" in said
    if "barn" in said and not leaves:
        parts.append(
            str(_pick(draw, NEAR_BARN)).format(_article(_barn_name(scene, draw)))
            if scene.barn
            else _pick(draw, NO_BARN)
        )
    if "fence" in said:
        parts.append(_pick(draw, FENCES if scene.fence else NO_FENCES))
    if draw.random() < 0.3:
        parts.reverse()
    return parts


def _sentence(scene: Scene, said: set[str], draw: np.random.Generator) -> str:
    time = str(_pick(draw, TIMES[scene.time_of_day])) if "time_of_day" in said else ""
    style = draw.random()
    form = 2 if style < 0.35 else len(scene.animals) - 1
    subject = _subject(scene, said, draw)
    action, direction = _action(scene, said, form, draw), _direction(scene, said, draw)
    places = _surroundings(scene, said, draw)
    if action in ("is", "are") and not places and not direction:
        action = ""
    clause = " ".join(part for part in (subject, action, direction, *places) if part)
    if not time:
        return clause
    order = draw.random()
    if order < 0.25:
        return f"{time}, {clause}" if order < 0.18 else f"{time} {clause}"
    return f"{clause} {time}" if order < 0.85 else f"{clause}, {time}"
