"""Configurations in YAML: read over a preset, written so that they can be read back. Knows no training.

Scalars are read as text and parsed by the fields' types, exactly as on the command line: `3e-4` is a number here, and
`no` a precision, which YAML's own rules would make a string and a truth value.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from diffusers_stale.training.config import (
    PRESETS,
    STAGES,
    TrainingConfig,
    fields_named,
    nearest,
    with_values,
)


PRESET = "preset"
"""The key of the preset that a file changes."""


class _TextLoader(yaml.BaseLoader):
    """Reads every scalar as text, and refuses keys that are given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        mapping = super().construct_mapping(node, deep)
        names = [key.value for key, _ in node.value]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise yaml.MarkedYAMLError(None, None, f"{', '.join(twice)} is given twice", node.start_mark)
        return mapping


def read_configs(paths: Sequence[Path], preset: str | None = None) -> TrainingConfig:
    """The configuration that YAML files give together, a later one over an earlier one.

    A file is a mapping. Its keys are stages, each a mapping from fields to values; fields, which are then meant for
    every stage that has them; and `preset`, the preset that all of it changes ("barnyard" by default).

    Args:
        paths: the files; none for the preset as it is.
        preset: the preset's name, in place of what files say.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for one that is no such mapping, for a key that does not exist, with the nearest one that does, and
            for a value that is not of its field's type; each with the name of the file.
    """
    files = [(path, _mapping(path)) for path in paths]
    named = [content.pop(PRESET) for _, content in files if PRESET in content]
    name = preset or (named[-1] if named else "barnyard")
    if name not in PRESETS:
        near = nearest(str(name), PRESETS)
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {name!r}; did you mean {near!r}?")
    config = PRESETS[name]
    for path, content in files:
        try:
            config = with_values(config, _values(config, content))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return config


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: name a YAML file, such as a run's image_run/config.yaml.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_TextLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} must be YAML, but cannot be read ({reason}).") from error
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must map stages or settings to values, got a {type(content).__name__}.")
    return content


def _values(config: TrainingConfig, content: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Values as text by stage and field; what is said of a single stage goes before what is said of all."""
    values: dict[str, dict[str, str]] = {stage: {} for stage in STAGES}
    for key, value in content.items():
        if key not in STAGES:
            if isinstance(value, dict):
                raise ValueError(f"There is no stage {key!r}; did you mean {nearest(key, STAGES)!r}?")
            for stage, name in fields_named(config, key, STAGES):
                values[stage][name] = _text(name, value)
    for stage in STAGES:
        settings = content.get(stage) or {}
        if not isinstance(settings, dict):
            raise ValueError(f"`{stage}` must map settings to values, got {settings!r}; write them indented below it.")
        for key, value in settings.items():
            fields_named(config, f"{stage}.{key}", (stage,))
            values[stage][key] = _text(key, value)
    return {stage: texts for stage, texts in values.items() if texts}


def _text(name: str, value: Any) -> str:
    """A value as the command line would have it."""
    if isinstance(value, list):
        if any(isinstance(item, (list, dict)) for item in value):
            raise ValueError(f"`{name}` must be a value or a list of values, got {value!r}.")
        return ",".join(value)
    if isinstance(value, dict):
        raise ValueError(f"`{name}` must be a value or a list of values, got {value!r}.")
    return "none" if value.lower() in ("", "null", "~") else value


def config_yaml(config: TrainingConfig, stages: Iterable[str] = STAGES) -> str:
    """`config` as YAML, every field of `stages`; `read_configs` gives back the same."""
    content = {stage: _plain(asdict(getattr(config, stage))) for stage in stages}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
