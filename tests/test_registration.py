"""Every way in which diffusers loads a checkpoint of ours, without `trust_remote_code`."""

import json
import subprocess
import sys

import diffusers
import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline

import diffusers_stale
from diffusers_stale import StaleDiffusionPipeline, StaleScheduler, StaleUNet5DConditionModel, checkpoint_path
from diffusers_stale.registration import register


REQUEST = {"view_rows": 1, "view_cols": 2, "num_frames": 2, "num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture(scope="module")
def folder(tiny_pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline.save_pretrained(path)
    return path


def movie(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return pipeline("a brown horse", generator=generator, **REQUEST).light_fields


def test_the_index_names_classes_by_the_public_library(folder):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StaleDiffusionPipeline"
    assert index["unet"] == ["diffusers_stale", "StaleUNet5DConditionModel"]
    assert index["scheduler"] == ["diffusers_stale", "StaleScheduler"]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert index["tokenizer"][0] == "transformers"


@pytest.mark.parametrize("loader", [StaleDiffusionPipeline, DiffusionPipeline])
def test_a_loaded_pipeline_makes_the_same_movie(tiny_pipeline, folder, loader):
    loaded = loader.from_pretrained(folder)
    assert type(loaded) is StaleDiffusionPipeline
    assert torch.equal(movie(loaded), movie(tiny_pipeline))


def test_an_automatically_loaded_unet_makes_the_same_movie(tiny_pipeline, folder):
    # A string, since diffusers 0.42.1 joins the path with strings.
    unet = AutoModel.from_pretrained(str(folder), subfolder="unet")
    assert type(AutoModel.from_pretrained(str(folder / "unet"))) is type(unet)
    assert type(unet) is StaleUNet5DConditionModel
    loaded = StaleDiffusionPipeline.from_pretrained(folder, unet=unet)
    assert torch.equal(movie(loaded), movie(tiny_pipeline))


def test_the_scheduler_loads_alone(folder):
    assert isinstance(StaleScheduler.from_pretrained(folder, subfolder="scheduler"), StaleScheduler)


def test_loads_in_half_precision(folder):
    loaded = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.float16}


def test_loads_a_half_precision_checkpoint_in_single_precision(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    pipeline.to(dtype=torch.float16).save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.float32}


def test_registering_again_changes_nothing():
    before = dict(diffusers.pipelines.pipeline_loading_utils.LOADABLE_CLASSES)
    register()
    assert before == diffusers.pipelines.pipeline_loading_utils.LOADABLE_CLASSES


def test_public_names_are_there():
    assert all(hasattr(diffusers_stale, name) for name in diffusers_stale.__all__)


def test_import_stays_light():
    """A new process imports the package without anything that only training or the Space needs."""
    heavy = ("gradio", "tensorboard", "diffusers_stale.training", "diffusers_stale.evaluation")
    code = f"import sys, diffusers_stale; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip().endswith("[]")


def test_unknown_checkpoints_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"one of the checkpoints that ship .*got 'stable'"):
        checkpoint_path("stable")
