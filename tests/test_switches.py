"""Each switch of diffusers' models that users expect, tried on the 5D UNet: what it is to change, and what not."""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from diffusers_stale import StaleDiffusionPipeline, StaleUNet5DConditionModel, inflate_unet2d
from diffusers_stale.view_layers import ViewAttnProcessor


SHAPE = (1, 4, 2, 2, 3, 4, 4)
CLOSE = 1e-5


def inputs(dtype: torch.dtype = torch.float32, batch: int = 1) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(batch, *SHAPE[1:], generator=generator).to(dtype),
        "encoder_hidden_states": torch.randn(batch, 5, 16, generator=generator).to(dtype),
    }


@torch.no_grad()
def run(unet: torch.nn.Module, timestep: int = 300, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return unet(timestep=torch.tensor(timestep), **inputs(dtype), return_dict=False)[0]


@pytest.fixture
def unet(make_unet: Callable[..., StaleUNet5DConditionModel]) -> StaleUNet5DConditionModel:
    torch.manual_seed(0)
    return make_unet()


@pytest.fixture
def one_level(make_unet: Callable[..., StaleUNet5DConditionModel]) -> StaleUNet5DConditionModel:
    """A network of every kind of layer that takes the compiler a short time only."""
    torch.manual_seed(0)
    return make_unet(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
    )


def test_compiles_to_one_graph_that_serves_every_step(one_level: StaleUNet5DConditionModel):
    unet = one_level
    expected = [run(unet, step) for step in (900, 300, 1)]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    results = [run(compiled, step) for step in (900, 300, 1)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    for result, other in zip(results, expected, strict=True):
        assert (result - other).abs().max() <= CLOSE
    torch._dynamo.reset()


def test_blocks_that_repeat_compile_alone(one_level: StaleUNet5DConditionModel):
    unet = one_level
    expected = run(unet)
    unet.compile_repeated_blocks(fullgraph=True, backend="eager")
    assert (run(unet) - expected).abs().max() <= CLOSE
    torch._dynamo.reset()


def test_weights_can_be_stored_in_eight_bits(unet: StaleUNet5DConditionModel):
    unet.to(torch.bfloat16)
    expected = run(unet, dtype=torch.bfloat16)
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    stored = Counter()
    for parameter in unet.parameters():
        stored[parameter.dtype] += parameter.numel()
    assert stored[torch.float8_e4m3fn] > 0.9 * stored.total()
    result = run(unet, dtype=torch.bfloat16)
    assert 0 < (result - expected).abs().mean() < 0.25 * expected.abs().mean()


@pytest.mark.parametrize("options", [{"offload_type": "leaf_level"}, {"offload_type": "block_level"}], ids=str)
def test_groups_of_layers_can_be_offloaded(unet: StaleUNet5DConditionModel, options: dict):
    expected = run(unet)
    if options["offload_type"] == "block_level":
        options = {**options, "num_blocks_per_group": 1}
    place = torch.device("cpu")
    unet.enable_group_offload(onload_device=place, offload_device=place, **options)
    assert (run(unet) - expected).abs().max() <= CLOSE


def test_one_processor_is_for_all_layers_that_can_use_it(unet: StaleUNet5DConditionModel):
    expected = run(unet)
    kinds = Counter(type(processor) for processor in unet.attn_processors.values())
    assert set(kinds) == {AttnProcessor2_0, ViewAttnProcessor}
    unet.set_attn_processor(AttnProcessor())
    assert Counter(type(processor) for processor in unet.attn_processors.values()) == Counter(
        {AttnProcessor: kinds[AttnProcessor2_0], ViewAttnProcessor: kinds[ViewAttnProcessor]}
    )
    assert (run(unet) - expected).abs().max() <= CLOSE


def test_processors_are_set_by_name(unet: StaleUNet5DConditionModel):
    class Counting(ViewAttnProcessor):
        calls = 0

        def __call__(self, *args: object) -> torch.Tensor:
            Counting.calls += 1
            return super().__call__(*args)

    expected, processors = run(unet), unet.attn_processors
    of_views = [name for name in processors if "view_layers" in name]
    unet.set_attn_processor(processors | {name: Counting() for name in of_views})
    assert torch.equal(run(unet), expected)
    assert Counting.calls == len(of_views)
    unet.set_attn_processor(ViewAttnProcessor())
    assert not any(isinstance(processor, Counting) for processor in unet.attn_processors.values())
    with pytest.raises(ValueError, match="must be a ViewAttnProcessor.*got AttnProcessor;"):
        unet.set_attn_processor(processors | {of_views[0]: AttnProcessor()})
    with pytest.raises(ValueError, match=rf"keys of `attn_processors`, got {len(processors) - 1}.*{of_views[0]}"):
        unet.set_attn_processor({name: value for name, value in processors.items() if name != of_views[0]})


def test_attention_backends_can_be_chosen(unet: StaleUNet5DConditionModel):
    expected = run(unet)
    unet.set_attention_backend("_native_math")
    backends = {
        processor._attention_backend
        for processor in unet.attn_processors.values()
        if hasattr(processor, "_attention_backend")
    }
    assert [backend.value for backend in backends] == ["_native_math"]
    assert (run(unet) - expected).abs().max() <= CLOSE


def test_fused_projections_are_as_good_and_can_be_undone(unet: StaleUNet5DConditionModel):
    expected, names = run(unet), set(unet.state_dict())
    unet.fuse_qkv_projections()
    unet.fuse_qkv_projections()
    fused = set(unet.state_dict()) - names
    assert any("motion_modules" in name and name.endswith("to_qkv.weight") for name in fused)
    assert any("attn2.to_kv.weight" in name for name in fused)
    assert (run(unet) - expected).abs().max() <= CLOSE
    for name, module in unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v")) and "view_layers" not in name and "attn1" in name:
            torch.nn.init.zeros_(module.weight)
    assert (run(unet) - expected).abs().max() <= CLOSE, "the fused weights must be those in use"
    unet.unfuse_qkv_projections()
    assert set(unet.state_dict()) == names
    assert (run(unet) - expected).abs().max() > 1e-3
    unet.unfuse_qkv_projections()


def test_fused_projections_need_plain_attention(make_unet: Callable[..., StaleUNet5DConditionModel]):
    unet = make_unet(
        down_block_types=("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
    )
    with pytest.raises(ValueError, match="without added keys and values"):
        unet.fuse_qkv_projections()


def test_freeu_is_that_of_the_2d_network(make_unet2d: Callable[[], UNet2DConditionModel]):
    unet2d = make_unet2d()
    unet = inflate_unet2d(unet2d)
    before = run(unet)
    strengths = {"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4}
    unet.enable_freeu(**strengths)
    unet2d.enable_freeu(**strengths)
    ours = run(unet)
    arguments = inputs()
    with torch.no_grad():
        theirs = unet2d(arguments["sample"][:, :, 1, 0, 2], 300, arguments["encoder_hidden_states"]).sample
    assert (ours[:, :, 1, 0, 2] - theirs).abs().max() <= CLOSE
    assert (ours - before).abs().max() > 1e-3
    unet.disable_freeu()
    assert torch.equal(run(unet), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(unet: StaleUNet5DConditionModel, dtype: torch.dtype):
    expected = run(unet)
    result = run(unet.to(dtype), dtype=dtype)
    assert result.dtype == dtype
    assert (result.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_shards_and_variants_and_device_maps(unet: StaleUNet5DConditionModel, tmp_path: Path):
    expected = run(unet)
    unet.save_pretrained(tmp_path, max_shard_size="60KB", variant="fp16")
    shards = [path.name for path in tmp_path.glob("*.safetensors")]
    assert len(shards) > 2
    assert all(".fp16-" in name for name in shards)
    with pytest.raises(OSError, match=r"diffusion_pytorch_model\.(safetensors|bin)"):
        StaleUNet5DConditionModel.from_pretrained(tmp_path)
    for device_map in (None, "auto", {"": "cpu"}):
        loaded = StaleUNet5DConditionModel.from_pretrained(tmp_path, variant="fp16", device_map=device_map)
        assert (run(loaded) - expected).abs().max() <= CLOSE


def test_a_device_map_never_divides_what_adds_skips(unet: StaleUNet5DConditionModel, tmp_path: Path):
    """A part of the network on the disk, as a part of a large one is that does not fit into memory."""
    pytest.importorskip("accelerate")
    expected = run(unet)
    unet.save_pretrained(tmp_path)
    total = sum(tensor.nbytes for tensor in unet.state_dict().values())
    loaded = StaleUNet5DConditionModel.from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": total // 2}, offload_folder=tmp_path / "offload"
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    blocks = [name for name in loaded.hf_device_map if name.startswith(("down_blocks", "up_blocks", "mid_block"))]
    assert blocks
    assert all(name.count(".") <= (0 if name.startswith("mid") else 1) for name in blocks)
    assert (run(loaded) - expected).abs().max() <= CLOSE


def test_results_are_the_same_every_time_and_apart_from_the_original(unet: StaleUNet5DConditionModel):
    assert torch.equal(run(unet), run(unet))
    assert torch.equal(run(copy.deepcopy(unet)), run(unet))


def test_an_exponential_average_of_weights_can_be_kept(unet: StaleUNet5DConditionModel):
    from diffusers.training_utils import EMAModel

    average = EMAModel(unet.parameters(), decay=0.5, use_ema_warmup=False)
    before = run(unet)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(0.5)
    average.store(unet.parameters())
    average.copy_to(unet.parameters())
    assert torch.equal(run(unet), before)
    average.restore(unet.parameters())
    assert not torch.allclose(run(unet), before, atol=1e-3)


def movie_of(pipeline: StaleDiffusionPipeline) -> torch.Tensor:
    request = {"view_rows": 1, "view_cols": 2, "num_frames": 2, "num_inference_steps": 1, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    return pipeline("a brown horse", generator=generator, return_dict=False, **request)[0]


def test_a_pipeline_is_saved_in_shards_and_as_a_variant_and_loaded_to_a_device(
    make_pipeline: Callable[[], StaleDiffusionPipeline], tmp_path: Path
):
    pipeline = make_pipeline()
    expected = movie_of(pipeline)
    pipeline.save_pretrained(tmp_path, variant="fp16", max_shard_size="60KB")
    assert len(list((tmp_path / "unet").glob("*.fp16-*.safetensors"))) > 2
    for options in ({}, {"device_map": "cpu"}):
        loaded = StaleDiffusionPipeline.from_pretrained(tmp_path, variant="fp16", **options)
        loaded.set_progress_bar_config(disable=True)
        assert (movie_of(loaded) - expected).abs().max() <= CLOSE


def test_all_of_a_pipeline_can_be_offloaded_in_groups(make_pipeline: Callable[[], StaleDiffusionPipeline]):
    pipeline = make_pipeline()
    expected = movie_of(pipeline)
    place = torch.device("cpu")
    pipeline.enable_group_offload(onload_device=place, offload_device=place, offload_type="leaf_level")
    assert (movie_of(pipeline) - expected).abs().max() <= CLOSE
