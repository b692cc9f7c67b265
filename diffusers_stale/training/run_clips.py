"""What a run was trained on and what it is tested on: as pictures for a search, and as latents for its network.

Of barnyards only; other data has its own files to look at.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open

from diffusers_stale.axes import middle_index
from diffusers_stale.data.captions import caption_of
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.data.splits import RANK_STRIDE, ContaminatedSplit
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.text_encoding import encode_tokens, tokenize
from diffusers_stale.training.config import DenoisingConfig, ImageConfig, MovieConfig
from diffusers_stale.training.denoising import load_text
from diffusers_stale.training.latents import PoolRequest, encode, render_clip, render_pool
from diffusers_stale.training.reports import read_config, read_report
from diffusers_stale.training.samples import decode_images
from diffusers_stale.unet_stale import StaleUNet5DConditionModel


POOLS = {"image": "frames", "movie": "static"}
"""The pool of each denoising stage of which single pictures are taken."""

DECODED = 64


@dataclass(frozen=True, kw_only=True)
class RunClips:
    """A denoising stage of a run folder, and the split that it was trained on."""

    run: Path
    stage: str
    config: DenoisingConfig
    split: ContaminatedSplit

    @property
    def folder(self) -> Path:
        return self.run / self.stage

    @property
    def request(self) -> PoolRequest:
        """What was rendered for training, of the first process."""
        config = self.config
        if isinstance(config, ImageConfig):
            request = PoolRequest(
                seed=config.seed,
                count=self.split.train_clips,
                rank=0,
                image_size=config.image_size,
                single_frames=True,
            )
        else:
            request = PoolRequest(
                seed=config.seed, count=self.split.train_clips, rank=0, image_size=config.image_size,
                view_rows=config.view_rows, view_cols=config.view_cols, frames=1, moments=config.num_frames,
                baselines=config.baselines,
            )  # fmt: skip
        return replace(request, split=self.split)

    @property
    def test_request(self) -> PoolRequest:
        """What the test set is rendered with."""
        count = self.config.test_scenes
        return replace(self.request, seed=self.config.held_out_seed, count=count, split=None)

    def numbers(self) -> list[int]:
        """The numbers of all training clips."""
        split = self.split
        return [rank * RANK_STRIDE + index for rank in range(split.processes) for index in range(split.train_clips)]


def is_run(source: str | Path) -> bool:
    """Whether `source` is a run folder of which a stage can be looked into."""
    return any((Path(source) / stage / "training_report.json").is_file() for stage in POOLS)


def open_run(run: Path, stage: str | None = None) -> RunClips:
    """The `stage` of a run folder, by default the last one that there is; `ValueError` where there is none."""
    stages = [name for name in POOLS if (run / name / "training_report.json").is_file()]
    if not stages or stage not in (None, *stages):
        got = ", ".join(stages) or "none"
        raise ValueError(f"{run} must hold a trained stage {stage or ' or '.join(POOLS)}, got {got}; train it first.")
    stage = stage or stages[-1]
    report = read_report(run / stage)
    config, processes = read_config(report), report["processes"]
    if not config.renders:
        raise ValueError(
            f"The stage {stage} of {run} must be trained on barnyards to be asked for its own sets, got data="
            f"{config.data}; give the two sets instead: stale-diffusion contamination TEST_FOLDER TRAINING_FOLDER."
        )
    clips = config.pool_frames if isinstance(config, ImageConfig) else config.static_clips
    split = ContaminatedSplit(
        train_seed=config.seed,
        test_seed=config.held_out_seed,
        train_clips=max(clips // processes, 1),
        test_scenes=config.test_scenes,
        fraction=config.contamination,
        processes=processes,
    )
    return RunClips(run=run, stage=stage, config=config, split=split)


def training_pictures(clips: RunClips) -> Iterator[tuple[str, torch.Tensor]]:
    """One picture of every training clip: decoded from the pool that was trained on, or rendered again without it.

    What the run says about its leaks is not used where the pool is there, so that it can be checked.
    """
    files = pool_files(clips)
    if not files:
        for number in clips.numbers():
            yield f"train:{number}", _middle(render_clip(clips.request, number)[0].pixels)
        return
    vae = autoencoder_of(clips)
    for path in files:
        with safe_open(path, framework="pt") as file:
            latents, scenes = file.get_tensor("latents"), file.get_tensor("scenes").tolist()
        for start in range(0, len(latents), DECODED):
            part = torch.stack([_middle(latent) for latent in latents[start : start + DECODED]])
            for scene, picture in zip(scenes[start:], decode_images(vae, part.float(), DECODED), strict=False):
                yield f"train:{scene}", picture


def test_pictures(clips: RunClips) -> Iterator[tuple[str, torch.Tensor]]:
    """One picture of every test scene: through the autoencoder where `training_pictures` come from there.

    What an autoencoder loses would else hide leaks: it keeps less of pictures of another size than it was trained on.
    """
    request = clips.test_request
    vae = autoencoder_of(clips) if pool_files(clips) else None
    for start in range(0, request.count, DECODED):
        numbers = range(start, min(start + DECODED, request.count))
        pictures = torch.stack([_middle(render_clip(request, number)[0].pixels) for number in numbers])
        if vae is not None:
            latents = encode(vae, pictures[:, :, None, None, None], DECODED)[:, :, 0, 0, 0]
            pictures = decode_images(vae, latents.half().float(), DECODED)
        yield from zip((f"test:{number}" for number in numbers), pictures, strict=True)


def pool_files(clips: RunClips) -> list[Path]:
    """The pools that a stage was trained on, one of each process, as far as they are there."""
    return sorted((clips.run / f"{clips.stage}_run").glob(f"{POOLS[clips.stage]}-*.safetensors"))


def autoencoder_of(clips: RunClips) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(clips.folder / "vae", torch_dtype=torch.float32).eval()


def _middle(clip: torch.Tensor) -> torch.Tensor:
    """The middle view and frame of `(channels, view_rows, view_cols, frames, height, width)`."""
    row, col, frame = (middle_index(count) for count in clip.shape[1:4])
    return clip[:, row, col, frame]


class RunNetwork:
    """The exported network of a stage with its process, in float32, as `evaluation.membership` asks it."""

    def __init__(self, clips: RunClips):
        folder = clips.folder
        self.is_5d = isinstance(clips.config, MovieConfig)
        kind = StaleUNet5DConditionModel if self.is_5d else UNet2DConditionModel
        self.unet = kind.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
        self.text_encoder, self.tokenizer = load_text(folder)
        self.vae = autoencoder_of(clips)
        self.scheduler = StaleScheduler.from_pretrained(folder / "scheduler")

    def predict(self, sample: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timesteps, text).sample

    @torch.no_grad()
    def inputs(self, request: PoolRequest, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents `(count, channels, ...)` and texts `(count, tokens, channels)` of single pictures of the clips."""
        pool = render_pool(self.vae, request, DECODED, numbers=numbers)
        latents = torch.stack([_middle(latent) for latent in pool.latents]).float()
        keys = [request.key(number) for number in numbers]
        captions = [caption_of(sample_scene(*key), *key) for key in keys]
        texts = encode_tokens(self.text_encoder.eval(), tokenize(self.tokenizer, captions))
        return (latents[:, :, None, None, None] if self.is_5d else latents), texts


def members_and_others(clips: RunClips, count: int) -> tuple[list[int], list[int]]:
    """Numbers of `count` training clips and of as many test scenes that have not leaked, evenly spread."""
    leaked = set(clips.split.leaked.values())
    others = [index for index in range(clips.config.test_scenes) if index not in leaked]
    return _spread(clips.numbers(), count), _spread(others, count)


def _spread(numbers: list[int], count: int) -> list[int]:
    return [numbers[place * len(numbers) // count] for place in range(count)] if count < len(numbers) else numbers
