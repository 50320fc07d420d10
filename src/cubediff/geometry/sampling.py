"""Sampling kernels: what lies beyond an image's border, low-pass, interpolation, and OpenCV's for uint8 on the CPU
(CubeDiff, section 3, says which pixel sees what, not how it is interpolated).

Anti-aliasing: where an output pixel spans more than 1.25 source pixels it is the mean of 2 × 2 samples; a panorama is
first low-passed to at most 4 of its pixels per view-centre pixel (a triangle filter; more would blur the corners of a
face, whose pixels are three times finer than its centre's). 1024-wide panoramas to 64-pixel faces of 95°, against
24 × 24 samples a pixel (dB; 8 real panoramas, 3 zone plates, white noise): point samples 31.4/21.6/15.2, low-pass to 2
and one sample 40.4/24.7/29.4, to 4 and 2 × 2 samples 48.5/39.2/33.2.

OpenCV's `remap` places a sample to 1/32 pixel and rounds it to a whole level. That is all that uint8 files need, and
several times faster than float32; it takes up to 4 channels and sides up to 32766 pixels, all else goes the float way.
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

COARSE = 1.25  # source pixels per output pixel, at a face's centre, from which an output pixel is an average
LONGEST = 32766  # cv2.remap keeps whole pixels in int16


# --------------------------------------------------------------------------------------------- any pixels, any device


def work_dtype(image: Tensor) -> torch.dtype:
    """The type to sample in: half precision would put samples whole pixels off."""
    if not (image.is_floating_point() or image.dtype == torch.uint8):
        raise ValueError(f"pixels must be float or uint8, not {image.dtype}: convert them first")
    return torch.float64 if image.dtype == torch.float64 else torch.float32


def surrounded(
    panorama: Tensor, work: torch.dtype, ratio: float, margin: int = 2
) -> tuple[Float[Tensor, "b c rows columns"], int]:
    """A panorama (B, C, H, 2H) with its surroundings, and their width in its pixels.

    One with `ratio` > 4 pixels per view-centre pixel is resized together with wider surroundings: normalised
    coordinates stay the same.
    """
    height, width = panorama.shape[-2:]
    shrink = max(1.0, ratio / 4)
    m = min(margin if shrink == 1 else math.ceil(5 * shrink), height)
    image = panorama.new_empty((*panorama.shape[:2], height + 2 * m, width + 2 * m), dtype=work)
    image[..., m:-m, m:-m] = panorama
    surround_(image, m)
    if shrink > 1:
        image = F.interpolate(image, [round(n / shrink) for n in image.shape[-2:]], mode="bilinear", antialias=True)
    return image, m


def surround_(image: Tensor, m: int) -> None:
    """Fill the outermost `m` pixels around a panorama (…, H + 2m, 2H + 2m): columns wrap around, rows beyond a pole
    are the rows before it, half a turn away."""
    half = image.shape[-1] // 2 - m
    image[..., :m, m:-m] = image[..., m : 2 * m, m:-m].flip(-2).roll(half, -1)
    image[..., -m:, m:-m] = image[..., -2 * m : -m, m:-m].flip(-2).roll(half, -1)
    image[..., :m] = image[..., -2 * m : -m].clone()
    image[..., -m:] = image[..., m : 2 * m].clone()


def lookup(
    image: Float[Tensor, "b c h w"], grid: Float[Tensor, "b i j 2"], mode: str, fine: int = 1
) -> Float[Tensor, "b c k l"]:
    """`image` at grid_sample coordinates (its border is at ±1), as means of `fine` × `fine` samples."""
    if mode not in ("bilinear", "bicubic"):
        raise ValueError(f"unknown interpolation mode {mode!r}: use 'bilinear' or 'bicubic'")
    sampled = F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, fine) if fine > 1 else sampled


def restore(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Samples in the pixels' own type again."""
    if dtype == torch.uint8:
        image = image.round_().clamp_(0, 255)
    return image.to(dtype).contiguous()


# ------------------------------------------------------------------------------------------------ uint8 on the CPU


def remappable(images: Tensor, mode: str, *sides: int) -> bool:
    """Whether cv2.remap samples these `images` (…, C, H, W), where no side of any image is longer than `sides`."""
    on_cpu = images.device.type == "cpu" and images.dtype == torch.uint8
    return on_cpu and mode == "bilinear" and 1 <= images.shape[-3] <= 4 and max(sides) <= LONGEST


def fixed_point(grid: Float[Tensor, "i j 2"], rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The maps of cv2.remap for grid_sample coordinates in an image of `rows` × `columns`."""
    x, y = ((grid.double() + 1) * torch.tensor([columns, rows]) / 2 - 0.5).float().unbind(-1)
    whole, fraction = cv2.convertMaps(x.contiguous().numpy(), y.contiguous().numpy(), cv2.CV_16SC2)
    return whole, fraction


def remap(
    images: UInt8[Tensor, "b n c h w"], surround: Callable[[Tensor], None], maps: tuple[np.ndarray, np.ndarray]
) -> UInt8[Tensor, "b c i j"]:
    """Bilinear samples of n images a time, stacked one below the other with one more pixel on every side, which
    `surround` fills in place (n, C, H + 2, W + 2).

    Any strides are taken; fastest are views of channels-last memory, and that is what comes back. A batch is spread
    over torch's number of threads, and OpenCV may use its own for each image.
    """
    batch, n, channels, height, width = images.shape
    sampled = np.empty((batch, *maps[0].shape[:2], channels), np.uint8)  # numpy asks for huge pages: 8 % less time
    workers = min(batch, torch.get_num_threads())
    pixels = images.numpy()

    def work(first: int) -> None:
        padded = np.empty((n, height + 2, width + 2, channels), np.uint8)
        for k in range(first, batch, workers):
            for image, place in zip(pixels[k], padded[:, 1:-1, 1:-1], strict=True):
                if image.strides[0] == 1:
                    place[...] = image.transpose(1, 2, 0)
                else:
                    cv2.merge(tuple(image), dst=place)  # seven times faster than copying element by element
            surround(torch.from_numpy(padded).permute(0, 3, 1, 2))
            cv2.remap(padded.reshape(-1, width + 2, channels), *maps, cv2.INTER_LINEAR, dst=sampled[k])

    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
    else:
        work(0)
    return torch.from_numpy(sampled).permute(0, 3, 1, 2)


def refill_(where: np.ndarray, maps: tuple[np.ndarray, np.ndarray], padded: Tensor) -> None:
    """Overwrite the pixels `where` of stacked images (n, C, H, W) in channels-last memory by samples of the others."""
    channels = padded.shape[1]
    pixels = padded.permute(0, 2, 3, 1).flatten(0, 1).numpy()
    samples = cv2.remap(pixels, *maps, cv2.INTER_LINEAR)
    pixels.reshape(-1, channels)[where] = samples.reshape(-1, channels)
