"""Training on clips of one's own: every form is read as it was written, trained on, resumed, and refused if broken."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from diffusers_stale.data.clips import Clip
from diffusers_stale.data.decoding import Part, fitted, header_of, pictures_of
from diffusers_stale.data.folders import METADATA, BrokenDataError, BrokenFiles, folder_clips
from diffusers_stale.data.layers import layered_clip, layered_views
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.data.shards import shard_clips, shards_of, write_shards
from diffusers_stale.data.sources import Order, parse_sources
from diffusers_stale.evaluation.near_duplicates import find_near_duplicates, fingerprints
from diffusers_stale.evaluation.picture_sets import pictures_of as pictures_of_set
from diffusers_stale.light_field import LightField
from diffusers_stale.light_field.export import write_png, write_video
from diffusers_stale.light_field.quilt_layout import assemble_quilt
from diffusers_stale.light_field.video import ffmpeg_path, read_video
from diffusers_stale.training.checkpoints import Checkpoint, load_checkpoint, newest_checkpoint
from diffusers_stale.training.clip_data import ClipSource, LatentFiles, Mixture, open_groups
from diffusers_stale.training.config import PRESETS, TrainingConfig, with_changes
from diffusers_stale.training.grids import Grid
from diffusers_stale.training.latents import PoolRequest, render_clip, render_pool
from diffusers_stale.training.run_clips import open_run
from diffusers_stale.training.stage_autoencoder import frames_of
from diffusers_stale.training.stage_text import corpus
from diffusers_stale.training.stages import train_stage
from diffusers_stale.training.vocabulary import build_tokenizer


pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
SMOKE = PRESETS["smoke"]
SIZE, FRAMES = 32, 3
"""Clips that are made here have this many pixels a side, and frames; nothing has to be fitted then."""


def movie(index: int, view_rows: int = 3, view_cols: int = 3, frames: int = FRAMES, size: int = SIZE) -> LightField:
    clip = render_scene(sample_scene(3, index), view_rows, view_cols, frames, size, size)
    return LightField.from_float(clip.pixels)


def write_view_videos(folder: Path, light_field: LightField) -> None:
    folder.mkdir(parents=True)
    for row in range(light_field.view_rows):
        for col in range(light_field.view_cols):
            path = folder / f"view_{row:02}_{col:02}.mp4"
            write_video(path, light_field.view(row, col), light_field.frame_rate, zoom=1)


def write_view_pictures(folder: Path, light_field: LightField, frames: bool = False) -> None:
    folder.mkdir(parents=True)
    for row in range(light_field.view_rows):
        for col in range(light_field.view_cols):
            pictures = light_field.view(row, col).unbind(1)
            if frames:
                (folder / f"{row}_{col}").mkdir()
            for index, picture in enumerate(pictures[: None if frames else 1]):
                name = f"{row}_{col}/{index}.png" if frames else f"cam_{row}_{col}.png"
                write_png(folder / name, picture, zoom=1)


def write_quilt(path: Path, light_field: LightField) -> None:
    write_video(path, assemble_quilt(light_field.pixels[:, 0], 3, 2), light_field.frame_rate, zoom=1)


def describe(folder: Path, texts: dict[str, object]) -> Path:
    """Writes metadata: a caption, or all the keys, for each name."""
    lines = [
        json.dumps({"file_name": name} | (values if isinstance(values, dict) else {"text": values}))
        for name, values in texts.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METADATA).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip of every form."""
    folder = tmp_path_factory.mktemp("clips")
    write_view_videos(folder / "horse", movie(0))
    write_view_pictures(folder / "still", movie(1))
    write_view_pictures(folder / "frames", movie(2), frames=True)
    write_quilt(folder / "pig_qs3x2a1.mp4", movie(3, 1, 6))
    movie(4).save(folder / "cow.lf.safetensors")
    movie(5).save_compressed(folder / "sheep")
    write_video(folder / "plain.mp4", movie(6).view(1, 1), 8.0, zoom=1)
    texts = dict.fromkeys(("still", "frames", "cow.lf.safetensors", "sheep"), "a cow by a barn")
    texts |= {"horse": ["a horse", "a brown horse"], "pig_qs3x2a1.mp4": "a pig", "plain.mp4": "a sheep walks left"}
    return describe(folder, texts)


@pytest.fixture(scope="module")
def shards(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "packed"
    write_shards(folder_clips(clips, 0, strict()), folder, clips_a_shard=2)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Monocular videos, one with a depth map."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(2):
        write_video(folder / f"{index}.mp4", movie(6 + index).view(1, 1), 8.0, zoom=1)
    Image.fromarray(np.tile(np.arange(SIZE, dtype=np.uint8)[:, None] * 8, (1, SIZE))).save(folder / "depth.png")
    return describe(folder, {"0.mp4": "a cow", "1.mp4": {"text": "a pig", "depth": "depth.png"}})


def strict() -> BrokenFiles:
    return BrokenFiles(0)


def opened(folder: Path, frame_rate: float = 0) -> dict[str, Clip]:
    return {clip.name: clip for clip in folder_clips(folder, frame_rate, strict())}


def whole(clip: Clip, size: int = SIZE) -> torch.Tensor:
    return clip.read(range(clip.view_rows), range(clip.view_cols), range(clip.frames), size)


TRUTHS = {
    "horse": (0, 3, 3, FRAMES, 6),
    "still": (1, 3, 3, 1, 0),
    "frames": (2, 3, 3, FRAMES, 0),
    "pig_qs3x2a1.mp4": (3, 1, 6, FRAMES, 6),
    "cow.lf.safetensors": (4, 3, 3, FRAMES, 0),
    "sheep": (5, 3, 3, FRAMES, 6),
}
"""What each clip shows: scene, views, frames, and by how much its pixels may differ on average."""


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_form_is_read_as_it_was_written(clips: Path, shards: Path, name: str, packed: bool):
    scene, rows, cols, frames, error = TRUTHS[name]
    clip = opened(clips)[name]
    if packed:
        every = [clip for path in shards_of(shards) for clip in shard_clips(path, 0, strict())]
        clip = every[list(opened(clips)).index(name)]
        assert clip.captions == opened(clips)[name].captions
    assert (clip.view_rows, clip.view_cols, clip.frames) == (rows, cols, frames)
    truth = movie(scene, rows, cols).pixels[:, :, :, :frames]
    assert whole(clip).dtype == torch.uint8
    assert (whole(clip).float() - truth.float()).abs().mean() <= error
    part = clip.read(range(rows - 1, rows), range(1, 3), range(frames - 1, frames), SIZE)
    assert torch.equal(part, whole(clip)[:, rows - 1 :, 1:3, frames - 1 :])


def test_videos_are_decoded_as_the_light_fields_own_reader_does(clips: Path, tmp_path: Path):
    """Colours to the bit, turned ones nearly, and frames that are sought as those that are come to."""
    path = clips / "plain.mp4"
    turned, long = tmp_path / "turned.mp4", tmp_path / "long.webm"
    command = [ffmpeg_path(), "-v", "error", "-y", "-display_rotation", "90", "-i", path, "-c", "copy", turned]
    subprocess.run(command, check=True)
    write_video(long, movie(8, 1, 1, frames=50).view(0, 0)[..., : SIZE // 2, :], 8.0, zoom=1)
    for file in (path, turned, long):
        part, expected = Part(name=file.name, path=file), read_video(file)
        header = header_of(part)
        assert (header.frames, header.height, header.width) == tuple(expected.shape[1:])
        got = torch.from_numpy(np.stack(list(pictures_of(part, range(header.frames))))).movedim(-1, 0)
        # What is turned is turned before or after chroma is enlarged: borders of colours differ.
        assert torch.equal(got, expected) or (file is turned and (got.int() - expected.int()).abs().float().mean() < 2)
    sought = np.stack(list(pictures_of(Part(name=long.name, path=long), range(40, 50, 3))))
    assert np.array_equal(np.moveaxis(sought, -1, 0), expected[:, 40:50:3].numpy())


def test_pictures_are_cut_to_their_middle_square_and_reduced():
    picture = np.zeros((8, 16, 3), dtype=np.uint8)
    picture[:, 4:12] = 200
    assert torch.equal(fitted(picture, 4), torch.full((3, 4, 4), 200, dtype=torch.uint8))
    assert torch.equal(fitted(picture[:, 4:12], 8), torch.from_numpy(picture[:, 4:12]).movedim(-1, 0))


def test_pictures_of_sixteen_bits_keep_their_shades_and_those_held_upright_stand(tmp_path: Path):
    """Depth maps have 16 bits more often than not, of which Pillow alone would make white."""
    shades = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(shades).save(tmp_path / "depth.png")
    read = next(pictures_of(Part(name="depth.png", path=tmp_path / "depth.png"), range(1)))
    assert read[0].tolist() == [[value] * 3 for value in (0, 1, 128, 255)]
    for number, shade in (("F", np.float32(0.5)), ("I", np.int32(70_000))):
        path = tmp_path / f"{number}.tif"
        Image.fromarray(np.full((2, 2), shade)).save(path)
        with pytest.raises(ValueError, match=r"sound picture.*numbers"):
            next(pictures_of(Part(name=path.name, path=path), range(1)))
    turned = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right column
    turned.save(tmp_path / "turned.png", exif=exif)
    part = Part(name="turned.png", path=tmp_path / "turned.png")
    assert (header_of(part).height, header_of(part).width) == (3, 2)
    assert next(pictures_of(part, range(1)))[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]


def test_frame_rates_view_steps_and_baselines_of_clips(clips: Path, tmp_path: Path):
    assert opened(clips, 4.0)["horse"].frames == 2
    clip = opened(clips, 4.0)["horse"]
    assert torch.equal(whole(clip), whole(opened(clips)["horse"])[:, :, :, ::2])
    grid = replace(movie(0).camera_grid, baseline=0.5)
    LightField(movie(0).pixels, 8.0, grid).save(tmp_path / "a.lf.safetensors")
    describe(tmp_path, {"a.lf.safetensors": {"text": "a", "view_step": 2}})
    stepped = opened(tmp_path)["a.lf.safetensors"]
    assert (stepped.view_rows, stepped.view_cols, stepped.baseline) == (2, 2, 0.5)
    assert torch.equal(whole(stepped), movie(0).pixels[:, ::2, ::2])


def test_layers_move_by_their_disparity_and_the_middle_view_is_the_video():
    video = torch.full((3, 2, 16, 16), -0.5)
    labels = torch.zeros(2, 16, 16, dtype=torch.long)
    video[:, :, 6:10, 6:10], labels[:, 6:10, 6:10] = 0.5, 1
    steps = torch.tensor([-1.0, 0.0, 1.0])
    views = layered_views(video, labels, torch.tensor([0.0, 2.0]), steps, steps, farthest=1)
    assert torch.equal(views[:, 1, 1], video)
    for row in range(3):
        for col in range(3):
            # Nearer than the plane: it goes the other way than the camera.
            expected = torch.full_like(video, -0.5)
            top, left = 6 - 2 * (row - 1), 6 - 2 * (col - 1)
            expected[:, :, top : top + 4, left : left + 4] = 0.5
            torch.testing.assert_close(views[:, row, col], expected)


def test_monocular_videos_become_light_fields(videos: Path):
    for name, clip in opened(videos).items():
        layered = layered_clip(clip, 3, 5, (2.0,), seed=0)
        pixels = whole(layered)
        assert pixels.shape == (3, 3, 5, FRAMES, SIZE, SIZE)
        assert layered.baseline == 2.0
        assert torch.equal(pixels[:, 1, 2], whole(clip)[:, 0, 0]), name
        assert (pixels[:, 1, 0].int() - pixels[:, 1, 2].int()).abs().float().mean() > 1
        assert torch.equal(layered.read(range(1, 2), range(2, 4), range(1, 2), SIZE), pixels[:, 1:2, 2:4, 1:2])


def test_depth_maps_say_what_is_near(tmp_path: Path):
    """Dots above on far, below on near: they are found where a camera on the right sees them."""
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[15:17, 31:33] = picture[47:49, 31:33] = 255
    Image.fromarray(picture).save(tmp_path / "dots.png")
    Image.fromarray(np.repeat([0, 255], 32).astype(np.uint8)[:, None].repeat(64, 1)).save(tmp_path / "depth.png")
    describe(tmp_path, {"dots.png": {"text": "dots", "depth": "depth.png"}})
    view = whole(layered_clip(opened(tmp_path)["dots.png"], 1, 3, (4.0,), 0), 64)[:, 0, 2, 0].float().mean(dim=0)
    centres = [float((part.sum(dim=0) * torch.arange(64)).sum() / part.sum()) for part in (view[:32], view[32:])]
    assert 31.5 + 0.85 * 4 - 0.2 <= centres[0] <= 31.5 + 1.15 * 4 + 0.2
    assert 31.5 - 2.1 * 4 - 0.2 <= centres[1] <= 31.5 - 1.7 * 4 + 0.2


def test_an_order_has_every_clip_once_an_epoch_and_needs_no_memory():
    groups = [range(5), range(5, 7), range(7, 20), (), *[(index,) for index in range(20, 26)]]
    order = Order(groups, (1, 0))
    taken = [order.at(position) for position in range(52)]
    assert sorted(taken[:26]) == sorted(taken[26:]) == list(range(26))
    assert taken[:26] != taken[26:]
    assert [Order(groups, (1, 0)).at(position) for position in reversed(range(52))] == taken[::-1]
    assert [Order(groups, (1, 1)).at(position) for position in range(52)] != taken


def test_shards_are_dealt_to_processes_and_the_number_of_workers_does_not_matter(shards: Path):
    setting = parse_sources(f"shards:{shards}")[0]
    shares = [open_groups(setting, 8.0, strict(), rank, 2) for rank in (0, 1)]
    names = [{clip.name for group in groups for clip in group} for groups in shares]
    assert len(names[0] | names[1]) == 7
    assert not names[0] & names[1]
    many = [open_groups(setting, 8.0, strict(), rank, 6) for rank in range(6)]
    assert len({clip.name for groups in many for group in groups for clip in group}) == 7
    grid = Grid(view_rows=1, view_cols=1, frames=1, batch_size=3, weight=1.0)

    def pixels(workers: int, steps: tuple[int, ...]) -> list[torch.Tensor]:
        mixture = Mixture([ClipSource(setting, shares[0], SIZE, (0, 0))], 0, 3, None, 1, workers, strict())
        mixture._encoded = lambda pieces: pieces
        batches = [mixture.batch(step, 0, grid, lambda later: grid) for step in steps]
        return [torch.stack([piece.pixels for piece in batch]) for batch in batches]

    expected = pixels(0, tuple(range(4)))
    assert all(map(torch.equal, pixels(3, tuple(range(4))), expected))
    assert torch.equal(pixels(2, (3,))[0], expected[3])


BROKEN = {
    "missing view": (lambda folder: (folder / "horse" / "view_01_02.mp4").unlink(), "none for row 1 column 2"),
    "a size of its own": (
        lambda folder: write_video(folder / "horse" / "view_00_01.mp4", movie(0, size=48).view(0, 1), 8.0, zoom=1),
        "one size and length in .*horse, got 32x32 pixels and 3 frames .* 48x48",
    ),
    "a length of its own": (
        lambda folder: write_video(folder / "horse" / "view_02_02.mp4", movie(0, frames=2).view(0, 1), 8.0, zoom=1),
        "3 frames at row 0 column 0 and 32x32 pixels and 2 frames at row 2 column 2",
    ),
    "no video": (lambda folder: (folder / "plain.mp4").write_bytes(b"RIFF" * 99), "plain.mp4, got what cannot be"),
    "cut short": (
        lambda folder: os.truncate(folder / "cow.lf.safetensors", 5000),
        "cow.lf.safetensors, but it is cut short",
    ),
    "no such tiles": (
        lambda folder: (folder / "pig_qs3x2a1.mp4").rename(folder / "pig_qs5x2a1.mp4"),
        "divide into 5x2 tiles",
    ),
    "a view twice": (
        lambda folder: write_png(folder / "still" / "cam_0_00.png", movie(0).view(0, 0)[:, 0], zoom=1),
        "two for one place",
    ),
    "an empty folder": (lambda folder: [path.unlink() for path in (folder / "still").iterdir()], "got none"),
    "no header": (lambda folder: (folder / "sheep" / "light_field.json").write_text("{"), "sheep, but its header"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_clips_are_named_left_out_and_counted(clips: Path, tmp_path: Path, case: str):
    damage, message = BROKEN[case]
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    damage(folder)
    texts = {name: "text" for name in opened(clips) if (folder / name).exists()}
    describe(folder, texts | {path.name: "text" for path in folder.glob("*_qs*")})
    said = []
    problems = BrokenFiles(1, said.append)
    assert len(list(folder_clips(folder, 0, problems))) == 6
    assert len(said) == len(problems.found) == 1
    name = next(iter(problems.found))
    assert name in said[0]
    with pytest.raises(BrokenDataError, match="At most 0 broken clips.*max_broken"):
        list(folder_clips(folder, 0, BrokenFiles(0, said.append)))
    with pytest.raises(ValueError, match=message):
        raise ValueError(problems.found[name])


METADATA_ERRORS = {
    "": ("has no line", ValueError),
    "{": ("line 1: expected JSON", ValueError),
    "[]": ("line 1: expected an object", ValueError),
    '{"file_name": "plain.mp4"}': ("`text` must be a caption", ValueError),
    '{"file_name": "plain.mp4", "text": []}': ("`text` must be a caption", ValueError),
    '{"file_name": "plain.mp4", "text": "a", "baseline": 0}': ("`baseline` must be a number above 0", ValueError),
    '{"file_name": "plain.mp4", "text": "a", "view_step": 1.5}': ("`view_step` must be an integer", ValueError),
    '{"file_name": "plain.mp4", "text": "a", "viewstep": 2}': ("'viewstep'; did you mean 'view_step'", ValueError),
    '{"file_name": "gone.mp4", "text": "a"}': ("names what is not there: gone.mp4", FileNotFoundError),
    '{"file_name": "../plain.mp4", "text": "a"}': ("lies outside of", ValueError),
    '{"file_name": "plain.mp4", "text": "a"}\n{"file_name": "plain.mp4", "text": "b"}': (
        "line 2: .*already",
        ValueError,
    ),
}


@pytest.mark.parametrize("lines", METADATA_ERRORS)
def test_metadata_that_cannot_be_is_refused(clips: Path, tmp_path: Path, lines: str):
    message, kind = METADATA_ERRORS[lines]
    (tmp_path / "plain.mp4").symlink_to(clips / "plain.mp4") if "../" in lines else shutil.copy(
        clips / "plain.mp4", tmp_path
    )
    (tmp_path / METADATA).write_text(lines)
    with pytest.raises(kind, match=message):
        opened(tmp_path)


def test_folders_without_metadata_say_where_there_is_some(clips: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        opened(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"no metadata.jsonl in .*write a line for each clip"):
        opened(tmp_path)
    describe(tmp_path / "train", {"a": "b"})
    with pytest.raises(FileNotFoundError, match="name one of its folders train"):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Expected \*.tar"):
        shards_of(tmp_path)
    said = []
    describe(tmp_path, {"b.png": "b"})
    write_png(tmp_path / "b.png", movie(0).frame(0)[:, 0, 0], zoom=1)
    assert len(list(folder_clips(tmp_path, 0, strict(), said.append))) == 1
    assert said == [f"left out, no line in {tmp_path / METADATA}: train"]


def test_shards_of_others_are_read_and_what_is_broken_in_them_is_named(clips: Path, tmp_path: Path):
    """Written by hand: a caption as text, a plain video; a clip without caption; a grid with a gap; a cut end."""
    video, picture = (clips / "plain.mp4").read_bytes(), (clips / "still" / "cam_0_0.png").read_bytes()
    members = {
        "a/one.mp4": video, "a/one.txt": b"a sheep\n", "two.mp4": video, "three.view_0_1.png": picture,
        "three.json": b'{"text": "a cow"}', "four.view_0_0.png": picture, "four.json": b'{"text": "a pig"}',
        "five.png": picture, "five.txt": b"last",
    }  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    problems = BrokenFiles(9, lambda line: None)
    found = {clip.name: clip for clip in shard_clips(tmp_path / "a.tar", 0, problems)}
    assert list(found) == ["a.tar/a/one", "a.tar/four", "a.tar/five"]
    assert found["a.tar/a/one"].captions == ("a sheep",)
    assert torch.equal(whole(found["a.tar/a/one"]), whole(opened(clips)["plain.mp4"]))
    assert [name.split("in it ")[1] for name in problems.found] == ["two", "three"]
    os.truncate(tmp_path / "a.tar", (tmp_path / "a.tar").stat().st_size - 13000)
    problems = BrokenFiles(9, lambda line: None)
    names = [clip.name for clip in shard_clips(tmp_path / "a.tar", 0, problems)]
    assert set(names) < set(found)
    assert any("Expected a plain tar file" in reason for reason in problems.found.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one source"),
        ("foldr:x", "did you mean folder"),
        ("folder", "folder:PLACE:WEIGHT"),
        ("barnyard:x", "barnyard:WEIGHT"),
        ("folder:x:0", "weights above 0"),
        ("folder:x:nan", "weights above 0"),
        ("folder:x:1, folder:x:2", "name each source once"),
    ],
)
def test_data_that_cannot_be_is_refused_before_anything_is_read(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        with_changes(SMOKE, [f"data={text}"], ["movie"])


def test_sources_are_read_as_they_are_written():
    sources = parse_sources("folder:/a:b/c:3, barnyard:0.5, shards:x, monocular:C:/d")
    assert [str(source) for source in sources] == ["folder:/a:b/c", "barnyard", "shards:x", "monocular:C:/d"]
    assert [source.weight for source in sources] == [3, 0.5, 1, 1]


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What image and movie stages start from."""
    folder = tmp_path_factory.mktemp("parents")
    for stage in ("autoencoder", "text", "image"):
        train_stage(stage, SMOKE, folder)
    return folder


def configured(*changes: str) -> TrainingConfig:
    settings = ["max_broken=0", "data_workers=1", "sample_every=1000", *changes]
    grids = ["movie.static_grids=3x3x1:1:1, 1x2x1:2:1", "movie.moving_grids=1x3x2:2:1, 1x1x2:1:1"]
    return with_changes(SMOKE, [*grids, *settings], ["image", "movie"])


def trained(stage: str, folder: Path, parents: Path, *changes: str, resume: bool = False) -> dict[str, object]:
    named = {name: parents / name for name in ("autoencoder", "text", "image")}
    return train_stage(stage, configured(*changes), folder, resume, named)


@pytest.mark.parametrize("stage", ["image", "movie"])
@pytest.mark.parametrize("kind", ["folder", "shards", "monocular", "mixture"])
def test_both_stages_train_on_every_source(
    clips: Path, shards: Path, videos: Path, parents: Path, tmp_path: Path, stage: str, kind: str
):
    places = {"folder": clips, "shards": shards, "monocular": videos}
    data = f"{kind}:{places[kind]}" if kind in places else f"folder:{clips}:2, shards:{shards}, barnyard:1"
    report = trained(stage, tmp_path, parents, f"data={data}", f"held_out_data=folder:{clips}", "sample_every=2")
    assert report["steps"] == 2
    assert report["final_loss"] > 0
    assert report["broken_clips"] == {}
    assert report["held_out_clips_loss"] > 0
    assert ("held_out_loss" in report) == (kind == "mixture")
    assert (tmp_path / f"{stage}_run" / "samples" / "step-00000002.png").is_file()
    assert set(report["provenance"]["data"]) == {str(source) for source in parse_sources(data)}


def test_a_mixture_draws_as_often_as_weights_say_and_only_what_fits_the_grid(clips: Path, shards: Path):
    groups = open_groups(parse_sources(f"folder:{clips}")[0], 8.0, strict())
    sources = [
        ClipSource(replace(setting, weight=weight), groups, SIZE, (0, 0))
        for setting, weight in zip(parse_sources(f"folder:{clips}, shards:{shards}"), (3.0, 1.0), strict=True)
    ]
    taken = []
    for source in sources:
        source.piece = lambda grid, position, attempt, draw, source=source: taken.append(source.weight)
    mixture = Mixture(sources, 0, 50, None, 1, 0, strict())
    for step in range(8):
        for index in range(50):
            mixture.piece(step, 0, index, Grid(view_rows=1, view_cols=1, frames=1, batch_size=50, weight=1))
    assert abs(taken.count(3.0) / len(taken) - 0.75) < 0.06
    wide = Grid(view_rows=1, view_cols=5, frames=2, batch_size=1, weight=1)
    assert {groups[0][sources[0].order(wide).at(place)].name for place in range(9)} == {"pig_qs3x2a1.mp4"}
    mixture.check((wide,))
    with pytest.raises(ValueError, match=r"must have the 2x5x2 views and frames .* got 1x1x3, 1x6x3, 3x3x1"):
        mixture.check((replace(wide, view_rows=2),))


def test_pieces_are_parts_of_their_clips(clips: Path):
    """Whatever is drawn, it is found in the clip at one place."""
    groups = open_groups(parse_sources(f"folder:{clips}")[0], 8.0, strict())
    source = ClipSource(parse_sources(f"folder:{clips}")[0], groups, SIZE, (0, 0))
    grid = Grid(view_rows=2, view_cols=1, frames=2, batch_size=1, weight=1)
    mixture = Mixture([source], 0, 1, None, 1, 0, strict())
    for step in range(6):
        clip = source.clips[source.order(grid).at(step)]
        piece = mixture.piece(step, 0, 0, grid)
        assert piece.caption in clip.captions
        places = [
            (row, col, frame)
            for row in range(2)
            for col in range(3)
            for frame in range(2)
            if torch.equal(whole(clip)[:, row : row + 2, col : col + 1, frame : frame + 2], piece.pixels)
        ]
        assert len(places) == 1


def test_clips_that_break_while_training_are_replaced_up_to_the_limit(shards: Path, tmp_path: Path):
    """A video of which the header is whole and the rest is not."""
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    setting = parse_sources(f"shards:{folder}")[0]
    clips = [clip for group in open_groups(setting, 8.0, strict()) for clip in group]
    part = next(clip for clip in clips if clip.name.endswith("00000004")).form.views[0, 0][0]
    with part.path.open("r+b") as file:
        file.seek(part.offset)
        file.write(bytes(part.size))
    said: list[str] = []
    grid = Grid(view_rows=1, view_cols=1, frames=1, batch_size=14, weight=1)

    def drawn(limit: int) -> list[torch.Tensor]:
        groups = open_groups(setting, 8.0, BrokenFiles(limit, said.append))
        problems = BrokenFiles(limit, said.append)
        mixture = Mixture([ClipSource(setting, groups, SIZE, (0, 0))], 0, 14, None, 1, 0, problems)
        return [mixture.piece(0, 0, index, grid).pixels for index in range(14)]

    assert len(drawn(1)) == 14
    assert all(map(torch.equal, drawn(1), drawn(1)))
    assert len(said) == 3
    assert "00000004" in said[0]
    with pytest.raises(BrokenDataError, match="max_broken"):
        drawn(0)


def test_clips_are_encoded_once_and_again_when_they_change(clips: Path, parents: Path, tmp_path: Path):
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    run = tmp_path / "run"
    first = trained("image", run, parents, f"data=folder:{folder}")
    files = {path: path.stat().st_mtime_ns for path in (run / "image_run" / "latents").iterdir()}
    assert len(files) == 7
    again = trained("image", run, parents, f"data=folder:{folder}", resume=True)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert again["provenance"]["data"] == first["provenance"]["data"]
    write_video(folder / "plain.mp4", movie(9).view(1, 1), 8.0, zoom=1)
    other = trained("image", run, parents, f"data=folder:{folder}", resume=True)
    assert len(list((run / "image_run" / "latents").iterdir())) == 8
    assert other["provenance"]["data"] != first["provenance"]["data"]


@pytest.mark.parametrize("stage", ["image", "movie"])
def test_a_run_on_shards_resumes_to_the_bit(shards: Path, clips: Path, parents: Path, tmp_path: Path, stage: str):
    """Stopped after each step, with other numbers of workers each time, against one that went through."""
    data = [
        f"data=shards:{shards}:3, folder:{clips}:1",
        "schedule=constant",
        *(["static_share=0"] * (stage == "movie")),
    ]
    trained(stage, tmp_path / "whole", parents, *data, "max_steps=4")
    for steps, workers in ((1, 0), (2, 3), (4, 1)):
        changes = (*data, f"max_steps={steps}", f"data_workers={workers}")
        trained(stage, tmp_path / "parted", parents, *changes, resume=True)
    ends = [newest_checkpoint(tmp_path / name / f"{stage}_run" / "checkpoints")[0] for name in ("whole", "parted")]
    assert_same_state(*map(load_checkpoint, ends))


def assert_same_state(ours: Checkpoint, theirs: Checkpoint) -> None:
    for part in ("model", "ema", "optimizer"):
        expected, got = getattr(ours, part), getattr(theirs, part)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected), part
    assert ours.state["step"] == theirs.state["step"]


@pytest.mark.slow
def test_two_processes_share_shards_and_resume_to_the_bit(shards: Path, parents: Path, tmp_path: Path):
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name, steps in (("whole", 4), ("parted", 2), ("parted", 4)):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [sys.executable, *launcher, "scripts/train.py", "--stage=image", f"--output={tmp_path / name}"]
        command += [f"--{stage}={parents / stage}" for stage in ("autoencoder", "text")]
        command += ["--preset=smoke", "--resume", f"--max-steps={steps}", f"--set=data=shards:{shards}"]
        command += ["--set=schedule=constant", "--set=max_broken=0"]
        result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, result.stderr[-2000:]
    ends = [newest_checkpoint(tmp_path / name / "image_run" / "checkpoints")[0] for name in ("whole", "parted")]
    assert_same_state(*map(load_checkpoint, ends))
    assert load_checkpoint(ends[0]).state["processes"] == 2


def test_folders_and_shards_of_clips_are_sets_to_search_for_leaks(clips: Path, shards: Path):
    """Of each clip the middle view; what is in both sets is found in both."""
    ours, theirs = (dict(pictures_of_set(str(folder))) for folder in (clips, shards))
    assert len(ours) == len(theirs) == 6 * FRAMES + 1
    assert ours["still#0"].shape == (3, 128, 128)
    report = find_near_duplicates(*(fingerprints(iter(found.items())) for found in (ours, theirs)))
    assert {match.name for match in report.matches} == set(ours)


def test_a_set_that_cannot_be_read_whole_is_not_searched(clips: Path, tmp_path: Path):
    shutil.copy(clips / "plain.mp4", tmp_path / "sound.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    describe(tmp_path, {"sound.mp4": "a cow", "broken.mp4": "a pig"})
    with pytest.raises(BrokenDataError, match=r"broken\.mp4.*cannot be decoded.*take it out of its folder"):
        list(pictures_of_set(str(tmp_path)))


def test_autoencoder_and_vocabulary_come_from_clips_too(clips: Path, shards: Path, tmp_path: Path):
    data = f"folder:{clips}:2, barnyard:1"
    config = with_changes(SMOKE, [f"data={data}", f"held_out_data=shards:{shards}"], ["autoencoder"])
    report = train_stage("autoencoder", config, tmp_path)
    assert report["broken_clips"] == {}
    assert report["psnr"] > 0
    problems = strict()
    frames = frames_of(config.autoencoder, data, 0, 6, problems)
    assert torch.equal(frames[4:], frames_of(config.autoencoder, "barnyard", 0, 2, problems))
    shown = torch.cat([whole(clip).flatten(1, 3).transpose(0, 1) for clip in opened(clips, 8.0).values()])
    assert all((frame == shown).flatten(1).all(dim=1).any() for frame in frames[:4])
    words = describe(tmp_path / "zoo", {"a.mp4": "a quokka hops", "b.mp4": "a quokka eats"})
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(clips / "plain.mp4", words / name)
    tokenizer = build_tokenizer(corpus(replace(SMOKE.text, data=f"folder:{words}, barnyard:1")), 32)
    assert tokenizer.tokenize("quokka") == ["quokka</w>"]
    assert len(build_tokenizer(corpus(SMOKE.text), 32).tokenize("quokka")) > 1


def test_frames_that_are_drawn_often_are_decoded_once(clips: Path, monkeypatch: pytest.MonkeyPatch):
    setting = parse_sources(f"folder:{clips}")[0]
    groups = open_groups(setting, 8.0, strict())
    grid = Grid(view_rows=1, view_cols=1, frames=1, batch_size=1, weight=1.0)
    read, names = Clip.read, []

    def noted(clip: Clip, *part: object) -> torch.Tensor:
        names.append(clip.name)
        return read(clip, *part)

    monkeypatch.setattr(Clip, "read", noted)
    drawn = {}
    for keeps in (False, True):
        names.clear()
        source = ClipSource(setting, groups, SIZE, (0, 0), keeps=keeps)
        drawn[keeps] = [source.piece(grid, place, 0, np.random.default_rng(place)) for place in range(40)]
    assert len(names) == len(set(names)) == len(source.clips)
    for fresh, kept in zip(drawn[False], drawn[True], strict=True):
        assert fresh.caption == kept.caption
        assert torch.equal(fresh.pixels, kept.pixels)


def test_captions_that_are_too_long_are_told(
    clips: Path, parents: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    shutil.copy(clips / "plain.mp4", tmp_path)
    describe(tmp_path, {"plain.mp4": ["a cow", "a cow and " * 20]})
    trained("image", tmp_path / "run", parents, f"data=folder:{tmp_path}")
    assert "cut: 1 of 2 captions have more than 32 tokens, as 'a cow and a cow" in capsys.readouterr().out


def test_a_run_without_barnyards_is_not_asked_for_its_own_test_set(clips: Path, parents: Path, tmp_path: Path):
    trained("image", tmp_path, parents, f"data=folder:{clips}", "max_steps=1")
    with pytest.raises(ValueError, match="give the two sets instead"):
        open_run(tmp_path)


def test_a_scene_in_a_file_has_the_latents_of_the_rendered_scene(parents: Path, tmp_path: Path):
    vae = AutoencoderKL.from_pretrained(parents / "autoencoder")
    request = PoolRequest(seed=5, count=2, rank=0, image_size=SIZE, view_rows=1, view_cols=3, frames=FRAMES)
    pool = render_pool(vae, request, encode_batch=4)
    names = [f"{index}.lf.safetensors" for index in range(2)]
    for index, name in enumerate(names):
        LightField.from_float(render_clip(request, index)[0].pixels).save(tmp_path / name)
    describe(tmp_path, dict.fromkeys(names, "a cow"))
    files = LatentFiles(tmp_path / "latents", vae, SIZE, 4)
    for index, clip in enumerate(opened(tmp_path).values()):
        files.add(clip)
        latents = files.read(clip, range(1), range(3), range(FRAMES))
        torch.testing.assert_close(latents, pool.latents[index], atol=0.02, rtol=0.02)
        assert torch.equal(files.read(clip, range(1), range(1, 3), range(1, 2)), latents[:, :, 1:, 1:2])
