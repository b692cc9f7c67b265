"""The one way from text to what the UNet is told: training and sampling both encode with these functions.

This file knows tokenizers and text encoders, no noise and no movie.
"""

import logging

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


logger = logging.getLogger(__name__)

FIRST_SURROGATE, LAST_SURROGATE = "\ud800", "\udfff"


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids of `captions`, padded and cut to the tokenizer's length; shape `(captions, tokens)`."""
    tokens = tokenizer(
        captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    return tokens.input_ids


def encode_tokens(text_encoder: CLIPTextModel, input_ids: torch.Tensor) -> torch.Tensor:
    """What the UNet is told about a text: the last hidden state `(batch, tokens, channels)`, padding not masked."""
    return text_encoder(input_ids).last_hidden_state


def encode_penultimate(
    text_encoder: CLIPTextModel | CLIPTextModelWithProjection, input_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What SDXL is told: the last hidden state but one, `(batch, tokens, channels)`, and the first output.

    That is the pooled text, `(batch, channels)`, of a `CLIPTextModelWithProjection`, and counts for such a one only.
    """
    output = text_encoder(input_ids, output_hidden_states=True)
    return output.hidden_states[-2], output[0]


def check_texts(name: str, texts: str | list[str]) -> list[str]:
    """`texts` as a list of at least one text that can be encoded.

    The empty text is allowed. Raises `ValueError` for anything that is no string, for an empty list, and for strings
    with NUL characters or lone surrogates, which stand for no text.
    """
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, (list, tuple)) or not listed:
        raise ValueError(
            f"`{name}` must be a string or a list of at least one string, got {describe(texts)}; the empty string "
            "asks for anything."
        )
    for index, text in enumerate(listed):
        where = f"`{name}`" if isinstance(texts, str) else f"`{name}[{index}]`"
        if not isinstance(text, str):
            raise ValueError(f"{where} must be a string, got {describe(text)}; write the sentence in quotes.")
        check_characters(where, text)
    return list(listed)


def check_characters(where: str, text: str) -> None:
    """Raises `ValueError` naming the first character of `text` that cannot be encoded."""
    for position, character in enumerate(text):
        if character == "\0":
            raise ValueError(
                f"{where} must not hold NUL characters, got one at position {position}; remove it (text from a binary "
                "file or in another encoding?)."
            )
        if FIRST_SURROGATE <= character <= LAST_SURROGATE:
            raise ValueError(
                f"{where} must be valid Unicode, got the lone surrogate U+{ord(character):04X} at position "
                f"{position}; decode the text as UTF-8 without `errors='surrogateescape'`, or remove the character."
            )


def cut_off_text(tokenizer: CLIPTokenizer, text: str) -> str:
    """The end of `text` for which `tokenizer` has no room; empty if all of it fits."""
    start_and_end = 2
    ids = tokenizer(text, verbose=False).input_ids[1:-1]
    return tokenizer.decode(ids[tokenizer.model_max_length - start_and_end :])


def warn_of_cuts(tokenizer: CLIPTokenizer, name: str, texts: list[str]) -> None:
    """Logs a warning quoting what is cut off, for each of `texts` that is longer than `tokenizer` holds."""
    for text in dict.fromkeys(texts):
        cut = cut_off_text(tokenizer, text)
        if cut:
            logger.warning(
                "`%s` is longer than the %d tokens that the text encoder holds; this end of it was cut off and has no "
                "effect: %r. Shorten the sentence.",
                name,
                tokenizer.model_max_length,
                cut,
            )


def describe(value: object) -> str:
    """`value` as an error message quotes it: with its type, and not at length."""
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"
