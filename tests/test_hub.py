"""Guarded loading: a sound checkpoint loads as it was saved, and every kind of unsound one is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

import diffusers_stale.hub as hub
from diffusers_stale import StaleDiffusionPipeline, checkpoint_path
from diffusers_stale.hub import choose_device, describe_checkpoint, find_checkpoint, load_pipeline


UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tiny_pipeline: StaleDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    tiny_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_what_was_saved_is_what_is_loaded(saved: Path, tiny_pipeline: StaleDiffusionPipeline):
    pipeline = load_pipeline(saved)
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(tiny_pipeline, part).state_dict()
        loaded = getattr(pipeline, part).state_dict()
        assert expected.keys() == loaded.keys()
        assert all(torch.equal(value, loaded[name]) for name, value in expected.items())
    assert pipeline.scheduler.to_json_string() == tiny_pipeline.scheduler.to_json_string()
    assert not pipeline.unet.training


def test_movies_are_told_the_name_of_their_checkpoint(saved: Path):
    assert load_pipeline(saved).config["_name_or_path"] == str(saved)


def test_dtype_reaches_every_network(saved: Path):
    pipeline = load_pipeline(saved, torch.bfloat16)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.bfloat16}


def test_a_checkpoint_is_described_without_loading_it(saved: Path, tiny_pipeline: StaleDiffusionPipeline):
    parts = {part.name: part for part in describe_checkpoint(saved)}
    assert parts["unet"].class_name == "StaleUNet5DConditionModel"
    assert parts["unet"].values == sum(value.numel() for value in tiny_pipeline.unet.state_dict().values())
    assert parts["tokenizer"].values == 0
    assert all(part.bytes > 0 for part in parts.values())


def test_missing_weights_are_refused(copy: Path):
    edit_weights(copy / UNET, lambda tensors: tensors.pop("conv_in.bias"))
    with pytest.raises(ValueError, match=r"no weights for conv_in\.bias"):
        load_pipeline(copy)


def test_weights_that_nothing_uses_are_refused(copy: Path):
    edit_weights(copy / UNET, lambda tensors: tensors.update({"stowaway.weight": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"knows nothing of: stowaway\.weight"):
        load_pipeline(copy)


def test_weights_of_another_shape_are_refused(copy: Path):
    edit_weights(copy / UNET, lambda tensors: tensors.update({"conv_in.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match="unet"):
        load_pipeline(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize("file", [UNET, "text_encoder/model.safetensors"])
def test_weights_that_cannot_be_right_are_refused(copy: Path, file: str, value: float):
    edit_weights(copy / file, lambda tensors: next(iter(tensors.values())).view(-1)[:1].fill_(value))
    with pytest.raises(ValueError, match="must hold finite weights"):
        load_pipeline(copy)


def test_integers_in_place_of_weights_are_refused(copy: Path):
    edit_weights(copy / UNET, lambda tensors: tensors.update({"conv_in.bias": tensors["conv_in.bias"].long()}))
    with pytest.raises(ValueError, match="must hold floats, got I64"):
        load_pipeline(copy)


def test_a_file_that_was_cut_short_is_refused(copy: Path):
    path = copy / UNET
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut short"):
        load_pipeline(copy)


def test_pickled_weights_are_refused(copy: Path):
    (copy / UNET).unlink()
    (copy / "unet/diffusion_pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ValueError, match="could run code"):
        load_pipeline(copy)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "layers_per_block", 10**9),
        ("unet", "cross_attention_dim", 10**30),
        ("unet", "norm_eps", float("nan")),
        ("text_encoder", "num_hidden_layers", 100_000),
        ("text_encoder", "hidden_size", -(10**12)),
    ],
)
def test_numbers_beyond_reason_are_refused_before_anything_is_built(copy: Path, part: str, key: str, value: float):
    edit_json(copy / part / "config.json", **{key: value})
    with pytest.raises(ValueError, match=f"`{key}` in .* must be at most"):
        load_pipeline(copy)


def test_a_network_larger_than_its_weights_is_refused_before_it_is_allocated(copy: Path):
    edit_json(copy / "unet/config.json", block_out_channels=[80_000, 160_000])
    with pytest.raises(ValueError, match="describes a network of"):
        load_pipeline(copy)


def test_a_configuration_that_describes_nothing_is_refused(copy: Path):
    edit_json(copy / "unet/config.json", down_block_types=["NoSuchBlock", "DownBlock2D"])
    with pytest.raises(ValueError, match="does not describe a StaleUNet5DConditionModel"):
        load_pipeline(copy)


def test_unknown_keys_of_a_configuration_are_refused(copy: Path):
    edit_json(copy / "unet/config.json", horses=4)
    with pytest.raises(ValueError, match="'horses'; upgrade"):
        load_pipeline(copy)


def test_a_part_that_is_missing_is_named(copy: Path):
    shutil.rmtree(copy / "vae")
    with pytest.raises(FileNotFoundError, match="vae is missing"):
        load_pipeline(copy)


@pytest.mark.parametrize("text", ["{", "[]", "", "\0"])
def test_an_index_that_cannot_be_read_is_refused(copy: Path, text: str):
    (copy / "model_index.json").write_text(text)
    with pytest.raises(ValueError, match="JSON"):
        load_pipeline(copy)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"model_index\.json is missing"):
        load_pipeline(tmp_path)


def test_a_stable_diffusion_checkpoint_is_sent_to_inflation(copy: Path):
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", UNet2DConditionModel.__name__]}
    edit_json(copy / "model_index.json", **index)
    with pytest.raises(ValueError, match="from_stable_diffusion"):
        load_pipeline(copy)


@pytest.mark.parametrize("entry", [["os", "system"], ["diffusers", "utils"], ["diffusers", "nothing"], "unet", None])
def test_no_class_from_elsewhere_is_looked_up(copy: Path, entry: object):
    edit_json(copy / "model_index.json", unet=entry)
    with pytest.raises(ValueError, match="no other code is run"):
        load_pipeline(copy)


def test_names_of_shipped_checkpoints_are_found(monkeypatch: pytest.MonkeyPatch, saved: Path):
    monkeypatch.setattr("diffusers_stale.checkpoints.ROOT", saved.parent)
    assert find_checkpoint("tiny") == saved == checkpoint_path("tiny")


def test_a_name_that_stands_for_nothing_is_refused():
    with pytest.raises(ValueError, match="There is no folder 'no-such-barnyard'"):
        find_checkpoint("no-such-barnyard")


def test_of_a_hub_repository_only_the_index_is_fetched_before_it_is_judged(
    monkeypatch: pytest.MonkeyPatch, copy: Path
):
    edit_json(copy / "model_index.json", _class_name="FluxPipeline")
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, name: copy / name)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched a foreign checkpoint"))
    with pytest.raises(ValueError, match="got 'FluxPipeline'"):
        load_pipeline("somebody/something")


def test_a_hub_repository_of_ours_is_loaded(monkeypatch: pytest.MonkeyPatch, saved: Path):
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, name: saved / name)
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, allow_patterns: saved)
    assert load_pipeline("somebody/barnyard").config["_name_or_path"] == "somebody/barnyard"


def test_a_hub_that_cannot_be_reached_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    with pytest.raises(ValueError, match="could not be fetched from the Hub"):
        load_pipeline("somebody/barnyard")


@pytest.mark.parametrize("name", ["toaster", "cuda:99", ""])
def test_devices_that_are_not_there_are_refused(name: str):
    with pytest.raises(ValueError, match=r"must be one of this machine's.*try cpu"):
        choose_device(name)


def test_some_device_is_chosen_for_whoever_has_no_opinion():
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
