"""Instruments of the evaluation against truths: rendered scenes, known scalings, added flicker, broken movies."""

from math import isnan

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from diffusers_stale.axes import middle_index
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import ATTRIBUTE_VALUES, sample_scene, scene_attributes
from diffusers_stale.evaluation.bars import allowed_flicker, view_ratios
from diffusers_stale.evaluation.classifier import load_classifier
from diffusers_stale.evaluation.clip_score import ClipScore
from diffusers_stale.evaluation.frechet import SCAN_ORDERS, frechet_distance, frechet_figures, scan_features
from diffusers_stale.evaluation.intervals import mean_interval, ratio_interval, statistic_interval
from diffusers_stale.evaluation.layer_training import (
    LayerTraining,
    overlaps,
    render_labelled_frames,
    train_layer_finder,
    true_layers,
)
from diffusers_stale.evaluation.layers import (
    LAYERS,
    SHIPPED_LAYERS,
    LayerFinder,
    edges,
    find_layers,
    grown,
    layer,
    load_layer_finder,
    save_layer_finder,
)
from diffusers_stale.evaluation.matching import shift_columns
from diffusers_stale.evaluation.measures import Instruments, MovieMeasures, epipolar_strips, unrelated_pictures
from diffusers_stale.evaluation.noise_errors import measure_noise_errors
from diffusers_stale.evaluation.prompts import held_out_prompts
from diffusers_stale.evaluation.reconstruction import measure_autoencoder, reconstruct
from diffusers_stale.evaluation.time_consistency import flow, measure_time, read_moved
from diffusers_stale.evaluation.unusual_captions import GROUPS, UNUSUAL_CAPTIONS, group_of, unusual_prompts
from diffusers_stale.evaluation.variety import TrainingScenes, imagination, scene_thumbnails, thumbnails, vendi_score
from diffusers_stale.evaluation.view_consistency import measure_views, psnr, read_columns


SEED = 4_100_039
"""Of scenes that nothing was trained on."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finder() -> LayerFinder:
    return load_layer_finder()


@pytest.fixture(scope="module")
def instruments(finder: LayerFinder) -> Instruments:
    return Instruments(load_classifier(), finder)


def movies(count: int, *grid: int, baseline: float = 1.0) -> torch.Tensor:
    return torch.stack([render_scene(sample_scene(SEED, i), *grid, baseline=baseline).pixels for i in range(count)])


@pytest.fixture(scope="module")
def grids() -> torch.Tensor:
    return movies(6, 3, 3, 1)


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return movies(8, 1, 1, 5)


def mean(values: list[float]) -> float:
    known = [value for value in values if not isnan(value)]
    return sum(known) / len(known)


# Intervals


def test_an_interval_of_a_mean_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(200, 50, generator=generator)
    covered = 0
    for sample in samples:
        figure = mean_interval(sample.tolist())
        covered += figure["low"] <= 0 <= figure["high"]
    assert 0.88 <= covered / 200 <= 0.99
    assert isnan(mean_interval([float("nan")])["value"])


def test_ratios_are_drawn_in_pairs_and_leave_gaps_out():
    figure = ratio_interval([2.0, 4.0, 6.0, float("nan")], [1.0, 2.0, 3.0, 5.0])
    assert (figure["value"], figure["low"], figure["high"], figure["total"]) == (2.0, 2.0, 2.0, 3)


def test_the_interval_of_a_biased_statistic_is_put_around_its_value():
    values = torch.arange(30.0)
    figure = statistic_interval(lambda chosen: len(set(values[chosen].tolist())), 30, 50, biased=True, bounds=(0, 30))
    assert figure["value"] == 30
    assert figure["low"] < 30 == figure["high"]


# Layers


def test_true_layers_are_those_that_are_painted():
    scene = next(s for s in (sample_scene(SEED, i) for i in range(99)) if s.barn and s.fence and s.animals)
    layers = true_layers(scene, render_scene(scene, 1, 1, 1))[0, 0, 0]
    assert {LAYERS[index] for index in layers.unique().tolist()} == set(LAYERS)
    assert (layers[0] == layer("background")).all()
    assert (layers[60] == layer("fence")).any()
    door = round(scene.barn.x), round(scene.barn.base - scene.barn.wall_height - 3)
    assert layers[door[1], door[0]] == layer("barn")


def test_the_shipped_finder_tells_layers_of_scenes_it_never_saw(finder: LayerFinder):
    shares = overlaps(finder, *render_labelled_frames(SEED, 40))
    least = {"background": 0.95, "ground": 0.9, "barn": 0.85, "animal": 0.75, "fence": 0.85}
    assert {name: shares[name] for name, bar in least.items() if shares[name] < bar} == {}
    assert SHIPPED_LAYERS.stat().st_size < 1_000_000
    assert SHIPPED_LAYERS.stat().st_mode & 0o777 == 0o644


def test_a_finder_is_trained_saved_and_loaded_and_others_are_refused(tmp_path):
    finder, notes = train_layer_finder(LayerTraining(scenes=8, held_out_scenes=4, steps=3, batch=4))
    assert set(notes["held_out_overlap"]) == set(LAYERS)
    save_layer_finder(finder, tmp_path / "small.safetensors", notes)
    pictures = movies(2, 1, 1, 1)[:, :, 0, 0, 0]
    again = find_layers(load_layer_finder(tmp_path / "small.safetensors"), pictures)
    assert (again == find_layers(finder, pictures)).float().mean() > 0.97
    save_layer_finder(finder, tmp_path / "other.safetensors", {"layers": ["mood"]})
    with pytest.raises(ValueError, match=r"must tell the layers.*mood.*--network layers"):
        load_layer_finder(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="--network layers"):
        load_layer_finder(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="resize_clips"):
        find_layers(finder, torch.zeros(1, 3, 32, 32))


def test_masks_grow_by_kings_moves_and_edges_lie_on_both_sides():
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[4, 4] = True
    assert grown(mask, 2).sum() == 25
    halves = torch.zeros(4, 10, dtype=torch.int64)
    halves[:, 5:] = 1
    assert edges(halves, 1).any(dim=0).tolist() == [False] * 4 + [True] * 2 + [False] * 4
    assert edges(halves, 2).any(dim=0).sum() == 4


# Views


def test_rendered_views_are_consistent_and_unrelated_ones_are_not(grids: torch.Tensor, finder: LayerFinder):
    rendered, unrelated = measure_views(grids, finder), measure_views(unrelated_pictures(grids), finder)
    assert mean([part.cycle for part in rendered]) > 0.85
    assert mean([part.cycle for part in unrelated]) < 0.1
    assert mean([part.gain for part in rendered]) > 6
    assert mean([part.gain for part in unrelated]) < 1.5
    assert mean([part.bend for part in rendered]) < 0.3
    assert mean([part.warped for part in rendered]) > mean([part.warped_edges for part in rendered]) + 3


@pytest.mark.parametrize("baseline", [0.5, 1.0, 1.5])
def test_disparity_of_layers_is_the_true_one_at_every_baseline(baseline: float, finder: LayerFinder):
    found = measure_views(movies(8, 3, 3, 1, baseline=baseline), finder)
    scenes = [sample_scene(SEED, index) for index in range(8)]
    background = mean([part.layers["background"] for part in found])
    assert background == pytest.approx(baseline * mean([scene.far_disparity for scene in scenes]), rel=0.12)
    errors = [
        part.layers["animal"] - baseline * float(scene.ground_disparity(scene.animals[0].feet))
        for part, scene in zip(found, scenes, strict=True)
        if len(scene.animals) == 1
    ]
    # Windows around a small animal see some ground, too.
    assert abs(mean(errors)) < 0.1 + 0.08 * baseline


def test_a_doubled_baseline_doubles_the_background_within_the_search(finder: LayerFinder):
    once, twice = (measure_views(movies(6, 1, 3, 1, baseline=size), finder) for size in (1.0, 2.0))
    ratio = ratio_interval([part.layers["background"] for part in twice], [part.layers["background"] for part in once])
    assert ratio["value"] == pytest.approx(2.0, abs=0.15)


def test_equal_views_gain_nothing_and_mirrored_grids_turn_their_signs(grids: torch.Tensor, finder: LayerFinder):
    equal = measure_views(grids[:2, :, 1:2, 1:2].expand(-1, -1, 3, 3, -1, -1, -1), finder)
    # Alone, each of two equal neighbours is placed by its own refinement, hundredths of a pixel from the other.
    assert all(part.gain <= 0 and part.warped > 40 and part.bend < 0.06 and part.cycle > 0.95 for part in equal)
    assert all(abs(part.layers["ground"]) < 0.02 for part in equal)
    turned = measure_views(grids.flip(2, 3), finder)
    assert mean([part.layers["background"] for part in turned]) > 0.7
    assert measure_views(grids[:, :, 1:2, 1:2], finder) is None


def test_a_bent_epipolar_line_is_measured(finder: LayerFinder):
    grid = movies(3, 1, 3, 1)
    bent = grid.clone()
    bent[:, :, 0, 2] = shift_columns(grid[:, :, 0, 2], 0.5)
    straight, crooked = (mean([part.bend for part in measure_views(one, finder)]) for one in (grid, bent))
    assert crooked - straight == pytest.approx(0.5, abs=0.15)


def test_columns_are_read_between_pixels():
    picture = torch.arange(8.0).expand(1, 1, 2, 8)
    columns = torch.tensor([[[0.5, 3.25, 6.5, 9.0, -1.0, 0.0, 7.0, 2.0]] * 2])
    assert read_columns(picture, columns)[0, 0, 0].tolist() == [0.5, 3.25, 6.5, 7.0, 0.0, 0.0, 7.0, 2.0]
    assert psnr(0.0) == 60.0
    assert psnr(0.04) == pytest.approx(20.0)


def test_ratios_say_how_near_the_layers_are_to_rendered_ones():
    layer_ratios = {"animal": {"value": 1.1}, "background": {"value": -0.1}}
    views = {"generated": {"views": {"gain": {"value": 3.0}}}, "rendered": {"views": {"gain": {"value": 6.0}}}}
    found = view_ratios(layer_ratios, views)
    assert found["animal_nearness"] == pytest.approx(0.9)
    assert found["background_nearness"] == pytest.approx(-0.1)
    assert found["gain"] == 0.5


def test_epipolar_strips_show_every_view_at_three_heights(grids: torch.Tensor):
    strips = epipolar_strips(grids)
    assert strips.shape == (6, 3, 9, 64)
    torch.testing.assert_close(strips[:, :, 0], grids[:, :, 1, 0, 0, round(0.15 * 63)])


# Time


def test_flow_is_the_shift_that_was_made():
    picture = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    later = picture.roll((-1, 3), dims=(2, 3))
    moves = flow(picture, later)
    inner = moves[0, :, 8:-8, 8:-8]
    assert (inner[0] == 3).all()
    assert (inner[1] == -1).all()
    torch.testing.assert_close(read_moved(later, moves)[..., 8:-8, 8:-8], picture[..., 8:-8, 8:-8])
    assert (flow(picture, picture) == 0).all()


@pytest.mark.parametrize("strength", [2.0, 6.0])
def test_flicker_that_is_added_is_measured(strength: float, clips: torch.Tensor, finder: LayerFinder):
    generator = torch.Generator().manual_seed(1)
    grain = torch.randn(clips.shape, generator=generator) * strength / 127.5
    brightness = torch.randn(8, 1, 1, 1, 5, 1, 1, generator=generator) * strength / 127.5
    still = mean([part.flicker for part in measure_time(clips, finder)])
    assert still < 0.6
    assert mean([part.flicker for part in measure_time(clips + grain, finder)]) == pytest.approx(strength, rel=0.15)
    pulsing = mean([part.flicker for part in measure_time(clips + brightness, finder)])
    assert strength * 0.5 < pulsing < strength * 1.6


def test_slow_drift_is_no_flicker(clips: torch.Tensor, finder: LayerFinder):
    ramp = torch.linspace(0, 20 / 127.5, 5).view(1, 1, 1, 1, 5, 1, 1)
    drifting = measure_time(clips * 0.8 + ramp, finder)
    assert mean([part.flicker for part in drifting]) < 0.6
    assert mean([part.drift for part in drifting]) == pytest.approx(20, rel=0.1)


def test_flow_makes_frames_alike_where_there_is_motion(clips: torch.Tensor, finder: LayerFinder):
    moving = [index for index in range(8) if sample_scene(SEED, index).animals[0].gait in ("walking", "galloping")]
    rendered = [measure_time(clips, finder)[index] for index in moving]
    unrelated = measure_time(unrelated_pictures(clips), finder)
    assert mean([part.gain for part in rendered]) > 3
    assert mean([part.warped for part in rendered]) > mean([part.warped for part in unrelated]) + 8
    assert measure_time(clips[:, :, :, :, :1], finder) is None
    assert isnan(measure_time(clips[:1, :, :, :, :2], finder)[0].flicker)


def test_flicker_is_allowed_up_to_twice_what_the_autoencoder_makes():
    figures = {"generated": {"time": {"flicker": {"value": 3.0}}}}
    assert allowed_flicker(figures) == pytest.approx(1 / 3)
    assert allowed_flicker(figures | {"reconstructed": {"time": {"flicker": {"value": 2.0}}}}) == pytest.approx(4 / 3)


# Distributions


def test_frechet_distance_is_that_of_gaussians():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(4000, 3, generator=generator)
    other = torch.randn(4000, 3, generator=generator) * torch.tensor([1.0, 2.0, 1.0]) + torch.tensor([3.0, 0.0, 0.0])
    # Squared distance of means 9, and (2 - 1)^2 of the deviations.
    assert frechet_distance(one, other) == pytest.approx(10.0, rel=0.05)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="evaluate more prompts"):
        frechet_distance(one[:1], other)


def test_scan_orders_go_their_ways_through_the_grid():
    rows, cols, frames = 2, 3, 4
    labels = torch.arange(rows * cols * frames, dtype=torch.float32).view(1, 1, rows, cols, frames, 1, 1)
    found = {name: order(labels) for name, order in SCAN_ORDERS.items()}
    paths = {name: clip[0, 0, :, 0, 0].int().tolist() for name, clip in found.items()}
    middle = (middle_index(rows) * cols + middle_index(cols)) * frames
    assert paths["time"] == [middle + frame for frame in range(frames)]
    assert [label // frames for label in paths["views"]] == [0, 1, 2, 5, 4, 3]
    assert {label % frames for label in paths["views"]} == {middle_index(frames)}
    assert sorted(paths["raster"]) == list(range(24))
    assert paths["raster"][:7] == [0, 4, 8, 20, 16, 12, 1]
    assert paths["diagonal"][0] == 0
    assert paths["diagonal"][-1] == paths["raster"][-1]
    still = labels[:, :, :1, :1, :1]
    assert [name for name, order in SCAN_ORDERS.items() if order(still) is not None] == ["picture"]


def test_broken_movies_are_farther_from_rendered_ones_than_other_rendered_ones(instruments: Instruments):
    everything = movies(24, 1, 3, 3)
    truth, others = everything[:12], everything[12:]
    truth, others, broken = (
        scan_features(instruments.classifier, part) for part in (truth, others, unrelated_pictures(everything[:12]))
    )
    figures = frechet_figures(others, truth, others, broken)
    assert set(figures) == set(SCAN_ORDERS)
    for name in ("time", "views", "diagonal", "raster"):
        assert figures[name]["shuffled"] > 3 * figures[name]["generated"]["value"]
        assert figures[name]["samples"] == 12
        assert figures[name]["generated"]["value"] == figures[name]["rendered"]
    assert frechet_figures({"time": truth["time"][:2]}, truth, others, broken) == {}


def test_vendi_counts_what_is_different():
    axes = torch.eye(6)
    assert vendi_score(axes) == pytest.approx(6.0)
    assert vendi_score(axes[:1].expand(6, -1)) == pytest.approx(1.0)
    assert vendi_score(torch.cat([axes[:2]] * 3)) == pytest.approx(2.0)


def test_copies_of_training_scenes_are_not_novel_and_held_out_ones_are():
    known = TrainingScenes.render((SEED,), 60, 60)
    copies = known.figures(thumbnails(movies(4, 1, 1, 1)))
    assert copies["novel"]["value"] == 0
    assert copies["distance"]["value"] < known.threshold / 2
    fresh = known.figures(scene_thumbnails(SEED + 1, 40))
    assert fresh["novel"]["value"] >= 0.9
    assert 0.35 < fresh["percentile"]["value"] < 0.65
    with pytest.raises(ValueError, match="At least one training seed"):
        TrainingScenes.render((), 1, 1)


def test_only_the_three_together_are_imagination():
    assert imagination(1.0, 1.3, 1.0) == 1.0
    assert imagination(0.2, 1.0, 1.0) == pytest.approx(0.2)
    assert imagination(1.0, 1.0, 0.0) == 0.0


def test_movies_are_ranked_by_what_they_show(instruments: Instruments):
    prompts = held_out_prompts(4)
    right = torch.stack([render_scene(prompt.scene, 1, 1, 2).pixels for prompt in prompts])
    measures = MovieMeasures()
    measures.add(instruments, right[[0, 0, 2, 0]])
    assert set(measures.rank(prompts)[:2]) == {0, 2}


def test_unrelated_pictures_have_other_neighbours_and_keep_the_middle():
    labels = torch.arange(3.0).view(3, 1, 1, 1, 1, 1, 1).expand(3, 1, 3, 3, 3, 1, 1)
    mixed = unrelated_pictures(labels)
    assert torch.equal(mixed[:, :, 1, 1, 1], labels[:, :, 1, 1, 1])
    for axis in (2, 3, 4):
        assert (mixed.narrow(axis, 1, 2) != mixed.narrow(axis, 0, 2)).all()


# The network at its noise levels, the autoencoder


def test_errors_by_noise_level_are_measured_on_a_real_pipeline(tiny_pipeline):
    found = measure_noise_errors(tiny_pipeline, held_out_prompts(3), (1, 3), 1, batch=2)
    assert found["scenes"] == 3
    for figures in found["levels"].values():
        assert figures["error"]["total"] == 3
        assert figures["error"]["value"] > 0
        assert set(figures) == {"error", "single_view", "other_prompt", "mirrored", "mirrored_far", "mirrored_near"}
    alone = measure_noise_errors(tiny_pipeline, held_out_prompts(2), (1, 1), 2)
    assert set(alone["levels"]["0.5"]) == {"error", "other_prompt"}


def test_an_autoencoder_is_measured_on_pixels_disparity_and_flicker(tiny_pipeline, finder: LayerFinder):
    scenes = [sample_scene(SEED, index) for index in range(2)]
    figures = measure_autoencoder(tiny_pipeline.vae, scenes, finder=finder)
    assert figures["psnr"]["value"] < 20
    assert set(figures["disparity"]) == {"background", "ground", "animal"}
    grid = movies(1, 1, 2, 1)
    assert reconstruct(tiny_pipeline.vae, grid).shape == grid.shape


def test_a_perfect_autoencoder_measures_as_perfect(monkeypatch: pytest.MonkeyPatch, finder: LayerFinder):
    monkeypatch.setattr("diffusers_stale.evaluation.reconstruction.reconstruct", lambda vae, movie: movie)
    figures = measure_autoencoder(None, [sample_scene(SEED, index) for index in range(3)], finder=finder)
    assert figures["psnr"]["value"] == 60
    assert figures["flicker"]["value"] < 0.6
    assert all(ratio["value"] == 1 for ratio in figures["disparity"].values())


# Captions


def test_sixty_captions_ask_for_what_the_classifier_knows_and_their_scenes_show_it():
    assert len({caption.text for caption in UNUSUAL_CAPTIONS}) == 60
    assert {group: sum(c.group == group for c in UNUSUAL_CAPTIONS) for group in GROUPS} == dict.fromkeys(GROUPS, 15)
    for prompt in unusual_prompts():
        assert all(value in ATTRIBUTE_VALUES[name] for name, value in prompt.stated.items())
        assert prompt.stated.items() <= scene_attributes(prompt.scene).items()
    assert {group_of(prompt.text) for prompt in unusual_prompts(4)} == set(GROUPS)
    with pytest.raises(ValueError, match="between 1 and 60, got 61"):
        unusual_prompts(61)


def test_no_unusual_caption_is_one_of_the_grammar():
    written = {prompt.text for prompt in held_out_prompts(800)}
    assert not written & {caption.text for caption in UNUSUAL_CAPTIONS}


def test_clip_scores_come_of_a_folder(tmp_path, tiny_pipeline):
    torch.manual_seed(0)
    tokenizer = tiny_pipeline.tokenizer
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 16,
        },
        projection_dim=8,
    )  # fmt: skip
    folder = tmp_path / "clip"
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    prompts = held_out_prompts(3)
    pictures = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in prompts]
    texts = [prompt.text for prompt in prompts]
    found = ClipScore(folder).figures(texts, pictures, pictures)
    assert found["generated"] == found["rendered"]
    assert -100 <= found["generated"]["low"] <= found["generated"]["value"] <= found["generated"]["high"] <= 100
    assert found["shuffled"]["value"] != found["generated"]["value"]
    with pytest.raises(ValueError, match=r"--clip must be a folder.*openai/clip"):
        ClipScore(tmp_path / "none")


def test_an_autoencoder_that_halves_parallax_is_found_out(monkeypatch: pytest.MonkeyPatch, finder: LayerFinder):
    scene = sample_scene(SEED, 0)
    halved = render_scene(scene, 3, 3, 3, baseline=0.5).pixels[None]
    monkeypatch.setattr("diffusers_stale.evaluation.reconstruction.reconstruct", lambda vae, movie: halved)
    figures = measure_autoencoder(None, [scene], finder=finder)
    for ratio in figures["disparity"].values():
        assert ratio["value"] == pytest.approx(0.5, abs=0.08)
