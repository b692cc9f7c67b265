"""What happens when something is asked for: handlers of events, without layout.

Every handler reads raw values again, whatever the page or the queue has checked before; what is wrong becomes a
`gr.Error` with the sentence that says so.
"""

import html
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gradio as gr

from diffusers_stale import DISPLAYS, PROJECTIONS, LightField, viewer_html, write_picture
from stale_space import look
from stale_space.generation import RIVALS, TOLD, Progress, Studio, middle_picture, rival
from stale_space.results import Result, Results
from stale_space.settings import (
    FIELDS,
    Choice,
    Field,
    Limits,
    MovieRequest,
    Whole,
    read_fields,
    read_query,
    read_request,
)
from stale_space.uploads import read_light_field, read_video


RECENT = 12
"""Movies of a visitor that stay in the gallery."""

LABELS = {
    "light-field": "Light field (.lf.safetensors)",
    "sway": "Movie, the camera sways (MP4)",
    "orbit": "Movie, the camera orbits (MP4)",
    "dolly": "Movie, the camera comes nearer (MP4)",
    "refocus": "Movie, refocused (MP4)",
    "all-in-focus": "Movie, all in focus (MP4)",
    "see-through": "Movie, seen through what is near (MP4)",
    "view": "Movie of the middle camera (MP4)",
    "quilt": "Quilt for Looking Glass (MP4)",
    "lenticular": "Lenticular print (MP4)",
    "sbs": "Side by side, full width (MP4)",
    "sbs-half": "Side by side, half width (MP4)",
    "tb": "Top and bottom, full height (MP4)",
    "tb-half": "Top and bottom, half height (MP4)",
    "anaglyph": "Anaglyph, red and cyan (MP4)",
    "anaglyph-grey": "Anaglyph, grey (MP4)",
    "wiggle": "Wiggle (GIF)",
    "depth": "Depth (MP4)",
    "views": "All views of one moment (PNG)",
    "time": "All frames of one view (PNG)",
    "epi": "Epipolar slices (PNG)",
    "xt": "Slices through time (PNG)",
    "mean": "Mean of all views (MP4)",
    "maximum": "Brightest moment of every pixel (PNG)",
}
"""What downloads are called; others by their own names."""

FORMATS = (
    "light-field",
    *sorted({**PROJECTIONS, **DISPLAYS}, key=lambda name: [*LABELS, name].index(name)),
)
"""Everything that a movie can be downloaded as."""

FORMAT = Choice(label="Format", names=FORMATS, default="light-field")

COMPARED: dict[str, Field] = {
    **{name: FIELDS[name] for name in ("prompt", "seed", "guidance")},
    "steps": Whole(label="Steps", default=5, least=1, most=50),
    "frames": Whole(label="Frames", default=4, least=1, most=16),
    "first": Choice(label="First rival", names=tuple(RIVALS), default="DPM-Solver++ 2M"),
    "second": Choice(label="Second rival", names=tuple(RIVALS), default="DDIM"),
}
"""What schedulers are compared with, in the order of the page."""

VIDEO_FIELDS: dict[str, Field] = {name: FIELDS[name] for name in ("prompt", "seed")}

MOST_WORK = 30_000_000
"""Pixels that may be computed for one download."""

STILLS = {"views", "time", "epi", "xt", "maximum"}
"""What is one picture."""

CAMERA_PATHS = {"sway", "orbit", "dolly"}
PATH_PICTURES = 96
"""Pictures of a camera that moves, at least."""

WORK = {"quilt": 48, "lenticular": 100, "depth": 400, "all-in-focus": 30, "see-through": 30, "dolly": 6, "sway": 3}
"""Pictures that are computed for one frame, or what takes as long, where there are more than one."""

Outputs = tuple[Any, ...]
SKIP = gr.skip()


class Desk:
    """Handlers of one page.

    Args:
        studio: makes movies.
        results: keeps them.
        limits: of what may be asked for.
        welcome: what is on the stage until there is an own movie.
    """

    def __init__(self, studio: Studio, results: Results, limits: Limits, welcome: LightField | None = None) -> None:
        self.studio, self.results, self.limits = studio, results, limits
        prompt = "" if welcome is None else str(welcome.provenance.get("prompt", ""))
        self.welcome = None if welcome is None else (prompt, viewer_html(welcome, prompt or None, embed=True))

    # ---- making a movie ----------------------------------------------------------------------------------------

    def problems_of_movie(self, *values: Any) -> list[dict[str, Any]]:
        """Validation of every input, before anything is queued; what follows the fields is not looked at."""
        raw = dict(zip(FIELDS, values, strict=False))
        problems = read_fields(raw).problems
        if not problems:
            try:
                self.studio.check(read_request(raw, self.limits))
            except ValueError as error:
                problems["frames"] = str(error)
        return verdicts(FIELDS, problems, len(values))

    def problems_on_page(self, *values: Any) -> list[dict[str, Any]]:
        """As `problems_of_movie`, said at the sentence as well: settings may be folded away."""
        checks = self.problems_of_movie(*values)
        said = " ".join(check["message"] for check in checks if not check["is_valid"])
        return [gr.validate(not said, said), *checks[1:]]

    def make_movie(self, *values: Any) -> Iterator[Outputs]:
        """Yields stage, video, slices, facts, id, what is below, recent results and their gallery."""
        *fields, recent = values
        with told():
            request = read_request(dict(zip(FIELDS, fields, strict=True)), self.limits)
            yield (look.waiting("Waiting for the first step …"), *(SKIP,) * 7)
            start = time.monotonic()
            movie = yield from watched(self.studio.generate(request), 7)
            result = self.results.save(movie)
            facts = facts_of(request, movie, time.monotonic() - start)
            yield from self._shown(result, movie, facts, recent, request.prompt)

    def _shown(
        self, result: Result, movie: LightField, facts: str, recent: list[dict[str, str]], caption: str
    ) -> Iterator[Outputs]:
        """First the viewer, and then what takes longer to make."""
        page = result.folder / "viewer.html"
        page.write_text(viewer_html(movie, caption or None, embed=True), encoding="utf-8")
        yield look.viewer(page), None, None, facts, result.id, gr.Column(visible=True), SKIP, SKIP
        middle_picture(movie).save(result.folder / "still.png")
        (result.folder / "facts.html").write_text(facts, encoding="utf-8")
        recent = [{"id": result.id, "caption": caption}, *(recent or [])][:RECENT]
        video, slices = self._file(result, "sway"), self._file(result, "epi")
        yield SKIP, video, slices, SKIP, SKIP, SKIP, recent, gr.Gallery(value=self._gallery(recent), visible=True)

    def show_again(self, recent: list[dict[str, str]], chosen: gr.SelectData) -> Outputs:
        """Stage, video, slices, facts, id and what is below, of the chosen result of the gallery."""
        with told():
            index = chosen.index
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(recent or []):
                raise ValueError("There is no such movie in the gallery; choose one that is there.")
            result = self.results.find(recent[index]["id"])
            facts = (result.folder / "facts.html").read_text(encoding="utf-8")
            stage = look.viewer(result.folder / "viewer.html")
            return stage, self._file(result, "sway"), self._file(result, "epi"), facts, result.id, SKIP

    def _gallery(self, recent: list[dict[str, str]]) -> list[tuple[str, str]]:
        pictures = [(self.results.root / "movies" / item["id"] / "still.png", item["caption"]) for item in recent]
        return [(str(path), caption) for path, caption in pictures if path.is_file()]

    def generate(
        self,
        prompt: str,
        seed: int,
        steps: int,
        guidance: float,
        view_rows: int,
        view_cols: int,
        frames: int,
        baseline: float,
        loop: bool,
        joy: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (how Gradio hands it in)
    ) -> Outputs:
        """Makes a light-field movie of a sentence.

        Args:
            prompt: a sentence of at most 300 characters about a barnyard, such as "a white cow grazes at dawn".
            seed: each number gives another movie, 0 to 2147483647.
            steps: denoising steps, 1 to 50; more take longer and look cleaner.
            guidance: how strictly to follow the sentence, 1 to 10; 1 is least and fastest.
            view_rows: cameras from top to bottom, 1 to 5.
            view_cols: cameras from left to right, 1 to 9.
            frames: moments in time, 1 to 24, of which 8 last a second.
            baseline: how far apart cameras stand, 0 to 3; 2 doubles the parallax.
            loop: whether the last frame leads to the first.
            joy: whether 😂 is the negative prompt.

        Returns:
            Paths of the movie (MP4), of the light field (.lf.safetensors) and of its epipolar slices (PNG), and its
            provenance.
        """
        values = (prompt, seed, steps, guidance, view_rows, view_cols, frames, baseline, loop, joy)
        with told():
            request = read_request(dict(zip(FIELDS, values, strict=True)), self.limits)
            for news in self.studio.generate(request):
                if isinstance(news, Progress):
                    progress((news.step, news.steps), unit="steps")
            result = self.results.save(news)
            return self._file(result, "sway"), str(result.movie), self._file(result, "epi"), news.provenance

    # ---- comparing schedulers ----------------------------------------------------------------------------------

    def problems_of_comparison(self, *values: Any) -> list[dict[str, Any]]:
        """As `problems_of_movie`, for `compare`."""
        return verdicts(
            COMPARED, read_fields(dict(zip(COMPARED, values, strict=False)), COMPARED).problems, len(values)
        )

    def compare(self, *values: Any) -> Iterator[Outputs]:
        """Yields the stage and three videos, of StaleScheduler and two others, from the same noise."""
        with told():
            chosen, problems = read_fields(dict(zip(COMPARED, values, strict=True)), COMPARED)
            if problems:
                raise ValueError(" ".join(problems.values()))
            rivals = [chosen.pop("first"), chosen.pop("second")]
            request = MovieRequest(**chosen, view_rows=1, view_cols=1)
            videos: list[Any] = [gr.Video(value=None, label=name) for name in ("StaleScheduler", *rivals)]
            yield (look.waiting("Waiting for the first step …"), *videos)
            for index, name in enumerate((None, *rivals)):
                scheduler = None if name is None else rival(name, self.studio.pipeline.scheduler.config)
                shown = [SKIP] * 3
                run = self.studio.generate(request, scheduler)
                result = self.results.save((yield from watched(run, 3, f"{name or 'StaleScheduler'}, ")))
                label = f"{name or 'StaleScheduler'}: {request.steps} steps"
                shown[index] = gr.Video(value=self._file(result, "sway"), label=label)
                yield (SKIP, *shown)
            yield (look.done("The same noise, the same number of steps, three schedulers."), *(SKIP,) * 3)

    # ---- files of visitors -------------------------------------------------------------------------------------

    def show_upload(self, path: str | None) -> Iterator[Outputs]:
        """Yields stage, video, slices, facts, id and what is below, of a light field that a visitor has uploaded."""
        with told():
            if path is None:
                raise ValueError("Choose a file first: a quilt, or a .lf.safetensors file.")
            movie = read_light_field(path, self.limits)
            sizes = f"{movie.view_rows} x {movie.view_cols} views, {counted(movie.num_frames, 'frame')}"
            facts = f"<p class='facts'>{sizes}, {movie.width} x {movie.height} pixels</p>"
            for shown in self._shown(self.results.save(movie), movie, facts, [], ""):
                yield shown[:6]

    def lift_video(self, path: str | None, *values: Any) -> Iterator[Outputs]:
        """Yields stage, video, slices, facts, id and what is below, of a light field around a visitor's video."""
        with told():
            if path is None or not self.studio.takes_video:
                raise ValueError("Choose a video first; not every checkpoint can go on from one.")
            chosen, problems = read_fields(dict(zip(VIDEO_FIELDS, values, strict=True)), VIDEO_FIELDS)
            if problems:
                raise ValueError(" ".join(problems.values()))
            frames = read_video(path, FIELDS["frames"].default, self.limits)
            request = MovieRequest(**chosen, frames=len(frames))
            start = time.monotonic()
            movie = yield from watched(self.studio.generate(request, video=frames), 5)
            facts = facts_of(request, movie, time.monotonic() - start)
            for shown in self._shown(self.results.save(movie), movie, facts, [], request.prompt):
                yield shown[:6]

    def convert(self, file: str | None, format: str) -> str:
        """Turns a light field into a projection, or into what a display takes.

        Args:
            file: a quilt whose name ends as in `_qs8x6a0.75.png`, or a `.lf.safetensors` file.
            format: what to make of it, such as "quilt", "anaglyph" or "light-field".

        Returns:
            Path of the file.
        """
        with told():
            if file is None:
                raise ValueError("Give a file: a quilt, or a .lf.safetensors file.")
            name = FORMAT.read(format)
            return self._file(self.results.save(read_light_field(file, self.limits)), name)

    # ---- downloads ---------------------------------------------------------------------------------------------

    def download(self, current: str | None, name: Any) -> str:
        """Path of the current movie in the format `name`."""
        with told():
            return self._file(self.results.find(current), FORMAT.read(name))

    def _file(self, result: Result, name: str) -> str:
        """The file of a result in the format `name`, made if it is not there yet."""
        if name == "light-field":
            return str(result.movie)
        there = sorted(result.folder.glob(f"{name}.*")) + sorted(result.folder.glob(f"{name}_*"))
        if there:
            return str(there[0])
        with LightField.open(result.movie) as file:
            _, cols, frames, height, width = (
                file.sizes[axis] for axis in ("view_rows", "view_cols", "frames", "height", "width")
            )
        if cols < 2 and name in DISPLAYS:
            raise ValueError(
                f"{LABELS.get(name, name)} needs at least 2 views across, this movie has 1; make one with more."
            )
        work = frames * height * width * WORK.get(name, 1)
        if name in CAMERA_PATHS:
            work = max(work, PATH_PICTURES * height * width)
        if work > MOST_WORK:
            raise ValueError(
                f"{LABELS.get(name, name)} of this movie is too much for this server; download the light field and "
                "use `stale-diffusion` for it."
            )
        suffix = ".png" if name in STILLS else ".gif" if name == "wiggle" else ".mp4"
        return str(write_picture(result.movie, name, result.folder / f"{name}{suffix}", force=True)[0])

    # ---- arriving ----------------------------------------------------------------------------------------------

    def arrive(self, request: gr.Request) -> list[Any]:
        """Values of all fields from a shared link, a warning for each that is wrong; and what is on the stage."""
        values, problems = read_query(dict(request.query_params))
        for problem in problems.values():
            gr.Warning(f"In the link: {html.escape(problem)}")
        return [*[values.get(name, SKIP) for name in FIELDS], self._welcome()]

    def _welcome(self) -> Any:
        """The stage with the movie that every visitor sees first, where there is one."""
        if self.welcome is None:
            return SKIP
        prompt, page = self.welcome
        file = self.results.keep(page, "welcome.html")
        return look.welcome(file, prompt)


def watched(
    run: Iterator[Progress | LightField | None], others: int, what: str = ""
) -> Generator[Outputs, None, LightField]:
    """The movie of `run`; until then yields the stage, and nothing for as many `others` outputs."""
    for news in run:
        if isinstance(news, LightField):
            return news
        yield (SKIP if news is None else look.progress(news, what), *(SKIP,) * others)
    raise RuntimeError("A run ended without a movie.")


def facts_of(request: MovieRequest, movie: LightField, seconds: float) -> str:
    """One line about a movie, as HTML."""
    parts = [
        f"{movie.view_rows} x {movie.view_cols} views",
        counted(movie.num_frames, "frame"),
        counted(request.steps, "step"),
        f"seed {request.seed}",
        f"{seconds:.0f} s",
    ]
    quote = f"<q>{html.escape(request.prompt)}</q> " if request.prompt else ""
    return f"<p class='facts'>{quote}<span>{', '.join(parts)}</span></p>"


def counted(number: int, thing: str) -> str:
    """1 frame, 2 frames."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def verdicts(fields: Mapping[str, Field], problems: Mapping[str, str], count: int) -> list[dict[str, Any]]:
    """`gr.validate` of each of `count` inputs, the first of which are `fields`."""
    own = [gr.validate(name not in problems, problems.get(name, "")) for name in fields]
    return [*own, *[gr.validate(True, "")] * (count - len(own))][:count]


@contextmanager
def told() -> Iterator[None]:
    """Lets sentences about what is wrong reach the visitor. Anything else is a fault of ours, and told in the log."""
    try:
        yield
    except TOLD as error:
        raise gr.Error(html.escape(str(error), quote=False), duration=12, print_exception=False) from error
