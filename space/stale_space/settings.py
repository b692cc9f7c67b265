"""What may be asked for: every field of a request with its limits, read from whatever a client sends.

The page states the same limits, but Gradio's server does not enforce what its components promise (a text box's length,
a slider's step, that a number is one), so everything is read again here, from raw JSON values, before it is queued.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


GIB = 2**30
MIB = 2**20

JOY = "😂"
"""The negative prompt that the page can switch on."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one visitor may take of the machine.

    `images`: views times frames of a movie. `memory`: bytes of one generation by `estimate_memory`. `seconds`: of one
    generation on the device. `queue`: requests that may wait. `upload_bytes`, `upload_pixels`: of an
    uploaded file and of its picture. `movie_pixels`, `view_size`: of all views and frames of an uploaded movie, and of
    the longer side of one view. `disk_bytes`, `keep_seconds`: of
    everything that is kept. `body_bytes`: of a request that is no upload.
    """

    images: int = 512
    memory: int = 4 * GIB
    seconds: float = 300.0
    queue: int = 24
    upload_bytes: int = 32 * MIB
    upload_pixels: int = 24_000_000
    movie_pixels: int = 8_000_000
    view_size: int = 256
    disk_bytes: int = 2 * GIB
    keep_seconds: float = 3600.0
    body_bytes: int = 64 * 1024


def quoted(value: Any) -> str:
    """`value` for a message: printable ASCII, and short."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text of at most `length` characters."""

    label: str
    default: str = ""
    length: int = 300

    def read(self, raw: Any) -> str:
        if not isinstance(raw, str):
            raise ValueError(f"{self.label} must be a text, got {quoted(raw)}; type a sentence.")
        if len(raw) > self.length:
            raise ValueError(
                f"{self.label} must have at most {self.length} characters, got {len(raw)}; say it in fewer words."
            )
        strange = next((sign for sign in raw if _is_strange(sign)), None)
        if strange is not None:
            raise ValueError(
                f"{self.label} must be plain text, got the character {quoted(strange)}; leave it out and try again."
            )
        return " ".join(raw.split())


def _is_strange(sign: str) -> bool:
    """Whether `sign` is a control character or half of a surrogate pair: neither can be shown or encoded."""
    code = ord(sign)
    return (code < 32 and sign not in "\t\n\r") or code == 127 or 0xD800 <= code <= 0xDFFF


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A whole number from `least` to `most`; 3.0 is one."""

    label: str
    default: int
    least: int
    most: int

    step = 1

    def read(self, raw: Any) -> int:
        wanted = f"{self.label} must be a whole number from {self.least} to {self.most}"
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not self.least <= raw <= self.most:
            raise ValueError(f"{wanted}, got {quoted(raw)}; choose one of them.")
        if raw != int(raw):
            raise ValueError(f"{wanted}, got {quoted(raw)}; round it.")
        return int(raw)


@dataclass(frozen=True, kw_only=True)
class Number:
    """A finite number from `least` to `most`; `step` is the slider's."""

    label: str
    default: float
    least: float
    most: float
    step: float

    def read(self, raw: Any) -> float:
        is_number = isinstance(raw, int | float) and not isinstance(raw, bool)
        if not is_number or not self.least <= raw <= self.most or not math.isfinite(raw):
            raise ValueError(
                f"{self.label} must be a number from {self.least:g} to {self.most:g}, got {quoted(raw)}; choose one "
                "between them."
            )
        return float(raw)


@dataclass(frozen=True, kw_only=True)
class Switch:
    """On or off."""

    label: str
    default: bool = False

    def read(self, raw: Any) -> bool:
        if not isinstance(raw, bool):
            raise ValueError(f"{self.label} must be true or false, got {quoted(raw)}; switch it on or off.")
        return raw


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several names."""

    label: str
    names: tuple[str, ...]
    default: str

    def read(self, raw: Any) -> str:
        if not isinstance(raw, str) or raw not in self.names:
            raise ValueError(f"{self.label} must be one of {', '.join(self.names)}, got {quoted(raw)}; choose one.")
        return raw


Field = Text | Whole | Number | Switch | Choice

FIELDS: dict[str, Field] = {
    "prompt": Text(label="The sentence", default=""),
    "seed": Whole(label="Seed", default=0, least=0, most=2**31 - 1),
    "steps": Whole(label="Steps", default=20, least=1, most=50),
    "guidance": Number(label="Guidance", default=3.0, least=1.0, most=10.0, step=0.5),
    "view_rows": Whole(label="Views down", default=3, least=1, most=5),
    "view_cols": Whole(label="Views across", default=3, least=1, most=9),
    "frames": Whole(label="Frames", default=8, least=1, most=24),
    "baseline": Number(label="Baseline", default=1.0, least=0.0, most=3.0, step=0.25),
    "loop": Switch(label="Loop"),
    "joy": Switch(label=f"Negative prompt {JOY}"),
}
"""What a movie can be asked for with, in the order of the page and of the API."""


@dataclass(frozen=True, kw_only=True)
class MovieRequest:
    """A movie that may be made. The names are those of `FIELDS`."""

    prompt: str = ""
    seed: int = 0
    steps: int = 20
    guidance: float = 3.0
    view_rows: int = 3
    view_cols: int = 3
    frames: int = 8
    baseline: float = 1.0
    loop: bool = False
    joy: bool = False

    @property
    def images(self) -> int:
        return self.view_rows * self.view_cols * self.frames


LEAST_LENT, MOST_LENT = 15.0, 120.0
"""Seconds for which a device is lent: for its first step, and what visitors without an account have in a day."""

IMAGES_A_SECOND = 500.0
"""Evaluations of one image a second on a lent device, guessed low: what takes longer is ended by the lender."""


def lent_seconds(request: MovieRequest, *_: Any) -> int:
    """How long a device must be lent for `request`; ZeroGPU refuses visitors who have less left for today."""
    evaluations = request.images * request.steps * (2 if request.guidance > 1 else 1) * (2 if request.loop else 1)
    return round(min(MOST_LENT, LEAST_LENT + evaluations / IMAGES_A_SECOND))


class Reading(NamedTuple):
    """Values that could be read, and what is wrong with the others, both by the names of fields."""

    values: dict[str, Any]
    problems: dict[str, str]


def read_fields(raw: Mapping[str, Any], fields: Mapping[str, Field] = FIELDS) -> Reading:
    """Reads each of `fields` that `raw` has."""
    reading = Reading({}, {})
    for name in fields:
        if name in raw:
            try:
                reading.values[name] = fields[name].read(raw[name])
            except ValueError as error:
                reading.problems[name] = str(error)
    return reading


def read_request(raw: Mapping[str, Any], limits: Limits) -> MovieRequest:
    """The request that `raw` holds; fields that are left out have their defaults.

    Raises `ValueError` with every problem there is.
    """
    values, problems = read_fields(raw)
    if problems:
        raise ValueError(" ".join(problems.values()))
    request = MovieRequest(**values)
    if request.images > limits.images:
        raise ValueError(
            f"Views times frames must be at most {limits.images}, got {request.view_rows} x {request.view_cols} x "
            f"{request.frames} = {request.images}; ask for fewer of one of them."
        )
    return request


def read_query(query: Mapping[str, str]) -> Reading:
    """What the parameters of a shared link say; they are texts, and only those of `FIELDS` are looked at."""
    raw = {name: _parsed(FIELDS[name], text) for name, text in query.items() if name in FIELDS}
    return read_fields(raw)


def _parsed(field: Field, text: str) -> Any:
    """`text` as a value for `field.read`, which will say what is wrong with it if it is not one."""
    if isinstance(field, Text):
        return text
    if isinstance(field, Switch):
        return {"1": True, "true": True, "0": False, "false": False}.get(text.lower(), text)
    try:
        return float(text) if len(text) < 30 else text
    except ValueError:
        return text
