"""`pipe.scheduler = StaleScheduler.from_config(pipe.scheduler.config)` in pipelines of diffusers itself.

Networks are tiny, random and made here. Random networks tell apart what trained ones would forgive: where a stock
scheduler takes the same first-order steps, outputs must be equal, so timesteps, noise levels, scale of samples and
meaning of predictions are all right. With stale outputs there is no stock scheduler to compare with: outputs must be
finite, of the right shape and the same again for the same seed after another run, so that no state is left behind.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from diffusers_stale import StaleScheduler
from diffusers_stale.stale_weights import STALE_WEIGHTS


pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 4
EQUAL = 1e-4
"""Relative error of equal outputs: of float32, after several steps; noise of SVD begins at a deviation of 700."""

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PNDM = diffusers.PNDMScheduler(**STABLE_DIFFUSION, skip_prk_steps=True)
DDIM_V = DDIMScheduler(**STABLE_DIFFUSION, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
PROMPTS = ("prompt", "negative_prompt", "pooled_prompt", "negative_pooled_prompt")
FIRST_ORDER = {"stale_weights": "none", "timestep_spacing": "trailing"}


def first_order_ddim(config: dict, **changes: object) -> DDIMScheduler:
    """DDIM as it should be: steps from the very end of the process to no noise at all."""
    changes = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False} | changes
    return DDIMScheduler.from_config(config, **changes)


class TrailingFlowScheduler(FlowMatchEulerDiscreteScheduler):
    """For pipelines that pass a number of steps only, which stock schedulers space in another way."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(sigmas=np.linspace(1.0, 1.0 / num_inference_steps, num_inference_steps), device=device)


@dataclass
class Case:
    """A pipeline with its own scheduler, arguments for it and the shapes of what it makes.

    `equal`: a stock scheduler that takes the first-order steps of ours, with the arguments `equal_call`.
    """

    pipeline: diffusers.DiffusionPipeline
    call: dict[str, Any]
    latents: tuple[int, ...]
    pixels: tuple[int, ...]
    equal: SchedulerMixin
    equal_call: dict[str, Any] = field(default_factory=lambda: {"num_inference_steps": STEPS})

    def __post_init__(self) -> None:
        self.config = self.pipeline.scheduler.config
        self.pipeline.set_progress_bar_config(disable=True)

    def stale(self, **changes: object) -> StaleScheduler:
        return StaleScheduler.from_config(self.config, **changes)

    def draw(self, scheduler: SchedulerMixin, seed: int = 0, **call: object) -> torch.Tensor:
        """What the pipeline makes with `scheduler`, latents if nothing else is asked for."""
        self.pipeline.scheduler = scheduler
        generator = torch.Generator().manual_seed(seed)
        result = self.pipeline(**{"output_type": "latent", "generator": generator} | self.call | call)
        return torch.as_tensor(next(iter(result.values())))


def random(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def texts(*names: str) -> dict[str, torch.Tensor]:
    """Random encodings of texts, in place of text encoders."""
    shapes = {name: (1, 16) if "pooled" in name else (1, 5, 16) for name in names}
    return {f"{name}_embeds": random(*shape, seed=len(name)) for name, shape in shapes.items()}


def diffusion(request: pytest.FixtureRequest, kind: str = "", scheduler: SchedulerMixin = PNDM, **call) -> Case:
    parts = request.getfixturevalue("make_components")() | {"unet": request.getfixturevalue("make_unet2d")()}
    parts |= {"scheduler": scheduler, "safety_checker": None, "feature_extractor": None}
    pipeline = getattr(diffusers, f"StableDiffusion{kind}Pipeline")(**parts, requires_safety_checker=False)
    call = {"prompt": "a red barn", "guidance_scale": 3.0} | call
    return Case(pipeline, call, (1, 4, 4, 4), (1, 8, 8, 3), first_order_ddim(scheduler.config))


def image_to_image(request: pytest.FixtureRequest, scheduler: SchedulerMixin = PNDM, strength=0.8) -> Case:
    return diffusion(request, "Img2Img", scheduler, image=random(1, 3, 8, 8).sigmoid(), strength=strength)


def inpainting(request: pytest.FixtureRequest) -> Case:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1.0
    call = {"image": random(1, 3, 8, 8).sigmoid(), "mask_image": mask, "strength": 0.8, "height": 8, "width": 8}
    return diffusion(request, "Inpaint", DDIM_V, **call)


def animate_diff(request: pytest.FixtureRequest) -> Case:
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, timestep_spacing="linspace", steps_offset=1)
    parts = request.getfixturevalue("make_components")() | {"unet": request.getfixturevalue("make_unet2d")()}
    parts |= {"scheduler": scheduler, "motion_adapter": request.getfixturevalue("make_adapter")()}
    call = {"prompt": "a red barn", "guidance_scale": 3.0, "num_frames": 3, "height": 8, "width": 8}
    return Case(
        diffusers.AnimateDiffPipeline(**parts),
        call,
        (1, 4, 3, 4, 4),
        (1, 3, 8, 8, 3),
        first_order_ddim(scheduler.config),
    )


def diffusion_xl(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(2)
    unet = diffusers.UNet2DConditionModel(
        sample_size=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=40,
    ).eval()  # fmt: skip
    euler = EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="leading")
    vae = request.getfixturevalue("make_components")()["vae"]
    pipeline = diffusers.StableDiffusionXLPipeline(vae, None, None, None, None, unet, euler)
    call = texts(*PROMPTS) | {"guidance_scale": 3.0, "height": 8, "width": 8}
    return Case(pipeline, call, (1, 4, 4, 4), (1, 8, 8, 3), euler, {"timesteps": [999, 700, 301, 1]})


def video_diffusion(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(3)
    blocks = {"block_out_channels": (32, 32), "layers_per_block": 1}
    unet = diffusers.UNetSpatioTemporalConditionModel(
        **blocks, sample_size=4, cross_attention_dim=16, num_attention_heads=2, addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKLTemporalDecoder(**blocks, down_block_types=("DownEncoderBlock2D",) * 2).eval()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "projection_dim": 16, "image_size": 8, "patch_size": 4}
    seer = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, num_hidden_layers=1, num_attention_heads=2))
    euler = EulerDiscreteScheduler(
        **STABLE_DIFFUSION, prediction_type="v_prediction", timestep_type="continuous", timestep_spacing="leading",
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0,
    )  # fmt: skip
    pipeline = diffusers.StableVideoDiffusionPipeline(
        vae, image_encoder=seer.eval(), unet=unet, scheduler=euler, feature_extractor=CLIPImageProcessor()
    )
    call = {"image": random(1, 3, 8, 8).sigmoid(), "num_frames": 2, "height": 8, "width": 8}
    euler.set_timesteps(STEPS)
    return Case(pipeline, call, (1, 2, 4, 4, 4), (1, 2, 8, 8, 3), euler, {"sigmas": euler.sigmas.tolist()})


def diffusion_3(request: pytest.FixtureRequest, kind: str = "", **call) -> Case:
    torch.manual_seed(4)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=4, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=16, pooled_projection_dim=16,
        pos_embed_max_size=8,
    ).eval()  # fmt: skip
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    vae = request.getfixturevalue("make_components")()["vae"]
    call |= texts(*PROMPTS) | {"guidance_scale": 3.0, "height": 8, "width": 8}
    pipeline = getattr(diffusers, f"StableDiffusion3{kind}Pipeline")(transformer, flow, vae, *[None] * 6)
    sigmas = np.linspace(1.0, 1.0 / STEPS, STEPS).tolist()
    return Case(pipeline, call, (1, 4, 4, 4), (1, 8, 8, 3), flow, {"sigmas": sigmas})


def flux(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(5)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    vae = request.getfixturevalue("make_components")()["vae"]
    pipeline = diffusers.FluxPipeline(flow, vae, None, None, None, None, transformer)
    call = texts("prompt", "pooled_prompt") | {"height": 8, "width": 8}
    return Case(pipeline, call, (1, 4, 16), (1, 8, 8, 3), flow)


def ltx(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(8)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=1, caption_channels=16,
    ).eval()  # fmt: skip
    widths, scaling = (8, 8, 8, 8), (True, True, False, False)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=widths, decoder_block_out_channels=widths, layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=scaling, decoder_spatio_temporal_scaling=scaling,
        decoder_inject_noise=(False,) * 5, patch_size=1, decoder_causal=True,
    ).eval()  # fmt: skip
    flow = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
    )
    call = texts("prompt", "negative_prompt") | {"height": 32, "width": 32, "num_frames": 9}
    call |= {"prompt_attention_mask": torch.ones(1, 5), "negative_prompt_attention_mask": torch.ones(1, 5)}
    pipeline = diffusers.LTXPipeline(flow, vae, None, None, transformer)
    return Case(pipeline, call, (1, 192, 8), (1, 9, 32, 32, 3), flow)


def wan(request: pytest.FixtureRequest, boundary_ratio: float | None = None) -> Case:
    torch.manual_seed(6)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 16, "ffn_dim": 16}
    sizes |= {"num_layers": 1, "rope_max_seq_len": 16}
    first, second = (diffusers.WanTransformer3DModel(**sizes).eval() for _ in range(2))
    vae = diffusers.AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    unipc = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    second = second if boundary_ratio else None
    pipeline = diffusers.WanPipeline(None, None, vae, unipc, first, second, boundary_ratio)
    call = texts("prompt", "negative_prompt") | {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 3.0}
    return Case(pipeline, call, (1, 16, 2, 2, 2), (1, 5, 16, 16, 3), TrailingFlowScheduler(shift=5.0))


CASES: dict[str, Callable[[pytest.FixtureRequest], Case]] = {
    "StableDiffusion 1.5, PNDM": diffusion,
    "StableDiffusion 2.1, DDIM, v": lambda request: diffusion(request, scheduler=DDIM_V),
    "StableDiffusionImg2Img": image_to_image,
    "StableDiffusionInpaint": inpainting,
    "AnimateDiff, DDIM, linear": animate_diff,
    "StableDiffusionXL, Euler": diffusion_xl,
    "StableVideoDiffusion, Euler, Karras": video_diffusion,
    "StableDiffusion3, flow": diffusion_3,
    "Flux, flow, dynamic shift": flux,
    "LTX, flow, dynamic shift, stretched": ltx,
    "Wan 2.1, UniPC, flow": wan,
    "Wan 2.2, two networks": lambda request: wan(request, boundary_ratio=0.9),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param](request)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).float().norm() / expected.float().norm())


def test_works_in_place_of_the_own_scheduler(case: Case):
    scheduler = case.stale()
    first = case.draw(scheduler, num_inference_steps=STEPS)
    assert first.shape == case.latents
    assert first.isfinite().all()
    assert not torch.equal(case.draw(scheduler, seed=1, num_inference_steps=STEPS - 1), first)
    assert torch.equal(case.draw(scheduler, num_inference_steps=STEPS), first)
    pixels = case.draw(scheduler, num_inference_steps=STEPS, output_type="np")
    assert pixels.shape == case.pixels
    assert pixels.isfinite().all()


def test_first_order_equals_the_stock_scheduler(case: Case):
    ours, stale = case.stale(**FIRST_ORDER), case.stale(timestep_spacing="trailing", stale_weights="multistep")
    expected = case.draw(case.equal, **case.equal_call)
    assert relative_error(case.draw(ours, **case.equal_call), expected) < EQUAL
    # Outputs depend on the scheduler by much more than that, so the comparison says something.
    assert relative_error(case.draw(stale, **case.equal_call), expected) > 10 * EQUAL


@pytest.mark.parametrize("zero_snr", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ancestral_sampling_equals_ddims(request, eta, zero_snr):
    """Also where the process ends exactly in noise, and 1 / alpha is infinite."""
    case = diffusion(request, scheduler=DDIM_V)
    ddim = first_order_ddim(DDIM_V.config, rescale_betas_zero_snr=zero_snr)
    ours = case.stale(**FIRST_ORDER, rescale_betas_zero_snr=zero_snr)
    expected = case.draw(ddim, num_inference_steps=STEPS, eta=eta)
    assert relative_error(case.draw(ours, num_inference_steps=STEPS, eta=eta), expected) < EQUAL


def test_ancestral_sampling_obeys_eta_and_generator(request):
    case = diffusion(request)
    scheduler = case.stale()
    still = case.draw(scheduler, num_inference_steps=STEPS)
    moved = case.draw(scheduler, num_inference_steps=STEPS, eta=1.0)
    assert relative_error(moved, still) > 1e-2
    assert torch.equal(case.draw(scheduler, num_inference_steps=STEPS, eta=1.0), moved)
    # One start and another generator: what differs is the noise that steps have added.
    start = random(1, 4, 4, 4)
    first, second = (case.draw(scheduler, seed, num_inference_steps=STEPS, eta=1.0, latents=start) for seed in (0, 1))
    assert relative_error(second, first) > 1e-2


@pytest.mark.parametrize("zero_snr", [True, False])
def test_image_to_image_of_full_strength_is_text_to_image(request, zero_snr):
    """Exactly, where nothing of the image is left at the end of the process; otherwise the image shines through."""
    image, text = image_to_image(request, DDIM_V, strength=1.0), diffusion(request, scheduler=DDIM_V)
    scheduler = image.stale(rescale_betas_zero_snr=zero_snr)
    expected = text.draw(scheduler, num_inference_steps=6)  # (of at most five, some image is left where they begin)
    # (an image of 4 channels is a latent: no random number is drawn to encode it)
    got = image.draw(scheduler, num_inference_steps=6, image=10.0 * random(1, 4, 4, 4))
    assert torch.equal(got, expected) == zero_snr


def test_image_to_image_of_little_strength_stays_close_to_the_image(request):
    case = image_to_image(request)
    start, scheduler = random(1, 4, 4, 4), case.stale()
    near, far = (case.draw(scheduler, num_inference_steps=20, image=start, strength=part) for part in (0.05, 0.9))
    assert relative_error(near, start) < 0.5 * relative_error(far, start)
    assert scheduler.begin_index == 2
    assert scheduler.step_index == 20


def test_inpainting_keeps_what_the_mask_keeps_and_paints_the_rest_as_text_to_image(request):
    case, text = inpainting(request), diffusion(request, scheduler=DDIM_V)
    scheduler, vae, generator = case.stale(), case.pipeline.vae, torch.Generator().manual_seed(0)
    with torch.no_grad():
        kept = vae.encode(2 * case.call["image"] - 1).latent_dist.sample(generator) * vae.config.scaling_factor
    start = torch.randn(1, 4, 4, 4, generator=generator)
    got = case.draw(scheduler, num_inference_steps=STEPS)
    assert torch.allclose(got[..., :2], kept[..., :2], atol=1e-5)
    assert not torch.allclose(got[..., 2:], kept[..., 2:], atol=1e-1)
    painted = case.draw(scheduler, num_inference_steps=STEPS, mask_image=torch.ones(1, 1, 8, 8), strength=1.0)
    expected = text.draw(scheduler, num_inference_steps=STEPS, latents=start)
    assert torch.allclose(painted, expected, atol=1e-5)


def test_two_experts_of_which_the_second_goes_on_are_one_run(request):
    """Stable Diffusion XL's base and refiner, where nothing stale would have to be handed over."""
    case = diffusion_xl(request)
    parts = [case.pipeline.vae, None, None, None, None, case.pipeline.unet]
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(*parts, case.stale(stale_weights="none"))
    refiner.set_progress_bar_config(disable=True)
    scheduler = case.stale(stale_weights="none")
    expected = case.draw(scheduler, num_inference_steps=8)
    half = case.draw(scheduler, num_inference_steps=8, denoising_end=0.6)
    call = {key: value for key, value in case.call.items() if key not in ("height", "width")}
    call |= {"original_size": (8, 8), "target_size": (8, 8), "output_type": "latent"}
    got = refiner(image=half, denoising_start=0.6, num_inference_steps=8, **call)[0]
    assert refiner.scheduler.begin_index == scheduler.step_index > 0
    assert torch.equal(got, expected)


def test_video_latents_are_those_of_euler_scaled_to_preserve_variance(request):
    """Step by step: x_ours = x_theirs / sqrt(sigma^2 + 1)."""
    case = video_diffusion(request)
    sigmas, traces = case.equal_call["sigmas"], [[], []]

    def note(pipeline: diffusers.DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        traces[pipeline.scheduler is ours].append((timestep, tensors["latents"]))
        return {}

    ours = case.stale(**FIRST_ORDER)
    for scheduler in (case.equal, ours):
        case.draw(scheduler, **case.equal_call, callback_on_step_end=note)
    for (time, theirs), (our_time, scaled), sigma in zip(*traces, sigmas[1:], strict=True):
        assert float(our_time) == pytest.approx(float(time), abs=1e-5)
        assert relative_error(scaled, theirs / (sigma**2 + 1.0) ** 0.5) < EQUAL
    ours.set_timesteps(6)
    assert float(ours.sigmas[0]) == pytest.approx(700.0, rel=1e-5)


def test_flux_shifts_by_the_size_of_the_image(request):
    case, steps = flux(request), {}
    for size in (8, 64):
        ours, stock = case.stale(**FIRST_ORDER), FlowMatchEulerDiscreteScheduler.from_config(case.equal.config)
        for scheduler in (ours, stock):
            case.draw(scheduler, num_inference_steps=2, height=size, width=size)
        assert torch.allclose(ours.timesteps, stock.timesteps, atol=1e-2)
        steps[size] = float(ours.timesteps[-1])
    assert steps[64] > steps[8] + 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [diffusion, flux, wan])
def test_pipelines_of_half_precision(request, make, dtype):
    case = make(request)
    start = random(*case.latents)
    expected = case.draw(case.stale(), num_inference_steps=STEPS, latents=start)
    case.pipeline.to(dtype=dtype)
    low = {key: value.to(dtype) for key, value in case.call.items() if isinstance(value, torch.Tensor)}
    got = case.draw(case.stale(), num_inference_steps=STEPS, latents=start.to(dtype), **low)
    assert relative_error(got, expected) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow_prediction"])
def test_half_precision_is_as_good_as_its_numbers(prediction_type, dtype):
    """Only what a step takes and gives is rounded: between them it computes in float32."""
    ends = []
    for kind in (torch.float32, dtype):
        scheduler = StaleScheduler(prediction_type=prediction_type, rescale_betas_zero_snr=False)
        scheduler.set_timesteps(8)
        sample = random(2, 4, 8, 8).to(kind)
        for timestep in scheduler.timesteps:
            result = scheduler.step(torch.tanh(sample), timestep, sample)
            sample = result.prev_sample
            assert sample.dtype == result.pred_original_sample.dtype == kind
        ends.append(sample.float())
    assert relative_error(ends[1], ends[0]) < 3 * torch.finfo(dtype).eps


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("limit", [{}, {"thresholding": True, "sample_max_value": 500.0}, {"clip_sample": True}])
@pytest.mark.parametrize("kind", list(STALE_WEIGHTS))
def test_elements_of_a_batch_do_not_know_of_each_other(kind, limit, eta):
    def end(start: torch.Tensor) -> torch.Tensor:
        scheduler = StaleScheduler(stale_weights=kind, **limit)
        scheduler.set_timesteps(6)
        sample, generators = start, [torch.Generator().manual_seed(seed) for seed in range(len(start))]
        for timestep in scheduler.timesteps:
            sample = scheduler.step(torch.sin(3.0 * sample), timestep, sample, eta, generators).prev_sample
        return sample

    whole = end(start := random(3, 4, 5, 5))
    assert torch.allclose(end(start[:1]), whole[:1], atol=1e-6)
    assert torch.equal(end(torch.cat([start[:1], 100.0 * start[1:]]))[0], whole[0])


def test_images_of_a_batch_do_not_know_of_each_other(request):
    case = diffusion(request)
    start, scheduler = random(2, 4, 4, 4), case.stale()
    both = case.draw(scheduler, num_inference_steps=STEPS, prompt=["a barn", "a cow"], latents=start)
    alone = case.draw(scheduler, num_inference_steps=STEPS, prompt=["a barn"], latents=start[:1])
    assert torch.allclose(both[:1], alone, atol=1e-4)


def test_image_to_image_of_flows_equals_the_stock_scheduler(request):
    case = diffusion_3(request, "Img2Img", image=random(1, 3, 8, 8).sigmoid(), strength=0.8)
    expected = case.draw(case.equal, **case.equal_call)
    assert relative_error(case.draw(case.stale(**FIRST_ORDER), **case.equal_call), expected) < EQUAL


def test_configurations_of_flow_matching_are_understood_though_they_do_not_say_their_class():
    stock = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    ours = StaleScheduler.from_config(stock.config)
    assert ours.is_flow
    assert ours.config.flow_shift == 3.0
