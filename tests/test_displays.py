"""Displays: which eye sees what, how quilts are laid, that grey stays grey, and the two commands that write files."""

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

from diffusers_stale.cli import app
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.light_field import CameraGrid, LightField
from diffusers_stale.light_field.antialiasing import with_shutter
from diffusers_stale.light_field.displays import (
    DISPLAYS,
    HINTS,
    anaglyph,
    grey_anaglyph,
    half_side_by_side,
    half_top_bottom,
    side_by_side,
    stereo_pair,
    top_bottom,
    wiggle,
)
from diffusers_stale.light_field.lenticular import lenticular, view_numbers
from diffusers_stale.light_field.picture_files import write_picture
from diffusers_stale.light_field.projections import PROJECTIONS
from diffusers_stale.light_field.quilt import (
    QUILTS,
    assemble_quilt,
    quilt,
    quilt_hint,
    quilt_places,
    quilt_step,
    quilt_views,
)
from diffusers_stale.light_field.video import read_video


def noise(view_rows: int = 3, view_cols: int = 5, frames: int = 2, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, view_rows, view_cols, frames, size, size), dtype=torch.uint8, generator=generator)


def dot(disparity: int, view_cols: int = 3, size: int = 16) -> torch.Tensor:
    """A white column on black, at 8 in the reference and at `8 - d * u` elsewhere."""
    pixels = torch.zeros(3, 1, view_cols, 1, size, size, dtype=torch.uint8)
    for col in range(view_cols):
        pixels[:, 0, col, :, :, 8 - disparity * (col - (view_cols - 1) // 2)] = 255
    return pixels


def grey() -> torch.Tensor:
    """Three equal views of a grey ramp."""
    shades = torch.arange(16, dtype=torch.uint8) * 15 + 10
    return shades.expand(3, 1, 3, 1, 4, 16).contiguous()


# Stereo


def test_the_left_eye_sees_near_things_farther_right():
    left, right = stereo_pair(dot(2))
    assert left[0, 0, 0].argmax() == 10
    assert right[0, 0, 0].argmax() == 6
    rendered = render_scene(sample_scene(0, 1), 1, 3, 1, 32, 32)
    left, right = stereo_pair(rendered.pixels)
    assert torch.equal(left, rendered.pixels[:, 0, 0])
    assert torch.equal(right, rendered.pixels[:, 0, 2])


def test_halves_are_the_outermost_views_of_the_middle_row():
    pixels = noise()
    left, right = pixels[:, 1, 0], pixels[:, 1, 4]
    wide, tall = side_by_side(pixels), top_bottom(pixels)
    assert torch.equal(wide[..., :8], left)
    assert torch.equal(wide[..., 8:], right)
    assert torch.equal(tall[..., :8, :], left)
    assert torch.equal(tall[..., 8:, :], right)


def test_half_forms_have_the_size_of_one_view():
    pixels = noise().float().div(127.5).sub(1)
    for squeezed, axis in ((half_side_by_side(pixels), -1), (half_top_bottom(pixels), -2)):
        assert squeezed.shape == pixels[:, 0, 0].shape
        first, second = squeezed.chunk(2, dim=axis)
        for half, view in ((first, pixels[:, 1, 0]), (second, pixels[:, 1, 4])):
            pairs = view.unflatten(axis, (4, 2)).mean(dim=axis if axis == -1 else -2)
            torch.testing.assert_close(half, pairs)
    with pytest.raises(ValueError, match="even"):
        half_side_by_side(noise(size=7))


def test_a_baseline_is_in_view_steps_and_falls_between_cameras():
    movie = LightField(noise(), camera_grid=CameraGrid(view_rows=3, view_cols=5, spacing=0.5))
    assert torch.equal(stereo_pair(movie, 1.0)[0], movie.pixels[:, 1, 1])
    assert torch.equal(stereo_pair(movie, 2.0)[1], movie.pixels[:, 1, 4])
    between = stereo_pair(dot(2).float().div(127.5).sub(1), 1.0, max_disparity=2.5)
    assert [int(view[0, 0, 8].argmax()) for view in between] == [9, 7]
    for wrong in (0.0, -1.0, 2.5, float("nan")):
        with pytest.raises(ValueError, match="baseline"):
            stereo_pair(movie, wrong)


def test_focus_puts_a_plane_on_the_screen():
    left, right = stereo_pair(dot(2), focus=2.0)
    assert left[0, 0, 0].argmax() == right[0, 0, 0].argmax() == 8
    grid = CameraGrid(view_rows=1, view_cols=3, focal_disparity=2.0)
    assert torch.equal(stereo_pair(LightField(dot(2), camera_grid=grid))[0], left)


# Anaglyphs and the wiggling picture


@pytest.mark.parametrize("project", [anaglyph, grey_anaglyph])
def test_an_anaglyph_of_equal_grey_views_is_grey(project):
    seen = project(grey()).int()
    assert (seen - grey()[:, 0, 0].int()).abs().max() <= 1


def test_a_grey_anaglyph_of_equal_views_is_grey_whatever_their_colour():
    seen = grey_anaglyph(noise()[:, :, :1].expand(-1, -1, 3, -1, -1, -1))
    assert torch.equal(seen, seen[:1].expand_as(seen))


def test_red_is_for_the_left_eye_and_cyan_for_the_right():
    pixels = torch.zeros(3, 1, 2, 1, 2, 2, dtype=torch.uint8)
    pixels[:, 0, 0] = 255
    assert grey_anaglyph(pixels)[:, 0, 0, 0].tolist() == [255, 0, 0]
    red, green, blue = anaglyph(pixels)[:, 0, 0, 0].tolist()
    assert red == 255
    assert max(green, blue) == 0


def test_the_wiggling_picture_goes_to_and_fro_and_its_end_meets_its_beginning():
    pixels = noise(3, 5, 6)
    seen = wiggle(pixels)
    assert seen.shape == (3, 12, 8, 8)
    for index in range(12):
        assert torch.equal(seen[:, index], pixels[:, 1, (0, 2, 4, 2)[index % 4], index % 6])
    assert wiggle(noise(frames=1), views=2).shape[1] == 2
    with pytest.raises(ValueError, match="views"):
        wiggle(pixels, views=1)


# Quilts


def test_view_0_is_at_the_bottom_left_then_rightward_then_upward():
    pixels = noise(1, 6)
    seen = quilt(pixels, columns=3, rows=2)
    assert seen.shape == (3, 2, 16, 24)
    for view in range(6):
        top, left = (8, 0)[view // 3], 8 * (view % 3)
        assert torch.equal(seen[..., top : top + 8, left : left + 8], pixels[:, 0, view])


@pytest.mark.parametrize("tiles", [(8, 6), (5, 1), (1, 4)])
def test_a_quilt_out_and_in_is_equal(tiles: tuple[int, int]):
    views = noise(1, tiles[0] * tiles[1])
    picture = assemble_quilt(views[:, 0], *tiles)
    assert torch.equal(quilt_views(picture, *tiles), views)
    assert LightField(quilt_views(picture, *tiles)).view_cols == tiles[0] * tiles[1]


def test_near_things_move_left_from_tile_to_tile_by_what_is_reported(caplog: pytest.LogCaptureFixture):
    tiles = quilt_views(quilt(dot(3), columns=9, rows=1, max_disparity=3.5), 9, 1)
    places = tiles[0, 0, :, 0, 8].argmax(dim=-1)
    assert (places - (8 - 3 * torch.linspace(-1, 1, 9))).abs().max() <= 0.5
    known = torch.full((1, 3, 1, 16, 16), 3.0)
    movie = LightField(dot(3), disparity=known)
    assert quilt_step(movie, 5) == pytest.approx(1.5)
    assert quilt_step(movie, 5, focus=3.0) == 0
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        quilt(LightField(dot(3), disparity=known * 4), columns=3, rows=1)
    assert "12.0 pixels" in caplog.text


def test_quilts_spread_over_all_cameras_and_are_named_after_their_tiles():
    assert quilt_places(3, 5) == [0, 2, 4]
    assert quilt_places(48, 3)[-1] == 2
    assert quilt_places(1, 3) == [1]
    assert quilt_hint(560, 420) == "_qs8x6a0.75"
    assert quilt_hint(64, 64, "go") == "_qs11x6a1"
    assert quilt_hint(9, 16, columns=5, rows=9) == "_qs5x9a1.7778"
    assert quilt(noise(), columns=2, rows=1, crop=True, report=False).shape == (3, 2, 8, 12)


@pytest.mark.parametrize("name", QUILTS)
def test_a_preset_has_enough_views_and_the_shape_of_a_screen(name: str):
    assert 40 <= QUILTS[name].columns * QUILTS[name].rows <= 100
    assert QUILTS[name].aspect in (0.75, 9 / 16, 16 / 9)


# Lenticular


def test_under_each_lens_lies_a_strip_of_every_view_turned_around():
    """The rightmost strip under a lens is seen from the left."""
    pixels = noise(1, 4, 1)
    panel = lenticular(pixels, views=4, panel_width=32)
    numbers = view_numbers((32, 32), 4, 4.0)
    assert numbers[1, 0, :8].tolist() == [3, 2, 1, 0, 3, 2, 1, 0]
    for view in range(4):
        strips = panel[:, 0, :, 3 - view :: 4]
        larger = F.interpolate(pixels[:, 0, view, 0][None].float(), (32, 32), mode="bicubic")[0]
        assert (strips.float() - larger[:, :, 3 - view :: 4].clamp(0, 255)).abs().max() <= 1


def test_an_eye_sees_one_view_through_all_lenses():
    """From one direction every lens shows the strip at one place under it: equal numbers, whatever pitch and slant."""
    numbers = view_numbers((60, 600), 6, 7.3, slant=0.31, offset=1.7, subpixels=True)
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(600.0), indexing="ij")
    for colour, place in enumerate((-1 / 3, 0.0, 1 / 3)):
        under = ((x + 0.5 + place - 0.31 * y - 1.7) / 7.3) % 1.0
        for view in range(6):
            centre = (5 - view + 0.5) / 6
            seen = numbers[colour][(under - centre).abs() < 0.07]
            assert (seen == view).all()
    shares = torch.stack([(numbers == view).float().mean() for view in range(6)])
    assert (shares - 1 / 6).abs().max() < 0.01


@pytest.mark.parametrize(
    "wrong", [{"views": 1}, {"views": 300}, {"pitch": 0.5}, {"slant": float("nan")}, {"panel_width": 0}]
)
def test_a_sheet_that_cannot_be_is_refused(wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        lenticular(noise(), **wrong)


# Contract


@pytest.mark.parametrize("name", DISPLAYS)
def test_every_display_keeps_dtype_changes_nothing_and_refuses_what_it_cannot_show(name: str):
    options = {"columns": 2, "rows": 2} if name == "quilt" else {}
    pixels = noise()
    seen = [DISPLAYS[name](part, **options) for part in (LightField(pixels), pixels, pixels.float() / 127.5 - 1)]
    assert [picture.dtype for picture in seen] == [torch.uint8, torch.uint8, torch.float32]
    assert all(picture.ndim == 4 and picture.shape[0] == 3 for picture in seen)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(pixels, noise())
    for dtype in (torch.float16, torch.float64):
        picture = DISPLAYS[name]((pixels.double() / 127.5 - 1).to(dtype), **options)
        assert picture.dtype == dtype
        assert (picture.float() - seen[2]).abs().max() < 0.02
    with pytest.raises(ValueError, match="at least 2 columns"):
        DISPLAYS[name](noise(3, 1), **options)
    bad = pixels.float()
    bad[0, 0, 0, 0, 0, 0] = float("nan")
    for wrong in (bad, pixels[None], "a movie", pixels.int()):
        with pytest.raises(ValueError, match=r"(?i)expected|must"):
            DISPLAYS[name](wrong, **options)


# Files and commands


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("movies") / "small.lf.safetensors"
    clip = render_scene(sample_scene(0, 1), 3, 3, 2, 16, 16)
    LightField.from_float(clip.pixels, disparity=clip.disparity).save(path)
    return path


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("name", ["sbs", "tb-half", "anaglyph", "wiggle", "quilt"])
def test_display_writes_a_file_with_the_name_that_players_look_for(movie: Path, tmp_path: Path, name: str):
    suffix = ".gif" if name == "wiggle" else ".png"
    tiles = ("--tiles", "3x2") if name == "quilt" else ()
    output = run("display", movie, "--for", name, "-o", tmp_path / f"out{suffix}", *tiles)
    (path,) = tmp_path.iterdir()
    hint = "_qs3x2a1" if name == "quilt" else HINTS.get(name, "")
    assert path.name == f"out{hint}{suffix}"
    assert str(path) in output
    assert ("between neighbouring views" in output) == (name == "quilt")


def test_a_png_of_a_quilt_is_what_the_function_makes(movie: Path, tmp_path: Path):
    path, _ = write_picture(movie, "quilt", tmp_path / "q.png", frame=0, columns=3, rows=1)
    picture = Image.open(path)
    assert picture.width == 3 * picture.height
    expected = quilt(LightField.load(movie).select(frames=0), columns=3, rows=1)[:, 0]
    zoom = picture.height // 16
    seen = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)
    assert torch.equal(seen[::zoom, ::zoom].permute(2, 0, 1), expected)


def test_project_refocuses_to_a_video_and_does_not_overwrite_it(movie: Path, tmp_path: Path):
    path = tmp_path / "out.mp4"
    command = ("project", movie, "--to", "refocus", "--focus", 1.5, "--aperture", 1, "--densify", 1, "-o", path)
    run(*command)
    before = path.read_bytes()
    assert before[4:8] == b"ftyp"
    assert "--force" in run(*command, code=1)
    assert path.read_bytes() == before
    run(*command, "--force")
    run("project", movie, "--to", "views", "-o", tmp_path / "views.png")


@pytest.mark.parametrize(("command", "choices"), [("project", PROJECTIONS), ("display", {**DISPLAYS, **QUILTS})])
def test_the_list_describes_each_choice_in_one_line(command: str, choices: dict):
    lines = run(command, "--list").splitlines()
    for name in choices:
        described = [line for line in lines if line.startswith(f"{name} ")]
        assert len(described) == 1
        assert len(described[0]) > len(name) + 10


def test_several_movies_go_into_a_folder(movie: Path, tmp_path: Path):
    for name in ("pigs", "cows"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "movie.lf.safetensors").write_bytes(movie.read_bytes())
    both = (tmp_path / "pigs", tmp_path / "cows" / "movie.lf.safetensors")
    output = run("project", *both, "--to", "depth", "-o", tmp_path / "out", "--suffix", ".webp", "--zoom", 2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cows_depth.webp", "pigs_depth.webp"]
    assert output.count("Wrote") == 2
    assert "--force" in run("project", *both, "--to", "depth", "-o", tmp_path / "out", "--suffix", ".webp", code=1)
    run("display", *both, "--for", "tb", "-o", tmp_path / "out", "--suffix", ".png")
    assert (tmp_path / "out" / "pigs_tb.png").is_file()
    run("display", *both, "--for", "tb", "-o", tmp_path / "out", "--suffix", "webp")
    assert (tmp_path / "out" / "pigs_tb.webp").is_file()
    said = run("project", *both, "-o", tmp_path / "none", "--suffix", "avi", code=1)
    assert said.count("error: ") == 1
    assert not (tmp_path / "none").exists()
    assert "twice" in run("project", both[0], both[0], "-o", tmp_path / "out", code=1)
    assert "a file" in run("project", *both, "-o", movie, code=1)


def test_a_movie_that_fails_does_not_stop_the_others(movie: Path, tmp_path: Path):
    (tmp_path / "cut.lf.safetensors").write_bytes(movie.read_bytes()[:99])
    (tmp_path / "sound.lf.safetensors").write_bytes(movie.read_bytes())
    three = (tmp_path / "cut.lf.safetensors", tmp_path / "none.lf.safetensors", tmp_path / "sound.lf.safetensors")
    said = run("project", *three, "--to", "view", "-o", tmp_path / "out", code=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sound_view.mp4"]
    for part in (f"{three[0]}: ", f"{three[1]}: ", "2 of 3"):
        assert part in said


@pytest.mark.parametrize(
    ("options", "name", "frames"),
    [
        (("--to", "orbit", "--radius", "0.5"), "a.webp", 96),
        (("--to", "dolly", "--every", "2"), "a.gif", 48),
        (("--to", "view", "--view", "0x2"), "a.webp", 2),
        (("--to", "mean", "--axis", "frames"), "a.png", 1),
        (("--to", "maximum"), "a.webp", 1),
        (("--to", "xt"), "a.png", 1),
        (("--to", "all-in-focus", "--frame", "1"), "a.webp", 1),
        (("--to", "refocus", "--prefilter"), "a.webp", 2),
        (("--to", "refocus", "--every", "2", "--shutter", "0.5", "--densify", "1"), "a.gif", 1),
        (("--to", "see-through", "--focus", "-0.5", "--smooth", "--zoom", "2"), "a.webp", 2),
    ],
)
def test_every_kind_of_projection_has_its_pictures(movie: Path, tmp_path: Path, options, name: str, frames: int):
    run("project", movie, *options, "-o", tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert getattr(image, "n_frames", 1) == frames


def test_a_file_of_one_view_is_that_view(movie: Path, tmp_path: Path):
    run("project", movie, "--to", "view", "--view", "0x2", "--zoom", 1, "-o", tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as image:
        image.seek(1)
        seen = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(16, 16, 3)
    assert torch.equal(seen.permute(2, 0, 1), LightField.load(movie).view(0, 2)[:, 1])


def test_a_row_is_a_folder_of_videos(movie: Path, tmp_path: Path):
    assert "view_02.mp4" in run("display", movie, "--for", "row", "-o", tmp_path / "row")
    assert [path.name for path in sorted((tmp_path / "row").iterdir())] == [f"view_0{index}.mp4" for index in range(3)]
    assert "--force" in run("display", movie, "--for", "row", "-o", tmp_path / "row", code=1)
    for option in (("--preset", "go"), ("--frame", "1"), ("--suffix", ".webp")):
        said = run("display", movie, "--for", "row", *option, "-o", tmp_path / "other", code=1)
        assert f"`{option[0][2:]}`, which does nothing" in said
    assert "a file; choose" in run("display", movie, "--for", "row", "-o", movie, code=1)
    assert not (tmp_path / "other").exists()


def test_a_row_has_exposures(movie: Path, tmp_path: Path):
    run("display", movie, "--for", "row", "--every", "2", "--zoom", "8", "-o", tmp_path / "row")
    found = read_video(tmp_path / "row" / "view_01.mp4")[..., 4::8, 4::8].float()
    whole = LightField.load(movie)
    exposed = with_shutter(whole, 2).view(1, 1).float()
    assert found.shape == exposed.shape
    apart = [(found - picture).abs().mean() for picture in (exposed, *whole.view(1, 1).float().split(1, dim=1))]
    assert 2 * apart[0] < min(apart[1:])


def test_a_compressed_movie_is_taken_like_any_other(movie: Path, tmp_path: Path):
    LightField.load(movie).save_compressed(tmp_path / "small.lf")
    run("display", tmp_path / "small.lf", "--for", "anaglyph", "-o", tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()
    run("view", tmp_path / "small.lf", "-o", tmp_path / "a.html")
    assert (tmp_path / "a.html").is_file()
    assert "3 down, 3 across" in run("info", tmp_path / "small.lf")


def test_of_a_single_view_no_other_is_read(movie: Path, tmp_path: Path):
    LightField.load(movie).save_compressed(tmp_path / "small.lf")
    for path in (tmp_path / "small.lf").glob("view_0[12]_*.mp4"):
        path.write_bytes(b"broken")
    for name in ("a.webp", "a.png"):
        run("project", tmp_path / "small.lf", "--to", "view", "--view", "0x1", "-o", tmp_path / name)
    run("project", tmp_path / "small.lf", "--to", "view", "--view", "1x1", "-o", tmp_path / "b.webp", code=1)
    assert "view_cols" in run("project", movie, "--to", "view", "--view", "0x3", "-o", tmp_path / "b.webp", code=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("project", "--to", "nothing"),
        ("project", "--to", "views", "--focus", "1"),
        ("project", "--to", "views", "-o", "out.mp4"),
        ("project", "--to", "refocus", "-o", "out.txt"),
        ("project", "--aperture", "9", "-o", "out.png"),
        ("project", "-o", "missing/out.png"),
        ("project", "-o", "out.mp4", "--frame", "0"),
        ("project", "-o", "out.png", "--frame", "7"),
        ("display", "--for", "wiggle", "-o", "out.png"),
        ("display", "--for", "quilt", "--preset", "cinema", "-o", "out.png"),
        ("display", "--for", "quilt", "--tiles", "0x3", "-o", "out.png"),
        ("display", "--for", "sbs", "--preset", "go", "-o", "out.png"),
        ("display", "--for", "sbs", "--baseline", "9", "-o", "out.png"),
        ("display", "--for", "sbs", "--pitch", "9", "-o", "out.png"),
        ("display", "--for", "lenticular", "--pitch", "0.2", "-o", "out.png"),
        ("project", "--to", "orbit", "--radius", "9", "-o", "out.mp4"),
        ("project", "--to", "mean", "--axis", "frames", "-o", "out.mp4"),
        ("project", "--to", "view", "--view", "5x0", "-o", "out.png"),
        ("project", "--to", "refocus", "--focus", "90", "-o", "out.png"),
        ("project", "--to", "refocus", "--shutter", "2", "--every", "2", "-o", "out.png"),
        ("project", "--to", "refocus", "--codec", "vp9", "-o", "out.mp4"),
        ("project", "--to", "refocus", "--zoom", "100000", "-o", "out.png"),
        ("project", "--to", "refocus", "--max-disparity", "1e9", "-o", "out.png"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(
    movie: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
):
    monkeypatch.chdir(tmp_path)
    output = run(arguments[0], movie, *arguments[1:], code=1)
    assert len([line for line in output.splitlines() if line.startswith("error: ")]) == 1
    assert not list(tmp_path.iterdir())
