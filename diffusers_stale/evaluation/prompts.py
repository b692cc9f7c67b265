"""Held-out prompts: sentences about scenes that no training run has drawn, and what each of them states."""

from dataclasses import dataclass

from diffusers_stale.axes import check_count
from diffusers_stale.data.captions import describe
from diffusers_stale.data.scenes import ATTRIBUTE_VALUES, Scene, sample_scene, scene_attributes


PROMPT_SEED = 2_000_003
"""Training draws from seed 0 and watches itself on 1_000_003; the classifier has seeds of its own too. The scenes are
new; short sentences ("a pig by night") may have been written about others."""


@dataclass(frozen=True)
class EvaluationPrompt:
    """A sentence, the attributes that it states with their values, and the scene that it was written about."""

    text: str
    stated: dict[str, str]
    scene: Scene


def held_out_prompts(count: int = 64, seed: int = PROMPT_SEED) -> tuple[EvaluationPrompt, ...]:
    """The first `count` prompts of `seed`; the same two integers always give the same ones."""
    check_count("count", count)
    return tuple(_prompt(seed, index) for index in range(count))


def _prompt(seed: int, index: int) -> EvaluationPrompt:
    scene = sample_scene(seed, index)
    caption = describe(scene, seed, index)
    stated = {name: value for name, value in scene_attributes(scene).items() if name in caption.stated}
    return EvaluationPrompt(caption.text, stated, scene)


def stated_counts(prompts: tuple[EvaluationPrompt, ...]) -> dict[str, int]:
    """How many of the prompts state each attribute."""
    return {name: sum(name in prompt.stated for prompt in prompts) for name in ATTRIBUTE_VALUES}
