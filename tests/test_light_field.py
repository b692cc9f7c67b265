"""Light fields: what is saved is read back, in parts too; broken files say so; sheets show the right views."""

import json
import re
import stat
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffusers_stale.data.renderer import RenderedClip, render_scene
from diffusers_stale.data.scenes import Scene, sample_scene
from diffusers_stale.light_field import CameraGrid, LightField, LightFieldFile
from diffusers_stale.light_field import movie_folder as movie_folder_module
from diffusers_stale.light_field import video as video_module
from diffusers_stale.light_field.atomic import atomic_path
from diffusers_stale.light_field.export import ffmpeg_path, write_gif, write_mp4, write_png
from diffusers_stale.light_field.file import FORMAT
from diffusers_stale.light_field.movie_folder import FILE_NAMES, check_writable, write_movie_folder
from diffusers_stale.light_field.projections import (
    views_sheet,
)


def noise(view_rows: int = 3, view_cols: int = 5, frames: int = 4, height: int = 6, width: int = 8) -> LightField:
    """A light field in which no two pixels are likely to be alike, with all that one can have."""
    generator = torch.Generator().manual_seed(0)
    shape = (view_rows, view_cols, frames, height, width)
    return LightField(
        torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator),
        frame_rate=12.5,
        camera_grid=CameraGrid(view_rows=view_rows, view_cols=view_cols, spacing=0.5, focal_disparity=0.25),
        disparity=torch.randn(shape, generator=generator),
        provenance={"prompt": "a cow \u2603", "seed": 7, "steps": [1, 2.5, None]},
    )


def fenced_day() -> Scene:
    return next(s for s in (sample_scene(0, i) for i in range(99)) if s.fence and s.time_of_day == "day")


def light_field_of(clip: RenderedClip) -> LightField:
    return LightField.from_float(clip.pixels, disparity=clip.disparity)


def forge(path: Path, header: dict[str, object], body: bytes) -> Path:
    """A safetensors file of this header, whatever it claims."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def saved_header(path: Path) -> tuple[dict[str, dict], bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


# The container


def test_float_pixels_become_bytes_and_back() -> None:
    light_field = noise()
    again = LightField.from_float(light_field.to_float())
    assert torch.equal(again.pixels, light_field.pixels)
    assert light_field.to_float().min() >= -1
    assert light_field.to_float().max() <= 1
    assert LightField.from_float(torch.full((3, 1, 1, 1, 2, 2), 7.0)).pixels.unique().tolist() == [255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_finite_are_refused(bad: float) -> None:
    pixels = torch.zeros(3, 1, 1, 1, 4, 4)
    pixels[1, 0, 0, 0, 2, 3] = bad
    for use in (LightField.from_float, views_sheet, lambda p: write_png("never.png", p[:, 0, 0, 0])):
        with pytest.raises(ValueError, match="channels 1, .*height 2, width 3"):
            use(pixels)


@pytest.mark.parametrize(
    "arguments",
    [
        {"pixels": torch.zeros(3, 2, 2, 1, 4, 4)},
        {"pixels": torch.zeros(1, 3, 2, 2, 1, 4, 4, dtype=torch.uint8)},
        {"pixels": torch.zeros(4, 2, 2, 1, 4, 4, dtype=torch.uint8)},
        {"pixels": torch.zeros(3, 2, 2, 0, 4, 4, dtype=torch.uint8)},
        {"pixels": [[1]]},
        {"frame_rate": 0.0},
        {"frame_rate": float("nan")},
        {"camera_grid": CameraGrid(view_rows=3, view_cols=2)},
        {"disparity": torch.zeros(2, 2, 1, 4, 5)},
        {"disparity": torch.zeros(2, 2, 1, 4, 4, dtype=torch.float64)},
        {"disparity": torch.full((2, 2, 1, 4, 4), float("nan"))},
        {"provenance": {"size": (3, 4)}},
        {"provenance": {1: "one"}},
        {"provenance": {"path": Path("here")}},
        {"provenance": {"loss": float("nan")}},
        {"provenance": ["a list"]},
    ],
)
def test_what_is_no_light_field_is_refused(arguments: dict[str, object]) -> None:
    sound = {"pixels": torch.zeros(3, 2, 2, 1, 4, 4, dtype=torch.uint8)}
    LightField(**sound)
    with pytest.raises(ValueError, match="must"):
        LightField(**{**sound, **arguments})


@pytest.mark.parametrize(
    "field", [{"view_rows": 0}, {"view_cols": True}, {"spacing": 0.0}, {"baseline": float("inf")}]
)
def test_a_camera_grid_needs_sound_numbers(field: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        CameraGrid(**{"view_rows": 3, "view_cols": 3, **field})


def test_selecting_by_name_is_slicing_and_everything_follows() -> None:
    light_field = noise()
    part = light_field.select(view_rows=slice(0, 3, 2), view_cols=slice(None, None, 2), frames=slice(1, None, 2))
    assert torch.equal(part.pixels, light_field.pixels[:, ::2, ::2, 1::2])
    assert torch.equal(part.disparity, light_field.disparity[::2, ::2, 1::2])
    assert part.camera_grid == CameraGrid(view_rows=2, view_cols=3, spacing=1.0, focal_disparity=0.25)
    assert part.frame_rate == light_field.frame_rate / 2
    assert part.provenance == light_field.provenance
    one = light_field.select(view_rows=-1, view_cols=2, height=slice(1, 5), width=slice(-3, None))
    assert torch.equal(one.pixels, light_field.pixels[:, -1:, 2:3, :, 1:5, -3:])
    assert (one.view_rows, one.view_cols, one.camera_grid.spacing) == (1, 1, 0.5)
    assert light_field.select().equals(light_field)
    assert not part.equals(light_field)


def test_a_dense_grid_taken_at_every_second_view_is_the_sparse_grid() -> None:
    """Steps keep disparity as it is, per view step: only the spacing of the cameras changes."""
    scene = sample_scene(5, 1)
    dense, sparse = render_scene(scene, 5, 5, 1, spacing=0.5), render_scene(scene, 3, 3, 1)
    grid = CameraGrid(view_rows=5, view_cols=5, spacing=0.5)
    taken = LightField.from_float(dense.pixels, camera_grid=grid, disparity=dense.disparity / 0.5).select(
        view_rows=slice(None, None, 2), view_cols=slice(None, None, 2)
    )
    assert taken.camera_grid == light_field_of(sparse).camera_grid
    torch.testing.assert_close(taken.disparity, sparse.disparity)


def test_views_and_frames_are_what_their_indices_say() -> None:
    light_field = noise()
    assert torch.equal(light_field.view(2, 4), light_field.pixels[:, 2, 4])
    assert torch.equal(light_field.frame(-1), light_field.pixels[:, :, :, -1])
    assert torch.equal(light_field.middle_view, light_field.pixels[:, 1, 2])
    assert (light_field.num_frames, light_field.height, light_field.width) == (4, 6, 8)
    assert "3x5 views, 4 frames" in repr(light_field)
    for index in (np.int64(2), np.uint8(2), torch.tensor(2)):
        assert light_field.select(frames=index).equals(light_field.select(frames=2))


@pytest.mark.parametrize(
    "choice",
    [
        {"view_rows": 3},
        {"frames": -5},
        {"frames": slice(2, 2)},
        {"frames": slice(None, None, -1)},
        {"width": slice(None, None, 2)},
        {"view_cols": True},
        {"view_cols": 1.0},
        {"view_cols": np.True_},
        {"view_cols": torch.tensor(True)},
        {"view_cols": torch.tensor([1, 2])},
        {"view_rows": slice(None, None, 2)},
    ],
)
def test_choices_that_leave_nothing_or_bend_the_grid_are_refused(choice: dict[str, object], tmp_path: Path) -> None:
    light_field = noise()
    light_field.save(tmp_path / "a.lf.safetensors")
    for select in (light_field.select, LightField.open(tmp_path / "a.lf.safetensors").read):
        with pytest.raises(ValueError, match=r"view_rows|view rows|frames|width|view_cols"):
            select(**choice)


# The file


def test_saved_then_loaded_is_equal(tmp_path: Path) -> None:
    path = tmp_path / "a.lf.safetensors"
    for light_field in (noise(), LightField(torch.zeros(3, 1, 1, 1, 1, 1, dtype=torch.uint8))):
        light_field.save(path)
        assert LightField.load(path).equals(light_field)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_part_is_saved_as_a_part(tmp_path: Path) -> None:
    part = noise().select(view_cols=slice(1, 3), frames=slice(0, 4, 3))
    part.save(tmp_path / "part.lf.safetensors")
    assert LightField.load(tmp_path / "part.lf.safetensors").equals(part)


@pytest.mark.parametrize(
    "choice",
    [
        {"view_rows": 1, "view_cols": 3},
        {"frames": -1},
        {"view_rows": slice(0, 3, 2), "view_cols": slice(0, 5, 2), "width": slice(2, 4)},
        {},
    ],
)
def test_a_part_read_from_the_file_is_the_part_selected(choice: dict[str, object], tmp_path: Path) -> None:
    light_field = noise()
    light_field.save(tmp_path / "a.lf.safetensors")
    with LightField.open(tmp_path / "a.lf.safetensors") as file:
        part = file.read(**choice)
        assert part.equals(light_field.select(**choice))
        assert part.pixels.is_contiguous()
        assert part.pixels.untyped_storage().nbytes() == part.pixels.numel()
        assert (file.frame_rate, file.sizes) == (light_field.frame_rate, light_field.sizes)


def test_a_file_cut_short_anywhere_says_so(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.lf.safetensors")
    data = (tmp_path / "a.lf.safetensors").read_bytes()
    for length in (0, 1, 7, 8, 9, 100, 400, len(data) // 2, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(ValueError, match="cut short"):
            LightField.open(tmp_path / "cut")
    (tmp_path / "long").write_bytes(data + b"more")
    with pytest.raises(ValueError, match="light field"):
        LightField.open(tmp_path / "long")


def test_what_is_no_light_field_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        LightField.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="path of a file"):
        LightField.load(tmp_path)
    (tmp_path / "text").write_bytes(b"A picture of a cow. " * 50)
    with pytest.raises(ValueError, match="no safetensors"):
        LightField.load(tmp_path / "text")
    save_file({"pixels": noise().pixels}, tmp_path / "foreign", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{FORMAT}.*'pt'"):
        LightField.load(tmp_path / "foreign")


HUGE = 2**40


@pytest.mark.parametrize(
    ("place", "key", "lie", "message"),
    [
        ("__metadata__", "version", "2", "upgrade"),
        ("__metadata__", "version", "one", "version"),
        ("__metadata__", "version", "9" * 5000, "version"),
        ("__metadata__", "axes", "channels,frames,view_rows,view_cols,height,width", "axes"),
        ("__metadata__", "frame_rate", "NaN", "frame_rate"),
        ("__metadata__", "frame_rate", "1" + "0" * 400, "metadata"),
        ("__metadata__", "frame_rate", "[" * 100000, "metadata"),
        ("__metadata__", "camera_grid", '{"view_rows": 5, "view_cols": 3}', "views"),
        ("__metadata__", "camera_grid", '{"view_rows": 3, "view_cols": 5, "toe_in": 1}', "toe_in"),
        ("__metadata__", "camera_grid", "[3, 5]", "metadata"),
        ("__metadata__", "provenance", "[]", "provenance"),
        ("__metadata__", "provenance", "{", "metadata"),
        ("pixels", "dtype", "I8", "pixels"),
        ("pixels", "shape", [3, 5, 3, 4, 6, 8], "views"),
        ("pixels", "shape", [3, 3, 5, 4, 48], "pixels"),
        ("pixels", "shape", [3, 3, 5, 4, 6, HUGE], "light field"),
        ("pixels", "shape", [HUGE, HUGE, HUGE, 4, 6, 8], "light field"),
        ("pixels", "shape", [3, 3, 5, 4, 6, -8], "light field"),
        ("disparity", "dtype", "I32", "disparity"),
        ("disparity", "shape", [5, 3, 4, 6, 8], "disparity"),
    ],
)
def test_a_header_that_lies_is_found_out(place: str, key: str, lie: object, message: str, tmp_path: Path) -> None:
    noise().save(tmp_path / "a")
    header, body = saved_header(tmp_path / "a")
    assert LightField.load(forge(tmp_path / "same", header, body)).equals(noise())
    header[place][key] = lie
    with pytest.raises(ValueError, match=message):
        LightFieldFile(forge(tmp_path / "lie", header, body), LightField)


@pytest.mark.parametrize("missing", ["version", "axes", "frame_rate", "camera_grid", "provenance"])
def test_a_header_with_a_gap_is_found_out(missing: str, tmp_path: Path) -> None:
    noise().save(tmp_path / "a")
    header, body = saved_header(tmp_path / "a")
    del header["__metadata__"][missing]
    with pytest.raises(ValueError, match=missing):
        LightField.open(forge(tmp_path / "gap", header, body))


def test_disparity_that_is_not_finite_is_named_by_its_place_and_file(tmp_path: Path) -> None:
    light_field, path = noise(), tmp_path / "a.lf.safetensors"
    light_field.disparity[1, 2, 3, 4, 5] = float("nan")
    light_field.save(path)
    place = "view_rows 1, view_cols 2, frames 3, height 4, width 5"
    with pytest.raises(ValueError, match=place):
        LightField(light_field.pixels, disparity=light_field.disparity)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{place}"):
        LightField.load(path)
    LightField.open(path).read(frames=0)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")

    def fail(error: BaseException) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    for error in (OSError(28, "No space left on device", "hidden"), KeyboardInterrupt(), ValueError("no")):
        with pytest.raises(type(error)):
            fail(error)
        assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a.png", "old")]
    with pytest.raises(OSError, match=r"a\.png: No space left.*; choose another place"):
        fail(OSError(28, "No space left on device", "hidden"))
    with pytest.raises(FileNotFoundError, match=r"missing/a\.lf"):
        noise().save(tmp_path / "missing" / "a.lf.safetensors")


# Pictures and videos


def probe(path: Path) -> tuple[str, torch.Tensor]:
    """What ffmpeg says of a video, and its frames `(frames, height, width, 3)`."""
    said = subprocess.run([ffmpeg_path(), "-i", str(path)], capture_output=True, text=True).stderr
    width, height = map(int, re.search(r", (\d+)x(\d+)", said).groups())
    command = [ffmpeg_path(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return said, torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, height, width, 3)


@pytest.mark.parametrize(("size", "zoom", "expected"), [((8, 12), 4, (32, 48)), ((5, 7), 1, (6, 8))])
def test_a_video_is_h264_that_browsers_play(
    size: tuple[int, int], zoom: int, expected: tuple[int, int], tmp_path: Path
) -> None:
    colors = torch.tensor([[200, 30, 20], [20, 160, 60], [30, 60, 190], [128, 128, 128]], dtype=torch.uint8)
    frames = colors.T[:, :, None, None].expand(3, 4, *size)
    write_mp4(tmp_path / "a.mp4", frames, 23.976, zoom)
    said, decoded = probe(tmp_path / "a.mp4")
    assert "h264" in said
    assert "yuv420p(tv, bt709" in said
    assert "23.98 fps" in said
    assert decoded.shape == (4, *expected, 3)
    assert (decoded.float() - colors[:, None, None].float()).abs().max() <= 6
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_small_movies_are_enlarged_to_about_512_pixels(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", torch.zeros(3, 2, 64, 48), 8.0)
    assert probe(tmp_path / "a.mp4")[1].shape == (2, 512, 384, 3)


def test_pictures_are_enlarged_pixel_by_pixel(tmp_path: Path) -> None:
    picture = noise().pixels[:, 0, 0, 0]
    write_png(tmp_path / "a.png", picture, zoom=3)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (24, 18)
        assert image.getpixel((7, 5)) == tuple(picture[:, 1, 2].tolist())
    write_gif(tmp_path / "a.gif", noise().middle_view, 10.0, zoom=2)
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size, image.info["duration"]) == (4, (16, 12), 100)
    with pytest.raises(ValueError, match="zoom"):
        write_png(tmp_path / "a.png", picture, zoom=0)


def test_a_missing_encoder_and_a_failing_one_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = torch.zeros(3, 2, 4, 4)
    monkeypatch.setattr(video_module, "CONVERSION", "no_such_filter")
    with pytest.raises(OSError, match=r"a\.mp4: ffmpeg says"):
        write_mp4(tmp_path / "a.mp4", frames, 8.0)
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(OSError, match="pip install imageio-ffmpeg"):
        write_mp4(tmp_path / "a.mp4", frames, 8.0)
    assert list(tmp_path.iterdir()) == []


# The movie folder


def test_a_movie_folder_holds_five_files(tmp_path: Path) -> None:
    light_field = light_field_of(render_scene(fenced_day(), 3, 3, 2, 16, 16))
    paths = write_movie_folder(light_field, tmp_path / "new" / "movie")
    assert [path.name for path in paths] == list(FILE_NAMES)
    assert {path.name for path in (tmp_path / "new" / "movie").iterdir()} == set(FILE_NAMES)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in paths)
    assert LightField.load(paths[0]).equals(light_field)
    said, decoded = probe(paths[1])
    assert "24 fps" in said
    assert len(decoded) == 96
    write_movie_folder(light_field, tmp_path / "new" / "movie")


def test_a_disk_that_fills_up_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    light_field = noise(1, 1, 1, 8, 8)
    old = tmp_path / "old"
    old.mkdir()
    (old / "views.png").write_text("old")

    def full(path: Path, *arguments: object) -> None:
        with atomic_path(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(movie_folder_module, "write_mp4", full)
    for folder in (old, tmp_path / "new" / "deeper"):
        with pytest.raises(OSError, match=r"write [^ ]*/(old|deeper)/movie\.mp4: No space left"):
            write_movie_folder(light_field, folder)
    assert [(path.name, path.read_text()) for path in old.iterdir()] == [("views.png", "old")]
    assert list(tmp_path.iterdir()) == [old]


def test_a_folder_that_cannot_be_written_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("old")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match="choose another output folder"):
            check_writable(folder)
    (tmp_path / "taken" / "movie.mp4").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"movie\.mp4"):
        check_writable(tmp_path / "taken")

    def forbidden(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(movie_folder_module.tempfile, "TemporaryFile", forbidden)
    with pytest.raises(PermissionError, match="Cannot write to the folder"):
        check_writable(tmp_path)
