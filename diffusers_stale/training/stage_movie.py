"""Stage 4: the 2D UNet, inflated, learns views and time on sub-grids of encoded light-field movies."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from diffusers_stale.axes import IMAGE_AXES, fold, middle_index, sizes, unfold
from diffusers_stale.data.scenes import random_generator
from diffusers_stale.inflation import new_parameter_names
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.training.clip_data import Piece
from diffusers_stale.training.components import take_weights
from diffusers_stale.training.config import MovieConfig
from diffusers_stale.training.denoising import (
    BATCH_STREAM,
    SHUFFLE_STREAM,
    DenoisingTask,
    held_out_captions,
    load_text,
    stacked,
    take,
)
from diffusers_stale.training.grids import Grid, cut, draw_grid, fits, parse_grids
from diffusers_stale.training.known import draw_known_masks
from diffusers_stale.training.latents import LatentPool, PoolRequest, cached_pool, render_pool
from diffusers_stale.training.mess_up import shuffled
from diffusers_stale.training.provenance import tensors_hash
from diffusers_stale.training.reports import taught_joy
from diffusers_stale.training.samples import PROMPTS, Shown, decode_images, movie_of_views
from diffusers_stale.training.vocabulary import CRYING_JOY, save_tokenizer
from diffusers_stale.unet_stale import StaleUNet5DConditionModel


GRID_STREAM, KNOWN_STREAM = 51, 53
HELD_OUT = 4
HELD_OUT_KEY = (9, 9, 9)
SHOWN = 2
"""Movies that a contact sheet of samples shows."""


class MovieTask(DenoisingTask):
    """The inflated UNet of the image stage, on a pool of static clips and a pool of movies."""

    config: MovieConfig

    def __init__(
        self, config: MovieConfig, image_folder: Path, run_folder: Path, device: torch.device, rank: int = 0,
        processes: int = 1,
    ):  # fmt: skip
        vae = AutoencoderKL.from_pretrained(image_folder / "vae").to(device)
        text_encoder, tokenizer = load_text(image_folder)
        torch.manual_seed(config.seed)
        unet = start_network(config, image_folder)
        scheduler = StaleScheduler.from_pretrained(image_folder / "scheduler")
        super().__init__(config, unet, text_encoder, tokenizer, vae, scheduler, device)
        self.inherits_joy = taught_joy(image_folder)
        self.largest = (config.view_rows, config.view_cols, config.num_frames)
        self.static_grids = parse_grids(config.static_grids, None if config.has_clips else self.largest)
        self.moving_grids = parse_grids(config.moving_grids, None if config.has_clips else self.largest)
        self.run_folder = run_folder
        self.pools: dict[str, LatentPool] = {}
        if config.renders:
            views, share = (config.view_rows, config.view_cols), (run_folder, rank, processes)
            self.pools["static"] = self.make_pool("static", config.static_clips, (*views, 1), *share)
            self.pools["moving"] = self.make_pool("moving", config.moving_clips, (*views, config.num_frames), *share)
            if config.single_view_clips:
                size = (1, 1, config.num_frames)
                self.pools["single_view"] = self.make_pool("single_view", config.single_view_clips, size, *share)
        self.layering = {"size": (config.view_rows, config.view_cols), "baselines": config.baselines}
        self.mixture = self.open_mixture(
            self.grids, run_folder, rank, processes, BarnyardMovies(self), **self.layering
        )
        self.held_out: LatentPool | None = None

    def make_pool(
        self, name: str, count: int, size: tuple[int, int, int], run_folder: Path, rank: int, processes: int
    ) -> LatentPool:
        """This process's share of `count` clips of `size` (rows, columns, frames)."""
        share = max(count // processes, 1)
        request = self.request(self.config.seed, share, size, rank)
        request = replace(request, split=self.make_split(name, share, processes))
        return cached_pool(self.vae, request, self.config.encode_batch, run_folder / f"{name}-{rank}.safetensors")

    def request(self, seed: int, count: int, size: tuple[int, int, int], rank: int) -> PoolRequest:
        config = self.config
        view_rows, view_cols, frames = size
        return PoolRequest(
            seed=seed,
            count=count,
            rank=rank,
            image_size=config.image_size,
            view_rows=view_rows,
            view_cols=view_cols,
            frames=frames,
            moments=config.num_frames,
            baselines=config.baselines,
        )

    @property
    def grids(self) -> tuple[Grid, ...]:
        return (*self.static_grids, *self.moving_grids)

    def fingerprints(self) -> dict[str, str]:
        if self.mixture is not None:
            return self.mixture.fingerprints()
        return {name: tensors_hash(vars(pool)) for name, pool in self.pools.items()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        parameters = list(self.module.unet.named_parameters())
        # Beside frozen weights all that is trained is new.
        of_adapter = self.config.trainable == "lora"
        new = {name for name, _ in parameters} if of_adapter else set(new_parameter_names(self.module.unet))
        return [
            {"params": [item for name, item in parameters if name in new], "lr": 1.0},
            {"params": [item for name, item in parameters if name not in new], "lr": self.config.inherited_rate},
            {"params": list(self.module.text_encoder.parameters()), "lr": self.config.text_rate},
        ]

    def grid(self, step: int, fraction: float) -> Grid:
        """The grid of a step: the same for all processes."""
        grids = self.static_grids if fraction < self.config.static_share else self.moving_grids
        return draw_grid(random_generator(self.config.seed, step, GRID_STREAM), grids)

    def batch(self, step: int, rank: int, fraction: float) -> dict[str, torch.Tensor]:
        grid = self.grid(step, fraction)
        if self.mixture is None:
            return self.rendered_batch(grid, step, rank, fraction)
        pieces = self.mixture.batch(step, rank, grid, lambda later: self.grid(later, fraction))
        batch = self.piece_batch(pieces, step, rank, fraction)
        draw = random_generator(self.config.seed, step, rank, KNOWN_STREAM)
        baselines = torch.tensor([piece.baseline for piece in pieces])
        return self.with_views(batch, grid, baselines, draw, step, rank)

    def rendered_batch(self, grid: Grid, step: int, rank: int, fraction: float) -> dict[str, torch.Tensor]:
        """A batch of barnyards alone."""
        name, pool = self.pool_of(grid)
        draw = random_generator(self.config.seed, step, rank, BATCH_STREAM)
        chosen = draw.integers(len(pool), size=grid.batch_size).tolist()
        last = pool.latents.shape[-3] - grid.frames
        starts = draw.integers(last + 1, size=grid.batch_size).tolist()
        clips = list(zip(chosen, starts, strict=True))
        latents = torch.stack([cut(pool.latents[clip], grid, start) for clip, start in clips])
        shares = torch.stack([cut(pool.foreground[clip], grid, start) for clip, start in clips])
        captions = self.captions(pool.scenes[chosen].tolist(), self.splits[name], draw)
        batch = self.training_batch(latents, shares, captions, step, rank, fraction)
        return self.with_views(batch, grid, pool.baselines[chosen], draw, step, rank)

    def pool_of(self, grid: Grid) -> tuple[str, LatentPool]:
        """The pool that clips of this grid are cut from, with its name."""
        if grid.frames == 1:
            name = "static"
        else:
            single = grid.view_rows * grid.view_cols == 1 and "single_view" in self.pools
            name = "single_view" if single else "moving"
        return name, self.pools[name]

    def with_views(
        self, batch: dict[str, torch.Tensor], grid: Grid, baselines: torch.Tensor, draw: np.random.Generator,
        step: int, rank: int,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """`batch` with what a 2D network is not told: what is known, baselines; and with shuffles."""
        config = self.config
        # Noise and target are made; what is seen instead follows from the same latents.
        more = self.shuffles(batch["latents"].cpu(), step, rank) | {"baselines": baselines.to(self.device)}
        if config.known_share > 0:
            # Also where nothing is known, so that every weight has its gradient in every process.
            size = (grid.view_rows, grid.view_cols, grid.frames)
            masks = torch.from_numpy(draw_known_masks(draw, grid.batch_size, size, config.known_share))
            more |= {"known_mask": masks[:, None, ..., None, None].to(self.device, torch.float32)}
        return batch | more

    @property
    def negative_prompt(self) -> str:
        """What samples are guided away from: joy if this stage or the one before it was taught so."""
        return CRYING_JOY if self.inherits_joy else super().negative_prompt

    def shuffles(self, latents: torch.Tensor, step: int, rank: int) -> dict[str, torch.Tensor]:
        """What the network sees in the place of `latents`, where views or frames are shuffled."""
        config = self.config
        if config.view_shuffle_rate == config.frame_shuffle_rate == 0:
            return {}
        draw = random_generator(config.seed, step, rank, SHUFFLE_STREAM)
        seen = shuffled(latents.float(), "view", config.view_shuffle_rate, config.view_shuffle, draw)
        seen = shuffled(seen, "frame", config.frame_shuffle_rate, config.frame_shuffle, draw)
        return {"seen_latents": seen.to(self.device)}

    def batch_images(self, batch: dict[str, torch.Tensor]) -> int:
        axis_sizes = sizes(batch["latents"])
        return axis_sizes["batch"] * axis_sizes["view_rows"] * axis_sizes["view_cols"] * axis_sizes["frames"]

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Unweighted denoising loss, with the same noise every time: on movies of another seed, on held-out clips."""
        found = {"held_out_loss": self.rendered_loss()} if self.config.renders else {}
        if self.config.held_out_data is not None:
            pieces = self.held_out_pieces(self.run_folder, self.grids, HELD_OUT, **self.layering)
            baselines = torch.tensor([piece.baseline for piece in pieces])
            captions = [piece.caption for piece in pieces]
            found["held_out_clips_loss"] = self.mean_loss(*stacked(pieces), captions, baselines)
        return found

    def rendered_loss(self) -> float:
        config = self.config
        if self.held_out is None:
            count = min(HELD_OUT, config.moving_clips)
            request = self.request(config.held_out_seed, count, self.largest, 0)
            self.held_out = render_pool(self.vae, request, config.encode_batch)
        latents, shares, scenes = take(self.held_out, list(range(len(self.held_out))))
        captions = held_out_captions(config, scenes)
        return self.mean_loss(latents, shares, captions, self.held_out.baselines)

    def mean_loss(
        self, latents: torch.Tensor, shares: torch.Tensor, captions: list[str], baselines: torch.Tensor
    ) -> float:
        losses = []
        for index in range(len(latents)):
            chosen = slice(index, index + 1)
            batch = self.noised_batch(latents[chosen], shares[chosen], captions[chosen], (*HELD_OUT_KEY, index), 0.0)
            more = {"pixel_weights": None, "baselines": baselines[chosen].to(self.device)}
            losses.append(float(self.module(**batch | more)))
        return sum(losses) / len(losses)

    def sample(self) -> Shown:
        """The movies, and two rows of pictures each: views at the middle frame, and frames of the middle view."""
        movies = self.sample_prompts(self.prompts(PROMPTS[:SHOWN]), self.latent_shape(*self.largest))
        pixels = unfold(decode_images(self.vae, fold(movies, IMAGE_AXES)), IMAGE_AXES, sizes(movies))
        axis_sizes = sizes(pixels)
        row, col, frame = (middle_index(axis_sizes[name]) for name in ("view_rows", "view_cols", "frames"))
        columns = max(axis_sizes["view_rows"] * axis_sizes["view_cols"], axis_sizes["frames"])
        rows = []
        for movie in pixels:
            views = movie[:, :, :, frame].flatten(1, 2).transpose(0, 1)
            frames = movie[:, row, col].transpose(0, 1)
            for pictures in (views, frames):
                blank = torch.ones(columns - len(pictures), *pictures.shape[1:])
                rows.append(torch.cat([pictures, blank]))
        return Shown(pictures=torch.cat(rows), columns=columns, movie=movie_of_views(pixels))

    def export(self, folder: Path) -> None:
        """A complete `StaleDiffusionPipeline` in float16, with the LoRA beside it where one was trained."""
        # Here and not above: of all that is trained, only this result needs the pipeline.
        from diffusers_stale.pipeline_stale import StaleDiffusionPipeline

        self.export_adapter(folder)
        pipeline = StaleDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.module.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.module.unet,
            scheduler=self.scheduler,
            default_negative_prompt=self.negative_prompt,
        )
        pipeline.to(dtype=torch.float16)
        pipeline.save_pretrained(folder)
        save_tokenizer(self.tokenizer, folder / "tokenizer")


class BarnyardMovies:
    """The pools of a task as one source among others."""

    weight, streams = 1.0, False

    def __init__(self, task: MovieTask) -> None:
        self.task = task

    def serves(self, grid: Grid) -> bool:
        return fits(grid, self.task.largest)

    def piece(self, grid: Grid, position: int, attempt: int, draw: np.random.Generator) -> Piece:
        name, pool = self.task.pool_of(grid)
        index = int(draw.integers(len(pool)))
        start = int(draw.integers(pool.latents.shape[-3] - grid.frames + 1))
        return Piece(
            caption=self.task.caption(int(pool.scenes[index]), self.task.splits[name], draw),
            baseline=float(pool.baselines[index]),
            latents=cut(pool.latents[index], grid, start),
            shares=cut(pool.foreground[index], grid, start),
        )

    def fingerprint(self) -> str:
        pools = self.task.pools.items()
        return tensors_hash({f"{name}/{key}": value for name, pool in pools for key, value in vars(pool).items()})


def start_network(config: MovieConfig, folder: Path) -> StaleUNet5DConditionModel:
    """The 5D UNet of the pipeline in `folder`, or its 2D UNet inflated; new layers may come from `start_from`.

    Raises `ValueError` for a 5D UNet without an input for what is known where `known_share` asks for one, and for a
    LoRA on new layers that nobody has trained: their output is zero, and would stay so.
    """
    inflate = json.loads((folder / "unet" / "config.json").read_text())["_class_name"] == "UNet2DConditionModel"
    known = config.known_share > 0
    if inflate:
        parent = UNet2DConditionModel.from_pretrained(folder / "unet")
        unet = StaleUNet5DConditionModel.from_unet2d(parent, known_conditioning=known)
    else:
        unet = StaleUNet5DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    if known and not unet.config.known_conditioning:
        raise ValueError(
            f"`known_share` must be 0 for a network without known_conditioning, got {config.known_share} for "
            f"{folder}; set known_share=0."
        )
    if config.start_from is not None:
        take_new_weights(unet, Path(config.start_from))
    elif inflate and config.trainable == "lora":
        raise ValueError(
            f"`trainable` lora needs view and time layers that were trained, got a 2D network in {folder}; give a "
            "movie pipeline as --image, or one to take them from as start_from."
        )
    return unet


def take_new_weights(unet: StaleUNet5DConditionModel, pipeline_folder: Path) -> None:
    """Copies view and time layers of the pipeline in `pipeline_folder`, and its layer for what is known if it has one.

    Raises as `take_weights` does.
    """
    path = pipeline_folder / "unet" / "config.json"
    names = new_parameter_names(unet)
    if path.is_file() and not json.loads(path.read_text()).get("known_conditioning", False):
        names = [name for name in names if not name.startswith("known_in.")]
    take_weights(unet, names, pipeline_folder)
