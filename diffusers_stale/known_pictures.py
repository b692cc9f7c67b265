"""What a movie is to go on from: an image, a video, or some views and frames, as latents that the UNet is shown.

A still is the first frame of the middle view, a video all frames of the middle view; the rest is for the network to
find. This file reads and encodes what is known; it does no denoising.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps

from diffusers_stale.autoencoding import normalized, pixels_a_latent
from diffusers_stale.axes import AXES, IMAGE_AXES, fold, middle_index, sizes, unfold
from diffusers_stale.light_field.video import read_moments
from diffusers_stale.text_encoding import describe


Picture = Image.Image | np.ndarray | torch.Tensor
Video = Sequence[Picture] | np.ndarray | torch.Tensor


@dataclass(frozen=True, kw_only=True)
class KnownPictures:
    """Pictures of a grid and where they are known.

    `pixels`: `(1, 3, view_rows, view_cols, frames, height, width)` in [-1, 1]. `mask`: `(view_rows, view_cols,
    frames)`, true where `pixels` are known.
    """

    pixels: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def from_image(
        cls, image: Picture, grid: tuple[int, int, int], height: int, width: int, name: str = "image"
    ) -> "KnownPictures":
        """The first frame of the middle view of `grid` (view_rows, view_cols, frames)."""
        return cls.from_video([image], grid, height, width, name)

    @classmethod
    def from_video(
        cls, video: Video, grid: tuple[int, int, int], height: int, width: int, name: str = "video"
    ) -> "KnownPictures":
        """The first frames of the middle view of `grid` (view_rows, view_cols, frames).

        Args:
            video: PIL images, arrays `(height, width, 3)` of bytes or of floats in [0, 1], or tensors `(3, height,
                width)` in [0, 1]; or one array or tensor of them along a first axis. All of one size: they are cut to
                the middle of the shape asked for, and scaled.

        Raises:
            ValueError: for other things, for more frames than the movie has, and for what holds NaN.
        """
        if isinstance(video, (str, Image.Image)) or not hasattr(video, "__len__") or len(video) == 0:
            raise ValueError(f"`{name}` must be a list of frames, got {describe(video)}; read the file first.")
        if len(video) > grid[2]:
            raise ValueError(
                f"`{name}` must have at most {grid[2]} frames, as the movie has, got {len(video)}; ask for a larger "
                "`num_frames`, or leave frames out."
            )
        pixels = torch.zeros(1, 3, *grid, height, width)
        mask = torch.zeros(grid, dtype=torch.bool)
        row, col = middle_index(grid[0]), middle_index(grid[1])
        for index, frame in enumerate(video):
            pixels[0, :, row, col, index] = read_picture(frame, height, width, name)
            mask[row, col, index] = True
        return cls(pixels=pixels, mask=mask)

    @classmethod
    def from_light_field(
        cls, light_field: torch.Tensor, mask: torch.Tensor, grid: tuple[int, int, int], height: int, width: int
    ) -> "KnownPictures":
        """What is known of a light field `(1, 3, *grid, height, width)` in [-1, 1] where `mask`, of `grid`, is true.

        Raises:
            ValueError: for other shapes, for a mask without a picture that is known, and for NaN where it is true.
        """
        expected = (1, 3, *grid, height, width)
        if not isinstance(light_field, torch.Tensor) or light_field.shape != expected:
            got = tuple(light_field.shape) if isinstance(light_field, torch.Tensor) else describe(light_field)
            raise ValueError(
                f"`known` must be a tensor of shape {expected}, axes {AXES}, got {got}; see `known_mask`."
            )
        if not isinstance(mask, torch.Tensor) or mask.shape != grid or mask.dtype != torch.bool or not mask.any():
            got = f"{tuple(mask.shape)}, {mask.dtype}" if isinstance(mask, torch.Tensor) else describe(mask)
            raise ValueError(
                f"`known_mask` must be a tensor of bool of shape {grid} (view_rows, view_cols, frames), true "
                f"somewhere, got {got}; say which pictures of `known` are known."
            )
        pixels = torch.where(mask[..., None, None], light_field.float(), 0.0)
        if not bool((pixels.abs() <= 1.0).all()):
            raise ValueError(
                "`known` must be finite and between -1 and 1 where `known_mask` is true, got other values there."
            )
        return cls(pixels=pixels, mask=mask)

    @torch.no_grad()
    def encode(
        self, vae: AutoencoderKL, movies: int, dtype: torch.dtype, device: torch.device, chunk_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of what is known and their mask, for each of `movies`, as the UNet's `known` and `known_mask`.

        The latents are the means of what the autoencoder gives, at most `chunk_size` pictures at once.
        """
        images = fold(self.pixels, IMAGE_AXES)
        chosen = self.mask.flatten().nonzero()[:, 0]
        encoded = [
            vae.encode(part.to(device, vae.dtype)).latent_dist.mode() for part in images[chosen].split(chunk_size)
        ]
        encoded = normalized(torch.cat(encoded), vae.config)
        latents = encoded.new_zeros(len(images), *encoded.shape[1:])
        latents[chosen.to(device)] = encoded
        latents = unfold(latents, IMAGE_AXES, sizes(self.pixels)).to(dtype)
        mask = self.mask[None, None, ..., None, None].to(device, dtype)
        return latents.expand(movies, *latents.shape[1:]), mask.expand(movies, *mask.shape[1:])


@torch.no_grad()
def inpainting_channels(
    vae: AutoencoderKL, latents: torch.Tensor, known: torch.Tensor | None, known_mask: torch.Tensor | None
) -> torch.Tensor:
    """What a network of Stable Diffusion's inpainting kind is shown beside noisy `latents`.

    Args:
        vae: encodes the grey that stands for what is not known.
        latents: `(movies, channels, view_rows, view_cols, frames, height, width)`, for their shape, dtype and device.
        known, known_mask: as `KnownPictures.encode` gives them; None where nothing is known.

    Returns:
        A mask that is 1 where there is something to paint, and latents of the rest; `(movies, 1 + channels, ...)`.
    """
    factor = pixels_a_latent(vae.config)
    height, width = (size * factor for size in latents.shape[-2:])
    grey = vae.encode(torch.zeros(1, 3, height, width, device=vae.device, dtype=vae.dtype)).latent_dist.mode()
    grey = normalized(grey.to(latents), vae.config)[:, :, None, None, None].expand(latents.shape)
    if known is None:
        return torch.cat([torch.ones_like(latents[:, :1]), grey], dim=1)
    mask = known_mask.expand_as(latents[:, :1])
    return torch.cat([1 - mask, torch.where(mask > 0, known, grey)], dim=1)


def known_pictures(
    image: Picture | None,
    video: Video | None,
    known: torch.Tensor | None,
    known_mask: torch.Tensor | None,
    grid: tuple[int, int, int],
    height: int,
    width: int,
    network_takes_them: bool,
) -> KnownPictures | None:
    """What a caller gives to go on from, at most one of `image`, `video` and `known`; None where nothing is given.

    Raises:
        ValueError: for more than one of them, for `known` without mask or the other way round, for a network that does
            not take them, and as `KnownPictures` does.
    """
    given = [
        name for name, value in (("image", image), ("video", video), ("known", known), ("known_mask", known_mask))
        if value is not None
    ]  # fmt: skip
    if not given:
        return None
    if given not in (["image"], ["video"], ["known", "known_mask"]):
        raise ValueError(
            f"Only one of `image`, `video`, and `known` with `known_mask` may be given, got {' and '.join(given)}; "
            "leave the others out."
        )
    if not network_takes_them:
        raise ValueError(
            f"`{given[0]}` must be None for this checkpoint, whose UNet has no `known_conditioning`, got some; take a "
            "checkpoint that was trained with it (`known_share` of the movie stage) or inflated from an inpainting "
            "one, or give a text only."
        )
    if image is not None:
        return KnownPictures.from_image(image, grid, height, width)
    if video is not None:
        return KnownPictures.from_video(video, grid, height, width)
    return KnownPictures.from_light_field(known, known_mask, grid, height, width)


def read_picture(picture: Picture, height: int, width: int, name: str) -> torch.Tensor:
    """`picture` as `(3, height, width)` in [-1, 1]: cut to the middle of that shape, and scaled without aliasing."""
    if isinstance(picture, Image.Image):
        picture = np.asarray(picture.convert("RGB"))
    if isinstance(picture, np.ndarray):
        scale = 255.0 if picture.dtype == np.uint8 else 1.0
        picture = torch.from_numpy(picture / scale).movedim(-1, 0) if picture.ndim == 3 else None
    fits = isinstance(picture, torch.Tensor) and picture.ndim == 3 and len(picture) == 3 and 0 not in picture.shape
    if not fits or not picture.is_floating_point() or not bool(((picture >= 0) & (picture <= 1)).all()):
        raise ValueError(
            f"`{name}` must be of PIL images, arrays (height, width, 3) of bytes or of floats in [0, 1], or tensors "
            "(3, height, width) in [0, 1], got something else or values beyond; convert it."
        )
    tall, wide = picture.shape[1:]
    scale = max(height / tall, width / wide)
    cut_tall, cut_wide = (min(round(size / scale), most) for size, most in ((height, tall), (width, wide)))
    top, left = (tall - cut_tall) // 2, (wide - cut_wide) // 2
    picture = picture.float()[None, :, top : top + cut_tall, left : left + cut_wide]
    if picture.shape[2:] != (height, width):
        picture = torch.nn.functional.interpolate(picture, (height, width), mode="bicubic", antialias=True)
    return picture[0].clamp(0.0, 1.0) * 2 - 1


def read_image_file(path: str | Path) -> Image.Image:
    """The picture in a file, upright. Raises `ValueError` naming a file that holds none."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} must be a picture, got {error}; convert it to PNG or JPEG.") from error


def read_video_file(path: str | Path, num_frames: int, frame_rate: float) -> list[np.ndarray]:
    """The first `num_frames` frames of a video, or fewer if it is shorter, `frame_rate` of them a second.

    Returns:
        Arrays `(height, width, 3)` of bytes.

    Raises:
        ValueError: naming a file that is no video.
        OSError: where the file, or ffmpeg, is missing.
    """
    try:
        frames = read_moments(path, num_frames, frame_rate)
    except ValueError as error:
        raise ValueError(f"{path} must be a video, got something else; convert it to MP4. ({error})") from error
    return list(frames.permute(1, 2, 3, 0).contiguous().numpy())
