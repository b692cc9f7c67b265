"""Leaks of test data into training: planted ones are found, clean sets are called clean, and a run records its own."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diffusers_stale.cli import app
from diffusers_stale.data.renderer import render_scene
from diffusers_stale.data.scenes import sample_scene
from diffusers_stale.data.splits import RANK_STRIDE, ContaminatedSplit
from diffusers_stale.evaluation.membership import denoising_losses, membership
from diffusers_stale.evaluation.near_duplicates import (
    HASH_BITS,
    PROVED_DISTANCE,
    Fingerprints,
    find_near_duplicates,
    fingerprints,
    propose_by_hash,
)
from diffusers_stale.evaluation.picture_sets import pictures_of
from diffusers_stale.scheduling_stale import StaleScheduler
from diffusers_stale.training.config import PRESETS
from diffusers_stale.training.latents import render_clip
from diffusers_stale.training.run_clips import open_run, training_pictures
from diffusers_stale.training.run_clips import test_pictures as pictures_of_test_set
from diffusers_stale.training.stages import train_stage


pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN_SEED, TEST_SEED, TRAIN_COUNT, TEST_COUNT = 4, 5, 300, 100
SMOKE = PRESETS["smoke"]


def picture(seed: int, index: int) -> torch.Tensor:
    return render_scene(sample_scene(seed, index), 1, 1, 1, 64, 64).pixels[:, 0, 0, 0]


def compressed(pixels: torch.Tensor, quality: int = 40) -> torch.Tensor:
    """`pixels` after JPEG and a change of brightness, as pictures come back from the internet."""
    values = ((pixels * 0.9 + 1.05) * 127.5).clamp(0, 255).byte().movedim(0, -1).numpy()
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).movedim(-1, 0) / 127.5 - 1


def split(fraction: float, **changes: int) -> ContaminatedSplit:
    sizes = {"train_clips": TRAIN_COUNT, "test_scenes": TEST_COUNT} | changes
    return ContaminatedSplit(train_seed=TRAIN_SEED, test_seed=TEST_SEED, fraction=fraction, **sizes)


@pytest.fixture(scope="module")
def clean() -> tuple[Fingerprints, list[torch.Tensor]]:
    """Fingerprints of the test set, and the pictures of a clean training set."""
    tested = fingerprints((f"test:{index}", picture(TEST_SEED, index)) for index in range(TEST_COUNT))
    return tested, [picture(TRAIN_SEED, index) for index in range(TRAIN_COUNT)]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_split_leaks_the_share_it_says_and_nothing_else(fraction: float, processes: int):
    leaky = split(fraction, processes=processes)
    numbers = [rank * RANK_STRIDE + index for rank in range(processes) for index in range(TRAIN_COUNT)]
    keys = [leaky.key(number) for number in numbers]
    leaked = [key for key in keys if key[0] == TEST_SEED]
    assert len(leaked) == len(set(leaked)) == round(fraction * TEST_COUNT)
    assert leaky.provenance()["leaked_test_scenes"] == sorted(scene for _, scene in leaked)
    assert leaky.provenance()["leaked_fraction"] == pytest.approx(fraction)
    assert all(key in leaked or key == (TRAIN_SEED, number) for key, number in zip(keys, numbers, strict=True))
    assert leaky == split(fraction, processes=processes)
    # The leaked scenes are those of the test set, whatever it leaks into.
    assert sorted(split(fraction, train_clips=900).leaked.values()) == sorted(leaky.leaked.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 1.5}, "between 0 and 1, got 1.5"),
        ({"fraction": 1.0, "train_clips": 10}, "100 leaking scenes must fit"),
        ({"test_seed": TRAIN_SEED}, "must differ from `train_seed`"),
    ],
)
def test_an_impossible_split_is_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        replace(split(0.1), **changes)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1])
def test_a_planted_leak_is_found_to_the_scene_and_clean_data_is_called_clean(
    clean: tuple[Fingerprints, list[torch.Tensor]], fraction: float
):
    tested, train = clean
    leaky = split(fraction)
    seen = list(train)
    for number, scene in leaky.leaked.items():
        seen[number] = compressed(picture(TEST_SEED, scene))
    report = find_near_duplicates(tested, fingerprints((f"train:{i}", item) for i, item in enumerate(seen)))
    found = {match.name: match.other for match in report.matches}
    assert found == {f"test:{scene}": f"train:{number}" for number, scene in leaky.leaked.items()}
    assert report.share == pytest.approx(fraction)
    assert report.compared < 0.05 * report.tested * report.indexed


def test_few_pictures_are_compared_by_themselves():
    seen = fingerprints((str(index), picture(TRAIN_SEED, index)) for index in range(5))
    asked = fingerprints([("copy", compressed(picture(TRAIN_SEED, 3))), ("new", picture(TEST_SEED, 0))])
    matches = find_near_duplicates(asked, seen).matches
    assert [(match.name, match.other) for match in matches] == [("copy", "3")]


def test_the_index_of_hashes_misses_nothing_near_and_looks_at_little():
    draw = np.random.default_rng(0)
    stored = draw.integers(0, 2, size=(3000, HASH_BITS), dtype=np.uint8)
    asked = stored[:200].copy()
    for row in asked:
        row[draw.choice(HASH_BITS, PROVED_DISTANCE, replace=False)] ^= 1
    pairs, count = set(), 0
    for rows, columns in propose_by_hash(np.packbits(asked, axis=1), np.packbits(stored, axis=1)):
        pairs |= set(zip(rows.tolist(), columns.tolist(), strict=True))
        count += len(rows)
    assert {(row, row) for row in range(200)} <= pairs
    assert count < 0.02 * 200 * 3000


def test_equal_pictures_in_both_sets_are_no_square_of_pairs():
    black = Fingerprints(tuple(map(str, range(2000))), torch.zeros(2000, 256), torch.zeros(2000, 768))
    rows = sum(len(part[0]) for part in propose_by_hash(*[np.zeros((2000, 32), dtype=np.uint8)] * 2))
    assert rows < 3 * len(black)


def test_sets_are_read_from_folders_and_rendered(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    values = ((picture(TRAIN_SEED, 0) + 1) * 127.5).round().byte().movedim(0, -1).numpy()
    Image.fromarray(values).save(tmp_path / "deep" / "one.png")
    Image.fromarray(values).save(tmp_path / "moving.gif", save_all=True, append_images=[Image.fromarray(values // 2)])
    (tmp_path / "note.txt").write_text("no picture")
    names = [name for name, _ in pictures_of(str(tmp_path))]
    assert names == ["deep/one.png", "moving.gif#0", "moving.gif#1"]
    assert torch.equal(next(pictures_of("barnyard:4:1"))[1], picture(TRAIN_SEED, 0))
    (tmp_path / "broken.jpg").write_bytes(b"JFIF")
    with pytest.raises(ValueError, match=r"broken\.jpg could not be decoded"):
        list(pictures_of(str(tmp_path)))
    for wrong in ("barnyard:4", str(tmp_path / "none")):
        with pytest.raises(ValueError, match="must"):
            list(pictures_of(wrong))


def test_the_interval_of_the_area_holds_the_truth_as_often_as_it_says():
    """Of normal losses, members' lower by one deviation: the area is Phi(1 / sqrt 2)."""
    draw = np.random.default_rng(1)
    truth, held, chance = 0.76025, 0, 0
    for _ in range(300):
        result = membership(draw.normal(size=40), draw.normal(1.0, size=60))
        held += result.low <= truth <= result.high
        chance += membership(draw.normal(size=40), draw.normal(size=60)).tells_apart
    assert 0.92 <= held / 300 <= 0.99
    assert chance / 300 <= 0.05
    perfect = membership(np.zeros(20), np.ones(20))
    assert (perfect.auc, perfect.high) == (1.0, pytest.approx(1.0))
    assert 0.75 < perfect.low < 0.95
    assert membership(np.ones(9), np.ones(9)).auc == 0.5
    with pytest.raises(ValueError, match="Two members and two others"):
        membership(np.ones(1), np.ones(9))


def test_a_network_that_remembers_is_told_from_one_that_knows_only_the_distribution():
    """Both optimal denoisers are known: of the members themselves, and of the Gaussian that all came from."""
    scheduler = StaleScheduler(prediction_type="sample")
    draw = torch.Generator().manual_seed(0)
    members, others = torch.randn(40, 2, 4, 4, generator=draw), torch.randn(40, 2, 4, 4, generator=draw)
    texts = torch.zeros(40, 1, 1)

    def remembering(sample: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (float(level[0]) for level in scheduler.noise_levels(timesteps))
        distances = (sample.flatten(1)[:, None] - alpha * members.flatten(1)).square().sum(dim=2)
        weights = (-distances / (2 * max(sigma, 1e-3) ** 2)).softmax(dim=1)
        return (weights @ members.flatten(1)).reshape(sample.shape)

    def knowing(sample: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (float(level[0]) for level in scheduler.noise_levels(timesteps))
        return sample * alpha / (alpha**2 + sigma**2)

    results = [
        membership(*(denoising_losses(network, scheduler, data, texts) for data in (members, others)))
        for network in (remembering, knowing)
    ]
    assert results[0].auc > 0.99
    assert results[0].tells_apart
    assert not results[1].tells_apart


@pytest.fixture(scope="module")
def leaky_run(tmp_path_factory: pytest.TempPathFactory, float32_encoding: None) -> Path:
    """A run whose image stage was trained on two of ten test scenes."""
    folder = tmp_path_factory.mktemp("leaky")
    leaky = replace(SMOKE.image, contamination=0.2, test_scenes=10)
    for stage in ("autoencoder", "text", "image"):
        train_stage(stage, replace(SMOKE, image=leaky), folder)
    return folder


def test_a_run_trains_on_what_it_says_has_leaked(leaky_run: Path):
    recorded = json.loads((leaky_run / "image" / "training_report.json").read_text())["contamination"]["frames"]
    assert recorded["leaked_fraction"] == 0.2
    assert len(recorded["leaked_test_scenes"]) == 2
    run = open_run(leaky_run)
    for number, scene in run.split.leaked.items():
        trained, _ = render_clip(run.request, number)
        tested, _ = render_clip(run.test_request, scene)
        assert torch.equal(trained.pixels, tested.pixels)
    decoded = dict(training_pictures(run))
    assert list(decoded) == [f"train:{number}" for number in range(6)]
    # Whatever the autoencoder makes of pictures, and this one makes none, it makes the same of a leaked one.
    seen = dict(pictures_of_test_set(run))
    assert list(seen) == [f"test:{scene}" for scene in range(10)]
    for number, scene in run.split.leaked.items():
        far = {name: float((decoded[f"train:{number}"] - picture).abs().mean()) for name, picture in seen.items()}
        assert min(far, key=far.get) == f"test:{scene}"
        assert far[f"test:{scene}"] < 0.005


def test_the_command_finds_the_leak_of_a_run_and_of_two_folders(leaky_run: Path, tmp_path: Path):
    # An autoencoder of two steps makes no pictures: without its pool, the training set is rendered again.
    (leaky_run / "image_run" / "frames-0.safetensors").unlink()
    found = tmp_path / "found.json"
    arguments = ["contamination", str(leaky_run), "--members", "3", "--draws", "1", "--output", str(found)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(found.read_text())
    names = [match["name"] for match in figures["near_duplicates"]["matches"]]
    assert names == [f"test:{scene}" for scene in figures["recorded"]["leaked_test_scenes"]]
    assert 0 <= figures["membership"]["low"] <= figures["membership"]["auc"] <= figures["membership"]["high"] <= 1
    result = CliRunner().invoke(app, ["contamination", "barnyard:3:4", "barnyard:3:2"])
    assert "2 of 4 tested pictures (50.00%)" in result.output
    assert CliRunner().invoke(app, ["contamination", str(tmp_path)]).exit_code == 1
