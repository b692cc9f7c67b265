"""A small network that tells which layer of a barnyard every pixel shows, so that layers can be measured apart.

Of a rendered scene the layers are known; of a generated picture they have to be seen. How it is trained is in
`layer_training`.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from diffusers_stale.evaluation.classifier import IMAGE_SIZE, convolution, load_weights, save_weights


LAYERS = ("background", "ground", "barn", "animal", "fence")
"""`background`: sky and hills, all that is farther than the ground's end."""

SHIPPED_LAYERS = Path(__file__).with_name("layer_finder.safetensors")
"""Made by `scripts/train_classifier.py --network layers`; the metadata says how, and how good it is."""

CHANNELS = (24, 48, 72)


class LayerFinder(nn.Module):
    """Three resolutions, each seen from the one below it; rows are told, since layers lie at typical heights."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter, eighth = CHANNELS
        self.at_half = nn.Sequential(convolution(4, half, stride=2), convolution(half, half))
        self.at_quarter = nn.Sequential(convolution(half, quarter, stride=2), convolution(quarter, quarter))
        self.at_eighth = nn.Sequential(
            convolution(quarter, eighth, stride=2), convolution(eighth, eighth), convolution(eighth, eighth)
        )
        self.up_quarter = convolution(eighth + quarter, quarter)
        self.up_half = convolution(quarter + half, half)
        self.full = nn.Sequential(convolution(half + 4, 16), nn.Conv2d(16, len(LAYERS), kernel_size=1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, layers, 64, 64)` of `pictures`: `(batch, 3, 64, 64)` in [-1, 1]."""
        rows = torch.linspace(-1, 1, pictures.shape[-2], device=pictures.device, dtype=pictures.dtype)
        rows = rows[None, None, :, None].expand(len(pictures), 1, -1, pictures.shape[-1])
        inputs = torch.cat([pictures, rows], dim=1)
        half = self.at_half(inputs)
        quarter = self.at_quarter(half)
        seen = self.up_quarter(torch.cat([_doubled(self.at_eighth(quarter)), quarter], dim=1))
        seen = self.up_half(torch.cat([_doubled(seen), half], dim=1))
        return self.full(torch.cat([_doubled(seen), inputs], dim=1))


def _doubled(maps: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)


@torch.no_grad()
def find_layers(finder: LayerFinder, pictures: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """Index in `LAYERS` of every pixel.

    Args:
        finder: in evaluation mode.
        pictures: `(..., 3, 64, 64)` in [-1, 1].
        batch: pictures at a time.

    Returns:
        `(..., 64, 64)`, int64.

    Raises:
        ValueError: for another size.
    """
    if pictures.shape[-3:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"`pictures` must be of shape (..., 3, {IMAGE_SIZE}, {IMAGE_SIZE}), got {tuple(pictures.shape)}; "
            "resize them with `classifier.resize_clips`."
        )
    flat = pictures.reshape(-1, *pictures.shape[-3:]).float()
    found = torch.cat([finder(part).argmax(dim=1) for part in flat.split(batch)])
    return found.reshape(*pictures.shape[:-3], *found.shape[-2:])


def layer(name: str) -> int:
    """The index of a layer."""
    return LAYERS.index(name)


def grown(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """The bool `mask` `(..., height, width)` and all that lies within `pixels` of it, in steps of king's moves."""
    flat = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    return functional.max_pool2d(flat, 2 * pixels + 1, stride=1, padding=pixels).bool().reshape(mask.shape)


def edges(layers: torch.Tensor, reach: int = 2) -> torch.Tensor:
    """True within `reach` pixels of where one layer ends and another begins; `(..., height, width)`."""
    change = torch.zeros_like(layers, dtype=torch.bool)
    across, down = layers[..., 1:] != layers[..., :-1], layers[..., 1:, :] != layers[..., :-1, :]
    change[..., 1:] |= across
    change[..., :-1] |= across
    change[..., 1:, :] |= down
    change[..., :-1, :] |= down
    return grown(change, reach - 1) if reach > 1 else change


def save_layer_finder(finder: LayerFinder, path: Path, notes: dict[str, object]) -> None:
    """Writes float16 weights and, as metadata, the layers' names and `notes` (each as JSON)."""
    save_weights(finder, path, {"layers": LAYERS} | notes)


def load_layer_finder(path: Path = SHIPPED_LAYERS) -> LayerFinder:
    """The network of `path` in float32 and evaluation mode.

    Raises:
        ValueError: if it was trained for other layers than `LAYERS`.
        FileNotFoundError: if there is no such file.
    """
    finder = LayerFinder()
    load_weights(
        finder, path, "layers", list(LAYERS), "tell the layers", "scripts/train_classifier.py --network layers"
    )
    return finder.eval()
