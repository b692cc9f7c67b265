"""CLIP score, for checkpoints whose movies no barnyard classifier can judge. The user brings the CLIP.

J. Hessel et al. (2021), arXiv 2104.08718: cosine of the embeddings of sentence and picture, times 100.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional
from transformers import CLIPModel, CLIPProcessor

from diffusers_stale.evaluation.intervals import mean_interval


BATCH = 16


class ClipScore:
    """A CLIP of transformers, from a local folder.

    Args:
        folder: with model, tokenizer and image processor, as `save_pretrained` writes them.

    Raises:
        ValueError: if there is no such folder.
    """

    def __init__(self, folder: Path):
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"--clip must be a folder with a CLIP model and its processor, got {folder}; "
                "download one, such as openai/clip-vit-base-patch32, and name its folder."
            )
        self.model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
        self.processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], pictures: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit embeddings `(count, channels)` of texts and of pictures (`(3, height, width)`, uint8)."""
        words, images = [], []
        for first in range(0, len(texts), BATCH):
            chosen = slice(first, first + BATCH)
            inputs = self.processor(
                text=list(texts[chosen]),
                images=[picture.movedim(0, -1).numpy() for picture in pictures[chosen]],
                return_tensors="pt",
                padding=True,
                truncation=True,
            )
            outputs = self.model(**inputs)
            words.append(functional.normalize(outputs.text_embeds.float(), dim=1))
            images.append(functional.normalize(outputs.image_embeds.float(), dim=1))
        return torch.cat(words), torch.cat(images)

    def figures(
        self, texts: Sequence[str], generated: Sequence[torch.Tensor], rendered: Sequence[torch.Tensor]
    ) -> dict[str, dict[str, float]]:
        """Scores of generated and rendered pictures, and of the generated ones with the next movie's sentence."""
        words, images = self.embed(texts, generated)
        _, truth = self.embed(texts, rendered)
        return {
            "generated": mean_interval((100 * (words * images).sum(dim=1)).tolist()),
            "rendered": mean_interval((100 * (words * truth).sum(dim=1)).tolist()),
            "shuffled": mean_interval((100 * (words.roll(1, dims=0) * images).sum(dim=1)).tolist()),
        }
