"""Builds a `CLIPTokenizer` whose words are those of a corpus: each one token; all other text falls back to bytes."""

import json
from pathlib import Path

from tokenizers import pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer


START, END = "<|startoftext|>", "<|endoftext|>"
CRYING_JOY = "\N{FACE WITH TEARS OF JOY}"
"""A token of CLIP's vocabulary that the paper's losses use."""

WORD_END = "</w>"
NO_LIMIT = 1_000_000
"""Merges are learned until there are none left."""

EVERYDAY_WORDS = (
    "a an the and of on in at by to with without no not from into over under near behind before "
    "photo picture painting movie video animal animals farm barnyard grass sky sun moon stars hill hills cloud clouds "
    "big small little old dark bright green orange purple is are it its there scene landscape , . ! ?"
)
"""Words that people will write though no caption has them."""


def build_tokenizer(captions: list[str], max_tokens: int) -> CLIPTokenizer:
    """A tokenizer for which every word of `captions`, and the emoji of tears of joy, is one token.

    Text is padded with the end token, as in CLIP, to `max_tokens`. Byte-pair merges are learned until every word is
    whole; the 256 bytes, each inside and at the end of a word, come first, so that any text can be told.
    """
    learner = CLIPTokenizer(merges=[]).backend_tokenizer
    learner.model = BPE(end_of_word_suffix=WORD_END)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=NO_LIMIT,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator([*captions, EVERYDAY_WORDS, CRYING_JOY], trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(byte + WORD_END for byte in alphabet), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_tokens)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Saves `tokenizer` in the form of today's transformers and, beside it, in CLIP's own (vocab.json, merges.txt)."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
