"""Do movies show what their prompts state? Shares of right attributes, with intervals and with chance beside them.

It compares words with words; the classifier that reads them off the pixels is in `classifier`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

from diffusers_stale.data.scenes import ATTRIBUTE_VALUES
from diffusers_stale.evaluation.prompts import EvaluationPrompt


NORMAL_QUANTILE = 1.959964
"""Of the standard normal distribution at 0.975, for intervals that hold in 95 % of cases."""


@dataclass(frozen=True)
class Share:
    """`right` of `total`. Its interval is Wilson's, of 95 % (E. B. Wilson, 1927, J. Am. Stat. Assoc. 22)."""

    right: int
    total: int

    @property
    def value(self) -> float:
        """In [0, 1]; NaN of nothing."""
        return self.right / self.total if self.total else nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end, both in [0, 1]; (0, 1) of nothing."""
        if not self.total:
            return 0.0, 1.0
        square = NORMAL_QUANTILE**2
        middle = (self.right + square / 2) / (self.total + square)
        spread = self.right * (self.total - self.right) / self.total + square / 4
        half = NORMAL_QUANTILE * sqrt(spread) / (self.total + square)
        return max(0.0, middle - half), min(1.0, middle + half)

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        low, high = self.interval
        return {"value": self.value, "low": low, "high": high, "right": self.right, "total": self.total}


def attribute_accuracy(predictions: Sequence[dict[str, str]], prompts: Sequence[EvaluationPrompt]) -> dict[str, Share]:
    """For every attribute, the share of the prompts stating it whose movie shows it.

    Raises:
        ValueError: if there is not one prediction a prompt.
    """
    if len(predictions) != len(prompts):
        raise ValueError(
            f"Expected one prediction a prompt, got {len(predictions)} for {len(prompts)} prompts; "
            "predict all movies, in the order of their prompts."
        )
    return {name: _share(name, predictions, prompts) for name in ATTRIBUTE_VALUES}


def _share(name: str, predictions: Sequence[dict[str, str]], prompts: Sequence[EvaluationPrompt]) -> Share:
    pairs = [
        (shown[name], prompt.stated[name])
        for shown, prompt in zip(predictions, prompts, strict=True)
        if name in prompt.stated
    ]
    return Share(sum(shown == stated for shown, stated in pairs), len(pairs))


def shuffled_accuracy(predictions: Sequence[dict[str, str]], prompts: Sequence[EvaluationPrompt]) -> dict[str, float]:
    """Chance: the accuracy over all pairs of a movie with another prompt than its own; NaN of a single prompt."""
    shares = [
        attribute_accuracy([*predictions[shift:], *predictions[:shift]], prompts) for shift in range(1, len(prompts))
    ]
    right = {name: sum(share[name].right for share in shares) for name in ATTRIBUTE_VALUES}
    total = {name: sum(share[name].total for share in shares) for name in ATTRIBUTE_VALUES}
    return {name: right[name] / total[name] if total[name] else nan for name in ATTRIBUTE_VALUES}


def wrong_attributes(shown: dict[str, str], prompt: EvaluationPrompt) -> dict[str, str]:
    """What a movie shows instead of what its prompt states, by attribute."""
    return {name: shown[name] for name, stated in prompt.stated.items() if shown[name] != stated}
