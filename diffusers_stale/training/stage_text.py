"""Stage 2: the text encoder, taught to tell the attributes that a caption states, so that it means something at once.

The heads that read the attributes are thrown away afterwards; the encoder learns on with the UNet.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel

from diffusers_stale.data.captions import caption_of, describe
from diffusers_stale.data.scenes import ATTRIBUTE_VALUES, random_generator, sample_scene, scene_attributes
from diffusers_stale.text_encoding import tokenize
from diffusers_stale.training.clip_data import captions_of
from diffusers_stale.training.components import build_text_encoder
from diffusers_stale.training.config import TextConfig
from diffusers_stale.training.samples import Shown
from diffusers_stale.training.vocabulary import build_tokenizer, save_tokenizer


TEXT_STREAM = 21
IGNORED = -100
"""Label of an attribute that the caption does not state."""

HELD_OUT = 512
POOLINGS = 2
"""Each attribute is read from the pooled state and from the mean of all states."""


class AttributeReader(nn.Module):
    """The text encoder with linear heads, and their cross entropy on the attributes that captions state."""

    def __init__(self, text_encoder: CLIPTextModel):
        super().__init__()
        self.text_encoder = text_encoder
        width = text_encoder.config.hidden_size
        sizes = {name: len(values) for name, values in ATTRIBUTE_VALUES.items()}
        self.heads = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()}) for _ in range(POOLINGS)
        )

    def logits(self, input_ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        output = self.text_encoder(input_ids)
        states = (output.pooler_output, output.last_hidden_state.mean(dim=1))
        return [
            {name: head(state).float() for name, head in heads.items()}
            for heads, state in zip(self.heads, states, strict=True)
        ]

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = [
            functional.cross_entropy(logits[name], labels[:, index], ignore_index=IGNORED)
            for logits in self.logits(input_ids)
            for index, name in enumerate(ATTRIBUTE_VALUES)
            # Of an empty selection the mean would be no number.
            if bool((labels[:, index] != IGNORED).any())
        ]
        return torch.stack(losses).mean()


class TextTask:
    """Captions of random scenes; accuracy on stated attributes of scenes of another seed."""

    def __init__(self, config: TextConfig, device: torch.device):
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.tokenizer = build_tokenizer(corpus(config), config.max_tokens)
        self.text_encoder = build_text_encoder(config, self.tokenizer)
        self.module = AttributeReader(self.text_encoder)

    def fingerprints(self) -> dict[str, str]:
        """Of the captions that the vocabulary comes from: scenes and wordings of the run are drawn alike."""
        return {"corpus": hashlib.sha256("\n".join(corpus(self.config)).encode()).hexdigest()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.module.parameters()), "lr": 1.0}]

    def labelled(self, seed: int, indices: list[int], wording: int) -> dict[str, torch.Tensor]:
        """Token ids of a caption of each scene, and its stated attributes as numbers."""
        captions, labels = [], []
        for index in indices:
            scene = sample_scene(seed, index)
            caption = describe(scene, seed, wording * self.config.scenes + index)
            values = scene_attributes(scene)
            captions.append(caption.text)
            labels.append(
                [
                    options.index(values[name]) if name in caption.stated else IGNORED
                    for name, options in ATTRIBUTE_VALUES.items()
                ]
            )
        ids = tokenize(self.tokenizer, captions).to(self.device)
        return {"input_ids": ids, "labels": torch.tensor(labels, device=self.device)}

    def batch(self, step: int, rank: int, fraction: float) -> dict[str, torch.Tensor]:
        draw = random_generator(self.config.seed, step, rank, TEXT_STREAM)
        indices = draw.integers(self.config.scenes, size=self.config.batch_size).tolist()
        return self.labelled(self.config.seed, indices, step)

    def batch_images(self, batch: dict[str, torch.Tensor]) -> int:
        return len(batch["input_ids"])

    def batch_tokens(self, batch: dict[str, torch.Tensor]) -> int:
        """Tokens of text, padding included."""
        return batch["input_ids"].numel()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Share of stated attributes that are read rightly from the pooled state."""
        count = min(HELD_OUT, 4 * self.config.batch_size)
        held_out = self.labelled(self.config.held_out_seed, list(range(count)), 0)
        read = self.module.logits(held_out["input_ids"])[0]
        right = {}
        for index, name in enumerate(ATTRIBUTE_VALUES):
            labels = held_out["labels"][:, index]
            stated = labels != IGNORED
            hits = read[name].argmax(dim=1)[stated] == labels[stated]
            right[f"accuracy_{name}"] = float(hits.float().mean()) if len(hits) else float("nan")
        return right

    def sample(self) -> Shown:
        """There is nothing to be seen of a text encoder: a few captions with their tokens instead."""
        lines = [caption_of(sample_scene(self.config.seed, index), self.config.seed, index) for index in range(8)]
        return Shown(text="".join(f"{line} | {' '.join(self.tokenizer.tokenize(line))}\n" for line in lines))

    def report(self) -> dict[str, Any]:
        return {}

    def export(self, folder: Path) -> None:
        self.text_encoder.save_pretrained(folder / "text_encoder")
        save_tokenizer(self.tokenizer, folder / "tokenizer")


def corpus(config: TextConfig) -> list[str]:
    """Captions to take the vocabulary from; they are the same for every seed of a run."""
    rendered = [caption_of(sample_scene(0, index), 0, index) for index in range(config.tokenizer_captions)]
    return rendered + captions_of(config.data)
