"""Mess-up regularization: corruptions of what a network is told and shown in training, while its target stays true.

Each has a rate (the share of samples that it befalls) and a strength, and is off by default. They draw from streams of
their own, so that switching one on changes no other random number of a run.
"""

from typing import Literal

import numpy as np
import torch

from diffusers_stale.axes import AXES
from diffusers_stale.data.captions import swapped


Distribution = Literal["gaussian", "uniform"]

SHUFFLED_AXES = {"view": ("view_rows", "view_cols"), "frame": ("frames",)}
"""The axes along which each kind of shuffle moves pictures."""


def befallen(count: int, rate: float, draw: np.random.Generator) -> np.ndarray:
    """Which of `count` samples a corruption of this `rate` befalls; bool `(count,)`."""
    return draw.random(count) < rate


def drop_captions(captions: list[str], rate: float, draw: np.random.Generator) -> list[str]:
    """Captions of which a share is empty, so that the network learns to do without.

    "Classifier-free diffusion guidance" (Ho and Salimans 2022, arXiv 2207.12598, algorithm 1).
    """
    return ["" if hit else caption for caption, hit in zip(captions, befallen(len(captions), rate, draw), strict=True)]


def swap_attributes(captions: list[str], rate: float, count: int, draw: np.random.Generator) -> list[str]:
    """Captions in a share of which `count` attributes have wrong values.

    "Slight corruption in pre-training data makes better diffusion models" (Chen et al. 2024, arXiv 2405.20494, section
    3): a few wrong conditions make generated pictures more diverse, and no worse.
    """
    hit = befallen(len(captions), rate, draw)
    return [swapped(caption, count, draw) if wrong else caption for caption, wrong in zip(captions, hit, strict=True)]


def embedding_noise(
    shape: tuple[int, int, int], rate: float, strength: float, kind: Distribution, draw: np.random.Generator
) -> torch.Tensor:
    """What is added to text embeddings `(batch, tokens, channels)`: noise of deviation strength / sqrt(channels).

    Conditional embedding perturbation of Chen et al. 2024 (arXiv 2405.20494, section 5). `uniform` noise reaches to
    strength / sqrt(channels) on both sides. Samples that it does not befall get zeros.
    """
    batch, _, channels = shape
    values = draw.standard_normal(shape) if kind == "gaussian" else draw.uniform(-1.0, 1.0, shape)
    values *= befallen(batch, rate, draw)[:, None, None] * (strength / channels**0.5)
    return torch.from_numpy(values.astype(np.float32))


def perturbed_noise(noise: torch.Tensor, rate: float, strength: float, draw: np.random.Generator) -> torch.Tensor:
    """The noise of the network's input, `noise` `(batch, ...)` with more noise of deviation `strength` on top.

    The target keeps `noise`. "Input perturbation reduces exposure bias in diffusion models" (Ning et al. 2023, arXiv
    2301.11706, algorithm 1; 0.1 is theirs): while sampling, inputs are never quite those of the forward process.
    """
    more = torch.from_numpy(draw.standard_normal(noise.shape, dtype=np.float32))
    hit = torch.from_numpy(befallen(len(noise), rate, draw)).reshape(-1, *[1] * (noise.ndim - 1))
    return noise + strength * hit * more


def shuffled(
    light_fields: torch.Tensor, kind: Literal["view", "frame"], rate: float, strength: float, draw: np.random.Generator
) -> torch.Tensor:
    """Light fields with views or frames in the wrong order, for the network's input; the target keeps the right one.

    The network must tell where a picture belongs from its camera and moment, and not obey the order in which it sees
    pictures. Order as a signal to learn from: "Shuffle and learn" (Misra, Zitnick and Hebert 2016, arXiv 1603.08561);
    here, as the paper of this package has it (arXiv 2404.01079), order is what is messed up.

    Args:
        light_fields: `(batch, channels, view_rows, view_cols, frames, height, width)`.
        kind: rows and columns of views are shuffled independently; or frames are.
        rate: share of the samples.
        strength: share of the places along an axis that are shuffled among each other, from 0 to 1.
    """
    result = light_fields.clone()
    for index in np.flatnonzero(befallen(len(light_fields), rate, draw)):
        for name in SHUFFLED_AXES[kind]:
            axis = AXES.index(name) - 1
            order = _partial_permutation(light_fields.shape[axis + 1], strength, draw)
            result[index] = result[index].index_select(axis, order)
    return result


def _partial_permutation(count: int, strength: float, draw: np.random.Generator) -> torch.Tensor:
    moved = draw.permutation(count)[: round(strength * count)]
    order = np.arange(count)
    order[np.sort(moved)] = moved
    return torch.from_numpy(order)
