"""The trainer's 2D stage beside a plain loop in the manner of diffusers' examples: samples a second, and waiting.

    OMP_NUM_THREADS=1 python scripts/benchmarks/trainer.py --rounds 8 --steps 4

Both train a UNet of the same configuration, from the same weights, on the same pictures and captions, by AdamW, with
the autoencoder and the text encoder of the checkpoint that ships, both frozen. The plain loop does in every step what
`examples/text_to_image/train_text_to_image.py` does with its defaults: a batch from a `DataLoader`, the autoencoder's
encoding, the text encoder, noise, the UNet, the squared error, clipping, the optimizer; in float32 and without an
average of weights, though the trainer keeps one. Its pictures are in memory as tensors, so that it decodes nothing.
The trainer encodes pictures once before it begins (told apart) and keeps embeddings of captions; `--precision` is its
own.

The two take turns, `--steps` steps each, after a first turn that is not counted, since machines are shared: wall time
and the process's processor time are summed over all turns, and the median of the ratios of turns is told as well.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from transformers import CLIPTextModel

from diffusers_stale.checkpoints import checkpoint_path
from diffusers_stale.data.captions import caption_of
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.text_encoding import tokenize
from diffusers_stale.training.config import ImageConfig
from diffusers_stale.training.latents import PoolRequest, render_clip
from diffusers_stale.training.loop import Trainer
from diffusers_stale.training.processes import make_accelerator
from diffusers_stale.training.stage_image import ImageTask


class PlainLoop:
    """A training loop as diffusers' examples have it, for a model that predicts v."""

    def __init__(
        self, unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: CLIPTextModel, pixels: torch.Tensor,
        input_ids: torch.Tensor, config: ImageConfig,
    ):  # fmt: skip
        self.unet, self.vae, self.text_encoder = unet.train(), vae, text_encoder
        self.scheduler = StaleScheduler(prediction_type=config.prediction_type)
        self.optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate)
        self.loader = DataLoader(TensorDataset(pixels, input_ids), config.batch_size, shuffle=True, drop_last=True)
        self.batches = self.endless()

    def endless(self) -> Iterator[list[torch.Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> float:
        """One step; returns the seconds that were spent on getting the batch."""
        began = time.monotonic()
        pixels, input_ids = next(self.batches)
        pixels = pixels.float() / 127.5 - 1
        waited = time.monotonic() - began
        with torch.no_grad():
            latents = self.vae.encode(pixels).latent_dist.sample() * self.vae.config.scaling_factor
            text = self.text_encoder(input_ids)[0]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(latents),))
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.training_target(latents, noise, timesteps)
        predicted = self.unet(noisy, timesteps, text).sample
        functional.mse_loss(predicted.float(), target.float()).backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return waited


def pictures_of(task: ImageTask) -> torch.Tensor:
    """The pictures behind the latents of `task`, uint8 `(count, 3, height, width)`."""
    config = task.config
    request = PoolRequest(
        seed=config.seed, count=config.pool_frames, rank=0, image_size=config.image_size, single_frames=True
    )
    clips = (render_clip(request, index)[0].pixels for index in range(config.pool_frames))
    return torch.stack([((clip[:, 0, 0, 0] + 1) * 127.5).round().to(torch.uint8) for clip in clips])


def captions_of(config: ImageConfig) -> list[str]:
    return [caption_of(sample_scene(config.seed, index), config.seed, 0) for index in range(config.pool_frames)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="of each in a round")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--precision", default="auto", choices=["auto", "no", "bf16", "fp16"], help="the trainer's")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    shipped = checkpoint_path("barnyard")
    config = ImageConfig(
        max_steps=10**6, batch_size=arguments.batch, pool_frames=arguments.pictures, precision=arguments.precision,
        text_rate=0.0, text_cache_mb=256.0, wordings=1, foreground_weight=0.0, log_every=10**9, sample_every=10**9,
    )  # fmt: skip
    accelerator = make_accelerator(config.precision)
    with tempfile.TemporaryDirectory() as work:
        began = time.process_time()
        task = ImageTask(config, shipped / "vae", shipped, Path(work), accelerator.device)
        prepared = time.process_time() - began
        plain_unet = UNet2DConditionModel.from_config(task.module.unet.config)
        plain_unet.load_state_dict(task.module.unet.state_dict())
        pixels, ids = pictures_of(task), tokenize(task.tokenizer, captions_of(config))
        plain = PlainLoop(plain_unet, task.vae, task.module.text_encoder, pixels, ids, config)
        trainer = Trainer(task, replace(config), Path(work), accelerator, resume=False)
        # The captions of an epoch, and the empty one, so that no turn pays for what a run pays once.
        task.module.encode(torch.cat([ids, tokenize(task.tokenizer, [""])]))
        loops = {"plain": plain.step, "trainer": lambda: trainer.train_step(0.0)[1]}
        rounds = [
            {name: turn(loop, arguments.steps) for name, loop in loops.items()}
            for _ in range(arguments.rounds + 1)
        ][1:]  # fmt: skip
    tell(rounds, arguments, prepared, str(accelerator.mixed_precision))
    return 0


def turn(step: object, steps: int) -> dict[str, float]:
    """Seconds of `steps` steps: by the clock, of the processor, and of waiting for data."""
    wall, cores = time.monotonic(), time.process_time()
    waited = sum(step() for _ in range(steps))
    return {"wall": time.monotonic() - wall, "cores": time.process_time() - cores, "waited": waited}


def tell(rounds: list[dict], arguments: argparse.Namespace, prepared: float, precision: str) -> None:
    samples = arguments.rounds * arguments.steps * arguments.batch
    sums = {name: {key: sum(each[name][key] for each in rounds) for key in rounds[0][name]} for name in rounds[0]}
    for name, seconds in sums.items():
        print(
            f"{name}: {samples / seconds['wall']:.2f} samples a second, {samples / seconds['cores']:.2f} a "
            f"core-second, {seconds['waited'] / seconds['wall']:.2%} of the time waiting for data"
        )
    for key, title in (("wall", "wall time"), ("cores", "processor time")):
        ratios = [each["plain"][key] / each["trainer"][key] for each in rounds]
        total = sums["plain"][key] / sums["trainer"][key]
        print(f"plain / trainer in {title}: {total:.2f} in all, {statistics.median(ratios):.2f} in the median turn")
    print(
        f"threads {torch.get_num_threads()}, trainer's precision {precision}; rendering and encoding "
        f"{arguments.pictures} pictures before: {prepared:.1f} core-seconds"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"rounds": rounds, "samples": samples}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
