"""Interpolation kernels: padding of panoramas, low-pass filters, sampling in torch, and in OpenCV for uint8 on the CPU
(CubeDiff, section 3, defines which direction a pixel shows, not the interpolation).

Anti-aliasing: an output pixel that spans more than 1.25 source pixels is the mean of 2 × 2 samples. A panorama with
more than 4 of its pixels per output pixel at the centre of the view is first low-passed to 4 (a triangle filter; more
would blur the corners of a face, whose pixels are three times finer than those at its centre). PSNR of 1024-wide
panoramas rendered to 64-pixel faces of 95°, against 24 × 24 samples a pixel, in dB (8 photographs / 3 zone plates /
white noise): point samples 31.4/21.6/15.2, low-pass to 2 and one sample 40.4/24.7/29.4, low-pass to 4 and 2 × 2 samples
48.5/39.2/33.2.

OpenCV's `remap` rounds sample positions to 1/32 pixel and values to whole levels, which suffices for uint8 images, and
is several times faster than float32. It takes up to 4 channels and sides up to 32766 pixels; other images are sampled
as float.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from cubediff.geometry.conventions import yaw_pitch

SUPERSAMPLE_ABOVE = 1.25  # source pixels per output pixel at the centre of a view
MAX_SIDE = 32766  # cv2.remap stores whole pixels in int16


# ------------------------------------------------------------------------------------------- any dtype, any device


def work_dtype(image: Tensor) -> torch.dtype:
    """The dtype to sample in; half precision would misplace samples by more than a pixel.

    Raises:
        ValueError: If the image is neither float nor uint8.
    """
    if not (image.is_floating_point() or image.dtype == torch.uint8):
        raise ValueError(f"pixels must be float or uint8, not {image.dtype}: convert them first")
    return torch.float64 if image.dtype == torch.float64 else torch.float32


def pad_panorama(
    panorama: Tensor, work: torch.dtype, ratio: float, margin: int = 2
) -> tuple[Float[Tensor, "b c rows columns"], int]:
    """Pads a panorama by its continuation on the sphere, and low-passes it if it is much finer than the output.

    Args:
        panorama: (B, C, H, 2H).
        work: dtype of the result.
        ratio: Panorama pixels per output pixel at the centre of the view; above 4 the panorama is resized.
        margin: Padding of a panorama that is not resized, in pixels.

    Returns:
        The padded image, and the padding in pixels of `panorama`. Resizing changes no normalised coordinate.
    """
    height, width = panorama.shape[-2:]
    shrink = max(1.0, ratio / 4)
    m = min(margin if shrink == 1 else math.ceil(5 * shrink), height)
    image = panorama.new_empty((*panorama.shape[:2], height + 2 * m, width + 2 * m), dtype=work)
    image[..., m:-m, m:-m] = panorama
    fill_margin_(image, m)
    if shrink > 1:
        image = F.interpolate(image, [round(n / shrink) for n in image.shape[-2:]], mode="bilinear", antialias=True)
    return image, m


def panorama_grid(rays: Tensor, height: int, margin: int) -> Tensor:
    """grid_sample coordinates of directions in a panorama of `height` pixels that is padded by `margin` pixels."""
    yaw, pitch = yaw_pitch(rays)
    across = yaw * (2 * height / (math.pi * (2 * height + 2 * margin)))
    down = pitch * (-2 * height / (math.pi * (height + 2 * margin)))
    return torch.stack([across, down], -1)


def check_panorama(panorama: Tensor) -> None:
    """Raises ValueError unless a panorama is (B, C, H, 2H)."""
    if panorama.ndim != 4 or panorama.shape[-1] != 2 * panorama.shape[-2] or panorama.shape[-2] == 0:
        raise ValueError(f"a panorama must be (B, C, H, 2H), twice as wide as high, not {tuple(panorama.shape)}")


def fill_margin_(image: Tensor, m: int) -> None:
    """Fills the outermost `m` pixels around a panorama (…, H + 2m, 2H + 2m): columns wrap around, rows beyond a pole
    are the rows before it, shifted by half a turn."""
    half = image.shape[-1] // 2 - m
    image[..., :m, m:-m] = image[..., m : 2 * m, m:-m].flip(-2).roll(half, -1)
    image[..., -m:, m:-m] = image[..., -2 * m : -m, m:-m].flip(-2).roll(half, -1)
    image[..., :m] = image[..., -2 * m : -m].clone()
    image[..., -m:] = image[..., m : 2 * m].clone()


def sample(
    image: Float[Tensor, "b c h w"], grid: Float[Tensor, "b i j 2"], mode: str, supersampling: int = 1
) -> Float[Tensor, "b c k l"]:
    """Samples an image at grid_sample coordinates (±1 is its border), averaging `supersampling`² samples a pixel."""
    if mode not in ("bilinear", "bicubic"):
        raise ValueError(f"unknown interpolation mode {mode!r}: use 'bilinear' or 'bicubic'")
    sampled = F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, supersampling) if supersampling > 1 else sampled


def to_pixels(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Converts samples to the dtype of the source's pixels; uint8 is rounded and clamped."""
    if dtype == torch.uint8:
        image = image.round_().clamp_(0, 255)
    return image.to(dtype).contiguous()


# ------------------------------------------------------------------------------------------------ uint8 on the CPU


def can_remap(images: Tensor, mode: str, *sides: int) -> bool:
    """Whether cv2.remap can sample images (…, C, H, W), given the longest sides of its sources and results."""
    on_cpu = images.device.type == "cpu" and images.dtype == torch.uint8
    return on_cpu and mode == "bilinear" and 1 <= images.shape[-3] <= 4 and max(sides) <= MAX_SIDE


def fixed_point(grid: Float[Tensor, "i j 2"], rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """cv2.remap's fixed-point maps of grid_sample coordinates in an image of `rows` × `columns` pixels."""
    x, y = ((grid.double() + 1) * torch.tensor([columns, rows]) / 2 - 0.5).float().unbind(-1)
    whole, fraction = cv2.convertMaps(x.contiguous().numpy(), y.contiguous().numpy(), cv2.CV_16SC2)
    return whole, fraction


def remap(
    images: UInt8[Tensor, "b n c h w"], fill_: Callable[[Tensor], None], maps: tuple[np.ndarray, np.ndarray]
) -> UInt8[Tensor, "b c i j"]:
    """Samples stacks of images bilinearly by cv2.remap.

    Threads of torch's number share the batch; OpenCV may use its own for each image.

    Args:
        images: B stacks of n images with any strides; views of channels-last memory are fastest.
        fill_: Fills in place the margin of one pixel around the images of a stack, (n, C, H + 2, W + 2).
        maps: Maps of `fixed_point`, in the padded images of a stack one below the other.

    Returns:
        The samples, a view of channels-last memory.
    """
    batch, n, channels, height, width = images.shape
    sampled = np.empty((batch, *maps[0].shape[:2], channels), np.uint8)  # numpy asks for huge pages: 8 % less time
    workers = min(batch, torch.get_num_threads())
    pixels = images.numpy()

    def work(first: int) -> None:
        padded = np.empty((n, height + 2, width + 2, channels), np.uint8)
        for k in range(first, batch, workers):
            for image, target in zip(pixels[k], padded[:, 1:-1, 1:-1], strict=True):
                if image.strides[0] == 1:
                    target[...] = image.transpose(1, 2, 0)
                else:
                    cv2.merge(tuple(image), dst=target)  # seven times faster than copying element by element
            fill_(torch.from_numpy(padded).permute(0, 3, 1, 2))
            cv2.remap(padded.reshape(-1, width + 2, channels), *maps, cv2.INTER_LINEAR, dst=sampled[k])

    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    else:
        work(0)
    return torch.from_numpy(sampled).permute(0, 3, 1, 2)


def fill_border_(indices: np.ndarray, maps: tuple[np.ndarray, np.ndarray], padded: Tensor) -> None:
    """Overwrites the pixels `indices` of stacked images (n, C, H, W) in channels-last memory by samples of others."""
    channels = padded.shape[1]
    pixels = padded.permute(0, 2, 3, 1).flatten(0, 1).numpy()
    samples = cv2.remap(pixels, *maps, cv2.INTER_LINEAR)
    pixels.reshape(-1, channels)[indices] = samples.reshape(-1, channels)
