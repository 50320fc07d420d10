"""Tensors and arrays to PIL images, JPEG and PNG."""

import io

import cv2
import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, UInt8, UInt16
from torch import Tensor

from cubediff.images.png import with_metadata


def to_pil(images: Float[Tensor, "n 3 h w"]) -> list[PIL.Image.Image]:
    """Converts images (N, 3, H, W) in [−1, 1] to PIL images; values outside are clamped."""
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(pixel) for pixel in pixels]


def encode_jpeg(pixels: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    """Encodes sRGB levels as a baseline JPEG without chroma subsampling; `quality` is 1 to 100."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def encode_png(
    pixels: UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"], profile: bytes | None = None, xmp: str = ""
) -> bytes:
    """Encodes RGB or RGBA levels as PNG in their bit depth.

    Args:
        pixels: The levels, of 8 or 16 bits; three or four channels.
        profile: Their ICC profile; None for sRGB.
        xmp: An XMP packet; empty for none.
    """
    settings = [cv2.IMWRITE_PNG_COMPRESSION, 6]  # zlib's default
    _, data = cv2.imencode(".png", np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]), settings)
    return with_metadata(data.tobytes(), profile, xmp)
