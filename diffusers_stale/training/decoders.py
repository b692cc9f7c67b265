"""Another decoder for a pipeline that was trained on the latents of the same encoder."""

import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from diffusers_stale.light_field.atomic import atomic_path
from diffusers_stale.manifest import MANIFEST, write_manifest
from diffusers_stale.training.components import WEIGHTS_NAME


ENCODER = ("encoder.", "quant_conv.")
"""Beginnings of the names of what makes latents."""

ROUNDING = 2e-3
"""Share of its size by which a weight may differ: one may have been kept in half precision."""


def exchange_decoder(pipeline: Path, autoencoder: Path) -> None:
    """Puts the autoencoder in the folder `autoencoder` into the pipeline in the folder `pipeline`, in its precision.

    The pipeline's own encoder stays, to the bit. Its manifest is written anew where it has one.

    Raises `FileNotFoundError` where one of the two is missing, and `ValueError` if their encoders differ: the
    pipeline's network knows the latents of its own only.
    """
    for folder in (pipeline / "vae", autoencoder):
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} must hold an autoencoder, and does not; name another folder.")
    precision = next(iter(load_file(pipeline / "vae" / WEIGHTS_NAME).values())).dtype
    own = AutoencoderKL.from_pretrained(pipeline / "vae", torch_dtype=torch.float32)
    new = AutoencoderKL.from_pretrained(autoencoder, torch_dtype=torch.float32)
    weights, others = own.state_dict(), new.state_dict()
    if weights.keys() != others.keys():
        raise ValueError(f"{autoencoder} must be of the shape of {pipeline / 'vae'}, got another; train its decoder.")
    for name, weight in weights.items():
        if not name.startswith(ENCODER):
            continue
        other = others[name]
        if weight.shape != other.shape or not torch.allclose(weight, other, rtol=ROUNDING, atol=1e-4):
            raise ValueError(
                f"{autoencoder} must have the encoder of {pipeline / 'vae'}, got another {name}; train it with "
                f"trainable=decoder and start_from={pipeline}."
            )
        others[name] = weight
    new.load_state_dict(others)
    new.to(precision)
    with tempfile.TemporaryDirectory(prefix=".decoder-", dir=pipeline) as folder:
        new.save_pretrained(folder)
        for path in Path(folder).iterdir():
            with atomic_path(pipeline / "vae" / path.name) as temporary:
                shutil.copyfile(path, temporary)
    if (pipeline / MANIFEST).is_file():
        write_manifest(pipeline)
