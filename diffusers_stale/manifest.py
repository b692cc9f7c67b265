"""`manifest.json`: the SHA-256 of every file in a folder, by which a copy can be told from a damaged one."""

import hashlib
import json
from pathlib import Path


MANIFEST = "manifest.json"
CHUNK = 2**20


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in `folder` and below by its relative path, but not of the manifest and hidden ones."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: file_hash(path)
        for name, path in names.items()
        if name != MANIFEST and not any(part.startswith(".") for part in name.split("/"))
    }


def folder_hash(folder: Path) -> str:
    """One SHA-256 of all names and contents in `folder`, the manifest left out."""
    return hashlib.sha256(json.dumps(file_hashes(folder), sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path) -> None:
    """Writes the manifest of what is in `folder` now."""
    (folder / MANIFEST).write_text(json.dumps({"sha256": file_hashes(folder)}, indent=1) + "\n")


def manifest_problems(folder: Path) -> list[str]:
    """What is wrong with the files in `folder` by its manifest, a sentence each; none if all is as it was written.

    Raises `ValueError` where there is no manifest that can be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{path} is missing: this folder was written without hashes, so nothing can be checked.")
    try:
        recorded = dict(json.loads(path.read_text())["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold hashes by file, but cannot be read ({error}); copy it again.") from error
    found = file_hashes(folder)
    missing = [f"{name} is missing." for name in recorded if name not in found]
    changed = [
        f"{name} is not what was written." for name in recorded if name in found and found[name] != recorded[name]
    ]
    added = [f"{name} was not there when the manifest was written." for name in found if name not in recorded]
    return [*missing, *changed, *added]
