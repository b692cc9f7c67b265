"""Denoising problems that can be solved exactly: what a scheduler makes of them is its own error and nobody else's.

Data is a mixture of Gaussians, so the perfect denoiser, the probability-flow path of every noise and true samples are
all known. Nothing here knows a scheduler: a problem speaks of noise levels (alpha, sigma), as `noise_levels` of
`StaleScheduler` does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene


REFERENCE_STEPS = 600
"""Of the fourth-order reference path; halving it moves endpoints by less than 1e-6 of the data's deviation."""

FIRST_ANGLE = 1e-3
"""Noise-to-signal ratio below which the clean prediction is taken for the end of the path."""


@dataclass(frozen=True, kw_only=True)
class ExactProblem:
    """A mixture of Gaussians, each with its own variance along each coordinate.

    `means`, `variances`: `(components, dimensions)`, float64; `weights`: `(components,)`, sum 1. With a `guidance`
    other than 1, the denoiser is guided towards the components that `condition`, `(components,)` of 0 or 1, selects;
    true samples are then unknown.
    """

    name: str
    means: torch.Tensor
    variances: torch.Tensor
    weights: torch.Tensor
    condition: torch.Tensor | None = None
    guidance: float = 1.0

    @property
    def dimensions(self) -> int:
        return self.means.shape[1]

    @property
    def deviation(self) -> float:
        """Root mean square over coordinates of the data's standard deviation."""
        mean = self.weights @ self.means
        second = self.weights @ (self.variances + self.means.square())
        return float((second - mean.square()).mean().sqrt())

    def clean(self, sample: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        """E[clean | sample], guided if the problem is; `sample` `(batch, dimensions)`, any floating dtype."""
        wide = sample.double()
        plain = self._posterior_mean(wide, alpha, sigma, self.weights)
        if self.condition is None:
            return plain.to(sample.dtype)
        chosen = self.weights * self.condition
        guided = self._posterior_mean(wide, alpha, sigma, chosen / chosen.sum())
        return (plain + self.guidance * (guided - plain)).to(sample.dtype)

    def _posterior_mean(self, sample: torch.Tensor, alpha: float, sigma: float, weights: torch.Tensor) -> torch.Tensor:
        spread = alpha**2 * self.variances + sigma**2
        # sum over coordinates of (sample - alpha * mean)^2 / spread, as matrix products: the batch is large.
        scaled_means = alpha * self.means / spread
        distances = (
            sample.square() @ (1.0 / spread).T
            - 2.0 * sample @ scaled_means.T
            + (scaled_means * alpha * self.means).sum(1)
        )
        log_weights = weights.log() - 0.5 * (distances + spread.log().sum(dim=1))
        responsibility = torch.softmax(log_weights, dim=1)
        gain = alpha * self.variances / spread
        # sum_i r_i (mean_i + gain_i * (sample - alpha * mean_i))
        return responsibility @ (self.means * (1.0 - alpha * gain)) + (responsibility @ gain) * sample

    def true_samples(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Samples of the data, `(count, dimensions)`, float64."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.dimensions, generator=generator, dtype=torch.float64)
        return self.means[chosen] + self.variances[chosen].sqrt() * noise

    def endpoint(self, noise: torch.Tensor, start_angle: float, steps: int = REFERENCE_STEPS) -> torch.Tensor:
        """Where the probability-flow path ends that stands at `noise` at the angle `start_angle`.

        In the angle (alpha, sigma) = (cos, sin) the flow is dx/dangle = cos * noise prediction - sin * clean
        prediction, smooth up to and at pure noise; classical Runge-Kutta on angles that are dense towards zero. Flow
        matching's path is the same one, scaled. Shape `(batch, dimensions)`, float64.
        """
        ratios = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
        angles = start_angle * (FIRST_ANGLE / start_angle) ** ratios
        sample = noise.double()
        for here, there in zip(angles[:-1].tolist(), angles[1:].tolist(), strict=True):
            step = there - here
            first = self._slope(sample, here)
            second = self._slope(sample + step / 2 * first, here + step / 2)
            third = self._slope(sample + step / 2 * second, here + step / 2)
            fourth = self._slope(sample + step * third, there)
            sample = sample + step / 6 * (first + 2 * second + 2 * third + fourth)
        return self.clean(sample, math.cos(FIRST_ANGLE), math.sin(FIRST_ANGLE))

    def _slope(self, sample: torch.Tensor, angle: float) -> torch.Tensor:
        alpha, sigma = math.cos(angle), math.sin(angle)
        clean = self.clean(sample, alpha, sigma)
        return alpha * (sample - alpha * clean) / sigma - sigma * clean


def _mixture(name: str, means: torch.Tensor, variances: torch.Tensor | float, **options: object) -> ExactProblem:
    spread = torch.as_tensor(variances, dtype=torch.float64).expand_as(means).clone()
    weights = torch.full((len(means),), 1.0 / len(means), dtype=torch.float64)
    return ExactProblem(name=name, means=means, variances=spread, weights=weights, **options)


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def ring(seed: int, points: int = 8, radius: float = 1.4, width: float = 0.05) -> ExactProblem:
    """Narrow blobs on a circle in the plane."""
    turn = float(torch.rand(1, generator=_random(seed)))
    angles = 2 * math.pi * (torch.arange(points, dtype=torch.float64) + turn) / points
    return _mixture("ring", radius * torch.stack([angles.cos(), angles.sin()], dim=1), width**2)


def anisotropic(seed: int, dimensions: int = 16, components: int = 5) -> ExactProblem:
    """Few blobs, each with another scale along each axis."""
    draw = _random(seed)
    scales = 10 ** (-1.5 + 1.7 * torch.rand(components, dimensions, generator=draw, dtype=torch.float64))
    return _mixture("anisotropic", 0.8 * _normal(components, dimensions, generator=draw), scales.square())


def separated(seed: int, dimensions: int = 32, components: int = 12) -> ExactProblem:
    """Blobs so far apart that each noise decides early for one of them."""
    return _mixture("separated", 1.5 * _normal(components, dimensions, generator=_random(seed)), 0.1**2)


def low_rank(seed: int, dimensions: int = 64, rank: int = 6) -> ExactProblem:
    """Blobs in a plane of few dimensions, almost flat across it."""
    draw = _random(seed)
    means = torch.zeros(6, dimensions, dtype=torch.float64)
    means[:, :rank] = 2.0 * _normal(6, rank, generator=draw)
    variances = torch.full((dimensions,), 0.02**2, dtype=torch.float64)
    variances[:rank] = 0.7**2
    return _mixture("low_rank", means, variances)


def power_law(seed: int, dimensions: int = 256, exponent: float = 1.0) -> ExactProblem:
    """Two Gaussians with the spectrum of natural pictures: variance falls with the frequency."""
    frequencies = torch.arange(1, dimensions + 1, dtype=torch.float64)
    variances = frequencies**-exponent
    variances = variances / variances.mean() * 0.5
    return _mixture("power_law", 0.5 * variances.sqrt() * _normal(2, dimensions, generator=_random(seed)), variances)


def curved(seed: int, points: int = 200, dimensions: int = 8) -> ExactProblem:
    """Blobs along a closed curve in a space of several dimensions: a curved manifold."""
    draw = _random(seed)
    times = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
    phases = 2 * math.pi * torch.rand(dimensions, generator=draw, dtype=torch.float64)
    turns = 1 + torch.arange(dimensions, dtype=torch.float64) % 3
    return _mixture("curved", 1.2 * torch.sin(times[:, None] * turns + phases), 0.06**2)


def guided(seed: int, dimensions: int = 16, guidance: float = 4.0) -> ExactProblem:
    """Guidance towards a third of the blobs of a mixture."""
    condition = torch.zeros(9, dtype=torch.float64)
    condition[:3] = 1.0
    means = 1.1 * _normal(9, dimensions, generator=_random(seed))
    return _mixture("guided", means, 0.3**2, condition=condition, guidance=guidance)


def patches(seed: int, size: int = 8, count: int = 256) -> ExactProblem:
    """Kernel density of patches of barnyard pictures."""
    draw = _random(seed)
    found = []
    for index in range(count // 16):
        picture = render_scene(sample_scene(seed, index), 1, 1, 1).pixels[:, 0, 0, 0].double().mean(dim=0)
        for row, col in torch.randint(64 - size, (16, 2), generator=draw).tolist():
            found.append(picture[row : row + size, col : col + size].flatten())
    return _mixture("patches", torch.stack(found), 0.08**2)


EXACT_PROBLEMS: dict[str, Callable[..., ExactProblem]] = {
    "ring": ring,
    "anisotropic": anisotropic,
    "separated": separated,
    "low_rank": low_rank,
    "power_law": power_law,
    "curved": curved,
    "guided": guided,
    "patches": patches,
}
"""How to make the problem of each kind from a seed (and other sizes than the usual)."""

SECOND_PROBLEMS: dict[str, Callable[..., ExactProblem]] = {
    "ring": partial(ring, points=5, radius=2.1, width=0.08),
    "anisotropic": partial(anisotropic, dimensions=48, components=9),
    "separated": partial(separated, dimensions=12, components=5),
    "low_rank": partial(low_rank, dimensions=24, rank=3),
    "power_law": partial(power_law, dimensions=128, exponent=1.5),
    "curved": partial(curved, points=300, dimensions=20),
    "guided": partial(guided, dimensions=32, guidance=7.0),
    "patches": partial(patches, size=12, count=128),
}
"""The same kinds in other sizes: for final figures only, no constant is ever chosen on them."""
