"""Embeddings of captions that a frozen text encoder has made before, so that it need not make them again."""

from collections import OrderedDict

import torch
from transformers import CLIPTextModel

from diffusers_stale.text_encoding import encode_tokens


class TextCache:
    """Keeps up to `megabytes` of embeddings, those that were wanted last.

    Captions are encoded one by one: an embedding must not depend on what else was in its batch, or a resumed run,
    which begins with an empty cache, would differ in the last bits from an uninterrupted one.
    """

    def __init__(self, megabytes: float):
        self.room = int(megabytes * 2**20)
        self.kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self.bytes, self.hits, self.misses = 0, 0, 0

    @torch.no_grad()
    def encode(self, text_encoder: CLIPTextModel, input_ids: torch.Tensor) -> torch.Tensor:
        """As `encode_tokens`: `(batch, tokens)` to `(batch, tokens, channels)`."""
        rows = [self._row(text_encoder, ids, input_ids.device) for ids in input_ids.cpu()]
        return torch.stack(rows).to(input_ids.device)

    def _row(self, text_encoder: CLIPTextModel, ids: torch.Tensor, device: torch.device) -> torch.Tensor:
        key = ids.numpy().tobytes()
        if key in self.kept:
            self.hits += 1
            self.kept.move_to_end(key)
            return self.kept[key]
        self.misses += 1
        row = encode_tokens(text_encoder, ids[None].to(device))[0].cpu()
        self.kept[key] = row
        self.bytes += row.nbytes
        while self.bytes > self.room and len(self.kept) > 1:
            self.bytes -= self.kept.popitem(last=False)[1].nbytes
        return row
