"""The training loop that all stages share: optimizer, annealing, moving average, logs, checkpoints, resumption.

What is trained, on what, is a `Task`. Randomness is the task's, from counters: (seed, step, rank) make a batch.
"""

import json
import math
import os
import resource
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.tensorboard import SummaryWriter

from diffusers_stale.precision import computes_bfloat16
from diffusers_stale.training.checkpoints import (
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from diffusers_stale.training.config import Precision, Schedule, StageConfig
from diffusers_stale.training.provenance import EnergyMeter, tensors_hash


FINGERPRINTED_STEPS = (1, 2, 5, 10, 20, 50)
"""Steps after which the weights are hashed, so that a re-trained run can be compared to the bit."""


def training_attention(device: torch.device) -> AbstractContextManager:
    """Attention kernels to train with: on CPUs the plain one, whose backward pass is several times faster there.

    Measured with torch 2.13 in bfloat16 on 64 and 16 tokens: 110 instead of 75 images a second for the whole UNet.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class LaunchError(RuntimeError):
    """The processes that were started are not those that train together."""


class DivergedError(FloatingPointError):
    """Gradients have not been finite for many steps: training on would change nothing."""


class StoppedError(SystemExit):
    """The run was told to stop by a signal, and has saved; the exit status is the shell's for that signal."""


class StopRequest:
    """Within it, SIGTERM and SIGINT do not end the process but set `signal`; a second one does what it did before."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "StopRequest":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._note) for kind in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _note(self, kind: int, frame: object) -> None:
        self.signal = kind
        self.__exit__()


class Task(Protocol):
    """What a stage gives to the loop.

    `module(**batch)` returns the loss, a scalar. `batch` makes the batch number `step` of this process, from counters
    (of `accumulation` batches to a step of the optimizer, all are numbered). `parameter_groups` are those of an
    optimizer, with `lr` relative to the learning rate of the configuration. `evaluate` and `sample` are called with
    averaged weights in `module`; `report` is what the stage's report says beside the loop's figures; `fingerprints`
    are hashes of this process's data, by name.
    """

    module: torch.nn.Module

    def parameter_groups(self) -> list[dict[str, Any]]: ...

    def batch(self, step: int, rank: int, fraction: float) -> dict[str, Any]: ...

    def batch_images(self, batch: dict[str, Any]) -> int: ...

    def evaluate(self) -> dict[str, float]: ...

    def sample(self, path: Path) -> None: ...

    def report(self) -> dict[str, Any]: ...

    def fingerprints(self) -> dict[str, str]: ...


def chosen_precision(precision: Precision) -> str:
    """`precision`, with "auto" decided for the hardware at hand."""
    if precision != "auto":
        return precision
    return "bf16" if computes_bfloat16("cuda" if torch.cuda.is_available() else "cpu") else "no"


def make_accelerator(precision: Precision) -> Accelerator:
    """An `Accelerator` that took up every process that the launcher started; raises `LaunchError` otherwise.

    Without a GPU it is told so: Accelerate would else make independent main processes that write the same files.
    """
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=chosen_precision(precision),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise LaunchError(
            f"The launcher started {started} processes, but Accelerate joined {accelerator.num_processes}; start with "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N on CPUs, or accelerate launch on GPUs."
        )
    return accelerator


def rate_factor(step: int, fraction: float, warmup_steps: int, schedule: Schedule) -> float:
    """Factor on the learning rate at `step`, when `fraction` (0 to 1) of the run is over."""
    warm = min(1.0, (step + 1) / max(warmup_steps, 1))
    return warm * SCHEDULES[schedule](min(max(fraction, 0.0), 1.0))


SCHEDULES = {
    "cosine": lambda fraction: 0.5 * (1 + math.cos(math.pi * fraction)),
    "linear": lambda fraction: 1.0 - fraction,
    "constant": lambda fraction: 1.0,
}


class MovingAverage:
    """Exponential moving average of parameters, in float32; its decay warms up as (1 + step) / (10 + step)."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], decay: float):
        self.decay = decay
        self.live = list(parameters.values())
        self.average = [parameter.detach().clone() for parameter in self.live]
        self.names = list(parameters)

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.live], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the module has the averaged weights."""
        kept = [parameter.detach().clone() for parameter in self.live]
        self.copy_to_live(self.average)
        try:
            yield
        finally:
            self.copy_to_live(kept)

    @torch.no_grad()
    def copy_to_live(self, values: list[torch.Tensor]) -> None:
        torch._foreach_copy_([parameter.detach() for parameter in self.live], values)

    def state(self) -> dict[str, torch.Tensor]:
        return dict(zip(self.names, self.average, strict=True))

    @torch.no_grad()
    def restore(self, state: dict[str, torch.Tensor]) -> None:
        for name, average in self.state().items():
            average.copy_(state[name])


class Trainer:
    """Trains one task to the end of its budget.

    Args:
        task: what to train.
        config: budget and optimizer.
        folder: for checkpoints, samples, logs; `main process` only writes.
        resume: go on from the newest checkpoint in `folder`, if there is one.
    """

    def __init__(self, task: Task, config: StageConfig, folder: Path, accelerator: Accelerator, resume: bool):
        self.task, self.config, self.folder, self.accelerator = task, config, folder, accelerator
        self.parameters = {name: item for name, item in task.module.named_parameters() if item.requires_grad}
        task.module.to(accelerator.device)
        self.ema = MovingAverage(self.parameters, config.ema_decay)
        groups = [group | {"lr": group["lr"] * config.learning_rate} for group in task.parameter_groups()]
        self.optimizer = torch.optim.AdamW(
            groups, betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True
        )
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step, self.images, self.loss = 0, 0, float("nan")
        self.seconds_before, self.core_seconds_before, self.skipped, self.skipped_in_a_row = 0.0, 0.0, 0, 0
        self.joules_before, self.energy = 0.0, EnergyMeter()
        self.fingerprints: dict[str, str] = {}
        self.commands = [command_line()]
        if resume:
            self.restore()
        self.model = accelerator.prepare_model(task.module)
        self.started, self.cores_started = time.monotonic(), core_seconds()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a resumption included."""
        return self.seconds_before + time.monotonic() - self.started

    def agreed(self, stop: StopRequest) -> tuple[float, int]:
        """Seconds of training and the signal to stop at, 0 for none, alike on all processes: the most of any."""
        if self.accelerator.num_processes == 1:
            return self.seconds, stop.signal
        mine = torch.tensor([[self.seconds, stop.signal]], device=self.accelerator.device)
        seconds, kind = self.accelerator.gather(mine).amax(dim=0).tolist()
        return seconds, int(kind)

    def fraction(self, seconds: float) -> float:
        """How much of the budget is spent, 0 to 1."""
        by_steps = self.step / self.config.max_steps if self.config.max_steps else 0.0
        by_time = seconds / self.config.max_seconds if self.config.max_seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def run(self) -> dict[str, Any]:
        """Trains; afterwards the module holds the averaged weights. Returns figures for the report.

        On SIGTERM and SIGINT it finishes the step, saves, and raises `StoppedError`; `resume` goes on from there.
        """
        with StopRequest() as stop:
            return self._run(stop)

    def _run(self, stop: StopRequest) -> dict[str, Any]:
        main = self.accelerator.is_main_process
        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step) if main else None
        saved, logged_at, logged_images = self.seconds_before, self.seconds, self.images
        waited = 0.0
        while True:
            seconds, kind = self.agreed(stop)
            if (fraction := self.fraction(seconds)) >= 1.0:
                break
            if kind:
                self.stop(kind)
            if seconds - saved > self.config.save_every:
                self.save()
                saved = seconds
            loss, seconds_of_data = self.train_step(fraction)
            waited += seconds_of_data
            if self.step % self.config.log_every == 0:
                self.loss = float(self.accelerator.reduce(loss, reduction="mean"))
                if main:
                    spent = max(self.seconds - logged_at, 1e-9)
                    speed, share = (self.images - logged_images) / spent, waited / spent
                    self.log(writer, fraction, speed, share)
                logged_at, logged_images, waited = self.seconds, self.images, 0.0
            if main and self.step % self.config.sample_every == 0:
                self.show(writer)
        self.save()
        self.accelerator.wait_for_everyone()
        self.ema.copy_to_live(self.ema.average)
        figures = self.figures()
        if main:
            figures |= self.evaluated()
            self.say(f"finished: {json.dumps(figures)}")
            writer.close()
        return figures

    def stop(self, kind: int) -> None:
        """Saves, says so, and raises `StoppedError`."""
        self.save()
        if self.accelerator.is_main_process:
            name = signal.Signals(kind).name
            self.say(f"stopped by {name} and saved after step {self.step}; the same command with --resume goes on")
        raise StoppedError(128 + kind)

    def train_step(self, fraction: float) -> tuple[torch.Tensor, float]:
        """One step of the optimizer; skipped where the gradient is not finite. Returns loss and seconds of waiting.

        Raises `DivergedError` after `max_skipped` such steps in a row.
        """
        count = self.config.accumulation
        factor = rate_factor(self.step, fraction, self.config.warmup_steps, self.config.schedule)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        self.task.module.train()
        losses, waited = [], 0.0
        for micro in range(count):
            began = time.monotonic()
            batch = self.task.batch(self.step * count + micro, self.accelerator.process_index, fraction)
            waited += time.monotonic() - began
            last = micro == count - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with training_attention(self.accelerator.device):
                    loss = self.model(**batch)
                self.accelerator.backward(loss if count == 1 else loss / count)
            losses.append(loss.detach())
            self.images += self.task.batch_images(batch) * self.accelerator.num_processes
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.step)
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise DivergedError(
                f"Gradients must be finite, got {self.skipped_in_a_row} steps in a row up to step {self.step} whose "
                "were not; resume from the newest checkpoint with a smaller learning_rate, or with precision=no."
            )
        if self.step in FINGERPRINTED_STEPS:
            self.fingerprints[str(self.step)] = tensors_hash(self.parameters)
        return torch.stack(losses).mean(), waited

    def first_steps(self, count: int) -> dict[str, str]:
        """Trains the first `count` steps and saves nothing; returns the fingerprints on the way, by step."""
        while self.step < count:
            self.train_step(self.fraction(0.0))
        return self.fingerprints

    def log(self, writer: SummaryWriter, fraction: float, images_per_second: float, data_share: float) -> None:
        left = self.seconds * (1 / fraction - 1) if fraction > 0 else float("nan")
        rate = self.optimizer.param_groups[0]["lr"]
        self.say(
            f"step {self.step} loss {self.loss:.4f} rate {rate:.2e} {images_per_second:.0f} img/s "
            f"data {data_share:.0%} elapsed {self.seconds:.0f} s left {left:.0f} s"
        )
        scalars = {"loss": self.loss, "learning_rate": rate, "images_per_second": images_per_second}
        for name, value in (scalars | {"data_share": data_share}).items():
            writer.add_scalar(name, value, self.step)

    def evaluated(self) -> dict[str, float]:
        self.task.module.eval()
        with torch.no_grad():
            return self.task.evaluate()

    def show(self, writer: SummaryWriter) -> None:
        """Evaluates and samples with averaged weights."""
        with self.ema.applied():
            metrics = self.evaluated()
            path = self.folder / "samples" / f"step-{self.step:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            with torch.no_grad():
                self.task.sample(path)
        for name, value in metrics.items():
            writer.add_scalar(name, value, self.step)
        if metrics:
            self.say(f"step {self.step} " + " ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

    def say(self, line: str) -> None:
        """Prints `line` and appends it to the run's log."""
        print(line, flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("a") as file:
            file.write(line + "\n")

    def figures(self) -> dict[str, Any]:
        """What a report tells about the run; the same call on all processes."""
        spent = torch.tensor([core_seconds() - self.cores_started], dtype=torch.float64)
        cores = self.core_seconds_before + float(self.accelerator.reduce(spent, reduction="sum"))
        return {
            "steps": self.step,
            "images": self.images,
            "final_loss": self.loss,
            "seconds": round(self.seconds, 3),
            "core_seconds": round(cores, 3),
            "skipped_steps": self.skipped,
            "joules": None if self.energy.joules is None else round(self.joules_before + self.energy.joules, 1),
            "fingerprints": self.fingerprints,
            "processes": self.accelerator.num_processes,
            "commands": self.commands,
        }

    def counters(self) -> dict[str, int]:
        """What a state holds beside figures."""
        return {"step": self.step, "skipped_in_a_row": self.skipped_in_a_row}

    def save(self) -> None:
        """Writes a checkpoint; all processes must call it."""
        figures = self.figures()
        if self.accelerator.is_main_process:
            names = {id(parameter): name for name, parameter in self.parameters.items()}
            checkpoint = Checkpoint(
                model={name: parameter.detach() for name, parameter in self.parameters.items()},
                ema=self.ema.state(),
                optimizer=optimizer_tensors(self.optimizer, names),
                state=figures | self.counters() | {"config": asdict(self.config)},
            )
            save_checkpoint(self.folder / "checkpoints", checkpoint, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def restore(self) -> None:
        """Goes on from the newest sound checkpoint, if there is one."""
        # One process looks, and may have to put a name right, before the others do.
        with self.accelerator.main_process_first():
            newest, remarks = newest_checkpoint(self.folder / "checkpoints")
        if self.accelerator.is_main_process:
            for remark in remarks:
                self.say(remark)
        if newest is None:
            return
        checkpoint = load_checkpoint(newest)
        for name, parameter in self.parameters.items():
            parameter.copy_(checkpoint.model[name])
        self.ema.restore(checkpoint.ema)
        restore_optimizer(self.optimizer, self.parameters, checkpoint.optimizer)
        state = checkpoint.state
        self.step, self.images, self.loss = state["step"], state["images"], state["final_loss"]
        self.seconds_before, self.core_seconds_before = state["seconds"], state["core_seconds"]
        self.skipped = state["skipped_steps"]
        self.skipped_in_a_row = state.get("skipped_in_a_row", 0)
        self.joules_before = state.get("joules") or 0.0
        self.fingerprints = dict(state.get("fingerprints", {}))
        self.commands = [*state.get("commands", ()), *self.commands]
        if self.accelerator.is_main_process:
            self.say(f"resumed from {newest.name}")


def core_seconds() -> float:
    """Processor time of this process, its threads and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


def command_line() -> str:
    """The command that started this process."""
    return shlex.join([Path(sys.executable).name, *sys.argv])
