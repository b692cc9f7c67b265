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
        quadratic = np.einsum("i,nij,j->n", factors, products[which], factors)
        return np.maximum(squares[which] - 2.0 * towards[which] @ factors + quadratic, 0.0)

    def solve(which: np.ndarray, ridge: float) -> np.ndarray:
        counts = np.full(len(which), 1.0 / len(which))
        for _ in range(REWEIGHTINGS):
            normal = np.einsum("n,nij->ij", counts, products[which]) + ridge * level * np.eye(products.shape[1])
            factors = np.linalg.solve(normal, counts @ towards[which])
            distances = np.sqrt(missed(factors, which))
            counts = 1.0 / np.maximum(distances, 0.5 * np.median(distances) + 1e-12)
            counts = counts / counts.sum()
        return factors

    def foretold(ridge: float) -> float:
        folds = [number[fold::FOLDS] for fold in range(FOLDS)]
        return sum(missed(solve(np.setdiff1d(number, fold), ridge), fold).sum() for fold in folds if len(fold))

    scores = [foretold(ridge) for ridge in RIDGES]
    best = int(np.argmin(scores))
    return solve(number, RIDGES[best]) if scores[best] < squares.sum() else np.zeros(len(combined))
