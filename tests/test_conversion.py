"""From what others have to light fields and back: arrays, quilts, folders, stereo, the compressed form, resampling."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.light_field import CameraGrid, LightField, LightFieldFolder, resample
from diffusers_stale.light_field.compressed import HEADER, view_name
from diffusers_stale.light_field.displays import half_side_by_side, side_by_side
from diffusers_stale.light_field.export import write_mp4, write_png, write_video
from diffusers_stale.light_field.quilt import assemble_quilt
from diffusers_stale.light_field.quilt_layout import tiles_of_name
from diffusers_stale.light_field.video import read_video


def noise(view_rows: int = 2, view_cols: int = 3, frames: int = 2, height: int = 6, width: int = 8) -> LightField:
    generator = torch.Generator().manual_seed(0)
    shape = (view_rows, view_cols, frames, height, width)
    return LightField(
        torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator),
        frame_rate=12.5,
        camera_grid=CameraGrid(view_rows=view_rows, view_cols=view_cols, spacing=0.5, focal_disparity=0.25),
        disparity=torch.randn(shape, generator=generator),
        provenance={"prompt": "a cow ☃", "seed": 7},
    )


def barnyard(
    view_rows: int = 3, view_cols: int = 3, frames: int = 3, size: int = 32, spacing: float = 1.0
) -> LightField:
    clip = render_scene(sample_scene(3, 1), view_rows, view_cols, frames, size, size, spacing=spacing)
    grid = CameraGrid(view_rows=view_rows, view_cols=view_cols, spacing=spacing)
    return LightField.from_float(clip.pixels, camera_grid=grid, disparity=clip.disparity / spacing)


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / (one.float() - other.float()).square().mean()))


# Arrays


def test_an_array_out_and_in_is_equal() -> None:
    movie = noise()
    array = movie.to_numpy()
    assert array.shape == (2, 3, 2, 6, 8, 3)
    assert array[1, 2, 0, 4, 5, 1] == movie.pixels[1, 1, 2, 0, 4, 5]
    assert torch.equal(LightField.from_numpy(array).pixels, movie.pixels)
    assert torch.equal(LightField.from_numpy(array / 255.0, spacing=0.5).pixels, movie.pixels)
    array[:] = 0
    assert movie.pixels.any()


def test_numbers_that_are_no_pixels_are_named_by_their_place() -> None:
    array = np.zeros((2, 3, 2, 6, 8, 3), dtype=np.float32)
    array[1, 2, 0, 4, 5, 1] = np.nan
    with pytest.raises(ValueError, match="view_rows 1, view_cols 2, frames 0, height 4, width 5, channels 1"):
        LightField.from_numpy(array)
    for wrong in (array[0], array + 2, np.zeros((1, 1, 1, 2, 2, 3), dtype=np.int64), [[1]]):
        with pytest.raises(ValueError, match="Expected"):
            LightField.from_numpy(wrong)


# Quilts and stereo


def test_a_quilt_becomes_a_row_of_cameras(tmp_path: Path) -> None:
    views = noise(1, 6, 1)
    picture = assemble_quilt(views.pixels[:, 0], 3, 2)
    assert torch.equal(LightField.from_quilt(picture, 3, 2).pixels, views.pixels)
    write_png(tmp_path / "a_qs3x2a1.3333.png", picture[:, 0], zoom=1)
    read = LightField.from_quilt(tmp_path / "a_qs3x2a1.3333.png", spacing=0.25)
    assert torch.equal(read.pixels, views.pixels)
    assert (read.view_cols, read.camera_grid.spacing) == (6, 0.25)
    assert tiles_of_name("pigs_qs11x6a0.5625.mp4") == (11, 6)
    assert tiles_of_name("pigs_qs8x6a0.75 (1).png") == tiles_of_name("pigs_qs8x6a0.75 1.png") == (8, 6)
    for name in ("pigs.png", "pigs_qs0x6a1.png", "pigs_qs8x6a1_more.png"):
        with pytest.raises(ValueError, match=r"columns|_qs8x6"):
            tiles_of_name(name)
    with pytest.raises(ValueError, match="multiples"):
        LightField.from_quilt(picture, 5, 2)


def test_a_video_of_a_quilt_has_all_frames_and_their_rate(tmp_path: Path) -> None:
    views = barnyard(1, 4, 3, 16)
    write_mp4(tmp_path / "q.mp4", assemble_quilt(views.pixels[:, 0], 2, 2), 12.0, zoom=1)
    read = LightField.from_quilt(tmp_path / "q.mp4", 2, 2)
    assert (read.shape, read.frame_rate) == (views.shape, 12.0)
    assert psnr(read.pixels, views.pixels) > 28


def test_stereo_becomes_two_cameras() -> None:
    movie = barnyard(1, 2, 2)
    assert torch.equal(LightField.from_side_by_side(side_by_side(movie)).pixels, movie.pixels)
    swapped = LightField.from_side_by_side(side_by_side(movie), swapped=True)
    assert torch.equal(swapped.pixels, movie.pixels.flip(2))
    assert psnr(LightField.from_side_by_side(half_side_by_side(movie), half=True).pixels, movie.pixels) > 22
    with pytest.raises(ValueError, match="even width"):
        LightField.from_side_by_side(torch.zeros(3, 1, 4, 7, dtype=torch.uint8))
    with pytest.raises(ValueError, match="uint8"):
        LightField.from_side_by_side(torch.zeros(3, 1, 4, 8))


# Folders of views


def test_a_folder_of_pictures_is_a_light_field(tmp_path: Path) -> None:
    movie = noise(2, 3, 1)
    for row in range(2):
        for col in range(3):
            write_png(tmp_path / f"cow_{row + 1}_{col + 10}.png", movie.pixels[:, row, col, 0], zoom=1)
    assert torch.equal(LightField.from_view_folder(tmp_path).pixels, movie.pixels)
    (tmp_path / "cow_2_12.png").unlink()
    with pytest.raises(ValueError, match=r"2x3 grid.*none for row 1 column 2"):
        LightField.from_view_folder(tmp_path)
    with pytest.raises(ValueError, match="2x2 views"):
        LightField.from_view_folder(tmp_path, 2, 2)
    assert LightField.from_view_folder(tmp_path, 1, 5).shape == (3, 1, 5, 1, 6, 8)
    write_png(tmp_path / "cow_2_12.png", torch.zeros(3, 2, 2), zoom=1)
    with pytest.raises(ValueError, match="one size"):
        LightField.from_view_folder(tmp_path)


def test_names_are_in_natural_order_and_folders_hold_frames(tmp_path: Path) -> None:
    movie = noise(1, 3, 12)
    for col, name in enumerate(("left2", "left10", "right1")):
        (tmp_path / name).mkdir()
        for frame in range(12):
            write_png(tmp_path / name / f"{frame}.png", movie.pixels[:, 0, col, frame], zoom=1)
    assert torch.equal(LightField.from_view_folder(tmp_path, 1, 3).pixels, movie.pixels)
    with pytest.raises(ValueError, match="view_00_02"):
        LightField.from_view_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder, error in ((tmp_path / "empty", ValueError), (tmp_path / "nowhere", FileNotFoundError)):
        with pytest.raises(error):
            LightField.from_view_folder(folder)
    (tmp_path / "empty" / "a_0_0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be read"):
        LightField.from_view_folder(tmp_path / "empty")


# The compressed form


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compressed") / "pigs.lf"
    barnyard(2, 2, 4, 25).save_compressed(path)
    return path


def test_the_compressed_form_is_near_and_keeps_everything_else(folder: Path) -> None:
    movie, read = barnyard(2, 2, 4, 25), LightField.load(folder)
    assert read.shape == movie.shape
    assert psnr(read.pixels, movie.pixels) > 30
    assert torch.equal(read.disparity, movie.disparity)
    assert (read.frame_rate, read.camera_grid) == (movie.frame_rate, movie.camera_grid)
    assert sorted(path.name for path in folder.iterdir())[-1] == view_name(1, 1)


def test_a_part_of_the_compressed_form_opens_the_chosen_views_only(folder: Path, tmp_path: Path) -> None:
    whole = LightField.load(folder)
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / view_name(0, 1)).write_bytes(b"")
    choice = {"view_rows": 1, "frames": slice(1, 4, 2), "height": slice(3, 20), "width": slice(-5, None)}
    with LightField.open(tmp_path / "broken") as file:
        assert isinstance(file, LightFieldFolder)
        assert file.read(**choice).equals(whole.select(**choice))
        assert file.sizes["height"] == 25
        with pytest.raises(ValueError, match=view_name(0, 1)):
            file.read()


def test_a_folder_is_written_whole_and_never_over_something_else(folder: Path, tmp_path: Path) -> None:
    movie = noise(1, 2, 1)
    movie.save_compressed(tmp_path / "a")
    with pytest.raises(FileExistsError, match="force"):
        movie.save_compressed(tmp_path / "a")
    noise(1, 1, 1).save_compressed(tmp_path / "a", force=True)
    assert LightField.load(tmp_path / "a").view_cols == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError):
        movie.save_compressed(tmp_path / "mine", force=True)
    with pytest.raises(OSError, match="missing"):
        movie.save_compressed(tmp_path / "missing" / "a")


@pytest.mark.parametrize(
    ("key", "lie", "message"),
    [
        ("format", "pt", "format"),
        ("version", 2, "upgrade"),
        ("version", "one", "version"),
        ("sizes", {"channels": 3}, "header"),
        ("sizes", {"view_rows": 2**40}, "views"),
        ("sizes", {"height": 27}, "pixels"),
        ("sizes", {"frames": -1}, "sizes"),
        ("sizes", {"view_cols": 3}, "grid"),
        ("frame_rate", None, "frame_rate"),
        ("camera_grid", {"view_rows": 2, "view_cols": 2, "toe_in": 1}, "toe_in"),
        ("provenance", [], "provenance"),
    ],
)
def test_a_header_that_lies_is_found_out(folder: Path, tmp_path: Path, key: str, lie: object, message: str) -> None:
    shutil.copytree(folder, tmp_path / "lie")
    header = json.loads((folder / HEADER).read_text())
    is_part = key == "sizes" and len(lie) == 1 and "channels" not in lie
    header[key] = {**header["sizes"], **lie} if is_part else lie
    (tmp_path / "lie" / HEADER).write_text(json.dumps(header))
    with pytest.raises(ValueError, match=message):
        LightField.open(tmp_path / "lie")


def test_videos_that_are_missing_or_short_are_found_out(folder: Path, tmp_path: Path) -> None:
    header = json.loads((folder / HEADER).read_text())
    shutil.copytree(folder, tmp_path / "short")
    (tmp_path / "short" / HEADER).write_text(
        json.dumps({**header, "sizes": {**header["sizes"], "frames": 10**9}, "disparity": False})
    )
    with pytest.raises(ValueError, match="only 4 can be read"):
        LightField.load(tmp_path / "short")
    (tmp_path / "short" / view_name(1, 1)).unlink()
    with pytest.raises(ValueError, match=r"view_01_01.* is missing"):
        LightField.open(tmp_path / "short")
    for text in ("{", "[" * 100000, "[]", " " * 2**21):
        (tmp_path / "short" / HEADER).write_text(text)
        with pytest.raises(ValueError, match="light field|format"):
            LightField.open(tmp_path / "short")


# Resampling


def test_resampled_views_are_near_the_rendered_ones() -> None:
    dense = barnyard(5, 5, 1, 48, 0.5)
    sparse = dense.select(view_rows=slice(None, None, 2), view_cols=slice(None, None, 2))
    again = resample(sparse, view_rows=5, view_cols=5)
    assert again.camera_grid == dense.camera_grid
    assert torch.equal(again.pixels[:, ::2, ::2], sparse.pixels)
    assert psnr(again.pixels, dense.pixels) > 32
    row = resample(sparse, view_rows=1, view_cols=9)
    assert torch.equal(row.pixels[:, 0, 4], sparse.pixels[:, 1, 1])
    assert row.camera_grid.spacing == 0.25


def test_fewer_frames_keep_the_mean_and_more_repeat() -> None:
    movie = noise(1, 1, 6)
    half = resample(movie, frames=3)
    pairs = movie.pixels.float().unflatten(3, (3, 2)).mean(dim=4)
    assert (half.pixels.float() - pairs).abs().max() <= 0.5
    assert half.frame_rate == movie.frame_rate / 2
    assert torch.equal(resample(movie, frames=12).pixels, movie.pixels.repeat_interleave(2, dim=3))
    assert resample(movie).equals(movie)


def test_pixels_and_disparity_scale_together() -> None:
    movie = barnyard(3, 3, 1, 32)
    small = resample(movie, height=16)
    means = movie.pixels.float().unflatten(-1, (16, 2)).unflatten(-3, (16, 2)).mean(dim=(-1, -3))
    assert (small.pixels.float() - means).abs().max() <= 0.5
    assert torch.equal(small.disparity, movie.disparity[..., ::2, ::2] / 2)
    assert resample(movie, width=64).shape[-2:] == (64, 64)


@pytest.mark.parametrize(
    "wanted",
    [{"view_rows": 0}, {"frames": -1}, {"view_cols": 2}, {"height": 16, "width": 32}, {"width": 2**20}, {"height": 0}],
)
def test_sizes_that_cannot_be_are_refused(wanted: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must|spacing"):
        resample(noise(3, 3), **wanted)
    with pytest.raises(ValueError, match="single one"):
        resample(noise(1, 1), view_cols=3)


# What others' pictures are, and frames in order


@pytest.mark.parametrize("suffix", [".webp", ".png", ".gif"])
def test_an_animated_quilt_comes_back_with_all_frames(suffix: str, tmp_path: Path) -> None:
    """Those without loss exactly; frames that are alike are one in the file, and several when it is played."""
    movie = noise(1, 6, 5, 8, 8)
    movie.pixels[:, :, :, 2] = movie.pixels[:, :, :, 1]
    quilt = assemble_quilt(movie.pixels[:, 0], 3, 2)
    path = tmp_path / f"noise_qs3x2a1{suffix}"
    if suffix == ".webp":
        write_video(path, quilt, 12.5, zoom=1)
    else:
        pictures = [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()) for frame in quilt.unbind(1)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=80)
    found = LightField.from_quilt(path, frame_rate=3.0)
    assert (found.shape, found.frame_rate) == (movie.shape, 12.5)
    if suffix != ".gif":
        assert torch.equal(found.pixels, movie.pixels)
    assert torch.equal(found.pixels[:, :, :, 1], found.pixels[:, :, :, 2])
    assert not torch.equal(found.pixels[:, :, :, 2], found.pixels[:, :, :, 3])


def test_a_picture_that_is_stored_turned_is_read_as_it_is_shown(tmp_path: Path) -> None:
    picture = noise(1, 1, 1, 4, 6).pixels[:, 0, 0, 0].permute(1, 2, 0).contiguous().numpy()
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter to the right, as telephones store it
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=turned)
    found = LightField.from_quilt(tmp_path / "turned.png", 1, 1)
    assert np.array_equal(found.to_numpy()[0, 0, 0], np.rot90(picture, -1))


def test_pictures_of_sixteen_bits_are_not_cut_off(tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="8 bits a colour"):
        LightField.from_quilt(tmp_path / "deep.png", 1, 1)


def test_frames_of_a_folder_that_are_read_in_order_are_decoded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, opened = LightField.load(folder), []
    monkeypatch.setattr(
        "diffusers_stale.light_field.compressed.read_video",
        lambda path, frames: opened.append(frames) or read_video(path, frames),
    )
    with LightField.open(folder) as file:
        for index in range(whole.num_frames):
            part = {"frames": index, "height": slice(3, 20)}
            assert file.read(**part).equals(whole.select(**part))
        views, frames = whole.view_rows * whole.view_cols, whole.num_frames
        # The first alone, since nobody knows what is wanted next; then all others at once.
        assert opened == [range(1)] * views + [range(1, frames)] * views
        for part in ({"frames": 2, "view_cols": 1}, {"frames": slice(1, 4, 2)}, {"frames": 0}):
            assert file.read(**part).equals(whole.select(**part))


def test_frames_read_ahead_take_no_more_than_they_may(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, opened = LightField.load(folder), []
    one = whole.pixels[:, 0, 0, 0].numel()
    monkeypatch.setattr("diffusers_stale.light_field.compressed.READ_AHEAD", 2 * one)
    monkeypatch.setattr(
        "diffusers_stale.light_field.compressed.read_video",
        lambda path, frames: opened.append(frames) or read_video(path, frames),
    )
    with LightField.open(folder) as file:
        for index in range(whole.num_frames):
            part = {"frames": index, "view_rows": 0, "view_cols": 0}
            assert file.read(**part).equals(whole.select(**part))
    assert max(map(len, opened)) == 2
    assert opened[:2] == [range(1), range(1, 3)]
