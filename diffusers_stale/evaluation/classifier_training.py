"""Trains the attribute classifier on rendered clips, softened and soiled as generated pictures are."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional
from tqdm import tqdm

from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import ATTRIBUTE_VALUES, DIRECTIONS, random_generator, sample_scene, scene_attributes
from diffusers_stale.evaluation.classifier import IMAGE_SIZE, AttributeClassifier
from diffusers_stale.precision import fast_autocast


WINDOWS = {1: 0.25, 2: 0.6, 4: 0.15}
"""Numbers of frames that it is trained on, and how often: more frames of a scene teach little more than two."""

LOSS_WEIGHTS = {"kind": 2.0, "direction": 2.0, "action": 2.0}
"""The hard ones; the others count once."""


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining:
    """What a training run needs. Its scenes are of `seed`, those that it is tested on of `held_out_seed`."""

    seed: int = 3_000_017
    held_out_seed: int = 3_500_017
    scenes: int = 6000
    held_out_scenes: int = 400
    frames: int = 8
    steps: int = 1400
    frames_a_step: int = 192
    clips_a_step: int = 96
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    max_shift: int = 3
    blur: float = 1.2
    noise: float = 0.06
    blobs: float = 0.08
    tint: float = 0.06


@dataclass(frozen=True)
class LabelledClips:
    """`pixels`: `(clips, 3, frames, height, width)`, uint8; `labels`: `(clips,)` indices by attribute."""

    pixels: torch.Tensor
    labels: dict[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.pixels)

    def clips(self, chosen: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """The chosen clips in [-1, 1]."""
        return self.pixels[chosen].float() / 127.5 - 1


def render_labelled_clips(seed: int, count: int, frames: int = 8, title: str | None = None) -> LabelledClips:
    """Clips of the scenes 0 to `count` of `seed`, from the middle view; `title` for a progress bar.

    Only middle views are classified. Other views are the same scene shifted layer by layer, by less than `distort`
    shifts it and at three times the cost.
    """
    pixels, labels = [], []
    for index in tqdm(range(count), title, disable=title is None, mininterval=5):
        scene = sample_scene(seed, index)
        clip = render_scene(scene, 1, 1, frames, IMAGE_SIZE, IMAGE_SIZE).pixels[:, 0, 0]
        pixels.append(((clip + 1) * 127.5).round().to(torch.uint8))
        labels.append(attribute_indices(scene_attributes(scene)))
    return LabelledClips(
        torch.stack(pixels), {name: torch.tensor([label[name] for label in labels]) for name in ATTRIBUTE_VALUES}
    )


def attribute_indices(attributes: dict[str, str]) -> dict[str, int]:
    """Where each value stands in `ATTRIBUTE_VALUES`."""
    return {name: ATTRIBUTE_VALUES[name].index(value) for name, value in attributes.items()}


def train_classifier(config: ClassifierTraining) -> tuple[AttributeClassifier, dict[str, object]]:
    """A trained classifier in evaluation mode, and the notes that go with it (settings, seconds, accuracies)."""
    torch.manual_seed(config.seed)
    start = time.process_time()
    data = render_labelled_clips(config.seed, config.scenes, config.frames, "rendering")
    classifier = AttributeClassifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, config.steps, pct_start=0.1)
    progress = tqdm(_batches(data, config), "training", total=config.steps, mininterval=10)
    for clips, labels in progress:
        with fast_autocast("cpu"):
            logits = classifier(clips)
        loss = attribute_loss({name: values.float() for name, values in logits.items()}, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    classifier.eval()
    seconds = round(time.process_time() - start)
    held_out = render_labelled_clips(config.held_out_seed, config.held_out_scenes, config.frames, "testing")
    accuracies = {
        "held_out_accuracy": measure_accuracy(classifier, held_out),
        "held_out_accuracy_soft": measure_accuracy(classifier, held_out, soften=1.0, grain=0.04),
        "held_out_accuracy_still": measure_accuracy(classifier, held_out, frames=1),
    }
    return classifier, {"training": asdict(config), "core_seconds": seconds} | accuracies


def attribute_loss(logits: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> torch.Tensor:
    """Weighted mean of the cross-entropies of all attributes."""
    terms = [LOSS_WEIGHTS.get(name, 1.0) * functional.cross_entropy(logits[name], labels[name]) for name in logits]
    return torch.stack(terms).sum() / sum(LOSS_WEIGHTS.get(name, 1.0) for name in logits)


@torch.no_grad()
def measure_accuracy(
    classifier: AttributeClassifier,
    data: LabelledClips,
    frames: int | None = None,
    soften: float = 0.0,
    grain: float = 0.0,
) -> dict[str, float]:
    """Share of clips that the classifier tells rightly, by attribute.

    Args:
        classifier: in evaluation mode.
        data: rendered clips.
        frames: how many frames of the middle of each clip it may see; by default all.
        soften: standard deviation in pixels of a blur that is put on the clips.
        grain: standard deviation of noise that is put on the clips (pixels are in [-1, 1]).
    """
    generator = torch.Generator().manual_seed(0)
    right = dict.fromkeys(ATTRIBUTE_VALUES, 0)
    length = frames or data.pixels.shape[2]
    first = (data.pixels.shape[2] - length) // 2
    for chosen in torch.arange(len(data)).split(32):
        clips = data.clips(chosen)[:, :, first : first + length]
        clips = blur(clips, soften) if soften else clips
        logits = classifier(clips + grain * torch.randn(clips.shape, generator=generator))
        for name, values in logits.items():
            right[name] += int((values.argmax(dim=1) == data.labels[name][chosen]).sum())
    return {name: round(count / len(data), 4) for name, count in right.items()}


def _batches(
    data: LabelledClips, config: ClassifierTraining
) -> Iterator[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """`config.steps` batches of distorted windows of clips, half of the clips mirrored."""
    draw = random_generator(config.seed, 1)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.steps):
        window = int(draw.choice(list(WINDOWS), p=list(WINDOWS.values())))
        count = min(config.clips_a_step, config.frames_a_step // window)
        chosen = torch.from_numpy(draw.integers(len(data), size=count))
        first = int(draw.integers(config.frames - window + 1))
        clips = data.clips(chosen)[:, :, first : first + window]
        labels = {name: values[chosen] for name, values in data.labels.items()}
        mirrored = torch.rand(count, generator=generator) < 0.5
        yield (
            distort(mirror(clips, mirrored), config, generator),
            labels | {"direction": _turn(labels["direction"], mirrored)},
        )


def mirror(clips: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Clips with left and right exchanged where `mirrored`, `(batch,)`, is true."""
    return torch.where(mirrored[:, None, None, None, None], clips.flip(-1), clips)


def _turn(directions: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    return torch.where(mirrored, len(DIRECTIONS) - 1 - directions, directions)


def distort(clips: torch.Tensor, config: ClassifierTraining, generator: torch.Generator) -> torch.Tensor:
    """Clips in [-1, 1] shifted by some pixels, tinted, blurred (two of three batches), under fine and coarse noise.

    Fine noise is new in every frame; coarse noise stands still for a clip, as what a decoder invents often does.
    """

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    batch, channels, frames, height, width = clips.shape
    shift = torch.randint(-config.max_shift, config.max_shift + 1, (2,), generator=generator).tolist()
    clips = _shifted(clips, *shift)
    gain = 1 + config.tint * (2 * uniform(batch, channels, 1, 1, 1) - 1)
    clips = clips * gain + config.tint * (2 * uniform(batch, channels, 1, 1, 1) - 1)
    if uniform(1).item() < 0.67:
        clips = blur(clips, 0.3 + (config.blur - 0.3) * uniform(1).item())
    coarse = functional.interpolate(normal(batch, channels, height // 4, width // 4), (height, width), mode="bilinear")
    clips = clips + config.blobs * uniform(batch, 1, 1, 1, 1) * coarse[:, :, None]
    return clips + config.noise * uniform(batch, 1, 1, 1, 1) * normal(batch, channels, frames, height, width)


def _shifted(clips: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Clips moved by whole pixels; edges are repeated."""
    rows = (torch.arange(clips.shape[-2]) - down).clamp(0, clips.shape[-2] - 1)
    cols = (torch.arange(clips.shape[-1]) - right).clamp(0, clips.shape[-1] - 1)
    return clips[..., rows[:, None], cols]


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """`images` (any leading axes, height, width) under a Gaussian of `sigma` pixels; edges are repeated."""
    reach = max(1, round(2.5 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = weights / weights.sum()
    for axis in (-2, -1):
        size = images.shape[axis]
        places = (torch.arange(-reach, size + reach)).clamp(0, size - 1)
        padded = images.index_select(axis, places)
        images = sum(weight * padded.narrow(axis, place, size) for place, weight in enumerate(weights.tolist()))
    return images
