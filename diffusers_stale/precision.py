"""bfloat16 where it is fast: on processors without instructions for it, it is emulated and many times slower."""

from contextlib import AbstractContextManager, nullcontext

import torch


def computes_bfloat16(device: torch.device | str) -> bool:
    """Whether the hardware behind `device` has instructions for bfloat16.

    Seen with torch 2.13 on a processor with AVX2 only: convolutions forty times slower in bfloat16 than in float32.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "xpu"


def fast_autocast(device: torch.device | str) -> AbstractContextManager:
    """Autocast to bfloat16 on hardware that computes it, and nothing on other hardware."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16) if computes_bfloat16(device) else nullcontext()
