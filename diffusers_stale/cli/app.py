"""The `stale-diffusion` application, and what its commands share: errors in one line, facts in
plain lines.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from diffusers_stale.version import __version__


app = typer.Typer(
    help="Light-field movies from sentences: every frame from a whole grid of cameras.",
    epilog='Begin with: stale-diffusion generate "a brown horse gallops out of a red barn at sunset" --output movie',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns errors that a user can put right into one line and exit code 1, and an interrupt into 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\nInterrupted; no file was left half-written.", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        typer.echo(f"error: {one_line(error)}", err=True)
        raise typer.Exit(1) from None


def one_line(error: Exception) -> str:
    """What `error` says, without line breaks and numbers of errors."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch said so; on the CPU it has no class for it, and words that depend on the system."""
    words = ("not enough memory", "can't allocate memory", "bad_alloc")
    return type(error).__name__ == "OutOfMemoryError" or any(word in str(error) for word in words)


def tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stale-diffusion {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Tell the version and end.")
    ] = False,
) -> None:
    pass


def tell(name: str, value: Any) -> None:
    typer.echo(f"{name.replace('_', ' '):<22} {value}")


def silence_loading() -> None:
    """No progress bars for the fraction of a second in which weights are read: denoising has the only one."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
