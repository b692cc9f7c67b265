"""One pipeline on one device: a movie at a time, told step by step, ended early on request or when time is up."""

import base64
import io
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from PIL import Image

from diffusers_stale import LightField, StaleDiffusionPipeline, estimate_memory
from stale_space.settings import GIB, JOY, Limits, MovieRequest


DECODE_CHUNK = 16
"""Images that are decoded at once."""

POLL_SECONDS = 0.2
"""How often somebody who waits for the device looks whether he is still wanted."""

PULSE_SECONDS = 1.0
"""How long a visitor is left without a sign of life, in which he could not cancel."""

CONDITIONING = "known_conditioning"
"""Key of a UNet's configuration: whether it can go on from pictures that are known, and so from a video."""

DEFAULT_NEGATIVE = "default_negative_prompt"
"""Key of a pipeline's configuration: what training taught it to mean what captions are not."""


TOLD = (ValueError, TimeoutError, FloatingPointError)
"""Exceptions whose words are for visitors; others are faults of ours."""


class Cancelled(Exception):
    """Nobody waits for this movie any more."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """After a step: `step` of `steps`, seconds on the device, and the middle view as it will be, a PNG as data URL."""

    step: int
    steps: int
    seconds: float
    preview: str


class Studio:
    """Makes movies.

    Args:
        pipeline: on its device. It is used by one thread at a time.
        limits: of memory and time.
        on_device: a decorator for what needs the device, where one is lent for each call (ZeroGPU's `spaces.GPU`,
            which runs it in a process of its own: all that goes in and comes out is pickled there).
    """

    def __init__(
        self,
        pipeline: StaleDiffusionPipeline,
        limits: Limits,
        on_device: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    ) -> None:
        self.pipeline, self.limits = pipeline, limits
        self._lent = on_device(self._steps)
        pipeline.set_progress_bar_config(disable=True)
        self._device = threading.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether a movie is being made."""
        return self._device.locked()

    @property
    def takes_video(self) -> bool:
        """Whether an ordinary video can become a light field."""
        return bool(self.pipeline.unet.config.get(CONDITIONING, False))

    @property
    def knows_joy(self) -> bool:
        """Whether 😂 is one token of the tokenizer rather than something unknown."""
        ids = self.pipeline.tokenizer(JOY, add_special_tokens=False).input_ids
        return len(ids) == 1 and ids[0] != self.pipeline.tokenizer.unk_token_id

    @property
    def was_trained_with_joy(self) -> bool:
        """Whether the checkpoint says that it was."""
        return self.pipeline.config.get(DEFAULT_NEGATIVE) == JOY

    def check(self, request: MovieRequest) -> None:
        """Raises `ValueError` for a movie that would take more memory than the budget; allocates nothing."""
        pipeline = self.pipeline
        height, width = pipeline.default_size(None, None)
        factor = pipeline.vae_scale_factor
        grid = (request.view_rows, request.view_cols, request.frames)
        estimate = estimate_memory(
            pipeline.unet.config,
            pipeline.vae.config,
            (1, pipeline.unet.config.in_channels, *grid, height // factor, width // factor),
            guided=request.guidance > 1,
            decode_chunk_size=DECODE_CHUNK,
            tokens=pipeline.tokenizer.model_max_length,
            itemsize=pipeline.unet.dtype.itemsize,
        )
        need = max(estimate.peak(pipeline.device), estimate.pixels)
        if need > self.limits.memory:
            raise ValueError(
                f"This movie would need about {need / GIB:.1f} GiB of memory, {self.limits.memory / GIB:.1f} GiB are "
                "what one may take; ask for fewer views or frames."
            )

    def generate(
        self, request: MovieRequest, scheduler: SchedulerMixin | None = None, video: list[np.ndarray] | None = None
    ) -> Iterator[Progress | LightField | None]:
        """Yields a `Progress` after each step, the movie at the end, and None once a second while there is no news.

        Closing the iterator ends the run after its current step, or before the first one.

        Args:
            request: what to make.
            scheduler: in place of the pipeline's own.
            video: frames `(height, width, 3)` of bytes that become the middle view, for checkpoints that take them.

        Raises:
            ValueError: for a request that is too large.
            TimeoutError: where it takes longer than `limits.seconds`.
        """
        self.check(request)
        with closing(self._lent(request, scheduler, video)) as run:
            for news in run:
                if isinstance(news, Exception):
                    raise news
                yield news

    def _steps(
        self, request: MovieRequest, scheduler: SchedulerMixin | None, video: list[np.ndarray] | None
    ) -> Iterator[Progress | LightField | Exception | None]:
        """As `generate`, on the device; what visitors are to be told is yielded, since lenders hide what is raised."""
        told: queue.Queue[Progress | LightField | Exception] = queue.Queue()
        stop = threading.Event()

        def work() -> None:
            try:
                told.put(self._run(request, scheduler, video, told, stop))
            except Exception as error:  # handed over to the one who waits
                told.put(error)

        threading.Thread(target=work, daemon=True, name="studio").start()
        try:
            while True:
                try:
                    news = told.get(timeout=PULSE_SECONDS)
                except queue.Empty:
                    yield None
                    continue
                if isinstance(news, Exception) and not isinstance(news, TOLD):
                    raise news
                yield news
                if not isinstance(news, Progress):
                    return
        finally:
            stop.set()

    def _run(
        self,
        request: MovieRequest,
        scheduler: SchedulerMixin | None,
        video: list[np.ndarray] | None,
        told: "queue.Queue[Any]",
        stop: threading.Event,
    ) -> LightField:
        while not self._device.acquire(timeout=POLL_SECONDS):
            if stop.is_set():
                raise Cancelled
        try:
            start = time.monotonic()

            def after_step(
                pipeline: StaleDiffusionPipeline, index: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]
            ) -> dict[str, torch.Tensor]:
                seconds = time.monotonic() - start
                if stop.is_set():
                    raise Cancelled
                if seconds > self.limits.seconds:
                    raise TimeoutError(
                        f"This took longer than {self.limits.seconds:g} seconds, after {index + 1} of "
                        f"{pipeline.num_timesteps} steps; ask for fewer views, frames or steps."
                    )
                preview = data_url(self._preview(pipeline))
                told.put(Progress(step=index + 1, steps=pipeline.num_timesteps, seconds=seconds, preview=preview))
                return {}

            pipeline = self.pipeline if scheduler is None else self._with(scheduler)
            return pipeline(
                request.prompt,
                negative_prompt=JOY if request.joy else "",
                view_rows=request.view_rows,
                view_cols=request.view_cols,
                num_frames=request.frames,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                baseline=request.baseline,
                loop=request.loop,
                generator=torch.Generator("cpu").manual_seed(request.seed),
                decode_chunk_size=DECODE_CHUNK,
                callback_on_step_end=after_step,
                **({} if video is None else {"video": video}),
            ).light_fields[0]
        finally:
            self._device.release()

    def _with(self, scheduler: SchedulerMixin) -> StaleDiffusionPipeline:
        pipeline = StaleDiffusionPipeline(**{**self.pipeline.components, "scheduler": scheduler})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _preview(self, pipeline: StaleDiffusionPipeline) -> Image.Image:
        """The middle frame of the middle view, as the newest step predicts it."""
        rows, cols, frames = (slice(size // 2, size // 2 + 1) for size in pipeline.clean_latents.shape[2:5])
        pixels = pipeline.decode_latents(pipeline.clean_latents[:1, :, rows, cols, frames])[0]
        return middle_picture(LightField.from_float(pixels))


def middle_picture(movie: LightField) -> Image.Image:
    """The middle frame of the middle view."""
    frame = movie.middle_view[:, movie.num_frames // 2]
    return Image.fromarray(frame.movedim(0, -1).contiguous().numpy())


def data_url(picture: Image.Image) -> str:
    """`picture` as an address that holds it."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


RIVALS: dict[str, type[SchedulerMixin]] = {
    "DPM-Solver++ 2M": DPMSolverMultistepScheduler,
    "DDIM": DDIMScheduler,
    "Euler": EulerDiscreteScheduler,
    "UniPC": UniPCMultistepScheduler,
}
"""Schedulers of diffusers that take one evaluation a step, by their names."""


def rival(name: str, config: dict[str, Any]) -> SchedulerMixin:
    """The scheduler `name` for the process that `config` of another one describes."""
    # Timesteps from the very last one on (arXiv 2305.08891); without it, none of them begins with pure noise.
    own = {"timestep_spacing": "trailing", "clip_sample": False, "thresholding": False}
    known = RIVALS[name]._get_init_keys(RIVALS[name])
    kept = {key: value for key, value in dict(config).items() if key in known}
    return RIVALS[name].from_config({**kept, **{key: value for key, value in own.items() if key in known}})
