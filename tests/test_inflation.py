"""Truths of inflation: the 5D UNet equals its 2D parent view by view and frame by frame, for every kind of parent."""

import json
import re

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

from diffusers_stale import inflation
from diffusers_stale.axes import IMAGE_AXES, fold
from diffusers_stale.inflation import NEW_OPTIONS, inflate_unet2d, is_new_parameter, new_parameter_names
from diffusers_stale.unet_stale import StaleUNet5DConditionModel


BASE = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 8,
}
SD15 = {**BASE, **CROSS, "layers_per_block": 2, "attention_head_dim": 4}
PARENTS = {
    "stable diffusion 1.5": SD15,
    "stable diffusion 2.1": {**SD15, "attention_head_dim": [2, 4], "use_linear_projection": True},
    "sdxl": {
        **BASE,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": [2, 4],
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 10,
    },
    "inpainting": {**SD15, "in_channels": 9},
    "class embeddings": {**SD15, "num_class_embeds": 5},
    "class timestep": {**SD15, "class_embed_type": "timestep"},
    "class concat": {
        **SD15,
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 6,
        "class_embeddings_concat": True,
    },
    "pooled text": {**SD15, "addition_embed_type": "text", "addition_embed_type_num_heads": 2},
    "projected text": {**SD15, "encoder_hid_dim": 8, "encoder_hid_dim_type": "text_proj"},
    "guidance embedding": {**SD15, "time_cond_proj_dim": 6, "time_embedding_act_fn": "silu"},
    "self-attention blocks": {
        **BASE,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
        "resnet_time_scale_shift": "scale_shift",
    },
    "added keys and values": {
        **BASE,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "encoder_hid_dim": 8,
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "cross_attention_norm": "group_norm",
        "resnet_time_scale_shift": "scale_shift",
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": 1.4,
        "time_embedding_act_fn": "gelu",
        "act_fn": "gelu",
        "out_channels": 6,
    },
    "added keys and values of words only": {
        **BASE,
        "down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
        "only_cross_attention": True,
    },
    "class identity": {**SD15, "class_embed_type": "identity"},
    "class projection": {
        **SD15,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 6,
    },
    "only cross-attention": {**SD15, "only_cross_attention": (True, False), "upcast_attention": True},
    "upscaler": {**SD15, "in_channels": 7, "num_class_embeds": 1000, "only_cross_attention": True},
    "other kernels": {**SD15, "conv_in_kernel": 1, "conv_out_kernel": 5, "downsample_padding": 0, "act_fn": "mish"},
    "fourier time": {
        **SD15,
        "time_embedding_type": "fourier",
        "time_embedding_dim": 24,
        "timestep_post_act": "silu",
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
    "levels that differ": {
        **SD15,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": [1, 2],
        "attention_head_dim": [2, 4],
        "transformer_layers_per_block": [[2], [1, 2]],
        "reverse_transformer_layers_per_block": [[1, 2, 1], [1, 1]],
        "mid_block_type": "UNetMidBlock2D",
        "mid_block_scale_factor": 1.4,
        "dropout": 0.1,
    },
    "one level": {
        **BASE,
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
    },
    "no middle attention": {**SD15, "mid_block_type": "UNetMidBlock2D", "center_input_sample": True},
    "no middle": {**SD15, "mid_block_type": None},
}
BATCH = 2
VIEWS_AND_FRAMES = (2, 3, 5)
IMAGES_EACH = 2 * 3 * 5


def parent(name: str, seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    unet2d = UNet2DConditionModel(**PARENTS[name]).eval()
    torch.nn.init.normal_(unet2d.conv_out.bias)
    return unet2d


def inputs(unet2d: UNet2DConditionModel) -> dict:
    """Arguments of the 5D UNet, each of first axis `BATCH`."""
    torch.manual_seed(1)
    config = unet2d.config
    arguments = {
        "sample": torch.randn(BATCH, config.in_channels, *VIEWS_AND_FRAMES, 8, 8),
        "timestep": torch.tensor([3, 900]),
        "encoder_hidden_states": torch.randn(BATCH, 7, 8),
    }
    if config.num_class_embeds or config.class_embed_type == "timestep":
        arguments["class_labels"] = torch.tensor([1, 4])
    if config.class_embed_type in ("simple_projection", "projection"):
        arguments["class_labels"] = torch.randn(BATCH, 6)
    if config.class_embed_type == "identity":
        arguments["class_labels"] = torch.randn(BATCH, 4 * config.block_out_channels[0])
    if config.time_cond_proj_dim:
        arguments["timestep_cond"] = torch.randn(BATCH, config.time_cond_proj_dim)
    if config.addition_embed_type == "text_time":
        arguments["added_cond_kwargs"] = {"text_embeds": torch.randn(BATCH, 10), "time_ids": torch.rand(BATCH, 6)}
    return arguments


def for_images(argument):
    """An argument of first axis batch, repeated for every image of each movie."""
    if isinstance(argument, dict):
        return {key: for_images(value) for key, value in argument.items()}
    return argument.repeat_interleave(IMAGES_EACH, dim=0)


@torch.no_grad()
def outputs(unet: StaleUNet5DConditionModel, unet2d: UNet2DConditionModel) -> tuple[torch.Tensor, torch.Tensor]:
    """What both networks make of the same images, folded."""
    arguments = inputs(unet2d)
    ours = fold(unet(**arguments).sample, IMAGE_AXES)
    images = fold(arguments.pop("sample"), IMAGE_AXES)
    theirs = unet2d(images, **{key: for_images(value) for key, value in arguments.items()}).sample
    return ours, theirs


@pytest.mark.parametrize("name", PARENTS)
def test_equals_its_parent_for_every_view_and_frame(name):
    unet2d = parent(name)
    unet = inflate_unet2d(unet2d)
    ours, theirs = outputs(unet, unet2d)
    assert (ours - theirs).abs().max() <= 1e-5
    assert theirs.std() > 1e-2
    spatial = {key for key in unet.state_dict() if not is_new_parameter(key)}
    assert spatial == set(unet2d.state_dict())


@pytest.mark.parametrize("name", PARENTS)
def test_equals_its_parent_to_the_bit_where_the_same_kernels_run(name, monkeypatch):
    """For one image a movie, where both networks multiply matrices of the same shapes in the same layout.

    (Among several, the embedding of the timestep is computed once a movie here and once an image there.)
    """
    monkeypatch.setitem(globals(), "VIEWS_AND_FRAMES", (1, 1, 1))
    monkeypatch.setitem(globals(), "IMAGES_EACH", 1)
    unet2d = parent(name)
    ours, theirs = outputs(inflate_unet2d(unet2d, view_layer_types="none", time_layers=False), unet2d)
    assert torch.equal(ours, theirs)
    # A new layer returns its input in another layout than a plain attention layer of the parent does.
    if not any(kind.startswith(("Attn", "Simple")) for kind in unet2d.config.down_block_types):
        assert torch.equal(outputs(inflate_unet2d(unet2d), unet2d)[0], theirs)


def test_equals_its_parent_image_by_image():
    unet2d = parent("stable diffusion 1.5")
    unet, arguments = inflate_unet2d(unet2d), inputs(unet2d)
    with torch.no_grad():
        output = unet(**arguments).sample
        alone = unet2d(arguments["sample"][1, :, 0, 2, 4][None], 900, arguments["encoder_hidden_states"][1:]).sample
    assert torch.allclose(output[1, :, 0, 2, 4], alone[0], atol=1e-5)


def test_saved_inflated_network_still_equals_the_parent(tmp_path):
    unet2d = parent("sdxl")
    StaleUNet5DConditionModel.from_unet2d(unet2d, time_max_frames=8).save_pretrained(tmp_path)
    loaded = StaleUNet5DConditionModel.from_pretrained(tmp_path)
    ours, theirs = outputs(loaded, unet2d)
    assert (ours - theirs).abs().max() <= 1e-5
    assert loaded.config.time_max_frames == 8


def test_weights_are_shared_and_the_parent_is_left_whole():
    unet2d = parent("stable diffusion 1.5")
    names = set(unet2d.state_dict())
    unet = inflate_unet2d(unet2d)
    theirs = dict(unet2d.named_parameters())
    for key, parameter in unet.named_parameters():
        assert is_new_parameter(key) or parameter.data_ptr() == theirs[key].data_ptr()
        assert parameter.requires_grad
        assert not parameter.is_meta
    assert set(unet2d.state_dict()) == names


def test_new_parameters_are_named():
    unet2d = parent("stable diffusion 1.5")
    unet = inflate_unet2d(unet2d)
    names = set(new_parameter_names(unet))
    assert names == {name for name, _ in unet.named_parameters()} - {name for name, _ in unet2d.named_parameters()}
    assert inflate_unet2d(unet2d, view_layer_types="none", time_layers=False).view_embedding is not None


def test_takes_dtype_and_mode_of_the_parent():
    unet = inflate_unet2d(parent("stable diffusion 1.5").to(torch.bfloat16).train())
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.bfloat16}
    assert unet.training


def test_motion_modules_load_by_name_and_equal_animatediff():
    unet2d = parent("stable diffusion 1.5")
    torch.manual_seed(2)
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=2, motion_num_attention_heads=2, motion_norm_num_groups=4
    )
    reference = UNetMotionModel.from_unet2d(unet2d, adapter).eval()
    unet = inflate_unet2d(unet2d, time_double_self_attention=True, time_activation_fn="geglu", time_attention_heads=2)
    left_over = unet.load_state_dict(adapter.state_dict(), strict=False).unexpected_keys
    assert not left_over
    arguments = inputs(unet2d)
    video = arguments["sample"][:, :, :1, 1:2]
    with torch.no_grad():
        ours = unet(video, 10, arguments["encoder_hidden_states"]).sample
        theirs = reference(
            video[:, :, 0, 0], 10, arguments["encoder_hidden_states"].repeat_interleave(5, dim=0)
        ).sample
        plain = inflate_unet2d(unet2d)(video, 10, arguments["encoder_hidden_states"]).sample
    assert (ours[:, :, 0, 0] - theirs).abs().max() < 1e-4
    assert (ours - plain).abs().max() > 1e-3


def test_time_layers_of_wide_parents_are_slim_unless_told_otherwise(tmp_path, monkeypatch):
    unet2d = parent("sdxl")
    names = {True: set(), False: set()}
    wide = inflate_unet2d(unet2d)
    monkeypatch.setattr(inflation, "WIDEST_TIME_LAYER", 8)
    slim = inflate_unet2d(unet2d)
    assert wide.config.time_max_channels is None
    assert slim.config.time_max_channels == 8
    ours, theirs = outputs(slim, unet2d)
    assert (ours - theirs).abs().max() <= 1e-5
    wide_shapes = {name: parameter.shape for name, parameter in wide.named_parameters()}
    for name, parameter in slim.named_parameters():
        names[parameter.shape == wide_shapes[name]].add(name)
    assert names[False] == {
        name
        for name in wide_shapes
        if re.match(r"(down_blocks\.1|mid_block|up_blocks\.0)\.motion_modules", name)
        and not re.search(r"motion_modules\.\d\.(norm\.|proj_out\.bias)", name)
    }
    full = inflate_unet2d(unet2d, time_max_channels=None)
    assert {name: parameter.shape for name, parameter in full.named_parameters()} == wide_shapes

    for parameter in slim.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    slim.save_pretrained(tmp_path / "slim")
    loaded = StaleUNet5DConditionModel.from_pretrained(tmp_path / "slim")
    assert torch.equal(outputs(loaded, unet2d)[0], outputs(slim, unet2d)[0])
    slim(**inputs(unet2d)).sample.square().mean().backward()
    assert all(dict(slim.named_parameters())[name].grad.abs().sum() > 0 for name in new_parameter_names(slim))


def test_a_configuration_without_a_width_of_time_layers_means_what_it_meant(tmp_path, monkeypatch):
    monkeypatch.setattr(inflation, "WIDEST_TIME_LAYER", 8)
    unet = inflate_unet2d(parent("stable diffusion 1.5"), time_max_channels=None)
    unet.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["time_max_channels"]
    path.write_text(json.dumps(config))
    loaded = StaleUNet5DConditionModel.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in unet.state_dict().items())


def test_refuses_a_width_of_time_layers_that_does_not_fit():
    with pytest.raises(ValueError, match="`time_max_channels` must be an integer of at least 1, got 0"):
        inflate_unet2d(parent("sdxl"), time_max_channels=0)
    with pytest.raises(ValueError, match="must divide the 6 channels of every time layer, got 4"):
        inflate_unet2d(parent("sdxl"), time_max_channels=6, time_attention_heads=4)


def test_weights_of_a_motion_adapter_are_shared_and_not_copied():
    torch.manual_seed(2)
    adapter = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=2,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        use_motion_mid_block=False,
    )
    unet = inflate_unet2d(parent("stable diffusion 1.5"), adapter)
    tensors = unet.state_dict()
    assert all(tensors[name].data_ptr() == tensor.data_ptr() for name, tensor in adapter.state_dict().items())
    assert not any(tensor.is_meta for tensor in tensors.values())
    assert all(parameter.requires_grad for parameter in unet.parameters())
    assert not unet.mid_block.motion_modules[0].proj_out.weight.any()
    half = inflate_unet2d(parent("stable diffusion 1.5").to(torch.bfloat16), adapter)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}


def test_refuses_what_is_no_2d_unet():
    with pytest.raises(ValueError, match="UNet2DConditionModel, got Linear"):
        inflate_unet2d(torch.nn.Linear(2, 2))


def test_refuses_blocks_that_cannot_be_inflated_by_name():
    unet2d = UNet2DConditionModel(
        **{**SD15, "down_block_types": ("KDownBlock2D", "DownBlock2D"), "block_out_channels": (32, 64)}
    )
    with pytest.raises(ValueError, match=r"down_block_types\[0\].*KDownBlock2D"):
        inflate_unet2d(unet2d)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_type": "gated"}, "`attention_type`.*'gated'"),
        ({"dual_cross_attention": True}, "`dual_cross_attention`.*True"),
        ({"addition_embed_type": "image", "encoder_hid_dim": 8}, "`addition_embed_type`.*'image'"),
        (
            {"encoder_hid_dim_type": "text_image_proj", "encoder_hid_dim": 8},
            "`encoder_hid_dim_type`.*'text_image_proj'",
        ),
    ],
)
def test_refuses_options_that_cannot_be_inflated_by_name(changes, message):
    unet2d = UNet2DConditionModel(**{**SD15, **changes})
    with pytest.raises(ValueError, match=message):
        inflate_unet2d(unet2d)


def test_takes_over_what_is_switched_on():
    unet2d = parent("levels that differ")
    unet2d.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    unet2d.set_attention_slice("max")
    unet2d.enable_gradient_checkpointing()
    unet = inflate_unet2d(unet2d)
    ours, theirs = outputs(unet, unet2d)
    assert (ours - theirs).abs().max() <= 1e-5
    assert unet.is_gradient_checkpointing
    assert unet2d.attn_processors.items() <= unet.attn_processors.items()
    unet2d.disable_freeu()
    assert (ours - outputs(unet, unet2d)[1]).abs().max() > 1e-3


def test_refuses_fused_projections():
    unet2d = parent("stable diffusion 1.5")
    unet2d.fuse_qkv_projections()
    with pytest.raises(ValueError, match="left over.*to_qkv.*unfuse"):
        inflate_unet2d(unet2d)


def test_refuses_unknown_options():
    with pytest.raises(ValueError, match="view_layer_types.*got view_layers"):
        inflate_unet2d(parent("stable diffusion 1.5"), view_layers="epipolar")
    assert "view_layer_types" in NEW_OPTIONS


def test_refuses_weights_without_a_place():
    unet2d = parent("stable diffusion 1.5")
    unet2d.conv_in.register_parameter("lora", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match="left over.*conv_in.lora"):
        inflate_unet2d(unet2d)
