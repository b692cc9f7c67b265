"""Truths of what training keeps: less than before, and results and gradients to the bit as if all had been kept."""

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_stale import StaleUNet5DConditionModel, inflate_unet2d
from diffusers_stale.recomputation import ThriftyFeedForward, ThriftyResnet, made_again
from diffusers_stale.view_layers import ViewAttention, ViewAttnProcessor


KINDS = {
    "stable diffusion": {},
    "gated feed-forward layers in time": {"time_activation_fn": "geglu", "time_double_self_attention": True},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "resnet_skip_time_act": True},
    "other activations": {"act_fn": "mish", "resnet_out_scale_factor": 1.4},
    "dropout": {"dropout": 0.3},
}


def network(make_unet: Callable[..., StaleUNet5DConditionModel], **changes: object) -> StaleUNet5DConditionModel:
    torch.manual_seed(0)
    unet = make_unet(**changes).train()
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return unet


class KeepingViewAttnProcessor(ViewAttnProcessor):
    """Keeps all that `ViewAttnProcessor` makes."""

    def __call__(self, attn: ViewAttention, hidden_states: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (attn.heads, -1))
            for projection in (attn.to_q, attn.to_k, attn.to_v)
        )
        attended = self.attend(query, key, value, angles)
        return attn.to_out[0](attended.flatten(2).unflatten(0, hidden_states.shape[:2]))


def that_keeps_all(unet: StaleUNet5DConditionModel) -> StaleUNet5DConditionModel:
    """A copy whose layers are diffusers' own."""
    unet = copy.deepcopy(unet)
    changed = 0
    for layer in unet.modules():
        if isinstance(layer, ThriftyResnet):
            layer.__class__ = ResnetBlock2D
        elif isinstance(layer, ThriftyFeedForward):
            layer.__class__ = FeedForward
        else:
            continue
        changed += 1
    assert changed > 5
    unet.set_attn_processor(KeepingViewAttnProcessor())
    return unet


def step(unet: StaleUNet5DConditionModel, autocast: bool = False) -> tuple[int, torch.Tensor, dict[str, torch.Tensor]]:
    """Bytes kept for the backward pass, prediction and gradients of one training step."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, unet.config.in_channels, 2, 2, 3, 4, 4, generator=generator)
    text = torch.randn(1, 5, unet.config.cross_attention_dim, generator=generator)
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        prediction = unet(sample, 500, text).sample
    prediction.float().square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in unet.named_parameters()}
    return sum(kept.values()), prediction.detach(), gradients


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_layers_that_keep_all(make_unet: Callable[..., StaleUNet5DConditionModel], kind: str):
    unet = network(make_unet, **KINDS[kind])
    reference = that_keeps_all(unet)
    kept, prediction, gradients = step(unet)
    all_kept, expected, expected_gradients = step(reference)
    assert torch.equal(prediction, expected)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected_gradients[name]), name
    assert kept < 0.65 * all_kept


def test_gradients_are_those_of_layers_that_keep_all_in_mixed_precision(make_unet: Callable[..., torch.nn.Module]):
    unet = network(make_unet)
    reference = that_keeps_all(unet)
    _, prediction, gradients = step(unet, autocast=True)
    _, expected, expected_gradients = step(reference, autocast=True)
    assert torch.equal(prediction, expected)
    assert all(torch.equal(gradient, expected_gradients[name]) for name, gradient in gradients.items())


def test_gradient_checkpointing_goes_together_with_it(make_unet: Callable[..., StaleUNet5DConditionModel]):
    unet = network(make_unet)
    _, expected, expected_gradients = step(that_keeps_all(unet))
    unet.enable_gradient_checkpointing()
    _, prediction, gradients = step(unet)
    assert torch.equal(prediction, expected)
    assert all(torch.allclose(gradient, expected_gradients[name], atol=1e-6) for name, gradient in gradients.items())


def test_resnets_that_resample_stay_as_they_are(make_unet: Callable[..., StaleUNet5DConditionModel]):
    unet = network(
        make_unet,
        down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D"),
    )
    kinds = {type(layer) for layer in unet.modules() if isinstance(layer, ResnetBlock2D)}
    assert kinds == {ThriftyResnet, ResnetBlock2D}
    step(unet)


def test_a_convolution_at_the_end_is_not_made_twice():
    class Counting(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls = Counter()

        def __torch_dispatch__(self, operation, types, arguments=(), options=None):
            self.calls[operation.overloadpacket.__name__] += 1
            return operation(*arguments, **(options or {}))

    convolution, images = torch.nn.Conv2d(2, 2, 3), torch.randn(1, 2, 5, 5, requires_grad=True)
    with Counting() as counting:
        made_again(lambda images: convolution(images.sin()), images).sum().backward()
    assert counting.calls["sin"] == 2
    assert counting.calls["convolution"] == 1


def test_the_parent_of_an_inflated_network_keeps_its_layers(make_unet2d: Callable[[], UNet2DConditionModel]):
    unet2d = make_unet2d()
    inflate_unet2d(unet2d)
    assert {type(layer) for layer in unet2d.modules() if isinstance(layer, ResnetBlock2D)} == {ResnetBlock2D}
