"""The page: layout, and which event calls which handler. Handlers are in `desk.py`, looks in `look.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from diffusers_stale import LightField
from stale_space import look
from stale_space.desk import COMPARED, FORMATS, LABELS, VIDEO_FIELDS, Desk
from stale_space.generation import Studio
from stale_space.results import Results
from stale_space.settings import FIELDS, JOY, Choice, Field, Limits, Number, Switch, Text, Whole
from stale_space.uploads import LIGHT_FIELDS, PICTURES, VIDEOS


EXAMPLES = (
    ("a golden horse walks to the left in front of a blue barn by day", 0),
    ("a brown cow walks to the right in front of a blue barn on a sunny day", 0),
    ("a white cow stands in front of a red barn by day", 0),
    ("a golden horse gallops to the left near a blue barn", 0),
)
"""Sentences, each with a seed that does it well."""

DEVICE = "device"
PICTURES_QUEUE = "pictures"
"""Queues: what needs the device, and what does not, one at a time each."""

INFOS = {"loop": "The last frame leads to the first. Takes longer."}
"""What needs more words than its label."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The components that show a movie."""

    stage: gr.HTML
    video: gr.Video
    slices: gr.Image
    facts: gr.HTML
    current: gr.State
    below: gr.Column
    """What is seen once there is a movie."""

    @property
    def outputs(self) -> list[Any]:
        """In the order in which handlers give values."""
        return [self.stage, self.video, self.slices, self.facts, self.current, self.below]


def build_page(studio: Studio, results: Results, limits: Limits, welcome: LightField | None = None) -> gr.Blocks:
    """The page and the API, ready to be launched.

    Args:
        studio: makes movies.
        results: keeps them; its root is Gradio's folder of temporary files.
        limits: of requests and of the queue.
        welcome: what is seen first; its provenance says of which sentence it was made.
    """
    desk = Desk(studio, results, limits, welcome)
    keep = int(limits.keep_seconds)
    with gr.Blocks(
        title="Stale Diffusion", analytics_enabled=False, delete_cache=(max(1, keep // 6), keep), fill_width=True
    ) as page:
        gr.HTML(look.TITLE, elem_id="title")
        with gr.Tabs():
            with gr.Tab("Create", id="create"):
                controls, stage = _create_tab(desk)
            with gr.Tab("Compare", id="compare"):
                _compare_tab(desk)
            with gr.Tab("Upload", id="upload"):
                _upload_tab(desk)
        page.load(
            desk.arrive, None, [*controls.values(), stage], api_visibility="private", show_progress="hidden"
        ).then(None, None, None, js=look.READ, api_visibility="private")
    page.queue(max_size=limits.queue, default_concurrency_limit=1)
    return page


# ---- tabs ------------------------------------------------------------------------------------------------------


def _create_tab(desk: Desk) -> tuple[dict[str, Any], gr.HTML]:
    """Returns the controls by the names of fields, and the stage."""
    with gr.Row(equal_height=False, elem_classes="columns"):
        with gr.Column(scale=4, min_width=300, elem_classes="controls"):
            prompt = gr.Textbox(
                label="A sentence about a barnyard",
                placeholder=EXAMPLES[0][0],
                lines=2,
                max_lines=4,
                max_length=FIELDS["prompt"].length,
                elem_id="prompt",
            )
            with gr.Row(elem_classes="actions"):
                make = gr.Button("Make the movie", variant="primary", scale=3, min_width=150, elem_id="make")
                cancel = gr.Button("Cancel", variant="secondary", scale=1, min_width=90, elem_id="cancel")
            examples = gr.Dataset(
                label="Sentences that come out well",
                components=[gr.Textbox(render=False), gr.Number(render=False)],
                samples=[list(example) for example in EXAMPLES],
                # Gradio cuts labels after 60 characters.
                sample_labels=[sentence.split(" by day")[0].split(" on a")[0] for sentence, _ in EXAMPLES],
                elem_id="examples",
            )
            controls = {"prompt": prompt, **_settings(desk)}
            _share(list(controls.values()))
        with gr.Column(scale=6, min_width=300):
            panel = _panel(desk, "movie", look.NO_MOVIE)
    with gr.Row(elem_classes="columns"), gr.Column():
        recent = gr.State([])
        gallery = gr.Gallery(
            label="Your recent movies",
            elem_id="gallery",
            columns=6,
            fit_columns=False,
            height="auto",
            visible=False,
            allow_preview=False,
            interactive=False,
            buttons=[],
            object_fit="cover",
        )

    fields = list(controls.values())
    made = gr.on(
        [make.click, prompt.submit],
        desk.make_movie,
        [*fields, recent],
        [*panel.outputs, recent, gallery],
        validator=desk.problems_on_page,
        preprocess=False,
        concurrency_id=DEVICE,
        trigger_mode="once",
        show_progress_on=[panel.stage],
        api_visibility="private",
    )
    _cancels(cancel, made, panel.stage, look.empty("Cancelled.", "Nothing was kept."))
    gallery.select(
        desk.show_again,
        [recent],
        panel.outputs,
        concurrency_id=PICTURES_QUEUE,
        show_progress="hidden",
        api_visibility="private",
    )
    examples.click(
        lambda sample: tuple(sample),
        [examples],
        [prompt, controls["seed"]],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    _api(desk, fields)
    return controls, panel.stage


def _settings(desk: Desk) -> dict[str, Any]:
    """All controls but the sentence, in the order of `FIELDS`."""
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        with gr.Row(elem_classes="pair beside"):
            seed = _control("seed", FIELDS["seed"], scale=3)
            dice = gr.Button("⚄ Another", size="md", scale=1, min_width=110, elem_id="dice")
        controls = {"seed": seed}
        for pair in (("steps", "guidance"), ("view_rows", "view_cols"), ("frames", "baseline")):
            with gr.Row(elem_classes="pair sliders"):
                controls |= {name: _control(name, FIELDS[name]) for name in pair}
        controls["loop"] = _control("loop", FIELDS["loop"])
        controls["joy"] = gr.Checkbox(
            label=f"Negative prompt {JOY}",
            value=desk.studio.was_trained_with_joy,
            info=joy_info(desk.studio),
            interactive=desk.studio.knows_joy,
            elem_id="joy",
        )
    dice.click(
        None,
        None,
        [seed],
        js=f"() => Math.floor(Math.random() * {FIELDS['seed'].most})",
        queue=False,
        api_visibility="private",
    )
    return controls


def joy_info(studio: Studio) -> str:
    """What can honestly be said of 😂."""
    if not studio.knows_joy:
        return "This checkpoint's tokenizer does not know it."
    if studio.was_trained_with_joy:
        return "Away from what training calls a mess: this checkpoint was trained with it."
    return "A joke for now: this checkpoint knows the word, but was not trained with it."


def _compare_tab(desk: Desk) -> None:
    gr.HTML(
        "<p class='lead'>The same noise and the same number of steps, by three schedulers. With few steps they differ "
        "most.</p>"
    )
    defaults = {"prompt": EXAMPLES[0][0]}
    with gr.Row(elem_classes="columns"), gr.Column():
        controls = {"prompt": _control("prompt", COMPARED["prompt"], defaults["prompt"], prefix="compare")}
        for row in (("seed", "guidance"), ("steps", "frames"), ("first", "second")):
            with gr.Row(elem_classes="pair"):
                controls |= {name: _control(name, COMPARED[name], prefix="compare") for name in row}
        with gr.Row(elem_classes="actions"):
            start = gr.Button("Compare", variant="primary", scale=3, elem_id="compare-start")
            cancel = gr.Button("Cancel", scale=1, min_width=90, elem_id="compare-cancel")
    stage = gr.HTML(elem_id="compare-stage", elem_classes="screen")
    with gr.Row(elem_classes="pair trio"):
        videos = [
            _video(label, f"compare-{index}")
            for index, label in enumerate(("StaleScheduler", "First rival", "Second rival"))
        ]
    compared = start.click(
        desk.compare,
        [controls[name] for name in COMPARED],
        [stage, *videos],
        validator=desk.problems_of_comparison,
        preprocess=False,
        concurrency_id=DEVICE,
        trigger_mode="once",
        show_progress_on=[stage],
        api_visibility="private",
    )
    _cancels(cancel, compared, stage, look.done("Cancelled."))


def _upload_tab(desk: Desk) -> None:
    gr.HTML(
        "<p class='lead'>A quilt, still or moving, named as in <code>barn_qs8x6a0.75.png</code>, or a "
        "<code>.lf.safetensors</code> file: look around in it, and take it away in other forms. Files are deleted "
        "after an hour.</p>"
    )
    with gr.Row(equal_height=False, elem_classes="columns"):
        with gr.Column(scale=4, min_width=300, elem_classes="controls"):
            file = gr.File(
                label="Quilt or light field",
                file_types=[*PICTURES, *VIDEOS, *LIGHT_FIELDS],
                height=150,
                elem_id="upload-file",
            )
            show = gr.Button("Show it", variant="primary", elem_id="upload-show")
            if desk.studio.takes_video:
                clip = gr.File(
                    label="Or a short video of your own", file_types=list(VIDEOS), height=150, elem_id="video-file"
                )
                about = {name: _control(name, field, prefix="video") for name, field in VIDEO_FIELDS.items()}
                with gr.Row(elem_classes="actions"):
                    lift = gr.Button("Make it a light field", scale=3, elem_id="video-lift")
                    cancel = gr.Button("Cancel", scale=1, min_width=90, elem_id="video-cancel")
        with gr.Column(scale=6, min_width=300):
            panel = _panel(desk, "upload", look.NO_UPLOAD)
    show.click(
        desk.show_upload,
        [file],
        panel.outputs,
        concurrency_id=PICTURES_QUEUE,
        trigger_mode="once",
        show_progress_on=[panel.stage],
        api_visibility="private",
    )
    if desk.studio.takes_video:
        lifted = lift.click(
            desk.lift_video,
            [clip, *about.values()],
            panel.outputs,
            concurrency_id=DEVICE,
            trigger_mode="once",
            show_progress_on=[panel.stage],
            api_visibility="private",
        )
        _cancels(cancel, lifted, panel.stage, look.empty("Cancelled.", "Nothing was kept."))


# ---- pieces ----------------------------------------------------------------------------------------------------


def _control(name: str, field: Field, value: Any = None, prefix: str = "", **layout: Any) -> Any:
    """The component for a field, with the limits that `field` enforces."""
    value = field.default if value is None else value
    common = {"label": field.label, "value": value, "elem_id": f"{prefix}-{name}" if prefix else name, **layout}
    info = INFOS.get(name)
    if isinstance(field, Text):
        return gr.Textbox(**{**common, "label": "A sentence about a barnyard"}, max_length=field.length)
    if isinstance(field, Switch):
        return gr.Checkbox(**common, info=info)
    if isinstance(field, Choice):
        return gr.Dropdown(**common, choices=list(field.names))
    if name == "seed":
        return gr.Number(**common, info=info, precision=0, minimum=field.least, maximum=field.most)
    assert_number: Mapping[str, Whole | Number] = {name: field}
    number = assert_number[name]
    return gr.Slider(
        **common, info=info, minimum=number.least, maximum=number.most, step=number.step, min_width=140, buttons=[]
    )


def _video(label: str, element_id: str) -> gr.Video:
    return gr.Video(
        label=label, elem_id=element_id, interactive=False, autoplay=True, loop=True, buttons=[], min_width=140
    )


def _cancels(button: gr.Button, event: Any, stage: gr.HTML, said: str) -> None:
    """Has `button` end `event`; what is `said` comes after that, so that no late step is shown instead."""
    button.click(None, None, None, cancels=[event], queue=False, api_visibility="private").then(
        lambda: said, None, [stage], queue=False, show_progress="hidden", api_visibility="private"
    )


def _panel(desk: Desk, prefix: str, empty: str) -> Panel:
    """`empty`: what is on the stage at first."""
    stage = gr.HTML(empty, js_on_load=look.SHOW_VIEWER, elem_id=f"{prefix}-stage", elem_classes="screen")
    with gr.Column(visible=False, elem_classes="below") as below:
        facts = gr.HTML(elem_id=f"{prefix}-facts")
        current = gr.State(None)
        with gr.Row(elem_classes="results"):
            with gr.Column(min_width=240):
                video = _video("Swaying camera", f"{prefix}-video")
            with gr.Column(min_width=240):
                slices = gr.Image(
                    label="Parallax slices",
                    elem_id=f"{prefix}-slices",
                    type="filepath",
                    format="png",
                    interactive=False,
                    buttons=[],
                )
                _downloads(desk, current, prefix)
    return Panel(stage=stage, video=video, slices=slices, facts=facts, current=current, below=below)


def _downloads(desk: Desk, current: gr.State, prefix: str) -> None:
    name = gr.Dropdown(
        label="Take it away as",
        choices=[(LABELS.get(name, name), name) for name in FORMATS],
        value=FORMATS[0],
        elem_id=f"{prefix}-format",
    )
    download = gr.Button("Download", size="md", elem_id=f"{prefix}-download")
    hidden = gr.DownloadButton("Download", visible="hidden", elem_id=f"{prefix}-file")
    download.click(
        desk.download,
        [current, name],
        [hidden],
        preprocess=False,
        concurrency_id=PICTURES_QUEUE,
        show_progress_on=[name],
        api_visibility="private",
    ).success(None, None, None, js=look.start_download(f"{prefix}-file"), api_visibility="private")


def _share(fields: list[Any]) -> None:
    share = gr.Button("Copy a link to these settings", size="md", elem_id="share")
    link = gr.Textbox(label="Link", visible="hidden", buttons=["copy"], interactive=False, elem_id="link")
    share.click(None, fields, [link], js=look.SHARE, queue=False, api_visibility="private").then(
        lambda: gr.Textbox(visible=True), None, [link], queue=False, show_progress="hidden", api_visibility="private"
    )


def _api(desk: Desk, fields: list[Any]) -> None:
    """Endpoints for programs, whose components nobody sees."""
    trigger = gr.Button(visible=False)
    movie = gr.File(label="Movie (MP4)", visible=False)
    light_field = gr.File(label="Light field (.lf.safetensors)", visible=False)
    slices = gr.File(label="Epipolar slices (PNG)", visible=False)
    provenance = gr.JSON(label="Provenance", visible=False)
    trigger.click(
        desk.generate,
        fields,
        [movie, light_field, slices, provenance],
        validator=desk.problems_of_movie,
        preprocess=False,
        concurrency_id=DEVICE,
        api_name="generate",
    )
    file = gr.File(label="Quilt or light field", visible=False)
    name = gr.Textbox(label="Format", value=FORMATS[0], visible=False)
    trigger.click(desk.convert, [file, name], [movie], concurrency_id=PICTURES_QUEUE, api_name="convert")
