"""The trainer: every stage runs, resumes to the bit, and says what is wrong with what it is told."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from diffusers_stale.data.captions import caption_of
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.precision import fast_autocast
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.text_encoding import tokenize
from diffusers_stale.training.averages import MovingAverage
from diffusers_stale.training.checkpoints import Checkpoint, checkpoint_folders, load_checkpoint, save_checkpoint
from diffusers_stale.training.components import (
    build_autoencoder,
    build_text_encoder,
    standardize_latents,
    take_weights,
)
from diffusers_stale.training.config import PRESETS, STAGES, TrainingConfig, with_changes
from diffusers_stale.training.denoising import DenoisingTask
from diffusers_stale.training.grids import cut, parse_grids
from diffusers_stale.training.latents import PoolRequest, cached_pool, render_clip, render_pool
from diffusers_stale.training.losses import LOSSES, cr_hinge, gradient_difference, peak_signal_to_noise, sample_errors
from diffusers_stale.training.noise_meter import NoiseErrorMeter
from diffusers_stale.training.processes import LaunchError, chosen_precision, make_accelerator
from diffusers_stale.training.rates import SCHEDULES, rate_factor
from diffusers_stale.training.stage_image import ImageTask
from diffusers_stale.training.stage_text import corpus
from diffusers_stale.training.stages import train_stage
from diffusers_stale.training.stopping import StoppedError
from diffusers_stale.training.vocabulary import CRYING_JOY, build_tokenizer, save_tokenizer


ROOT = Path(__file__).resolve().parent.parent
SMOKE = PRESETS["smoke"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which every stage was trained for two steps."""
    folder = tmp_path_factory.mktemp("run")
    for stage in STAGES:
        train_stage(stage, SMOKE, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer(corpus(SMOKE.text), 32)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_leaves_a_report_and_what_it_needs_to_go_on(run_folder: Path, stage: str):
    report = json.loads((run_folder / stage / "training_report.json").read_text())
    assert report["steps"] == 2
    assert report["images"] > 0
    assert report["core_seconds"] > 0
    assert {"commands", "seed", "seconds", "final_loss", "machine", "config"} <= report.keys()
    work = run_folder / f"{stage}_run"
    assert [path.name for path in checkpoint_folders(work / "checkpoints")] == ["step-00000002"]
    assert any((work / "samples").iterdir())
    assert any((work / "tensorboard").iterdir())
    assert "step 2 loss" in (work / "log.txt").read_text()
    assert not [path for path in run_folder.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_the_clock_of_training_is_that_of_its_data_whatever_is_predicted(kind: str):
    """For Gaussian data of scale 1 and a perfect network the clock is known."""
    scheduler = StaleScheduler(prediction_type=kind)
    meter = NoiseErrorMeter(scheduler)
    assert meter.clock() is None
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        timesteps = scheduler.sample_training_timesteps(64, generator, "entropic").clamp_min(1)
        timesteps = timesteps.clamp_max(998) if not scheduler.is_flow else timesteps
        alphas, sigmas = scheduler.noise_levels(timesteps)
        wanted = alphas**2 / (alphas**2 + sigmas**2)
        factors = scheduler.noise_errors(torch.ones_like(alphas), timesteps)
        meter.add(wanted / factors, timesteps)
    clock = meter.clock()
    angles, times = np.array(clock["angles"]), np.array(clock["times"])
    assert np.allclose(times, 1.0 - angles / (math.pi / 2), atol=0.06)
    StaleScheduler(prediction_type=kind, clock=clock).set_timesteps(7)


def test_results_load_as_users_load_them(run_folder: Path):
    assert AutoencoderKL.from_pretrained(run_folder / "autoencoder").config.scaling_factor == 1.0
    assert CLIPTextModel.from_pretrained(run_folder / "text" / "text_encoder").config.max_position_embeddings == 32
    assert UNet2DConditionModel.from_pretrained(run_folder / "image" / "unet").config.in_channels == 4
    assert (run_folder / "movie" / "model_index.json").is_file()
    assert load_file(run_folder / "movie" / "unet" / "diffusion_pytorch_model.safetensors")[
        "conv_in.weight"
    ].dtype == (torch.float16)


def copy_inputs(run_folder: Path, target: Path) -> Path:
    for stage in ("autoencoder", "text"):
        shutil.copytree(run_folder / stage, target / stage)
    return target


def assert_same_end(whole: Path, parted: Path) -> None:
    """Two runs of four steps of the image stage have ended alike, to the bit."""
    ours, theirs = (
        load_checkpoint(folder / "image_run" / "checkpoints" / "step-00000004") for folder in (whole, parted)
    )
    for part in ("model", "ema", "optimizer"):
        expected, got = getattr(ours, part), getattr(theirs, part)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert theirs.state["images"] == ours.state["images"]


def test_a_resumed_run_equals_an_uninterrupted_one(run_folder: Path, tmp_path: Path):
    four = replace(SMOKE, image=replace(SMOKE.image, max_steps=4, schedule="constant"))
    two = replace(four, image=replace(four.image, max_steps=2, foreground_anneal=0.0))
    four = replace(four, image=replace(four.image, foreground_anneal=0.0))
    whole, parted = copy_inputs(run_folder, tmp_path / "whole"), copy_inputs(run_folder, tmp_path / "parted")
    train_stage("image", four, whole)
    train_stage("image", two, parted)
    train_stage("image", four, parted, resume=True)
    assert_same_end(whole, parted)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_saves_and_can_be_resumed_to_the_bit(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: signal.Signals
):
    four = replace(SMOKE, image=replace(SMOKE.image, max_steps=4, schedule="constant", foreground_anneal=0.0))
    whole, parted = copy_inputs(run_folder, tmp_path / "whole"), copy_inputs(run_folder, tmp_path / "parted")
    train_stage("image", four, whole)
    batch_of = ImageTask.batch

    def interrupting(task: ImageTask, step: int, rank: int, fraction: float) -> dict[str, torch.Tensor]:
        if step == 1:
            os.kill(os.getpid(), kind)
        return batch_of(task, step, rank, fraction)

    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        patch.setattr(ImageTask, "batch", interrupting)
        with pytest.raises(StoppedError) as stopped:
            train_stage("image", four, parted)
    assert stopped.value.code == 128 + kind
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    checkpoints = parted / "image_run" / "checkpoints"
    assert [folder.name for folder in checkpoint_folders(checkpoints)] == ["step-00000002"]
    assert f"stopped by {kind.name}" in (parted / "image_run" / "log.txt").read_text()
    assert not (parted / "image").exists()
    train_stage("image", four, parted, resume=True)
    assert_same_end(whole, parted)


def test_a_stage_starts_from_the_weights_of_an_earlier_pipeline(run_folder: Path, tmp_path: Path):
    unet = UNet2DConditionModel.from_pretrained(run_folder / "image" / "unet")
    other = UNet2DConditionModel.from_config(unet.config)
    name = "conv_in.weight"
    take_weights(other, [name], run_folder / "movie")
    assert torch.equal(other.state_dict()[name], load_file(weights_of(run_folder / "movie"))[name].float())
    assert not torch.equal(other.state_dict()["conv_out.weight"], unet.state_dict()["conv_out.weight"])
    with pytest.raises(FileNotFoundError, match="`start_from` must hold unet"):
        take_weights(other, [name], tmp_path)
    astray = replace(SMOKE, image=replace(SMOKE.image, start_from=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="`start_from` must hold text_encoder"):
        train_stage("image", astray, copy_inputs(run_folder, tmp_path / "astray"))
    with pytest.raises(ValueError, match="must have conv_in"):
        take_weights(UNet2DConditionModel(block_out_channels=(32, 64, 64, 64)), [name], run_folder / "movie")


def weights_of(pipeline: Path) -> Path:
    return pipeline / "unet" / "diffusion_pytorch_model.safetensors"


def test_an_earlier_stage_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="--stage autoencoder"):
        train_stage("image", SMOKE, tmp_path)
    (tmp_path / "image").mkdir()
    with pytest.raises(FileNotFoundError, match=r"what --stage image leaves, got no vae/config\.json.*--image PATH"):
        train_stage("movie", SMOKE, tmp_path)
    with pytest.raises(ValueError, match="autoencoder, text, image, movie"):
        train_stage("images", SMOKE, tmp_path)


def test_processes_that_do_not_train_together_are_refused(monkeypatch: pytest.MonkeyPatch):
    make_accelerator("auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match="2 processes.*joined 1"):
        make_accelerator("auto")


def test_stages_of_one_program_may_differ_in_precision(tmp_path: Path):
    weights = []
    for index, precision in enumerate(("bf16", "no", "bf16")):
        settings = replace(SMOKE.text, precision=precision, max_steps=1, sample_every=1000)
        report = train_stage("text", replace(SMOKE, text=settings), tmp_path / str(index))
        assert report["config"]["precision"] == precision
        weights.append(report["fingerprints"]["1"])
    assert weights[0] == weights[2] != weights[1]


def test_settings_change_by_name():
    config = with_changes(SMOKE, ["learning_rate=0.5", "movie.baselines=1,2"], ["image"])
    assert config.image.learning_rate == 0.5
    assert config.text.learning_rate == SMOKE.text.learning_rate
    assert config.movie.baselines == (1.0, 2.0)
    assert with_changes(SMOKE, ["max_seconds=3", "max_steps=none"]).autoencoder.max_steps is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rat=1", "did you mean 'learning_rate'"),
        ("image.batchsize=1", "did you mean 'image.batch_size'"),
        ("learning_rate", "key=value"),
        ("batch_size=many", "of type int, got 'many'"),
        ("batch_size=0", "greater than 0"),
        ("schedule=sine", "cosine, linear, constant"),
        ("max_steps=none", "a run needs an end"),
        ("movie.static_grids=2x3x1:1:1", "middle of clips"),
        ("movie.static_grids=3x3:1", "3x3x1:6:1"),
    ],
)
def test_wrong_settings_are_explained(change: str, message: str):
    with pytest.raises(ValueError, match=message):
        with_changes(SMOKE, [change], ["image"])


def test_the_script_explains_an_unknown_setting_without_a_traceback(tmp_path: Path):
    command = [
        sys.executable,
        str(ROOT / "scripts" / "train.py"),
        "--stage",
        "text",
        "--output",
        str(tmp_path / "run"),
    ]
    result = subprocess.run([*command, "--set", "sed=1"], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("did you mean 'seed'?")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_presets_are_complete_and_barnyard_is_what_ships():
    assert all(isinstance(preset, TrainingConfig) for preset in PRESETS.values())
    autoencoder = build_autoencoder(PRESETS["barnyard"].autoencoder)
    with torch.no_grad():
        latents = autoencoder.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mode()
    assert latents.shape == (1, 8, 16, 16)


def test_standardized_latents_reconstruct_as_before():
    torch.manual_seed(0)
    vae = build_autoencoder(SMOKE.autoencoder)
    pixels = torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        before = vae.decode(latents).sample
        standardize_latents(vae, latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))
        latents = vae.encode(pixels).latent_dist.mode()
        after = vae.decode(latents).sample
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), rtol=0, atol=1e-4)


def test_words_of_captions_are_single_tokens(tokenizer: CLIPTokenizer):
    captions = corpus(SMOKE.text)
    words = {word for caption in captions for word in caption.replace(",", " ").split()}
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
    assert len(tokenizer.tokenize(CRYING_JOY)) == 1
    longest = max(len(tokenizer(caption_of(sample_scene(5, index), 5, index)).input_ids) for index in range(200))
    assert longest <= 32


@pytest.mark.parametrize("text", ["Zażółć 🐎 日本!", "a horse, galloping", "", "\x07\U0010ffff", CRYING_JOY])
def test_any_text_has_tokens_and_survives_saving(tokenizer: CLIPTokenizer, tmp_path: Path, text: str):
    save_tokenizer(tokenizer, tmp_path / "both")
    loaded = CLIPTokenizer.from_pretrained(tmp_path / "both")
    (tmp_path / "both" / "tokenizer.json").unlink()
    as_clip = CLIPTokenizer.from_pretrained(tmp_path / "both")
    ids = tokenizer(text).input_ids
    assert ids == loaded(text).input_ids == as_clip(text).input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    padded = tokenize(loaded, [text])
    assert padded.shape == (1, 32)
    assert padded[0, len(ids) :].eq(loaded.pad_token_id).all()


def test_checkpoints_are_kept_by_number_and_leave_nothing_half_written(tmp_path: Path):
    tensors = {"weight": torch.arange(3.0)}
    for step in (1, 2, 3):
        checkpoint = Checkpoint(model=tensors, ema=tensors, optimizer={}, state={"step": step})
        save_checkpoint(tmp_path, checkpoint, keep=2)
    (tmp_path / ".step-00000004.writing").mkdir()
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-00000002", "step-00000003"]
    loaded = load_checkpoint(checkpoint_folders(tmp_path)[-1])
    assert torch.equal(loaded.model["weight"], tensors["weight"])
    assert (tmp_path / "step-00000003" / "model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_rates_warm_up_and_end_where_they_should(name: str):
    assert rate_factor(0, 0.0, 10, name) == pytest.approx(0.1)
    assert rate_factor(100, 0.0, 10, name) == pytest.approx(1.0)
    assert rate_factor(100, 1.0, 10, name) == pytest.approx(1.0 if name == "constant" else 0.0)


def test_bfloat16_is_for_hardware_that_computes_it(monkeypatch: pytest.MonkeyPatch):
    for native, expected, dtype in ((True, "bf16", torch.bfloat16), (False, "no", torch.float32)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert [chosen_precision(precision) for precision in ("auto", "no", "bf16")] == [expected, "no", "bf16"]
        with fast_autocast("cpu"):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_the_moving_average_is_put_in_and_taken_out():
    parameter = torch.nn.Parameter(torch.zeros(2))
    average = MovingAverage({"weight": parameter}, lambda step: 0.5)
    with torch.no_grad():
        parameter.fill_(1.0)
    average.update(step=1000)
    with average.applied():
        assert parameter.tolist() == [0.5, 0.5]
    assert parameter.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_losses_are_zero_for_the_truth_and_weights_do_what_they_say(kind: str):
    target = torch.randn(2, 4, 3, 3, 2, 8, 8)
    wrong = target + torch.randn_like(target)
    assert not sample_errors(target, target, kind).any()
    plain = sample_errors(wrong, target, kind)
    assert plain.shape == (2,)
    assert (plain > 0).all()
    torch.testing.assert_close(sample_errors(wrong[1:], target[1:], kind), plain[1:])
    only_first = torch.zeros(2, 1, 3, 3, 2, 8, 8)
    only_first[0] = 1
    torch.testing.assert_close(sample_errors(wrong, target, kind, only_first), plain * torch.tensor([1.0, 0.0]))


def test_a_deviation_weight_weighs_what_tells_pictures_apart_and_leaves_independent_errors_their_size():
    target = torch.randn(2, 4, 3, 3, 2, 8, 8)
    common = target + torch.randn(2, 4, 1, 1, 1, 8, 8)
    offsets = torch.randn(2, 4, 3, 3, 2, 8, 8)
    apart = target + offsets - offsets.mean(dim=(2, 3, 4), keepdim=True)
    factors = [
        sample_errors(wrong, target, deviation_weight=5.0) / sample_errors(wrong, target) for wrong in (common, apart)
    ]
    torch.testing.assert_close(factors[1] / factors[0], torch.full((2,), 5.0))
    independent = target + torch.randn(2, 4, 3, 3, 2, 8, 8)
    kept = sample_errors(independent, target, deviation_weight=5.0) / sample_errors(independent, target)
    torch.testing.assert_close(kept, torch.ones(2), atol=0.05, rtol=0)
    single = torch.randn(2, 4, 1, 1, 1, 8, 8)
    torch.testing.assert_close(
        sample_errors(single, 0 * single, deviation_weight=5.0), single.square().mean((1, 2, 3, 4, 5, 6))
    )


def test_the_hinge_rests_where_the_true_caption_wins_by_its_margin():
    true, wrong = torch.tensor([1.0, 1.0, 1.0], requires_grad=True), torch.tensor([1.3, 1.1, 0.9])
    hinge = cr_hinge(true, wrong, margin=0.2)
    torch.testing.assert_close(hinge, torch.tensor([0.0, 0.1, 0.3]))
    hinge.sum().backward()
    assert true.grad[0] == 0
    assert (true.grad[1:] > 0).all()


class Reader(torch.nn.Module):
    """Stands in for a UNet: predicts the mean of the text, so that captions matter."""

    def forward(self, sample: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> SimpleNamespace:
        mean = text.mean(dim=(1, 2)).reshape(-1, *[1] * (sample.ndim - 1))
        return SimpleNamespace(sample=mean.expand_as(sample))


def test_wrong_captions_pay_in_training_and_where_it_is_noisy(tokenizer: CLIPTokenizer):
    config = replace(SMOKE.image, hinge_weight=0.5, hinge_from=0.5)
    parts = (Reader(), build_text_encoder(SMOKE.text, tokenizer), tokenizer, build_autoencoder(SMOKE.autoencoder))
    task = DenoisingTask(config, *parts, StaleScheduler(), torch.device("cpu"))
    latents, shares = torch.randn(16, 4, 8, 8), torch.zeros(16, 1, 8, 8, dtype=torch.uint8)
    batch = task.training_batch(latents, shares, ["a cow facing left"] * 15 + ["a cow"], 1, 2, 0.0)
    noisy = [index for index in range(15) if batch["timesteps"][index] >= 500]
    assert batch["wrong_samples"].tolist() == noisy
    assert torch.equal(batch["wrong_ids"], tokenize(tokenizer, ["a cow facing right"] * len(noisy)))
    without = {name: batch[name] for name in batch if not name.startswith("wrong")}
    task.module.eval()
    assert torch.equal(task.module(**batch), task.module(**without))
    task.module.train()
    assert task.module(**batch) > task.module(**without)
    switched_off = DenoisingTask(replace(config, hinge_weight=0.0), *parts, StaleScheduler(), torch.device("cpu"))
    assert "wrong_ids" not in switched_off.training_batch(latents, shares, ["a cow facing left"] * 16, 1, 2, 0.0)


def test_picture_errors():
    picture = torch.rand(1, 3, 8, 8)
    assert gradient_difference(torch.full((1, 3, 8, 8), 0.3)).item() == 0
    assert peak_signal_to_noise(picture * 0 + 0.2, picture * 0).item() == pytest.approx(20.0, abs=1e-4)


def test_grids_are_cut_from_the_middle():
    clip = torch.arange(3 * 3 * 8).reshape(1, 3, 3, 8, 1, 1)
    whole, row, still = parse_grids("3x3x8:1:1, 1x3x2:4:2, 1x1x1:9:0.5", (3, 3, 8))
    assert torch.equal(cut(clip, whole, 0), clip)
    assert torch.equal(cut(clip, row, 5), clip[:, 1:2, :, 5:7])
    assert torch.equal(cut(clip, still, 7), clip[:, 1:2, 1:2, 7:8])


def test_a_pool_is_what_was_rendered_and_is_not_made_twice(tmp_path: Path):
    torch.manual_seed(0)
    vae = build_autoencoder(SMOKE.autoencoder).eval()
    request = PoolRequest(seed=3, count=3, rank=0, image_size=32, view_rows=1, view_cols=3, frames=2, baselines=(2.0,))
    pool = render_pool(vae, request, encode_batch=4)
    assert pool.latents.shape == (3, 4, 1, 3, 2, 8, 8)
    assert pool.foreground.shape == (3, 1, 1, 3, 2, 8, 8)
    clip, baseline = render_clip(request, 1)
    assert baseline == 2.0
    with torch.no_grad():
        latent = vae.encode(clip.pixels[:, 0, 2, 1][None]).latent_dist.mode()[0] * vae.config.scaling_factor
    torch.testing.assert_close(pool.latents[1, :, 0, 2, 1].float(), latent, rtol=0.02, atol=0.01)
    share = clip.foreground[0, 2, 1].float().mean()
    assert pool.foreground[1, 0, 0, 2, 1].float().mean() / 255 == pytest.approx(share.item(), abs=0.01)
    first = cached_pool(vae, request, 4, tmp_path / "pool.safetensors")
    written = (tmp_path / "pool.safetensors").stat().st_mtime_ns
    again = cached_pool(vae, request, 4, tmp_path / "pool.safetensors")
    assert (tmp_path / "pool.safetensors").stat().st_mtime_ns == written
    assert torch.equal(first.latents, again.latents)
    cached_pool(vae, replace(request, seed=4), 4, tmp_path / "pool.safetensors")
    assert (tmp_path / "pool.safetensors").stat().st_mtime_ns != written
