"""Tiny random components of the real classes, from which every test can build a pipeline that takes milliseconds."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from browser import Visit, chromium, visitor
from diffusers import AutoencoderKL, ModelMixin, MotionAdapter, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusers_stale import StaleDiffusionPipeline, StaleScheduler, StaleUNet5DConditionModel
from diffusers_stale.training.vocabulary import build_tokenizer


CAPTIONS = ["a brown horse gallops out of a red barn at sunset", "a white cow stands by a blue barn at noon"]
MAX_TOKENS = 16
TEXT_CHANNELS = 16
LATENT_CHANNELS = 4
LATENT_SIZE = 4


@pytest.fixture(scope="session")
def tiny_tokenizer() -> CLIPTokenizer:
    return build_tokenizer(CAPTIONS, MAX_TOKENS)


@pytest.fixture(scope="session")
def make_components(tiny_tokenizer: CLIPTokenizer) -> Callable[[], dict]:
    """Builds the components of a pipeline afresh, the same ones each time; images have 8x8 pixels."""

    def build() -> dict:
        torch.manual_seed(0)
        return {
            "vae": tiny_autoencoder(),
            "text_encoder": tiny_text_encoder(tiny_tokenizer),
            "tokenizer": tiny_tokenizer,
            "unet": tiny_unet(),
            "scheduler": StaleScheduler(),
        }

    return build


@pytest.fixture(scope="session")
def make_pipeline(make_components: Callable[[], dict]) -> Callable[[], StaleDiffusionPipeline]:
    """Builds a silent pipeline afresh, for tests that change it."""

    def build() -> StaleDiffusionPipeline:
        pipeline = StaleDiffusionPipeline(**make_components())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build


@pytest.fixture(scope="session")
def tiny_pipeline(make_pipeline: Callable[[], StaleDiffusionPipeline]) -> StaleDiffusionPipeline:
    """One pipeline for all tests that leave it as it is."""
    return make_pipeline()


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., StaleUNet5DConditionModel]:
    """Builds the 5D UNet afresh, with changes of its configuration as keywords."""
    return tiny_unet


@pytest.fixture(scope="session")
def make_unet2d() -> Callable[[], UNet2DConditionModel]:
    """Builds a 2D UNet of Stable Diffusion's layout afresh."""
    return tiny_unet2d


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., MotionAdapter]:
    """Builds a motion adapter for that 2D UNet afresh, with changes of its configuration as keywords."""
    return tiny_adapter


def tiny_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=2 * LATENT_SIZE,
        scaling_factor=0.5,
        shift_factor=0.1,
    ).eval()


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_CHANNELS,
            intermediate_size=TEXT_CHANNELS,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def tiny_unet(**changes: object) -> StaleUNet5DConditionModel:
    """A UNet whose new layers do something, as if they were trained."""
    config = {
        "sample_size": LATENT_SIZE,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": TEXT_CHANNELS,
        "attention_head_dim": 2,
        "time_max_frames": 8,
    }
    return with_live_outputs(StaleUNet5DConditionModel(**config | changes)).eval()


def with_live_outputs(model: ModelMixin) -> ModelMixin:
    """`model` with small random numbers where all of a weight is zero."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def tiny_unet2d() -> UNet2DConditionModel:
    """A 2D UNet of Stable Diffusion's layout."""
    torch.manual_seed(1)
    return with_live_outputs(
        UNet2DConditionModel(
            sample_size=LATENT_SIZE,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=TEXT_CHANNELS,
            attention_head_dim=2,
        )
    ).eval()


def tiny_adapter(**changes: object) -> MotionAdapter:
    """A motion adapter for `tiny_unet2d`, as if it were trained."""
    torch.manual_seed(5)
    config = {
        "block_out_channels": (8, 16),
        "motion_layers_per_block": 1,
        "motion_num_attention_heads": 2,
        "motion_norm_num_groups": 4,
        "motion_max_seq_length": 6,
    }
    return with_live_outputs(MotionAdapter(**config | changes)).eval()


@pytest.fixture(scope="module")
def one_thread():
    """Tiny networks run fastest, and alike on every machine, in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def visit_any() -> Iterator[Callable[..., Visit]]:
    """`visit` for pages that many tests look at: they stay open until the module's end, as does its one browser."""
    with chromium() as browser:
        if browser is None:
            pytest.skip("There is no Chromium here; `apt-get install chromium`, or `playwright install chromium`.")
        visits = []
        yield visitor(browser, visits)
        for seen in visits:
            seen.close()


@pytest.fixture
def visit(visit_any: Callable[..., Visit]) -> Iterator[Callable[..., Visit]]:
    """Opens a page in headless Chromium (see `browser.visitor`) and closes it after the test."""
    visits = []

    def open_and_remember(*arguments: object, **options: object) -> Visit:
        visits.append(visit_any(*arguments, **options))
        return visits[-1]

    yield open_and_remember
    for seen in visits:
        seen.close()


@pytest.fixture(scope="module")
def float32_encoding() -> Iterator[None]:
    """Clips are encoded in float32 also where the machine has bfloat16, which rounds by the size of a batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers_stale.training.latents.fast_autocast", lambda device: nullcontext())
        yield
