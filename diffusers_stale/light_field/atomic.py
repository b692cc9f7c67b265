"""Files that are there in whole or not at all. Everything that this room writes goes through `atomic_path`."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


FILE_MODE = 0o644
"""Mode of every written file (temporary files, and those of safetensors, start as 0600)."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path` and with its suffix, to be written by the caller.

    At the end the file is flushed to the disk, given mode 0644 and renamed to `path`, which it replaces. On any
    exception, keyboard interrupts included, it is deleted and what stood at `path` before is untouched.

    Raises:
        OSError: where the folder is missing or nothing can be written to it; the message names `path`, not the
            temporary file, and the class tells the reason (`PermissionError`, `NotADirectoryError`, ...).
    """
    path = Path(path)
    temporary = None
    try:
        temporary = _reserve(path)
        yield temporary
        _flush(temporary)
        temporary.chmod(FILE_MODE)
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or isinstance(error.__cause__, OSError):
            raise  # it has its sentence already
        reason = f"Could not write {path}: {os.strerror(error.errno)}; choose another place or free some space."
        raise OSError(error.errno, reason) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    _flush(path.parent)


def _reserve(path: Path) -> Path:
    """An empty file of a name that nobody else has, beside `path`."""
    handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=".writing-", dir=path.parent)
    os.close(handle)
    return Path(name)


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk (Windows cannot open a folder: skipped there)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
