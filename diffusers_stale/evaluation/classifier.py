"""A small network that tells the attributes of a barnyard movie from its middle view.

It knows pixels and the values of `data.scenes.ATTRIBUTE_VALUES`; how it is trained is in `classifier_training`.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from diffusers_stale.axes import check_light_field, middle_index
from diffusers_stale.data.scenes import ATTRIBUTE_VALUES


IMAGE_SIZE = 64
"""Pixels; larger and smaller pictures are resized."""

SHIPPED_WEIGHTS = Path(__file__).with_name("attribute_classifier.safetensors")
"""Made by `scripts/train_classifier.py`; the metadata says how, and how good they are."""

FILE_MODE = 0o644
"""safetensors writes files that only their owner can read."""

CHANNELS = (24, 48, 96, 128)
FEATURES = 128


class AttributeClassifier(nn.Module):
    """Every frame beside its change to the next one goes through one small 2D network; frames are averaged.

    So it takes clips of any length. Of a single frame it sees no motion and tells actions by posture only.
    """

    def __init__(self) -> None:
        super().__init__()
        first, second, third, last = CHANNELS
        self.frame_network = nn.Sequential(
            convolution(6, first, stride=2),
            convolution(first, second, stride=2),
            convolution(second, second),
            convolution(second, third, stride=2),
            convolution(third, third),
            convolution(third, last, stride=2),
            convolution(last, last),
        )
        self.hidden = nn.Linear(2 * last, FEATURES)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(FEATURES, len(ATTRIBUTE_VALUES[name])) for name in ATTRIBUTE_VALUES}
        )

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        """`(batch, 128)` of `clips`: `(batch, 3, frames, height, width)` in [-1, 1]."""
        batch, _, frames = clips.shape[:3]
        pairs = torch.cat([clips, changes(clips)], dim=1).transpose(1, 2).flatten(0, 1)
        maps = self.frame_network(pairs)
        pooled = torch.cat([maps.mean(dim=(-2, -1)), maps.amax(dim=(-2, -1))], dim=1)
        return functional.relu(self.hidden(pooled.reshape(batch, frames, -1).mean(dim=1)))

    def forward(self, clips: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits `(batch, values)` by attribute of `clips`: `(batch, 3, frames, height, width)` in [-1, 1]."""
        features = self.features(clips)
        return {name: head(features) for name, head in self.heads.items()}


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """What the networks of this room are made of: 3x3, normalised over batches, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def changes(clips: torch.Tensor) -> torch.Tensor:
    """What the next frame adds to each frame, `(batch, 3, frames, height, width)`; the last repeats the one before."""
    if clips.shape[2] == 1:
        return torch.zeros_like(clips)
    steps = clips[:, :, 1:] - clips[:, :, :-1]
    return torch.cat([steps, steps[:, :, -1:]], dim=2)


def middle_clips(light_field: torch.Tensor) -> torch.Tensor:
    """The middle view of a light field as `(batch, channels, frames, height, width)`."""
    rows, cols = check_light_field(light_field).shape[2:4]
    return light_field[:, :, middle_index(rows), middle_index(cols)]


@torch.no_grad()
def attribute_probabilities(
    classifier: AttributeClassifier, light_field: torch.Tensor
) -> list[dict[str, dict[str, float]]]:
    """Of each movie, the probability of every value of every attribute.

    Args:
        classifier: in evaluation mode.
        light_field: `(batch, 3, view_rows, view_cols, frames, height, width)` in [-1, 1], of any size.

    Returns:
        One dict a movie, with the keys of `ATTRIBUTE_VALUES`, each a dict with their values as keys.
    """
    logits = classifier(resize_clips(middle_clips(light_field).float()))
    shares = {name: values.softmax(dim=1).tolist() for name, values in logits.items()}
    return [
        {name: dict(zip(ATTRIBUTE_VALUES[name], shares[name][movie], strict=True)) for name in ATTRIBUTE_VALUES}
        for movie in range(len(light_field))
    ]


def predict_attributes(classifier: AttributeClassifier, light_field: torch.Tensor) -> list[dict[str, str]]:
    """The most probable value of every attribute, for each movie; arguments as of `attribute_probabilities`."""
    return most_probable(attribute_probabilities(classifier, light_field))


def most_probable(probabilities: list[dict[str, dict[str, float]]]) -> list[dict[str, str]]:
    """The value of the largest probability, by attribute, for each movie."""
    return [{name: max(shares, key=shares.get) for name, shares in movie.items()} for movie in probabilities]


def resize_clips(clips: torch.Tensor, size: int = IMAGE_SIZE) -> torch.Tensor:
    """Clips `(batch, channels, frames, height, width)` at `size` x `size` pixels."""
    if clips.shape[-2:] == (size, size):
        return clips
    frames = clips.transpose(1, 2).flatten(0, 1)
    resized = functional.interpolate(frames, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.unflatten(0, (clips.shape[0], clips.shape[2])).transpose(1, 2)


def save_classifier(classifier: AttributeClassifier, path: Path, notes: dict[str, object]) -> None:
    """Writes float16 weights and, as metadata, the attributes' values and `notes` (each as JSON)."""
    save_weights(classifier, path, {"attribute_values": ATTRIBUTE_VALUES} | notes)


def save_weights(network: nn.Module, path: Path, notes: dict[str, object]) -> None:
    """Writes float16 weights of a `network` with `notes` (each as JSON) as metadata."""
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    metadata = {name: json.dumps(note) for name, note in notes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    save_file(tensors, temporary, metadata=metadata)
    temporary.chmod(FILE_MODE)
    temporary.rename(path)


def load_classifier(path: Path = SHIPPED_WEIGHTS) -> AttributeClassifier:
    """The classifier of `path` in float32 and evaluation mode.

    Raises:
        ValueError: if the weights were trained for other attributes than `ATTRIBUTE_VALUES` has.
        FileNotFoundError: if there is no such file.
    """
    values = {name: list(known) for name, known in ATTRIBUTE_VALUES.items()}
    classifier = AttributeClassifier()
    told = "be a classifier of the attributes"
    load_weights(classifier, path, "attribute_values", values, told, "scripts/train_classifier.py")
    return classifier.eval()


def classifier_notes(path: Path = SHIPPED_WEIGHTS) -> dict[str, object]:
    """What `save_classifier` was told: the command, the seed, the accuracies on held-out clips."""
    with safe_open(path, framework="pt") as file:
        return {name: json.loads(note) for name, note in (file.metadata() or {}).items()}


def load_weights(network: nn.Module, path: Path, note: str, value: object, told: str, script: str) -> None:
    """Gives `network` the weights of `path`, in float32, which must have been saved with the `note` of this `value`.

    Raises `ValueError` where they were saved with another one, saying that they must `told` the value, and
    `FileNotFoundError` where there are none; both say that `script` makes them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected weights in {path}; make them with {script}.")
    with safe_open(path, framework="pt") as file:
        found = json.loads((file.metadata() or {}).get(note, "null"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if found != value:
        raise ValueError(f"{path} must {told} {value}, got {found}; make it anew with {script}.")
    network.load_state_dict(
        {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}
    )
