"""Scenes, renderer and captions: parallax is exact, everything follows from (seed, index), no caption is wrong."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from diffusers_stale.data import captions
from diffusers_stale.data.captions import caption_of, describe, mirrored
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import ATTRIBUTE_VALUES, sample_scene, scene_attributes


def shift_picture(picture: torch.Tensor, rows: float, cols: float) -> torch.Tensor:
    """Samples `(channels, height, width)` at positions moved by `rows` and `cols` pixels, bilinearly."""
    height, width = picture.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) + rows, torch.arange(width) + cols, indexing="ij")
    grid = torch.stack([(x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1], dim=-1)
    return F.grid_sample(picture[None], grid[None].float(), align_corners=False, padding_mode="border")[0]


def warp_to_middle(clip, row: int, col: int, frame: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A view warped to the middle one by the true disparity, and where that is no occlusion."""
    disparity = clip.disparity[1, 1, frame]
    height, width = disparity.shape
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    x, y = x - disparity * (col - 1), y - disparity * (row - 1)
    grid = torch.stack([(x + 0.5) / width * 2 - 1, (y + 0.5) / height * 2 - 1], dim=-1)[None]
    picture = F.grid_sample(clip.pixels[:, row, col, frame][None], grid, align_corners=False)[0]
    theirs = F.grid_sample(clip.disparity[row, col, frame][None, None], grid, align_corners=False, mode="nearest")[
        0, 0
    ]
    inside = (grid.abs() < 1 - 2 / width).all(dim=-1)[0]
    return picture, ((theirs - disparity).abs() < 0.05) & inside


@pytest.mark.parametrize("index", range(6))
def test_true_disparity_warps_every_view_to_the_middle_one(index: int) -> None:
    clip = render_scene(sample_scene(3, index), 3, 3, 1, 128, 128)
    middle = clip.pixels[:, 1, 1, 0]
    for row, col in ((1, 0), (1, 2), (0, 1), (2, 1), (0, 0), (2, 2)):
        warped, visible = warp_to_middle(clip, row, col)
        assert visible.float().mean() > 0.75
        error = (warped - middle).abs().mean(dim=0)[visible].mean()
        unwarped = (clip.pixels[:, row, col, 0] - middle).abs().mean(dim=0)[visible].mean()
        assert error < 0.35 * unwarped


def test_the_far_sky_moves_with_the_camera_and_the_near_fence_against_it() -> None:
    scene = next(s for s in (sample_scene(0, i) for i in range(99)) if s.fence and s.time_of_day == "day")
    clip = render_scene(scene, 1, 3, 1)
    sky, fence = clip.disparity[0, 1, 0, 0, 0], clip.disparity[0, 1, 0, 59, :].max()
    assert sky == pytest.approx(scene.far_disparity, abs=1e-5)
    assert sky < 0
    assert 1.4 < fence < 2.2
    middle, right = clip.pixels[:, 0, 1, 0], clip.pixels[:, 0, 2, 0]
    near = slice(54, 62)
    errors = {
        d: (shift_picture(right, 0.0, -d)[:, near, 4:-4] - middle[:, near, 4:-4]).abs().mean()
        for d in (-1.8, 0.0, 1.8)
    }
    assert errors[1.8] < 0.5 * errors[0.0] < errors[-1.8]


def test_baseline_and_spacing_scale_disparity_and_dense_views_contain_the_sparse_ones() -> None:
    scene = sample_scene(5, 1)
    sparse, dense = render_scene(scene, 3, 3, 1), render_scene(scene, 5, 5, 1, spacing=0.5)
    torch.testing.assert_close(dense.pixels[:, ::2, ::2], sparse.pixels, atol=1e-4, rtol=0)
    torch.testing.assert_close(dense.disparity[2, 2] * 2, sparse.disparity[1, 1])
    flat = render_scene(scene, 3, 3, 1, baseline=0.0)
    torch.testing.assert_close(flat.pixels[:, 0, 0], flat.pixels[:, 2, 1])


def test_any_grid_and_size_and_what_the_values_are() -> None:
    clip = render_scene(sample_scene(0, 0), 1, 2, 3, 48, 80)
    assert clip.pixels.shape == (3, 1, 2, 3, 48, 80)
    assert clip.disparity.shape == clip.foreground.shape == (1, 2, 3, 48, 80)
    assert clip.pixels.min() >= -1
    assert clip.pixels.max() <= 1
    assert clip.foreground.any()


def test_a_larger_picture_is_the_same_picture() -> None:
    scene = sample_scene(2, 7)
    small, large = render_scene(scene, 1, 1, 1, 64, 64), render_scene(scene, 1, 1, 1, 256, 256)
    averaged = F.avg_pool2d(large.pixels[:, 0, 0, 0], 4)
    assert (averaged - small.pixels[:, 0, 0, 0]).abs().mean() < 0.02


def test_everything_follows_from_seed_and_index() -> None:
    first, again = (render_scene(sample_scene(7, 11), 2, 2, 2) for _ in range(2))
    assert torch.equal(first.pixels, again.pixels)
    assert caption_of(sample_scene(7, 11), 1, 2) == caption_of(sample_scene(7, 11), 1, 2)
    assert sample_scene(7, 11) != sample_scene(7, 12) != sample_scene(8, 12)


def test_only_the_animal_moves() -> None:
    scene = next(
        s
        for s in (sample_scene(0, i) for i in range(99))
        if scene_attributes(s)["action"] == "galloping" and len(s.animals) == 1
    )
    clip = render_scene(scene, 1, 1, 8)
    change = (clip.pixels[:, 0, 0, 1:] - clip.pixels[:, 0, 0, :-1]).abs().amax(dim=0)
    near_animal = (
        F.max_pool2d((clip.foreground[0, 0, 1:] | clip.foreground[0, 0, :-1]).float()[:, None], 19, 1, 9)[:, 0] > 0
    )
    assert change[near_animal].mean() > 0.05
    assert change[~near_animal].max() == 0
    columns = torch.arange(64).float()
    centers = [
        (clip.foreground[0, 0, f].float().sum(0) * columns).sum() / clip.foreground[0, 0, f].sum() for f in (1, 6)
    ]
    assert (centers[1] - centers[0]) * scene.animals[0].sign > 8


def test_night_is_bright_enough_to_tell_colors() -> None:
    scene = next(
        s for s in (sample_scene(0, i) for i in range(99)) if s.time_of_day == "night" and len(s.animals) == 1
    )
    looks = []
    for color in ATTRIBUTE_VALUES["color"]:
        clip = render_scene(
            replace(scene, animals=(replace(scene.animals[0], color=color, leaves_barn=False),)), 1, 1, 1
        )
        looks.append(clip.pixels[:, clip.foreground[:, :, :]].mean(dim=1))
    distances = torch.cdist(torch.stack(looks), torch.stack(looks)) + 9 * torch.eye(len(looks))
    assert distances.min() > 0.15


WORDS = {
    "time_of_day": {
        value: [re.sub(r"^(at|in|by|on|under) ", "", phrase) for phrase in options]
        for value, options in captions.TIMES.items()
    },
    "color": captions.ADJECTIVES,
    "kind": {kind: [form for forms in options for form in forms] for kind, options in captions.NOUNS.items()},
    "direction": {"left": ["left"], "right": ["right"]},
}  # fmt: skip


@pytest.mark.parametrize("index", range(300))
def test_no_caption_is_wrong(index: int) -> None:
    scene = sample_scene(13, index)
    truth, caption = scene_attributes(scene), describe(scene, 4, index)
    text = f" {caption.text} ".replace(",", " ")
    present = {"kind": {a.kind for a in scene.animals}, "color": {a.color for a in scene.animals}}
    for name, lexicon in WORDS.items():
        allowed = present.get(name, {truth[name]})
        if name == "color" and scene.barn:
            allowed = allowed | {scene.barn.color}
        for value, words in lexicon.items():
            for word in words:
                if re.search(rf"\b{word}(ward)?\b", text) and not (value == "day" and word == "day"):
                    assert value in allowed, (caption.text, name, value)
        if name in caption.stated:
            assert any(re.search(rf"\b{word}(ward)?\b", text) for word in lexicon[truth[name]]), (caption.text, name)
    barn_word = re.search(r"barn painted (\w+)", text) or re.search(r"(\w+) barn", text)
    if barn_word and "no barn" not in text:
        assert scene.barn is not None
        assert scene.barn.color in barn_word.groups()
    if "fence" in text:
        assert ("without" in text or "no fence" in text) == (not scene.fence)
    if "out of" in text:
        assert truth["action"] == "leaving"


def test_a_complete_caption_states_everything() -> None:
    for index in range(40):
        assert describe(sample_scene(0, index), 0, 0, complete=True).stated == set(ATTRIBUTE_VALUES)


def test_all_attribute_values_occur() -> None:
    seen = {name: set() for name in ATTRIBUTE_VALUES}
    for index in range(400):
        for name, value in scene_attributes(sample_scene(1, index)).items():
            seen[name].add(value)
    assert {name: set(values) for name, values in ATTRIBUTE_VALUES.items()} == seen


@pytest.mark.parametrize(
    "arguments", [{"view_rows": 0}, {"num_frames": -1}, {"view_cols": 2.0}, {"height": 4}, {"baseline": float("nan")}]
)
def test_bad_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        render_scene(sample_scene(0, 0), **arguments)


def test_a_mirrored_caption_says_the_other_side_and_nothing_else():
    assert mirrored("a pig walks to the left by a barn") == "a pig walks to the right by a barn"
    assert mirrored("a cow stepping out rightward") == "a cow stepping out leftward"
    assert mirrored("on a bright day a horse stands") == "on a bright day a horse stands"
    for index in range(200):
        caption = describe(sample_scene(4, index), 4, index)
        assert (mirrored(caption.text) != caption.text) == ("direction" in caption.stated)
        assert mirrored(mirrored(caption.text)) == caption.text
