"""Stale gradients between processes: each trains on its own for some steps, then all take the mean of what they hold.

This is local SGD (Stich 2019, arXiv 1805.09767), by Accelerate's `LocalSGD`. That averages weights only; here the
optimizer's moments and the moving average are averaged with them, so that after an average all processes are alike and
a checkpoint of one of them is one of all.
"""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.local_sgd import LocalSGD


class StaleGradients:
    """Averages the processes of `accelerator` every `every` steps; with 1, or a single process, it does nothing.

    `model` is the prepared one, `optimizer` an Adam. `tensors` are what is averaged beside its weights.
    """

    def __init__(self, accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer, every: int):
        self.accelerator, self.every = accelerator, every
        self.local = LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=every, enabled=every > 1)
        # Its exit is called only where a run ends well: after an error of one process, nobody would answer it.
        self.local.__enter__()
        if self.local.enabled:
            start_moments(optimizer)

    @property
    def alike(self) -> bool:
        """Whether all processes hold the same now."""
        return not self.local.enabled or self.local.num_steps % self.every == 0

    def step(self, tensors: Iterable[torch.Tensor]) -> None:
        """To be called after every step of the optimizer."""
        self.local.step()
        if self.local.enabled and self.alike:
            self._average(tensors)

    def finish(self, tensors: Iterable[torch.Tensor]) -> None:
        """Averages what the last steps, fewer than `every`, have done."""
        if self.local.enabled:
            self.local.__exit__(None, None, None)
            if not self.alike:
                self._average(tensors)
            self.local.enabled = False

    @torch.no_grad()
    def _average(self, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            mean = self.accelerator.reduce(tensor.to(self.accelerator.device), reduction="mean")
            tensor.copy_(mean)


def start_moments(optimizer: torch.optim.Optimizer) -> None:
    """Gives every parameter the moments that Adam would begin with, so that all processes have as many to average.

    A process whose gradients have never been finite would else have none.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and not optimizer.state[parameter]:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
