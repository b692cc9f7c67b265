"""Truths of `StaleUNet5DConditionModel` and its view layers: who sees whom, where, and what is refused."""

import inspect

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from diffusers_stale.axes import IMAGE_AXES, axis_index, fold, unfold, view_coordinates
from diffusers_stale.inflation import is_new_parameter, new_parameter_names
from diffusers_stale.moments import MomentEmbedding
from diffusers_stale.unet_config import SPATIAL_KEYS
from diffusers_stale.unet_layers import circular
from diffusers_stale.unet_stale import StaleUNet5DConditionModel
from diffusers_stale.view_layers import (
    EpipolarAttention,
    EpipolarViewLayer,
    SamePixelViewLayer,
    ViewConvolution,
    ViewGrid,
    spread,
)


TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
GRID = {"view_rows": 2, "view_cols": 3, "frames": 5}  # with batch, height and width, no two axes are equally long
BATCH, HEIGHT, WIDTH = 4, 6, 8


def tiny_unet(seed: int = 0, awake: bool = True, **options) -> StaleUNet5DConditionModel:
    """A tiny network; if `awake`, new layers that are zero at initialisation get random weights."""
    torch.manual_seed(seed)
    unet = StaleUNet5DConditionModel(**{**TINY, **options}).eval()
    if awake:
        wake(unet)
    return unet


def wake(module: nn.Module) -> None:
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)


def light_field(channels: int = 4, batch: int = BATCH, seed: int = 1, **grid: int) -> torch.Tensor:
    counts = {**GRID, **grid}
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, counts["view_rows"], counts["view_cols"], counts["frames"], HEIGHT, WIDTH)
    return torch.randn(shape, generator=generator)


def text(batch: int = BATCH) -> torch.Tensor:
    return torch.randn(batch, 7, 8, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def run(unet: StaleUNet5DConditionModel, sample: torch.Tensor, **arguments) -> torch.Tensor:
    arguments = {"timestep": 10, "encoder_hidden_states": text(len(sample)), **arguments}
    return unet(sample, **arguments).sample


def shuffled(tensor: torch.Tensor, axis: str, order: list[int] | None = None) -> torch.Tensor:
    dim = axis_index(axis)
    order = order or list(range(1, tensor.shape[dim])) + [0]
    return tensor.index_select(dim, torch.tensor(order))


def grid_of(sample: torch.Tensor, baseline: float = 1.0, spacing: float = 1.0) -> ViewGrid:
    batch, _, rows, cols, frames = sample.shape[:5]
    coordinates = [view_coordinates(count, spacing)[None] * baseline for count in (rows, cols)]
    return ViewGrid(batch, rows, cols, frames, *coordinates)


@torch.no_grad()
def through(layer: nn.Module, sample: torch.Tensor, grid: ViewGrid | None = None) -> torch.Tensor:
    """A folded layer applied to a light field."""
    grid = grid or grid_of(sample)
    folded = fold(sample, IMAGE_AXES)
    return unfold(layer(folded, grid), IMAGE_AXES, grid.axis_sizes(folded))


def awake_layer(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    layer = kind(16, 2, (-1.0, 1.0))
    wake(layer)
    return layer


# Who sees whom.


@pytest.mark.parametrize("kind", [EpipolarViewLayer, SamePixelViewLayer])
@pytest.mark.parametrize("axis", ["batch", "frames"])
def test_view_layers_commute_with_permutations_of_other_axes(kind, axis):
    layer, sample = awake_layer(kind), light_field(16)
    assert torch.allclose(through(layer, shuffled(sample, axis)), shuffled(through(layer, sample), axis), atol=1e-5)


@pytest.mark.parametrize("kind", [EpipolarViewLayer, SamePixelViewLayer])
@pytest.mark.parametrize("axis", ["view_rows", "view_cols"])
def test_view_layers_mix_views_and_know_their_places(kind, axis):
    layer, sample = awake_layer(kind), light_field(16)
    difference = through(layer, shuffled(sample, axis)) - shuffled(through(layer, sample), axis)
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize("axis", ["height", "width"])
def test_same_pixel_layer_commutes_with_permutations_of_pixels(axis):
    layer, sample = awake_layer(SamePixelViewLayer), light_field(16)
    assert torch.allclose(through(layer, shuffled(sample, axis)), shuffled(through(layer, sample), axis), atol=1e-5)


def reach(layer: nn.Module) -> torch.Tensor:
    """Where the output changes when one value, at view (1, 2), frame 3, pixel (4, 6) of movie 1, is changed."""
    sample = light_field(16)
    changed = sample.clone()
    changed[1, :, 1, 2, 3, 4, 6] += torch.randn(16, generator=torch.Generator().manual_seed(3))
    return (through(layer, sample) - through(layer, changed)).abs().amax(dim=1) > 1e-6


def test_attention_along_columns_stays_on_its_epipolar_lines():
    layer = awake_layer(EpipolarViewLayer)
    nn.init.zeros_(layer.along_rows.attention.to_out[0].weight)
    expected = torch.zeros(BATCH, 2, 3, 5, HEIGHT, WIDTH, dtype=torch.bool)
    expected[1, 1, :, 3, 4, :] = True
    assert torch.equal(reach(layer), expected)


def test_attention_along_rows_stays_on_its_epipolar_lines():
    layer = awake_layer(EpipolarViewLayer)
    nn.init.zeros_(layer.along_columns.attention.to_out[0].weight)
    expected = torch.zeros(BATCH, 2, 3, 5, HEIGHT, WIDTH, dtype=torch.bool)
    expected[1, :, 2, 3, :, 6] = True
    assert torch.equal(reach(layer), expected)


def test_same_pixel_layer_reaches_all_views_of_a_pixel_and_nothing_else():
    expected = torch.zeros(BATCH, 2, 3, 5, HEIGHT, WIDTH, dtype=torch.bool)
    expected[1, :, :, 3, 4, 6] = True
    assert torch.equal(reach(awake_layer(SamePixelViewLayer)), expected)


class Labels(nn.Module):
    """In place of an attention: the residual is each token times a label of the place where the layer says it is."""

    def forward(self, lines: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        return lines * coordinates[:, None, :, None, None] * torch.arange(lines.shape[3])[:, None]


def test_epipolar_layer_hands_each_token_over_in_its_place_and_puts_it_back():
    layer, sample = awake_layer(EpipolarViewLayer), light_field(16)
    layer.along_columns, layer.along_rows = Labels(), Labels()
    row, col = view_coordinates(2)[:, None, None, None, None], view_coordinates(3)[:, None, None, None]
    expected = sample * (1 + col * torch.arange(WIDTH)) * (1 + row * torch.arange(HEIGHT)[:, None])
    assert torch.allclose(through(layer, sample), expected, atol=1e-4)


def test_same_pixel_layer_hands_each_view_over_in_its_place_and_puts_it_back(monkeypatch):
    layer, sample = awake_layer(SamePixelViewLayer), light_field(16)
    layer.norm = nn.Identity()
    nn.init.zeros_(layer.convolution.kernel)
    monkeypatch.setattr(layer.attention, "forward", lambda views, angles: views * torch.arange(6)[:, None])
    expected = sample * (1 + torch.arange(6).reshape(2, 3, 1, 1, 1))
    assert torch.allclose(through(layer, sample), expected, atol=1e-5)


def test_rotary_phases_follow_the_order_of_tokens():
    layer, grid = awake_layer(SamePixelViewLayer), grid_of(light_field(16))
    phases = layer.angles(grid)[0, 0, :, 0].unflatten(0, (2, 3))
    halves = phases.chunk(2, dim=-1)
    assert torch.equal(halves[0][:, 0], halves[0][:, 2])
    assert torch.equal(halves[1][0], halves[1][1])
    assert torch.allclose(halves[1][0, :, 0], view_coordinates(3) * torch.pi / 2)


@pytest.mark.parametrize("axis", ["view_rows", "view_cols", "batch"])
def test_time_layers_commute_with_permutations_of_views(axis):
    unet, sample = tiny_unet(view_layer_types="none"), light_field()
    nn.init.zeros_(unet.view_embedding.linear_2.weight)
    nn.init.zeros_(unet.view_embedding.linear_2.bias)
    same_text = text()[:1].expand(BATCH, -1, -1)
    moved = run(unet, shuffled(sample, axis), encoder_hidden_states=same_text)
    assert torch.allclose(moved, shuffled(run(unet, sample, encoder_hidden_states=same_text), axis), atol=1e-4)


def test_time_layers_mix_frames_of_the_same_view_only():
    unet, sample = tiny_unet(view_layer_types="none"), light_field()
    changed = sample.clone()
    changed[1, :, 1, 2, 3] += 1
    touched = (run(unet, sample) - run(unet, changed)).abs().amax(dim=(1, 5, 6)) > 1e-6
    expected = torch.zeros(BATCH, 2, 3, 5, dtype=torch.bool)
    expected[1, 1, 2, :] = True
    assert torch.equal(touched, expected)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("turn", [1, 3])
def test_a_loop_that_is_turned_around_comes_out_turned_around(frames, turn):
    unet, sample = tiny_unet(), light_field(frames=frames)
    turned = run(unet, sample.roll(turn, dims=axis_index("frames")), loop=True)
    assert torch.allclose(turned, run(unet, sample, loop=True).roll(turn, dims=axis_index("frames")), atol=1e-4)
    line = run(unet, sample.roll(turn, dims=axis_index("frames")))
    is_still = torch.allclose(line, run(unet, sample).roll(turn, dims=axis_index("frames")), atol=1e-3)
    assert is_still == (frames == 1), "without `loop` places in the line must count, or this test sees nothing"


def test_in_a_loop_the_middle_frame_sees_what_it_sees_in_a_line():
    layer = tiny_unet().down_blocks[0].motion_modules[0]
    images = torch.randn(5, 8, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        line = layer(images, None, None, None, 5)
        loop = circular(lambda turned: layer(turned, None, None, None, 5), images, 5)
    assert torch.equal(loop[2], line[2])
    assert not torch.allclose(loop[0], line[0], atol=1e-3)


def test_an_untrained_loop_is_a_line():
    unet, sample = tiny_unet(awake=False), light_field()
    assert torch.equal(run(unet, sample, loop=True), run(unet, sample))


@pytest.mark.parametrize("options", [{"time_layers": False}, {}])
def test_movies_of_a_batch_are_independent(options):
    unet, sample = tiny_unet(**options), light_field()
    order = [2, 0, 3, 1]
    moved = run(unet, shuffled(sample, "batch", order), encoder_hidden_states=text()[order])
    assert torch.allclose(moved, shuffled(run(unet, sample), "batch", order), atol=1e-4)


@pytest.mark.parametrize("axis", ["view_rows", "view_cols", "frames"])
def test_untrained_new_layers_commute_with_every_permutation(axis):
    unet, sample = tiny_unet(awake=False), light_field()
    assert torch.allclose(run(unet, shuffled(sample, axis)), shuffled(run(unet, sample), axis), atol=1e-5)


def test_frames_do_not_mix_without_time_layers():
    unet, sample = tiny_unet(time_layers=False), light_field()
    moved = run(unet, shuffled(sample, "frames"))
    assert torch.allclose(moved, shuffled(run(unet, sample), "frames"), atol=1e-4)


# Geometry.


def test_a_head_sees_all_images_of_a_point_of_its_disparity_at_one_place():
    attention = EpipolarAttention(16, 2, (-1.0, 1.0))
    coordinates = view_coordinates(3)[None]
    angles = attention.angles(coordinates, positions=8).unflatten(2, (3, 8))[0, 0]
    of_position = angles[..., attention.view_pairs :]
    # Disparity d stands at x - d * u (axes): from one view to the next the point moves by -d, and slope -d undoes it.
    for head, slope in enumerate((-1, 1)):
        first, second = of_position[0, 2, head], of_position[1, 2 + slope, head]
        assert torch.allclose(first, second, atol=1e-6)
        assert not torch.allclose(first, of_position[1, 2 - slope, head])


def test_slopes_halve_from_level_to_level():
    unet = tiny_unet(awake=False, view_layer_types="epipolar", view_attention_heads=4)
    first = unet.down_blocks[0].view_layers[0].along_columns.slopes
    second = unet.mid_block.view_layers[0].along_rows.slopes
    assert torch.allclose(first, torch.tensor([-1.0, -0.4, 0.4, 1.0]))
    assert torch.allclose(second, first / 2)


def test_slopes_spread_over_any_number_of_heads():
    assert spread((-1.0, -0.4, 0.4, 1.0), 1) == [0.0]
    assert spread((-1.0, -0.4, 0.4, 1.0), 2) == [-1.0, 1.0]
    assert spread((-1.0, 1.0), 3) == [-1.0, 0.0, 1.0]
    assert spread((0.5,), 3) == [0.5, 0.5, 0.5]


def test_view_convolution_is_a_convolution_at_the_trained_spacing():
    torch.manual_seed(0)
    convolution = ViewConvolution(6)
    nn.init.normal_(convolution.kernel)
    views = torch.randn(2, 5, 3, 4, 6)
    grid = ViewGrid(2, 3, 4, 5, view_coordinates(3)[None], view_coordinates(4)[None])
    images = views.flatten(0, 1).permute(0, 3, 1, 2)
    expected = nn.functional.conv2d(images, convolution.kernel[:, None], padding=1, groups=6)
    expected = expected.permute(0, 2, 3, 1).unflatten(0, (2, 5))
    assert torch.allclose(convolution(views, grid), expected, atol=1e-5)


def test_view_convolution_keeps_its_physical_size_on_a_denser_grid():
    convolution = ViewConvolution(2)
    nn.init.normal_(convolution.kernel)
    constant = torch.ones(1, 1, 5, 5, 2)
    dense = convolution(constant, ViewGrid(1, 5, 5, 1, view_coordinates(5, 0.5)[None], view_coordinates(5, 0.5)[None]))
    plain = convolution(constant, ViewGrid(1, 5, 5, 1, view_coordinates(5)[None], view_coordinates(5)[None]))
    assert torch.allclose(dense[0, 0, 2, 2], plain[0, 0, 2, 2], atol=1e-5)


def test_baseline_and_spacing_scale_the_same_coordinates():
    unet, sample = tiny_unet(), light_field()
    halved = run(unet, sample, view_baseline=0.5)
    assert torch.equal(halved, run(unet, sample, view_spacing=0.5))
    assert torch.allclose(halved, run(unet, sample, view_baseline=torch.full((BATCH,), 0.5)), atol=1e-5)
    assert not torch.allclose(halved, run(unet, sample), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "values"), [("view_baseline", [0.5, 1.0, 1.5, 2.0]), ("frame_spacing", [0.0, 0.0, 1.0, 0.5])]
)
def test_each_movie_has_its_own(name: str, values: list[float]):
    unet, sample = tiny_unet(), light_field()
    together = run(unet, sample, **{name: torch.tensor(values)})
    for index, value in enumerate(values):
        one = slice(index, index + 1)
        alone = run(unet, sample[one], encoder_hidden_states=text()[one], **{name: value})
        assert torch.allclose(together[one], alone, atol=1e-4)


def test_moments_between_frames_are_those_of_a_movie_of_more_frames():
    layer = MomentEmbedding(8, 16)
    line = torch.zeros(1, 5, 8)
    layer.spacing = 2.0
    doubled = layer(line)[0, [1, 2, 3]]
    assert torch.allclose(doubled, layer.pe[0, [0, 2, 4]], atol=1e-6)
    layer.spacing = 0.0
    assert torch.allclose(layer(line)[0], layer.pe[0, [2] * 5], atol=1e-6)


def test_a_spacing_of_frames_counts_and_does_not_outlive_its_call():
    unet, sample = tiny_unet(), light_field()
    usual = run(unet, sample)
    together = run(unet, sample, frame_spacing=torch.tensor([0.0, 0.0, 1.0, 0.5]))
    assert torch.allclose(together[2], usual[2], atol=1e-4)
    assert not torch.allclose(together[3], usual[3], atol=1e-3)
    assert torch.equal(run(unet, sample), usual)


def test_frames_of_one_moment_that_are_alike_stay_alike():
    unet, sample = tiny_unet(), light_field(frames=1)
    still = sample.expand(*sample.shape[:4], 3, *sample.shape[5:])
    axis = axis_index("frames")
    first, *others = run(unet, still, frame_spacing=0.0).unbind(axis)
    assert all(torch.allclose(first, other, atol=1e-4) for other in others)
    first, *others = run(unet, still).unbind(axis)
    assert not all(torch.allclose(first, other, atol=1e-3) for other in others)


@pytest.mark.parametrize("spacing", [-1.0, float("nan"), torch.ones(3)])
def test_a_spacing_of_frames_that_is_none_is_refused(spacing):
    with pytest.raises(ValueError, match="`frame_spacing` must"):
        run(tiny_unet(), light_field(), frame_spacing=spacing)


# Shapes, configuration, storage, training.


@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 3, 1), (2, 3, 4), (5, 5, 1), (1, 1, 6)])
def test_any_grid(counts):
    sample = light_field(batch=1, **dict(zip(("view_rows", "view_cols", "frames"), counts, strict=True)))
    output = run(tiny_unet(), sample)
    assert output.shape == sample.shape
    assert output.isfinite().all()


def test_sizes_that_do_not_halve():
    sample = light_field(batch=1)[..., :5, :7]
    assert run(tiny_unet(), sample).shape == sample.shape


@pytest.mark.parametrize("timestep", [3, 3.0, torch.tensor(3), torch.tensor([3]), torch.tensor([3] * BATCH)])
def test_forms_of_timestep(timestep):
    unet, sample = tiny_unet(), light_field()
    assert torch.equal(run(unet, sample, timestep=timestep), run(unet, sample, timestep=3))


def test_return_dict():
    unet, sample = tiny_unet(), light_field(batch=1)
    with torch.no_grad():
        (output,) = unet(sample, 10, text(1), return_dict=False)
    assert torch.equal(output, run(unet, sample))


def test_configuration_defaults_are_those_of_the_2d_unet():
    ours = inspect.signature(StaleUNet5DConditionModel.__init__).parameters
    theirs = inspect.signature(UNet2DConditionModel.__init__).parameters
    assert {key: ours[key].default for key in SPATIAL_KEYS} == {key: theirs[key].default for key in SPATIAL_KEYS}


def test_smallest_widths():
    unet = tiny_unet(block_out_channels=(4, 8), norm_num_groups=4, attention_head_dim=2)
    assert run(unet, light_field(batch=1)).isfinite().all()


def test_new_layers_where_the_levels_say():
    unet = tiny_unet(view_layer_types=("none", "epipolar"), time_layers=(True, False))
    names = new_parameter_names(unet)
    places = {".".join(name.split(".")[: 2 if "mid" in name else 3]) for name in names if "view_emb" not in name}
    assert places == {
        "down_blocks.0.motion_modules",
        "down_blocks.1.view_layers",
        "mid_block.view_layers",
        "up_blocks.0.view_layers",
        "up_blocks.1.motion_modules",
    }


def test_saved_then_loaded_is_equal(tmp_path):
    unet, sample = tiny_unet(), light_field()
    unet.save_pretrained(tmp_path)
    loaded = StaleUNet5DConditionModel.from_pretrained(tmp_path)
    assert torch.equal(run(loaded, sample), run(unet, sample))
    assert tuple(loaded.config.view_layer_types) == ("epipolar", "same_pixel")


def gradients(unet: StaleUNet5DConditionModel) -> dict[str, torch.Tensor]:
    unet.train().zero_grad()
    output = unet(light_field(batch=1), 10, text(1)).sample
    output.square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}


def test_gradient_checkpointing_leaves_gradients_equal():
    unet = tiny_unet()
    plain = gradients(unet)
    calls = []

    def checkpoint(module, *arguments):
        calls.append(type(module).__name__)
        return torch.utils.checkpoint.checkpoint(module, *arguments, use_reentrant=False)

    unet.enable_gradient_checkpointing(checkpoint)
    checkpointed = gradients(unet)
    assert {"ThriftyResnet", "AnimateDiffTransformer3D", "EpipolarViewLayer", "SamePixelViewLayer"} <= set(calls)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], atol=1e-6), name


def test_every_new_layer_learns_from_its_initial_zero():
    unet = tiny_unet(awake=False).train()
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-2)
    target, before = light_field(seed=5), {name: p.detach().clone() for name, p in unet.named_parameters()}
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            prediction = unet(light_field(), 10, text()).sample
        loss = (prediction.float() - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    still = [name for name, p in unet.named_parameters() if is_new_parameter(name) and torch.equal(p, before[name])]
    assert not still
    assert losses[-1] < losses[0]


def test_bfloat16_weights():
    unet = tiny_unet().to(torch.bfloat16)
    output = run(unet, light_field(batch=1).bfloat16(), encoder_hidden_states=text(1).bfloat16())
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()


def test_lora_adapter_reaches_spatial_and_view_layers():
    peft = pytest.importorskip("peft")
    unet, sample = tiny_unet(), light_field(batch=1)
    plain = run(unet, sample)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    assert any("lora" in name and "view_layers" in name for name, _ in unet.named_parameters())
    assert not torch.allclose(run(unet, sample), plain, atol=1e-3)
    assert torch.allclose(run(unet, sample, cross_attention_kwargs={"scale": 0.0}), plain, atol=1e-5)


# What is refused.


@pytest.mark.parametrize(
    ("sample", "arguments", "message"),
    [
        (torch.zeros(1, 4, 3, 8, 8), {}, "batch.*channels.*view_rows.*view_cols.*frames.*height.*width"),
        (torch.zeros(1, 3, 1, 1, 1, 8, 8), {}, "4 channels, got 3"),
        (torch.zeros(1, 4, 1, 1, 33, 8, 8), {}, "between 1 and 32 frames, got 33"),
        (torch.zeros(2, 4, 1, 1, 1, 8, 8), {"encoder_hidden_states": torch.zeros(1, 7, 8)}, "one text for each movie"),
        (torch.zeros(2, 4, 1, 1, 1, 8, 8), {"timestep": torch.zeros(3)}, "one timestep for each movie"),
        (torch.zeros(2, 4, 1, 1, 1, 8, 8), {"view_baseline": torch.ones(3)}, "one baseline for each movie"),
        (torch.zeros(1, 4, 1, 1, 1, 8, 8), {"view_spacing": 0.0}, "greater than 0"),
    ],
)
def test_input_that_does_not_fit(sample, arguments, message):
    arguments = {"encoder_hidden_states": torch.zeros(len(sample), 7, 8), **arguments}
    with pytest.raises(ValueError, match=message):
        run(tiny_unet(), sample, **arguments)


def test_no_condition_of_one_movie_is_taken_for_all():
    sizes_told = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 10,
    }
    sample, text = torch.zeros(2, 4, 1, 1, 1, 8, 8), torch.zeros(2, 7, 8)
    for pooled, numbers in ((1, 2), (2, 1), (1, 1)):
        added = {"text_embeds": torch.zeros(pooled, 10), "time_ids": torch.zeros(numbers, 6)}
        with pytest.raises(ValueError, match=f"batch=2, got {pooled} and {numbers}"):
            run(tiny_unet(**sizes_told), sample, encoder_hidden_states=text, added_cond_kwargs=added)
    for options in ({"time_cond_proj_dim": 6}, {}):
        with pytest.raises(ValueError, match=r"`timestep_cond`.*got \(1, 6\)"):
            run(tiny_unet(**options), sample, encoder_hidden_states=text, timestep_cond=torch.zeros(1, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view_layer_types": ("epipolar",)}, "one value or 2"),
        ({"view_layer_types": "epipolr"}, "'epipolar', 'same_pixel', 'none', got 'epipolr'"),
        ({"time_layers": (True, True, False)}, "one value or 2"),
        ({"view_attention_heads": 3}, "`view_attention_heads` must divide"),
        ({"time_attention_heads": 3}, "`time_attention_heads` must divide"),
        ({"time_max_frames": 0}, "`time_max_frames`"),
        ({"down_block_types": ("DownBlock2D", "KDownBlock2D")}, r"down_block_types\[1\].*KDownBlock2D"),
        ({"addition_embed_type": "image"}, "addition_embed_type"),
    ],
)
def test_configurations_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_unet(**options)
