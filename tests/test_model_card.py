"""The card of a checkpoint says what its reports say."""

import json
from pathlib import Path

import pytest

from diffusers_stale.checkpoint_origin import whole, without_repeats
from diffusers_stale.model_card import CardPicture, model_card
from diffusers_stale.pipeline_stale import StaleDiffusionPipeline
from diffusers_stale.training.config import STAGES
from diffusers_stale.training.reports import collect_reports


REPORT = {
    "steps": 1234,
    "images": 56789,
    "seconds": 60.0,
    "core_seconds": 99.0,
    "processes": 2,
    "seed": 7,
    "commands": ["python scripts/train.py --stage first", "python scripts/train.py --stage first --resume"],
    "machine": {"processor": "An abacus", "gpu": None, "python": "3.11", "torch": "2.13.0"},
}
EVALUATION = {
    "settings": {
        "view_rows": 3, "view_cols": 3, "frames": 8, "prompts": 64, "steps": 20, "guidance": 3.0, "seed": 0,
    },
    "bars": [
        {"title": "time of day", "value": 0.987, "least": 0.95, "met": True},
        {"title": "direction", "value": 0.5, "least": 0.8, "met": False},
        {"title": "parallax", "value": None, "least": 0.5, "met": False},
    ],
}  # fmt: skip


def test_a_card_tells_parts_making_and_scores(tmp_path: Path, tiny_pipeline: StaleDiffusionPipeline):
    tiny_pipeline.save_pretrained(tmp_path)
    card = model_card("tiny", "About it.", tmp_path, dict.fromkeys(STAGES, REPORT), [EVALUATION])
    assert card.startswith("---\nlicense: apache-2.0\n")
    for fact in ("`StaleUNet5DConditionModel`", "--stage first --resume", "An abacus", "1234", "56,789", "0.987"):
        assert fact in card
    assert "| direction | 0.80 | 0.500 | **no** |" in card
    assert "parallax" not in card
    assert "Not measured." in model_card("tiny", "", tmp_path, {}, [])


def test_reports_are_collected_and_a_missing_one_is_named(tmp_path: Path):
    for stage in STAGES:
        with pytest.raises(FileNotFoundError, match=stage):
            collect_reports(tmp_path)
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "training_report.json").write_text(json.dumps(REPORT))
    assert collect_reports(tmp_path)["image"]["steps"] == 1234


def test_the_record_of_an_ancestor_stands_once_a_generation():
    record = {stage: REPORT | {"generation": 0} for stage in STAGES}
    for generation in (1, 2, 3):
        whole = {stage: REPORT | {"generation": generation} for stage in STAGES}
        record = whole | {stage: whole[stage] | {"started_from": record} for stage in ("image", "movie")}
    kept = without_repeats(record)
    for generation in (3, 2, 1, 0):
        assert {report["generation"] for report in kept.values()} == {generation}
        assert "started_from" not in kept["movie"]
        kept = kept["image"].get("started_from")
    assert kept is None


def test_effort_counts_what_was_passed_on_once():
    first = {"text": REPORT | {"core_seconds": 100.0}, "movie": REPORT | {"core_seconds": 2000.0}}
    second = {"text": first["text"], "movie": REPORT | {"core_seconds": 300.0, "started_from": first}}
    third = {"text": first["text"], "movie": REPORT | {"core_seconds": 7.0, "started_from": second}}
    assert whole(third, "core_seconds") == 2407.0


def test_a_card_tells_energy_fingerprints_and_shows_pictures(tmp_path: Path, tiny_pipeline: StaleDiffusionPipeline):
    tiny_pipeline.save_pretrained(tmp_path)
    report = REPORT | {"core_seconds": 7200.0, "provenance": {"data": {"frames": "ab" * 32}}}
    picture = CardPicture(tmp_path / "ranked.png", "views.png", "Best to worst.")
    card = model_card("tiny", "", tmp_path, {"image": report | {"joules": None}}, [], [picture])
    assert "2.0 core-hours; about 20 Wh, estimated" in card
    assert "image frames `abababababababab`" in card
    assert "![Best to worst.](pictures/views.png)" in card
    measured = model_card("tiny", "", tmp_path, {"image": report | {"joules": 7200.0}}, [])
    assert "took 2 Wh, measured" in measured
    assert "pictures/" not in measured
