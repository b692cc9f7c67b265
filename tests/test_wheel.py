"""What people install: the wheel, alone, in an environment of its own and away from the sources, makes a movie.

The libraries are those of the environment that runs the tests, so that nothing is downloaded twice.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import imageio.v3 as iio
import pytest

from diffusers_stale import LightField, __version__
from diffusers_stale.light_field.movie_folder import FILE_NAMES


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "diffusers_stale"
BARNYARD = PACKAGE / "checkpoints" / "barnyard"
MAX_CHECKPOINT_BYTES = 40_000_000

pytestmark = pytest.mark.slow


def call(*command: object, cwd: Path, **environment: str) -> str:
    """Output of `command`, which must succeed, without the variables that would lead Python back to the sources."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def files_of_package() -> set[str]:
    """Every file of the package that must be in what people install."""
    paths = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths}


def build(kind: str, folder: Path) -> Path:
    call(sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment that has the wheel, and sees the libraries of this one but not the sources."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    python = programs / Path(sys.executable).name
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet")
    call(*pip, wheel, cwd=folder)
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A plain path: files with the ending .pth in that folder, such as an editable installation's, are not followed.
    libraries = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "libraries.pth").write_text("\n".join(libraries))
    return programs


def test_the_checkpoint_is_there_and_small_enough_to_ship():
    assert (BARNYARD / "model_index.json").is_file(), "The default checkpoint is missing: scripts/train.py makes it."
    assert (BARNYARD / "README.md").is_file()
    files = [path for path in BARNYARD.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_CHECKPOINT_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".md", ".png"}
    if os.name != "nt":
        assert all(path.stat().st_mode & 0o044 == 0o044 for path in files), "safetensors writes files with mode 0600"


def test_the_wheel_holds_the_package_with_all_its_data_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata_name = next(name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(metadata_name).decode())
    information = f"diffusers_stale-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(information)} == files_of_package()
    assert f"{information}licenses/LICENSE" in names
    assert metadata["Name"] == "diffusers-stale"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"dev", "plot", "space", "test", "trackio", "train"} == set(metadata.get_all("Provides-Extra"))


def test_the_source_distribution_holds_all_that_is_needed_to_build_and_test(tmp_path: Path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of_package() <= names
    assert {"LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml", "tests/test_wheel.py"} <= names
    assert not any(name.startswith(("runs/", ".venv", "movie/")) for name in names)


def test_the_wheel_alone_makes_a_movie(binaries: Path, tmp_path: Path):
    place = call(binaries / "python", "-c", "import diffusers_stale; print(diffusers_stale.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(binaries.parent)
    assert not Path(place.strip()).is_relative_to(ROOT)
    command = [binaries / "stale-diffusion", "generate", "a brown horse gallops out of a red barn at sunset"]
    options = ["--output", "movie", "--steps", 2, "--frames", 4]
    output = call(*command, *options, cwd=tmp_path, HF_HUB_OFFLINE="1")
    folder = tmp_path / "movie"
    assert {path.name for path in folder.iterdir()} == set(FILE_NAMES)
    assert all(name in output for name in FILE_NAMES)
    movie = LightField.load(folder / "movie.lf.safetensors")
    assert movie.shape[:4] == (3, 3, 3, 4)
    assert movie.provenance["checkpoint"] == "barnyard"
    assert len(set(movie.pixels.flatten().tolist())) > 16
    for name in ("views.png", "time.png", "epi.png"):
        assert iio.imread(folder / name).ndim == 3
    assert iio.immeta(folder / "movie.mp4", plugin="FFMPEG")["codec"] == "h264"
