"""Inflation of a network as large as Stable Diffusion 1.5's: every weight has its place, and none is copied."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from diffusers_stale.inflation import inflate_unet2d, is_new_parameter


STABLE_DIFFUSION_15 = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "act_fn": "silu",
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "center_input_sample": False,
}
PARAMETERS = 859_520_964
"""Of `unet/config.json` in stable-diffusion-v1-5/stable-diffusion-v1-5."""

MOST = 1.15
"""Times the parent's bytes that the peak may reach, new layers included."""

POOL = 1 << 22


def random_parent(dtype: torch.dtype) -> UNet2DConditionModel:
    """The 2D network of full size with random weights, drawn from a small pool: drawing all takes half a minute."""
    with torch.device("meta"):
        parent = UNet2DConditionModel(**STABLE_DIFFUSION_15)
    parent = parent.to(dtype).to_empty(device="cpu").eval()
    pool = 0.02 * torch.randn(POOL, generator=torch.Generator().manual_seed(0))
    for parameter in parent.parameters():
        for piece in parameter.data.view(-1).split(POOL):
            piece.copy_(pool[: len(piece)])
    return parent


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bytes_of(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def measure(dtype_name: str) -> dict[str, float]:
    """Inflates the network of full size in this process, checks every weight, and says what memory it took."""
    before = resident_bytes()
    parent = random_parent(getattr(torch, dtype_name))
    shapes = {name: tuple(tensor.shape) for name, tensor in parent.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in parent.state_dict().items()}
    parent_bytes = bytes_of(list(parent.parameters()))
    unet = inflate_unet2d(parent)
    spatial = {name: tensor for name, tensor in unet.state_dict().items() if not is_new_parameter(name)}
    new = [tensor for name, tensor in unet.state_dict().items() if is_new_parameter(name)]
    assert {name: tuple(tensor.shape) for name, tensor in spatial.items()} == shapes
    assert {name: tensor.data_ptr() for name, tensor in spatial.items()} == places
    assert not any(tensor.is_meta for tensor in unet.state_dict().values())
    return {
        "parameters": sum(parameter.numel() for parameter in parent.parameters()),
        "new": bytes_of(new) / parent_bytes,
        "peak": (peak_bytes() - before) / parent_bytes,
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32"])
def test_no_second_copy_is_made_of_stable_diffusion(dtype: str):
    """In a process of its own, since the peak of this one is that of the tests before."""
    if not Path("/proc/self/statm").is_file():
        pytest.skip("measures memory as Linux tells it")
    program = f"import json, test_full_size; print(json.dumps(test_full_size.measure({dtype!r})))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    measured = json.loads(result.stdout.splitlines()[-1])
    assert measured["parameters"] == PARAMETERS
    assert measured["peak"] >= 1 + measured["new"], "less than all weights take is no measurement"
    assert measured["new"] > 0.1
    assert measured["peak"] <= MOST
