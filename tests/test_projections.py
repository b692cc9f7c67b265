"""Projections: sheets show the right views, cameras move as they should, depth is measured, no wrong mixing."""

import math

import pytest
import torch

from diffusers_stale.axes import displaced, view_coordinates
from diffusers_stale.data.renderer import RenderedClip, render_scene
from diffusers_stale.data.scenes import Scene, sample_scene
from diffusers_stale.light_field import CameraGrid, LightField
from diffusers_stale.light_field.antialiasing import Exposures, prefiltered, with_shutter
from diffusers_stale.light_field.camera_paths import dolly_shots, orbit_shots, pictures_of, sway_shots
from diffusers_stale.light_field.depth import CONFIDENT, measured_depth, smooth_disparity
from diffusers_stale.light_field.interpolation import Interpolator, view_between
from diffusers_stale.light_field.projections import (
    PROJECTIONS,
    all_in_focus,
    camera_path,
    depth_map,
    dollying_camera,
    epipolar_sheet,
    maximum_over,
    mean_over,
    orbiting_camera,
    refocus,
    see_through,
    single_view,
    swaying_camera,
    time_sheet,
    time_slices,
    views_sheet,
)
from diffusers_stale.light_field.viewpoints import search_reach


def noise(view_rows: int = 3, view_cols: int = 5, frames: int = 4, height: int = 6, width: int = 8) -> LightField:
    """A light field in which no two pixels are likely to be alike."""
    shape = (3, view_rows, view_cols, frames, height, width)
    return LightField(torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


def fenced_day() -> Scene:
    return next(s for s in (sample_scene(0, i) for i in range(99)) if s.fence and s.time_of_day == "day")


def light_field_of(clip: RenderedClip) -> LightField:
    return LightField.from_float(clip.pixels, disparity=clip.disparity)


def wall(disparity: float, view_rows: int = 3, view_cols: int = 3, size: int = 48) -> torch.Tensor:
    """A wall with a pattern, of one disparity, as every view sees it: shape `(3, rows, cols, 1, size, size)`."""
    rows, cols = view_coordinates(view_rows), view_coordinates(view_cols)
    x = torch.arange(size).float() + disparity * cols[:, None]
    y = torch.arange(size).float() + disparity * rows[:, None]
    pattern = torch.sin(0.35 * x + 0.3)[None, :, None, :] + torch.cos(0.25 * y)[:, None, :, None]
    return (0.4 * pattern)[None, :, :, None].expand(3, -1, -1, -1, -1, -1).contiguous()


def before(front: torch.Tensor, back: torch.Tensor, disparity: float, start: int, stop: int) -> torch.Tensor:
    """`front` between two columns of the reference view, as a bar of that disparity, and `back` elsewhere."""
    seen = back.clone()
    for col, coordinate in enumerate(view_coordinates(back.shape[2]).tolist()):
        left, right = (round(float(displaced(edge, disparity, coordinate))) for edge in (start, stop))
        seen[:, :, col, :, :, left:right] = front[:, :, col, :, :, left:right]
    return seen


def psnr(one: torch.Tensor, other: torch.Tensor, peak: float = 2.0) -> float:
    return float(10 * torch.log10(peak**2 / (one.float() - other.float()).square().mean()))


# Sheets


def test_the_sheet_of_views_has_every_view_in_its_place() -> None:
    light_field = noise()
    sheet = views_sheet(light_field, frame_index=1, gap=2)
    assert sheet.shape == (3, 3 * 8 - 2, 5 * 10 - 2)
    for row in range(3):
        for col in range(5):
            there = sheet[:, row * 8 : row * 8 + 6, col * 10 : col * 10 + 8]
            assert torch.equal(there, light_field.pixels[:, row, col, 1])
    assert sheet[:, 6:8].unique().tolist() == [255]
    assert torch.equal(views_sheet(light_field), views_sheet(light_field.pixels, 2))
    assert torch.equal(views_sheet(light_field.to_float(), 1, 0)[:, :6, :8], light_field.to_float()[:, 0, 0, 1])


def test_the_sheet_of_frames_reads_like_a_page() -> None:
    light_field = noise(frames=6)
    sheet = time_sheet(light_field, gap=1)
    assert sheet.shape == (3, 2 * 7 - 1, 4 * 9 - 1)
    for index in range(6):
        top, left = index // 4 * 7, index % 4 * 9
        assert torch.equal(sheet[:, top : top + 6, left : left + 8], light_field.middle_view[:, index])
    assert sheet[:, 7:, 18:].unique().tolist() == [255]


def epipolar_slices(light_field: LightField, count: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Row slices `(3, view_cols, width)` and column slices `(3, height, view_rows)` as the sheet shows them."""
    sheet = epipolar_sheet(light_field, frame_index=0, count=count)
    height, width = light_field.height, light_field.width
    left = width + 8
    along, down = [], []
    for part in range(count):
        pitch = height // count
        zoom = (pitch - 2) // light_field.view_cols
        top = part * pitch + (pitch - zoom * light_field.view_cols) // 2
        along.append(sheet[:, top : top + zoom * light_field.view_cols : zoom, left : left + width])
        pitch = width // count
        zoom = (pitch - 2) // light_field.view_rows
        start = left + width + 4 + part * pitch + (pitch - zoom * light_field.view_rows) // 2
        down.append(sheet[:, :height, start : start + zoom * light_field.view_rows : zoom])
    return along, down


def test_epipolar_slices_are_those_of_the_middle_row_and_column() -> None:
    light_field = noise(3, 5, 2, 32, 48)
    along, down = epipolar_slices(light_field, 2)
    for row, found in zip((8, 24), along, strict=True):
        assert torch.equal(found, light_field.pixels[:, 1, :, 0, row])
    for col, found in zip((12, 36), down, strict=True):
        assert torch.equal(found, light_field.pixels[:, :, 2, 0, :, col].transpose(1, 2))


def test_lines_of_an_epipolar_slice_lean_as_the_axes_say() -> None:
    """Following the true disparity with `axes.displaced` stays on one colour; following its opposite does not."""
    light_field = light_field_of(render_scene(fenced_day(), 3, 3, 1))
    along, down = epipolar_slices(light_field, 4)
    cases = [(part, light_field.disparity[1, 1, 0, row]) for row, part in zip((8, 24, 40, 56), along, strict=True)]
    cases += [
        (part.transpose(1, 2), light_field.disparity[1, 1, 0, :, col])
        for col, part in zip((8, 24, 40, 56), down, strict=True)
    ]
    totals = {sign: sum(_drift(part.float(), sign * disparity) for part, disparity in cases) for sign in (-1, 0, 1)}
    assert totals[1] < 0.6 * totals[0]
    assert totals[1] < 0.4 * totals[-1]


def _drift(epipolar: torch.Tensor, disparity: torch.Tensor) -> float:
    """How much the colour changes along lines of `disparity` through a slice `(3, views, length)`."""
    _, views, length = epipolar.shape
    places = torch.arange(length).float()
    drift = 0.0
    for view, coordinate in enumerate(view_coordinates(views)):
        there = displaced(places, disparity, coordinate).clamp(0, length - 1)
        low = there.floor().long().clamp(max=length - 2)
        part = there - low
        seen = epipolar[:, view, low] * (1 - part) + epipolar[:, view, low + 1] * part
        drift += (seen - epipolar[:, views // 2])[:, 4:-4].abs().mean().item()
    return drift


def test_a_flat_scene_has_straight_epipolar_lines() -> None:
    light_field = light_field_of(render_scene(fenced_day(), 3, 3, 1, baseline=0.0))
    along, down = epipolar_slices(light_field, 4)
    assert all(torch.equal(part, part[:, :1].expand_as(part)) for part in along)
    assert all(torch.equal(part, part[:, :, :1].expand_as(part)) for part in down)


# Moving cameras


@pytest.mark.parametrize("grid", [(1, 1), (1, 3), (3, 1), (2, 2), (3, 3), (5, 4)])
def test_the_path_of_the_camera_is_closed_smooth_and_within_the_grid(grid: tuple[int, int]) -> None:
    path = torch.tensor(camera_path(*grid, 96))
    assert path.min() >= 0
    assert (path.amax(dim=0) <= torch.tensor(grid) - 1 + 1e-9).all()
    torch.testing.assert_close(path.amin(dim=0) + path.amax(dim=0), torch.tensor(grid).float() - 1)
    assert (path.roll(1, 0) - path).abs().max() < 0.2
    assert (path.round().roll(1, 0) - path.round()).abs().max() <= 1


@pytest.mark.parametrize("interpolate", [True, False])
def test_the_swaying_camera_of_a_flat_scene_shows_the_movie(interpolate: bool) -> None:
    light_field = light_field_of(render_scene(fenced_day(), 3, 3, 3, 16, 16, baseline=0.0))
    movie = swaying_camera(light_field, 9, interpolate=interpolate)
    expected = light_field.middle_view.repeat_interleave(3, dim=1)
    assert (movie.int() - expected.int()).abs().max() <= 1
    assert torch.equal(movie, expected) or interpolate


def test_without_interpolation_the_camera_shows_views_and_nothing_else() -> None:
    light_field = noise(3, 3, 2)
    movie = swaying_camera(light_field, 24, interpolate=False)
    shown = []
    for index in range(24):
        moment = light_field.pixels[:, :, :, index // 3 % 2]
        shown += [(r, c) for r in range(3) for c in range(3) if torch.equal(moment[:, r, c], movie[:, index])]
    assert len(shown) == 24
    assert len(set(shown)) == 8
    assert (1, 1) not in shown


def test_a_camera_alone_does_not_make_a_surface_that_its_neighbours_look_through(monkeypatch) -> None:
    pixels = wall(1.0)[:, :, :, 0]
    views = Interpolator(pixels, 2.0)
    rows, cols = pixels.shape[1:3]
    height, width = pixels.shape[-2:]
    surface = torch.full((rows, cols, height, width), 1.0)
    ghost, hidden = (slice(8, 12), slice(8, 12)), (slice(2, 5), slice(2, 5))
    surface[1, 1][ghost] = 3.0
    surface[1, 1][hidden] = -2.0  # something else is nearer in all others, which is no contradiction
    monkeypatch.setattr(Interpolator, "_search", lambda self, row, col: surface[row, col].clone())
    agreed = views.disparity(1, 1)
    assert torch.equal(agreed[ghost], torch.ones(4, 4))
    assert torch.equal(agreed[hidden], torch.full((3, 3), -2.0))
    surface[:] = 1.0
    surface[..., 8:20, 8:20] = 3.0
    assert Interpolator(pixels, 2.0).disparity(1, 1)[14, 14] == 3.0  # that all see is one


def test_known_disparity_is_not_searched_for() -> None:
    pixels = wall(1.0)[:, :, :, 0]
    known = torch.rand(*pixels.shape[1:3], *pixels.shape[-2:])
    views = Interpolator(pixels, 2.0, known)
    assert torch.equal(views.disparity(0, 1), known[0, 1])


@pytest.mark.parametrize("position", [(2, 1), (1, 2), (1, 1)])
def test_a_view_between_is_nearer_to_the_true_one_than_a_blend(position: tuple[int, int]) -> None:
    row, col = position
    dense = render_scene(fenced_day(), 5, 5, 1, spacing=0.5).pixels[..., 0, :, :]
    views, truth = dense[:, ::2, ::2], dense[:, row, col]
    sides = [views[:, r, c] for r in {row // 2, -(-row // 2)} for c in {col // 2, -(-col // 2)}]
    between = view_between(views, row / 2, col / 2, 3.2)
    assert (between - truth).square().mean() < 0.6 * (torch.stack(sides).mean(dim=0) - truth).square().mean()
    assert torch.equal(view_between(views, 1.0, 2.0, 3.2), views[:, 1, 2])


def test_rows_of_the_middle_view_are_followed_in_time() -> None:
    movie = noise(1, 1, 3, 16, 10)
    sheet = time_slices(movie, count=2)
    for row, top in ((4, 0), (12, 8)):
        part = sheet[:, top + 1 : top + 7 : 2, 10 + 4 + 4 :]  # three frames, each twice as thick
        assert torch.equal(part, movie.pixels[:, 0, 0, :, row])
    with pytest.raises(ValueError, match="count"):
        time_slices(movie, count=17)


@pytest.mark.parametrize("disparity", [0.0, 1.3, -2.2])
def test_the_orbiting_camera_holds_its_focal_plane(disparity: float) -> None:
    """A wall in the focal plane stands still however the camera circles; another one moves."""
    options = {"num_frames": 6, "max_disparity": 3.0, "pictures_a_frame": 1}
    seen = orbiting_camera(wall(disparity), focus=disparity, **options)[..., 8:-8, 8:-8]
    still = wall(disparity)[:, 1, 1, :, 8:-8, 8:-8]
    assert psnr(seen, still.expand_as(seen)) > 40
    moved = orbiting_camera(wall(disparity), focus=disparity + 2.0, **options)[..., 8:-8, 8:-8]
    assert psnr(moved, still.expand_as(moved)) < 25


def test_shots_stay_in_the_grid_and_end_where_they_begin() -> None:
    for shots in (sway_shots(3, 5, 4, 8.0), orbit_shots(3, 5, 4, 8.0), dolly_shots(3, 5, 4, 8.0)):
        assert len(shots) % 12 == 0
        assert len(shots) / 24.0 >= 4.0
        assert [shot.frame_index for shot in shots[:6]] == [0, 0, 0, 1, 1, 1]
        assert all(-1e-9 <= shot.row <= 2 + 1e-9 and -1e-9 <= shot.col <= 4 + 1e-9 for shot in shots)
        assert max(abs(shot.forward) for shot in shots) <= 2.0
    radii = [((shot.row - 1) ** 2 + (shot.col - 2) ** 2) ** 0.5 for shot in orbit_shots(3, 5, 1, 8.0, radius=0.5)]
    assert radii == pytest.approx([0.5] * len(radii))


@pytest.mark.parametrize("disparity", [1.5, -1.5])
def test_going_forward_enlarges_what_is_near_and_shrinks_what_is_far(disparity: float) -> None:
    """From `forward` views ahead a place p is that of p * (1 + slope * d) in the reference; see `Interpolator`."""
    size, forward = 48, 1.0
    seen = Interpolator(wall(disparity)[:, :, :, 0], 2.0).view(1.0, 1.0, forward)
    growth = 1.0 - forward * 2 / size * disparity
    centre = (size - 1) / 2
    x = centre + (torch.arange(size) - centre) * growth
    truth = 0.4 * (torch.sin(0.35 * x + 0.3)[None] + torch.cos(0.25 * x)[:, None])
    assert psnr(seen[0, 6:-6, 6:-6], truth[6:-6, 6:-6]) > 35
    assert (growth < 1) == (disparity > 0)
    flat = dollying_camera(wall(0.0), num_frames=4, pictures_a_frame=1)
    assert psnr(flat, wall(0.0)[:, 1, 1].expand_as(flat)) > 60


def test_pictures_come_from_memory_tensor_and_file_alike(tmp_path) -> None:
    movie = noise(3, 3, 2, 8, 8)
    movie.save(tmp_path / "a.lf.safetensors")
    shots = sway_shots(3, 3, 2, 8.0, num_frames=8)
    from_memory = torch.stack(list(pictures_of(movie, shots)))
    assert torch.equal(torch.stack(list(pictures_of(movie.pixels, shots))), from_memory)
    with LightField.open(tmp_path / "a.lf.safetensors") as file:
        assert torch.equal(torch.stack(list(pictures_of(file, shots))), from_memory)


# Views between, all in focus, past obstacles


def test_interpolation_hides_what_is_behind() -> None:
    """A bar of disparity 3 before a wall of disparity 0: halfway the bar is where it should be, the wall is whole."""
    scene = before(-wall(3.0), wall(0.0), 3.0, 20, 28)[:, :, :, 0]
    seen = Interpolator(scene, 3.5).view(1.0, 1.5)
    truth, middle = wall(0.0)[:, 1, 1, 0], scene[:, 1, 1]
    for part in (slice(4, 18), slice(28, -4)):
        assert psnr(seen[:, :, part], truth[:, :, part]) > 33
    bar = (middle.roll(-1, -1) + middle.roll(-2, -1)) / 2  # half a step to the right stands what was at x + 1.5
    assert psnr(seen[:, 4:-4, 20:25], bar[:, 4:-4, 20:25]) > 30


def test_all_in_focus_is_the_middle_view_without_its_noise() -> None:
    clean = render_scene(fenced_day(), 5, 5, 1, 48, 48, spacing=0.5).pixels
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    middle = clean[:, 2, 2]
    assert psnr(all_in_focus(clean, max_disparity=2.0), middle) > 33
    gain = psnr(all_in_focus(noisy.clamp(-1, 1), max_disparity=2.0), middle) - psnr(
        noisy[:, 2, 2].clamp(-1, 1), middle
    )
    assert gain > 6
    assert psnr(refocus(noisy.clamp(-1, 1)), middle) < psnr(
        all_in_focus(noisy.clamp(-1, 1), max_disparity=2.0), middle
    )


def test_a_wide_lens_sees_past_a_bar() -> None:
    """Bar of disparity 4, 5 pixels wide: the middle view hides the wall, cameras beside it do not."""
    hidden, back = before(-wall(4.0, 3, 5), wall(0.0, 3, 5), 4.0, 20, 25), wall(0.0, 3, 5)
    truth, here = back[:, 1, 2, :, :, 16:30], (..., slice(16, 30))
    assert psnr(hidden[:, 1, 2][here], truth) < 15
    through = psnr(see_through(hidden, 0.0, max_disparity=4.5)[here], truth)
    assert through > psnr(refocus(hidden, 0.0)[here], truth) + 8
    assert through > 30
    clear = see_through(back, 0.0, max_disparity=4.5)
    assert psnr(clear, back[:, 1, 2]) > 60


# Depth


@pytest.mark.parametrize("disparity", [0.0, 0.4, -1.25, 2.6])
@pytest.mark.parametrize("grid", [(3, 3), (1, 3), (2, 1), (5, 5)])
def test_the_slope_of_a_line_is_the_disparity(disparity: float, grid: tuple[int, int]) -> None:
    depth = measured_depth(wall(disparity, *grid), max_disparity=3.0)
    sure = depth.confidence > CONFIDENT
    sure[:, :6], sure[:, -6:], sure[..., :6], sure[..., -6:] = False, False, False, False
    assert sure.float().mean() > 0.2
    assert (depth.disparity[sure] - disparity).abs().max() < 0.1


def test_depth_is_what_was_rendered_where_it_is_confident() -> None:
    """Half of the confident pixels are right within a tenth of a pixel per view, nine of ten within one."""
    for index in range(3):
        clip = render_scene(sample_scene(77, index), 3, 3, 1)
        depth = measured_depth(light_field_of(clip))
        sure = depth.confidence > CONFIDENT
        error = (depth.disparity - clip.disparity[1, 1])[sure].abs()
        assert sure.float().mean() > 0.2
        assert error.median() < 0.1
        assert error.quantile(0.9) < 1.0


def test_plain_areas_and_noise_have_no_depth() -> None:
    assert measured_depth(torch.full((3, 3, 3, 1, 16, 16), 0.3)).confidence.max() < 0.01
    assert measured_depth(noise(3, 3, 1, 32, 32)).confidence.mean() < 0.3
    with pytest.raises(ValueError, match="single one"):
        measured_depth(noise(1, 1))


def test_what_is_plain_beside_an_edge_has_the_depth_of_the_edge() -> None:
    """A bright bar between two plain walls, all at disparity 0: wrong shears move the bar into the dark wall."""
    picture = torch.full((3, 1, 1, 1, 32, 32), -0.8)
    picture[..., :14], picture[..., 14:16] = -0.1, 0.9
    found = smooth_disparity(measured_depth(picture.expand(-1, 5, 5, -1, -1, -1), max_disparity=2.75))
    assert found.abs().max() < 0.1


def test_near_is_bright_in_a_depth_map() -> None:
    scene = before(wall(2.0), wall(-1.0), 2.0, 20, 34)
    grey = depth_map(scene, max_disparity=2.5)[:, 0]
    assert torch.equal(grey[0], grey[2])
    assert grey[0, 10:-10, 24:30].mean() > grey[0, 10:-10, 4:12].mean() + 1.0
    fixed = depth_map(scene, 2.5, ends=(-1.0, 2.0))[0, 0, 10:-10]
    assert float(fixed[:, 25:29].mean()) == pytest.approx(1.0, abs=0.2)
    assert float(fixed[:, 4:12].mean()) == pytest.approx(-1.0, abs=0.2)


# Means and maxima


@pytest.mark.parametrize(
    ("axis", "axes", "picture"),
    [
        ("views", (1, 2), lambda p: p[:, 0, 0]),
        ("view_rows", (1,), lambda p: p[:, 0, 2]),
        ("view_cols", (2,), lambda p: p[:, 1, 0]),
        ("frames", (3,), lambda p: p[:, 1, 2, 0]),
        ("height", (4,), lambda p: p[:, 1, 2, :, 0]),
        ("width", (5,), lambda p: p[:, 1, 2, ..., 0].transpose(1, 2)),
    ],
)
def test_one_axis_is_taken_out(axis: str, axes: tuple[int, ...], picture) -> None:
    movie = noise()
    mean = picture(movie.pixels.double().mean(dim=axes, keepdim=True))
    assert (mean_over(movie, axis).double() - mean).abs().max() <= 0.5
    torch.testing.assert_close(mean_over(movie.to_float(), axis), (mean / 127.5 - 1).float())
    assert torch.equal(maximum_over(movie, axis), picture(movie.pixels.amax(dim=axes, keepdim=True)))
    with pytest.raises(ValueError, match="axis"):
        mean_over(movie, "depth")


def test_a_single_view_is_that_view() -> None:
    movie = noise()
    assert torch.equal(single_view(movie), movie.middle_view)
    assert torch.equal(single_view(movie, 2, -1), movie.view(2, 4))
    with pytest.raises(ValueError, match="row"):
        single_view(movie, 3, 0)


# Against ghosts and stutter


def test_prefiltering_brings_refocusing_nearer_to_the_dense_truth() -> None:
    gains = []
    for index in (1, 2):
        clip = render_scene(sample_scene(77, index), 9, 9, 1, 48, 48, baseline=1.5, spacing=0.25)
        sparse, near, far = clip.pixels[:, ::4, ::4], float(clip.disparity.max()) * 4, float(clip.disparity.min()) * 4
        for plane in (near, far):
            truth = refocus(clip.pixels, plane / 4, 4.0)
            filtered = refocus(sparse, plane, max_disparity=near + 0.5, prefilter=True)
            gains.append(psnr(filtered, truth) - psnr(refocus(sparse, plane), truth))
    assert min(gains) > 1
    assert sum(gains) / len(gains) > 4


def test_prefiltering_leaves_the_focal_plane_and_spreads_the_rest() -> None:
    assert psnr(prefiltered(wall(0.0), 0.0, 1.0), wall(0.0)) > 60
    assert psnr(prefiltered(wall(3.0), 3.0, 3.5), wall(3.0)) > 45
    # A square lens of radius 1 sees sin(0.35 (x + 3 u)) for all u from -1 to 1, whose mean is known.
    x = torch.arange(48.0)
    along = 0.4 * torch.sin(0.35 * x + 0.3) * math.sin(1.05) / 1.05
    truth = along + (0.4 * torch.cos(0.25 * x) * math.sin(0.75) / 0.75)[:, None]
    here = (slice(8, -8), slice(8, -8))
    options = {"focus": 0.0, "shape": "square", "max_disparity": 3.5}
    seen = [refocus(wall(3.0), **options, prefilter=prefilter)[0, 0][here] for prefilter in (False, True)]
    assert psnr(seen[1], truth[here]) > psnr(seen[0], truth[here]) + 6


def test_a_shutter_that_is_open_gathers_all_light() -> None:
    movie = noise(1, 2, 6)
    exposed = with_shutter(movie, 3)
    groups = movie.pixels.double().unflatten(3, (2, 3)).mean(dim=4)
    assert (exposed.pixels.double() - groups).abs().max() <= 0.5
    assert exposed.frame_rate == movie.frame_rate / 3
    half = with_shutter(movie, 3, 0.5).pixels.double()  # a frame and a half
    first, second = movie.pixels[:, :, :, ::3].double(), movie.pixels[:, :, :, 1::3].double()
    assert (half - (first + second / 2) / 1.5).abs().max() <= 0.5
    assert torch.equal(with_shutter(movie, 3, 0.2).pixels, movie.pixels[:, :, :, ::3])
    assert with_shutter(movie, 1).equals(movie)
    assert with_shutter(movie, 4).num_frames == 2
    for wrong in ({"every": 0}, {"every": 7}, {"shutter": 0.0}, {"shutter": 1.5}):
        with pytest.raises(ValueError, match="every|shutter"):
            with_shutter(movie, **wrong)


def test_a_dot_that_jumps_leaves_a_streak() -> None:
    pixels = torch.zeros(3, 1, 1, 8, 4, 16, dtype=torch.uint8)
    for frame in range(8):
        pixels[..., frame, 2, 2 * frame] = 240
    one = with_shutter(LightField(pixels), 4).pixels[0, 0, 0, 0, 2]
    assert one.tolist() == [60, 0, 60, 0, 60, 0, 60] + [0] * 9


def test_exposures_are_read_from_a_file_one_by_one(tmp_path) -> None:
    movie = noise(2, 2, 7)
    movie.save(tmp_path / "a.lf.safetensors")
    whole = with_shutter(movie, 3, 0.5)
    with LightField.open(tmp_path / "a.lf.safetensors") as file:
        exposures = Exposures(file, 3, 0.5)
        assert exposures.sizes["frames"] == 3
        assert exposures.frame_rate == whole.frame_rate
        for index in (0, 1, 2, -1):
            part = exposures.read(frames=index)
            assert torch.equal(part.pixels, whole.select(frames=index).pixels)
            assert part.frame_rate == whole.frame_rate
        assert exposures.read(view_rows=1, view_cols=0).equals(whole.select(view_rows=1, view_cols=0))
        with pytest.raises(ValueError, match="3 exposures"):
            exposures.read(frames=3)


# Contract

STANDING = {"views", "time", "epi", "xt"}
NEED_VIEWS = {"orbit", "dolly", "depth"}


def options_of(name: str) -> dict[str, object]:
    return {"num_frames": 3} if name in ("sway", "orbit", "dolly") else {}


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 8, 8), (1, 3, 1, 7, 9), (2, 1, 5, 8, 6), (9, 9, 1, 16, 8)])
def test_every_projection_takes_every_grid_and_keeps_dtype(name: str, shape: tuple[int, ...]) -> None:
    project, light_field, options = PROJECTIONS[name], noise(*shape), options_of(name)
    if name in NEED_VIEWS and shape[:2] == (1, 1):
        with pytest.raises(ValueError, match="at least 2 views.*--views 3x3"):
            project(light_field, **options)
        return
    untouched = light_field.pixels.clone()
    pictures = [project(part, **options) for part in (light_field, light_field.pixels, light_field.to_float())]
    assert [picture.dtype for picture in pictures] == [torch.uint8, torch.uint8, torch.float32]
    is_still = name in STANDING or name == "maximum"
    assert all(picture.shape[0] == 3 and picture.ndim == (3 if is_still else 4) for picture in pictures)
    assert torch.equal(light_field.pixels, untouched)
    bad = light_field.to_float()
    bad[1, 0, 0, 0, 4, 5] = float("nan")
    with pytest.raises(ValueError, match="view_rows 0, view_cols 0, frames 0, height 4, width 5"):
        project(bad, **options)
    for wrong in (light_field.pixels[None], "a movie", light_field.pixels.int()):
        with pytest.raises(ValueError, match=r"(?i)expected|must"):
            project(wrong, **options)


def test_pixels_of_other_axes_are_told_their_own_shape() -> None:
    pixels = noise(2, 2, 1, 4, 4).pixels
    for wrong in (pixels[0], pixels[None]):
        with pytest.raises(ValueError, match="'view_rows', 'view_cols'") as caught:
            PROJECTIONS["refocus"](wrong)
        assert f"got shape {tuple(wrong.shape)};" in str(caught.value)


@pytest.mark.parametrize("height", [1, 3])
def test_a_picture_of_few_rows_has_as_many_slices_in_time(height: int) -> None:
    pixels = noise(1, 1, 5, height, 9).pixels
    assert torch.equal(time_slices(pixels), time_slices(pixels, height))
    with pytest.raises(ValueError, match="count"):
        time_slices(pixels, height + 1)


def test_what_moves_farther_than_a_picture_is_not_searched() -> None:
    """Neither because somebody asks for it nor because a file says so."""
    movie = noise(1, 3, 1, 8, 12)
    wide = LightField(movie.pixels, disparity=torch.full((1, 3, 1, 8, 12), 1e20))
    far = LightField(movie.pixels, camera_grid=CameraGrid(view_rows=1, view_cols=3, baseline=1e20))
    assert [search_reach(part) for part in (wide, far)] == [12.0, 12.0]
    assert search_reach(movie, 12) == 12.0
    with pytest.raises(ValueError, match="at most 12 pixels"):
        search_reach(movie, 12.5)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_gradients_reach_the_pixels(name: str) -> None:
    """All are differentiable in floating-point pixels; depth by its tensor, warps by colours alone."""
    pixels = (0.5 * noise(3, 3, 2, 16, 16).to_float()).requires_grad_()
    picture = PROJECTIONS[name](pixels, **options_of(name))
    (picture * torch.rand(picture.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert pixels.grad.isfinite().all()
    assert (pixels.grad != 0).float().mean() > 0.01


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("orbit", {"radius": 1.5}, "at most 1 "),
        ("orbit", {"radius": 0.0}, "above 0"),
        ("dolly", {"radius": 9.0}, "at most 1 "),
        ("all-in-focus", {"aperture": 2.0}, "between 0 and 1 "),
        ("see-through", {"shape": "star"}, "disc, square"),
        ("depth", {"max_disparity": -1.0}, "max_disparity"),
        ("views", {"frame_index": 9}, "frame_index"),
    ],
)
def test_what_a_grid_cannot_give_is_refused_with_a_remedy(name: str, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PROJECTIONS[name](noise(3, 3, 1, 8, 8), **options)
