"""The Space without a browser: its API, what it refuses, and the parts that have no page."""

import base64
import inspect
import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import time
import types
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from PIL import Image
from space_server import Served, served

from diffusers_stale import LightField, StaleDiffusionPipeline, write_picture
from stale_space.desk import FORMATS
from stale_space.generation import RIVALS, Progress, Studio, rival
from stale_space.page import joy_info
from stale_space.results import Results
from stale_space.settings import (
    FIELDS,
    Choice,
    Limits,
    MovieRequest,
    Switch,
    Text,
    lent_seconds,
    read_fields,
    read_query,
    read_request,
)
from stale_space.uploads import read_light_field, read_video


ROOT = Path(__file__).resolve().parent.parent
SMALL = {"steps": 2, "view_rows": 1, "view_cols": 3, "frames": 2}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def space(
    make_pipeline: Callable[[], StaleDiffusionPipeline], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with served(make_pipeline(), tmp_path_factory.mktemp("space"), upload_bytes=200_000) as running:
        yield running


@pytest.fixture(scope="module")
def client(space: Served, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(space.address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def movie_of(frames: int = 2, cols: int = 3, size: int = 8, seed: int = 0) -> LightField:
    generator = torch.Generator().manual_seed(seed)
    return LightField(torch.randint(0, 256, (3, 1, cols, frames, size, size), generator=generator, dtype=torch.uint8))


def ask(space: Served, **fields: str) -> httpx.Response:
    """Asks for a movie with the JSON texts of `fields` in place of their small values."""
    values = {name: json.dumps(SMALL.get(name, field.default)) for name, field in FIELDS.items()} | fields
    body = f'{{"data": [{",".join(values.values())}]}}'
    return httpx.post(
        f"{space.address}gradio_api/call/generate", content=body, headers={"content-type": "application/json"}
    )


# ---- the API ----------------------------------------------------------------------------------------------------


def test_generate_by_name_makes_the_movie_that_the_pipeline_makes(client: Client, space: Served):
    video, light_field, slices, provenance = client.predict("a white cow", seed=5, **SMALL, api_name="/generate")
    movie = LightField.load(light_field)
    expected = space.studio.pipeline(
        "a white cow",
        view_rows=1,
        view_cols=3,
        num_frames=2,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(5),
    ).light_fields[0]
    assert torch.equal(movie.pixels, expected.pixels)
    assert (provenance["seed"], provenance["prompt"], provenance["num_inference_steps"]) == (5, "a white cow", 2)
    assert imageio.imread(video, plugin="FFMPEG", index=0).shape == (512, 512, 3)
    assert imageio.imread(slices).ndim == 3


def test_parameters_are_documented_and_have_defaults(client: Client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {"/generate", "/convert"}
    parameters = {item["parameter_name"]: item for item in named["/generate"]["parameters"]}
    assert list(parameters) == list(FIELDS)
    defaults = {name: item["parameter_default"] for name, item in parameters.items() if name != "prompt"}
    assert defaults == {name: field.default for name, field in FIELDS.items() if name != "prompt"}


@pytest.mark.parametrize("name", FORMATS)
def test_convert_makes_every_format(client: Client, tmp_path: Path, name: str):
    source = tmp_path / "own.lf.safetensors"
    movie_of().save(source)
    path = Path(client.predict(handle_file(source), name, api_name="/convert"))
    if name == "light-field":
        assert torch.equal(LightField.load(path).pixels, movie_of().pixels)
    elif path.suffix == ".mp4":
        assert len(list(imageio.imiter(path, plugin="FFMPEG"))) >= 2
    else:
        assert imageio.imread(path, index=0).shape[-1] == 3


# ---- hostile input ----------------------------------------------------------------------------------------------

HOSTILE_TEXTS = [
    *("null", "3", "true", "[]", "{}", '["a"]', "NaN", "1e999", '{"prompt": "a"}'),
    *('"\\u0000"', '"a\\u0000b"', '"\\ud800"', '"\\udfff cow"', '"\\u001b[2J"', '"\\u007f"', '"\\u0008"'),
    json.dumps("a" * 301),
    json.dumps("😂" * 301),
    json.dumps("cow " * 5000),
]
HOSTILE_NUMBERS = [
    *("null", '"3"', '"three"', "true", "false", "[]", "[1]", "{}", '""', '"NaN"'),
    *("NaN", "Infinity", "-Infinity", "1e999", "-1", "-0.001", "1e18", "9" * 400, "-" + "9" * 400, "1e-320"),
]


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=lambda text: text[:16])
def test_hostile_prompts_are_refused_with_a_sentence(space: Served, text: str):
    answer = ask(space, prompt=text)
    assert answer.status_code == 422
    (problem,) = [item for item in answer.json()["detail"] if not item["is_valid"]]
    assert problem["parameter_name"] == "prompt"
    assert problem["message"].startswith("The sentence must")
    assert len(problem["message"]) < 200


NUMBERS = [name for name, field in FIELDS.items() if not isinstance(field, Text | Switch | Choice)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", HOSTILE_NUMBERS, ids=lambda text: text[:12])
def test_hostile_numbers_are_refused_with_a_sentence(space: Served, name: str, text: str):
    if FIELDS[name].least == 0 and text == "1e-320" and name == "baseline":
        pytest.skip("That is a number like any other.")
    answer = ask(space, **{name: text})
    assert answer.status_code == 422
    (problem,) = [item for item in answer.json()["detail"] if not item["is_valid"]]
    assert problem["parameter_name"] == name
    assert problem["message"].startswith(FIELDS[name].label)


@pytest.mark.parametrize("name", ["loop", "joy"])
@pytest.mark.parametrize("text", ["null", "1", '"true"', "[]", "NaN"])
def test_hostile_switches_are_refused_with_a_sentence(space: Served, name: str, text: str):
    answer = ask(space, **{name: text})
    assert answer.status_code == 422
    assert "true or false" in answer.text


def test_too_many_views_and_frames_are_refused_together(space: Served):
    answer = ask(space, view_rows="5", view_cols="9", frames="24")
    assert answer.status_code == 422
    assert "1080" in answer.text


def test_a_sentence_may_be_in_any_language(client: Client):
    for sentence in ("", "eine weiße Kuh, 一匹马 😂 <script>alert(1)</script> ../../etc/passwd"):
        provenance = client.predict(sentence, **SMALL | {"view_cols": 1, "frames": 1}, api_name="/generate")[3]
        assert provenance["prompt"] == sentence


def test_what_needs_too_much_memory_is_refused_before_it_is_made(make_pipeline: Callable[[], StaleDiffusionPipeline]):
    studio = Studio(make_pipeline(), Limits(memory=1_000_000))
    with pytest.raises(ValueError, match="GiB of memory.*fewer views or frames"):
        next(studio.generate(MovieRequest(view_rows=5, view_cols=5, frames=8)))
    assert isinstance(next(studio.generate(MovieRequest(view_rows=1, view_cols=1, frames=1, steps=1))), Progress)


def test_bodies_are_limited_and_name_no_addresses(space: Served):
    url = f"{space.address}gradio_api/call/generate"
    assert httpx.post(url, content=b'{"data": ["' + b"a" * 100_000 + b'"]}').status_code == 413
    assert httpx.post(url, content=iter([b'{"data": ["'] + [b"a" * 10_000] * 10)).status_code == 413
    assert httpx.post(url, content=b"[" * 30_000).status_code == 400
    assert httpx.post(url, content=b'{"data": [' + b"9" * 5000 + b"]}").status_code == 400
    file = {"path": "http://169.254.169.254/latest", "meta": {"_type": "gradio.FileData"}}
    for endpoint, data in (("convert", [file, "quilt"]), ("generate", [file])):
        answer = httpx.post(f"{space.address}gradio_api/call/{endpoint}", json={"data": data})
        assert answer.status_code == 400
        assert "uploaded" in answer.text


def test_no_files_but_those_of_results_are_served(space: Served):
    for path in ("/etc/passwd", str(ROOT / "README.md"), "http://example.com/", "https://example.com/a.mp4"):
        assert httpx.get(f"{space.address}gradio_api/file={path}").status_code in (403, 404)
    local = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    event = httpx.post(f"{space.address}gradio_api/call/convert", json={"data": [local, "quilt"]}).json()["event_id"]
    answer = httpx.get(f"{space.address}gradio_api/call/convert/{event}")
    assert "event: error" in answer.text
    assert "root:" not in answer.text


def test_uploads_are_limited(space: Served, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    url = f"{space.address}gradio_api/upload"
    assert httpx.post(url, files={"files": ("a.png", b"0" * 300_000)}).status_code == 413
    chunks = httpx.post(
        url, content=iter([b"0" * 1000] * 3), headers={"content-type": "multipart/form-data; boundary=a"}
    )
    assert chunks.status_code == 411
    (kept,) = httpx.post(url, files={"files": ("a.png", b"0" * 1000)}).json()
    assert Path(kept).is_relative_to(space.results.root)
    monkeypatch.setattr(space.results, "disk_bytes", 10)
    assert httpx.post(url, files={"files": ("a.png", b"0" * 1000)}).status_code == 507


# ---- one at a time, not for ever --------------------------------------------------------------------------------


def test_progress_is_told_after_every_step(tiny_pipeline: StaleDiffusionPipeline):
    request = MovieRequest(prompt="a cow", view_rows=1, view_cols=3, frames=2, steps=4)
    *news, movie = filter(None, Studio(tiny_pipeline, Limits()).generate(request))
    assert [(item.step, item.steps) for item in news] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert movie.shape == (3, 1, 3, 2, 8, 8)
    for item in news:
        kind, _, content = item.preview.partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (8, 8)


def test_closing_ends_a_run_after_its_step(make_pipeline: Callable[[], StaleDiffusionPipeline]):
    studio = Studio(make_pipeline(), Limits())
    calls = counted(studio.pipeline.unet)
    run = studio.generate(MovieRequest(view_rows=1, view_cols=1, frames=1, steps=50))
    next(run)
    run.close()
    wait_until(lambda: not studio.is_busy)
    after = len(calls)
    assert after < 50
    time.sleep(0.1)
    assert len(calls) == after


def test_who_waits_for_the_device_can_leave(make_pipeline: Callable[[], StaleDiffusionPipeline]):
    studio = Studio(make_pipeline(), Limits())
    calls = counted(studio.pipeline.unet)
    with studio._device:
        run = studio.generate(MovieRequest(view_rows=1, view_cols=1, frames=1, steps=50))
        assert next(run) is None
        run.close()
        time.sleep(0.5)
    assert not studio.is_busy
    assert calls == []


def test_time_is_limited(make_pipeline: Callable[[], StaleDiffusionPipeline]):
    studio = Studio(make_pipeline(), Limits(seconds=0.0))
    calls = counted(studio.pipeline.unet)
    with pytest.raises(TimeoutError, match="fewer views, frames or steps"):
        list(studio.generate(MovieRequest(view_rows=1, view_cols=1, frames=1, steps=50)))
    assert len(calls) == 1
    assert not studio.is_busy


def test_a_full_queue_says_so_and_all_others_finish(
    make_pipeline: Callable[[], StaleDiffusionPipeline], tmp_path: Path
):
    pipeline = make_pipeline()
    slow(pipeline.unet, 0.3)
    with served(pipeline, tmp_path, queue=2) as space:
        answers = [ask(space, view_cols="1", frames="1", steps="1") for _ in range(8)]
        taken = [answer.json()["event_id"] for answer in answers if answer.status_code == 200]
        ends = [httpx.get(f"{space.address}gradio_api/call/generate/{event}", timeout=60).text for event in taken]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    assert len(taken) >= 2
    assert all(answer.status_code == 503 and "Queue is full" in answer.text for answer in refused)
    assert all("event: complete" in end for end in ends)


def counted(module: torch.nn.Module) -> list[None]:
    calls: list[None] = []
    module.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


def slow(module: torch.nn.Module, seconds: float) -> None:
    module.register_forward_pre_hook(lambda *_: time.sleep(seconds))


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "That did not happen in time."
        time.sleep(0.02)


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_start_from_pure_noise_of_the_same_process(
    make_pipeline: Callable[[], StaleDiffusionPipeline], name: str
):
    pipeline = make_pipeline()
    scheduler = rival(name, pipeline.scheduler.config)
    assert scheduler.config.prediction_type == pipeline.scheduler.config.prediction_type
    scheduler.set_timesteps(4)
    assert int(scheduler.timesteps[0]) == 999
    request = MovieRequest(prompt="a cow", view_rows=1, view_cols=1, frames=1, steps=4)
    *news, movie = filter(None, Studio(pipeline, Limits()).generate(request, scheduler))
    assert len(news) == 4
    assert movie.provenance["scheduler"] == type(scheduler).__name__


def test_joy_is_labelled_by_what_the_checkpoint_says(make_pipeline: Callable[[], StaleDiffusionPipeline]):
    studio = Studio(make_pipeline(), Limits())
    known = studio.knows_joy
    assert ("not trained" in joy_info(studio)) == known
    studio.pipeline.register_to_config(default_negative_prompt="😂")
    assert ("was trained" in joy_info(studio)) == known


def test_a_lent_device_is_asked_for_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tiny_pipeline: StaleDiffusionPipeline
):
    monkeypatch.syspath_prepend(str(ROOT / "space"))
    import app

    asked = []

    def lent(function: Callable[..., Iterator[object]], duration: Callable[..., int]) -> Callable[..., object]:
        """As ZeroGPU does: in another process, so that all is pickled, and what is raised loses its words."""
        assert inspect.isgeneratorfunction(function)

        def run(*args: object) -> Iterator[object]:
            asked.append(duration(*args))
            try:
                for value in function(*pickle.loads(pickle.dumps(args))):
                    yield pickle.loads(pickle.dumps(value))
            except Exception as error:
                raise RuntimeError(type(error).__name__) from None

        return run

    fake = types.ModuleType("spaces")
    fake.__spec__ = types.SimpleNamespace()
    fake.GPU = lambda duration: lambda function: lent(function, duration)
    assert app.lent_device(lent_seconds)(abs) is abs
    monkeypatch.setitem(sys.modules, "spaces", fake)
    request = MovieRequest(view_rows=1, view_cols=1, frames=1, steps=1)
    studio = Studio(tiny_pipeline, Limits(), app.lent_device(lent_seconds))
    scheduler = rival("DDIM", tiny_pipeline.scheduler.config)
    *_, movie = studio.generate(request, scheduler)
    assert isinstance(movie, LightField)
    assert asked == [lent_seconds(request)]
    with pytest.raises(TimeoutError, match="fewer views, frames or steps"):
        list(Studio(tiny_pipeline, Limits(seconds=0.0), app.lent_device(lent_seconds)).generate(request))


def test_a_device_is_lent_for_no_longer_than_strangers_may_have_it():
    largest = MovieRequest(view_rows=5, view_cols=9, frames=11, steps=50, guidance=3.0, loop=True)
    usual, small = MovieRequest(), MovieRequest(view_rows=1, view_cols=1, frames=1, steps=1, guidance=1.0)
    # 2 minutes a day without an account: https://huggingface.co/docs/hub/spaces-zerogpu
    assert lent_seconds(small) < lent_seconds(usual) <= 30 < lent_seconds(largest) <= 120


def test_the_program_asks_for_a_device_before_torch_is_there():
    code = """
import sys, types
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/space"]
class Before(types.ModuleType):
    def __getattr__(self, name):
        assert "torch" not in sys.modules
        print("asked")
        sys.exit(3)
spaces = Before("spaces")
spaces.__spec__ = types.SimpleNamespace()
sys.modules["spaces"] = spaces
sys.argv[1:] = []
import app
app.main()
"""
    run = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (3, "asked\n"), run.stderr


# ---- requests and links -----------------------------------------------------------------------------------------


def test_a_request_that_is_read_is_what_was_asked_for():
    assert read_request({}, Limits()) == MovieRequest()
    raw = {"prompt": " a  cow\n", "seed": 7.0, "guidance": 2, "loop": True}
    assert read_request(raw, Limits()) == MovieRequest(prompt="a cow", seed=7, guidance=2.0, loop=True)
    assert all(getattr(MovieRequest(), name) == field.default for name, field in FIELDS.items())


def test_links_are_read_like_any_other_request():
    values, problems = read_query(
        {"prompt": "a cow & a pig", "seed": "12", "loop": "1", "baseline": "0.5", "theme": "x"}
    )
    assert values == {"prompt": "a cow & a pig", "seed": 12, "loop": True, "baseline": 0.5}
    assert problems == {}
    for name, text in (("seed", "-1"), ("steps", "nan"), ("frames", "1e9"), ("joy", "maybe"), ("prompt", "a" * 301)):
        values, problems = read_query({name: text})
        assert values == {}
        assert problems[name].startswith(FIELDS[name].label)
    assert not read_fields({"steps": math.inf}).values


# ---- files ------------------------------------------------------------------------------------------------------


def quilt_file(
    folder: Path, movie: LightField, columns: int = 3, rows: int = 1, name: str = "barn_qs3x1a1.png"
) -> Path:
    tiles = movie.pixels[:, 0, :, 0].movedim(1, 0).numpy()
    lines = [np.concatenate(list(tiles[row * columns : (row + 1) * columns]), axis=-1) for row in range(rows)]
    path = folder / name
    Image.fromarray(np.concatenate(lines[::-1], axis=-2).transpose(1, 2, 0)).save(path)
    return path


def test_a_quilt_is_read_exactly(tmp_path: Path):
    movie = movie_of(frames=1, cols=6)
    path = quilt_file(tmp_path, movie, 3, 2, "barn_qs3x2a1.png")
    assert torch.equal(read_light_field(path, Limits()).pixels, movie.pixels)
    small = read_light_field(path, Limits(view_size=4))
    assert small.shape == (3, 1, 6, 1, 4, 4)


def test_a_moving_quilt_that_was_downloaded_is_read_again(tmp_path: Path):
    rows, columns = torch.arange(48)[:, None], torch.arange(48)
    views = torch.stack([(rows * 2 + columns * (2 + view)) % 256 for view in range(3)])
    pixels = torch.stack([views, (views + 40) % 256], dim=1)[None, None].expand(3, 1, 3, 2, 48, 48)
    LightField(pixels.to(torch.uint8).contiguous(), frame_rate=4.0).save(tmp_path / "a.lf.safetensors")
    (quilt,) = [
        path for path in write_picture(tmp_path / "a.lf.safetensors", "quilt", tmp_path / "q.mp4")[:1]
        if path.suffix == ".mp4"
    ]  # fmt: skip
    again = quilt.rename(quilt.with_name(f"{quilt.stem} (1).mp4"))
    read = read_light_field(again, Limits())
    assert (read.view_rows, read.view_cols, read.num_frames, read.frame_rate) == (1, 48, 2, 4.0)
    assert read_light_field(again, Limits(movie_pixels=1)).num_frames == 1


def test_a_light_field_is_read_exactly_and_without_its_words(tmp_path: Path):
    movie = movie_of()
    LightField(movie.pixels, provenance={"prompt": "<script>"}).save(tmp_path / "a.lf.safetensors")
    read = read_light_field(tmp_path / "a.lf.safetensors", Limits())
    assert torch.equal(read.pixels, movie.pixels)
    assert read.provenance == {}


def test_files_that_are_something_else_are_refused_with_a_sentence(tmp_path: Path):
    movie = movie_of(frames=1)
    good = quilt_file(tmp_path, movie)
    files = {
        "barn.png": good.read_bytes(),
        "barn_qs0x1a1.png": good.read_bytes(),
        "barn_qs99x99a1.png": good.read_bytes(),
        "cut_qs3x1a1.png": good.read_bytes()[:100],
        "text_qs3x1a1.png": b"not a picture",
        "empty_qs3x1a1.png": b"",
        "bomb_qs3x1a1.png": png_header(100_000, 100_000),
        "big_qs3x1a1.png": png_header(6000, 6000),
        "a.lf.safetensors": b"\x00" * 50,
        "b.safetensors": b"",
        "a.svg": b"<svg/>",
        "a.zip": b"PK",
        "list_qs3x1a1.mp4": PLAYLIST,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="must|Expected"):
            read_light_field(tmp_path / name, Limits())
    movie_of(size=8).save(tmp_path / "large.lf.safetensors")
    with pytest.raises(ValueError, match="at most 4 pixels"):
        read_light_field(tmp_path / "large.lf.safetensors", Limits(view_size=4))
    with pytest.raises(ValueError, match="at most 0 MB"):
        read_light_field(good, Limits(upload_bytes=10))


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
"""Ffmpeg would open the file that it names."""


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that says it has this size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def test_videos_are_read_at_eight_frames_a_second(tmp_path: Path):
    pictures = np.stack([np.full((32, 32, 3), 5 * index, dtype=np.uint8) for index in range(32)])
    imageio.imwrite(tmp_path / "a.mp4", pictures, plugin="FFMPEG", fps=16)
    frames = read_video(tmp_path / "a.mp4", 8, Limits())
    assert len(frames) == 8
    brightness = np.array([frame.mean() for frame in frames])
    assert np.abs(np.diff(brightness) - 10).max() < 3
    for name, content in {"b.mp4": b"not a video", "c.mp4": b"", "a.txt": b"", "list.mp4": PLAYLIST}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="video"):
            read_video(tmp_path / name, 8, Limits())


def test_videos_of_phones_are_upright(tmp_path: Path):
    pictures = np.zeros((4, 32, 64, 3), dtype=np.uint8)
    pictures[:, :, :32] = 255  # bright on the left, and so at the top or bottom once turned
    imageio.imwrite(tmp_path / "a.mp4", pictures, plugin="FFMPEG", fps=8)
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    turn = [ffmpeg, "-v", "error", "-display_rotation", "90", "-i", tmp_path / "a.mp4", "-c", "copy"]
    subprocess.run([*turn, tmp_path / "turned.mp4"], check=True)
    (first, *_) = read_video(tmp_path / "turned.mp4", 8, Limits())
    assert first.shape == (64, 32, 3)
    assert abs(float(first[:32].mean()) - float(first[32:].mean())) > 200


def test_old_results_and_the_oldest_of_too_many_are_deleted(tmp_path: Path):
    results = Results(tmp_path, keep_seconds=3600, disk_bytes=10_000)
    old, new = results.save(movie_of(seed=1)), results.save(movie_of(seed=2))
    assert results.find(new.id).movie.is_file()
    os.utime(old.movie, (time.time() - 4000,) * 2)
    results.tidy()
    with pytest.raises(ValueError, match="an hour"):
        results.find(old.id)
    assert results.find(new.id) == new
    for seed in range(40):
        newest = results.save(movie_of(seed=seed))
    results.tidy()
    assert results.size() <= 10_000
    assert results.find(newest.id) == newest
    for name in (None, "", "..", "../../etc", f"{new.id}/..", "g" * 32):
        with pytest.raises(ValueError, match="make one first"):
            results.find(name)


# ---- deployment -------------------------------------------------------------------------------------------------


def test_the_card_says_what_a_space_needs():
    header = (ROOT / "space" / "README.md").read_text(encoding="utf-8").split("---")[1]
    card = dict(line.split(": ", 1) for line in header.strip().splitlines() if ": " in line)
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert card["sdk"] == "gradio"
    assert card["sdk_version"].strip('"') == pins["gradio"]
    assert (ROOT / "space" / card["app_file"]).is_file()
    assert len(card["short_description"].strip('"')) <= 60
    assert {"title", "emoji", "colorFrom", "colorTo", "python_version", "license"} <= set(card)
