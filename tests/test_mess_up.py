"""Regularizers: corruptions befall what they should and no more, and tears of joy are set against captions."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from diffusers_stale import StaleDiffusionPipeline
from diffusers_stale.data.captions import NOUNS, caption_of, describe, swapped
from diffusers_stale.data.scenes import ATTRIBUTE_VALUES, random_generator, sample_scene
from diffusers_stale.hub import load_pipeline
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.text_encoding import encode_tokens, tokenize
from diffusers_stale.training.components import build_autoencoder, build_text_encoder
from diffusers_stale.training.config import PRESETS, ImageConfig, MovieConfig
from diffusers_stale.training.denoising import DenoisingTask, wrong_caption
from diffusers_stale.training.losses import CONTRASTS, cr_hinge, logistic_contrast
from diffusers_stale.training.mess_up import embedding_noise, perturbed_noise, shuffled, swap_attributes
from diffusers_stale.training.stage_movie import MovieTask
from diffusers_stale.training.stage_text import corpus
from diffusers_stale.training.stages import train_stage
from diffusers_stale.training.vocabulary import CRYING_JOY, build_tokenizer


pytestmark = pytest.mark.usefixtures("one_thread")

SMOKE = PRESETS["smoke"]
CAPTIONS = ["a brown cow facing left by a red barn at noon", "two pigs walk to the right", ""] * 5 + ["a cow"]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer(corpus(SMOKE.text), 32)


class Teller(torch.nn.Module):
    """Stands in for a UNet; remembers what it was shown and told."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.shown, self.told = [], []

    def forward(self, sample: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> object:
        self.shown.append(sample)
        self.told.append(text)
        mean = self.scale * text.mean(dim=(1, 2)).reshape(-1, *[1] * (sample.ndim - 1))
        return type("Output", (), {"sample": mean.expand_as(sample)})


@pytest.fixture
def make_task(tokenizer: CLIPTokenizer):
    def make(**changes: object) -> DenoisingTask:
        torch.manual_seed(0)
        parts = (Teller(), build_text_encoder(SMOKE.text, tokenizer), tokenizer, build_autoencoder(SMOKE.autoencoder))
        config = replace(SMOKE.image, hinge_from=0.0, **changes)
        return DenoisingTask(config, *parts, StaleScheduler(), torch.device("cpu"))

    return make


def batch_of(task: DenoisingTask, step: int = 5, captions: list[str] = CAPTIONS) -> dict[str, torch.Tensor]:
    latents = torch.randn(len(captions), 4, 8, 8, generator=torch.Generator().manual_seed(1))
    shares = torch.zeros(len(captions), 1, 8, 8, dtype=torch.uint8)
    return task.training_batch(latents, shares, captions, step, 0, 0.0)


def test_a_corruption_changes_what_it_says_and_no_other_number(make_task):
    plain = batch_of(make_task())
    noisy_input = batch_of(make_task(input_noise=0.1, input_noise_rate=0.5))
    noisy_text = batch_of(make_task(embedding_noise=2.0, embedding_noise_kind="uniform"))
    swaps = batch_of(make_task(attribute_swap_rate=1.0))
    assert noisy_input.keys() - plain.keys() == {"seen_noise"}
    assert noisy_text.keys() - plain.keys() == {"text_noise"}
    for batch in (noisy_input, noisy_text, swaps):
        same = [name for name in plain if torch.equal(plain[name], batch[name])]
        assert set(plain) - set(same) == ({"input_ids"} if batch is swaps else set())
    befallen = (noisy_input["seen_noise"] != plain["noise"]).flatten(1).any(dim=1)
    assert 0 < befallen.sum() < len(befallen)
    again = batch_of(make_task(input_noise=0.1, input_noise_rate=0.5))
    assert torch.equal(again["seen_noise"], noisy_input["seen_noise"])


def test_the_target_of_a_corrupted_input_stays_true(make_task):
    """What the network sees has the variance of the perturbed process; what it is to say is as before."""
    task = make_task(input_noise=0.5)
    batch = batch_of(task)
    task.module.eval()
    clean = {name: value for name, value in batch.items() if name != "seen_noise"}
    losses = [task.module(**values) for values in (batch, clean)]
    shown = task.module.unet.shown
    expected = task.scheduler.add_noise(batch["latents"], batch["seen_noise"], batch["timesteps"])
    assert torch.equal(shown[0], expected)
    assert not torch.equal(shown[0], shown[1])
    # This network looks at the text only, so that the same target is the same loss.
    assert torch.equal(losses[0], losses[1])


def test_input_noise_has_the_strength_and_rate_it_says():
    noise = torch.zeros(4000, 2, 4, 4)
    more = perturbed_noise(noise, 0.25, 0.1, np.random.default_rng(0))
    hit = more.flatten(1).any(dim=1)
    assert hit.float().mean() == pytest.approx(0.25, abs=0.03)
    assert more[hit].std() == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize(("kind", "deviation"), [("gaussian", 1.0), ("uniform", 1 / math.sqrt(3))])
@pytest.mark.parametrize("channels", [16, 256])
def test_embedding_noise_is_scaled_by_the_root_of_the_channels(kind: str, deviation: float, channels: int):
    values = embedding_noise((400, 8, channels), 0.5, 2.0, kind, np.random.default_rng(0))
    hit = values.flatten(1).any(dim=1)
    assert hit.float().mean() == pytest.approx(0.5, abs=0.08)
    assert values[hit].std() == pytest.approx(2.0 * deviation / math.sqrt(channels), rel=0.02)
    if kind == "uniform":
        assert values.abs().max() <= 2.0 / math.sqrt(channels)


def test_text_noise_reaches_the_network_and_fades_in_evaluation(make_task):
    task = make_task(embedding_noise=1.0)
    batch = batch_of(task)
    task.module(**batch)
    with torch.no_grad():
        told = encode_tokens(task.module.text_encoder, batch["input_ids"]) + batch["text_noise"]
    torch.testing.assert_close(task.module.unet.told[0], told)
    latents, shares = torch.randn(2, 4, 8, 8), torch.zeros(2, 1, 8, 8)
    assert "text_noise" not in task.noised_batch(latents, shares, CAPTIONS[:2], (1,), 0.0)


def attributes_said(caption: str) -> dict[str, str]:
    """What the words of a caption say, read independently of the code that swaps them."""
    from diffusers_stale.data.captions import ADJECTIVES, TIMES

    said = {}
    for name, words in (("color", ADJECTIVES), ("time_of_day", TIMES)):
        for value, forms in words.items():
            tail = " (?:" + "|".join(n for names in NOUNS.values() for pair in names for n in pair) + ")"
            for form in set(forms):
                if re.search(rf"\b{form}{tail if name == 'color' else ''}\b", caption):
                    said.setdefault(name, value)
    for value, names in NOUNS.items():
        if any(re.search(rf"\b{form}\b", caption) for pair in names for form in pair):
            said.setdefault("kind", value)
    barn = re.search(r"(\w+) barn\b(?! painted)|barn painted (\w+)", caption)
    if barn and (barn[1] or barn[2]) in ATTRIBUTE_VALUES["barn"]:
        said["barn"] = barn[1] or barn[2]
    side = re.search(r"\b(left|right)", caption)
    return said | ({"direction": side[1]} if side else {})


def test_a_swap_makes_one_thing_wrong_and_leaves_a_caption_of_the_same_grammar():
    one_animal, changed = 0, set()
    for index in range(300):
        scene = sample_scene(0, index)
        caption = describe(scene, 0, index).text
        wrong = swapped(caption, 1, random_generator(3, index))
        before, after = attributes_said(caption), attributes_said(wrong)
        assert wrong != caption
        assert before.keys() == after.keys(), (caption, wrong)
        different = {name for name in before if before[name] != after[name]}
        changed |= different
        if len(scene.animals) == 1:
            one_animal += 1
            assert len(different) == 1, (caption, wrong)
    assert one_animal > 100
    assert changed == {"kind", "color", "barn", "direction", "time_of_day"}


def test_swaps_befall_their_share_and_stop_at_what_is_stated():
    captions = [caption_of(sample_scene(1, index), 1, index) for index in range(400)]
    told = swap_attributes(captions, 0.3, 1, np.random.default_rng(0))
    assert sum(a != b for a, b in zip(captions, told, strict=True)) / 400 == pytest.approx(0.3, abs=0.06)
    assert swapped("a scene", 3, np.random.default_rng(0)) == "a scene"
    assert swapped("", 3, np.random.default_rng(0)) == ""
    all_wrong = swapped("a brown horse to the left by a red barn at dawn", 9, np.random.default_rng(0))
    before, after = attributes_said("a brown horse to the left by a red barn at dawn"), attributes_said(all_wrong)
    assert all(before[name] != after[name] for name in before)


@pytest.mark.parametrize("kind", ["view", "frame"])
def test_a_shuffle_moves_whole_pictures_along_its_own_axes(kind: str):
    """Every picture is still there, once; the other kind's axes are as they were."""
    rows, cols, frames = torch.meshgrid(torch.arange(3), torch.arange(4), torch.arange(5), indexing="ij")
    codes = (100 * rows + 10 * cols + frames).float()
    clips = codes[None, None, :, :, :, None, None].expand(50, 2, 3, 4, 5, 2, 2)
    result = shuffled(clips, kind, 0.5, 1.0, np.random.default_rng(0))
    moved = (result != clips).flatten(1).any(dim=1)
    assert 10 < moved.sum() < 40
    for clip in result:
        assert torch.equal(clip[0, ..., 0, 0].flatten().sort().values, codes.flatten().sort().values)
        assert (clip == clip[:1, ..., :1, :1]).all()
        if kind == "view":
            assert torch.equal(clip[0, 0, 0, :, 0, 0] % 10, torch.arange(5).float())
        else:
            assert torch.equal(clip[0, :, :, 0, 0, 0] // 10, codes[:, :, 0] // 10)
    assert torch.equal(shuffled(clips, kind, 1.0, 0.0, np.random.default_rng(0)), clips)


def test_the_movie_stage_shuffles_what_is_seen_only():
    latents = torch.randn(2, 4, 3, 3, 2, 4, 4)
    config = replace(SMOKE.movie, view_shuffle_rate=1.0)
    task = type("Task", (), {"config": config, "device": torch.device("cpu")})()
    seen = MovieTask.shuffles(task, latents, 3, 0)["seen_latents"]
    assert seen.shape == latents.shape
    assert not torch.equal(seen, latents)
    torch.testing.assert_close(seen.sum(dim=(2, 3)), latents.sum(dim=(2, 3)))
    task.config = SMOKE.movie
    assert MovieTask.shuffles(task, latents, 3, 0) == {}


def test_margins_are_absolute_or_relative():
    true, wrong = torch.tensor([1.0, 2.0]), torch.tensor([1.1, 2.1])
    torch.testing.assert_close(cr_hinge(true, wrong, 0.2), torch.tensor([0.1, 0.3]))
    torch.testing.assert_close(cr_hinge(true, wrong, 0.2, "absolute"), torch.tensor([0.1, 0.1]))


def test_the_logistic_form_has_no_hinge_and_comes_down_to_it():
    true = torch.tensor([0.5, 0.5, 0.5], requires_grad=True)
    wrong = torch.tensor([0.1, 0.5, 5.0])
    loss = logistic_contrast(true, wrong, 0.01, "absolute")
    hinge = cr_hinge(true, wrong, 0.0, "absolute")
    assert (loss >= hinge - 1e-6).all()
    assert ((loss - hinge) <= 0.01 * math.log(2) + 1e-6).all()
    assert loss[1].item() == pytest.approx(0.01 * math.log(2))
    loss.sum().backward()
    torch.testing.assert_close(true.grad, torch.tensor([1.0, 0.5, 0.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", CONTRASTS)
def test_a_contrast_falls_as_the_wrong_caption_gets_worse(form: str):
    true = torch.full((9,), 0.5)
    values = CONTRASTS[form](true, torch.linspace(0.3, 0.7, 9), 0.1, "relative")
    assert (values.diff() <= 0).all()
    assert values[0] > values[-1]


def test_joy_is_one_token_and_what_captions_are_set_against(make_task, tokenizer: CLIPTokenizer):
    assert len(tokenizer.tokenize(CRYING_JOY)) == 1
    assert wrong_caption("a cow", "joy") == CRYING_JOY
    assert wrong_caption("a cow", "joy_suffix") == f"a cow {CRYING_JOY}"
    assert wrong_caption("", "joy") == ""
    task = make_task(hinge_weight=1.0, hinge_caption="joy_suffix")
    batch = batch_of(task)
    told = [index for index, caption in enumerate(CAPTIONS) if caption]
    assert batch["wrong_samples"].tolist() == told
    assert torch.equal(batch["wrong_ids"], tokenize(tokenizer, [f"{CAPTIONS[index]} {CRYING_JOY}" for index in told]))
    assert task.negative_prompt == CRYING_JOY
    assert make_task(hinge_weight=1.0).negative_prompt == make_task().negative_prompt == ""


def test_the_hinge_is_the_mean_over_the_batch_of_the_formula(make_task):
    """mean(max(0, margin + d(c) - d(j))), on top of the mean of d(c)."""
    task = make_task(hinge_weight=2.0, hinge_caption="joy", hinge_margin=0.3, hinge_margin_kind="absolute")
    captions = ["a brown cow"] * 6
    batch = batch_of(task, captions=captions)
    joy = {**batch, "input_ids": tokenize(task.tokenizer, [CRYING_JOY] * 6)}
    task.module.train()
    with torch.no_grad():
        whole = task.module(**batch)
        one = {name: value for name, value in batch.items() if not name.startswith("wrong")}
        true, wrong = (
            torch.stack([task.module(**{name: value[i : i + 1] for name, value in each.items()}) for i in range(6)])
            for each in (one, {name: joy[name] for name in one})
        )
    torch.testing.assert_close(whole, (true + 2.0 * (0.3 + true - wrong).clamp_min(0)).mean())


def test_a_fraction_pays_after_a_warm_up_and_where_it_is_noisy(make_task):
    captions = ["a brown cow"] * 400
    options = {"hinge_weight": 1.0, "hinge_caption": "joy", "hinge_warmup": 100, "hinge_noise": "ramp"}
    task = make_task(hinge_fraction=0.25, **options)
    batch = batch_of(task, step=50, captions=captions)
    assert len(batch["wrong_samples"]) / 400 == pytest.approx(0.25, abs=0.08)
    expected = 0.5 * batch["timesteps"][batch["wrong_samples"]] / 1000
    torch.testing.assert_close(batch["wrong_weights"], expected.float())
    assert not batch_of(task, step=0, captions=captions)["wrong_weights"].any()
    after = batch_of(make_task(**options | {"hinge_noise": "step"}), step=100, captions=captions)
    assert torch.equal(after["wrong_weights"], torch.ones(400))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hinge_fraction": 1.5}, "`hinge_fraction` must be between 0 and 1, got 1.5"),
        ({"input_noise": -1.0}, "`input_noise` must be at least 0"),
        ({"hinge_form": "logistic", "hinge_margin": 0.0}, "it is a temperature"),
        ({"view_shuffle_rate": 2.0}, "`view_shuffle_rate` must be between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict, message: str):
    kind = MovieConfig if "view_shuffle_rate" in changes else ImageConfig
    with pytest.raises(ValueError, match=message):
        kind(**changes)


def test_a_checkpoint_that_was_trained_with_joy_says_so_and_is_guided_away_from_it(make_pipeline, tmp_path: Path):
    plain = make_pipeline()
    parts = plain.components
    joyful = StaleDiffusionPipeline(**parts, default_negative_prompt=CRYING_JOY)
    joyful.save_pretrained(tmp_path / "joy")
    plain.save_pretrained(tmp_path / "plain")
    options = {"view_rows": 1, "view_cols": 1, "num_frames": 1, "num_inference_steps": 2, "output_type": "latent"}

    def movie(pipeline: StaleDiffusionPipeline, **more: str) -> torch.Tensor:
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipeline("a brown horse", generator=generator, **options, **more).light_fields

    for load in (StaleDiffusionPipeline.from_pretrained, load_pipeline):
        loaded = [load(tmp_path / name) for name in ("joy", "plain")]
        assert [each.config.get("default_negative_prompt") for each in loaded] == [CRYING_JOY, None]
        away = movie(loaded[0])
        assert torch.equal(away, movie(loaded[1], negative_prompt=CRYING_JOY))
        assert torch.equal(movie(loaded[0], negative_prompt=""), movie(loaded[1]))
        assert not torch.equal(away, movie(loaded[1]))


@pytest.mark.parametrize("caption", ["joy", "mirrored"])
def test_the_movie_stage_passes_on_what_the_image_stage_was_taught(tmp_path: Path, caption: str):
    taught = replace(SMOKE.image, hinge_weight=1.0, hinge_caption=caption)
    config = replace(SMOKE, image=taught, movie=replace(SMOKE.movie, hinge_weight=0.0, view_shuffle_rate=0.5))
    for stage in ("autoencoder", "text", "image", "movie"):
        train_stage(stage, config, tmp_path)
    loaded = load_pipeline(tmp_path / "movie")
    assert loaded.config.get("default_negative_prompt") == (CRYING_JOY if caption == "joy" else None)
