"""Weights sharded over the processes of a run: each holds a part of every weight, and of its optimizer's state.

This is torch's FSDP2 (`fully_shard`), called by itself and not through Accelerate, which has it on GPUs only and
trains without it on CPUs, silently. Knows no data, no loss and no files.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator

import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class ShardedWeights:
    """Shards those children of `module` that are trained, in place, over all processes, which must call everything.

    Blocks that the children's classes name in `_no_split_modules` are gathered one at a time while they compute; what
    is left of a child is gathered with it. Weights start as the first process has them. The children that were there
    before are kept on that process's CPU: `dissolve` puts them back.

    Raises:
        ValueError: without a group of processes to share among.
    """

    def __init__(self, module: nn.Module, device: torch.device):
        if not torch.distributed.is_initialized():
            raise ValueError(
                "`shard_weights` needs processes to share among, got one without a launcher; start with torchrun or "
                "accelerate launch, or leave it out."
            )
        self.module = module
        self.is_main = torch.distributed.get_rank() == 0
        self.kept: dict[str, nn.Module] = {}
        # Nothing changes what blocks return in place: gradients are those of whole weights.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        for name, child in list(module.named_children()):
            if not any(parameter.requires_grad for parameter in child.parameters()):
                child.to(device)
                continue
            part = copy.deepcopy(child)
            # Nothing may stay gathered between forward passes: averaged weights take turns with trained ones.
            for each in (*blocks_of(part), part):
                fully_shard(each, mesh=mesh, reshard_after_forward=True)
            setattr(module, name, part)
            if self.is_main:
                self.kept[name] = child

    @torch.no_grad()
    def dissolve(self) -> None:
        """Gives the first process's module its children back, on the CPU, with what the sharded ones have learnt."""
        for name, part in self.module.named_children():
            learnt = collected(dict(part.named_parameters()))
            buffers = dict(part.named_buffers())
            if name in self.kept:
                kept = self.kept[name]
                for key, parameter in kept.named_parameters():
                    parameter.copy_(learnt[key])
                for key, buffer in kept.named_buffers():
                    buffer.copy_(buffers[key])
        for name, kept in self.kept.items():
            setattr(self.module, name, kept)


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks within `module` that its class does not want split, inner ones before those around them."""
    names = getattr(module, "_no_split_modules", None) or ()
    for each in reversed(list(module.modules())):
        if each is not module and type(each).__name__ in names:
            yield each


def collected(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole tensors, on the CPU, of those that are sharded; empty on all processes but the first.

    All processes must call it with the same names. Tensors that are not sharded are returned as they are.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = whole_of(tensor.detach())
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            found[name] = whole.cpu() if isinstance(tensor, DTensor) else whole
    return found


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, gathered from all processes if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def held(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What this process holds of each of `tensors`, in the same memory."""
    detached = (tensor.detach() for tensor in tensors)
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in detached]


def part_of(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's part of `whole`, which all have, sharded as `like` is and where that is."""
    whole = whole.to(like.device)
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
