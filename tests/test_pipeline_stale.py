"""Truths of the pipeline: what must be equal is equal, callbacks rule, and bad input is named before any work."""

import logging

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
    UNetMotionModel,
)
from diffusers.utils import is_peft_available

from diffusers_stale import LightField, StaleDiffusionPipeline, StaleScheduler, inflate_unet2d, memory
from diffusers_stale.axes import IMAGE_AXES, fold
from diffusers_stale.memory import MemoryEstimate, estimate_memory, free_host_memory
from diffusers_stale.text_encoding import cut_off_text


LATENT_CHANNELS, MAX_TOKENS, TEXT_CHANNELS = 4, 16, 16
"""Of the components in `conftest.py`, whose images have 8x8 pixels and latents 4x4."""

GRID = {"view_rows": 2, "view_cols": 3, "num_frames": 2}
LATENT_SHAPE = (1, LATENT_CHANNELS, 2, 3, 2, 4, 4)
REQUEST = {**GRID, "num_inference_steps": 3, "output_type": "latent"}
PROMPTS = ["a brown horse", "a white cow stands"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(pipeline, prompt="a brown horse", **changes):
    """The movies of a small request; seed 0 unless something else is said."""
    arguments = REQUEST | ({} if "generator" in changes else {"generator": seeded()}) | changes
    return pipeline(prompt, **arguments).light_fields


# ---- what comes out ----------------------------------------------------------------------------------------------


def test_light_field_knows_cameras_and_origin(tiny_pipeline):
    movies = run(
        tiny_pipeline, PROMPTS, negative_prompt="blur", output_type="light_field", frame_rate=12.0, baseline=1.5,
        view_spacing=0.5, generator=[seeded(4), seeded(5)],
    )  # fmt: skip
    assert [type(movie) for movie in movies] == [LightField, LightField]
    first = movies[0]
    assert first.shape == (3, 2, 3, 2, 8, 8)
    assert first.frame_rate == 12.0
    assert (first.camera_grid.baseline, first.camera_grid.spacing) == (1.5, 0.5)
    origin = movies[1].provenance
    assert (origin["prompt"], origin["negative_prompt"], origin["seed"]) == (PROMPTS[1], "blur", 5)
    assert (origin["num_inference_steps"], origin["guidance_scale"], origin["scheduler"]) == (3, 3.0, "StaleScheduler")
    assert {"made_by", "checkpoint", "scheduler_config_hash", "dtype"} <= set(origin)


def test_guidance_leads_away_from_flat_and_still_movies(tiny_pipeline, monkeypatch):
    """What a step says is 3 times the prompt's prediction less twice the negative one, of cameras in one place."""
    told = []
    forward = tiny_pipeline.unet.forward

    def listen(sample, *arguments, **conditions):
        told.append({name: conditions[name] for name in ("view_baseline", "frame_spacing")})
        return forward(sample, *arguments, **conditions)

    monkeypatch.setattr(tiny_pipeline.unet, "forward", listen)
    usual = run(tiny_pipeline, baseline=2.0)
    assert told[-1] == {"view_baseline": 2.0, "frame_spacing": 1.0}
    changed = run(tiny_pipeline, baseline=2.0, negative_baseline=0.0, negative_frame_spacing=0.5)
    assert [value.tolist() for value in told[-1].values()] == [[0.0, 2.0], [0.5, 1.0]]
    assert torch.equal(run(tiny_pipeline, baseline=2.0, negative_baseline=1.0), usual)
    assert not torch.allclose(changed, usual)
    told.clear()
    run(tiny_pipeline, num_inference_steps=8, negative_baseline=0.0, negative_end=0.5)
    told_otherwise = [isinstance(each["view_baseline"], torch.Tensor) for each in told]
    assert told_otherwise == [float(timestep) >= 500 for timestep in tiny_pipeline.scheduler.timesteps]
    assert set(told_otherwise) == {True, False}
    run(tiny_pipeline, guidance_scale=1.0, negative_baseline=0.0)
    assert told[-1]["view_baseline"] == 1.0, "without guidance there is no negative prediction"


def test_what_guidance_leads_away_from_travels_with_the_checkpoint(tiny_pipeline, tmp_path):
    own = StaleDiffusionPipeline(**tiny_pipeline.components, default_negative_baseline=0.0)
    movie = run(own, output_type="light_field")[0]
    assert movie.provenance["negative_conditions"] == {
        "negative_baseline": 0.0, "negative_frame_spacing": 1.0, "negative_end": 1.0,
    }  # fmt: skip
    own.save_pretrained(tmp_path)
    again = StaleDiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(run(again), run(tiny_pipeline, negative_baseline=0.0))
    assert torch.equal(run(again, negative_baseline=1.0), run(tiny_pipeline))


@pytest.mark.parametrize(
    "wrong",
    [
        {"negative_baseline": float("nan")},
        {"negative_frame_spacing": -1.0},
        {"frame_spacing": -0.5},
        {"negative_end": -1.0},
    ],
)
def test_negative_conditions_that_are_none_are_refused(tiny_pipeline, wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be a finite number"):
        run(tiny_pipeline, **wrong)


def test_output_types_are_the_same_movie(tiny_pipeline):
    tensor = run(tiny_pipeline, output_type="pt")
    array = run(tiny_pipeline, output_type="np")
    light_field = run(tiny_pipeline, output_type="light_field")[0]
    assert tensor.shape == (1, 3, 2, 3, 2, 8, 8)
    assert array.shape == (1, 2, 3, 2, 8, 8, 3)
    assert 0 <= tensor.min() < tensor.max() <= 1
    assert np.array_equal(array, tensor.movedim(1, -1).numpy())
    assert (light_field.pixels / 255 - tensor[0]).abs().max() <= 0.51 / 255
    assert run(tiny_pipeline).shape == LATENT_SHAPE


def test_tuple_holds_the_same(tiny_pipeline):
    result = tiny_pipeline("a brown horse", generator=seeded(), return_dict=False, **REQUEST)
    assert isinstance(result, tuple)
    assert torch.equal(result[0], run(tiny_pipeline))


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 1, 3), (1, 2, 1), (3, 1, 2)])
def test_any_grid(tiny_pipeline, grid):
    sizes = dict(zip(("view_rows", "view_cols", "num_frames"), grid, strict=True))
    assert run(tiny_pipeline, **sizes).shape == (1, LATENT_CHANNELS, *grid, 4, 4)


def test_sizes_that_the_unet_halves_to_odd_ones(tiny_pipeline):
    assert run(tiny_pipeline, height=6, width=10, output_type="pt").shape[-2:] == (6, 10)


def test_baseline_and_spacing_reach_the_network(tiny_pipeline):
    usual = run(tiny_pipeline)
    assert torch.equal(run(tiny_pipeline, baseline=2.0), run(tiny_pipeline, view_spacing=2.0))
    assert not torch.allclose(usual, run(tiny_pipeline, baseline=2.0), atol=1e-4)


# ---- same seed, same movie ---------------------------------------------------------------------------------------


def test_a_loop_of_turned_noise_is_the_turned_loop(make_pipeline):
    pipeline = make_pipeline()
    noise = torch.randn((1, LATENT_CHANNELS, 1, 2, 5, 4, 4), generator=seeded())
    options = {"view_rows": 1, "view_cols": 2, "num_frames": 5}
    loop = run(pipeline, latents=noise, loop=True, **options)
    turned = run(pipeline, latents=noise.roll(2, dims=4), loop=True, **options)
    assert torch.allclose(turned, loop.roll(2, dims=4), atol=1e-4)
    assert not torch.allclose(run(pipeline, latents=noise, **options), loop, atol=1e-3)


def test_same_seed_same_movie(tiny_pipeline):
    assert torch.equal(run(tiny_pipeline), run(tiny_pipeline))
    assert not torch.allclose(run(tiny_pipeline), run(tiny_pipeline, generator=seeded(1)), atol=1e-2)
    assert not torch.allclose(run(tiny_pipeline), run(tiny_pipeline, "at noon"), atol=1e-4)


def test_a_batch_equals_its_movies_alone(tiny_pipeline):
    negatives = ["", "red barn"]
    batch = run(tiny_pipeline, PROMPTS, negative_prompt=negatives, generator=[seeded(1), seeded(2)])
    alone = [
        run(tiny_pipeline, prompt, negative_prompt=negative, generator=seeded(seed))
        for prompt, negative, seed in zip(PROMPTS, negatives, (1, 2), strict=True)
    ]
    assert torch.allclose(batch, torch.cat(alone), atol=1e-4)


def test_one_generator_serves_a_batch(tiny_pipeline):
    batch = run(tiny_pipeline, PROMPTS)
    assert torch.equal(batch, run(tiny_pipeline, PROMPTS))
    assert not torch.allclose(batch[0], batch[1], atol=1e-2)


def test_several_movies_of_each_prompt_stand_together(tiny_pipeline):
    generators = [seeded(seed) for seed in range(4)]
    batch = run(tiny_pipeline, PROMPTS, num_videos_per_prompt=2, generator=generators)
    assert torch.allclose(batch[2:3], run(tiny_pipeline, PROMPTS[1], generator=seeded(2)), atol=1e-4)
    movies = run(tiny_pipeline, PROMPTS, num_videos_per_prompt=2, output_type="light_field")
    assert [movie.provenance["prompt"] for movie in movies] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2


def test_given_latents_are_the_noise(tiny_pipeline):
    latents = torch.randn(LATENT_SHAPE, generator=seeded())
    assert torch.equal(run(tiny_pipeline, latents=latents, generator=None), run(tiny_pipeline))


def test_given_embeddings_stand_for_the_prompts(tiny_pipeline):
    text, negative = tiny_pipeline.encode_prompt("a brown horse", negative_prompt="at noon")
    embedded = run(tiny_pipeline, None, prompt_embeds=text, negative_prompt_embeds=negative)
    assert torch.equal(embedded, run(tiny_pipeline, negative_prompt="at noon"))
    assert torch.equal(run(tiny_pipeline, None, prompt_embeds=text), run(tiny_pipeline))


def test_no_negative_prompt_is_the_empty_one(tiny_pipeline):
    assert torch.equal(run(tiny_pipeline), run(tiny_pipeline, negative_prompt=""))
    assert torch.isfinite(run(tiny_pipeline, "")).all()


# ---- guidance ----------------------------------------------------------------------------------------------------


def test_guidance_of_1_is_the_network_with_text_alone(make_pipeline, monkeypatch):
    pipeline, batches = make_pipeline(), []
    forward = pipeline.unet.forward
    monkeypatch.setattr(
        pipeline.unet, "forward", lambda *args, **kwargs: batches.append(len(args[0])) or forward(*args, **kwargs)
    )
    plain = run(pipeline, guidance_scale=1.0)
    assert batches == [1, 1, 1]
    assert not pipeline.do_classifier_free_guidance
    nearly = run(pipeline, guidance_scale=1.0 + 1e-6)
    assert batches[3:] == [2, 2, 2]
    assert torch.allclose(plain, nearly, atol=1e-4)
    assert not torch.allclose(plain, run(pipeline, guidance_scale=5.0), atol=1e-3)


def test_full_rescale_restores_the_deviation_of_the_unguided_prediction(tiny_pipeline):
    predictions = {}
    latents = torch.randn(LATENT_SHAPE, generator=seeded())
    text, empty = tiny_pipeline.encode_prompt("a brown horse")
    conditions = {"view_baseline": 1.0, "view_spacing": 1.0}
    timestep = torch.tensor(500)
    for name, scale, rescale in (("alone", 1.0, 0.0), ("guided", 30.0, 0.0), ("rescaled", 30.0, 1.0)):
        tiny_pipeline._guidance_scale = scale
        embeddings = text if scale == 1.0 else torch.cat([empty, text])
        with torch.no_grad():
            predictions[name] = tiny_pipeline.predict(latents, timestep, embeddings, conditions, rescale)
    assert torch.allclose(predictions["rescaled"].std(), predictions["alone"].std(), rtol=1e-4)
    assert not torch.allclose(predictions["guided"].std(), predictions["alone"].std(), rtol=1e-3)


# ---- callbacks ---------------------------------------------------------------------------------------------------


def test_callback_sees_every_step(tiny_pipeline):
    seen = []

    def look(pipeline, step, timestep, tensors):
        seen.append((step, int(timestep), {name: tuple(tensor.shape) for name, tensor in tensors.items()}))

    run(tiny_pipeline, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])
    shapes = {"latents": LATENT_SHAPE, "prompt_embeds": (2, MAX_TOKENS, TEXT_CHANNELS)}
    assert seen == [(step, int(tiny_pipeline.scheduler.timesteps[step]), shapes) for step in range(3)]
    assert tiny_pipeline.num_timesteps == 3


def test_callback_changes_latents(tiny_pipeline):
    def clear(pipeline, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else None

    assert not run(tiny_pipeline, callback_on_step_end=clear).any()


def test_callback_changes_guidance(make_pipeline):
    pipeline = make_pipeline()

    def switch_off(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 0.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]} if step == 0 else {}

    names = ["latents", "prompt_embeds"]
    movie = run(pipeline, callback_on_step_end=switch_off, callback_on_step_end_tensor_inputs=names)
    assert movie.shape == LATENT_SHAPE
    assert pipeline.guidance_scale == 0.0


def test_callback_interrupts(tiny_pipeline):
    steps = []

    def stop(pipeline, step, timestep, tensors):
        steps.append(step)
        pipeline._interrupt = True

    interrupted = run(tiny_pipeline, callback_on_step_end=stop)
    assert steps == [0]
    assert tiny_pipeline.interrupt
    assert not torch.equal(interrupted, run(tiny_pipeline))
    assert not tiny_pipeline.interrupt


# ---- decoding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 5, 12, 1000])
def test_decoding_in_chunks_equals_decoding_whole(tiny_pipeline, chunk):
    latents = torch.randn(LATENT_SHAPE, generator=seeded())
    vae = tiny_pipeline.vae
    with torch.no_grad():
        whole = vae.decode(fold(latents, IMAGE_AXES) / vae.config.scaling_factor + vae.config.shift_factor).sample
    pixels = tiny_pipeline.decode_latents(latents, decode_chunk_size=chunk)
    assert torch.allclose(fold(pixels, IMAGE_AXES), whole.clamp(-1, 1), atol=1e-5)


def test_no_more_images_than_a_chunk_are_decoded_at_once(make_pipeline, monkeypatch):
    pipeline, counts = make_pipeline(), []
    decode = pipeline.vae.decode
    monkeypatch.setattr(pipeline.vae, "decode", lambda images: counts.append(len(images)) or decode(images))
    run(pipeline, output_type="pt", decode_chunk_size=5)
    assert counts == [5, 5, 2]


# ---- not finite --------------------------------------------------------------------------------------------------


def test_nan_names_the_step(make_pipeline, monkeypatch):
    pipeline, calls = make_pipeline(), []
    forward = pipeline.unet.forward

    def poisoned(*args, **kwargs):
        calls.append(1)
        output = forward(*args, **kwargs)
        output.sample[...] *= float("nan") if len(calls) == 2 else 1.0
        return output

    monkeypatch.setattr(pipeline.unet, "forward", poisoned)
    with pytest.raises(FloatingPointError, match="after step 2 of 3"):
        run(pipeline)
    assert len(calls) == 2


def test_nan_of_a_callback_names_the_step(tiny_pipeline):
    with pytest.raises(FloatingPointError, match="after step 1 of 3"):
        run(tiny_pipeline, callback_on_step_end=lambda *args: {"latents": torch.full(LATENT_SHAPE, float("inf"))})


def test_nan_of_the_autoencoder_is_told(make_pipeline):
    pipeline = make_pipeline()
    pipeline.vae.decoder.conv_out.bias.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="Decoded pixels.*float32"):
        run(pipeline, output_type="light_field")


# ---- text --------------------------------------------------------------------------------------------------------


def test_text_that_is_cut_off_is_quoted(tiny_pipeline, caplog):
    kept = " ".join(["horse"] * (MAX_TOKENS - 2))
    with caplog.at_level(logging.WARNING):
        long, short = (run(tiny_pipeline, text) for text in (f"{kept} by a blue barn", kept))
    assert len(caplog.records) == 1
    assert "'by a blue barn'" in caplog.text.replace("barn '", "barn'")
    assert torch.equal(long, short)


def test_what_is_kept_and_cut_is_the_whole(tiny_tokenizer):
    text = " ".join(f"the horse {index}" for index in range(9))
    ids = tiny_tokenizer(text, truncation=True, max_length=MAX_TOKENS).input_ids[1:-1]
    assert (tiny_tokenizer.decode(ids) + " " + cut_off_text(tiny_tokenizer, text)).split() == text.split()
    assert cut_off_text(tiny_tokenizer, "a horse") == ""


# ---- bad input ---------------------------------------------------------------------------------------------------

EMBEDDINGS = torch.zeros(1, MAX_TOKENS, TEXT_CHANNELS)
BAD_REQUESTS = {
    "no prompt": ({"prompt": None}, "Either `prompt` or `prompt_embeds`.*neither"),
    "number as prompt": ({"prompt": 3}, r"`prompt` must be a string.*got 3 \(int\)"),
    "bytes as prompt": ({"prompt": b"horse"}, "`prompt` must be a string.*bytes"),
    "no prompts": ({"prompt": []}, "`prompt`.*at least one"),
    "number among prompts": ({"prompt": ["a", 3]}, r"`prompt\[1\]` must be a string, got 3"),
    "surrogate": ({"prompt": "a\ud800b"}, r"lone surrogate U\+D800 at position 1.*UTF-8"),
    "nul": ({"prompt": "horse\0"}, "NUL characters, got one at position 5; remove"),
    "surrogate in negative": ({"negative_prompt": "\udfff"}, "`negative_prompt` must be valid Unicode"),
    "negative number": ({"negative_prompt": 3}, "`negative_prompt` must be a string"),
    "negative list": ({"negative_prompt": ["a", "b"]}, "list of 1, one for each prompt, got 2"),
    "both prompts": ({"prompt_embeds": EMBEDDINGS}, "got both"),
    "both negatives": ({"negative_prompt": "a", "negative_prompt_embeds": EMBEDDINGS}, "Only one of `neg.*got both"),
    "flat embeddings": ({"prompt": None, "prompt_embeds": EMBEDDINGS[0]}, "`prompt_embeds` must be.*shape"),
    "narrow embeddings": ({"prompt": None, "prompt_embeds": EMBEDDINGS[..., :3]}, r"tokens, 16\), got \(1, 16, 3\)"),
    "nan embeddings": ({"prompt": None, "prompt_embeds": EMBEDDINGS / 0}, "`prompt_embeds` must be finite"),
    "whole-number embeddings": ({"prompt": None, "prompt_embeds": EMBEDDINGS.long()}, "tensor of floats"),
    "unlike embeddings": (
        {"prompt": None, "prompt_embeds": EMBEDDINGS, "negative_prompt_embeds": EMBEDDINGS[:, :3]},
        "the shape of `prompt_embeds`",
    ),
    "too many negatives": ({"negative_prompt_embeds": EMBEDDINGS.repeat(2, 1, 1)}, r"shape \(1, tokens, 16\)"),
    "no rows": ({"view_rows": 0}, "`view_rows` must be an integer of at least 1, got 0"),
    "negative columns": ({"view_cols": -3}, "`view_cols`.*got -3"),
    "half a view": ({"view_cols": 1.5}, "`view_cols`.*got 1.5"),
    "true rows": ({"view_rows": True}, "`view_rows`.*got True"),
    "no frames": ({"num_frames": 0}, "`num_frames` must be an integer between 1 and 8, got 0"),
    "too many frames": ({"num_frames": 9}, "`num_frames` must be an integer between 1 and 8, got 9"),
    "odd height": ({"height": 7}, "`height` must be a positive multiple of 2.*got 7"),
    "no width": ({"width": 0}, "`width` must be a positive multiple of 2.*got 0"),
    "broken width": ({"width": 8.0}, "`width` must be a positive multiple of 2.*got 8.0"),
    "no steps": ({"num_inference_steps": 0}, "`num_inference_steps`.*got 0"),
    "word as steps": ({"num_inference_steps": "ten"}, "`num_inference_steps`.*got 'ten'"),
    "too many steps": ({"num_inference_steps": 1001}, "`num_inference_steps`.* whole number between 1 and 1000"),
    "no videos": ({"num_videos_per_prompt": 0}, "`num_videos_per_prompt`.*got 0"),
    "nan guidance": ({"guidance_scale": float("nan")}, "`guidance_scale` must be a finite number, got nan"),
    "word as guidance": ({"guidance_scale": "3"}, "`guidance_scale` must be a finite number, got '3'"),
    "negative rescale": ({"guidance_rescale": -1.0}, "`guidance_rescale` must be.*at least 0"),
    "infinite baseline": ({"baseline": float("inf")}, "`baseline` must be a finite number, got inf"),
    "no spacing": ({"view_spacing": 0.0}, "`view_spacing` must be.*greater than 0"),
    "no frame rate": ({"frame_rate": 0}, "`frame_rate` must be.*greater than 0"),
    "no chunk": ({"decode_chunk_size": 0}, "`decode_chunk_size`.*got 0"),
    "unknown output": ({"output_type": "pil"}, "`output_type` must be one of 'light_field', 'pt', 'np', 'latent'"),
    "few generators": ({"generator": [seeded()] * 2}, "list of 1, one for each movie, got a list of 2"),
    "seed as generator": ({"generator": 3}, "`generator` must be a torch.Generator.*got 3"),
    "short latents": ({"latents": torch.zeros(1, 4, 4, 4)}, r"`latents`.*shape \(1, 4, 2, 3, 2, 4, 4\).*got \(1, 4"),
    "nan latents": ({"latents": torch.full(LATENT_SHAPE, float("nan"))}, "`latents` must be finite"),
    "unknown tensor": ({"callback_on_step_end_tensor_inputs": ["noise"]}, "must be one of 'latents'.*got 'noise'"),
    "tensor as a word": ({"callback_on_step_end_tensor_inputs": "latents"}, "must be a list of names"),
    "both schedules": ({"timesteps": [5], "sigmas": [1.0]}, "Only one of `timesteps` and `sigmas`"),
    "sigmas": ({"sigmas": [1.0, 2.0]}, "`sigmas` must descend"),
    "rising timesteps": ({"timesteps": [1, 500]}, "`timesteps` must descend"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_refused_before_any_work(make_pipeline, monkeypatch, name):
    changes, message = BAD_REQUESTS[name]
    pipeline = make_pipeline()
    for part in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        monkeypatch.setattr(part, "forward", lambda *args, **kwargs: pytest.fail("worked on a bad request"))
    with pytest.raises(ValueError, match=message):
        pipeline(**{"prompt": "a horse", **REQUEST, **changes})


def test_size_must_be_known_from_somewhere(make_components, make_unet):
    pipeline = StaleDiffusionPipeline(**{**make_components(), "unet": make_unet(sample_size=None)})
    with pytest.raises(ValueError, match="`height` and `width` must be given"):
        run(pipeline)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 7}, r"4 latent channels \(or, for inpainting, 9\), got `in_channels=7`"),
        ({"num_class_embeds": 3}, "num_class_embeds=3"),
    ],
)
def test_networks_that_need_more_than_a_text_are_refused(make_components, make_unet, changes, message):
    pipeline = StaleDiffusionPipeline(**{**make_components(), "unet": make_unet(**changes)})
    with pytest.raises(ValueError, match=message):
        run(pipeline)


def test_own_timesteps(tiny_pipeline):
    run(tiny_pipeline)
    usual = tiny_pipeline.scheduler.timesteps.tolist()
    assert torch.equal(run(tiny_pipeline, timesteps=usual, num_inference_steps=7), run(tiny_pipeline))
    assert tiny_pipeline.num_timesteps == 3


# ---- memory ------------------------------------------------------------------------------------------------------


def test_requests_beyond_memory_are_refused_unless_forced(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(memory, "free_host_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"needs about .* GiB of memory on cpu, and 0.0 GiB are free.*force=True"):
        run(tiny_pipeline)
    assert run(tiny_pipeline, force=True).shape == LATENT_SHAPE
    monkeypatch.setattr(memory, "free_host_memory", lambda: None)
    assert run(tiny_pipeline).shape == LATENT_SHAPE


def test_estimate_agrees_with_what_was_measured():
    """Rise of the resident set in denoising, in MiB, on a CPU; see the constants in `memory.py`."""
    unet = {"block_out_channels": (64, 128, 192), "layers_per_block": 1, "cross_attention_dim": 128}
    vae = {"block_out_channels": (32, 64, 64)}
    for grid_and_size, measured in (((3, 3, 8, 16, 16), 276), ((3, 3, 8, 32, 32), 778), ((5, 5, 16, 16, 16), 969)):
        shape = (1, 8, *grid_and_size)
        estimate = estimate_memory(unet, vae, shape, guided=True, decode_chunk_size=16, tokens=32)
        assert 0.5 < estimate.denoising / 2**20 / measured < 2


def test_memory_of_decoding_does_not_grow_with_views_and_frames(tiny_pipeline):
    unet, vae = tiny_pipeline.unet.config, tiny_pipeline.vae.config
    small, large = (
        estimate_memory(unet, vae, (1, 4, views, views, 8, 4, 4), guided=True, decode_chunk_size=16)
        for views in (2, 9)
    )
    latents = 5 * 4 * 4 * 4 * 4
    assert large.decoding - small.decoding == latents * 8 * (81 - 4)
    assert large.denoising > 15 * small.denoising


def test_pixels_count_on_the_cpu_only():
    estimate = MemoryEstimate(denoising=10, decoding=5, pixels=7)
    assert (estimate.peak(torch.device("cpu")), estimate.peak(torch.device("cuda"))) == (12, 10)


def test_free_memory_is_plausible():
    free = free_host_memory()
    assert free is None or 2**20 < free < 2**50


# ---- other schedulers, adapters, devices -------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, EulerAncestralDiscreteScheduler])
def test_schedulers_of_diffusers(make_components, scheduler_class):
    """Also those that scale their input, or draw noise while sampling: then a batch still equals its movies alone."""
    scheduler = scheduler_class(prediction_type="v_prediction")
    pipeline = StaleDiffusionPipeline(**{**make_components(), "scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    batch = run(pipeline, PROMPTS, generator=[seeded(1), seeded(2)])
    assert torch.allclose(batch[1:], run(pipeline, PROMPTS[1], generator=seeded(2)), atol=1e-3)
    assert torch.equal(run(pipeline), run(pipeline))


@pytest.mark.skipif(not is_peft_available(), reason="LoRA needs peft")
def test_lora_loads_scales_and_unloads(make_pipeline, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    donor, pipeline = make_pipeline(), make_pipeline()
    plain = run(pipeline)
    donor.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StaleDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(donor.unet))
    pipeline.load_lora_weights(tmp_path)
    assert not torch.allclose(run(pipeline), plain, atol=1e-4)
    assert torch.allclose(run(pipeline, cross_attention_kwargs={"scale": 0.0}), plain, atol=1e-5)
    pipeline.unload_lora_weights()
    assert torch.equal(run(pipeline), plain)


def test_offloading_names_the_components_and_does_no_harm(make_pipeline):
    """Without an accelerator diffusers refuses in its own words; with one, movies stay the same."""
    pipeline = make_pipeline()
    assert pipeline.model_cpu_offload_seq.split("->") == ["text_encoder", "unet", "vae"]
    plain = run(pipeline)
    if torch.accelerator.is_available():
        pipeline.enable_model_cpu_offload()
    else:
        with pytest.raises(RuntimeError, match="accelerator"):
            pipeline.enable_model_cpu_offload()
    assert torch.allclose(run(pipeline).cpu(), plain, atol=1e-3)


# ---- from Stable Diffusion ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stable_diffusion(make_components, make_unet2d, tmp_path_factory):
    """Folder of a tiny Stable Diffusion checkpoint, and its 2D UNet."""
    parts = make_components()
    torch.manual_seed(1)
    unet2d = make_unet2d()
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    pipeline = StableDiffusionPipeline(
        **parts | {"unet": unet2d, "scheduler": scheduler},
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("stable_diffusion")
    pipeline.save_pretrained(folder)
    return folder, unet2d


@torch.no_grad()
def test_from_stable_diffusion_predicts_every_frame_as_the_2d_network(stable_diffusion):
    folder, unet2d = stable_diffusion
    pipeline = StaleDiffusionPipeline.from_stable_diffusion(folder)
    latents = torch.randn(LATENT_SHAPE, generator=seeded())
    text, _ = pipeline.encode_prompt("a brown horse")
    ours = pipeline.unet(latents, 400, text).sample
    images = fold(latents, IMAGE_AXES)
    theirs = unet2d(images, 400, text.expand(len(images), -1, -1)).sample
    assert torch.allclose(fold(ours, IMAGE_AXES), theirs, atol=1e-5)
    assert isinstance(pipeline.scheduler, StaleScheduler)
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.scheduler.config.rescale_betas_zero_snr is False
    movie = run(pipeline, output_type="light_field")[0]
    assert movie.provenance["checkpoint"] == folder.name


def test_from_stable_diffusion_saves_and_loads(stable_diffusion, tmp_path):
    pipeline = StaleDiffusionPipeline.from_stable_diffusion(
        stable_diffusion[0], new_layer_options={"time_max_frames": 5, "view_layer_types": "none"}
    )
    pipeline.save_pretrained(tmp_path)
    loaded = StaleDiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(run(loaded), run(pipeline))
    assert run(loaded, output_type="light_field")[0].provenance["checkpoint"] == tmp_path.name
    assert loaded.unet.config.time_max_frames == 5


def test_from_stable_diffusion_in_half_precision(stable_diffusion):
    pipeline = StaleDiffusionPipeline.from_stable_diffusion(stable_diffusion[0], torch_dtype=torch.bfloat16)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.bfloat16}


def test_from_stable_diffusion_names_missing_parts(tmp_path):
    (tmp_path / "unet").mkdir()
    with pytest.raises(ValueError, match="without vae, text_encoder, tokenizer, scheduler"):
        StaleDiffusionPipeline.from_stable_diffusion(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("middle", [True, False])
def test_a_motion_adapter_makes_every_view_animatediffs_movie(stable_diffusion, make_adapter, tmp_path, middle):
    folder, unet2d = stable_diffusion
    adapter = make_adapter(use_motion_mid_block=middle)
    adapter.save_pretrained(tmp_path)
    reference = UNetMotionModel.from_unet2d(unet2d, adapter).eval()
    pipeline = StaleDiffusionPipeline.from_stable_diffusion(folder, motion_adapter=str(tmp_path))
    latents = torch.randn(1, LATENT_CHANNELS, 1, 2, 5, 4, 4, generator=seeded())
    text, _ = pipeline.encode_prompt("a brown horse")
    ours = pipeline.unet(latents, 400, text).sample
    for view in range(2):
        theirs = reference(latents[:, :, 0, view], 400, text.repeat_interleave(5, dim=0)).sample
        assert torch.allclose(ours[:, :, 0, view], theirs, atol=1e-4)
    still = inflate_unet2d(unet2d)(latents, 400, text).sample
    assert not torch.allclose(ours, still, atol=1e-3)
    assert pipeline.unet.config.time_max_frames == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"motion_layers_per_block": 2}, r"motion_layers_per_block=\(1, 1\)"),
        ({"block_out_channels": (8, 32)}, r"down_blocks\.1\.motion_modules\.0.* 16 channels.*got 32"),
        ({"block_out_channels": (8, 16, 16)}, r"2 levels, of \(8, 16\) channels, got 3"),
        ({"motion_transformer_layers_per_block": 2}, "motion_transformer_layers_per_block"),
        ({"motion_num_attention_heads": (2, 4)}, r"motion_num_attention_heads=\(2, 2\)"),
        ({"conv_in_channels": 9}, "conv_in_channels"),
    ],
)
def test_motion_adapters_that_do_not_fit_are_refused(make_unet2d, make_adapter, changes, message):
    with pytest.raises(ValueError, match=message):
        inflate_unet2d(make_unet2d(), make_adapter(**changes))


def test_motion_adapters_decide_on_time_layers(make_unet2d, make_adapter):
    with pytest.raises(ValueError, match="leave out time_max_frames"):
        inflate_unet2d(make_unet2d(), make_adapter(), time_max_frames=4)
    with pytest.raises(ValueError, match="MotionAdapter, got Linear"):
        inflate_unet2d(make_unet2d(), torch.nn.Linear(1, 1))
