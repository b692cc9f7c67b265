"""The processes of a run: that those which were started train together, and with which kernels they do."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusers_stale.precision import computes_bfloat16
from diffusers_stale.training.config import Precision


class LaunchError(RuntimeError):
    """The processes that were started are not those that train together."""


def chosen_precision(precision: Precision) -> str:
    """`precision`, with "auto" decided for the hardware at hand."""
    if precision != "auto":
        return precision
    return "bf16" if computes_bfloat16("cuda" if torch.cuda.is_available() else "cpu") else "no"


def make_accelerator(precision: Precision) -> Accelerator:
    """An `Accelerator` that took up every process that the launcher started; raises `LaunchError` otherwise.

    Without a GPU it is told so: Accelerate would else make independent main processes that write the same files.
    Half precision with scaled losses ("fp16") is the trainer's own, since Accelerate has it on GPUs only; so is
    sharding, and a launch that wants it from Accelerate, which on CPUs would silently do without, is refused.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1"):
        raise LaunchError(
            "The launcher asked for Accelerate's FSDP, but sharding is the trainer's; use "
            "scripts/accelerate/fsdp2.yaml, which is a launch of plain processes, with --set shard_weights=true."
        )
    # The stages of one run may differ in precision, which Accelerate would keep for as long as the program runs.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no" if precision == "fp16" else chosen_precision(precision),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise LaunchError(
            f"The launcher started {started} processes, but Accelerate joined {accelerator.num_processes}; start with "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N on CPUs, or accelerate launch on GPUs."
        )
    return accelerator


def training_attention(device: torch.device, precision: str) -> AbstractContextManager:
    """Attention kernels to train with: in bfloat16 on CPUs the plain one, whose backward pass is faster there.

    Measured with torch 2.13 on 64 and 16 tokens: 110 instead of 75 images a second for the whole UNet in bfloat16. In
    float32 torch's choice is 2 % faster.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" and precision == "bf16" else nullcontext()
