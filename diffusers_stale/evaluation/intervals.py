"""Figures with the interval in which they would fall again: percentile bootstrap over movies, of 95 %.

B. Efron and R. J. Tibshirani (1993), "An Introduction to the Bootstrap", chapter 13. Shares have Wilson's interval
(`alignment.Share`).
"""

from collections.abc import Callable, Sequence
from math import inf, isnan, nan

import torch


RESAMPLES = 1000
TAIL = 0.025


def draws(count: int, resamples: int = RESAMPLES, seed: int = 0) -> torch.Tensor:
    """Indices of `resamples` samples with replacement of `count` things; `(resamples, count)`, always the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(count, (resamples, count), generator=generator)


def mean_interval(values: Sequence[float]) -> dict[str, float]:
    """Mean of those that are not NaN, the ends of its interval, and their number; NaN of none."""
    known = torch.tensor([value for value in values if not isnan(value)], dtype=torch.float64)
    if len(known) == 0:
        return {"value": nan, "low": nan, "high": nan, "total": 0}
    return _figure(float(known.mean()), known[draws(len(known))].mean(dim=1), len(known))


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Ratio of the means of two measures of the same movies, drawn together; movies with a NaN are left out."""
    pairs = [pair for pair in zip(above, below, strict=True) if not any(map(isnan, pair))]
    if not pairs:
        return {"value": nan, "low": nan, "high": nan, "total": 0}
    table = torch.tensor(pairs, dtype=torch.float64)
    means = table[draws(len(table))].mean(dim=1)
    whole = table.mean(dim=0)
    return _figure(float(whole[0] / whole[1]), means[:, 0] / means[:, 1], len(table))


def statistic_interval(
    statistic: Callable[[torch.Tensor], float],
    count: int,
    resamples: int,
    *,
    biased: bool = False,
    bounds: tuple[float, float] = (-inf, inf),
) -> dict[str, float]:
    """Of any statistic of chosen indices, `(count,)`.

    With `biased`, for statistics that repeated samples shift (distances between distributions grow by them, diversity
    shrinks): the spread of the resampled values is put around the value of the whole sample, not around their own
    median. Ends beyond `bounds`, which the statistic cannot leave, are put there.
    """
    value = statistic(torch.arange(count))
    values = torch.tensor([statistic(chosen) for chosen in draws(count, resamples)], dtype=torch.float64)
    if biased:
        values = (values - values.median() + value).clamp(*bounds)
    return _figure(value, values, count)


def _figure(value: float, resampled: torch.Tensor, total: int) -> dict[str, float]:
    low, high = (float(torch.quantile(resampled, share)) for share in (TAIL, 1 - TAIL))
    return {"value": value, "low": min(low, value), "high": max(high, value), "total": total}
