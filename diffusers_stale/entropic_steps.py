"""The mathematics of few steps: where to put them (the entropic clock) and how old results count (stale weights).

Pure functions of noise levels (alpha, sigma), in NumPy and float64; the state of a run is `scheduling_stale.py`'s. The
derivations stand in `docs/maximum_entropy.md`.
"""

import numpy as np


CLOCK_SCALES = (0.06, 12.0)
"""Standard deviations of data between which the prior of the entropic clock is log-uniform."""

WEIGHT_SCALES = (0.15, 15.0)
"""The same, of the prior that stale weights are made for: narrower, since what is small is seen in last steps only."""

SCALES = 64
"""Number of scales in a prior."""

LEAST_RIDGE = 1e-5
"""Of the least-squares fit of stale weights, however many steps there are."""


def entropic_clock(angles: np.ndarray, shift: float = 1.0) -> np.ndarray:
    """Entropic time at the noise levels (cos, sin) of `angles`: from 0 at pure noise to 1 at none.

    For Gaussian data of scale c the information gained until the noise-to-signal ratio is s, rescaled to be finite at
    both ends, is 1 - 2/pi * atan(s / c); here the mean over log-uniform c. `shift` multiplies all scales.
    """
    scales = shift * _log_uniform(*CLOCK_SCALES)
    # atan(s / c) as atan2(sin, c * cos): finite at pure noise.
    turned = np.arctan2(np.sin(angles)[:, None], scales * np.cos(angles)[:, None])
    return 1.0 - 2.0 / np.pi * turned.mean(axis=1)


def _log_uniform(lowest: float, highest: float) -> np.ndarray:
    return np.geomspace(lowest, highest, SCALES)


def gaussian_weights(alphas: np.ndarray, sigmas: np.ndarray, max_stale: int) -> list[np.ndarray]:
    """Weights of the newest and up to `max_stale` older clean predictions at each step, of sum 1.

    Data is taken for Gaussian of a scale c that is log-uniform. Then exact paths, clean predictions and what the steps
    so far have made of a path are known for every c, and so is the combination that would lead back to the exact path.
    The weights are the least-squares fit of it over all c, each error relative to what it will be at the end, with a
    little ridge that keeps the newest prediction's weight near 1.
    """
    scales = _log_uniform(*WEIGHT_SCALES)
    exact = np.sqrt(np.outer(alphas**2, scales**2) + sigmas[:, None] ** 2)
    ridge = max(10.0 ** (-1.5 - 0.3 * (len(alphas) - 6)), LEAST_RIDGE)
    path, predictions, weights = exact[0], [], []
    for index in range(len(alphas) - 1):
        alpha, sigma = alphas[index], sigmas[index]
        predictions.insert(0, alpha * scales**2 / (alpha**2 * scales**2 + sigma**2) * path)
        shrink = sigmas[index + 1] / sigma
        gain = alphas[index + 1] - alpha * shrink
        wanted = (exact[index + 1] - shrink * path) / gain
        known = np.stack(predictions[: max_stale + 1], axis=1)
        importance = gain / exact[index + 1]
        older = (known[:, 1:] - known[:, :1]) * importance[:, None]
        missing = (wanted - known[:, 0]) * importance
        normal = older.T @ older + ridge * (importance**2).sum() * np.eye(older.shape[1])
        fitted = np.linalg.solve(normal, older.T @ missing)
        weights.append(np.concatenate([[1.0 - fitted.sum()], fitted]))
        path = shrink * path + gain * (known @ weights[-1])
    return weights


def multistep_weights(alphas: np.ndarray, sigmas: np.ndarray, max_stale: int) -> list[np.ndarray]:
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


def newest_only(alphas: np.ndarray, sigmas: np.ndarray, max_stale: int) -> list[np.ndarray]:
    """DDIM's: nothing stale."""
    return [np.ones(1)] * (len(alphas) - 1)


STALE_WEIGHTS = {"gaussian": gaussian_weights, "multistep": multistep_weights, "none": newest_only}
"""Weightings of stale outputs by name: (alphas, sigmas, most stale ones) -> weights of each step, newest first."""
