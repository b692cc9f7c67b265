"""Memory that stays flat: layers that see parts, windows that slide over the grid; and results that stay the same."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.profiler import ProfilerActivity, profile

from diffusers_stale import StaleScheduler, StaleUNet5DConditionModel, chunking
from diffusers_stale.chunking import parts, parts_within
from diffusers_stale.memory import estimate_memory, unet_values
from diffusers_stale.view_layers import EpipolarViewLayer
from diffusers_stale.windows import Windows, predict_in_windows


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
SHAPE = (2, 4, 2, 3, 5, 6, 8)
GRIDS = {"view_rows": 4, "view_cols": 3, "num_frames": 5}


def tiny_unet(awake: bool = True, **changes) -> StaleUNet5DConditionModel:
    """A tiny network; if `awake`, new layers that are zero at initialisation get random weights."""
    torch.manual_seed(0)
    unet = StaleUNet5DConditionModel(**{**TINY, **changes}).eval()
    if awake:
        for parameter in unet.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.3)
    return unet


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def told(shape: tuple[int, ...] = SHAPE, **changes) -> dict:
    sample = torch.randn(shape, generator=seeded(1))
    text = torch.randn(len(sample), 7, 8, generator=seeded(2))
    return {"sample": sample, "timestep": 10, "encoder_hidden_states": text} | changes


@torch.no_grad()
def run(unet: StaleUNet5DConditionModel, **arguments) -> torch.Tensor:
    return unet(**(told() | arguments)).sample


def images_seen(unet: nn.Module, kind: type[nn.Module]) -> list[int]:
    """Filled, while `unet` is called, with the number of images that each layer of a `kind` gets."""
    counts = []
    for module in unet.modules():
        if isinstance(module, kind):
            module.register_forward_pre_hook(lambda _, arguments: counts.append(len(arguments[0])))
    return counts


def peak_of_memory(function) -> int:
    """Bytes allocated at once, at most, by the allocator's own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    now = highest = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            highest = max(highest, now)
    return highest


# ---- forward chunking --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"loop": True}, {"view_baseline": torch.tensor([0.5, 1.5])}])
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 31, 1000])
def test_chunking_leaves_results(chunk_size, changes):
    unet = tiny_unet()
    unet.disable_forward_chunking()
    whole = run(unet, **changes)
    unet.enable_forward_chunking(chunk_size)
    assert (run(unet, **changes) - whole).abs().max() <= 1e-5


def test_chunking_by_itself_leaves_results(monkeypatch):
    unet = tiny_unet()
    whole = run(unet)
    monkeypatch.setitem(chunking.ROWS_AT_ONCE, "cpu", 20)
    counts = images_seen(unet, ResnetBlock2D)
    assert (run(unet) - whole).abs().max() <= 1e-5
    assert max(counts) < 60


def test_chunking_says_how_many_images_layers_get():
    unet = tiny_unet(view_layer_types="epipolar")
    of_resnets, of_view_layers = images_seen(unet, ResnetBlock2D), images_seen(unet, EpipolarViewLayer)
    unet.enable_forward_chunking(2)
    run(unet)
    assert set(of_resnets) == {2}
    assert set(of_view_layers) == {6}, "view layers need all views of a frame, and get one frame"
    for seen in (of_resnets, of_view_layers):
        seen.clear()
    unet.disable_forward_chunking()
    run(unet)
    assert set(of_resnets) == set(of_view_layers) == {60}


def test_chunking_takes_less_memory(monkeypatch):
    unet = tiny_unet(block_out_channels=(16, 16), norm_num_groups=4)
    arguments = told((1, 4, 3, 3, 8, 16, 16))
    unet.disable_forward_chunking()
    whole = peak_of_memory(lambda: run(unet, **arguments))
    unet.enable_forward_chunking()
    monkeypatch.setitem(chunking.ROWS_AT_ONCE, "cpu", 85)
    assert peak_of_memory(lambda: run(unet, **arguments)) < 0.5 * whole


def gradients(unet: StaleUNet5DConditionModel) -> dict[str, torch.Tensor]:
    unet.zero_grad()
    unet(**told()).sample.square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}


def test_gradients_are_the_same_in_chunks():
    unet = tiny_unet()
    counts = images_seen(unet, ResnetBlock2D)
    plain = gradients(unet)
    assert set(counts) == {60}, "nothing is cut in training unless asked for"
    unet.enable_forward_chunking(4)
    for name, gradient in gradients(unet).items():
        assert torch.allclose(gradient, plain[name], atol=1e-5, rtol=1e-4), name


def test_gradient_checkpointing_keeps_less_for_the_same_gradients():
    unet = tiny_unet().train()

    def kept() -> tuple[int, dict[str, torch.Tensor]]:
        storages = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            unet.zero_grad()
            loss = unet(**told()).sample.square().mean()
        loss.backward()
        return sum(storages.values()), {name: p.grad.clone() for name, p in unet.named_parameters()}

    plain_bytes, plain = kept()
    unet.enable_gradient_checkpointing()
    checkpointed_bytes, checkpointed = kept()
    assert checkpointed_bytes < 0.5 * plain_bytes
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], atol=1e-6), name


@pytest.mark.parametrize("chunk_size", [0, -1, 1.5, True])
def test_chunk_sizes_that_are_none(chunk_size):
    with pytest.raises(ValueError, match="`chunk_size` must be an integer of at least 1"):
        tiny_unet().enable_forward_chunking(chunk_size)


def test_text_is_projected_once_a_movie():
    unet = tiny_unet()
    projected = []
    for name, module in unet.named_modules():
        if name.endswith("attn2.to_k"):
            module.register_forward_pre_hook(lambda _, arguments: projected.append(tuple(arguments[0].shape)))
    run(unet)
    assert set(projected) == {(2, 7, 8)}


@pytest.mark.parametrize("at_once", [None, 1, 2, 3, 5, 10, 29, 100])
def test_parts_cover_each_image_once_and_no_two_movies_in_part(at_once):
    covered = []
    for movies, images in parts_within(3, 10, at_once):
        numbers = list(range(30))[images]
        covered += numbers
        assert at_once is None or len(numbers) <= at_once
        owners = sorted({number // 10 for number in numbers})
        assert owners == list(range(3))[movies]
        assert len(owners) == 1 or len(numbers) == 10 * len(owners)
    assert covered == list(range(30))
    assert [len(range(10)[part]) for part in parts(10, 4)] == [3, 3, 4]


# ---- any grid ----------------------------------------------------------------------------------------------------


def no_exchange() -> StaleUNet5DConditionModel:
    """A network whose views know their places but not each other: what it shows depends on coordinates only."""
    return tiny_unet(view_layer_types="none", time_layers=False)


def test_a_grid_twice_as_dense_has_the_trained_views_in_it():
    unet, sample = no_exchange(), torch.randn((2, 4, 5, 5, 2, 6, 8), generator=seeded(3))
    dense = run(unet, sample=sample, view_spacing=0.5)
    trained = run(unet, sample=sample[:, :, ::2, ::2])
    assert torch.allclose(dense[:, :, ::2, ::2], trained, atol=1e-5)
    assert not torch.allclose(run(unet, sample=sample)[:, :, ::2, ::2], trained, atol=1e-3)


@pytest.mark.parametrize(("rows", "cols"), [(1, 9), (9, 1)])
def test_a_long_row_of_cameras_has_the_trained_views_in_its_middle(rows, cols):
    unet, sample = no_exchange(), torch.randn((1, 4, rows, cols, 1, 6, 8), generator=seeded(3))
    text = told()["encoder_hidden_states"][:1]
    long = run(unet, sample=sample, encoder_hidden_states=text)
    for first, centre in ((0, -3.0), (3, 0.0), (6, 3.0)):
        piece = (slice(None), slice(None), slice(0, 1), slice(first, first + 3))
        place = (0.0, centre)
        if cols == 1:
            piece, place = (slice(None), slice(None), slice(first, first + 3)), (centre, 0.0)
        alone = run(unet, sample=sample[piece], encoder_hidden_states=text, view_centre=place)
        assert torch.allclose(long[piece], alone, atol=1e-5)


@pytest.mark.parametrize("moved", [(0, 2, 1, 3, 4, 5, 6), (0, 2, 3, 4, 5, 6, 1)])
def test_axes_in_another_order_are_refused_with_the_right_one(moved):
    sample = torch.randn(1, 4, 3, 2, 5, 6, 8).permute(moved)
    with pytest.raises(ValueError, match="4 channels, got .*'batch', 'channels', 'view_rows', 'view_cols', 'frames'"):
        run(tiny_unet(), sample=sample, encoder_hidden_states=torch.zeros(1, 7, 8))


# ---- windows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("lengths", [(3, 3, 4), (1, 2, 5), (2, None, 3), (9, 9, 9)])
def test_windows_cover_the_grid_at_every_step(lengths, alternate, loop):
    windows = Windows(view_rows=lengths[0], view_cols=lengths[1], frames=lengths[2], overlap=0.4, alternate=alternate)
    for step in range(4):
        count = torch.zeros(1, 1, 5, 4, 11, 1, 1)
        found = list(windows.at_step((5, 4, 11), step, loop))
        for window in found:
            assert tuple(len(span) for span in window) == windows.lengths((5, 4, 11))
            window.views(count).index_add_(4, window.moments(count), torch.ones_like(window.cut(count)))
        assert count.min() >= 1
        assert len(found) == 1 or count.max() > 1


def test_axes_take_turns_in_overlapping():
    windows = Windows(view_rows=2, view_cols=2, frames=2, overlap=0.5)
    spans = []
    for step in range(4):
        found = list(windows.at_step((4, 4, 4), step))
        spans.append([sorted({span.start for span in axis}) for axis in zip(*found, strict=True)])
    slides, stands = [0, 1, 2], [0, 2]
    assert spans == [
        [slides, stands, stands], [stands, slides, stands], [stands, stands, slides], [slides, stands, stands],
    ]  # fmt: skip


def test_windows_of_a_loop_go_around():
    found = list(Windows(view_rows=None, view_cols=None, frames=4).at_step((1, 1, 8), step=1, loop=True))
    frames = [[moment % 8 for moment in window.frames] for window in found]
    assert frames[-1] == [7, 0, 1, 2] or any(7 in some and 0 in some for some in frames)


def test_blending_is_a_weighted_mean_and_exact_where_windows_agree():
    light_field = torch.randn((1, 2, 4, 4, 6, 3, 3), generator=seeded(4))
    conditions = {"loop": False, "view_spacing": 1.0}
    windows = Windows(view_rows=3, view_cols=2, frames=4, overlap=0.5, alternate=False)
    same = predict_in_windows(lambda piece, _: piece, light_field, conditions, windows, step=0)
    assert torch.equal(same, light_field)

    means = predict_in_windows(
        lambda piece, told: torch.full_like(piece, told["view_centre"][0]), light_field, conditions, windows, step=0
    )
    # Windows of rows 0-2 (around -0.5) and 1-3 (around 0.5), with weights 1, 2, 1.
    assert torch.allclose(means[0, 0, :, 0, 0, 0, 0], torch.tensor([-0.5, -1 / 6, 1 / 6, 0.5]))


def test_every_window_knows_where_its_cameras_stand():
    unet = no_exchange()
    sample = torch.randn((2, 4, 5, 4, 3, 6, 8), generator=seeded(5))
    conditions = {"loop": False, "view_spacing": 0.5, "view_baseline": 1.5}

    def predict(piece: torch.Tensor, told: dict) -> torch.Tensor:
        return run(unet, sample=piece, **told)

    in_windows = predict_in_windows(predict, sample, conditions, Windows(view_rows=2, view_cols=3, frames=2), step=0)
    assert torch.allclose(in_windows, run(unet, sample=sample, view_spacing=0.5, view_baseline=1.5), atol=1e-5)


def generate(pipeline, windows: dict | None, **changes) -> torch.Tensor:
    pipeline.disable_windows()
    if windows is not None:
        pipeline.enable_windows(**windows)
    request = {**GRIDS, "num_inference_steps": 2, "output_type": "latent", "generator": seeded()}
    return pipeline("a brown horse", **(request | changes)).light_fields


def exchanging(pipeline):
    """The pipeline with new layers that see each other."""
    torch.manual_seed(1)
    for parameter in pipeline.unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return pipeline


def fresh(pipeline):
    """The pipeline with new layers as after inflation: without exchange, and blind to places."""
    pipeline.unet.add_new_layers()
    return pipeline


def test_one_window_over_all_is_none(make_pipeline):
    pipeline = exchanging(make_pipeline())
    plain = generate(pipeline, None, guidance_rescale=0.5)
    windows = {"view_rows": 4, "view_cols": 3, "frames": 5}
    assert torch.equal(generate(pipeline, windows, guidance_rescale=0.5), plain)
    loop = generate(pipeline, None, loop=True)
    assert torch.equal(generate(pipeline, windows, loop=True), loop)
    smaller = generate(pipeline, {"view_rows": 3, "view_cols": 2, "frames": 5}, guidance_rescale=0.5)
    assert not torch.allclose(smaller, plain, atol=1e-4), "windows must count, or this test sees nothing"


@pytest.mark.parametrize(
    ("scheduler", "guidance_scale"),
    [
        (StaleScheduler, 1.0),
        (StaleScheduler, 3.0),
        (DDIMScheduler, 3.0),
        (DPMSolverMultistepScheduler, 3.0),
        (EulerAncestralDiscreteScheduler, 1.0),
    ],
)
def test_without_exchange_windows_change_nothing(make_pipeline, scheduler, guidance_scale):
    pipeline = fresh(make_pipeline())
    if scheduler is not StaleScheduler:
        prediction_type = pipeline.scheduler.config.prediction_type
        pipeline.scheduler = scheduler(prediction_type=prediction_type)
    plain = generate(pipeline, None, guidance_scale=guidance_scale)
    for windows in ({"view_rows": 2, "view_cols": 3, "frames": 3}, {"frames": 4, "overlap": 0.5, "alternate": False}):
        assert torch.allclose(generate(pipeline, windows, guidance_scale=guidance_scale), plain, atol=1e-5)


def test_memory_of_the_network_does_not_grow_with_the_number_of_windows(make_pipeline):
    pipeline = exchanging(make_pipeline())
    largest = []
    for module in pipeline.unet.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, output: largest.append(output.numel()))
    called = []
    pipeline.unet.register_forward_pre_hook(lambda *_: called.append(1))
    found = []
    for grid in ({"view_rows": 3, "view_cols": 3, "num_frames": 4}, {"view_rows": 3, "view_cols": 9, "num_frames": 8}):
        largest.clear(), called.clear()
        generate(pipeline, {"view_rows": 3, "view_cols": 3, "frames": 4}, num_inference_steps=1, **grid)
        found.append((max(largest), len(called)))
    (small, few), (large, many) = found
    assert small == large
    assert (few, many) == (1, 8)


def test_movies_longer_than_the_network_has_positions_for(make_pipeline):
    pipeline = make_pipeline()
    longest = pipeline.unet.config.time_max_frames
    request = {"view_rows": 1, "view_cols": 1, "num_frames": longest + 3, "num_inference_steps": 1}
    with pytest.raises(ValueError, match=f"`num_frames` must be an integer between 1 and {longest}"):
        generate(pipeline, {"frames": None}, **request)
    movie = generate(pipeline, {"frames": 8}, **request)
    assert movie.shape[4] == longest + 3
    assert movie.isfinite().all()
    with pytest.raises(ValueError, match=f"`frames` must be an integer between 1 and {longest}"):
        pipeline.enable_windows(frames=longest + 1)


def test_loops_in_windows(make_pipeline):
    movie = generate(exchanging(make_pipeline()), {"frames": 4}, loop=True)
    assert movie.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view_rows": 0}, "`view_rows` must be an integer of at least 1, got 0"),
        ({"frames": 2.5}, "`frames`"),
        ({"overlap": 1.0}, "`overlap` must be from 0 to less than 1, got 1.0"),
        ({"overlap": -0.1}, "`overlap` must be from 0 to less than 1, got -0.1"),
    ],
)
def test_windows_that_do_not_fit(tiny_pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline.enable_windows(**options)


# ---- the estimate ------------------------------------------------------------------------------------------------


def test_estimate_counts_windows_and_parts():
    unet = {"block_out_channels": (64, 128), "layers_per_block": 1, "cross_attention_dim": 64}
    vae = {"block_out_channels": (32, 64)}

    def estimate(views: int, **options):
        shape = (1, 4, views, views, 16, 16, 16)
        return estimate_memory(unet, vae, shape, guided=True, decode_chunk_size=4, rows_at_once=2048, **options)

    windows = Windows(view_rows=3, view_cols=3, frames=8)
    assert estimate(9, windows=windows).denoising == estimate(3, windows=windows).denoising
    assert estimate(9, windows=windows).kept == 9 * estimate(3, windows=windows).kept > 0
    assert estimate(9).denoising > 6 * estimate(3).denoising
    whole = estimate_memory(unet, vae, (1, 4, 3, 3, 16, 16, 16), guided=True, decode_chunk_size=4)
    assert estimate(3).denoising < 0.5 * whole.denoising
    in_windows = estimate(9, windows=windows)
    assert in_windows.peak(torch.device("cpu")) == in_windows.peak(torch.device("cuda")) + in_windows.kept


def test_estimate_agrees_with_what_is_measured():
    unet = tiny_unet(block_out_channels=(32, 64), norm_num_groups=8, attention_head_dim=8)
    arguments = told((2, 4, 3, 3, 8, 16, 16))
    measured = peak_of_memory(lambda: run(unet, **arguments)) / 4
    assert 0.5 < unet_values(unet.config, (2, 3, 3, 8), 16, 16, rows_at_once=2048) / measured < 2
