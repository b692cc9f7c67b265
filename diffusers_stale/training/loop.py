"""The training loop that all stages share: optimizer, annealing, moving average, logs, checkpoints, resumption.

What is trained, on what, is a `Task`. Randomness is the task's, from counters: (seed, step, rank) make a batch.
"""

import json
import resource
import shlex
import signal
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from diffusers_stale.scheduling_stale import NonFiniteOutputError
from diffusers_stale.training.averages import AVERAGES, MovingAverage
from diffusers_stale.training.checkpoints import (
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from diffusers_stale.training.config import StageConfig
from diffusers_stale.training.processes import training_attention
from diffusers_stale.training.provenance import EnergyMeter, tensors_hash
from diffusers_stale.training.rates import rate_factor
from diffusers_stale.training.resumption import check_fit
from diffusers_stale.training.samples import Shown, write_shown
from diffusers_stale.training.sharding import ShardedWeights, collected, part_of, whole_of
from diffusers_stale.training.stale_gradients import StaleGradients
from diffusers_stale.training.stopping import DivergedError, GivenUp, StoppedError, StopRequest
from diffusers_stale.training.trackers import Tracker, open_trackers


FINGERPRINTED_STEPS = (1, 2, 5, 10, 20, 50)
"""Steps after which the weights are hashed, so that a re-trained run can be compared to the bit."""


class Task(Protocol):
    """What a stage gives to the loop.

    `module(**batch)` returns the loss, a scalar. `batch` makes the batch number `step` of this process, from counters
    (of `accumulation` batches to a step of the optimizer, all are numbered). `parameter_groups` are those of an
    optimizer, with `lr` relative to the learning rate of the configuration. `batch_images` counts the pictures of a
    batch, every view and frame one, `batch_tokens` what the network computes on: latent pixels, or tokens of text.
    `evaluate` and `sample` (what there is to be shown) are called with averaged weights in `module`, by the main
    process or, where weights are sharded, by all; `report` is what the stage's report says beside the loop's figures;
    `fingerprints` are hashes of this process's data, by name.
    """

    module: torch.nn.Module

    def parameter_groups(self) -> list[dict[str, Any]]: ...

    def batch(self, step: int, rank: int, fraction: float) -> dict[str, Any]: ...

    def batch_images(self, batch: dict[str, Any]) -> int: ...

    def batch_tokens(self, batch: dict[str, Any]) -> int: ...

    def evaluate(self) -> dict[str, float]: ...

    def sample(self) -> Shown: ...

    def report(self) -> dict[str, Any]: ...

    def fingerprints(self) -> dict[str, str]: ...


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
        self.sharded = None
        if getattr(config, "shard_weights", False):
            self.sharded = ShardedWeights(task.module, accelerator.device)
        else:
            task.module.to(accelerator.device)
        self.parameters = {name: item for name, item in task.module.named_parameters() if item.requires_grad}
        self.ema = MovingAverage(self.parameters, AVERAGES[config.ema_form](config))
        groups = trained_groups(task.parameter_groups(), config.learning_rate)
        self.optimizer = torch.optim.AdamW(
            groups, betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True
        )
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        kind, halves = accelerator.device.type, config.precision == "fp16"
        self.scaler = torch.amp.GradScaler(kind, enabled=halves)
        # Models that Accelerate prepares have theirs within.
        own = halves or (self.sharded is not None and config.precision == "bf16")
        self.autocast = torch.autocast(kind, torch.float16 if halves else torch.bfloat16) if own else nullcontext()
        self.step, self.images, self.loss = 0, 0, float("nan")
        self.seconds_before, self.core_seconds_before, self.skipped, self.skipped_in_a_row = 0.0, 0.0, 0, 0
        self.joules_before, self.energy = 0.0, EnergyMeter()
        self.fingerprints: dict[str, str] = {}
        self.commands = [command_line()]
        self.resumptions: list[dict[str, Any]] = []
        frozen = {name: item for name, item in task.module.named_parameters() if not item.requires_grad}
        self.frozen = tensors_hash(collected(frozen)) if frozen else None
        self.seen: Counter[str] = Counter()
        if resume:
            self.restore()
        self.model = task.module if self.sharded else accelerator.prepare_model(task.module)
        self.stale = StaleGradients(accelerator, self.model, self.optimizer, config.local_steps)
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
        So it does after the last step, too: what would come next is for the resumed run.
        """
        main, figures = self.accelerator.is_main_process, {}
        with StopRequest() as stop:
            trackers = open_trackers(self.config.trackers, self.folder, self.config, self.step) if main else []
            try:
                self._run(stop, trackers)
                figures = self.finish(stop)
            except GivenUp:
                pass
            finally:
                for tracker in trackers:
                    tracker.close()
            # Told at the very end, it leaves what comes after training (an export, more stages) to a resumption.
            if kind := self.agreed(stop)[1]:
                self.tell_stopped(kind)
            return figures

    def _run(self, stop: StopRequest, trackers: list[Tracker]) -> None:
        main = self.accelerator.is_main_process
        seconds, saved, logged_at = self.seconds, self.seconds_before, self.seconds
        self.seen.clear()
        waited = 0.0
        while True:
            if self.stale.alike:
                seconds, kind = self.agreed(stop)
                if kind and self.fraction(seconds) < 1.0:
                    self.save()
                    self.tell_stopped(kind)
                if seconds - saved > self.config.save_every and self.fraction(seconds) < 1.0:
                    self.save()
                    saved = seconds
            if (fraction := self.fraction(seconds)) >= 1.0:
                break
            loss, seconds_of_data = self.train_step(fraction)
            waited += seconds_of_data
            if self.step % self.config.log_every == 0:
                self.loss = float(self.accelerator.reduce(loss, reduction="mean"))
                if main:
                    self.log(trackers, max(self.seconds - logged_at, 1e-9), waited)
                logged_at, waited = self.seconds, 0.0
                self.seen.clear()
            if (main or self.sharded) and self.step % self.config.sample_every == 0:
                began = self.seconds
                self.show(trackers, stop)
                logged_at += self.seconds - began

    def finish(self, stop: StopRequest) -> dict[str, Any]:
        """Saves the end of the run, leaves the averaged weights in the module, and returns figures."""
        self.stale.finish(self.averaged_tensors())
        self.save()
        self.accelerator.wait_for_everyone()
        self.ema.copy_to_live(self.ema.average)
        figures = self.figures()
        if self.accelerator.is_main_process or self.sharded:
            with self.until_stopped(stop):
                figures |= self.evaluated()
        if self.sharded:
            self.sharded.dissolve()
        if self.accelerator.is_main_process:
            self.say(f"finished: {json.dumps(figures)}")
        return figures

    def tell_stopped(self, kind: int) -> None:
        """Says that a signal of this kind was obeyed, and raises `StoppedError`."""
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
            # Backward passes too are within: with gradient checkpointing they hold forward ones.
            with (
                nullcontext() if last else self.accelerator.no_sync(self.model),
                training_attention(self.accelerator.device, self.accelerator.mixed_precision),
            ):
                with self.autocast:
                    loss = self.model(**batch)
                self.accelerator.backward(self.scaler.scale(loss if count == 1 else loss / count))
            losses.append(loss.detach())
            self.count(batch)
        self.scaler.unscale_(self.optimizer)
        norm = whole_of(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm))
        if torch.isfinite(norm):
            self.optimizer.step()
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.step)
        self.stale.step(self.averaged_tensors())
        self.check_progress()
        if self.step in FINGERPRINTED_STEPS:
            self.fingerprints[str(self.step)] = tensors_hash(collected(self.parameters))
        return torch.stack(losses).mean(), waited

    def check_progress(self) -> None:
        """Raises `DivergedError` after `max_skipped` steps in a row without a finite gradient, in all processes."""
        if not self.stale.alike:
            return
        row = self.skipped_in_a_row
        if self.config.local_steps > 1:
            row = int(self.accelerator.gather(torch.tensor([row], device=self.accelerator.device)).max())
        if row >= self.config.max_skipped:
            raise DivergedError(
                f"Gradients must be finite, got {row} steps in a row up to step {self.step} whose were not; resume "
                "from the newest checkpoint with a smaller learning_rate, or with precision=no."
            )

    def count(self, batch: dict[str, Any]) -> None:
        """Counts what all processes have seen with `batch`."""
        images, processes = self.task.batch_images(batch), self.accelerator.num_processes
        self.images += images * processes
        samples, tokens = len(next(iter(batch.values()))), self.task.batch_tokens(batch)
        self.seen.update(samples=samples * processes, frames=images * processes, tokens=tokens * processes)

    def averaged_tensors(self) -> list[torch.Tensor]:
        """What processes hold beside the weights."""
        moments = (value for values in self.optimizer.state.values() for value in values.values())
        return [*self.ema.average, *moments]

    def first_steps(self, count: int) -> dict[str, str]:
        """Trains the first `count` steps and saves nothing; returns the fingerprints on the way, by step."""
        while self.step < count:
            self.train_step(self.fraction(0.0))
        return self.fingerprints

    def log(self, trackers: list[Tracker], spent: float, waited: float) -> None:
        """Tells what the last `spent` seconds were like, of which `waited` were spent on making batches."""
        fraction = self.fraction(self.seconds)
        left = self.seconds * (1 / fraction - 1) if fraction > 0 else float("nan")
        rate, share = self.optimizer.param_groups[0]["lr"], waited / spent
        speeds = {name: count / spent for name, count in self.seen.items()}
        told = " ".join(f"{speed:.{0 if speed >= 10 else 1}f} {name}/s" for name, speed in speeds.items())
        scale = f" scale {self.scaler.get_scale():g}" if self.scaler.is_enabled() else ""
        scale += f" skipped {self.skipped}" if self.skipped else ""
        self.say(
            f"step {self.step} loss {self.loss:.4f} rate {rate:.2e}{scale} {told} data {share:.0%} "
            f"elapsed {self.seconds:.0f} s left {left:.0f} s"
        )
        scalars = {"loss": self.loss, "learning_rate": rate, "data_share": share}
        scalars |= {f"{name}_per_second": speed for name, speed in speeds.items()}
        for tracker in trackers:
            tracker.log(scalars, self.step)

    def evaluated(self) -> dict[str, float]:
        self.task.module.eval()
        with torch.no_grad():
            return self.task.evaluate()

    def until_stopped(self, stop: StopRequest) -> AbstractContextManager:
        """Within it, what may take minutes and changes nothing is given up on a signal.

        Not where weights are sharded: there all processes compute it, and none may leave the others waiting.
        """
        return nullcontext() if self.sharded else stop.at_once()

    def show(self, trackers: list[Tracker], stop: StopRequest) -> None:
        """Evaluates and samples with averaged weights, unless a signal comes."""
        try:
            with self.ema.applied(), self.until_stopped(stop), torch.no_grad():
                metrics, shown = self.evaluated(), self.task.sample()
        except GivenUp:
            return
        except NonFiniteOutputError as error:
            # Training may come back from it, or ends by itself.
            if self.accelerator.is_main_process:
                self.say(f"step {self.step} has no samples: {error}")
            return
        if not self.accelerator.is_main_process:
            return
        sheet, movie = write_shown(shown, self.folder / "samples" / f"step-{self.step:08d}")
        for tracker in trackers:
            tracker.log(metrics, self.step)
            if sheet is not None:
                tracker.show_sheet(sheet, self.step)
            if movie is not None:
                tracker.show_movie(movie, shown.movie, self.step)
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
            "resumptions": self.resumptions,
        }

    def counters(self) -> dict[str, Any]:
        """What a state holds beside figures."""
        counters = {"step": self.step, "skipped_in_a_row": self.skipped_in_a_row}
        return counters | ({"loss_scale": self.scaler.state_dict()} if self.scaler.is_enabled() else {})

    def save(self) -> None:
        """Writes a checkpoint; all processes must call it."""
        figures = self.figures()
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        checkpoint = Checkpoint(
            model=collected(self.parameters),
            ema=collected(self.ema.state()),
            optimizer=collected(optimizer_tensors(self.optimizer, names)),
            state=figures | self.counters() | {"config": asdict(self.config), "frozen_sha256": self.frozen},
        )
        if self.accelerator.is_main_process:
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
        check_fit(newest, checkpoint, self.parameters, self.frozen)
        for name, parameter in self.parameters.items():
            parameter.copy_(part_of(checkpoint.model[name], parameter.detach()))
        self.ema.restore(checkpoint.ema)
        restore_optimizer(self.optimizer, self.parameters, checkpoint.optimizer)
        state = checkpoint.state
        self.step, self.images, self.loss = state["step"], state["images"], state["final_loss"]
        self.seconds_before, self.core_seconds_before = state["seconds"], state["core_seconds"]
        self.skipped = state["skipped_steps"]
        self.skipped_in_a_row = state.get("skipped_in_a_row", 0)
        if "loss_scale" in state:
            self.scaler.load_state_dict(state["loss_scale"])
        self.joules_before = state.get("joules") or 0.0
        self.fingerprints = dict(state.get("fingerprints", {}))
        self.commands = [*state.get("commands", ()), *self.commands]
        self.resumptions = list(state.get("resumptions", ()))
        if self.accelerator.is_main_process:
            self.say(f"resumed from {newest.name}")

    def note_changes(self, changes: list[str]) -> None:
        """Says what has changed since the run that goes on here and keeps it for the report; of the main process."""
        if self.step and changes:
            self.resumptions.append({"step": self.step, "changes": changes})
            self.say(f"not as before step {self.step}: {'; '.join(changes)}")


def trained_groups(groups: list[dict[str, Any]], learning_rate: float) -> list[dict[str, Any]]:
    """The groups of an optimizer, without parameters that are frozen; `lr` times the learning rate."""
    kept = [group | {"params": [item for item in group["params"] if item.requires_grad]} for group in groups]
    return [group | {"lr": group["lr"] * learning_rate} for group in kept if group["params"]]


def core_seconds() -> float:
    """Processor time of this process, its threads and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


def command_line() -> str:
    """The command that started this process."""
    return shlex.join([Path(sys.executable).name, *sys.argv])
