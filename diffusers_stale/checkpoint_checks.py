"""Checks of a checkpoint folder that diffusers and transformers leave out, before and after its parts are built.

Loaded without them, a missing key leaves a parameter without values, NaN and damaged weights pass silently, a huge
number in a configuration is built without question, and unknown keys are dropped with a warning. Every check raises
`ValueError` with the file, what was expected, and what to do. Nothing here downloads or converts.
"""

import inspect
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError, safe_open

import diffusers_stale


INDEX = "model_index.json"
LIBRARIES = {"diffusers": diffusers, "diffusers_stale": diffusers_stale, "transformers": transformers}
"""Where classes that an index names may come from; no other module is ever imported."""

MODEL_CLASSES = (diffusers.ModelMixin, transformers.PreTrainedModel)
PART_CLASSES = (*MODEL_CLASSES, diffusers.SchedulerMixin, transformers.PreTrainedTokenizerBase)
PARTS_OF_PIPELINES = {
    "StaleDiffusionPipeline": ("vae", "text_encoder", "tokenizer", "unet", "scheduler"),
    "StaleDiffusionXLPipeline": (
        "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler",
    ),
}  # fmt: skip
"""Parts of the checkpoints of each kind of pipeline that an index may name."""

PARTS = PARTS_OF_PIPELINES["StaleDiffusionXLPipeline"]
"""Every part that any of them has."""

FLOATS = {"F16", "BF16", "F32", "F64"}
"""Dtypes of weights, in the words of safetensors."""

MAX_NUMBER = 10**8
"""Of any number in a model's configuration; vocabularies have a few hundred thousand words."""

MAX_LAYERS = 256
"""Of every number whose key speaks of layers."""

MAX_WEIGHT = 1e4
"""Largest magnitude of a weight; sound ones stay below a few hundred, mislabelled or damaged ones do not."""

ALLOWANCE = 1.5
"""How many times the stored number of values a model may have; the exact comparison follows when it is loaded."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; `FileNotFoundError` or `ValueError` where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a checkpoint folder is what `save_pretrained` writes.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must hold JSON, but cannot be read ({error}); copy the checkpoint again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}; copy the checkpoint again.")
    return value


def check_index(path: Path) -> dict[str, type]:
    """The class of every part that the `model_index.json` at `path` names, if all are of ours or of the two libraries.

    Nothing but the index is read, so that it can be judged before anything large is fetched.
    """
    index = read_json(path)
    kind = index.get("_class_name")
    if kind not in PARTS_OF_PIPELINES:
        remedy = "load it with the pipeline that it names"
        if index.get("unet") == ["diffusers", "UNet2DConditionModel"]:
            remedy = "inflate a Stable Diffusion checkpoint with StaleDiffusionPipeline.from_stable_diffusion"
        raise ValueError(f"{path} must name a {' or '.join(PARTS_OF_PIPELINES)}, got {kind!r}; {remedy}.")
    parts = PARTS_OF_PIPELINES[kind]
    missing = [part for part in parts if part not in index]
    if missing:
        raise ValueError(f"{path} must name {', '.join(parts)}, got none for {', '.join(missing)}; save it again.")
    return {part: _part_class(path, part, index[part]) for part in parts}


def _part_class(path: Path, part: str, entry: Any) -> type:
    library, name = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
    found = getattr(LIBRARIES.get(str(library)), str(name), None)
    if not isinstance(found, type) or not issubclass(found, PART_CLASSES):
        raise ValueError(
            f"{path} must name a model, tokenizer or scheduler of {', '.join(LIBRARIES)} as {part!r}, got {entry!r}; "
            "no other code is run. Upgrade diffusers-stale if the checkpoint comes from a newer one."
        )
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in `folder`; pickled weights are refused."""
    for stem in ("diffusion_pytorch_model", "model"):
        index = folder / f"{stem}.safetensors.index.json"
        names = {f"{stem}.safetensors"}
        if index.is_file():
            names = {str(name) for name in read_json(index).get("weight_map", {}).values()}
        files = [folder / Path(name).name for name in sorted(names)]
        if files and all(file.is_file() for file in files):
            return files
    pickles = [path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in sorted(folder.glob(f"*.{suffix}"))]
    got = f"only {', '.join(pickles)}, which could run code when loaded" if pickles else "none, or not all of them"
    raise ValueError(f"{folder} must hold its weights as .safetensors files, got {got}; save them as safetensors.")


def stored_values(folder: Path) -> int:
    """How many values the weight files in `folder` hold, by their headers; refuses damaged and foreign ones."""
    return sum(_values_in(path) for path in weight_files(folder))


def _values_in(path: Path) -> int:
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (an open file is no dict)
            for name, part in parts.items():
                if part.get_dtype() not in FLOATS and name.rpartition(".")[2] != "position_ids":
                    raise ValueError(f"{path} must hold floats, got {part.get_dtype()} as {name!r}; save it again.")
            return sum(math.prod(part.get_shape()) for part in parts.values())
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or no safetensors file ({error}); copy it again.") from error


def check_config(folder: Path, model_class: type) -> None:
    """Refuses a `config.json` with unknown keys, with numbers beyond reason, or larger than the weights beside it."""
    path = folder / "config.json"
    config = read_json(path)
    if issubclass(model_class, diffusers.ModelMixin):
        known = inspect.signature(model_class.__init__).parameters
        unknown = [key for key in config if key not in known and not key.startswith("_")]
        if unknown:
            raise ValueError(
                f"{path} must hold arguments of {model_class.__name__} only, got {', '.join(map(repr, unknown))}; "
                "upgrade diffusers-stale if the checkpoint comes from a newer one."
            )
    for key, value in config.items():
        limit = MAX_LAYERS if "layers" in key else MAX_NUMBER
        for number in _numbers(value):
            if not abs(number) <= limit:
                raise ValueError(f"`{key}` in {path} must be at most {limit}, got {number}; restore the file.")
    stored, needed = stored_values(folder), _values_of(path, config, model_class)
    if needed > ALLOWANCE * stored:
        raise ValueError(
            f"{path} describes a network of {needed:,} values, but the files beside it hold {stored:,}; restore the "
            "configuration that belongs to the weights."
        )


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (list, tuple)):
        yield len(value)
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value


def _values_of(path: Path, config: dict[str, Any], model_class: type) -> int:
    """How many values the network that `config` describes has; it is built without memory for them."""
    try:
        with torch.device("meta"):
            if issubclass(model_class, transformers.PreTrainedModel):
                model = model_class(model_class.config_class.from_dict(config))
            else:
                model = model_class.from_config(config)
    except Exception as error:  # Whatever a constructor makes of nonsense is nonsense in the file.
        raise ValueError(
            f"{path} does not describe a {model_class.__name__} ({type(error).__name__}: {error}); restore the file."
        ) from error
    return sum(parameter.numel() for parameter in model.parameters())


def check_loaded(folder: Path, model: torch.nn.Module, loading_info: dict[str, Any]) -> None:
    """Refuses a model of which weights are missing, left over, of another shape, not finite or beyond reason."""
    for key, what in (
        ("missing_keys", "has no weights for"),
        ("unexpected_keys", "has weights that its configuration knows nothing of:"),
        ("mismatched_keys", "has weights of another shape than its configuration says:"),
    ):
        names = sorted(map(str, loading_info.get(key) or ()))
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ValueError(f"{folder} {what} {shown}; restore the files that were saved together.")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(f"{folder} left {name!r} without values; restore the files that were saved together.")
        largest = float(tensor.detach().abs().max()) if tensor.is_floating_point() else 0.0
        if not largest <= MAX_WEIGHT:
            raise ValueError(
                f"{folder} must hold finite weights of at most {MAX_WEIGHT:g}, got {largest} in {name!r} as "
                f"{tensor.dtype}; copy the checkpoint again, or load it in float32."
            )
