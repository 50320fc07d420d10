"""Tensors and arrays to PIL images and JPEG."""

import io

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_pil(images: Float[Tensor, "n 3 h w"]) -> list[PIL.Image.Image]:
    """Converts images (N, 3, H, W) in [−1, 1] to PIL images; values outside are clamped."""
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(pixel) for pixel in pixels]


def encode_jpeg(pixels: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    """Encodes sRGB levels as a baseline JPEG without chroma subsampling; `quality` is 1 to 100."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def encode_png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encodes sRGB levels as a PNG."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
