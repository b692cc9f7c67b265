"""Truths of channels last in memory: results stay as they are, and layers that compute so agree with diffusers'."""

from collections.abc import Callable

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from peft import LoraConfig
from torch import nn

from diffusers_stale import StaleUNet5DConditionModel, unet_stale
from diffusers_stale.channels_last import QuickGroupNorm, be_quick, halves, in_layout_of, layout_of
from diffusers_stale.recomputation import keep_less


LAST = torch.channels_last
KINDS = {
    "stable diffusion": {},
    "linear projections": {"use_linear_projection": True},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "resnet_skip_time_act": True},
    "other activations": {"act_fn": "mish", "resnet_out_scale_factor": 1.4},
    "plain attention": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    "resnets that resample": {
        "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D"),
    },
    "gated feed-forward layers in time": {"time_activation_fn": "geglu", "time_double_self_attention": True},
    "other padding": {"downsample_padding": 0},
}


def network(make_unet: Callable[..., StaleUNet5DConditionModel], **changes: object) -> StaleUNet5DConditionModel:
    torch.manual_seed(0)
    unet = make_unet(**changes).eval()
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return unet


def told(unet: StaleUNet5DConditionModel, size: tuple[int, ...] = (2, 3, 5, 8, 8)) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(2, unet.config.in_channels, *size, generator=generator),
        "timestep": 500,
        "encoder_hidden_states": torch.randn(2, 5, unet.config.cross_attention_dim, generator=generator),
    }


def layouts_seen(unet: StaleUNet5DConditionModel) -> set[torch.memory_format]:
    """Filled, while `unet` is called, with the layouts of what its residual blocks get."""
    seen = set()
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.register_forward_pre_hook(lambda _, arguments: seen.add(layout_of(arguments[0])))
    return seen


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"loop": True}], ids=["line", "loop"])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_the_usual_layout(
    make_unet: Callable[..., StaleUNet5DConditionModel], monkeypatch: pytest.MonkeyPatch, kind: str, changes: dict
):
    unet = network(make_unet, **KINDS[kind])
    seen = layouts_seen(unet)
    last = unet(**told(unet), **changes).sample
    assert seen == {LAST}
    seen.clear()
    monkeypatch.setattr(unet_stale, "suits", lambda *_: False)
    usual = unet(**told(unet), **changes).sample
    assert torch.contiguous_format in seen
    assert usual.std() > 0.1
    assert (last - usual).abs().max() <= 1e-5
    assert last.is_contiguous()


@torch.no_grad()
def test_sizes_that_do_not_halve_stay_in_the_layout(make_unet: Callable[..., StaleUNet5DConditionModel]):
    unet = network(make_unet)
    seen = layouts_seen(unet)
    unet(**told(unet, (1, 2, 3, 7, 5)))
    assert seen == {LAST}


def test_single_images_training_and_other_dtypes_stay_as_they_are(make_unet: Callable[..., StaleUNet5DConditionModel]):
    unet = network(make_unet)
    seen = layouts_seen(unet)
    unet(**told(unet))
    with torch.no_grad():
        unet(**told(unet, (1, 1, 1, 8, 8)))
        arguments = told(unet)
        unet.double()(arguments["sample"].double(), 500, arguments["encoder_hidden_states"].double())
    assert seen == {torch.contiguous_format}


def images(channels: int, size: int, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 + 3 * torch.randn(count, channels, size, size, generator=generator).contiguous(memory_format=LAST)


@torch.no_grad()
@pytest.mark.parametrize(("channels", "size"), [(8, 4), (8, 40), (64, 4)])
@pytest.mark.parametrize("shifted", [False, True])
def test_group_norm_is_pytorchs(channels: int, size: int, shifted: bool):
    norm = QuickGroupNorm(4, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    some = images(channels, size)
    before = some.clone()
    shift = torch.randn(len(some), channels) if shifted else None
    moved = some if shift is None else some + shift[:, :, None, None]
    expected = nn.functional.group_norm(moved.contiguous(), 4, norm.weight, norm.bias, norm.eps)
    normed = norm(some, shift, quick=True)
    assert torch.allclose(normed, expected, atol=1e-5)
    assert torch.allclose(norm(some.contiguous(), shift, quick=True), expected, atol=1e-5)
    assert layout_of(normed) is LAST
    assert torch.equal(some, before)
    assert torch.equal(norm(some), nn.GroupNorm.forward(norm, some))
    assert norm(some[..., 0].contiguous(), quick=True).shape == some.shape[:3]


@torch.no_grad()
def test_group_norm_of_values_far_from_zero_is_as_exact_as_pytorchs():
    some = 1000 + images(8, 4)
    exact = nn.functional.group_norm(some.double(), 4)
    errors = [
        (normed - exact).abs().max()
        for normed in (QuickGroupNorm(4, 8)(some, quick=True), nn.GroupNorm(4, 8)(some.contiguous()))
    ]
    assert errors[0] < 2 * errors[1]


@torch.no_grad()
def test_layers_change_nothing_that_they_are_given():
    torch.manual_seed(0)
    resnet = ResnetBlock2D(in_channels=8, temb_channels=16, groups=4)
    transformer = Transformer2DModel(2, 4, in_channels=8, norm_num_groups=4, cross_attention_dim=6)
    layers = nn.ModuleList([resnet, transformer, Upsample2D(8, use_conv=True)])
    some, text = images(8, 4), torch.randn(1, 5, 6).expand(3, -1, -1)
    arguments = [(some, torch.randn(3, 16)), (some, text), (some,)]
    before = some.clone()
    expected = [layer(*given) for layer, given in zip(layers, arguments, strict=True)]
    kinds = [type(layer) for layer in layers]
    keep_less(layers)
    be_quick(layers)
    for layer, kind, given, result in zip(layers, kinds, arguments, expected, strict=True):
        assert type(layer) is not kind
        got = layer(*given, quick=True)
        got, result = (one if isinstance(one, torch.Tensor) else one.sample for one in (got, result))
        assert torch.allclose(got, result, atol=1e-5)
        assert layout_of(got) is LAST
    assert torch.equal(some, before)


def test_taps_are_added_where_pixels_are_alike():
    first, second = halves(torch.tensor([1.0, 20.0, 300.0]), dim=0)
    assert first.tolist() == [1, 320]
    assert second.tolist() == [21, 300]


@torch.no_grad()
def test_a_lora_of_an_upsampler_is_heard(make_unet: Callable[..., StaleUNet5DConditionModel]):
    unet = network(make_unet)
    without = unet(**told(unet)).sample
    unet.add_adapter(LoraConfig(target_modules=r".*upsamplers\.0\.conv", init_lora_weights=False))
    assert any("upsamplers.0.conv.lora" in name for name, _ in unet.named_parameters())
    assert (unet(**told(unet)).sample - without).abs().max() > 1e-3


def test_room_has_the_layout_of_what_goes_there():
    for layout in (LAST, torch.contiguous_format):
        room = in_layout_of(torch.zeros(2, 3, 4, 5).contiguous(memory_format=layout), 7)
        assert room.shape == (7, 3, 4, 5)
        assert layout_of(room) is layout
