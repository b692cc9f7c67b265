"""Movies that were made, on the disk: each in a folder of its own, all of them within bounds of age and size."""

import re
import secrets
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from diffusers_stale import LightField


FOLDER = "movies"
MOVIE = "movie.lf.safetensors"
ID = re.compile(r"[0-9a-f]{32}")
TIDY_SECONDS = 20.0
"""How often the disk is looked at."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A movie and where its files are."""

    id: str
    folder: Path

    @property
    def movie(self) -> Path:
        return self.folder / MOVIE


class Results:
    """Movies under `root`, which is Gradio's folder of temporary files: uploads and copies in it count as well.

    Args:
        root: made if it is missing. Nothing else should be in it.
        keep_seconds: files that were last changed longer ago are deleted.
        disk_bytes: beyond this, the oldest files are deleted, and `is_full` while that has not been done.
    """

    def __init__(self, root: Path, keep_seconds: float, disk_bytes: int) -> None:
        self.root, self.keep_seconds, self.disk_bytes = root, keep_seconds, disk_bytes
        (root / FOLDER).mkdir(parents=True, exist_ok=True)

    def save(self, movie: LightField) -> Result:
        """Writes the light field; its other files are the caller's."""
        self.tidy()
        name = secrets.token_hex(16)
        result = Result(id=name, folder=self.root / FOLDER / name)
        result.folder.mkdir()
        movie.save(result.movie)
        return result

    def find(self, name: str | None) -> Result:
        """The result of this id. Raises `ValueError` where there is none, or no longer."""
        if not isinstance(name, str) or not ID.fullmatch(name):
            raise ValueError("There is no movie yet; make one first.")
        result = Result(id=name, folder=self.root / FOLDER / name)
        if not result.movie.is_file():
            raise ValueError("This movie is no longer there: movies are kept for an hour. Make it again.")
        return result

    def keep(self, text: str, name: str) -> Path:
        """The file `name` with this text, written again where it has been deleted; as good as new in any case."""
        path = self.root / name
        if not path.is_file():
            fresh = path.with_name(f"{secrets.token_hex(8)}.part")
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)
        path.touch()
        return path

    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self._files())

    def is_full(self) -> bool:
        """Whether another upload would go beyond the bounds."""
        return self.size() > self.disk_bytes

    def tidy(self) -> None:
        """Deletes what is too old, and the oldest of what is too much; then folders that are empty."""
        files = sorted(self._files())
        excess = sum(size for _, size, _ in files) - self.disk_bytes
        oldest = time.time() - self.keep_seconds
        for changed, size, path in files:
            if changed >= oldest and excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size
        for folder in self.root.glob(f"{FOLDER}/*"):
            if folder.is_dir() and not (folder / MOVIE).exists() and _age(folder) > min(60.0, self.keep_seconds):
                shutil.rmtree(folder, ignore_errors=True)

    def tidy_for_ever(self) -> None:
        """Tidies in a thread that ends with the program."""

        def loop() -> None:
            while True:
                time.sleep(TIDY_SECONDS)
                self.tidy()

        threading.Thread(target=loop, daemon=True, name="tidy").start()

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of change, size and path of every file that is still there."""
        found = []
        for path in self.root.rglob("*"):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if not path.is_dir():
                found.append((status.st_mtime, status.st_size, path))
        return found


def _age(path: Path) -> float:
    """Seconds since `path` was last changed; 0 where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
