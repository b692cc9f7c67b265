"""The way from a checkpoint's name, folder or Hub id to a pipeline that can be trusted to be the one that was saved.

What is checked is in `checkpoint_checks.py`; this file finds, fetches, loads and describes.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError

from diffusers_stale.checkpoint_checks import (
    INDEX,
    MODEL_CLASSES,
    PARTS,
    check_config,
    check_index,
    check_loaded,
    read_json,
    stored_values,
    weight_files,
)
from diffusers_stale.checkpoint_origin import EXPORTED, SHIPPED
from diffusers_stale.checkpoints import checkpoint_path
from diffusers_stale.denoising import NEGATIVE_CONDITIONS
from diffusers_stale.manifest import MANIFEST
from diffusers_stale.pipeline_checks import check_number
from diffusers_stale.pipeline_stale import StaleDiffusionPipeline
from diffusers_stale.pipeline_stale_xl import StaleDiffusionXLPipeline
from diffusers_stale.text_encoding import check_texts


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Dtypes that a pipeline can run in, by name."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FETCHED = [
    "README.md", MANIFEST, SHIPPED, EXPORTED,
    *(f"{part}/*.{suffix}" for part in PARTS for suffix in ("json", "safetensors", "txt")),
]  # fmt: skip
"""What is fetched from the Hub beside the index: no pickles, no code."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a checkpoint: its name, its class, how many values its weights have and how many bytes its files."""

    name: str
    class_name: str
    values: int
    bytes: int


def find_checkpoint(checkpoint: str | Path) -> Path:
    """The folder of `checkpoint`: a folder, the name of one that ships with the package, or a Hub id, `owner/name`.

    From the Hub the index comes first, and the rest only if it is of ours. Raises `ValueError` where there is none.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder
    name = str(checkpoint)
    if HUB_ID.fullmatch(name):
        return _fetch(name)
    try:
        return checkpoint_path(name)
    except ValueError as error:
        raise ValueError(f"There is no folder {name!r}, and nothing of that name ships either. {error}") from error


def _fetch(repo: str) -> Path:
    try:
        check_index(Path(hf_hub_download(repo, INDEX)))
        return Path(snapshot_download(repo, allow_patterns=[INDEX, *FETCHED]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"{repo!r} is no folder here, and could not be fetched from the Hub ({type(error).__name__}); check the "
            "spelling and the connection, or log in if it is private."
        ) from error


def choose_device(name: str = "auto") -> torch.device:
    """The device `name`; for "auto" a CUDA device, Apple's or the CPU. `ValueError` for one that is not there."""
    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`device` must be one of this machine's, got {name!r} ({reason}); try cpu.") from error
    return device


def load_pipeline(
    checkpoint: str | Path = "barnyard",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> StaleDiffusionPipeline:
    """The pipeline of `checkpoint`, after all that can be wrong with one has been looked for.

    Args:
        checkpoint: a folder, the name of one that ships with the package, or an `owner/name` of the Hub.
        dtype: of the weights.
        device: where to put them.

    Raises:
        ValueError: for a checkpoint of another kind, and for files that are missing, damaged or do not fit each other.
        FileNotFoundError: for a folder that is no checkpoint.
    """
    folder = find_checkpoint(checkpoint)
    classes = check_index(folder / INDEX)
    for part, part_class in classes.items():
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder / part} is missing: copy the whole checkpoint folder.")
        if issubclass(part_class, MODEL_CLASSES):
            check_config(folder / part, part_class)
    parts = {part: _load(folder / part, kind, dtype) for part, kind in classes.items()}
    if "text_encoder_2" in parts:
        zeros = bool(read_json(folder / INDEX).get("force_zeros_for_empty_prompt", True))
        pipeline = StaleDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros)
    else:
        pipeline = StaleDiffusionPipeline(
            **parts,
            default_negative_prompt=default_negative_prompt(folder),
            **negative_defaults(folder),
        )
    # Movies record where they come from: the checkpoint as it was called.
    pipeline.register_to_config(_name_or_path=str(checkpoint))
    return pipeline.to(device)


def default_negative_prompt(folder: Path) -> str:
    """What the checkpoint in `folder` has guidance lead away from by default; older ones say nothing, which is ""."""
    text = read_json(folder / INDEX).get("default_negative_prompt", "")
    return check_texts("default_negative_prompt", text)[0]


def negative_defaults(folder: Path) -> dict[str, float]:
    """What else the checkpoint in `folder` has guidance lead away from; older ones say nothing, which is 1."""
    index = read_json(folder / INDEX)
    names = [f"default_{name}" for name in NEGATIVE_CONDITIONS]
    return {name: check_number(name, index.get(name, 1.0)) for name in names}


def _load(folder: Path, part_class: type, dtype: torch.dtype) -> Any:
    if not issubclass(part_class, MODEL_CLASSES):
        return part_class.from_pretrained(folder)
    keyword = "torch_dtype" if issubclass(part_class, diffusers.ModelMixin) else "dtype"
    options = {keyword: dtype, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        model, loading_info = part_class.from_pretrained(folder, **options)
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} could not be loaded ({error}); copy the checkpoint again.") from error
    check_loaded(folder, model, loading_info)
    return model


def describe_checkpoint(folder: Path) -> list[Part]:
    """The parts of the checkpoint in `folder`, by its index and the headers of its files; nothing is loaded."""
    parts = []
    for name, part_class in check_index(folder / INDEX).items():
        is_model = issubclass(part_class, MODEL_CLASSES)
        values = stored_values(folder / name) if is_model else 0
        files = weight_files(folder / name) if is_model else list((folder / name).glob("*"))
        parts.append(
            Part(
                name=name,
                class_name=part_class.__name__,
                values=values,
                bytes=sum(path.stat().st_size for path in files),
            )
        )
    return parts
