"""The Space's page in a real headless Chromium: what a visitor does, from the sentence to the download.

Screenshots go to `tests/screenshots/`, which git ignores, to be looked at.
"""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from browser import Visit
from PIL import Image
from playwright.sync_api import Frame, Page, expect
from space_server import Served, served

from diffusers_stale import LightField, StaleDiffusionPipeline, checkpoint_path
from stale_space.settings import FIELDS


SHOTS = Path(__file__).parent / "screenshots"
SMALL = "?steps=2&view_rows=1&view_cols=3&frames=2&guidance=1"
WAIT = 120_000
"""Milliseconds; a busy machine may be slow, and nothing waits longer than it must."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def space(
    make_pipeline: Callable[[], StaleDiffusionPipeline], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    SHOTS.mkdir(exist_ok=True)
    with served(make_pipeline(), tmp_path_factory.mktemp("space")) as running:
        yield running


@pytest.fixture(scope="module")
def barnyard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With the checkpoint that ships."""
    SHOTS.mkdir(exist_ok=True)
    pipeline = StaleDiffusionPipeline.from_pretrained(checkpoint_path())
    with served(pipeline, tmp_path_factory.mktemp("barnyard")) as running:
        yield running


def opened(visit: Callable[..., Visit], address: str, **window: object) -> Visit:
    """The page, after it has read its link."""
    seen = visit(address, **window)
    seen.page.set_default_timeout(WAIT)
    expect.set_options(timeout=WAIT)
    expect(seen.page.locator("body")).to_have_attribute("data-link", "read")
    return seen


def make(page: Page, sentence: str = "a cow") -> Frame:
    """Types a sentence, asks for the movie, and returns the viewer's frame once it draws."""
    page.locator("#prompt textarea").fill(sentence)
    page.get_by_role("button", name="Make the movie").click()
    return viewer_of(page, "movie")


def viewer_of(page: Page, panel: str) -> Frame:
    element = page.locator(f"#{panel}-stage iframe[srcdoc]").element_handle(timeout=WAIT)
    frame = element.content_frame()
    frame.wait_for_function("() => window.staleViewer", timeout=WAIT)
    frame.evaluate("() => window.staleViewer.ready")
    return frame


def picture(frame: Frame) -> np.ndarray:
    """What the viewer draws, `(height, width, 4)`."""
    drawn = frame.evaluate(
        "() => { const {width, height, data} = staleViewer.pixels(); return {width, height, data: [...data]}; }"
    )
    return np.array(drawn["data"], dtype=np.uint8).reshape(drawn["height"], drawn["width"], 4)


def test_a_sentence_becomes_a_movie_to_look_around_in(barnyard: Served, visit: Callable[..., Visit], tmp_path: Path):
    link = "?steps=4&view_rows=1&view_cols=3&frames=3&seed=1"
    seen = opened(visit, barnyard.address + link, width=1280, height=1100)
    page = seen.page
    page.locator("#prompt textarea").fill("a golden horse gallops to the left near a blue barn")
    page.get_by_role("button", name="Make the movie").click()
    preview = page.locator("#movie-stage img")
    expect(preview).to_be_visible()
    assert preview.evaluate("image => image.naturalWidth") == 64
    expect(page.locator("#movie-stage progress")).to_have_attribute("max", "4")

    frame = viewer_of(page, "movie")
    frame.evaluate("() => { staleViewer.setPlaying(false); staleViewer.setFrame(0); }")
    before = picture(frame)
    assert before.shape == (64, 64, 4)
    canvas = frame.locator("#picture").bounding_box()
    x, y = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - canvas["width"] / 3, y, steps=5)
    page.mouse.up()
    page.wait_for_timeout(300)
    assert np.abs(picture(frame).astype(int) - before).mean() > 0.5

    video = page.locator("#movie-video video")
    expect(video).to_be_visible()
    page.wait_for_function("() => document.querySelector('#movie-video video').readyState === 4", timeout=WAIT)
    # (The first frames of a video are decoded some time after it is said to be ready.)
    sums = frames_over_time(page, "#movie-video video")
    assert len(set(sums)) > 1
    assert video.evaluate("video => [video.videoWidth, video.videoHeight]") == [512, 512]

    expect(page.locator("#movie-facts")).to_contain_text("1 x 3 views, 3 frames, 4 steps, seed 1")
    expect(page.locator("#gallery img")).to_be_visible()
    page.screenshot(path=SHOTS / "movie_desktop_light.png")

    own = download(page, "light-field", tmp_path)
    movie = LightField.load(own)
    pipeline = barnyard.studio.pipeline
    expected = pipeline(
        "a golden horse gallops to the left near a blue barn",
        view_rows=1,
        view_cols=3,
        num_frames=3,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(1),
    ).light_fields[0]
    assert torch.equal(movie.pixels, expected.pixels)
    assert (seen.errors, seen.strangers) == ([], [])


def frames_over_time(page: Page, selector: str) -> list[int]:
    """Sums of the pixels that a video shows at six moments."""
    return page.evaluate(
        """async (selector) => {
            const video = document.querySelector(selector), canvas = document.createElement('canvas');
            canvas.width = canvas.height = 64;
            const context = canvas.getContext('2d', {willReadFrequently: true}), sums = [];
            for (let index = 0; index < 6; index++) {
                await new Promise((done) => setTimeout(done, 350));
                context.drawImage(video, 0, 0, 64, 64);
                sums.push(context.getImageData(0, 0, 64, 64).data.reduce((sum, value) => sum + value, 0));
            }
            return sums;
        }""",
        selector,
    )


def download(page: Page, name: str, folder: Path, panel: str = "movie") -> Path:
    """Chooses a format by its name, presses the button, and keeps the file."""
    page.locator(f"#{panel}-format input").click()
    page.locator(f'ul[role="listbox"] [data-value="{name}"], ul[role="listbox"] li').filter(
        has_text=label_of(name)
    ).first.click()
    with page.expect_download(timeout=WAIT) as started:
        page.locator(f"#{panel}-download").click()
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


def label_of(name: str) -> re.Pattern[str]:
    from stale_space.desk import LABELS

    return re.compile("^[^A-Za-z]*" + re.escape(LABELS[name]))


def test_every_download_can_be_decoded(space: Served, visit: Callable[..., Visit], tmp_path: Path):
    seen = opened(visit, space.address + SMALL)
    make(seen.page)
    expect(seen.page.locator("#movie-video video")).to_be_visible()
    shapes = {
        "quilt": r"_qs8x6a1\.mp4$",
        "sbs": r"_LR\.mp4$",
        "anaglyph": r"\.mp4$",
        "sway": r"\.mp4$",
        "epi": r"\.png$",
    }
    for name, ending in shapes.items():
        path = download(seen.page, name, tmp_path)
        assert re.search(ending, path.name), path.name
        first = imageio.imread(path, **({} if path.suffix == ".png" else {"plugin": "FFMPEG", "index": 0}))
        assert first.std() > 1
        if name == "sbs":
            assert first.shape[1] == 2 * first.shape[0]
    movie = LightField.load(download(seen.page, "light-field", tmp_path))
    assert movie.shape == (3, 1, 3, 2, 8, 8)
    assert (seen.errors, seen.strangers) == ([], [])


def test_cancel_ends_the_run(space: Served, visit: Callable[..., Visit]):
    seen = opened(visit, f"{space.address}?steps=50&view_rows=5&view_cols=5&frames=8")
    page = seen.page
    page.locator("#prompt textarea").fill("a cow")
    expect(page.locator("#cancel")).to_be_hidden()
    page.get_by_role("button", name="Make the movie").click()
    expect(page.locator("#movie-stage progress")).to_be_visible()
    page.locator("#cancel").click()
    expect(page.locator("#movie-stage")).to_contain_text("Cancelled")
    for _ in range(200):
        if not space.studio.is_busy:
            break
        page.wait_for_timeout(100)
    assert not space.studio.is_busy
    expect(page.locator("#movie-stage")).to_contain_text("Cancelled")
    expect(page.locator("#cancel")).to_be_hidden()
    make(page)
    assert seen.errors == []


def test_a_visitor_who_leaves_ends_the_run(space: Served, visit: Callable[..., Visit]):
    seen = opened(visit, f"{space.address}?steps=50&view_rows=5&view_cols=5&frames=8")
    seen.page.locator("#make").click()
    expect(seen.page.locator("#movie-stage progress")).to_be_visible()
    other = opened(visit, space.address + SMALL)
    seen.page.close()
    make(other.page)


def test_links_bring_settings_back(space: Served, visit: Callable[..., Visit]):
    seen = opened(visit, f"{space.address}{SMALL}&seed=77&loop=1&prompt=a%20cow%20%26%20%3Cb%3Epig")
    page = seen.page
    expect(page.locator("#prompt textarea")).to_have_value("a cow & <b>pig")
    page.get_by_text("Settings", exact=True).click()
    expect(page.locator("#seed input")).to_have_value("77")
    expect(page.locator("#loop input")).to_be_checked()
    page.locator("#dice").click()
    expect(page.locator("#seed input")).not_to_have_value("77")
    page.locator("#share").click()
    expect(page.locator("#link textarea, #link input")).to_have_value(re.compile("prompt=a\\+cow.*frames=2"))
    link = page.locator("#link textarea, #link input").input_value()
    seed = page.locator("#seed input").input_value()
    again = opened(visit, link)
    again.page.get_by_text("Settings", exact=True).click()
    expect(again.page.locator("#seed input")).to_have_value(seed)
    expect(again.page.locator("#prompt textarea")).to_have_value("a cow & <b>pig")
    assert seen.errors == again.errors == []


def test_what_is_wrong_is_said_on_the_page(space: Served, visit: Callable[..., Visit]):
    seen = opened(visit, f"{space.address}?steps=1000&frames=24&view_rows=5&view_cols=9")
    page = seen.page
    expect(page.get_by_text("Steps must be a whole number from 1 to 50").first).to_be_visible()
    # Seen although the settings are folded away.
    page.get_by_role("button", name="Make the movie").click()
    expect(page.locator("#prompt")).to_contain_text("Views times frames must be at most 512")
    assert not space.studio.is_busy


def test_visitors_arrive_at_a_movie_to_look_around_in(
    make_pipeline: Callable[[], StaleDiffusionPipeline], visit: Callable[..., Visit], tmp_path: Path
):
    views = torch.randint(0, 256, (3, 1, 3, 2, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    first = LightField(views, provenance={"prompt": "a <b>cow"})
    with served(make_pipeline(), tmp_path, welcome=first) as space:
        seen = opened(visit, space.address + SMALL, width=390, height=844, touch=True)
        page = seen.page
        frame = viewer_of(page, "movie")
        frame.evaluate("() => { staleViewer.setFrame(0); staleViewer.setHead(-1, 0); }")
        assert np.array_equal(picture(frame)[..., :3], views[:, 0, 0, 0].movedim(0, -1).numpy())
        expect(page.locator("#movie-stage .caption")).to_contain_text("a <b>cow")
        expect(page.locator("#movie-video")).to_be_hidden()
        # On a phone the stage comes before what can be set.
        assert page.locator("#movie-stage").bounding_box()["y"] < page.locator("#settings").bounding_box()["y"]
        # It is written again when it has been deleted.
        (space.results.root / "welcome.html").unlink()
        viewer_of(opened(visit, space.address).page, "movie")
        assert (seen.errors, seen.strangers) == ([], [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width", "height"), [("phone", 390, 844), ("desktop", 1280, 900)])
def test_it_fits_every_screen(
    space: Served, visit: Callable[..., Visit], name: str, width: int, height: int, scheme: str
):
    phone = name == "phone"
    seen = opened(visit, space.address + SMALL, width=width, height=height, scheme=scheme, touch=phone)
    page = seen.page
    assert page.evaluate("() => document.body.classList.contains('dark')") == (scheme == "dark")
    page.screenshot(path=SHOTS / f"empty_{name}_{scheme}.png")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    if scheme == "dark" and phone:
        make(page, "a cow")
        expect(page.locator("#movie-video video")).to_be_visible()
        page.wait_for_timeout(500)
        page.screenshot(path=SHOTS / f"movie_{name}_{scheme}.png")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert (seen.errors, seen.strangers) == ([], [])


CONTRAST = """
() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([...color]) => color.slice(0, 3).map((value) => value / 255).map((value) =>
        value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4
    ).reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = rgba(getComputedStyle(at).backgroundColor);
            if (color[3] > 250) return color;
        }
        return rgba('white');
    };
    const poor = [];
    for (const element of document.querySelectorAll('.gradio-container *')) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !element.checkVisibility() || element.closest('footer')) continue;
        const pair = [light(rgba(getComputedStyle(element).color)), light(ground(element))].sort((a, b) => b - a);
        const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
        if (contrast < 4.5) poor.push([element.innerText.slice(0, 40), Math.round(10 * contrast) / 10]);
    }
    return poor;
}
"""
"""Texts whose contrast with what they stand on is below 4.5 (WCAG 2.1, 1.4.3)."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(
    make_pipeline: Callable[[], StaleDiffusionPipeline], visit: Callable[..., Visit], tmp_path: Path, scheme: str
):
    pipeline = make_pipeline()
    pipeline.unet.register_forward_pre_hook(lambda *_: time.sleep(0.2))
    with served(pipeline, tmp_path) as space:
        seen = opened(visit, space.address + SMALL.replace("steps=2", "steps=40"), scheme=scheme)
        page = seen.page
        page.get_by_text("Settings", exact=True).click()
        page.locator("#make").click()
        expect(page.locator("#movie-stage progress")).to_be_visible()
        expect(page.locator("#movie-stage [role=status]")).to_contain_text("of 40")
        assert page.evaluate(CONTRAST) == []
        page.locator("#cancel").click()
        expect(page.locator("#movie-stage")).to_contain_text("Cancelled")


def test_keys_and_names_for_everything(space: Served, visit: Callable[..., Visit]):
    seen = opened(visit, space.address + SMALL)
    page = seen.page
    page.get_by_text("Settings", exact=True).click()
    for field in FIELDS.values():
        if field.label not in ("The sentence",):
            expect(page.get_by_label(field.label, exact=False).first).to_be_visible()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, iframe, img')].filter((element) =>
            element.checkVisibility() && !element.innerText && !element.labels?.length && !element.title
            && !element.alt && !element.ariaLabel && !element.getAttribute('aria-labelledby')
        ).map((element) => element.outerHTML)"""
    )
    assert unnamed == []
    page.locator("#prompt textarea").focus()
    page.keyboard.type("a cow")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.innerText") == "Make the movie"
    page.keyboard.press("Enter")
    viewer_of(page, "movie")


def test_an_own_video_becomes_a_light_field(
    make_components: Callable[[], dict],
    make_unet: Callable[..., torch.nn.Module],
    visit: Callable[..., Visit],
    tmp_path: Path,
):
    pipeline = StaleDiffusionPipeline(**make_components() | {"unet": make_unet(known_conditioning=True)})
    clip = np.linspace(0, 255, 4, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3)
    imageio.imwrite(tmp_path / "own.mp4", clip, plugin="FFMPEG", fps=8)
    with served(pipeline, tmp_path / "served") as space:
        seen = opened(visit, space.address)
        page = seen.page
        page.get_by_role("tab", name="Upload").click()
        page.locator("#video-file input[type=file]").set_input_files(tmp_path / "own.mp4")
        expect(page.locator("#video-file")).to_contain_text("own")
        page.locator("#video-lift").click()
        viewer_of(page, "upload")
        expect(page.locator("#upload-facts")).to_contain_text("3 x 3 views, 4 frames")
        (made,) = space.results.root.rglob("movie.lf.safetensors")
        movie = LightField.load(made)
        assert movie.provenance["pictures_given"] == 4
        assert (set(seen.errors) - {"Method not implemented."}, seen.strangers) == (set(), [])


def test_schedulers_are_compared(space: Served, visit: Callable[..., Visit]):
    seen = opened(visit, space.address)
    page = seen.page
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-steps input[type=number]").fill("2")
    page.locator("#compare-frames input[type=number]").fill("2")
    page.locator("#compare-start").click()
    for index in range(3):
        expect(page.locator(f"#compare-{index} video")).to_be_visible()
    expect(page.locator("#compare-0")).to_contain_text("StaleScheduler: 2 steps")
    expect(page.locator("#compare-2")).to_contain_text("DDIM: 2 steps")
    assert (seen.errors, seen.strangers) == ([], [])


def test_an_own_quilt_is_shown(space: Served, visit: Callable[..., Visit], tmp_path: Path):
    views = torch.randint(0, 256, (4, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = tmp_path / "own_qs4x1a1.png"
    Image.fromarray(torch.cat(list(views), dim=1).numpy()).save(path)
    seen = opened(visit, space.address)
    page = seen.page
    page.get_by_role("tab", name="Upload").click()
    page.locator("#upload-file input[type=file]").set_input_files(path)
    expect(page.locator("#upload-file")).to_contain_text("qs4x1a1")
    page.locator("#upload-show").click()
    frame = viewer_of(page, "upload")
    frame.evaluate("() => { staleViewer.setPlaying(false); staleViewer.setHead(-1.5, 0); }")
    assert np.array_equal(picture(frame)[..., :3], views[0].numpy())
    expect(page.locator("#upload-facts")).to_contain_text("1 x 4 views, 1 frame, 16 x 16 pixels")
    # Gradio's own, whenever the stream of an upload's progress is closed.
    assert (set(seen.errors) - {"Method not implemented."}, seen.strangers) == (set(), [])
