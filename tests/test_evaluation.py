"""Evaluation: instruments that read true on scenes whose truth is known, and chance where there is nothing to read."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffusers_stale.data.captions import caption_of
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import ATTRIBUTE_VALUES, sample_scene, scene_attributes
from diffusers_stale.evaluation.alignment import Share, attribute_accuracy, shuffled_accuracy, wrong_attributes
from diffusers_stale.evaluation.classifier import (
    SHIPPED_WEIGHTS,
    AttributeClassifier,
    classifier_notes,
    load_classifier,
    predict_attributes,
    save_classifier,
)
from diffusers_stale.evaluation.classifier_training import (
    ClassifierTraining,
    blur,
    measure_accuracy,
    render_labelled_clips,
    train_classifier,
)
from diffusers_stale.evaluation.disparity import VIEW_AXES, match_views, measure_disparity, summarize_disparity
from diffusers_stale.evaluation.matching import match, shift_columns
from diffusers_stale.evaluation.measures import unrelated_pictures
from diffusers_stale.evaluation.motion import MOVING_ACTIONS, measure_motion, summarize_motion, travels_as_told
from diffusers_stale.evaluation.prompts import PROMPT_SEED, EvaluationPrompt, held_out_prompts, stated_counts
from diffusers_stale.evaluation.report import EvaluationSettings, evaluate, render_prompts
from diffusers_stale.evaluation.report_files import write_report
from diffusers_stale.training.config import StageConfig


UNSEEN_SEED = 4_000_037
"""Neither of training, nor of the prompts, nor of the classifier."""

LEAST_ACCURACY = {
    "time_of_day": 0.99,
    "barn": 0.99,
    "fence": 0.99,
    "number": 0.95,
    "kind": 0.97,
    "color": 0.97,
    "direction": 0.97,
    "action": 0.95,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def prompts() -> tuple[EvaluationPrompt, ...]:
    return held_out_prompts(24)


@pytest.fixture(scope="module")
def scenes(prompts: tuple[EvaluationPrompt, ...]) -> torch.Tensor:
    """The scenes of the first ten prompts, 3x3 views of 2 frames."""
    return render_prompts(prompts[:10], (0, 3, 3, 3, 2, 64, 64))


# The classifier


@pytest.fixture(scope="module")
def fresh_clips():
    return render_labelled_clips(UNSEEN_SEED, 300)


@pytest.mark.parametrize("frames", [8, 4])
def test_the_shipped_classifier_is_right_on_scenes_it_never_saw(fresh_clips, frames: int):
    accuracy = measure_accuracy(load_classifier(), fresh_clips, frames=frames)
    assert {name: accuracy[name] for name, least in LEAST_ACCURACY.items() if accuracy[name] < least} == {}


def test_the_shipped_classifier_bears_softness_and_grain(fresh_clips):
    accuracy = measure_accuracy(load_classifier(), fresh_clips, soften=1.0, grain=0.04)
    assert {name: accuracy[name] for name, least in LEAST_ACCURACY.items() if accuracy[name] < least - 0.03} == {}


def test_the_shipped_classifier_is_small_readable_and_says_where_it_is_from():
    assert SHIPPED_WEIGHTS.stat().st_size < 1_000_000
    assert SHIPPED_WEIGHTS.stat().st_mode & 0o777 == 0o644
    notes = classifier_notes()
    assert notes["command"].startswith("python scripts/train_classifier.py")
    assert set(notes["held_out_accuracy"]) == set(ATTRIBUTE_VALUES)
    assert notes["training"]["seed"] not in (UNSEEN_SEED, PROMPT_SEED, StageConfig().seed, StageConfig().held_out_seed)


def test_the_classifier_takes_other_sizes_and_single_frames():
    scene = sample_scene(UNSEEN_SEED, 0)
    large = render_scene(scene, 1, 3, 1, 128, 128).pixels[None]
    shown = predict_attributes(load_classifier(), large)[0]
    assert set(shown) == set(ATTRIBUTE_VALUES)
    assert shown["time_of_day"] == scene.time_of_day


def test_a_mirrored_movie_turns_its_direction_and_nothing_else():
    classifier = load_classifier()
    clip = torch.stack([render_scene(sample_scene(UNSEEN_SEED, index), 1, 1, 4).pixels for index in range(24)])
    before, after = predict_attributes(classifier, clip), predict_attributes(classifier, clip.flip(-1))
    turned = sum(one["direction"] != other["direction"] for one, other in zip(before, after, strict=True))
    kept = sum(one["kind"] == other["kind"] for one, other in zip(before, after, strict=True))
    assert turned >= 22
    assert kept >= 22


def test_a_classifier_of_other_attributes_is_refused(tmp_path: Path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, path, metadata={"attribute_values": '{"mood": ["good"]}'})
    with pytest.raises(ValueError, match=r"must be a classifier of the attributes.*mood.*train_classifier"):
        load_classifier(path)
    with pytest.raises(FileNotFoundError, match="train_classifier"):
        load_classifier(tmp_path / "none.safetensors")


def test_training_learns_and_what_is_saved_is_loaded(tmp_path: Path):
    config = replace(
        ClassifierTraining(), scenes=24, held_out_scenes=8, steps=12, clips_a_step=16, frames_a_step=16, frames=4
    )
    classifier, notes = train_classifier(config)
    save_classifier(classifier, tmp_path / "small.safetensors", notes)
    clips = render_labelled_clips(UNSEEN_SEED, 4, 4).clips()
    again = load_classifier(tmp_path / "small.safetensors")
    for name, logits in classifier(clips).items():
        torch.testing.assert_close(again(clips)[name], logits, rtol=0.02, atol=0.02)
    assert set(notes["held_out_accuracy"]) == set(ATTRIBUTE_VALUES)
    assert classifier_notes(tmp_path / "small.safetensors")["training"]["scenes"] == 24


def test_a_classifier_commutes_with_its_batch():
    torch.manual_seed(0)
    classifier = AttributeClassifier().eval()
    clips = torch.randn(3, 3, 4, 64, 64)
    torch.testing.assert_close(classifier(clips[[2, 0, 1]])["kind"], classifier(clips)["kind"][[2, 0, 1]])


# Prompts and alignment


def test_prompts_are_held_out_deterministic_and_true():
    prompts = held_out_prompts(64)
    assert prompts == held_out_prompts(64)
    assert prompts[:10] == held_out_prompts(10)
    assert PROMPT_SEED not in (StageConfig().seed, StageConfig().held_out_seed)
    for index, prompt in enumerate(prompts):
        assert prompt.text == caption_of(prompt.scene, PROMPT_SEED, index)
        assert prompt.stated.items() <= scene_attributes(prompt.scene).items()
    counts = stated_counts(prompts)
    assert counts["kind"] == 64
    assert all(20 < count <= 64 for count in counts.values())
    with pytest.raises(ValueError, match="count"):
        held_out_prompts(0)


def test_shares_have_wilsons_interval():
    low, high = Share(8, 10).interval
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)
    assert Share(10, 10).interval[1] == 1.0
    assert Share(0, 0).interval == (0.0, 1.0)


def test_the_truth_is_all_right_and_other_prompts_are_chance():
    prompts = held_out_prompts(200)
    truth = [scene_attributes(prompt.scene) for prompt in prompts]
    assert all(share.value == 1.0 for share in attribute_accuracy(truth, prompts).values())
    chance = shuffled_accuracy(truth, prompts)
    for name in ("time_of_day", "kind", "color", "direction"):
        assert chance[name] == pytest.approx(1 / len(ATTRIBUTE_VALUES[name]), abs=0.05)
    assert wrong_attributes(truth[0] | {"kind": "dragon"}, prompts[0]) == {"kind": "dragon"}
    with pytest.raises(ValueError, match="one prediction a prompt"):
        attribute_accuracy(truth[:3], prompts)


# Disparity


@pytest.mark.parametrize("displacement", [-2.0, -0.6, 0.0, 0.9, 2.3])
def test_matching_finds_a_known_shift(displacement: float):
    picture = blur(torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0)), 1.5) * 4
    left, right = shift_columns(picture, -displacement), shift_columns(picture, displacement)
    found = match(picture, [(-1.0, left), (1.0, right)])
    inner = found.displacement[:, 8:-8, 8:-8]
    assert found.trusted[:, 8:-8, 8:-8].float().mean() > 0.95
    assert (inner - displacement).abs().max() < 0.1


@pytest.mark.parametrize("axis", VIEW_AXES)
@pytest.mark.parametrize("distort", ["sharp", "soft", "grain", "large"])
def test_disparity_is_that_of_the_renderer(axis: str, distort: str):
    size = 128 if distort == "large" else 64
    step = size // 64
    clips = [render_scene(sample_scene(UNSEEN_SEED, index), 3, 3, 1, size, size) for index in range(8)]
    light_field = torch.stack([clip.pixels for clip in clips])
    truth = torch.stack([clip.disparity[1, 1] for clip in clips])[..., ::step, ::step] / step
    if distort == "soft":
        light_field = blur(light_field, 1.0)
    if distort == "grain":
        light_field = light_field + 0.05 * torch.randn(light_field.shape, generator=torch.Generator().manual_seed(0))
    found = match_views(light_field, axis)
    errors = (found.displacement - truth)[found.trusted].abs()
    assert found.trusted.float().mean() > 0.3
    assert errors.median() < 0.15
    assert errors.mean() < 0.35
    size_found, size_true = (float(values[found.trusted].abs().mean()) for values in (found.displacement, truth))
    assert size_found == pytest.approx(size_true, rel=0.12)
    assert (found.displacement.sign() == truth.sign())[found.trusted & (truth.abs() > 0.5)].float().mean() > 0.9


def test_disparity_has_its_signs_and_scales_with_the_baseline(prompts, scenes):
    whole = summarize_disparity(measure_disparity(scenes))
    half = torch.stack([render_scene(prompt.scene, 3, 3, 1, baseline=0.5).pixels for prompt in prompts[:10]])
    halved = summarize_disparity(measure_disparity(half))
    assert whole["right_signs"]["value"] > 0.95
    assert whole["agreement"] > 0.9
    for axis in VIEW_AXES:
        assert whole[axis]["far"] < -0.3
        assert whole[axis]["near"] > 1.0
        assert halved[axis]["magnitude"] / whole[axis]["magnitude"] == pytest.approx(0.5, abs=0.06)


def test_views_that_are_equal_have_none_and_views_that_are_unrelated_do_not_match(scenes):
    equal = summarize_disparity(measure_disparity(scenes[:, :, 1:2, 1:2].expand(-1, -1, 3, 3, -1, -1, -1)[:4]))
    unrelated = summarize_disparity(measure_disparity(unrelated_pictures(scenes)))
    mirrored = summarize_disparity(measure_disparity(scenes.flip(2, 3)))
    for axis in VIEW_AXES:
        assert equal[axis]["magnitude"] < 0.01
        assert unrelated[axis]["coverage"] < 0.05
        assert mirrored[axis]["near"] < 0 < mirrored[axis]["far"]
    assert mirrored["right_signs"]["value"] == 0


def test_a_grid_without_an_axis_is_measured_along_the_other(scenes):
    line = measure_disparity(scenes[:2, :, 1:2])
    assert set(line[0].by_axis) == {"view_cols"}
    pair = measure_disparity(scenes[:2, :, 1:2, 1:3])
    assert summarize_disparity(pair)["view_cols"]["near"] > 0.7
    assert measure_disparity(scenes[:2, :, 1:2, 1:2])[0].by_axis == {}


# Motion


@pytest.fixture(scope="module")
def travellers() -> tuple[EvaluationPrompt, ...]:
    """Prompts that state motion and a side."""
    told = (prompt for prompt in held_out_prompts(100) if prompt.stated.get("action") in MOVING_ACTIONS)
    return tuple(prompt for prompt in told if "direction" in prompt.stated)[:16]


def test_motion_is_told_from_grain(travellers):
    moving = torch.stack([render_scene(prompt.scene, 1, 1, 8).pixels for prompt in travellers])
    noise = torch.randn(moving.shape, generator=torch.Generator().manual_seed(0))
    still = moving[:, :, :, :, 4:5] + 0.06 * noise
    soiled = blur(moving, 1.0) + 0.02 * noise
    rendered, grainy, both = (summarize_motion(measure_motion(clip), travellers) for clip in (moving, still, soiled))
    assert rendered["prompts_with_motion"]["concentration"] > 0.9
    assert both["prompts_with_motion"]["concentration"] > 0.5
    assert grainy["prompts_with_motion"]["concentration"] < 0.25
    assert grainy["prompts_with_motion"]["contrast"] < 1.5 < both["prompts_with_motion"]["contrast"]
    assert rendered["travels_as_told"]["value"] > 0.95
    assert both["travels_as_told"]["value"] > 0.95
    assert grainy["travels_as_told"]["value"] < 0.05


def test_a_movie_run_backwards_travels_the_other_way(travellers):
    moving = torch.stack([render_scene(prompt.scene, 1, 1, 8).pixels for prompt in travellers])
    for prompt, forth, back in zip(travellers, measure_motion(moving), measure_motion(moving.flip(4)), strict=True):
        assert travels_as_told(forth, prompt)
        assert not travels_as_told(back, prompt)


def test_speed_is_that_of_the_gait_unless_the_barn_hides_it():
    scenes = [sample_scene(UNSEEN_SEED, index) for index in range(60)]
    first = [scene.animals[0] for scene in scenes]
    chosen = [index for index, animal in enumerate(first) if animal.gait == "galloping" and not animal.leaves_barn]
    clips = torch.stack([render_scene(scenes[index], 1, 1, 4).pixels for index in chosen])
    truth = torch.tensor([first[index].position(1 / 8) - first[index].position(0) for index in chosen])
    measured = torch.tensor([measure.velocity for measure in measure_motion(clips)])
    assert len(chosen) >= 8
    assert (measured - truth).abs().median() < 0.4


def test_what_does_not_change_does_not_move(scenes, prompts):
    frozen = scenes[:2, :, :, :, :1].expand(-1, -1, -1, -1, 4, -1, -1)
    assert [measure.velocity for measure in measure_motion(frozen)] == [0.0, 0.0]
    assert measure_motion(scenes[:, :, :, :, :1]) is None


# Reports


FEW_SCENES = {"training_scenes": 30, "held_out_scenes": 20}


def fake_pipeline(prompts: Sequence[EvaluationPrompt], shift: int = 0) -> Callable[..., SimpleNamespace]:
    """Renders the scene of the prompt that stands `shift` places after the one it is asked for."""
    place = {prompt.text: index for index, prompt in enumerate(prompts)}

    def pipeline(*, prompt, view_rows, view_cols, num_frames, generator, output_type, **options) -> SimpleNamespace:
        assert output_type == "pt"
        assert len(generator) == len(prompt)
        chosen = [prompts[(place[text] + shift) % len(prompts)] for text in prompt]
        return SimpleNamespace(
            light_fields=(render_prompts(chosen, (0, 3, view_rows, view_cols, num_frames, 64, 64)) + 1) / 2
        )

    return pipeline


def test_a_perfect_pipeline_meets_every_bar(prompts, tmp_path: Path):
    evaluation = evaluate(
        fake_pipeline(prompts), EvaluationSettings(prompts=24, frames=4, training_scenes=100, held_out_scenes=200)
    )
    figures = evaluation.figures
    assert [bar["title"] for bar in figures["bars"] if not bar["met"]] == []
    assert figures["ratios"]["magnitude"] == pytest.approx(1.0, abs=1e-3)
    assert figures["generated"]["alignment"] == figures["rendered"]["alignment"]
    files = write_report(evaluation, tmp_path / "report", "the truth")
    assert all(path.stat().st_size > 0 for path in files)
    assert json.loads((tmp_path / "report" / "report.json").read_text())["prompts_stating"]["kind"] == 24
    assert "| animal kind |" in (tmp_path / "report" / "report.md").read_text()
    with Image.open(tmp_path / "report" / "generated.png") as sheet:
        assert sheet.width > 8 * 160


def test_a_pipeline_that_does_not_listen_is_at_chance():
    prompts = held_out_prompts(64)
    settings = EvaluationSettings(prompts=64, view_rows=1, view_cols=1, frames=2, **FEW_SCENES)
    figures = evaluate(fake_pipeline(prompts, shift=7), settings).figures
    for name in ("kind", "color", "direction"):
        share, chance = figures["generated"]["alignment"][name], figures["shuffled"]["alignment"][name]["value"]
        # Four standard deviations of a share of sixty.
        assert share["value"] == pytest.approx(chance, abs=0.26)
        assert figures["rendered"]["alignment"][name]["value"] > 0.9
    assert not next(bar for bar in figures["bars"] if bar["title"] == "animal kind")["met"]


def test_the_real_pipeline_is_evaluated(tiny_pipeline, tmp_path: Path):
    settings = EvaluationSettings(prompts=2, view_rows=1, view_cols=2, frames=2, steps=2, noise_scenes=2, **FEW_SCENES)
    evaluation = evaluate(tiny_pipeline, settings)
    write_report(evaluation, tmp_path, "noise")
    assert set(evaluation.figures["generated"]["disparity"]) >= {"view_cols", "right_signs"}


def test_stills_of_one_view_are_evaluated_without_parallax_and_motion(prompts, tmp_path: Path):
    settings = EvaluationSettings(prompts=3, view_rows=1, view_cols=1, frames=1, batch=1, **FEW_SCENES)
    evaluation = evaluate(fake_pipeline(prompts), settings)
    assert evaluation.figures["generated"]["motion"] is None
    assert evaluation.figures["ratios"] == {}
    write_report(evaluation, tmp_path, "stills")
    text = (tmp_path / "report.md").read_text()
    assert "## Time" not in text
    assert "## Views" not in text
    assert "## Alignment" in text


def test_generator_seeds_do_not_depend_on_the_batch(prompts):
    seen: list[int] = []

    def watch(*, generator, **options) -> SimpleNamespace:
        seen.extend(one.initial_seed() for one in generator)
        assert "negative_prompt" not in options or len(options["negative_prompt"]) == len(generator)
        return fake_pipeline(prompts)(generator=generator, **options)

    small = {"prompts": 3, "seed": 5, "view_rows": 1, "view_cols": 1, "frames": 1} | FEW_SCENES
    evaluate(watch, EvaluationSettings(**small, batch=2))
    evaluate(watch, EvaluationSettings(**small, batch=3, negative="rain"))
    assert seen == [5, 6, 7, 5, 6, 7]


def test_what_a_pipeline_must_not_return_is_refused(prompts):
    settings = EvaluationSettings(prompts=2, view_rows=1, view_cols=1, frames=2)
    for light_fields, message in (
        (torch.zeros(2, 3, 1, 1, 1, 64, 64), r"keep the grid that it is called with"),
        (torch.full((2, 3, 1, 1, 2, 64, 64), torch.nan), r"NaN or infinity for a prompt among 0 to 1"),
        (torch.zeros(2, 3, 64, 64), r"7 axes"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(lambda result=light_fields, **options: SimpleNamespace(light_fields=result), settings)
    with pytest.raises(ValueError, match="`batch` must be an integer of at least 1, got 0"):
        EvaluationSettings(batch=0)
