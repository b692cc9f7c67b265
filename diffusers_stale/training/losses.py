"""Losses: elementwise errors for denoising, by name, and the autoencoder's reconstruction error."""

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional


MarginKind = Literal["relative", "absolute"]

HUBER_WIDTH = 0.1
"""Error beyond which the Huber loss grows linearly, in standard deviations of the target."""


def mean_squared(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared error of every element."""
    return (prediction - target).square()


def huber(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared error, beyond `HUBER_WIDTH` growing linearly; scaled to be the absolute error far away."""
    return functional.huber_loss(prediction, target, reduction="none", delta=HUBER_WIDTH) / HUBER_WIDTH


def sample_errors(
    prediction: torch.Tensor,
    target: torch.Tensor,
    kind: str = "mse",
    pixel_weights: torch.Tensor | None = None,
    deviation_weight: float = 1.0,
) -> torch.Tensor:
    """Weighted mean error of what a network predicts for each sample, in float32, shape `(batch,)`.

    Args:
        prediction, target: shape `(batch, channels, ..., height, width)`.
        kind: a name in `LOSSES`.
        pixel_weights: `(batch, 1, ..., height, width)`; not normalised here.
        deviation_weight: of what `with_deviation_weight` calls deviation, for 7-dimensional samples.
    """
    prediction, target = prediction.float(), target.float()
    if deviation_weight != 1:
        prediction, target = (with_deviation_weight(part, deviation_weight) for part in (prediction, target))
    error = LOSSES[kind](prediction, target)
    weighted = error if pixel_weights is None else error * pixel_weights
    return weighted.flatten(1).mean(dim=1)


def with_deviation_weight(movies: torch.Tensor, weight: float) -> torch.Tensor:
    """`movies`, with what tells their views and frames apart made to weigh `weight` times in a squared error.

    What all views and frames of a movie have in common (their mean) and how each deviates from it are orthogonal, so
    the square of an error is the sum of two. Most of an early error is of the first kind (what is in the picture?);
    parallax and motion are of the second, a few hundredths of it, and are learnt late unless they weigh more. The best
    prediction is the same for any weight. Scaled so that an error that is independent everywhere keeps its size.

    Args:
        movies: shape `(batch, channels, view_rows, view_cols, frames, height, width)`.
        weight: above 0; 1 changes nothing.
    """
    pictures = movies.shape[2] * movies.shape[3] * movies.shape[4]
    common = movies.mean(dim=(2, 3, 4), keepdim=True)
    scale = (1 + (weight - 1) * (pictures - 1) / pictures) ** -0.5
    return scale * (common + weight**0.5 * (movies - common))


def cr_hinge(
    true_errors: torch.Tensor, wrong_errors: torch.Tensor, margin: float, kind: MarginKind = "relative"
) -> torch.Tensor:
    """How far the true caption falls short of denoising better than a wrong one, by `margin`.

    max(0, margin + d(c) - d(j)), the hinge of the Stale Diffusion paper (arXiv 2404.01079, section 3), with d the
    denoising error under the same noise, so that all that the two captions share cancels. Shape `(batch,)`.

    Args:
        true_errors, wrong_errors: d(c) and d(j), each `(batch,)`.
        margin: in units of the error (`absolute`), or as a share of d(c) (`relative`).
        kind: of margin.
    """
    return functional.relu(_margins(true_errors, margin, kind) + true_errors - wrong_errors)


def logistic_contrast(
    true_errors: torch.Tensor, wrong_errors: torch.Tensor, margin: float, kind: MarginKind = "relative"
) -> torch.Tensor:
    """The same without a hinge: m * log(1 + exp((d(c) - d(j)) / m)), with the margin m as a temperature.

    The loss of a choice between the two captions by their errors, as in InfoNCE with one negative (van den Oord et al.
    2018, arXiv 1807.03748, equation 4). It is above the hinge of margin 0 by at most m * log 2, and never quite rests.
    Arguments as for `cr_hinge`; the margin must be above 0.
    """
    # A temperature is no way to a lower loss.
    temperatures = _margins(true_errors.detach(), margin, kind)
    return temperatures * functional.softplus((true_errors - wrong_errors) / temperatures)


def _margins(true_errors: torch.Tensor, margin: float, kind: MarginKind) -> torch.Tensor:
    return margin * true_errors if kind == "relative" else torch.full_like(true_errors, margin)


def gradient_difference(error: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference between neighbouring pixels of `error` `(batch, channels, height, width)`.

    After Mathieu, Couprie and LeCun, "Deep multi-scale video prediction beyond mean square error" (2016), equation 6:
    it punishes blurred and displaced edges, here with the differences signed.
    """
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def reconstruction_loss(
    reconstruction: torch.Tensor,
    pixels: torch.Tensor,
    l1_weight: float,
    mse_weight: float,
    gradient_weight: float,
) -> torch.Tensor:
    """Error of a reconstructed image `(batch, 3, height, width)` in [-1, 1]; a weighted sum of three means."""
    error = reconstruction.float() - pixels
    loss = l1_weight * error.abs().mean() + mse_weight * error.square().mean()
    return loss + gradient_weight * gradient_difference(error) if gradient_weight else loss


def peak_signal_to_noise(reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """PSNR in decibels of each image, for values in [-1, 1]; shape `(batch,)`."""
    mean_square = ((reconstruction.float().clamp(-1, 1) - pixels) / 2).square().mean(dim=(1, 2, 3))
    return -10 * mean_square.clamp_min(1e-12).log10()


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"mse": mean_squared, "huber": huber}
"""Elementwise errors by name."""

CONTRASTS: dict[str, Callable[..., torch.Tensor]] = {"hinge": cr_hinge, "logistic": logistic_contrast}
"""How the errors of a true and of a wrong caption are set against each other, by name."""
