"""Refocusing: planes that are in focus, apertures, borders, and ghosts that interpolation removes."""

import pytest
import torch

from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.light_field import CameraGrid, LightField
from diffusers_stale.light_field.between_cameras import parabolas, shares_of_cameras, stillness
from diffusers_stale.light_field.interpolation import Interpolator
from diffusers_stale.light_field.moved_sums import moved_sum, moved_sums_of_bytes
from diffusers_stale.light_field.refocus import SHAPES, aperture_weights, refocus, refocused_frames
from diffusers_stale.light_field.shifting import box_mean, shifted
from diffusers_stale.light_field.viewpoints import disparity_range


def flat(disparity: float, view_rows: int = 3, view_cols: int = 3, size: int = 24) -> torch.Tensor:
    """A waving wall of one disparity, exactly as every view sees it."""
    rows, cols = torch.arange(view_rows) - (view_rows - 1) / 2, torch.arange(view_cols) - (view_cols - 1) / 2
    # A point at x in the reference stands at x - d * u; what stands at x in view u is at x + d * u in the reference.
    x = torch.arange(size).float() + disparity * cols[:, None]
    y = torch.arange(size).float() + disparity * rows[:, None]
    wall = torch.sin(0.35 * x)[None, :, None, :] * torch.cos(0.25 * y)[:, None, :, None]
    return (0.8 * wall)[None, :, :, None].expand(3, -1, -1, -1, -1, -1).contiguous()


def psnr(picture: torch.Tensor, truth: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (picture - truth).square().mean()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("disparity", [0.0, 1.0, 1.5, -2.25])
@pytest.mark.parametrize("grid", [(3, 3), (1, 5), (4, 2)])
def test_a_flat_scene_refocuses_to_itself(shape: str, disparity: float, grid: tuple[int, int]):
    pixels, reference = flat(disparity, *grid), flat(0.0, 1, 1)[:, 0, 0]
    seen = refocus(pixels, disparity, shape=shape)
    inner = slice(6, -6)
    torch.testing.assert_close(seen[..., inner, inner], reference[..., inner, inner], atol=4e-3, rtol=0)
    blurred = refocus(pixels, disparity + 2.5, shape=shape)[..., inner, inner]
    assert psnr(blurred, reference[..., inner, inner]) < 30


@pytest.mark.parametrize("densify", [1, 3])
@pytest.mark.parametrize("focus", [0.0, 1.3, -2.0])
def test_a_constant_stays_constant_up_to_the_edges(densify: int, focus: float):
    plain = torch.full((3, 3, 3, 1, 16, 16), 0.3)
    torch.testing.assert_close(refocus(plain, focus, densify=densify), plain[:, 0, 0])


def test_no_aperture_is_the_middle_view_and_frames_do_not_mix():
    pixels = torch.rand(3, 3, 3, 4, 8, 8) * 2 - 1
    assert torch.equal(refocus(pixels, 1.0, 0.0), pixels[:, 1, 1])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(refocus(pixels[:, :, :, order], 0.7), refocus(pixels, 0.7)[:, order])


def test_both_view_axes_are_alike():
    pixels = torch.rand(3, 3, 5, 1, 12, 12) * 2 - 1
    turned = pixels.permute(0, 2, 1, 3, 5, 4)
    torch.testing.assert_close(refocus(turned, 0.8).transpose(-1, -2), refocus(pixels, 0.8))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_lens_is_the_same_on_a_denser_grid_and_opens_smoothly(shape: str):
    weights = aperture_weights(3, 3, 1.0, shape, densify=8)
    assert weights.shape == (17, 17)
    assert torch.equal(weights, aperture_weights(17, 17, 8.0, shape))
    assert torch.equal(weights, weights.flip(0, 1))
    sums = torch.stack([aperture_weights(9, 9, 0.2 * step, shape).sum() for step in range(21)])
    assert (sums.diff() >= 0).all()
    area = {"disc": torch.pi * 16, "square": 64.0}[shape]
    assert float(sums[-1]) == pytest.approx(area, rel=0.03)


def test_interpolated_views_bring_refocusing_nearer_to_the_dense_truth():
    clip = render_scene(sample_scene(0, 1), 9, 9, 1, 48, 48, baseline=1.5, spacing=0.25)
    dense, near, far = clip.pixels, float(clip.disparity.max()) * 4, float(clip.disparity.min()) * 4
    for plane in (near, far):
        truth = refocus(dense, plane / 4, 4.0)
        plain = psnr(refocus(dense[:, ::4, ::4], plane, 1.0), truth)
        densified = psnr(refocus(dense[:, ::4, ::4], plane, 1.0, densify=4, max_disparity=near + 0.5), truth)
        assert densified - plain > 6


@pytest.mark.parametrize("focus", [0.0, 1.0, -2.0, 0.4])
@pytest.mark.parametrize(("grid", "shape"), [((3, 3), "disc"), ((4, 1), "square"), ((15, 15), "square")])
def test_bytes_are_added_as_exactly_as_numbers(focus: float, grid: tuple[int, int], shape: str):
    """Also by 16-bit integers, which would overflow after 128 white pixels."""
    pixels = torch.randint(200, 256, (3, *grid, 2, 40, 36), dtype=torch.uint8)
    numbers = pixels.double().div(127.5).sub(1.0)
    exact = refocus(numbers, focus, shape=shape).add(1.0).mul(127.5)
    assert (refocus(pixels, focus, shape=shape).double() - exact).abs().max() <= 0.501


def test_pictures_are_moved_and_added_as_one_by_one():
    pictures = torch.randint(0, 256, (3, 2, 3, 9, 11), dtype=torch.uint8)
    weights, down, right = [[1.0, 0.0, 0.5], [0.25, 1.0, 2.0]], [2.0, -9.0], [3.0, 0.0, -4.0]
    wanted = torch.zeros(3, 9, 11)  # the second row is moved out of sight
    wanted[:, 2:, 3:] += pictures[:, 0, 0, :-2, :-3]
    wanted[:, 2:, :-4] += 0.5 * pictures[:, 0, 2, :-2, 4:]
    moments = torch.stack([pictures, 255 - pictures, pictures], dim=3)
    sums = [total.clone() for total in moved_sums_of_bytes(moments, weights, down, right)]
    assert torch.equal(sums[0], wanted)
    assert torch.equal(sums[2], wanted)
    met = torch.zeros(9, 11)
    met[2:, 3:] += 1.0
    met[2:, :-4] += 0.5
    assert torch.equal(sums[1], 255 * met - wanted)
    down[1] = -8.5
    asked = []

    def view(row: int, col: int) -> torch.Tensor:
        asked.append((row, col))
        return pictures[:, row, col]

    partly = moved_sum(view, weights, down, right)
    assert torch.equal(partly[:, 1:], wanted[:, 1:])
    assert asked == [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("side", [1, 3, 7, 11, 31])
def test_the_mean_over_a_window_leaves_out_what_is_beyond_the_edges(side: int):
    picture, half = torch.rand(2, 9, 12, dtype=torch.float64), side // 2
    means = box_mean(picture, side)
    for row, col in ((0, 0), (4, 6), (8, 11), (2, 10)):
        window = picture[:, max(0, row - half) : row + half + 1, max(0, col - half) : col + half + 1]
        assert torch.allclose(means[:, row, col], window.mean(dim=(1, 2)), atol=1e-12)


def test_frames_come_one_by_one_from_memory_and_file(tmp_path):
    grid = CameraGrid(view_rows=3, view_cols=3, spacing=0.5, focal_disparity=1.0)
    movie = LightField(torch.randint(0, 256, (3, 3, 3, 2, 8, 8), dtype=torch.uint8), camera_grid=grid)
    whole = refocus(movie)
    assert whole.dtype == torch.uint8
    assert torch.equal(whole, refocus(movie.pixels, 0.5))
    movie.save(tmp_path / "m.lf.safetensors")
    with LightField.open(tmp_path / "m.lf.safetensors") as file:
        assert torch.equal(torch.stack(list(refocused_frames(file)), dim=1), whole)
    assert torch.equal(torch.stack(list(refocused_frames(movie)), dim=1), whole)


def test_gradients_reach_the_pixels():
    pixels = (torch.rand(3, 3, 3, 1, 8, 8) - 0.5).requires_grad_()
    refocus(pixels, 0.7).sum().backward()
    assert pixels.grad.isfinite().all()
    assert (pixels.grad != 0).any(dim=0).any(dim=-1).any(dim=-1).all()


def test_whole_shifts_are_exact_and_the_range_of_disparity_is_found():
    picture = torch.rand(3, 9, 9)
    assert torch.equal(shifted(picture, 2, -3)[:, 2:, :-3], picture[:, :-2, 3:])
    low, high = disparity_range(flat(1.0))
    assert (low, high) == pytest.approx((1.0, 1.0), abs=0.3)
    assert disparity_range(flat(1.0, 3, 1)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aperture": 1.5}, "between 0 and 1 "),
        ({"aperture": -1.0}, "between 0 and 1 "),
        ({"aperture": float("nan")}, "finite"),
        ({"focus": 40.0}, "a plane of the scene"),
        ({"focus": float("inf")}, "finite"),
        ({"shape": "star"}, "disc, square"),
        ({"densify": 0}, "densify"),
        ({"max_disparity": 0.0}, "max_disparity"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict, words: str):
    with pytest.raises(ValueError, match=words):
        refocus(torch.zeros(3, 3, 3, 1, 8, 8), **changes)


def test_pixels_that_are_no_numbers_are_named():
    pixels = torch.zeros(3, 3, 3, 2, 8, 8)
    pixels[1, 2, 0, 1, 4, 5] = float("nan")
    with pytest.raises(ValueError, match="view_rows 2, view_cols 0, frames 1, height 4, width 5"):
        refocus(pixels)
    with pytest.raises(ValueError, match="none is in the middle"):
        refocus(torch.zeros(3, 2, 2, 1, 8, 8), aperture=0.0)
    refocus(torch.zeros(3, 2, 2, 1, 8, 8), aperture=0.0, densify=2)


@pytest.mark.parametrize("cameras", [1, 2, 3, 5])
@pytest.mark.parametrize("densify", [1, 2, 4])
def test_parabolas_through_cameras_are_exact_for_parabolas(cameras: int, densify: int):
    parts = parabolas(cameras, densify)
    assert parts.shape == ((cameras - 1) * densify + 1, cameras)
    torch.testing.assert_close(parts[::densify], torch.eye(cameras))
    places = torch.arange(cameras).float(), torch.arange(len(parts)) / densify
    for power in range(min(cameras, 3)):
        torch.testing.assert_close(parts @ places[0] ** power, places[1] ** power)


@pytest.mark.parametrize("shape", SHAPES)
def test_nine_cameras_blur_as_the_whole_lens_does(shape: str):
    weights = aperture_weights(3, 3, None, shape, densify=8)
    shares = shares_of_cameras(weights, 8)
    fine, coarse = torch.linspace(-1, 1, 17), torch.linspace(-1, 1, 3)
    for rows, cols in ((0, 0), (2, 0), (0, 2), (2, 2), (1, 1)):
        whole = (weights * fine[:, None] ** rows * fine**cols).sum() / weights.sum()
        torch.testing.assert_close((shares * coarse[:, None] ** rows * coarse**cols).sum(), whole, atol=1e-6, rtol=0)
    assert shares_of_cameras(aperture_weights(2, 3, densify=2), 2) is None


def test_a_lens_is_near_the_dense_truth_where_hardly_anything_moves():
    """At zero disparity of a movie of little parallax plain adding is good already."""
    clip = render_scene(sample_scene(0, 1), 9, 9, 1, 48, 48, baseline=0.5, spacing=0.25)
    truth, sparse = refocus(clip.pixels, 0.0), clip.pixels[:, ::4, ::4]
    gain = psnr(refocus(sparse, 0.0, densify=4, max_disparity=1.5), truth) - psnr(refocus(sparse, 0.0), truth)
    assert gain > 6


@pytest.mark.parametrize(("disparity", "believed"), [(0.0, 1.0), (-0.5, 1.0), (0.9, 0.5), (-1.3, 0.0), (3.0, 0.0)])
def test_parabolas_are_believed_where_hardly_anything_moves(disparity: float, believed: float):
    maps = torch.zeros(3, 3, 24, 24)
    maps[1, 2, 12, 12] = disparity
    part = stillness(Interpolator(torch.zeros(3, 3, 3, 24, 24), 3.0, maps), shares_of_cameras(torch.ones(5, 5), 2))
    assert part[12, 12] == pytest.approx(believed)
    part[12, 12] = 1.0
    assert part.min() == 1.0  # nowhere else
