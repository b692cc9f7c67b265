"""The fit of a calibration: factors of tensors that make a wanted one, by ridge regression that no outlier rules."""

import numpy as np
import torch


RIDGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8)
"""Of the fit of weights, relative to the mean square of what is combined; noise left out in turn chooses."""

FOLDS = 4
REWEIGHTINGS = 3
"""Rounds of the robust fit, in which noises count by the inverse of what they miss."""


def robust_fit(combined: list[torch.Tensor], wanted: torch.Tensor) -> np.ndarray:
    """Factors of `combined` (each `(noises, ...)`) that make `wanted`, or zeros where nothing is foreseen.

    Ridge regression in which noises count by the inverse of what they miss; the ridge is the one that foretells noises
    left out best. All from each noise's products, so that samples are read once.
    """
    stacked = torch.stack([part.flatten(1) for part in combined], dim=1).double()
    target = wanted.flatten(1).double()
    products = (stacked @ stacked.transpose(1, 2)).cpu().numpy() / target.shape[1]
    towards = (stacked @ target[:, :, None])[:, :, 0].cpu().numpy() / target.shape[1]
    squares = target.square().mean(dim=1).cpu().numpy()
    level = np.trace(products.mean(axis=0)) / products.shape[1]
    number = np.arange(len(squares))

    def missed(factors: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Squared distances of the noises `which` for each row of `factors`, `(rows, noises)`."""
        quadratic = (products[which] @ factors.T * factors.T).sum(axis=1).T
        return np.maximum(squares[which] - 2.0 * factors @ towards[which].T + quadratic, 0.0)

    def solve(which: np.ndarray, ridges: np.ndarray) -> np.ndarray:
        """Factors for each of `ridges`, fitted on the noises `which`."""
        counts = np.full((len(ridges), len(which)), 1.0 / len(which))
        penalty = ridges[:, None, None] * level * np.eye(products.shape[1])
        for _ in range(REWEIGHTINGS):
            normal = np.tensordot(counts, products[which], axes=1) + penalty
            factors = np.linalg.solve(normal, (counts @ towards[which])[..., None])[..., 0]
            distances = np.sqrt(missed(factors, which))
            counts = 1.0 / np.maximum(distances, 0.5 * np.median(distances, axis=1, keepdims=True) + 1e-12)
            counts = counts / counts.sum(axis=1, keepdims=True)
        return factors

    ridges, scores = np.array(RIDGES), np.zeros(len(RIDGES))
    for fold in (number[first::FOLDS] for first in range(FOLDS)):
        if len(fold):
            scores += missed(solve(np.setdiff1d(number, fold), ridges), fold).sum(axis=1)
    best = int(np.argmin(scores))
    return solve(number, ridges[best:][:1])[0] if scores[best] < squares.sum() else np.zeros(len(combined))
