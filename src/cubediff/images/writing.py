"""Tensors to PIL images and image files."""

import PIL.Image
import torch
from torch import Tensor


def to_pil(images: Tensor) -> list[PIL.Image.Image]:
    """PIL images of a float tensor (N, 3, H, W) in [−1, 1]."""
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(pixel) for pixel in pixels]
