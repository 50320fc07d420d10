"""Draws small images for the tests of the sources, decodes JPEG and compares images."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SAMPLES = Path(__file__).parents[2] / "data" / "samples"


def picture(seed: int = 0, width: int = 64, height: int = 32) -> Image.Image:
    """Draws soft spots of random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def shown(jpeg: bytes) -> np.ndarray:
    """Decodes JPEG bytes to (H, W, 3) RGB levels in float64."""
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB).astype(np.float64)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """The peak signal-to-noise ratio of two 8-bit images, in decibels."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)))
