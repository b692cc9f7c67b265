"""Trains the network that tells layers apart, on rendered frames softened and soiled as generated pictures are."""

import time
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional
from tqdm import tqdm

from diffusers_stale.data.renderer import RenderedClip, render_scene
from diffusers_stale.data.scenes import Scene, random_generator, sample_scene
from diffusers_stale.evaluation.classifier import IMAGE_SIZE
from diffusers_stale.evaluation.classifier_training import ClassifierTraining, distort
from diffusers_stale.evaluation.layers import LAYERS, LayerFinder, find_layers, layer
from diffusers_stale.precision import fast_autocast


BACKGROUND_DEPTH = 0.3
"""Disparity above the farthest one, in units, up to which a pixel is background: the near hills have 0.16."""

FENCE_BASE = 63.0
"""Row that the fence stands on."""

TOLERANCE = 0.02
"""Units of disparity by which a barn and a fence are told from the ground around them."""


@dataclass(frozen=True, kw_only=True)
class LayerTraining:
    """What a training run needs. Its scenes are of `seed`, those that it is tested on of `held_out_seed`."""

    seed: int = 3_600_017
    held_out_seed: int = 3_700_017
    scenes: int = 4000
    held_out_scenes: int = 200
    steps: int = 500
    batch: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.01


def true_layers(scene: Scene, clip: RenderedClip) -> torch.Tensor:
    """Index in `LAYERS` of every pixel of a clip of `scene` rendered at 64 px and baseline 1, in all its views."""
    disparity = clip.disparity
    layers = torch.full(disparity.shape, layer("ground"))
    layers[disparity < scene.far_disparity + BACKGROUND_DEPTH] = layer("background")
    rows = torch.arange(disparity.shape[-2])[:, None]
    if scene.barn is not None:
        # The ground has the barn's disparity in the row where the barn ends.
        near = (disparity - scene.ground_disparity(scene.barn.base)).abs() < TOLERANCE
        layers[near & (rows < scene.barn.base - 0.5)] = layer("barn")
    if scene.fence:
        layers[(disparity - scene.ground_disparity(FENCE_BASE)).abs() < TOLERANCE] = layer("fence")
    layers[clip.foreground] = layer("animal")
    return layers


def render_labelled_frames(seed: int, count: int, title: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures `(count, 3, 64, 64)`, uint8, and their layers `(count, 64, 64)`, uint8, of the scenes of `seed`."""
    pictures, labels = [], []
    for index in tqdm(range(count), title, disable=title is None, mininterval=5):
        scene = sample_scene(seed, index)
        moment = float(random_generator(seed, index, 5).uniform(-0.5, 0.5))
        clip = render_scene(scene, 1, 1, 1, IMAGE_SIZE, IMAGE_SIZE, start_seconds=moment)
        pictures.append(((clip.pixels[:, 0, 0, 0] + 1) * 127.5).round().to(torch.uint8))
        labels.append(true_layers(scene, clip)[0, 0, 0].to(torch.uint8))
    return torch.stack(pictures), torch.stack(labels)


def train_layer_finder(config: LayerTraining) -> tuple[LayerFinder, dict[str, object]]:
    """A trained network in evaluation mode, and the notes that go with it (settings, seconds, overlaps)."""
    torch.manual_seed(config.seed)
    start = time.process_time()
    pictures, labels = render_labelled_frames(config.seed, config.scenes, "rendering")
    finder = LayerFinder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(finder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, config.steps, pct_start=0.1)
    draw, generator = random_generator(config.seed, 1), torch.Generator().manual_seed(config.seed)
    progress = tqdm(range(config.steps), "training", mininterval=10)
    for _ in progress:
        chosen = torch.from_numpy(draw.integers(len(pictures), size=config.batch))
        inputs, truth = pictures[chosen].float() / 127.5 - 1, labels[chosen].long()
        if draw.random() < 0.5:
            inputs, truth = inputs.flip(-1), truth.flip(-1)
        inputs = distort(inputs[:, :, None], STILL, generator)[:, :, 0]
        with fast_autocast("cpu"):
            logits = finder(inputs.to(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    finder.eval()
    notes = {"training": asdict(config), "core_seconds": round(time.process_time() - start)}
    held_out = render_labelled_frames(config.held_out_seed, config.held_out_scenes)
    return finder, notes | {"held_out_overlap": overlaps(finder, *held_out)}


STILL = ClassifierTraining(max_shift=0)
"""Distortions as of the classifier, but for the shift, which would part pictures from their labels."""


def overlaps(finder: LayerFinder, pictures: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Intersection over union of what is found and what is there, by layer, over all `pictures` (uint8)."""
    found, truth = find_layers(finder, pictures.float() / 127.5 - 1), labels.long()
    shares = {}
    for index, name in enumerate(LAYERS):
        both, either = (found == index) & (truth == index), (found == index) | (truth == index)
        shares[name] = round(int(both.sum()) / max(int(either.sum()), 1), 4)
    return shares
