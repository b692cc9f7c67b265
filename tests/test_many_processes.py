"""Runs of two processes on one machine (gloo): what they compute together is what theory says."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from pairs import free_port
from safetensors.torch import load_file

from diffusers_stale.training.checkpoints import Checkpoint, load_checkpoint, newest_checkpoint
from diffusers_stale.training.config import PRESETS
from diffusers_stale.training.reports import read_report
from diffusers_stale.training.stage_text import TextTask
from diffusers_stale.training.stale_gradients import start_moments


pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
LAUNCHES = sorted((ROOT / "scripts" / "accelerate").glob("*.yaml"))
SETTINGS = {"save_every": 0, "precision": "no", "schedule": "constant", "warmup_steps": 0, "clip_norm": 1e9}
CPU = torch.device("cpu")


def torchrun(script: Path, *more: str, processes: int = 2) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, str(script), *more], env=environment, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr[-2000:]


def train(folder: Path, steps: int, **changes: object) -> Checkpoint:
    """Two processes train the text stage for `steps` steps; returns what they saved in the end."""
    settings = [f"--set=text.{name}={value}" for name, value in (SETTINGS | changes).items()]
    stage = ["--stage", "text", "--preset", "smoke", "--output", str(folder), f"--max-steps={steps}", "--resume"]
    torchrun(ROOT / "scripts" / "train.py", *stage, *settings)
    return load_checkpoint(newest_checkpoint(folder / "text_run" / "checkpoints")[0])


def mean_of(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(values).mean(dim=0)


@torch.no_grad()
def average(tasks: list[TextTask], optimizers: list[torch.optim.Optimizer]) -> None:
    """Gives every process the mean of the weights and of the moments of all."""
    for parameters in zip(*(task.module.parameters() for task in tasks), strict=True):
        mean = mean_of([parameter.detach() for parameter in parameters])
        for parameter in parameters:
            parameter.copy_(mean)
        states = [optimizer.state[parameter] for optimizer, parameter in zip(optimizers, parameters, strict=True)]
        for key in ("step", "exp_avg", "exp_avg_sq"):
            mean = mean_of([state[key] for state in states])
            for state in states:
                state[key].copy_(mean)


def by_hand(steps: int, every: int) -> dict[str, torch.Tensor]:
    """Local SGD of two processes, written out: the weights after `steps` steps, averaged every `every`."""
    config = replace(PRESETS["smoke"].text, max_steps=steps)
    tasks = [TextTask(config, CPU) for _ in range(2)]
    optimizers = [
        torch.optim.AdamW(
            task.module.parameters(), lr=config.learning_rate, betas=(0.9, config.beta2), fused=True,
            weight_decay=config.weight_decay,
        )
        for task in tasks
    ]  # fmt: skip
    for optimizer in optimizers:
        start_moments(optimizer)
    for step in range(steps):
        for rank, (task, optimizer) in enumerate(zip(tasks, optimizers, strict=True)):
            task.module.train()
            task.module(**task.batch(step, rank, 0.0)).backward()
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % every == 0:
            average(tasks, optimizers)
    average(tasks, optimizers)
    return {name: parameter.detach() for name, parameter in tasks[0].module.named_parameters()}


@pytest.mark.slow
def test_stale_gradients_are_local_sgd_and_resume_to_the_bit(tmp_path: Path):
    whole = train(tmp_path / "whole", 5, local_steps=2)
    expected = by_hand(5, every=2)
    assert whole.state["processes"] == 2
    for name, weights in whole.model.items():
        torch.testing.assert_close(weights, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    other = by_hand(5, every=1)
    assert any((weights - other[name]).abs().max() > 1e-4 for name, weights in whole.model.items())
    train(tmp_path / "parted", 2, local_steps=2)
    parted = train(tmp_path / "parted", 5, local_steps=2)
    for part in ("model", "ema", "optimizer"):
        ours, theirs = getattr(whole, part), getattr(parted, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part


GRADIENTS = '''
"""Saves the gradient of two processes, or of one with the batches of both."""
import sys, torch
from dataclasses import replace
from pathlib import Path
from safetensors.torch import save_file
from diffusers_stale.training.config import PRESETS
from diffusers_stale.training.processes import make_accelerator
from diffusers_stale.training.stage_image import ImageTask
accelerator = make_accelerator("no")
run, target = Path(sys.argv[1]), sys.argv[2]
settings = replace(PRESETS["smoke"].image, hinge_weight=0.0, batch_size=3, foreground_weight=0.0)
task = ImageTask(settings, run / "autoencoder", run / "text", run / "work", accelerator.device)
rank, processes = accelerator.process_index, accelerator.num_processes
batches = [task.batch(0, each, 0.0) for each in ((rank,) if processes == 2 else (0, 1))]
batch = {name: torch.cat([each[name] for each in batches]) for name in batches[0]}
model = accelerator.prepare_model(task.module)
accelerator.backward(model(**batch))
if accelerator.is_main_process:
    save_file({name: p.grad for name, p in task.module.named_parameters() if p.grad is not None}, target)
accelerator.end_training()
'''


@pytest.mark.slow
def test_denoising_gradients_of_two_processes_are_those_of_one_with_twice_the_batch(tmp_path: Path):
    """Also through the text encoder, which is in the same module."""
    for stage in ("autoencoder", "text"):
        torchrun(
            ROOT / "scripts" / "train.py", "--stage", stage, "--preset", "smoke", "--output", str(tmp_path),
            "--max-steps=1", processes=1,
        )  # fmt: skip
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    for count in (1, 2):
        torchrun(script, str(tmp_path), str(tmp_path / f"{count}.safetensors"), processes=count)
    one, two = (load_file(tmp_path / f"{count}.safetensors") for count in (1, 2))
    assert one.keys() == two.keys()
    assert any(name.startswith("text_encoder") for name in one)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_configurations_for_accelerate_have_keys_that_it_knows(path: Path):
    from accelerate.commands.config.config_args import ClusterConfig

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    unknown = set(content) - set(ClusterConfig.__dataclass_fields__)
    assert not unknown
    config = ClusterConfig.from_yaml_file(str(path))
    assert config.num_processes >= 2


@pytest.mark.slow
@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_configurations_start_processes_that_train_together(path: Path, tmp_path: Path):
    """Those for GPUs too: where there are none, on the CPU. What is for two machines is started twice on this one."""
    machines = yaml.safe_load(path.read_text(encoding="utf-8"))["num_machines"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path), "--num_processes", "2"]
    command += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    stage = ["--stage", "text", "--preset", "smoke", "--output", str(tmp_path)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [*command, "--machine_rank", str(machine), str(ROOT / "scripts" / "train.py"), *stage],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for machine in range(machines)
    ]  # fmt: skip
    for process in started:
        _, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors[-2000:]
    assert read_report(tmp_path / "text")["processes"] == 2
