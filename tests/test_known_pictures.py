"""Going on from footage: what is known reaches the network, stays as it is, and is refused where it makes no sense."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_stale import StaleDiffusionPipeline
from diffusers_stale.known_pictures import KnownPictures, read_image_file, read_picture, read_video_file
from diffusers_stale.light_field.export import write_mp4
from diffusers_stale.training.known import KNOWN, draw_known_masks


pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 8


@pytest.fixture(scope="module")
def pipeline(make_components, make_unet):
    pipeline = StaleDiffusionPipeline(**make_components() | {"unet": make_unet(known_conditioning=True)})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noisy_frames(count, height=SIZE, width=SIZE):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def run(pipeline, **changes):
    request = {
        "view_rows": 1, "view_cols": 3, "num_frames": 2, "num_inference_steps": 2, "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
    }  # fmt: skip
    return pipeline("a horse", **request | changes).light_fields


def inputs_of(unet, **changes):
    draw = torch.Generator().manual_seed(2)
    sample, known = (torch.randn(2, 4, 1, 3, 2, 4, 4, generator=draw) for _ in range(2))
    return {"sample": sample, "timestep": 3, "encoder_hidden_states": torch.randn(2, 5, 16, generator=draw)}, known


def test_an_untrained_input_for_known_latents_changes_nothing(make_unet):
    unet = make_unet(known_conditioning=True)
    torch.nn.init.zeros_(unet.known_in.weight)
    inputs, known = inputs_of(unet)
    mask = torch.ones(2, 1, 1, 3, 2, 1, 1)
    with torch.no_grad():
        assert torch.equal(unet(**inputs).sample, unet(**inputs, known=known, known_mask=mask).sample)


def test_only_what_the_mask_marks_reaches_the_network(make_unet):
    unet = make_unet(known_conditioning=True)
    inputs, known = inputs_of(unet)
    mask = torch.zeros(2, 1, 1, 3, 2, 1, 1)
    mask[:, :, :, 1] = 1
    other = torch.where(mask > 0, known, float("nan"))
    with torch.no_grad():
        shown = unet(**inputs, known=known, known_mask=mask).sample
        assert torch.equal(shown, unet(**inputs, known=other, known_mask=mask).sample)
        assert not torch.equal(shown, unet(**inputs, known=known + 1, known_mask=mask).sample)
        assert not torch.equal(shown, unet(**inputs).sample)


def test_networks_without_that_input_and_wrong_shapes_are_refused(make_unet):
    inputs, known = inputs_of(make_unet())
    with pytest.raises(ValueError, match="known_conditioning"):
        make_unet()(**inputs, known=known, known_mask=torch.ones(2, 1, 1, 3, 2, 1, 1))
    unet = make_unet(known_conditioning=True)
    for wrong in ({"known": known}, {"known": known, "known_mask": torch.ones(1)}, {"known_mask": known[:, :1]}):
        with pytest.raises(ValueError, match="`known` must have shape"):
            unet(**inputs, **wrong)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_what_is_known_stays_and_the_rest_follows_it(pipeline, guidance_scale):
    frames = noisy_frames(2)
    latents = run(pipeline, video=frames, guidance_scale=guidance_scale)
    expected = pipeline.vae.encode(frames * 2 - 1).latent_dist.mode()
    expected = (expected - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(latents[0, :, 0, 1].movedim(1, 0), expected, atol=1e-5, rtol=1e-4)
    other = run(pipeline, video=1 - frames, guidance_scale=guidance_scale)
    assert not torch.allclose(latents[0, :, 0, 0], other[0, :, 0, 0])


def test_an_image_is_the_first_frame_of_the_middle_view(pipeline):
    picture = noisy_frames(1)[0]
    array = (picture.movedim(0, -1) * 255).round().byte().numpy()
    latents = run(pipeline, image=Image.fromarray(array))
    torch.testing.assert_close(latents, run(pipeline, image=array))
    video = run(pipeline, video=np.stack([array]))
    torch.testing.assert_close(latents, video)


def test_a_movie_knows_how_much_was_given(pipeline):
    movie = run(pipeline, image=noisy_frames(1)[0], output_type="light_field")[0]
    assert movie.provenance["pictures_given"] == 1


def test_known_views_of_any_place(pipeline):
    known = noisy_frames(6).reshape(1, 1, 3, 2, 3, SIZE, SIZE).movedim(4, 1).contiguous() * 2 - 1
    mask = torch.zeros(1, 3, 2, dtype=torch.bool)
    mask[:, ::2] = True
    latents = run(pipeline, known=known, known_mask=mask)
    known[:, :, :, 1] = float("nan")
    torch.testing.assert_close(latents, run(pipeline, known=known, known_mask=mask))


@pytest.mark.parametrize(
    ("request_changes", "message"),
    [
        ({"image": "horse.png"}, "must be of PIL images"),
        ({"video": "horse.mp4"}, "must be a list of frames"),
        ({"video": []}, "must be a list of frames"),
        ({"video": noisy_frames(3)}, "at most 2 frames"),
        ({"video": noisy_frames(2) * 2}, "values beyond"),
        ({"video": torch.full((1, 3, 8, 8), float("nan"))}, "values beyond"),
        ({"image": noisy_frames(1)[0], "video": noisy_frames(1)}, "Only one of"),
        ({"known": torch.zeros(1, 3, 1, 3, 2, 8, 8)}, "Only one of"),
        ({"known": torch.zeros(1, 3, 2, 8, 8), "known_mask": torch.ones(1, 3, 2).bool()}, "`known` must be a tensor"),
        ({"known": torch.zeros(1, 3, 1, 3, 2, 8, 8), "known_mask": torch.ones(1, 3, 2)}, "`known_mask` must be"),
        ({"known": torch.ones(1, 3, 1, 3, 2, 8, 8) * 2, "known_mask": torch.ones(1, 3, 2).bool()}, "between -1 and 1"),
    ],
)
def test_what_makes_no_sense_is_refused(pipeline, request_changes, message):
    with pytest.raises(ValueError, match=message):
        run(pipeline, **request_changes)


def test_checkpoints_that_cannot_are_named(tiny_pipeline):
    with pytest.raises(ValueError, match="no `known_conditioning`"):
        run(tiny_pipeline, image=noisy_frames(1)[0])


def test_pictures_are_cut_to_shape_and_scaled():
    picture = torch.zeros(3, 20, 40)
    picture[:, :, 10:30] = 1.0
    whole = read_picture(picture, 10, 10, "image")
    assert whole.shape == (3, 10, 10)
    torch.testing.assert_close(whole, torch.ones_like(whole))
    flat = read_picture(np.full((7, 5, 3), 51, dtype=np.uint8), 8, 8, "image")
    torch.testing.assert_close(flat, torch.full_like(flat, 0.2 * 2 - 1))


def test_saved_and_loaded_networks_keep_the_input(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = StaleDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    picture = noisy_frames(1)[0]
    torch.testing.assert_close(run(pipeline, image=picture), run(loaded, image=picture))


@pytest.mark.parametrize("size", [(3, 3, 1), (1, 1, 8), (3, 3, 4), (1, 1, 1), (1, 3, 4)])
def test_masks_of_training_always_leave_something_to_find(size):
    masks = draw_known_masks(np.random.default_rng(0), 400, size, 0.5)
    assert masks.shape == (400, *size)
    known = masks.reshape(400, -1).any(axis=1).mean()
    assert not masks.reshape(400, -1).all(axis=1).any()
    assert known == 0.0 if size == (1, 1, 1) else 0.1 < known < 0.55
    assert not draw_known_masks(np.random.default_rng(0), 50, size, 0.0).any()


@pytest.mark.parametrize("name", KNOWN)
def test_kinds_of_what_is_known_have_the_size_of_the_grid(name):
    mask = KNOWN[name](np.random.default_rng(3), (3, 5, 4))
    assert mask.shape == (3, 5, 4)
    assert mask.dtype == bool
    assert mask.any()


def test_a_still_is_one_picture():
    assert int(KnownPictures.from_image(noisy_frames(1)[0], (3, 3, 4), SIZE, SIZE).mask.sum()) == 1


def test_files_are_read_at_the_movies_frame_rate(tmp_path):
    levels = torch.linspace(0, 255, 16).round().byte()
    write_mp4(tmp_path / "a.mp4", levels[None, :, None, None].expand(3, 16, 32, 48), 16.0, zoom=1)
    frames = read_video_file(tmp_path / "a.mp4", 4, 8.0)
    assert [frame.shape for frame in frames] == [(32, 48, 3)] * 4
    brightness = [float(frame.mean()) for frame in frames]
    np.testing.assert_allclose(brightness, levels[[0, 2, 4, 6]].tolist(), atol=18)
    assert len(read_video_file(tmp_path / "a.mp4", 99, 8.0)) == 8


def test_files_that_are_neither_are_named(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(ValueError, match="a.mp4 must be a video"):
        read_video_file(tmp_path / "a.mp4", 4, 8.0)
    with pytest.raises(ValueError, match="a.mp4 must be a picture"):
        read_image_file(tmp_path / "a.mp4")
    for read in (lambda: read_video_file(tmp_path / "b", 4, 8.0), lambda: read_image_file(tmp_path / "b")):
        with pytest.raises(FileNotFoundError, match="b"):
            read()
