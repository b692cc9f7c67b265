"""What a run can be asked for beside its data: what is trained, how precisely, averaged how, and what it tells."""

import dataclasses
import gc
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_stale import StaleDiffusionPipeline
from diffusers_stale.inflation import is_new_parameter
from diffusers_stale.light_field.video import read_video
from diffusers_stale.manifest import manifest_problems
from diffusers_stale.training.averages import AVERAGES, MovingAverage, power_exponent
from diffusers_stale.training.checkpoints import Checkpoint, load_checkpoint, newest_checkpoint
from diffusers_stale.training.config import (
    PRESETS,
    AutoencoderConfig,
    ImageConfig,
    MovieConfig,
    StageConfig,
    TextConfig,
    TrainingConfig,
)
from diffusers_stale.training.decoders import exchange_decoder
from diffusers_stale.training.grids import Grid
from diffusers_stale.training.loop import Trainer
from diffusers_stale.training.losses import CONTRASTS, LOSSES
from diffusers_stale.training.processes import make_accelerator
from diffusers_stale.training.samples import movie_of_views
from diffusers_stale.training.stage_image import ImageTask
from diffusers_stale.training.stage_movie import MovieTask
from diffusers_stale.training.stages import TASKS, train_stage
from diffusers_stale.training.text_cache import TextCache


pytestmark = pytest.mark.usefixtures("one_thread")

SMOKE = PRESETS["smoke"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the stages before the movie stage."""
    folder = tmp_path_factory.mktemp("run")
    for stage in ("autoencoder", "text", "image"):
        train_stage(stage, SMOKE, folder)
    return folder


@pytest.fixture(scope="module")
def movie_folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete pipeline, whose new layers do something."""
    folder = tmp_path_factory.mktemp("movie")
    movie = replace(SMOKE.movie, learning_rate=0.02, max_steps=3, ema_decay=0.0, hinge_weight=0.0)
    train_stage("movie", replace(SMOKE, movie=movie), folder, parents={"image": run_folder / "image"})
    return folder / "movie"


@pytest.fixture
def other_precision() -> Iterator[None]:
    """Accelerate keeps one precision a process; what is trained here may have another."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def image_task(run_folder: Path, work: Path, **changes: object) -> ImageTask:
    config = replace(SMOKE.image, **changes)
    return ImageTask(config, run_folder / "autoencoder", run_folder / "text", work, CPU)


def trained_movie(parent: Path, folder: Path, **changes: object) -> Checkpoint:
    """Trains the movie stage; returns its last state."""
    config = replace(SMOKE, movie=replace(SMOKE.movie, **changes))
    train_stage("movie", config, folder, parents={"image": parent})
    return load_checkpoint(newest_checkpoint(folder / "movie_run" / "checkpoints")[0])


def assert_same(ours: Checkpoint, theirs: Checkpoint) -> None:
    for part in ("model", "ema", "optimizer"):
        expected, got = getattr(ours, part), getattr(theirs, part)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected), part


def weights_of(pipeline: Path) -> dict[str, torch.Tensor]:
    return load_file(pipeline / "unet" / "diffusion_pytorch_model.safetensors")


# ---- what is trained -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["view_layers", "new_layers"])
def test_only_the_chosen_layers_are_trained(movie_folder: Path, tmp_path: Path, trainable: str):
    state = trained_movie(movie_folder, tmp_path, trainable=trainable, learning_rate=0.1)
    names = {name.removeprefix("unet.") for name in state.model}
    # Positions of time layers are fixed.
    before, after = weights_of(movie_folder), weights_of(tmp_path / "movie")
    parts = {"view_layers", "view_embedding"}
    chosen = {
        name for name in before
        if not name.endswith("pos_embed.pe")
        and (is_new_parameter(name) if trainable == "new_layers" else parts & set(name.split(".")))
    }  # fmt: skip
    assert names == chosen
    assert any("motion_modules" in name for name in names) == (trainable == "new_layers")
    for name in before:
        assert name in chosen or torch.equal(before[name], after[name]), name
    assert any(not torch.equal(before[name], after[name]) for name in chosen)
    encoders = [
        load_file(folder / "text_encoder" / "model.safetensors") for folder in (movie_folder, tmp_path / "movie")
    ]
    assert all(torch.equal(encoders[0][name], encoders[1][name]) for name in encoders[0])


def test_a_lora_alone_is_trained_and_gives_the_pipeline_that_was_exported(movie_folder: Path, tmp_path: Path):
    changes = {"trainable": "lora", "lora_rank": 2, "lora_alpha": 6.0, "learning_rate": 0.05}
    state = trained_movie(movie_folder, tmp_path, **changes)
    assert state.model
    assert all(".lora_" in name for name in state.model)
    assert any("view_layers" in name for name in state.model)
    assert any("motion_modules" in name for name in state.model)
    lora = tmp_path / "movie" / "lora"
    assert [path.name for path in lora.iterdir()] == ["pytorch_lora_weights.safetensors"]
    plain, merged = (
        StaleDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        for folder in (movie_folder, tmp_path / "movie")
    )
    assert not any("lora" in name for name in merged.unet.state_dict())
    adapted = StaleDiffusionPipeline.from_pretrained(movie_folder, torch_dtype=torch.float32)
    adapted.load_lora_weights(lora)
    request = {"view_rows": 3, "view_cols": 1, "num_frames": 2, "height": 32, "width": 32, "num_inference_steps": 2}
    movies = []
    for pipeline in (plain, merged, adapted):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        movies.append(pipeline("a cow", generator=generator, output_type="latent", **request)[0])
    torch.testing.assert_close(movies[1], movies[2], rtol=0, atol=2e-2)
    assert (movies[0] - movies[2]).abs().max() > 5 * (movies[1] - movies[2]).abs().max()


def test_a_lora_run_resumes_to_the_bit(movie_folder: Path, tmp_path: Path):
    changes = {"trainable": "lora", "schedule": "constant", "foreground_anneal": 0.0, "static_share": 0.0}
    whole = trained_movie(movie_folder, tmp_path / "whole", max_steps=3, **changes)
    trained_movie(movie_folder, tmp_path / "parted", max_steps=1, **changes)
    config = replace(SMOKE, movie=replace(SMOKE.movie, max_steps=3, **changes))
    # Its checkpoints hold the LoRA only, which would be merged into whatever is there.
    other = Path(shutil.copytree(movie_folder, tmp_path / "other"))
    unet = other / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(unet).items()}, unet)
    with pytest.raises(ValueError, match="step-00000001 was trained beside other frozen weights"):
        train_stage("movie", config, tmp_path / "parted", resume=True, parents={"image": other})
    train_stage("movie", config, tmp_path / "parted", resume=True, parents={"image": movie_folder})
    assert_same(whole, load_checkpoint(newest_checkpoint(tmp_path / "parted" / "movie_run" / "checkpoints")[0]))


def test_a_lora_of_the_2d_stage_is_read_by_stock_pipelines(run_folder: Path, tmp_path: Path):
    config = replace(SMOKE, image=replace(SMOKE.image, trainable="lora", learning_rate=0.05))
    config = replace(config, image=replace(config.image, start_from=str(run_folder / "image")))
    parents = {name: run_folder / name for name in ("autoencoder", "text")}
    train_stage("image", config, tmp_path, parents=parents)
    adapted = StableDiffusionPipeline.from_pretrained(run_folder / "image")
    adapted.load_lora_weights(tmp_path / "image" / "lora")
    adapted.fuse_lora()
    adapted.unload_lora_weights()
    ours = weights_of(tmp_path / "image")
    for name, value in adapted.unet.state_dict().items():
        torch.testing.assert_close(value, ours[name], rtol=1e-4, atol=1e-5)


def test_a_lora_on_view_layers_that_nobody_trained_is_refused(run_folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="layers that were trained.*--image"):
        trained_movie(run_folder / "image", tmp_path, trainable="lora")


def test_a_run_goes_on_from_a_whole_movie_pipeline(movie_folder: Path, tmp_path: Path):
    trained_movie(movie_folder, tmp_path / "still", learning_rate=1e-12)
    before, after = weights_of(movie_folder), weights_of(tmp_path / "still" / "movie")
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(before[name], after[name], rtol=2e-3, atol=1e-6)
    config = json.loads((movie_folder / "unet" / "config.json").read_text())
    blind = without_known(movie_folder, tmp_path / "blind", config)
    with pytest.raises(ValueError, match="`known_share` must be 0"):
        trained_movie(blind, tmp_path / "refused", known_share=0.5)
    task = MovieTask(replace(SMOKE.movie, known_share=0.0), blind, tmp_path, CPU)
    assert torch.isfinite(task.module(**task.batch(0, 0, 0.0)))


def without_known(movie_folder: Path, target: Path, config: dict) -> Path:
    """The same pipeline, whose network has no input for what is known."""
    shutil.copytree(movie_folder, target)
    (target / "unet" / "config.json").write_text(json.dumps(config | {"known_conditioning": False}))
    kept = {name: value for name, value in weights_of(movie_folder).items() if not name.startswith("known_in.")}
    save_file(kept, target / "unet" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("stage", ["image", "movie"])
def test_gradient_checkpointing_changes_no_gradient(run_folder: Path, movie_folder: Path, tmp_path: Path, stage: str):
    found = []
    for switch in (False, True):
        if stage == "image":
            task = image_task(run_folder, tmp_path, gradient_checkpointing=switch)
        else:
            task = MovieTask(replace(SMOKE.movie, gradient_checkpointing=switch), movie_folder, tmp_path, CPU)
        assert task.module.unet.is_gradient_checkpointing == switch
        task.module.train()
        task.module(**task.batch(1, 0, 0.0)).backward()
        found.append({name: item.grad for name, item in task.module.named_parameters() if item.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], msg=name)


@pytest.mark.usefixtures("float32_encoding")
def test_movies_of_a_single_view_have_scenes_of_their_own(movie_folder: Path, tmp_path: Path):
    config = replace(SMOKE.movie, single_view_clips=5, moving_grids="1x1x2:2:1, 1x3x2:1:1")
    task = MovieTask(config, movie_folder, tmp_path, CPU)
    single, views = (Grid(view_rows=1, view_cols=cols, frames=2, batch_size=2, weight=1.0) for cols in (1, 3))
    name, pool = task.pool_of(single)
    assert (name, len(pool)) == ("single_view", 5)
    assert pool.latents.shape[2:5] == (1, 1, 2)
    assert task.pool_of(views)[0] == "moving"
    assert task.pool_of(replace(single, frames=1))[0] == "static"
    assert task.rendered_batch(single, 0, 0, 0.0)["latents"].shape[2:5] == (1, 1, 2)
    assert task.fingerprints().keys() == {"static", "moving", "single_view"}
    alone = MovieTask(SMOKE.movie, movie_folder, tmp_path, CPU)
    assert alone.pool_of(single)[0] == "moving"
    # A middle view is the same movie, whichever pool holds it.
    middle = alone.pools["moving"].latents[:, :, 1, 1]
    torch.testing.assert_close(pool.latents[:2, :, 0, 0], middle, rtol=0, atol=0.01)
    assert (pool.latents[:2, :, 0, 0] - middle.flip(0)).abs().max() > 0.5, "or any movie would pass"
    with pytest.raises(ValueError, match="`single_view_clips` must be at least 0, got -1"):
        replace(SMOKE.movie, single_view_clips=-1)


# ---- embeddings that are kept --------------------------------------------------------------------------------------


def test_kept_embeddings_are_those_that_would_be_made(run_folder: Path, tmp_path: Path):
    plain = image_task(run_folder, tmp_path, text_rate=0.0)
    kept = image_task(run_folder, tmp_path, text_rate=0.0, text_cache_mb=1.0, wordings=1)
    assert plain.module.text_cache is None
    assert image_task(run_folder, tmp_path, text_cache_mb=1.0).module.text_cache is None
    cache = kept.module.text_cache
    batch = kept.batch(0, 0, 0.0)
    assert not kept.module.text_encoder.training
    first, again = kept.module.encode(batch["input_ids"]), kept.module.encode(batch["input_ids"])
    assert torch.equal(first, again)
    assert cache.hits >= len(batch["input_ids"])
    torch.testing.assert_close(first, plain.module.encode(batch["input_ids"]))
    torch.testing.assert_close(kept.module(**batch), plain.module(**batch))
    # With one wording a scene, an epoch sees all there is.
    for step in range(20):
        kept.module.encode(kept.batch(step, 0, 0.0)["input_ids"])
    before = cache.misses
    assert before <= SMOKE.image.pool_frames + 1
    kept.module.encode(kept.batch(21, 0, 0.0)["input_ids"])
    assert cache.misses == before


def test_the_cache_keeps_to_its_room_and_what_was_wanted_last():
    encoder = lambda ids: SimpleNamespace(last_hidden_state=ids[..., None].expand(-1, -1, 1024).float() / 7)  # noqa: E731
    cache = TextCache(megabytes=3 * 8 * 4096 / 2**20)
    captions = torch.arange(5)[:, None].expand(5, 8).contiguous()
    for index in (0, 1, 2, 0, 3, 4):
        assert torch.equal(cache.encode(encoder, captions[index : index + 1])[0, :, 0], captions[index].float() / 7)
    assert [int(key[0]) for key in cache.kept] == [0, 3, 4]
    assert cache.bytes == sum(row.nbytes for row in cache.kept.values()) <= cache.room
    assert (cache.hits, cache.misses) == (1, 5)


def test_a_run_with_kept_embeddings_resumes_to_the_bit(run_folder: Path, tmp_path: Path):
    changes = {"text_rate": 0.0, "text_cache_mb": 1.0, "wordings": 1, "schedule": "constant", "foreground_anneal": 0.0}
    parents = {name: run_folder / name for name in ("autoencoder", "text")}

    def train(folder: Path, steps: int) -> Checkpoint:
        config = replace(SMOKE, image=replace(SMOKE.image, max_steps=steps, **changes))
        train_stage("image", config, folder, resume=True, parents=parents)
        return load_checkpoint(newest_checkpoint(folder / "image_run" / "checkpoints")[0])

    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "parted", 2)
    assert_same(whole, train(tmp_path / "parted", 4))
    assert not any(name.startswith("text_encoder") for name in whole.model)


# ---- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("other_precision")
def test_scaled_losses_in_half_precision_give_the_gradients_of_full_precision(run_folder: Path, tmp_path: Path):
    """The weights after one step of half precision are those after one of full precision, but for its roundings."""
    moved = {}
    for precision in ("no", "fp16"):
        AcceleratorState._reset_state(True)
        config = replace(SMOKE.image, precision=precision, max_steps=1, warmup_steps=0, schedule="constant")
        task = image_task(run_folder, tmp_path, precision=precision)
        before = {name: item.detach().clone() for name, item in task.module.named_parameters()}
        trainer = Trainer(task, config, tmp_path / precision, make_accelerator(precision), resume=False)
        trainer.scaler._init_scale = 2.0**10
        trainer.train_step(0.0)
        assert trainer.skipped == 0
        moved[precision] = torch.cat(
            [(item.detach() - before[name]).flatten() for name, item in task.module.named_parameters()]
        )
    assert moved["fp16"].abs().max() > 0
    assert torch.cosine_similarity(moved["no"], moved["fp16"], dim=0) > 0.9


@pytest.mark.usefixtures("other_precision")
def test_overflowing_gradients_lower_the_scale_and_the_scale_survives_resumption(run_folder: Path, tmp_path: Path):
    task = image_task(run_folder, tmp_path)
    config = replace(SMOKE.image, precision="fp16", max_steps=4)
    trainer = Trainer(task, config, tmp_path / "run", make_accelerator("fp16"), resume=False)
    trainer.scaler._init_scale = 2.0**60
    before = [parameter.detach().clone() for parameter in task.module.parameters()]
    trainer.train_step(0.0)
    assert trainer.skipped == 1
    assert trainer.scaler.get_scale() == 2.0**59
    assert all(torch.equal(old, new) for old, new in zip(before, task.module.parameters(), strict=True))
    trainer.save()
    resumed = Trainer(image_task(run_folder, tmp_path), config, tmp_path / "run", trainer.accelerator, resume=True)
    assert resumed.scaler.get_scale() == 2.0**59
    resumed.train_step(0.0)
    assert resumed.scaler.get_scale() == 2.0**58
    assert resumed.skipped_in_a_row == 2


# ---- moving averages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_the_power_average_remembers_a_fixed_share_of_the_run(width: float):
    """Weights that are the step's number: their average and its spread are those of the profile t ^ gamma."""
    gamma = power_exponent(width)
    assert (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5 == pytest.approx(width)
    step, square = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    config = StageConfig(ema_form="power", ema_width=width)
    average = MovingAverage({"step": step, "square": square}, AVERAGES[config.ema_form](config))
    length = 3000
    with torch.no_grad():
        for number in range(1, length + 1):
            step.fill_(number / length)
            square.fill_((number / length) ** 2)
            average.update(number)
    mean, second = (float(value) for value in average.average)
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=2e-3)
    assert np.sqrt(second - mean**2) == pytest.approx(width, rel=2e-2)


def test_the_first_power_average_is_the_first_weights_and_constant_ones_warm_up():
    power, constant = (AVERAGES[form](StageConfig(ema_decay=0.9)) for form in ("power", "constant"))
    assert power(1) == 0.0
    assert constant(1) == pytest.approx(2 / 11)
    assert constant(10**6) == 0.9
    with pytest.raises(ValueError, match="ema_width"):
        StageConfig(ema_width=0.4)
    with pytest.raises(ValueError, match=r"below 0\.289"):
        power_exponent(0.3)


def test_a_run_with_a_power_average_ends_with_it(tmp_path: Path):
    config = replace(SMOKE, text=replace(SMOKE.text, ema_form="power", ema_width=0.1, max_steps=3))
    train_stage("text", config, tmp_path)
    state = load_checkpoint(newest_checkpoint(tmp_path / "text_run" / "checkpoints")[0])
    exported = load_file(tmp_path / "text" / "text_encoder" / "model.safetensors")
    name = next(name for name in state.ema if name.startswith("text_encoder.") and name.endswith("fc1.weight"))
    # The exported encoder drops the prefix of the module that it was trained in, and perhaps one of its own.
    theirs = next(value for key, value in exported.items() if name.endswith(key.removeprefix("text_model.")))
    assert torch.equal(state.ema[name], theirs)
    assert not torch.equal(state.ema[name], state.model[name])


# ---- what a run tells ----------------------------------------------------------------------------------------------


def test_the_log_tells_samples_frames_and_tokens_a_second(movie_folder: Path, tmp_path: Path):
    trained_movie(movie_folder, tmp_path, static_grids="3x3x1:2:1", moving_grids="1x3x2:1:1", max_steps=4)
    lines = [line for line in (tmp_path / "movie_run" / "log.txt").read_text().splitlines() if "tokens/s" in line]
    assert len(lines) == 4
    pattern = re.compile(r"([\d.]+) samples/s ([\d.]+) frames/s ([\d.]+) tokens/s data \d+% elapsed \d+ s left \d+ s")
    for line, frames in zip(lines, (9, 9, 6, 6), strict=True):
        samples, seen, tokens = map(float, pattern.search(line).groups())
        # Rounded figures: of nine frames each sample, and of 8 x 8 latent pixels each frame.
        assert seen == pytest.approx(frames * samples, rel=0.3, abs=0.7)
        assert tokens == pytest.approx(64 * seen, rel=0.3, abs=33)


def live_bytes() -> int:
    """Bytes of all tensors that anything still holds; not of those that compilers of other tests pretend to have."""
    gc.collect()
    storages = {
        item.untyped_storage().data_ptr(): item.untyped_storage().nbytes()
        for item in gc.get_objects()
        if type(item) in (torch.Tensor, torch.nn.Parameter) and item.device.type == "cpu" and not item.is_sparse
    }
    return sum(storages.values())


def test_validation_and_samples_do_not_let_memory_grow(movie_folder: Path, tmp_path: Path, monkeypatch):
    """After the first, which renders the held-out set, every validation leaves as much behind as it found."""
    sizes = []
    show = Trainer.show

    def measured(trainer: Trainer, *arguments: object) -> None:
        show(trainer, *arguments)
        sizes.append(live_bytes())

    monkeypatch.setattr(Trainer, "show", measured)
    trained_movie(movie_folder, tmp_path, max_steps=5, sample_every=1)
    assert len(sizes) == 5
    kinds = [path.suffix for path in (tmp_path / "movie_run" / "samples").iterdir()]
    assert (kinds.count(".png"), kinds.count(".mp4"), len(kinds)) == (5, 5, 10)
    # Batches of different size may be held in turn: a leak of one sampled movie a time would be more.
    assert max(sizes[2:]) - min(sizes[2:]) < 100_000, sizes


def test_validation_movies_are_files_and_move_in_tensorboard(movie_folder: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained_movie(movie_folder, tmp_path, max_steps=2, sample_every=1, num_frames=2, moving_grids="3x3x2:1:1")
    run = tmp_path / "movie_run"
    for step in (1, 2):
        movie = read_video(run / "samples" / f"step-{step:08d}.mp4")
        # Two light fields side by side, each of 3x3 views of 32 pixels with gaps of 2, enlarged twice.
        assert movie.shape == (3, 2, 2 * (3 * 32 + 2 * 2), 2 * (6 * 32 + 5 * 2))
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {"samples/sheet", "samples/movie"}
    for step, event in zip((1, 2), events.Images("samples/movie"), strict=True):
        assert (event.step, event.height, event.width) == (step, 200, 404)
        with Image.open(BytesIO(event.encoded_image_string)) as picture:
            assert (picture.format, picture.n_frames) == ("GIF", 2)
    (sheet, _) = events.Images("samples/sheet")
    written = (run / "samples" / "step-00000001.png").read_bytes()
    assert sheet.encoded_image_string == written


@pytest.mark.parametrize(
    ("grid", "frames", "size"),
    [((3, 2, 4), 4, (3 * 8 + 4, 4 * 6 + 6)), ((3, 2, 1), 6, (8, 2 * 6 + 2)), ((1, 1, 5), 5, (8, 14))],
)
def test_a_movie_of_views_shows_every_picture_where_it_belongs(grid: tuple, frames: int, size: tuple[int, int]):
    rows, cols, moments = grid
    numbers = torch.arange(2 * rows * cols * moments, dtype=torch.float32).reshape(2, 1, *grid, 1, 1)
    movie = movie_of_views((numbers / numbers.max() * 2 - 1).expand(2, 3, *grid, 8, 6))
    assert movie.shape == (3, frames, *size)
    seen = ((movie + 1) / 2 * numbers.max()).round()
    if moments > 1:
        shown = seen[0, :, ::10, ::8].reshape(moments, rows, 2, cols).permute(2, 1, 3, 0)
        assert torch.equal(shown, numbers[:, 0, ..., 0, 0])
    else:
        # Row by row, to and fro, so that neighbours in time are neighbours in space.
        assert seen[0, :, 0, 0].tolist() == [0, 1, 3, 2, 4, 5]


def test_a_single_picture_is_no_movie():
    assert movie_of_views(torch.zeros(2, 3, 1, 1, 1, 8, 8)) is None


class Recorder(SimpleNamespace):
    """What is used of trackio, recorded."""

    def __init__(self) -> None:
        super().__init__(inits=[], logged=[], finished=0)

    def init(self, **settings: object) -> None:
        self.inits.append(settings)

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    def Image(self, path: str) -> tuple[str, str]:
        return ("image", path)

    def Video(self, path: str) -> tuple[str, str]:
        return ("video", path)


def test_sheets_and_movies_go_to_trackio_too(movie_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "trackio", recorder)
    trained_movie(movie_folder, tmp_path, max_steps=1, sample_every=1, trackers=("trackio",))
    stem = tmp_path / "movie_run" / "samples" / "step-00000001"
    assert (1, {"samples/sheet": ("image", f"{stem}.png")}) in recorder.logged
    assert (1, {"samples/movie": ("video", f"{stem}.mp4")}) in recorder.logged


def test_figures_go_to_trackio_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "trackio", recorder)
    for steps in (2, 3):
        settings = replace(SMOKE.text, trackers=("tensorboard", "trackio"), max_steps=steps)
        train_stage("text", replace(SMOKE, text=settings), tmp_path / "mine", resume=True)
    first, second = recorder.inits
    assert first["name"] == second["name"] == "mine-text_run"
    assert (first["resume"], second["resume"]) == ("never", "allow")
    assert first["config"]["max_steps"] == 2
    assert [step for step, values in recorder.logged if "loss" in values] == [1, 2, 3]
    assert {"loss", "learning_rate", "data_share", "samples_per_second", "tokens_per_second"} <= recorder.logged[0][
        1
    ].keys()
    assert any("accuracy_kind" in values for _, values in recorder.logged)
    assert recorder.finished == 2
    assert any((tmp_path / "mine" / "text_run" / "tensorboard").iterdir())


def test_without_trackio_a_run_that_wants_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setitem(TASKS, "text", lambda *_: pytest.fail("data was made before the mistake was found"))
    settings = replace(SMOKE.text, trackers=("trackio",))
    with pytest.raises(ValueError, match=r"pip install 'diffusers-stale\[trackio\]'"):
        train_stage("text", replace(SMOKE, text=settings), tmp_path)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (ImageConfig, {"lora_rank": 0}, "`lora_rank` must be greater than 0"),
        (MovieConfig, {"text_cache_mb": -1.0}, "`text_cache_mb` must be at least 0"),
        (ImageConfig, {"wordings": 0}, "`wordings` must be greater than 0"),
        (StageConfig, {"local_steps": 2, "precision": "fp16"}, "`local_steps` above 1 needs"),
        (StageConfig, {"clip_norm": 0.0}, "`clip_norm` must be greater than 0"),
        (StageConfig, {"warmup_steps": -1}, "`warmup_steps` must be at least 0"),
        (StageConfig, {"learning_rate": float("inf")}, "`learning_rate` must be finite"),
        (TextConfig, {"heads": 3}, "`hidden_size` must be a multiple of `heads`, got 128 and 3"),
        (AutoencoderConfig, {"image_size": 33}, "`image_size` must be a multiple of 4 with 3"),
        (AutoencoderConfig, {"block_channels": ()}, "`block_channels` must be numbers greater than 0"),
        (AutoencoderConfig, {"baselines": (1.0, 0.0)}, "`baselines` must be numbers greater than 0"),
        (ImageConfig, {"attention_heads": 5}, "multiples of `attention_heads`, got .* and 5"),
        (ImageConfig, {"encode_batch": 0}, "`encode_batch` must be greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(config: type[StageConfig], changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_errors_and_contrasts_that_can_be_chosen_are_those_there_are():
    fields = {item.name: get_args(item.type) for item in dataclasses.fields(ImageConfig)}
    assert fields["loss"] == tuple(LOSSES)
    assert fields["hinge_form"] == tuple(CONTRASTS)


def test_presets_train_everything():
    assert all(getattr(PRESETS[name], stage).trainable == "all" for name in PRESETS for stage in ("image", "movie"))
    assert isinstance(SMOKE, TrainingConfig)


# ---- a decoder alone ------------------------------------------------------------------------------------------------


def test_a_decoder_is_trained_alone_and_exchanged(movie_folder: Path, tmp_path: Path):
    config = replace(SMOKE, autoencoder=replace(SMOKE.autoencoder, trainable="decoder", start_from=str(movie_folder)))
    train_stage("autoencoder", config, tmp_path)
    pipeline = tmp_path / "pipeline"
    shutil.copytree(movie_folder, pipeline)
    name = "diffusion_pytorch_model.safetensors"
    before = load_file(pipeline / "vae" / name)
    exchange_decoder(pipeline, tmp_path / "autoencoder")
    after = load_file(pipeline / "vae" / name)
    assert before.keys() == after.keys()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"decoder", "post_quant_conv"}
    assert all(after[key].dtype == before[key].dtype for key in before)
    assert manifest_problems(pipeline) == []
    StaleDiffusionPipeline.from_pretrained(pipeline)


def test_a_decoder_for_other_latents_is_refused(movie_folder: Path, tmp_path: Path):
    pipeline, other = tmp_path / "pipeline", replace(SMOKE, autoencoder=replace(SMOKE.autoencoder, seed=5))
    shutil.copytree(movie_folder, pipeline)
    kept = {path: path.read_bytes() for path in pipeline.rglob("*") if path.is_file()}
    train_stage("autoencoder", other, tmp_path)
    with pytest.raises(ValueError, match="must have the encoder of"):
        exchange_decoder(pipeline, tmp_path / "autoencoder")
    with pytest.raises(FileNotFoundError, match="must hold an autoencoder"):
        exchange_decoder(pipeline, tmp_path / "nothing")
    assert {path: path.read_bytes() for path in pipeline.rglob("*") if path.is_file()} == kept
    with pytest.raises(ValueError, match="needs an encoder that was trained"):
        replace(SMOKE.autoencoder, trainable="decoder")
    wide = replace(SMOKE.autoencoder, block_channels=(8, 8, 16), start_from=str(pipeline))
    with pytest.raises(ValueError, match="of the configured shape"):
        train_stage("autoencoder", replace(SMOKE, autoencoder=wide), tmp_path / "wide")
