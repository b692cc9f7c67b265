"""Truths of `from_stable_diffusion`: each view and frame is what diffusers' own pipeline for that checkpoint makes."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from diffusers_stale import LightField, StaleDiffusionPipeline, StaleDiffusionXLPipeline
from diffusers_stale.axes import IMAGE_AXES, fold, middle_index
from diffusers_stale.hub import load_pipeline
from diffusers_stale.inflation import is_new_parameter, new_parameter_names
from diffusers_stale.known_pictures import inpainting_channels


PROMPTS = ["a brown horse gallops", "a white cow stands by a blue barn"]
NEGATIVE = "a red barn"
GRID = {"view_rows": 1, "view_cols": 2, "num_frames": 3}
IMAGES = 6
CHANNELS = 16
TEXT_HEADS = 2
SIZE = 8
STEPS = {"num_inference_steps": 2, "guidance_scale": 3.0}
REQUEST = {**STEPS, "output_type": "latent", "return_dict": False, "height": SIZE, "width": SIZE}

SPATIAL = {
    "sample_size": SIZE // 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": CHANNELS,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SDXL = {
    **SPATIAL,
    "cross_attention_dim": 2 * CHANNELS,
    "attention_head_dim": (2, 4),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 10,
}
KINDS = {
    "1.5": SPATIAL,
    "2.1": {**SPATIAL, "attention_head_dim": (2, 4), "use_linear_projection": True},
    "guidance embedding": {**SPATIAL, "time_cond_proj_dim": 6},
    "xl": SDXL,
}
SCHEDULERS = {
    "1.5": lambda: DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "2.1": lambda: DDIMScheduler(prediction_type="v_prediction", set_alpha_to_one=False, steps_offset=1),
    "guidance embedding": DDIMScheduler,
    "xl": lambda: EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
}


def text_encoder(tokenizer: CLIPTokenizer, kind: type = CLIPTextModel, **changes: object) -> CLIPTextModel:
    """A text encoder of two layers, so that the last hidden state but one is not what goes in."""
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": CHANNELS,
        "intermediate_size": CHANNELS,
        "num_hidden_layers": 2,
        "num_attention_heads": TEXT_HEADS,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return kind(CLIPTextConfig(**config | changes)).eval()


@pytest.fixture(scope="module")
def make_parent(
    tiny_tokenizer: CLIPTokenizer, make_components: Callable[[], dict]
) -> Callable[..., DiffusionPipeline]:
    """Builds diffusers' pipeline of one of `KINDS` from tiny random parts, with changes of the UNet as keywords."""

    def build(kind: str, **changes: object) -> DiffusionPipeline:
        torch.manual_seed(0)
        vae: AutoencoderKL = make_components()["vae"]
        vae.register_to_config(shift_factor=None)  # as in every Stable Diffusion, whose pipelines do not know of it
        torch.manual_seed(1)
        parts = {
            "vae": vae,
            "unet": UNet2DConditionModel(**KINDS[kind] | changes).eval(),
            "text_encoder": text_encoder(tiny_tokenizer),
            "tokenizer": tiny_tokenizer,
            "scheduler": SCHEDULERS[kind](),
        }
        if kind == "xl":
            second = text_encoder(tiny_tokenizer, CLIPTextModelWithProjection, projection_dim=10)
            pipeline = StableDiffusionXLPipeline(
                **parts, text_encoder_2=second, tokenizer_2=tiny_tokenizer, add_watermarker=False
            )
        else:
            pipeline = StableDiffusionPipeline(
                **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build


@pytest.fixture(scope="module")
def folders(make_parent: Callable[..., DiffusionPipeline], tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The pipeline of each of `KINDS`, and the folder that it was saved to."""
    saved = {}
    for kind in KINDS:
        folder, pipeline = tmp_path_factory.mktemp(kind.replace(" ", "_")), make_parent(kind)
        pipeline.save_pretrained(folder)
        saved[kind] = (pipeline, folder)
    return saved


def inflated(folder: Path, scheduler: object, **options: object) -> StaleDiffusionPipeline:
    """The light-field pipeline of the checkpoint in `folder`, with the `scheduler` of another pipeline."""
    pipeline = StaleDiffusionPipeline.from_stable_diffusion(folder, **options)
    pipeline.scheduler = copy.deepcopy(scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(frames: int = GRID["num_frames"], view_cols: int = GRID["view_cols"]) -> torch.Tensor:
    shape = (len(PROMPTS), 4, 1, view_cols, frames, SIZE // 2, SIZE // 2)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def of_images(texts: list[str]) -> list[str]:
    return [text for text in texts for _ in range(IMAGES)]


@pytest.mark.parametrize("output_type", ["latent", "pt"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_view_and_frame_is_what_the_parents_pipeline_makes(folders: dict, kind: str, output_type: str):
    parent, folder = folders[kind]
    pipeline = inflated(folder, parent.scheduler)
    assert type(pipeline).__name__ == ("StaleDiffusionXLPipeline" if kind == "xl" else "StaleDiffusionPipeline")
    size = {"height": SIZE, "width": SIZE}
    request = {**STEPS, **size, "output_type": output_type, "return_dict": False}
    ours = pipeline(PROMPTS, negative_prompt=NEGATIVE, latents=noise(), **GRID, **request)[0]
    theirs = parent(
        of_images(PROMPTS), negative_prompt=of_images([NEGATIVE] * 2), latents=fold(noise(), IMAGE_AXES), **request
    )[0]
    assert (fold(ours, IMAGE_AXES) - theirs).abs().max() <= 1e-4
    plain = pipeline(PROMPTS, negative_prompt="", latents=noise(), **GRID, **request)[0]
    assert (kind == "guidance embedding") == torch.allclose(plain, ours, atol=1e-5), "the negative prompt must count"


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_is_told_sizes_and_negative_prompts_as_its_own_pipeline_tells_them(folders: dict, zeros: bool):
    original, folder = folders["xl"]
    parent, pipeline = copy.deepcopy(original), inflated(folder, original.scheduler)
    parent.register_to_config(force_zeros_for_empty_prompt=zeros)
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    told = {"original_size": (300, 200), "crops_coords_top_left": (10, 20), "target_size": (64, 32)}
    request = {**STEPS, **told, "height": SIZE, "width": SIZE, "output_type": "latent", "return_dict": False}
    ours = pipeline(PROMPTS, latents=noise(), **GRID, **request)[0]
    theirs = parent(of_images(PROMPTS), latents=fold(noise(), IMAGE_AXES), **request)[0]
    assert (fold(ours, IMAGE_AXES) - theirs).abs().max() <= 1e-4
    untold = pipeline(PROMPTS, latents=noise(), **GRID, **request | dict.fromkeys(told))[0]
    assert (ours - untold).abs().max() > 1e-3


def test_sdxl_takes_what_it_encoded(folders: dict):
    parent, folder = folders["xl"]
    pipeline = inflated(folder, parent.scheduler)
    request = {**STEPS, "latents": noise(), **GRID, "output_type": "latent", "return_dict": False}
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    encoded = dict(zip(names, pipeline.encode_prompt(PROMPTS, negative_prompt=NEGATIVE), strict=True))
    theirs = parent.encode_prompt(PROMPTS, negative_prompt=[NEGATIVE] * 2, device="cpu")
    assert all(torch.allclose(ours, other, atol=1e-6) for ours, other in zip(encoded.values(), theirs, strict=True))
    expected = pipeline(PROMPTS, negative_prompt=NEGATIVE, **request)[0]
    assert torch.allclose(pipeline(**encoded, **request)[0], expected, atol=1e-6)


def test_guidance_can_be_switched_off_on_the_way(folders: dict):
    """As diffusers' guides do it, in a callback that halves the embeddings."""
    parent, folder = folders["xl"]
    pipeline = inflated(folder, parent.scheduler)

    def switch_off(pipe: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        if step > 0:
            return tensors
        pipe._guidance_scale = 1.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[1]}

    request = {**STEPS, "latents": noise(), **GRID, "output_type": "latent", "return_dict": False}
    hooks = {"callback_on_step_end": switch_off, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    switched = pipeline(PROMPTS, **request, **hooks)[0]
    assert switched.isfinite().all()
    assert not torch.allclose(switched, pipeline(PROMPTS, **request)[0], atol=1e-3)


def test_sdxl_is_saved_and_loaded_in_every_way(folders: dict, tmp_path: Path):
    parent, folder = folders["xl"]
    pipeline = inflated(folder, parent.scheduler)
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    pipeline.save_pretrained(tmp_path)
    request = {**STEPS, "latents": noise(), **GRID, "output_type": "latent", "return_dict": False}
    expected = pipeline(PROMPTS, **request)[0]
    for load in (DiffusionPipeline.from_pretrained, StaleDiffusionXLPipeline.from_pretrained, load_pipeline):
        loaded = load(tmp_path)
        assert isinstance(loaded, StaleDiffusionXLPipeline)
        loaded.set_progress_bar_config(disable=True)
        assert torch.allclose(loaded(PROMPTS, **request)[0], expected, atol=1e-5)


def test_sdxl_in_half_precision(folders: dict):
    for dtype, of_vae in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        pipeline = StaleDiffusionPipeline.from_stable_diffusion(folders["xl"][1], torch_dtype=dtype)
        assert {part.dtype for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2)} == {dtype}
        assert pipeline.vae.dtype == of_vae
        pipeline.set_progress_bar_config(disable=True)
        movie = pipeline(PROMPTS, **GRID, **STEPS, output_type="pt", return_dict=False)[0]
        assert movie.isfinite().all()


# ---- inpainting --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inpainting(make_parent: Callable[..., DiffusionPipeline], tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Diffusers' pipeline for inpainting, and the folder that it was saved to."""
    parts = make_parent("1.5", in_channels=9).components
    pipeline = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    folder = tmp_path_factory.mktemp("inpainting")
    pipeline.save_pretrained(folder)
    return pipeline, folder


@torch.no_grad()
def test_an_inpainting_network_paints_all_that_is_not_known(inpainting: tuple):
    parent, folder = inpainting
    pipeline = inflated(folder, parent.scheduler)
    ours = pipeline(PROMPTS, latents=noise(), **GRID, **REQUEST)[0]
    white, black = torch.ones(1, 1, SIZE, SIZE), torch.zeros(1, 1, SIZE, SIZE)
    grey = torch.zeros(1, 3, SIZE, SIZE)
    image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))

    def painted(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        known = parent.vae.encode(picture).latent_dist.mode() * parent.vae.config.scaling_factor
        images = fold(noise(), IMAGE_AXES)
        known = known.expand(len(images), -1, -1, -1)
        shown = {"image": picture, "mask_image": mask, "masked_image_latents": known, "strength": 1.0}
        return parent(of_images(PROMPTS), latents=images, **shown, **REQUEST)[0]

    everything = painted(grey, white)
    assert (fold(ours, IMAGE_AXES) - everything).abs().max() <= 1e-4
    # Given a still, its own place is kept, and the network is told so; elsewhere nothing changes, untrained as it is.
    given = pipeline(PROMPTS, latents=noise(), image=image, **GRID, **REQUEST)[0]
    place = (slice(None), slice(None), 0, middle_index(2), 0)
    kept = parent.vae.encode(image[None] * 2 - 1).latent_dist.mode() * parent.vae.config.scaling_factor
    assert torch.allclose(given[place], kept.expand(2, -1, -1, -1), atol=1e-5)
    elsewhere = given.clone()
    elsewhere[place] = ours[place]
    assert torch.allclose(elsewhere, ours, atol=1e-5)
    channels = inpainting_channels(
        pipeline.vae, noise(), kept[:, :, None, None, None].expand_as(noise()), torch.ones(1, 1, 1, 1, 1, 1, 1)
    )
    inputs = torch.cat([noise(), channels], dim=1)
    text = pipeline.encode_prompt(PROMPTS)[0]
    prediction = fold(pipeline.unet(inputs, 500, text).sample, IMAGE_AXES)
    images = fold(noise(), IMAGE_AXES)
    theirs = torch.cat([images, black[:, :, ::2, ::2].expand(12, -1, -1, -1), kept.expand(12, -1, -1, -1)], dim=1)
    expected = parent.unet(theirs, 500, text.repeat_interleave(IMAGES, dim=0)).sample
    assert (prediction - expected).abs().max() <= 1e-5


# ---- AnimateDiff -------------------------------------------------------------------------------------------------


VERSIONS = {
    "v1": {"use_motion_mid_block": False, "motion_max_seq_length": 24, "motion_norm_num_groups": 2},
    "v2": {"use_motion_mid_block": True, "motion_max_seq_length": 32},
    "v3": {"use_motion_mid_block": False, "motion_max_seq_length": 32},
}


@pytest.mark.parametrize(("kind", "version"), [("1.5", "v1"), ("1.5", "v2"), ("2.1", "v3"), ("xl", "v3")])
def test_a_motion_adapter_makes_the_movie_that_animatediff_makes(folders: dict, make_adapter, kind: str, version: str):
    parent, folder = folders[kind]
    adapter = make_adapter(**VERSIONS[version])
    names = ["vae", "text_encoder", "tokenizer", "unet"] + ["text_encoder_2", "tokenizer_2"] * (kind == "xl")
    reference = (AnimateDiffSDXLPipeline if kind == "xl" else AnimateDiffPipeline)(
        **{name: getattr(parent, name) for name in names},
        motion_adapter=adapter,
        scheduler=copy.deepcopy(parent.scheduler),
    )
    if kind == "xl":
        # `UNetMotionModel.from_unet2d` of diffusers 0.42.1 leaves this one at its random initialisation.
        reference.unet.add_embedding.load_state_dict(parent.unet.add_embedding.state_dict())
    reference.set_progress_bar_config(disable=True)
    pipeline = inflated(folder, parent.scheduler, motion_adapter=adapter)
    assert pipeline.unet.config.time_max_frames == VERSIONS[version]["motion_max_seq_length"]
    latents = noise(frames=5)
    size = {"height": SIZE, "width": SIZE}
    request = {**STEPS, **size, "num_frames": 5, "output_type": "latent", "return_dict": False}
    ours = pipeline(PROMPTS, negative_prompt=NEGATIVE, latents=latents, view_rows=1, view_cols=2, **request)[0]
    for view in range(2):
        theirs = reference(PROMPTS, negative_prompt=[NEGATIVE] * 2, latents=latents[:, :, 0, view].clone(), **request)[
            0
        ]
        assert (ours[:, :, 0, view] - theirs).abs().max() <= 1e-4
    still = inflated(folder, parent.scheduler)
    plain = still(PROMPTS, negative_prompt=NEGATIVE, latents=latents, view_rows=1, view_cols=2, **request)[0]
    assert (ours - plain).abs().max() > 1e-2


# ---- LoRA --------------------------------------------------------------------------------------------------------


TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "ff.net.2", "conv1", "time_emb_proj"],
    "text_encoder": ["q_proj", "v_proj", "fc1"],
}


def lora_of(parent: DiffusionPipeline, part: str) -> dict[str, torch.Tensor]:
    """Weights of a LoRA that does something, for a copy of a `part` of the 2D pipeline, by peft's names."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(7)
    targets = TARGETS[part.removesuffix("_2")]
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(getattr(parent, part)), config)
    prefix = "base_model.model."
    return {name.removeprefix(prefix): value for name, value in peft.get_peft_model_state_dict(adapted).items()}


def in_kohyas_layout(loras: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """LoRAs of some parts as kohya's trainers save them, with a rank of 2 and a strength of 1/2."""
    found = {}
    for part, weights in loras.items():
        for name, value in weights.items():
            layer, _, end = name.rpartition(".lora_")
            key = f"lora_{'unet' if part == 'unet' else 'te'}_{layer.replace('.', '_')}"
            found[f"{key}.lora_{'down' if end.startswith('A') else 'up'}.weight"] = value
            found[f"{key}.alpha"] = torch.tensor(1.0)
    return found


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_a_lora_of_the_2d_network_does_the_same_to_the_inflated_one(folders: dict, tmp_path: Path, layout: str):
    original, folder = folders["1.5"]
    loras = {part: lora_of(original, part) for part in ("unet", "text_encoder")}
    if layout == "diffusers":
        StableDiffusionPipeline.save_lora_weights(
            tmp_path, unet_lora_layers=loras["unet"], text_encoder_lora_layers=loras["text_encoder"]
        )
    else:
        save_file(in_kohyas_layout(loras), tmp_path / "pytorch_lora_weights.safetensors")
    parent, pipeline = copy.deepcopy(original), inflated(folder, original.scheduler)
    plain = pipeline(PROMPTS, latents=noise(), **GRID, **REQUEST)[0]
    for each in (parent, pipeline):
        each.load_lora_weights(tmp_path, adapter_name="style")
    assert pipeline.get_list_adapters() == {"text_encoder": ["style"], "unet": ["style"]}
    assert not any("lora" in name and is_new_parameter(name) for name, _ in pipeline.unet.named_parameters())

    def difference(**options: object) -> float:
        ours = pipeline(PROMPTS, latents=noise(), **GRID, **REQUEST, **options)[0]
        images = fold(noise(), IMAGE_AXES)
        theirs = parent(of_images(PROMPTS), latents=images, **REQUEST, **options)[0]
        assert (ours - plain).abs().max() > 1e-3
        return (fold(ours, IMAGE_AXES) - theirs).abs().max()

    assert difference() <= 1e-4
    assert difference(cross_attention_kwargs={"scale": 0.5}) <= 1e-4
    for each in (parent, pipeline):
        each.fuse_lora(lora_scale=0.7)
    assert difference() <= 1e-4
    for each in (parent, pipeline):
        each.unfuse_lora()
        each.set_adapters("style", 0.3)
    assert difference() <= 1e-4
    pipeline.unload_lora_weights()
    assert torch.allclose(pipeline(PROMPTS, latents=noise(), **GRID, **REQUEST)[0], plain, atol=1e-5)


def test_a_lora_of_sdxl_reaches_both_text_encoders(folders: dict, tmp_path: Path):
    original, folder = folders["xl"]
    loras = {part: lora_of(original, part) for part in ("unet", "text_encoder", "text_encoder_2")}
    parent, pipeline = copy.deepcopy(original), inflated(folder, original.scheduler)
    StaleDiffusionXLPipeline.save_lora_weights(tmp_path, **{f"{part}_lora_layers": loras[part] for part in loras})
    for each in (parent, pipeline):
        each.load_lora_weights(tmp_path)
    assert set(pipeline.get_list_adapters()) == {"text_encoder", "text_encoder_2", "unet"}
    for options in ({}, {"cross_attention_kwargs": {"scale": 0.5}}):
        ours = pipeline(PROMPTS, latents=noise(), **GRID, **REQUEST, **options)[0]
        theirs = parent(of_images(PROMPTS), latents=fold(noise(), IMAGE_AXES), **REQUEST, **options)[0]
        assert (fold(ours, IMAGE_AXES) - theirs).abs().max() <= 1e-4


def test_a_lora_that_is_trained_here_is_saved_and_loaded(folders: dict, tmp_path: Path):
    peft = pytest.importorskip("peft")
    original, folder = folders["1.5"]
    pipeline = inflated(folder, original.scheduler)
    torch.manual_seed(8)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    pipeline.unet.add_adapter(config, "views")
    expected = pipeline(PROMPTS, latents=noise(), **GRID, **REQUEST)[0]
    layers = peft.get_peft_model_state_dict(pipeline.unet, adapter_name="views")
    assert any("view_layers" in name for name in layers)
    StaleDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    fresh = inflated(folder, original.scheduler)
    # New layers begin with random numbers.
    new = {name: value for name, value in pipeline.unet.state_dict().items() if is_new_parameter(name)}
    plain = {name.replace(".base_layer", ""): value for name, value in new.items() if "lora_" not in name}
    assert not fresh.unet.load_state_dict(plain, strict=False).unexpected_keys
    fresh.load_lora_weights(tmp_path)
    assert torch.allclose(fresh(PROMPTS, latents=noise(), **GRID, **REQUEST)[0], expected, atol=1e-5)


# ---- the documentation -------------------------------------------------------------------------------------------


def test_the_ten_lines_of_the_documentation_run(
    folders: dict, make_adapter: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As they stand, but with tiny checkpoints in place of two of the Hub's, in float32 on the CPU."""
    lines = (Path(__file__).parent.parent / "docs" / "inflation.md").read_text(encoding="utf-8")
    program = lines.split("```python\n")[1].split("```")[0]
    assert len([line for line in program.splitlines() if line and not line.startswith(("import", "from"))]) <= 10
    make_adapter(**VERSIONS["v3"]).save_pretrained(tmp_path / "adapter")
    for old, new in (
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", str(folders["1.5"][1])),
        ("guoyww/animatediff-motion-adapter-v1-5-3", str(tmp_path / "adapter")),
        ("torch.float16", "torch.float32"),
        ("cuda", "cpu"),
    ):
        assert old in program
        program = program.replace(old, new)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(program, names)
    assert names["pipe"].scheduler.config.beta_schedule == "linear"
    assert names["movie"].pixels.shape == (3, 1, 1, 16, SIZE, SIZE)
    assert LightField.load(tmp_path / "horse.lf.safetensors").num_frames == 16
    loaded = StaleDiffusionPipeline.from_pretrained(tmp_path / "horse-5d")
    assert loaded.unet.config.time_double_self_attention
    for name, parameter in loaded.unet.named_parameters():
        parameter.requires_grad_("view_" in name)
    trained = {name for name, parameter in loaded.unet.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in new_parameter_names(loaded.unet) if "motion_modules" not in name.split(".")}


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("1.5", {"original_size": (8, 8)}, "`original_size` must be None"),
        ("1.5", {"pooled_prompt_embeds": torch.zeros(2, 10)}, "`pooled_prompt_embeds` must be None"),
        ("xl", {"target_size": 8}, "`target_size` must be a pair"),
        ("xl", {"crops_coords_top_left": (-1, 0)}, "`crops_coords_top_left` must be a pair"),
        ("xl", {"pooled_prompt_embeds": torch.zeros(2, 10)}, "`prompt_embeds` must be given together"),
        (
            "xl",
            {"negative_prompt_embeds": torch.zeros(2, 16, 32)},
            "`negative_pooled_prompt_embeds` must be given together with `negative_prompt_embeds`",
        ),
        (
            "xl",
            {
                "prompt": None,
                "prompt_embeds": torch.zeros(2, 16, 32),
                "pooled_prompt_embeds": torch.zeros(2, 7),
            },
            r"\(2, 10\), got \(2, 7\)",
        ),
    ],
)
def test_requests_that_do_not_fit_the_network_are_refused(folders: dict, kind: str, changes: dict, message: str):
    pipeline = StaleDiffusionPipeline.from_stable_diffusion(folders[kind][1])
    with pytest.raises(ValueError, match=message):
        pipeline(**{"prompt": PROMPTS, **GRID, **STEPS, **changes})


def test_networks_and_text_encoders_must_belong_together(folders: dict, make_parent, tmp_path: Path):
    refiner = make_parent("xl", projection_class_embeddings_input_dim=5 * 4 + 10)
    refiner.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes 6 channels of pooled text, got 10.*not for its refiner"):
        StaleDiffusionPipeline.from_stable_diffusion(tmp_path)
    (tmp_path / "text_encoder_2").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="without text_encoder_2"):
        StaleDiffusionPipeline.from_stable_diffusion(tmp_path)
    xl = StaleDiffusionPipeline.from_stable_diffusion(folders["xl"][1])
    parts = {name: getattr(xl, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    with pytest.raises(ValueError, match="takes 10 channels of pooled text, got none"):
        StaleDiffusionPipeline(**parts)("a horse")


def test_autoencoders_that_scale_by_channel_are_refused(make_parent, tmp_path: Path):
    parent = make_parent("1.5")
    parent.vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    parent.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`latents_mean`"):
        StaleDiffusionPipeline.from_stable_diffusion(tmp_path)
