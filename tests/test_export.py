"""Every picture and video that is written, decoded again by another library: PyAV for videos, Pillow for pictures."""

import subprocess
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusers_stale.light_field import LightField
from diffusers_stale.light_field import video as video_module
from diffusers_stale.light_field.displays import DISPLAYS
from diffusers_stale.light_field.export import write_gif, write_mp4, write_png, write_video, write_webp
from diffusers_stale.light_field.video import CODECS, read_video, usual_codec, video_info
from diffusers_stale.light_field.video_row import write_video_row


av = pytest.importorskip("av", reason="PyAV decodes what ffmpeg wrote; it is in the test extra")

GREYS = (0, 1, 64, 128, 200, 254, 255)
VIDEOS = [name for name, kind in CODECS.items() if kind.subsampled]


def steps_of_grey(height: int = 32, width: int = 48) -> torch.Tensor:
    """A moving picture of plain frames from black to white."""
    return torch.tensor(GREYS, dtype=torch.uint8)[None, :, None, None].expand(3, -1, height, width)


def moving(frames: int = 5, height: int = 32, width: int = 48) -> torch.Tensor:
    """A soft pattern that moves, so that it is known which frame is which."""
    x = torch.arange(width)[None, None, :] + 3 * torch.arange(frames)[:, None, None]
    wave = 127.5 + 100 * torch.sin(0.2 * x + 0.1 * torch.arange(height)[None, :, None])
    return wave.round().to(torch.uint8)[None].expand(3, -1, -1, -1)


def decoded(path: Path) -> tuple[object, torch.Tensor, list]:
    """Codec context of the video stream, frames as RGB `(frames, height, width, 3)`, and the frames as they are."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        pictures = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in frames]
        return stream, torch.stack(pictures), frames


@pytest.mark.parametrize("codec", VIDEOS)
def test_a_video_decodes_to_what_was_written(codec: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{CODECS[codec].suffixes[0]}"
    write_video(path, moving(), 12.5, zoom=1, codec=codec)
    stream, pictures, frames = decoded(path)
    assert pictures.shape == (5, 32, 48, 3)
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert abs(stream.average_rate - Fraction(25, 2)) < Fraction(1, 10)
    assert frames[0].colorspace == 1  # BT.709, ISO/IEC 23091-2
    assert frames[0].color_range == 1  # video range
    assert (pictures.float() - moving().permute(1, 2, 3, 0).float()).abs().mean() < 3


@pytest.mark.parametrize("codec", VIDEOS)
def test_black_is_black_and_white_is_white(codec: str, tmp_path: Path) -> None:
    """Luma of plain greys, as ITU-R BT.709 has it for video range, within one level, and the RGB that comes of it."""
    path = tmp_path / f"a{CODECS[codec].suffixes[0]}"
    write_video(path, steps_of_grey(), 8.0, zoom=1, codec=codec)
    _, pictures, frames = decoded(path)
    for grey, picture, frame in zip(GREYS, pictures, frames, strict=True):
        luma = frame.to_ndarray()[:32]
        assert abs(float(luma.mean()) - (16 + 219 * grey / 255)) <= 1
        assert (picture.int() - grey).abs().max() <= 2


def test_h264_is_of_the_high_profile_and_can_start_before_it_is_whole(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", moving(), 8.0, zoom=1)
    stream, _, _ = decoded(tmp_path / "a.mp4")
    assert stream.codec_context.profile == "High"
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_odd_sides_are_padded_by_their_edge_and_never_scaled(tmp_path: Path) -> None:
    picture = moving(2, 31, 47)
    write_mp4(tmp_path / "a.mp4", picture, 8.0, zoom=1)
    _, pictures, _ = decoded(tmp_path / "a.mp4")
    assert pictures.shape == (2, 32, 48, 3)
    assert (pictures[:, :31, :47].float() - picture.permute(1, 2, 3, 0).float()).abs().mean() < 3
    assert (pictures[:, 31].float() - pictures[:, 30].float()).abs().mean() < 12


def test_frames_are_pulled_one_after_the_other(tmp_path: Path) -> None:
    """None is asked for before those before it have been given to the encoder, and none is kept."""
    alive = []

    class Counted:
        """Keeps count of how many frames are held at a time."""

        held = 0
        most = 0

    def frames() -> Iterator[torch.Tensor]:
        for index in range(60):
            picture = torch.full((3, 16, 16), index, dtype=torch.uint8)
            Counted.held += 1
            Counted.most = max(Counted.most, Counted.held)
            alive.append(weakref.finalize(picture, lambda: setattr(Counted, "held", Counted.held - 1)))
            yield picture

    write_mp4(tmp_path / "a.mp4", frames(), 8.0, zoom=1)
    assert decoded(tmp_path / "a.mp4")[1].shape[0] == 60
    assert len(alive) == 60
    assert Counted.most <= 4


def test_a_source_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def frames() -> Iterator[torch.Tensor]:
        yield torch.zeros(3, 16, 16)
        raise RuntimeError("the source fails")

    with pytest.raises(RuntimeError, match="the source fails"):
        write_mp4(tmp_path / "a.mp4", frames(), 8.0)
    with pytest.raises(ValueError, match="one size"):
        write_mp4(tmp_path / "a.mp4", iter([torch.zeros(3, 16, 16), torch.zeros(3, 16, 8)]), 8.0)
    with pytest.raises(ValueError, match="at least one"):
        write_mp4(tmp_path / "a.mp4", iter([]), 8.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_animated_pictures_are_exact_or_nearly(suffix: str, tmp_path: Path) -> None:
    """WebP keeps every pixel; GIF has 256 colours, enough for greys. Both run for ever."""
    path = tmp_path / f"a{suffix}"
    if suffix == ".webp":
        write_video(path, moving(4, 15, 21), 10.0, zoom=1)
    else:
        write_gif(path, moving(4, 16, 22), 10.0, zoom=1)
    with Image.open(path) as image:
        assert image.n_frames == 4
        assert image.info["loop"] == 0
        for index in range(4):
            image.seek(index)
            seen = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
            truth = moving(4, image.height, image.width)[:, index].permute(1, 2, 0)
            assert (seen.view(truth.shape).int() - truth.int()).abs().max() <= (0 if suffix == ".webp" else 2)


def test_stills_are_exact_and_enlarged_as_wanted(tmp_path: Path) -> None:
    picture = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for write, name in ((write_png, "a.png"), (write_webp, "a.webp")):
        write(tmp_path / name, picture, zoom=2)
        with Image.open(tmp_path / name) as image:
            seen = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(10, 14, 3)
        assert torch.equal(seen[::2, ::2].permute(2, 0, 1), picture)
        assert torch.equal(seen[1::2, 1::2].permute(2, 0, 1), picture)
    for write, name in ((write_png, "b.png"), (write_webp, "b.webp")):
        with pytest.raises(ValueError, match="at most 2340 .* got 100000"):
            write(tmp_path / name, picture, zoom=100_000)
    with pytest.raises(ValueError, match="at most 2340 "):
        write_mp4(tmp_path / "b.mp4", picture[:, None], 8.0, zoom=2341)
    assert not list(tmp_path.glob("b.*"))
    ramp = (torch.arange(8) * 32).to(torch.uint8).expand(3, 8, 8)
    write_png(tmp_path / "smooth.png", ramp, zoom=4, smooth=True)
    with Image.open(tmp_path / "smooth.png") as image:
        line = [image.getpixel((x, 16))[0] for x in range(32)]
    assert line == sorted(line)
    assert max(after - before for before, after in zip(line, line[1:], strict=False)) <= 12


def test_large_pictures_go_to_hevc_and_unknown_kinds_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert usual_codec(".mp4", (4096, 4096)) == "h264"
    assert usual_codec(".mp4", (4096, 8192)) == "hevc"
    assert usual_codec(".webm", (64, 64)) == "vp9"
    for path, codec in (("a.mp4", "vp9"), ("a.webm", "h264"), ("a.mp4", "mpeg1"), ("a.avi", None)):
        with pytest.raises(ValueError, match=r"codec|\.webm"):
            write_video(tmp_path / path, moving(), 8.0, codec=codec)
    monkeypatch.setattr(video_module, "encoders", lambda: frozenset({"libx264"}))
    assert usual_codec(".mp4", (8192, 8192)) == "h264"
    with pytest.raises(OSError, match=r"libx265.*choose another"):
        write_video(tmp_path / "a.mp4", moving(), 8.0, codec="hevc")
    assert not list(tmp_path.iterdir())


def test_a_video_is_read_back_in_parts(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", moving(6), 12.0, zoom=1)
    whole = read_video(tmp_path / "a.mp4")
    assert torch.equal(whole.permute(1, 2, 3, 0), decoded(tmp_path / "a.mp4")[1]) or (
        (whole.permute(1, 2, 3, 0).int() - decoded(tmp_path / "a.mp4")[1].int()).abs().max() <= 2
    )
    assert torch.equal(read_video(tmp_path / "a.mp4", range(1, 6, 2)), whole[:, 1::2])
    assert video_info(tmp_path / "a.mp4").frame_rate == 12.0
    with pytest.raises(ValueError, match="only 6"):
        read_video(tmp_path / "a.mp4", range(7))
    (tmp_path / "text.mp4").write_bytes(b"A cow. " * 99)
    with pytest.raises(ValueError, match="Expected a video"):
        read_video(tmp_path / "text.mp4")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_video(tmp_path / "nowhere.mp4")


def test_a_video_that_is_stored_turned_is_read_as_it_is_shown(tmp_path: Path) -> None:
    picture = torch.zeros(3, 2, 32, 48, dtype=torch.uint8)
    picture[:, :, :, :24] = 255
    write_mp4(tmp_path / "lying.mp4", picture, 8.0, zoom=1)
    command = [video_module.ffmpeg_path(), "-v", "error", "-display_rotation", "90", "-i", str(tmp_path / "lying.mp4")]
    subprocess.run([*command, "-c", "copy", str(tmp_path / "upright.mp4")], check=True)
    assert video_info(tmp_path / "upright.mp4").size == (48, 32)
    shown = read_video(tmp_path / "upright.mp4").float()
    assert shown.shape == (3, 2, 48, 32)
    halves = shown[:, :, :24].mean(), shown[:, :, 24:].mean()
    assert abs(halves[0] - halves[1]) > 240


@pytest.mark.parametrize("name", DISPLAYS)
def test_the_video_of_every_display_is_what_the_display_made(name: str, tmp_path: Path) -> None:
    wave = moving(2, 16, 24)
    pixels = torch.stack([wave.roll(shift, -1) for shift in (1, 0, -1)], dim=1)[:, None]
    options = {"columns": 2, "rows": 2} if name == "quilt" else {}
    picture = DISPLAYS[name](pixels, **options)
    write_mp4(tmp_path / "a.mp4", picture, 8.0, zoom=2)
    stream, pictures, _ = decoded(tmp_path / "a.mp4")
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert pictures.shape == (picture.shape[1], 2 * picture.shape[2], 2 * picture.shape[3], 3)
    error = pictures.float() - picture.repeat_interleave(2, -1).repeat_interleave(2, -2).permute(1, 2, 3, 0).float()
    assert error.abs().mean() < 6  # colours have half the resolution
    assert error.mean().abs() < 1.5


def test_a_row_of_videos_has_one_for_each_view_from_the_left(tmp_path: Path) -> None:
    wave = moving(3, 16, 24)
    pixels = torch.stack([wave.roll(shift, -1) for shift in (4, 0, -4)], dim=1)[:, None].contiguous()
    LightField(pixels).save(tmp_path / "m.lf.safetensors")
    paths = write_video_row(tmp_path / "m.lf.safetensors", tmp_path / "row", 5, zoom=1)
    assert [path.name for path in paths] == [f"view_{index:02}.mp4" for index in range(5)]
    for index, path in enumerate(paths):
        _, pictures, _ = decoded(path)
        assert pictures.shape == (3, 16, 24, 3)
        if index % 2 == 0:
            view = pixels[:, 0, index // 2].permute(1, 2, 3, 0)
            assert (pictures.float() - view.float()).abs().mean() < 4
    with pytest.raises(FileExistsError, match="--force"):
        write_video_row(tmp_path / "m.lf.safetensors", tmp_path / "row", 5)
    assert write_video_row(tmp_path / "m.lf.safetensors", tmp_path / "row", 2, force=True, zoom=1) == paths[:2]
