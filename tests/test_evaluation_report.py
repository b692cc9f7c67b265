"""Reports of evaluations: rows with their scale, pages that need no other file, comparisons, and the command."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffusers_stale.cli import app
from diffusers_stale.cli.evaluation import parse_seeds, seeds_of, stage_seeds
from diffusers_stale.evaluation.bars import BARS, check_bars
from diffusers_stale.evaluation.charts import Curve, line_chart, scale_strip
from diffusers_stale.evaluation.comparison import compare, parse_candidate, read_report
from diffusers_stale.evaluation.gates import autoencoder_gates, image_gates
from diffusers_stale.evaluation.report import EvaluationSettings
from diffusers_stale.evaluation.report_files import RANKED, ranks
from diffusers_stale.evaluation.rows import SOURCES, row
from diffusers_stale.model_card import model_card
from diffusers_stale.pipeline_stale import StaleDiffusionPipeline


SMALL = ["--prompts", "2", "--views", "1x2", "--frames", "2", "--steps", "2", "--unusual", "4", "--noise-scenes", "1"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def few_scenes() -> object:
    """As many training scenes as a test needs."""
    patch = pytest.MonkeyPatch()
    fields = EvaluationSettings.__init__.__kwdefaults__
    patch.setitem(fields, "training_scenes", 8)
    patch.setitem(fields, "held_out_scenes", 8)
    yield fields
    patch.undo()


@pytest.fixture(scope="module")
def checkpoint(tiny_pipeline: StaleDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def report(checkpoint: Path, few_scenes: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "report"
    run("evaluate", checkpoint, "--output", folder, *SMALL)
    return folder


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


# The command and what it writes


def test_the_command_writes_a_report_that_needs_no_other_file(report: Path):
    page = (report / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    assert page.count("<img") == 5
    assert "Captions that the grammar never wrote" in page
    assert "Errors by noise level" in page
    figures = json.loads((report / "report.json").read_text())
    assert {row["group"] for row in figures["measures"]} == {
        "alignment", "views", "time", "distribution", "unusual captions",
    }  # fmt: skip
    assert figures["settings"]["training_seeds"] == [0]
    assert len(figures["unusual"]["movies"]) == 4


def test_every_row_has_generated_and_rendered_figures(report: Path):
    for measured in json.loads((report / "report.json").read_text())["measures"]:
        assert set(measured) == {"group", "title", "unit", *SOURCES}
        assert measured["generated"] is not None
        assert measured["rendered"] is not None


def test_the_model_card_reads_what_is_written(report: Path, checkpoint: Path):
    figures = json.loads((report / "report.json").read_text())
    card = model_card("tiny", "About it.", checkpoint, {}, [figures])
    assert "| time of day | 0.98 |" in card
    assert "2 held-out prompts (1x2 views, 2 frames, 2 steps" in card


def test_strict_tells_missed_bars_by_the_exit_code(checkpoint: Path, few_scenes: object, tmp_path: Path):
    still = ["--prompts", "1", "--views", "1x1", "--frames", "1", "--steps", "1", "--unusual", "0"]
    run("evaluate", checkpoint, "--output", tmp_path, *still, "--noise-scenes", "0", "--strict", code=2)
    assert (tmp_path / "report.html").is_file()
    told = (tmp_path / "report.md").read_text()
    assert "| disparity of the animal, nearness to rendered | – | 0.850 | not measured |" in told


def test_reports_and_checkpoints_are_compared_in_one_table(
    report: Path, checkpoint: Path, few_scenes: object, tmp_path: Path
):
    text = run("evaluate", "--compare", report, f"{checkpoint}:steps=1:guidance=1", "--output", tmp_path, *SMALL)
    table = (tmp_path / "comparison.md").read_text()
    assert table.strip() in text
    assert f"| setting | report | {checkpoint}:steps=1:guidance=1 |" in table
    assert "| steps | 2 | 1 |" in table
    assert "| guidance | 3.0 | 1.0 |" in table
    assert "| animal kind |" in table


def test_mistakes_are_told(checkpoint: Path, tmp_path: Path):
    run("evaluate", "--compare", checkpoint, code=2)
    run("evaluate", code=2)
    run("evaluate", checkpoint, "--training-seeds", "one", "--output", tmp_path, code=2)
    assert "error: `batch` must be" in run("evaluate", checkpoint, "--batch", "0", "--output", tmp_path, code=1)
    assert "--clip must be a folder" in run("evaluate", checkpoint, "--clip", "x", "--output", tmp_path, code=1)
    message = run("evaluate", "--compare", checkpoint, f"{checkpoint}:mood=1", "--output", tmp_path, code=1)
    assert "CHECKPOINT:name=value with a name of steps" in message


# Comparison


def test_candidates_change_settings_by_name():
    settings = EvaluationSettings()
    checkpoint, changed = parse_candidate("barnyard:steps=8:guidance=2.5", settings)
    assert checkpoint == "barnyard"
    assert (changed.steps, changed.guidance, changed.frames) == (8, 2.5, settings.frames)
    assert parse_candidate("C:/models/mine:steps=3", settings)[0] == "C:/models/mine"
    with pytest.raises(ValueError, match="`steps` must be a number, got 'few'"):
        parse_candidate("barnyard:steps=few", settings)


def test_a_comparison_needs_two_and_reads_only_reports(report: Path, tmp_path: Path):
    figures = read_report(report)
    with pytest.raises(ValueError, match="At least two"):
        compare([("one", figures)])
    assert "All with the same settings" in compare([("one", figures), ("two", figures)])
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="evaluate again with this version"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("no")
    with pytest.raises(ValueError, match="must be JSON"):
        read_report(tmp_path)


def test_seeds_are_those_of_the_stages_and_of_what_they_started_from():
    stages = {"text": {"seed": 9}, "image": {"seed": 2, "started_from": {"movie": {"seed": 1}}}, "movie": {"seed": 2}}
    assert stage_seeds(stages) == {1, 2}
    assert stage_seeds({}) == {0}
    assert len(seeds_of("barnyard")) >= 1
    assert parse_seeds("0, 2") == (0, 2)
    assert parse_seeds(None) is None


# Bars, ranks, drawings


def test_actions_are_no_bar_of_single_frames():
    share = {"value": 0.9}
    figures = {"generated": {"alignment": {"action": share}}, "settings": {"frames": 1}, "ratios": {}}
    by_title = {bar["title"]: bar for bar in check_bars(figures)}
    assert by_title["action"]["value"] is None
    figures["settings"]["frames"] = 8
    by_title = {bar["title"]: bar for bar in check_bars(figures)}
    assert by_title["action"] == {"title": "action", "value": 0.9, "least": 0.75, "met": True}
    assert len(by_title) == len(BARS)


def test_ranks_are_disjoint_and_in_order():
    best, middle, worst = ranks(range(100))
    assert best == list(range(RANKED))
    assert worst == list(range(100 - RANKED, 100))
    assert middle[0] == 46
    assert ranks([4, 2]) == ([4, 2], [], [])
    assert len({*sum(map(list, ranks(range(9))), [])}) == 9


def test_a_strip_puts_figures_where_they_belong():
    values = {"generated": {"value": 0.5, "low": 0.4, "high": 0.6}, "rendered": 1.0, "shuffled": 0.0}
    strip = scale_strip(row("group", "title", "", values))
    assert 'cx="110.0"' in strip
    assert scale_strip(row("group", "title", "", {"generated": 0.5})) == ""
    flat = scale_strip(row("group", "title", "", {"generated": 1.0, "rendered": 1.0}))
    assert "nan" not in flat


def test_a_chart_has_a_line_and_a_band_for_each_curve():
    curves = [Curve("one <&>", [0.1, 0.9], [1.0, 2.0], [0.5, 1.5], [1.5, 2.5]), Curve("two", [0.1, 0.9], [0.0, 0.0])]
    chart = line_chart(curves, "across", "up")
    assert chart.count("<polyline") == 2
    assert chart.count("<polygon") == 1
    assert "one &lt;&amp;&gt;" in chart


# Gates


def test_gates_are_met_by_the_truth_only(monkeypatch: pytest.MonkeyPatch, tiny_pipeline: StaleDiffusionPipeline):
    bad = autoencoder_gates(tiny_pipeline.vae, scenes=1)
    assert not bad[0].met
    assert str(bad[0]).startswith("missed PSNR")
    assert not all(gate.met for gate in image_gates(tiny_pipeline, prompts=4, steps=1, batch=4))
    monkeypatch.setattr("diffusers_stale.evaluation.reconstruction.reconstruct", lambda vae, movie: movie)
    perfect = autoencoder_gates(tiny_pipeline.vae, scenes=2)
    assert all(gate.met for gate in perfect)
    assert all(gate.as_dict()["met"] for gate in perfect)
