"""The viewer, in a real browser: what it shows is what the functions in Python say, with and without WebGL2."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch
from browser import Visit
from typer.testing import CliRunner

from diffusers_stale.cli import app
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.light_field import CameraGrid, LightField
from diffusers_stale.light_field.displays import anaglyph
from diffusers_stale.light_field.interpolation import view_disparity
from diffusers_stale.light_field.refocus import refocus
from diffusers_stale.light_field.viewer import viewer_html, write_viewer


RENDERERS = {"webgl2": "?still", "canvas": "?still&canvas"}
SMALL = {"width": 360, "height": 560}
"""A window in which little has to be drawn: these browsers have no graphics hardware."""
SIZE = 32
DENSITY = 4


@pytest.fixture(scope="module")
def truth() -> LightField:
    """A barnyard from 9x9 cameras, a quarter as far apart as those of `movie`."""
    count = 2 * DENSITY + 1
    clip = render_scene(sample_scene(0, 0), count, count, 1, SIZE, SIZE, baseline=3.0, spacing=1 / DENSITY)
    grid = CameraGrid(view_rows=count, view_cols=count, spacing=1 / DENSITY)
    return LightField.from_float(clip.pixels, 8.0, grid, clip.disparity * DENSITY)


@pytest.fixture(scope="module")
def movie(truth: LightField) -> LightField:
    """3x3 cameras and 2 frames, the second with left and right exchanged in colour only: other pixels."""
    part = truth.select(view_rows=slice(0, None, DENSITY), view_cols=slice(0, None, DENSITY))
    pixels = torch.cat([part.pixels, part.pixels.flip(0)], dim=3)
    return LightField(pixels, 8.0, part.camera_grid, part.disparity.repeat(1, 1, 2, 1, 1), {"prompt": "a <b>barn</b>"})


@pytest.fixture(scope="module")
def opened(
    visit_any: Callable[..., Visit], movie: LightField, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Visit]:
    path = write_viewer(movie, tmp_path_factory.mktemp("viewer") / "viewer.html")
    return {name: visit_any(path, query=query, **SMALL) for name, query in RENDERERS.items()}


@pytest.fixture(params=RENDERERS)
def viewer(request: pytest.FixtureRequest, opened: dict[str, Visit]) -> Iterator[Visit]:
    """The movie's page, as it is when it was opened; whatever a test does, the page has nothing to complain of."""
    seen = opened[request.param]
    seen("staleViewer.ready")
    assert seen("staleViewer.renderer") == request.param
    seen("""(() => { const v = staleViewer; v.reset(); v.setFrame(0); v.setAnaglyph(false); v.setEpi(false);
        v.setWarp(true); v.setDensity(4); v.setBaseline(1); v.setLoop(true); v.setSpeed(1); })()""")
    yield seen
    assert (seen.errors, seen.strangers) == ([], [])


def picture(viewer: Visit, script: str = "", source: str = "pixels") -> torch.Tensor:
    """What the page shows after `script`, before it is enlarged; uint8, shape `(3, height, width)`."""
    got = viewer(f"() => {{ const v = staleViewer; {script}; return v.{source}(); }}")
    return torch.tensor(got["data"], dtype=torch.uint8).view(got["height"], got["width"], 4).movedim(-1, 0)[:3]


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return -10 * math.log10(max((one.float() - other.float()).square().mean().item() / 255**2, 1e-10))


def difference(one: torch.Tensor, other: torch.Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


def columns(disparity: int, view_rows: int = 1, view_cols: int = 3, size: int = 24) -> LightField:
    """A near white column on a far grey ramp; the column stands at 12 in the reference."""
    pixels = (torch.arange(size) * 3 + 40).to(torch.uint8).expand(3, view_rows, view_cols, 1, size, size).clone()
    depth = torch.zeros(view_rows, view_cols, 1, size, size)
    for col in range(view_cols):
        at = 12 - round(disparity * (col - (view_cols - 1) / 2))
        pixels[:, :, col, :, :, at - 1 : at + 2] = 255
        depth[:, col, :, :, at - 1 : at + 2] = disparity
    return LightField(pixels, disparity=depth)


def centre(shown: torch.Tensor) -> float:
    """Where the white column of `columns` stands."""
    white = (shown[1].float() - 130).clamp(min=0).sum(dim=0)
    return float((white * torch.arange(len(white))).sum() / white.sum())


def open_page(visit: Callable[..., Visit], folder: Path, light_field: LightField, **options: object) -> Visit:
    seen = visit(write_viewer(light_field, folder / "viewer.html", force=True), **SMALL | options)
    seen("staleViewer.ready")
    return seen


# What is shown


def test_at_a_camera_its_own_picture_is_shown(viewer: Visit, movie: LightField):
    for frame in range(movie.num_frames):
        for row in range(3):
            for col in range(3):
                shown = picture(viewer, f"v.setFrame({frame}); v.setHead({col - 1}, {row - 1})")
                assert difference(shown, movie.pixels[:, row, col, frame]) <= 1


def test_between_cameras_the_truth_is_shown_without_ghosts(viewer: Visit, truth: LightField):
    gains = []
    for x, y in [(-0.5, 0.0), (0.5, 0.5), (0.25, -0.75), (0.0, 0.5)]:
        true = truth.pixels[:, round((y + 1) * DENSITY), round((x + 1) * DENSITY), 0]
        warped = psnr(picture(viewer, f"v.setWarp(true); v.setHead({x}, {y})"), true)
        gains.append(warped - psnr(picture(viewer, "v.setWarp(false)"), true))
        assert warped > 32
    assert min(gains) > 1
    assert sum(gains) / len(gains) > 2


@pytest.mark.parametrize(("focus", "aperture"), [(0.0, 1.0), (1.7, 1.4), (-0.8, 0.7), (2.5, 0.3)])
def test_refocusing_the_cameras_is_that_of_python(viewer: Visit, movie: LightField, focus: float, aperture: float):
    aperture = min(aperture, 1.0)
    shown = picture(viewer, f"v.setDensity(1); v.setFocus({focus}); v.setAperture({aperture})")
    expected = refocus(movie.select(frames=0), focus, aperture)[:, 0]
    assert psnr(shown, expected) > 48
    assert difference(shown, expected) <= 3


@pytest.mark.parametrize(("focus", "gain"), [(2.0, 10), (-1.0, 4), (3.0, 10)])
def test_refocusing_between_the_cameras_is_that_of_many_cameras(
    viewer: Visit, truth: LightField, movie: LightField, focus: float, gain: float
):
    true = refocus(truth, focus / DENSITY, 1.0 * DENSITY)[:, 0]
    plain = refocus(movie.select(frames=0), focus, 1.0)[:, 0]
    shown = picture(viewer, f"v.setFocus({focus}); v.setAperture(1)")
    assert psnr(shown, true) > 40
    assert psnr(shown, true) > psnr(plain, true) + gain


def test_the_lens_opens_smoothly_about_the_head(viewer: Visit):
    sharp = picture(viewer, "v.setHead(0.4, 0.3)")
    pictures = [picture(viewer, f"v.setFocus(1); v.setAperture({step / 40})") for step in range(9)]
    assert difference(pictures[0], sharp) == 0
    assert all(psnr(one, other) > 28 for one, other in zip(pictures, pictures[1:], strict=False))


def test_the_anaglyph_is_that_of_python(viewer: Visit, movie: LightField):
    for focus in (0.0, 1.3):
        shown = picture(viewer, f"v.setAnaglyph(true); v.setBaseline(2); v.setFocus({focus})")
        expected = anaglyph(movie.select(frames=0), baseline=2.0, focus=focus)[:, 0]
        assert psnr(shown, expected) > 45


def test_the_epipolar_image_has_the_row_of_every_camera(viewer: Visit, movie: LightField):
    shown = picture(viewer, "v.setHead(0, 1); v.setEpi(true); v.setRow(20)", "epiPixels")
    assert shown.shape[1:] == (17, SIZE)
    for col in range(3):
        assert difference(shown[:, 8 * col], movie.pixels[:, 2, col, 0, 20]) <= 1
    assert viewer.page.locator("#epi").is_visible()
    assert viewer.page.locator("#epi").evaluate("sheet => [sheet.width, sheet.height]") == [SIZE, 17]


# What hands do


def test_dragging_right_moves_the_head_right_and_near_things_left(visit: Callable[..., Visit], tmp_path: Path):
    for query in RENDERERS.values():
        viewer, light_field = open_page(visit, tmp_path, columns(4, 3), query=query), columns(4, 3)
        assert centre(picture(viewer)) == pytest.approx(12.0, abs=0.05)
        box = viewer.page.locator("#picture").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        viewer.page.mouse.move(x, y)
        viewer.page.mouse.down()
        viewer.page.mouse.move(x + box["width"] / 4, y, steps=3)
        state = viewer("staleViewer.state")
        assert (state["x"], state["y"]) == (pytest.approx(0.5, abs=0.02), pytest.approx(0.0, abs=0.02))
        shown = picture(viewer)
        assert centre(shown) == pytest.approx(12 - 4 * state["x"], abs=0.3)
        assert shown[1, 8].max() > 230  # once, and not twice half as white
        far = light_field.pixels[:, 0, 0, 0, 0]
        assert difference(shown[:, 0, 18:], far[:, 18:]) <= 1  # what is far stays
        viewer.page.mouse.move(x + box["width"], y, steps=2)
        viewer.page.mouse.up()
        assert difference(picture(viewer), light_field.pixels[:, 1, 2, 0]) <= 1
        assert (viewer.errors, viewer.strangers) == ([], [])


def test_the_screen_shows_the_picture_enlarged(viewer: Visit, movie: LightField):
    """A whole pixel of the movie in the middle of its square on the screen, upright."""
    picture(viewer, "v.setHead(1, 1)")
    canvas = viewer.page.locator("#picture")
    canvas.scroll_into_view_if_needed()
    screen = torch.from_numpy(iio.imread(canvas.screenshot()))
    height, width, _ = screen.shape
    for row, col in ((8, 4), (20, 25), (28, 16), (16, 9)):
        shown = screen[int((row + 0.5) * height / SIZE), int((col + 0.5) * width / SIZE), :3]
        assert difference(shown, movie.pixels[:, 2, 2, 0, row, col]) <= 2


def test_keys_move_the_head_and_play(viewer: Visit):
    viewer.page.locator("#picture").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        viewer.page.keyboard.press(key)
    state = viewer("staleViewer.state")
    assert (state["x"], state["y"]) == (pytest.approx(0.2), pytest.approx(-0.1))
    viewer.page.keyboard.press("Space")
    assert viewer("staleViewer.state.playing")
    viewer.page.keyboard.press(".")
    state = viewer("staleViewer.state")
    assert not state["playing"]
    viewer.page.keyboard.press("Home")
    assert (viewer("staleViewer.state.x"), viewer("staleViewer.state.y")) == (0, 0)


def test_a_click_focuses_on_what_is_there(visit: Callable[..., Visit], tmp_path: Path):
    viewer = open_page(visit, tmp_path, columns(4, 3), query="?still")
    box = viewer.page.locator("#picture").bounding_box()
    viewer.page.mouse.click(box["x"] + box["width"] * 12.5 / 24, box["y"] + box["height"] / 3)
    state = viewer("staleViewer.state")
    assert state["focus"] == pytest.approx(4.0, abs=0.05)
    assert state["aperture"] > 0
    assert picture(viewer)[0, 8, 11:14].min() > 240  # sharp: as white as it was


def test_knobs_and_buttons_have_names_and_work(viewer: Visit):
    page = viewer.page
    page.get_by_role("slider", name="Focus").fill("1")
    page.get_by_role("slider", name="Aperture").fill("0.5")
    page.get_by_role("slider", name="Time").fill("1")
    page.get_by_role("button", name="Anaglyph").click()
    page.get_by_role("combobox", name="Speed").select_option("2")
    state = viewer("staleViewer.state")
    assert (state["focus"], state["aperture"], state["frame"], state["speed"]) == (1, 0.5, 1, 2)
    assert state["anaglyph"]
    assert page.get_by_role("button", name="Anaglyph").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Play").click()
    assert viewer("staleViewer.state.playing")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Reset").click()
    assert "a <b>barn</b>" in page.locator("#picture").get_attribute("aria-label")


def test_time_runs_and_ends_without_loop(viewer: Visit):
    viewer("(() => { staleViewer.setLoop(false); staleViewer.setSpeed(4); staleViewer.setPlaying(true); })()")
    viewer.wait_for("staleViewer.state.frame === 1 && !staleViewer.state.playing")


def test_what_is_no_number_is_refused(viewer: Visit):
    for call in ("setHead('left', 0)", "setFocus(NaN)", "setFrame(undefined)", "setAperture(null)"):
        assert (
            viewer(f"() => {{ try {{ staleViewer.{call} }} catch (error) {{ return error.name }} }}") == "RangeError"
        )
    picture(viewer, "v.setHead(99, -99)")
    assert (viewer("staleViewer.state.x"), viewer("staleViewer.state.y")) == (1, -1)


# Places and people


def test_a_phone_looks_around_by_touch_and_nothing_is_wider_than_it(
    visit: Callable[..., Visit], movie: LightField, tmp_path: Path
):
    viewer = open_page(visit, tmp_path, movie, width=320, height=640, touch=True, scheme="dark", query="?still")
    assert viewer("document.documentElement.scrollWidth") <= 320
    assert viewer.page.get_by_role("button", name="Tilt").is_visible()
    box = viewer.page.locator("#picture").bounding_box()
    touches = viewer.page.context.new_cdp_session(viewer.page)
    y = box["y"] + box["height"] / 2
    for kind, x in (("touchStart", 0.5), ("touchMove", 0.4), ("touchMove", 0.3)):
        points = [{"x": box["x"] + box["width"] * x, "y": y}]
        touches.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touches.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    viewer.wait_for("staleViewer.state.x < 0")
    assert viewer("staleViewer.state.x") == pytest.approx(-0.4, abs=0.25)
    viewer.page.get_by_role("button", name="Tilt").click()
    tilt = "new DeviceOrientationEvent('deviceorientation', {{ alpha: 0, beta: 40, gamma: {} }})"
    viewer(f"() => {{ dispatchEvent({tilt.format(0)}); dispatchEvent({tilt.format(9)}); }}")
    assert viewer("staleViewer.state.x") == pytest.approx(0.5)
    light = viewer("getComputedStyle(document.body).backgroundColor")
    viewer.page.emulate_media(color_scheme="light")
    assert viewer("getComputedStyle(document.body).backgroundColor") != light
    assert (viewer.errors, viewer.strangers) == ([], [])


def test_it_moves_by_itself_unless_people_want_rest(visit: Callable[..., Visit], movie: LightField, tmp_path: Path):
    for rest in (False, True):
        state = open_page(visit, tmp_path, movie, reduced_motion=rest)("staleViewer.state")
        assert (state["playing"], state["swaying"]) == (not rest, not rest)


def test_it_works_inside_another_page(visit: Callable[..., Visit], movie: LightField, tmp_path: Path):
    host = tmp_path / "host.html"
    host.write_text('<iframe id="frame" style="width: 500px; height: 500px"></iframe>')
    seen = visit(host)
    seen("page => { document.getElementById('frame').srcdoc = page; }", viewer_html(movie, "Barn", embed=True))
    seen.wait_for("!!document.getElementById('frame').contentWindow.staleViewer")
    inside = seen.page.frames[1]
    inside.evaluate("staleViewer.ready")
    assert inside.evaluate("staleViewer.pixels().width") == SIZE
    assert inside.locator("h1").is_hidden()
    assert (seen.errors, seen.strangers) == ([], [])


@pytest.mark.parametrize(("view_rows", "view_cols"), [(1, 1), (1, 2), (3, 1), (2, 4)])
def test_any_grid_can_be_viewed(visit: Callable[..., Visit], view_rows: int, view_cols: int, tmp_path: Path):
    light_field = columns(2, view_rows, view_cols)
    for query in RENDERERS.values():
        viewer = open_page(visit, tmp_path, light_field, query=query)
        shown = picture(viewer, "v.setPlaying(false); v.setHead(-9, -9)")
        assert difference(shown, light_field.pixels[:, 0, 0, 0]) <= 1
        picture(viewer, "v.setHead(0.3, 0.2); v.setAperture(1); v.setEpi(true); v.setAnaglyph(true)")
        viewer.page.wait_for_timeout(50)
        assert (viewer.errors, viewer.strangers) == ([], [])


def test_an_unknown_disparity_is_estimated(visit: Callable[..., Visit], truth: LightField, tmp_path: Path):
    known = truth.select(view_rows=slice(0, None, DENSITY), view_cols=slice(0, None, DENSITY))
    viewer = open_page(visit, tmp_path, LightField(known.pixels, 8.0, known.camera_grid), query="?still")
    true = truth.pixels[:, 6, 6, 0]
    warped = psnr(picture(viewer, "v.setHead(0.5, 0.5)"), true)
    assert warped > psnr(picture(viewer, "v.setWarp(false)"), true) + 2


def test_the_disparity_of_two_planes_is_found():
    generator = torch.Generator().manual_seed(0)
    far, near = (torch.rand(3, 40, 60, generator=generator) * 2 - 1 for _ in range(2))
    moment, true = torch.empty(3, 3, 3, 32, 40), torch.empty(3, 3, 32, 40)
    for row in range(3):
        for col in range(3):
            # A point at x in the middle stands at x - d * u here: d is -1 behind and 2 in front.
            down, right = row - 1, col - 1
            behind = far[:, 4 - down : 36 - down, 8 - right : 48 - right]
            front = near[:, 4 + 2 * down : 36 + 2 * down, 8 + 2 * right : 48 + 2 * right]
            inside = torch.zeros(32, 40, dtype=torch.bool)
            inside[8 - 2 * down : 24 - 2 * down, 12 - 2 * right : 28 - 2 * right] = True
            moment[:, row, col], true[row, col] = torch.where(inside, front, behind), torch.where(inside, 2.0, -1.0)
    found = view_disparity(moment, 3.0)
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    assert ((found - true).abs()[inner] <= 0.25).float().mean() > 0.9
    assert not view_disparity(moment[:, :1, :1], 3.0).any()


# The file


def test_the_page_is_whole_and_a_title_is_only_text(visit: Callable[..., Visit], tmp_path: Path):
    title = "</script><script>window.hacked = 1</script> & <!-- a barn"
    page = viewer_html(columns(1), title)
    assert "__" not in page.split('<script id="movie"')[0].replace("__proto__", "")
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    (path := tmp_path / "viewer.html").write_text(page, encoding="utf-8")
    viewer = visit(path)
    viewer("staleViewer.ready")
    assert viewer("[window.hacked ?? null, document.title, document.querySelector('h1').textContent]") == [
        None,
        title,
        title,
    ]
    assert (viewer.errors, viewer.strangers) == ([], [])


def test_a_file_is_written_once_and_whole(movie: LightField, tmp_path: Path):
    source = tmp_path / "movie.lf.safetensors"
    movie.save(source)
    target = tmp_path / "viewer.html"
    for kind in (movie, source, str(source)):
        target.unlink(missing_ok=True)
        assert write_viewer(kind, target) == target
        assert target.read_text(encoding="utf-8") == viewer_html(movie)
    with pytest.raises(FileExistsError, match="--force"):
        write_viewer(movie, target)
    write_viewer(columns(1), target, force=True)
    assert target.read_text(encoding="utf-8") == viewer_html(columns(1))
    with pytest.raises(ValueError, match=r"must be written to \.html"):
        write_viewer(movie, tmp_path / "viewer.mp4")
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_viewer(movie, tmp_path / "nowhere" / "viewer.html")
    with pytest.raises(FileNotFoundError, match="no light field"):
        write_viewer(tmp_path / "none.lf.safetensors", tmp_path / "other.html")
    assert {path.name for path in tmp_path.iterdir()} == {"movie.lf.safetensors", "viewer.html"}


def test_a_movie_too_large_for_a_page_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"32,000,000 pixels.*got 33,292,800.*frames=slice\(0, 1\)"):
        viewer_html(LightField(torch.zeros(1, dtype=torch.uint8).expand(3, 2, 2, 2, 2040, 2040)))
    with pytest.raises(ValueError, match=r"4096 pixels across.*got 3 views of 1400.*view_cols"):
        viewer_html(LightField(torch.zeros(1, dtype=torch.uint8).expand(3, 1, 3, 1, 8, 1400)))


def test_the_command_writes_a_viewer(movie: LightField, tmp_path: Path):
    movie.save(tmp_path / "movie.lf.safetensors")
    target = tmp_path / "page.html"
    arguments = ["view", str(tmp_path), "--output", str(target)]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout.strip()) == (0, f"Wrote {target}")
    assert target.read_text(encoding="utf-8") == viewer_html(movie)
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "there already" in again.stderr
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
