"""Which weights of a denoising stage are trained: all, those of some layers, or a LoRA beside the frozen ones."""

from collections.abc import Callable
from pathlib import Path

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from torch import nn

from diffusers_stale.inflation import is_new_parameter
from diffusers_stale.training.config import DenoisingConfig


LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections that get a LoRA: those of every attention, of space, text, views and time."""

LORA_FOLDER = "lora"
"""Where a stage leaves its LoRA, beside the pipeline that it is merged into."""

VIEW_MODULES = {"view_layers", "view_embedding"}


def choose_weights(unet: nn.Module, text_encoder: nn.Module, config: DenoisingConfig) -> None:
    """Freezes what `config.trainable` leaves out, or adds a LoRA; only with "all" does the text encoder train."""
    TRAINABLE[config.trainable](unet, config)
    if config.trainable != "all" or config.text_rate == 0:
        text_encoder.requires_grad_(False)


def train_all(unet: nn.Module, config: DenoisingConfig) -> None:
    """Trains every weight."""


def train_new_layers(unet: nn.Module, config: DenoisingConfig) -> None:
    """Trains what the 2D parent does not have: layers of views and of time, and the input for what is known."""
    _train_only(unet, is_new_parameter)


def train_view_layers(unet: nn.Module, config: DenoisingConfig) -> None:
    """Trains the view layers and what tells the network which view it renders."""
    _train_only(unet, lambda name: not VIEW_MODULES.isdisjoint(name.split(".")))


def train_lora(unet: nn.Module, config: DenoisingConfig) -> None:
    """Adds low-rank updates to all attention and trains these (Hu et al. 2021, arXiv 2106.09685), by peft.

    Raises `ValueError` where peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ValueError("`trainable` lora needs peft; pip install 'diffusers-stale[train]'.") from error
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            init_lora_weights="gaussian",
            target_modules=list(LORA_TARGETS),
        )
    )


def export_lora(unet: nn.Module, folder: Path) -> None:
    """Writes the LoRA of `unet` as `load_lora_weights` reads it, and merges it into the weights."""
    from peft import get_peft_model_state_dict

    metadata = unet.peft_config["default"].to_dict()
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        folder, unet_lora_layers=get_peft_model_state_dict(unet), unet_lora_adapter_metadata=metadata
    )
    unet.fuse_lora()
    unet.unload_lora()


def _train_only(unet: nn.Module, chosen: Callable[[str], bool]) -> None:
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(chosen(name))


TRAINABLE: dict[str, Callable[[nn.Module, DenoisingConfig], None]] = {
    "all": train_all,
    "new_layers": train_new_layers,
    "view_layers": train_view_layers,
    "lora": train_lora,
}
"""What can be trained of a UNet, by name; layers of views and time are the 5D one's."""
