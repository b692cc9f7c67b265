"""The mathematics of few steps: how clean predictions of earlier steps count.

Pure functions of noise levels (alpha, sigma), in NumPy and float64; the state of a run is `scheduling_stale.py`'s. The
derivations stand in `docs/maximum_entropy.md`.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from diffusers_stale.entropic_steps import FEW_STEPS, HIGHEST_RATIO, capped_ratio, entropic_clock


GAUSSIAN_SCALES = (0.08, 6.4, 24)
"""Of the prior of stale weights: lowest and highest standard deviation of Gaussian data, and how many between."""

WANDERING_SCALES = (0.3, 1.0, 3.0)
"""Standard deviations of the Gaussian data whose clean predictions have such errors."""

WANDERING_MODES = 4
"""Such errors go as cos(mode * pi * entropic time), for modes from 0 to one less than this."""

ROUGHNESS_DECAY = (10, 0.1)
"""From so many steps on, `WeightPrior.roughness` counts less by so many powers of ten with each, lest it limit the
order."""

FRESH_DECAY = (20, 0.05)
"""As `ROUGHNESS_DECAY`, of `WeightPrior.fresh_variance`."""

LEAST_FRESH = 1e-2
"""So much of `WeightPrior.fresh_variance` is left with any number of steps: with less, weights of 128 steps and more
reached 180 at much noise, and a small flow network's errors grew with the number of steps."""

PATH_STEPS_PER_E = 12
"""Runge-Kutta steps of exact paths for each factor e of the noise-to-signal ratio."""

WANDERING_POINTS = 3000
"""Points of the integrals of errors over the log of the noise-to-signal ratio."""

LAST_RATIO_PART = 0.3
"""The integrals end at this part of the last noise-to-signal ratio, where errors hardly count."""

FIRST_RATIO = 2e-3
"""Noise-to-signal ratio below which the clean prediction is taken for the end of a path."""

MOST_STALE = 4
"""So many clean predictions besides the newest are used, where nothing else is asked for."""


@dataclass(frozen=True)
class WeightPrior:
    """What stale weights take data and networks for, besides Gaussian data of `GAUSSIAN_SCALES`.

    Data with a choice between two modes: `pair_share`, its weight relative to Gaussian data; `pair_distances`: lowest
    and highest distance of modes from 0, and how many between; `pair_width`: standard deviation of each mode, relative
    to that; `pair_noises`: noises, in standard deviations, that paths begin with.

    Errors of the network: `wandering_share`: weight of those that follow the noise level slowly, relative to Gaussian
    data's; `roughness`: variance, at a noise-to-signal ratio of 1, of those that are new in each evaluation, for what
    they do to the next sample; `fresh_variance`: the same, for what becomes of them along paths (`FreshErrors`).
    """

    pair_share: float
    pair_distances: tuple[float, float, int] = (0.3, 4.4, 6)
    pair_width: float = 0.09
    pair_noises: tuple[float, ...] = (0.25, 0.5, 1.0)
    wandering_share: float = 2e-3
    roughness: float = 5e-5
    fresh_variance: float = 2e-5


USUAL_PRIOR = WeightPrior(pair_share=0.7)
GAUSSIAN_PRIOR = WeightPrior(pair_share=0.0, wandering_share=0.0, roughness=0.0, fresh_variance=0.0)
PRIOR_OF_FEW = WeightPrior(
    pair_share=1.2,
    pair_distances=(0.2, 3.0, 6),
    pair_width=0.03,
    pair_noises=(0.5,),
    roughness=1e-6,
    fresh_variance=1e-6,
)
"""Of `FEW_STEPS`: sharper choices, and little care for a network's errors, which are small beside those of steps."""


@dataclass(frozen=True)
class ScalarPrior:
    """Data of one dimension, several kinds at once: 0.5 N(centre, width^2) + 0.5 N(-centre, width^2), a path of each
    that begins with `noise`, and how much each counts. All of shape `(kinds,)`."""

    centre: np.ndarray
    width: np.ndarray
    noise: np.ndarray
    share: np.ndarray

    def clean(self, sample: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        """The posterior mean of the clean sample."""
        spread = alpha**2 * self.width**2 + sigma**2
        gain = alpha * self.width**2 / spread
        towards = np.tanh(np.clip(alpha * self.centre * sample / spread, -50.0, 50.0))
        return gain * sample + (1.0 - alpha * gain) * self.centre * towards

    def deviation(self, alpha: float, sigma: float) -> np.ndarray:
        """Standard deviation of samples at a noise level."""
        return np.sqrt(alpha**2 * (self.centre**2 + self.width**2) + sigma**2)

    def paths(self, angles: np.ndarray) -> np.ndarray:
        """Samples of the exact probability-flow paths at descending `angles`, `(len(angles), kinds)`.

        dx/dangle = cos * noise prediction - sin * clean prediction, smooth at pure noise, by classical Runge-Kutta.
        """
        sample, here, samples = self.noise, angles[0], [self.noise]
        for angle in angles[1:]:
            there = max(float(angle), FIRST_RATIO)
            factors = np.log(np.tan(min(here, 1.5)) / np.tan(min(there, 1.5)))
            steps = max(3, int(np.ceil(PATH_STEPS_PER_E * factors)) + (8 if here > 1.5 else 0))
            if here > 1.4 or there > 1.4:
                between = np.linspace(here, there, steps + 1)
            else:
                between = np.arctan(np.geomspace(np.tan(here), np.tan(there), steps + 1))
            for first, second in zip(between[:-1], between[1:], strict=True):
                sample = self._runge_kutta(sample, first, second - first)
            here = there
            samples.append(sample if angle > 0.0 else self.clean(sample, np.cos(there), np.sin(there)))
        return np.array(samples)

    def _runge_kutta(self, sample: np.ndarray, angle: float, step: float) -> np.ndarray:
        first = self._slope(sample, angle)
        second = self._slope(sample + step / 2 * first, angle + step / 2)
        third = self._slope(sample + step / 2 * second, angle + step / 2)
        fourth = self._slope(sample + step * third, angle + step)
        return sample + step / 6 * (first + 2 * second + 2 * third + fourth)

    def _slope(self, sample: np.ndarray, angle: float) -> np.ndarray:
        alpha, sigma = np.cos(angle), np.sin(angle)
        clean = self.clean(sample, alpha, sigma)
        return alpha * (sample - alpha * clean) / sigma - sigma * clean


def stale_prior(prior: WeightPrior) -> ScalarPrior:
    """Data of unknown scale, Gaussian or with a choice between two modes."""
    scales = np.geomspace(*GAUSSIAN_SCALES)
    centres = np.repeat(np.geomspace(*prior.pair_distances), len(prior.pair_noises))
    noises = np.tile(prior.pair_noises, prior.pair_distances[2])
    return ScalarPrior(
        centre=np.concatenate([np.zeros_like(scales), centres]),
        width=np.concatenate([scales, prior.pair_width * centres]),
        noise=np.concatenate([np.ones_like(scales), noises]),
        share=np.concatenate(
            [np.full(len(scales), 1.0 / len(scales)), np.full(len(centres), prior.pair_share / len(centres))]
        ),
    )


@dataclass(frozen=True)
class WanderingErrors:
    """Networks for Gaussian data of standard deviation `scale` whose clean predictions have an error besides.

    It goes as the noise-to-signal ratio, as that of a noise prediction with a constant error does, and as
    cos(`mode` * pi * entropic time). Paths begin at 0, where they would stay without the error. `scale`, `mode` and
    `share`, how much each kind counts, are of shape `(kinds,)`.
    """

    scale: np.ndarray
    mode: np.ndarray
    share: np.ndarray

    def errors(self, angles: np.ndarray, start: float) -> np.ndarray:
        """At `angles` of a process that begins at the angle `start`, `(len(angles), kinds)`."""
        begin = entropic_clock(np.array([start]))
        times = (entropic_clock(angles) - begin) / (1.0 - begin)
        return capped_ratio(angles)[:, None] * np.cos(np.pi * self.mode * times[:, None])

    def clean(self, sample: np.ndarray, alpha: float, sigma: float, errors: np.ndarray) -> np.ndarray:
        """The clean prediction, with the `errors` of its noise level."""
        return alpha * self.scale**2 * sample / (alpha**2 * self.scale**2 + sigma**2) + errors

    def deviation(self, alpha: float, sigma: float) -> np.ndarray:
        return np.sqrt(alpha**2 * self.scale**2 + sigma**2)

    def paths(self, angles: np.ndarray) -> np.ndarray:
        """Samples of the probability-flow paths at descending `angles`, `(len(angles), kinds)`.

        With r for the noise-to-signal ratio and y for sample / alpha, dy / d(log r) = y - clean prediction; so
        y = sqrt(scale^2 + r^2) times the integral of error / sqrt(scale^2 + r^2) over log r, from r to the start.
        """
        start = min(float(angles[0]), float(np.arctan(HIGHEST_RATIO**2)))
        last = float(angles[angles > 0.0].min())
        ratios = np.geomspace(np.tan(start), LAST_RATIO_PART * np.tan(last), WANDERING_POINTS)
        spreads = np.sqrt(self.scale**2 + ratios[:, None] ** 2)
        slopes = self.errors(np.arctan(ratios), float(angles[0])) / spreads
        parts = 0.5 * (slopes[1:] + slopes[:-1]) * -np.diff(np.log(ratios))[:, None]
        samples = np.cos(np.arctan(ratios))[:, None] * spreads * np.cumsum(np.pad(parts, ((1, 0), (0, 0))), axis=0)
        places = -np.arctan(ratios)
        return np.stack([np.interp(-angles, places, column) for column in samples.T], axis=1)


def wandering_errors(share: float) -> WanderingErrors:
    """Of all scales and modes, the slow modes most; `share` is their weight in all, roughly."""
    scales = np.repeat(WANDERING_SCALES, WANDERING_MODES)
    modes = np.tile(np.arange(WANDERING_MODES), len(WANDERING_SCALES))
    return WanderingErrors(scales, modes, share / (1.0 + modes**2) / len(modes))


class FreshErrors:
    """What has become of errors that are new in each evaluation, in a network for N(0, 1) besides: no error, no path.

    One kind for each evaluation, whose clean prediction is off by `deviations` there and right everywhere else. A
    weight beyond 1 amplifies it, and later weights can take that back.
    """

    def __init__(self, deviations: np.ndarray):
        self.deviations = deviations
        self.path = np.zeros(len(deviations))
        self.predictions: list[np.ndarray] = []

    def predict(self, alpha: float, sigma: float) -> None:
        """Takes the clean prediction at the next noise level, `(kinds,)`, to those known."""
        wrong = alpha * self.path / (alpha**2 + sigma**2)
        wrong[len(self.predictions)] += self.deviations[len(self.predictions)]
        self.predictions.insert(0, wrong)

    def known(self, most: int) -> np.ndarray:
        """The `most` newest clean predictions, `(kinds, predictions)`."""
        return np.stack(self.predictions[:most], axis=1)


def ridge_of(steps: int) -> float:
    """Of the least-squares fit of stale weights: few steps need more of it."""
    return max(10.0 ** (-4.655 - 0.088 * (steps - 5)), 10.0**-9.0)


def fading(steps: int, decay: tuple[int, float]) -> float:
    """What is left of an error's variance in a run of so many steps, by `ROUGHNESS_DECAY` or `FRESH_DECAY`: 0 to 1."""
    first, power = decay
    return 10.0 ** (-power * max(steps - first, 0))


def entropic_weights(alphas: np.ndarray, sigmas: np.ndarray, max_stale: int | None) -> list[np.ndarray]:
    """Weights of the newest and up to `max_stale` older clean predictions at each step, of sum 1.

    For data of `stale_prior` exact paths, clean predictions and what the steps so far have made of a path are known,
    and so is the combination that would lead back to the exact path. The weights are the least-squares fit of it over
    the prior, each error relative to the deviation of samples, with a little ridge that keeps the newest prediction's
    weight near 1. The network's own errors count, too: those that wander with the noise level (`WanderingErrors`), and
    those that are new in each evaluation, which large weights would amplify, most of all where guidance multiplies
    them. The latter count twice: what they do to the next sample, and what has become of all of them so far
    (`FreshErrors`). No network is evaluated and nothing is stored.
    """
    few = len(alphas) - 1 <= FEW_STEPS and sigmas[0] > alphas[0]  # (and not the end of more)
    return _weights_of(PRIOR_OF_FEW if few else USUAL_PRIOR, alphas, sigmas, max_stale)


def gaussian_weights(alphas: np.ndarray, sigmas: np.ndarray, max_stale: int | None) -> list[np.ndarray]:
    """As `entropic_weights`, for Gaussian data and a perfect network alone: worse where data has a choice, as pictures
    do."""
    return _weights_of(GAUSSIAN_PRIOR, alphas, sigmas, max_stale)


def _weights_of(prior: WeightPrior, alphas: np.ndarray, sigmas: np.ndarray, max_stale: int | None) -> list[np.ndarray]:
    most = MOST_STALE if max_stale is None else max_stale
    return list(_fitted_weights(prior, tuple(alphas.tolist()), tuple(sigmas.tolist()), most))


@lru_cache(maxsize=64)
def _fitted_weights(
    given: WeightPrior, alphas: tuple[float, ...], sigmas: tuple[float, ...], max_stale: int
) -> tuple[np.ndarray, ...]:
    prior, network, angles = stale_prior(given), wandering_errors(given.wandering_share), np.arctan2(sigmas, alphas)
    errors = network.errors(angles, float(angles[0]))
    # Paths are in the variance-preserving scale, (cos, sin) of the angle; flow matching's samples are smaller.
    exact = np.concatenate([prior.paths(angles), network.paths(angles)], axis=1) * np.hypot(alphas, sigmas)[:, None]
    share, kinds = np.concatenate([prior.share, network.share]), len(prior.share)
    steps = len(alphas) - 1
    ridge, rough = ridge_of(steps), given.roughness * fading(steps, ROUGHNESS_DECAY) * capped_ratio(angles) ** 2
    fresh_variance = given.fresh_variance * max(fading(steps, FRESH_DECAY), LEAST_FRESH)
    fresh = FreshErrors(np.sqrt(fresh_variance) * capped_ratio(angles[:-1]))
    path, predictions, weights = exact[0], [], []
    for index in range(steps):
        alpha, sigma = alphas[index], sigmas[index]
        next_alpha, next_sigma = alphas[index + 1], sigmas[index + 1]
        wrong = network.clean(path[kinds:], alpha, sigma, errors[index])
        predictions.insert(0, np.concatenate([prior.clean(path[:kinds], alpha, sigma), wrong]))
        fresh.predict(alpha, sigma)
        shrink = next_sigma / sigma
        gain = next_alpha - alpha * shrink
        wanted = (exact[index + 1] - shrink * path) / gain
        known = np.stack(predictions[: max_stale + 1], axis=1)
        deviation = np.concatenate([data.deviation(next_alpha, next_sigma) for data in (prior, network)])
        importance = gain / deviation * np.sqrt(share)
        total = (importance[:kinds] ** 2).sum()
        amplified = fresh.known(max_stale + 1)
        every = np.concatenate([importance, np.full(len(amplified), np.sqrt(total))])[:, None]
        fitted = _stale_fit(
            every * np.concatenate([known, amplified]),
            every[:, 0] * np.concatenate([wanted, -shrink * fresh.path / gain]),
            total * ridge,
            total * rough[index::-1][: known.shape[1]],
        )
        weights.append(np.concatenate([[1.0 - fitted.sum()], fitted]))
        path = shrink * path + gain * (known @ weights[-1])
        fresh.path = shrink * fresh.path + gain * (amplified @ weights[-1])
    return tuple(weights)


def _stale_fit(known: np.ndarray, wanted: np.ndarray, ridge: float, rough: np.ndarray) -> np.ndarray:
    """Weights of all columns of `known`, `(kinds, predictions)`, but the first, whose weight is what is left to 1.

    Least squares of `wanted`; `rough` is the variance of an error of each prediction that it shares with no other, and
    `ridge` that of the older ones besides.
    """
    older, missing = known[:, 1:] - known[:, :1], wanted - known[:, 0]
    normal = older.T @ older + np.diag(rough[1:] + ridge) + rough[0]
    return np.linalg.solve(normal, older.T @ missing + rough[0])


def multistep_weights(alphas: np.ndarray, sigmas: np.ndarray, max_stale: int | None = 1) -> list[np.ndarray]:
    """Those of DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2): half a step beyond, linear in half-log-SNR."""
    with np.errstate(divide="ignore"):
        times = np.log(alphas) - np.log(sigmas)
    weights = [np.ones(1)]
    for before, now, after in zip(times[:-2], times[1:-1], times[2:], strict=True):
        # Towards zero noise the step is infinite and what counts is the newest prediction; after a start from pure
        # noise the step before is infinite, and what was seen there counts nothing.
        beyond = 0.0 if np.isinf(before) or np.isinf(after) else (after - now) / (2.0 * (now - before))
        weights.append(np.array([1.0 + beyond, -beyond]))
    return weights


def newest_only(alphas: np.ndarray, sigmas: np.ndarray, max_stale: int | None = 0) -> list[np.ndarray]:
    """DDIM's: nothing stale."""
    return [np.ones(1)] * (len(alphas) - 1)


STALE_WEIGHTS = {
    "entropic": entropic_weights,
    "gaussian": gaussian_weights,
    "multistep": multistep_weights,
    "none": newest_only,
}
"""Weightings of stale outputs by name: (alphas, sigmas, most stale ones) -> weights of each step, newest first."""
