"""Options that several commands have, and how their texts are read. What is wrong with them is a usage error."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer


def check_natural(number: int) -> int:
    """`number` if generators take it as a seed; a usage error otherwise."""
    if not 0 <= number < 2**63:
        raise typer.BadParameter(f"expected a number from 0 to {2**63 - 1}, got {number}.")
    return number


Device = Annotated[str, typer.Option(help="Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1, mps.")]
DTypeName = Literal["float32", "float16", "bfloat16"]
Frames = Annotated[int, typer.Option(help="How many frames, 8 of which last a second.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the files; made if missing.")]
Seed = Annotated[int, typer.Option(callback=check_natural, help="Each number gives another movie.")]
Views = Annotated[str, typer.Option(metavar="ROWSxCOLS", help="The grid of cameras: how many down, how many across.")]
Baseline = Annotated[float, typer.Option(help="How far apart cameras stand: 2 doubles the parallax, 0 removes it.")]
Movie = Annotated[Path, typer.Argument(metavar="MOVIE", help="A .lf.safetensors file, or a folder with a movie.")]
Picture = Annotated[Path | None, typer.Option("--output", "-o", help="A .png, .mp4 or .gif file.")]
Focus = Annotated[
    float | None, typer.Option(help="What is sharp, or on the screen: disparity in pixels per view, above 0 is near.")
]
OneFrame = Annotated[int | None, typer.Option(help="Which frame a .png shows, by default the middle one.")]
Replace = Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")]


def parse_pair(option: str, text: str) -> tuple[int, int]:
    """The numbers of "3x4". Raises a usage error naming `option` where `text` is anything else."""
    match = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", text.strip(), re.ASCII)
    if not match:
        raise typer.BadParameter(f"expected two numbers like 3x4, got {text!r}.", param_hint=option)
    return int(match[1]), int(match[2])


def parse_size(option: str, text: str) -> tuple[int, int]:
    """Height and width of "64" (both) or "48x64"."""
    return parse_pair(option, f"{text}x{text}" if text.strip().isdecimal() else text)


def parse_counts(option: str, text: str) -> tuple[int, ...]:
    """The numbers of "5,8,10", each once. Raises a usage error naming `option` where `text` is anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 5 and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"expected numbers like 5,8,10, got {text!r}.", param_hint=option)
    return tuple(sorted({int(part) for part in parts}))
