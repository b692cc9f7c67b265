"""The plan of the house: which room may import which, and what every entry of every dict of choices must be.

Imports are read, not run, so a forbidden one is found even inside a function.
"""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
import torch

import diffusers_stale
from diffusers_stale.training.config import PRESETS, STAGES, TrainingConfig
from diffusers_stale.training.losses import LOSSES
from diffusers_stale.training.rates import SCHEDULES
from diffusers_stale.view_layers import VIEW_LAYERS


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "diffusers_stale"
MAX_LINES = {"diffusers_stale": 500, "scripts": 500, "space": 500, "tests": 800}
"""Of files by their first folder; tests are one file a room."""

ROOM_OF_MODULE = {
    "__init__": "names",
    "added_conditions": "pipeline",
    "checkpoint_checks": "hub",
    "checkpoint_origin": "hub",
    "autoencoding": "pipeline",
    "denoising": "pipeline",
    "inflation": "inflation",
    "known_pictures": "pipeline",
    "memory": "pipeline",
    "model_card": "hub",
    "pipeline_calibration": "pipeline",
    "pipeline_checks": "pipeline",
    "pipeline_output": "pipeline",
    "pipeline_stale": "pipeline",
    "pipeline_stale_xl": "pipeline",
    "precision": "pipeline",
    "prompting": "pipeline",
    "registration": "pipeline",
    "sharing": "hub",
    "stable_diffusion": "pipeline",
    "windows": "pipeline",
    "calibration": "scheduling_stale",
    "calibration_record": "scheduling_stale",
    "entropic_steps": "scheduling_stale",
    "noise_levels": "scheduling_stale",
    "robust_fit": "scheduling_stale",
    "scheduler_checks": "scheduling_stale",
    "stale_weights": "scheduling_stale",
    "training_noise": "scheduling_stale",
    "channels_last": "unet",
    "chunking": "unet",
    "moments": "unet",
    "recomputation": "unet",
    "shared_text": "unet",
    "unet_config": "unet",
    "unet_layers": "unet",
    "unet_stale": "unet",
    "unet_switches": "unet",
    "view_layers": "unet",
}
"""The room of each module that is not a room of its own name."""

MODEL = {"axes", "inflation", "scheduling_stale", "stale_cache", "text_encoding", "unet"}
ALLOWED = {
    "version": set(),
    "checkpoints": set(),
    "manifest": set(),
    "axes": set(),
    "text_encoding": set(),
    "scheduling_stale": {"axes"},
    "unet": {"axes"},
    "light_field": {"axes", "version"},
    # Clips are light fields in files, which that room reads and writes.
    "data": {"axes", "light_field"},
    "inflation": {"axes", "unet"},
    "stale_cache": {"axes", "unet"},
    "pipeline": {*MODEL, "light_field", "version"},
    "training": {*MODEL, "data", "light_field", "manifest", "pipeline", "version"},
    "evaluation": {*MODEL, "data", "light_field", "pipeline", "version"},
    "names": {*MODEL, "checkpoints", "light_field", "pipeline", "version"},
    "hub": {*MODEL, "checkpoints", "light_field", "manifest", "names", "pipeline", "version"},
    "cli": {
        *MODEL, "checkpoints", "data", "evaluation", "hub", "light_field", "manifest", "names", "pipeline", "training",
        "version",
    },
}  # fmt: skip
"""What each room may import of the others; values move from the first lines to the last, and nothing points back."""

EXCEPTIONS = {("diffusers_stale/unet_stale.py", "diffusers_stale.inflation.inflate_unet2d")}
"""`StaleUNet5DConditionModel.from_unet2d` only calls `inflate_unet2d`, for those who look for it on the class."""

PLACES_OF_LIBRARY = {
    "gradio": ("space/",),
    "accelerate": (
        "diffusers_stale/evaluation/",
        "diffusers_stale/training/loop.py",
        "diffusers_stale/training/processes.py",
        "diffusers_stale/training/stages.py",
        "diffusers_stale/training/stale_gradients.py",
        "scripts/",
        "tests/",
    ),
    "av": ("diffusers_stale/data/decoding.py", "tests/"),
    "typer": ("diffusers_stale/cli/", "tests/"),
    "huggingface_hub": ("diffusers_stale/hub.py", "diffusers_stale/sharing.py", "tests/"),
    "peft": ("diffusers_stale/training/trainable.py", "tests/"),
    "trackio": ("diffusers_stale/training/trackers.py",),
    "playwright": ("tests/",),
}
"""Where alone a library may be imported."""

SOURCES = sorted(
    path for part in ("diffusers_stale", "scripts", "space", "tests") for path in (ROOT / part).rglob("*.py")
)
IN_PACKAGE = [path for path in SOURCES if path.is_relative_to(PACKAGE)]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> set[str]:
    """The full name of everything that `path` imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno} has a relative import; write it out."
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return ROOM_OF_MODULE.get(first, first)


def room_of_import(name: str) -> str | None:
    """The room that the import of `name` enters; None outside the package."""
    parts = name.split(".")
    if parts[0] != "diffusers_stale":
        return None
    first = parts[1] if len(parts) > 1 else "__init__"
    is_module = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").is_file()
    return ROOM_OF_MODULE.get(first, first) if is_module else "names"


@pytest.mark.parametrize("path", IN_PACKAGE, ids=relative)
def test_imports_go_one_way(path: Path):
    here = room(path)
    assert here in ALLOWED, f"{relative(path)} belongs to no room; give it one in this file and in the design."
    for name in imports_of(path):
        there = here if (relative(path), name) in EXCEPTIONS else room_of_import(name)
        assert there in (None, here) or there in ALLOWED[here], (
            f"{relative(path)} is in {here}, which may import {sorted(ALLOWED[here])}, but imports {name}."
        )


def test_the_table_of_rooms_has_no_circle():
    for name, allowed in ALLOWED.items():
        for other in allowed:
            assert name not in ALLOWED[other], f"{name} and {other} may import each other."


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_libraries_are_imported_in_their_places_only(path: Path):
    for name in imports_of(path):
        places = PLACES_OF_LIBRARY.get(name.split(".")[0], ("",))
        assert relative(path).startswith(places), f"{relative(path)} imports {name}, meant for {places} only."


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(ROOT / "space")], ids=relative)
def test_the_space_uses_public_names_only(path: Path):
    taken = {name for name in imports_of(path) if name.startswith("diffusers_stale")}
    assert all(name.removeprefix("diffusers_stale.") in diffusers_stale.__all__ for name in taken)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_are_short(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    limit = MAX_LINES[relative(path).split("/")[0]]
    assert lines <= limit, f"{relative(path)} has {lines} lines; at {limit} a file should be divided."


@pytest.mark.parametrize("path", IN_PACKAGE, ids=relative)
def test_every_file_says_what_it_is_for(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{relative(path)} needs a first line."


@pytest.mark.parametrize("path", [*IN_PACKAGE, *(ROOT / "scripts").rglob("*.py")], ids=relative)
def test_every_signature_is_annotated(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [item.arg for item in arguments if item.annotation is None and item.arg not in ("self", "cls")]
            assert not bare, f"{relative(path)}:{node.lineno} {node.name} has arguments without types: {bare}"
            assert node.returns or node.name == "__init__", f"{relative(path)}:{node.lineno} {node.name} returns what?"


def test_public_names_are_there_and_documented():
    for name in diffusers_stale.__all__:
        value = getattr(diffusers_stale, name)
        assert name == "__version__" or inspect.getdoc(value), f"{name} has no docstring."


def entries(module: str, name: str) -> list[tuple[str, str, object]]:
    """The entries of a dict of choices, where its module is there already."""
    try:
        choices = getattr(importlib.import_module(f"diffusers_stale.{module}"), name)
    except (ModuleNotFoundError, AttributeError):
        return []
    return [(name, key, value) for key, value in choices.items()]


CALLABLES = [
    *entries("training.losses", "LOSSES"),
    *entries("training.known", "KNOWN"),
    *entries("training.stages", "TASKS"),
    *entries("training.averages", "AVERAGES"),
    *entries("training.trackers", "TRACKERS"),
    *entries("training.trainable", "TRAINABLE"),
    *entries("light_field.projections", "PROJECTIONS"),
    *entries("light_field.movie_folder", "SHEETS"),
    *entries("light_field.displays", "DISPLAYS"),
]


@pytest.mark.parametrize(
    ("choices", "key", "value"), CALLABLES, ids=lambda item: item if isinstance(item, str) else ""
)
def test_choices_are_callable_by_plain_names(choices: str, key: str, value: object):
    assert key == key.strip().lower() != ""
    assert callable(value)
    assert choices == "TASKS" or inspect.getdoc(value), f"{choices}[{key!r}] has no docstring."


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_zero_for_the_truth_and_elementwise_elsewhere(name: str):
    truth = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(LOSSES[name](truth, truth), torch.zeros_like(truth))
    error = LOSSES[name](truth + 1, truth)
    assert error.shape == truth.shape
    assert (error > 0).all()


@pytest.mark.parametrize("name", VIEW_LAYERS)
def test_a_view_layer_is_a_documented_module_or_none(name: str):
    layer = VIEW_LAYERS[name]
    assert (layer is None) == (name == "none")
    assert layer is None or (issubclass(layer, torch.nn.Module) and inspect.getdoc(layer))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_learning_rate_schedule_starts_at_one_and_never_rises(name: str):
    rates = [SCHEDULES[name](step / 20) for step in range(21)]
    assert rates[0] == pytest.approx(1.0)
    assert all(later <= earlier for earlier, later in zip(rates, rates[1:], strict=False))
    assert min(rates) >= 0


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_configures_every_stage(name: str):
    assert isinstance(PRESETS[name], TrainingConfig)
    assert all(hasattr(PRESETS[name], stage) for stage in STAGES)
