"""Fidelity to conditions against restatements."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from cubediff.evaluation.fidelity import nearest_originals, psnr, ssim


def images(count: int, seed: int = 0, height: int = 24) -> Tensor:
    return torch.rand(count, 3, height, 2 * height, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_counts_the_pixels_of_a_mask() -> None:
    original = images(2)
    image = original + 0.1
    image[:, :, :, :10] += 0.4
    mask = torch.ones(1, 1, 24, 48, dtype=torch.float64)
    mask[..., :10] = 0
    assert psnr(image, original, mask).tolist() == pytest.approx([20, 20])
    share = 10 / 48
    expected = -10 * math.log10((1 - share) * 0.1**2 + share * 0.5**2)
    assert psnr(image, original).tolist() == pytest.approx([expected] * 2)
    assert psnr(original, original).tolist() == [math.inf] * 2
    assert psnr(image[:, None], original[None]).shape == (2, 2)


def test_ssim_equals_a_restatement_with_scipy() -> None:
    image, original = images(1)[0], images(1, seed=1)[0]

    def mean(x: np.ndarray) -> np.ndarray:
        filtered: np.ndarray = gaussian_filter(x, (0, 1.5, 1.5), truncate=5 / 1.5, mode="mirror")
        return filtered

    a, b = image.numpy(), original.numpy()
    variances = [mean(x * y) - mean(x) * mean(y) for x, y in ((a, a), (b, b), (a, b))]
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean(a) * mean(b) + c1) * (2 * variances[2] + c2)
    similarity /= (mean(a) ** 2 + mean(b) ** 2 + c1) * (variances[0] + variances[1] + c2)
    inside = torch.zeros(1, 1, 24, 48, dtype=torch.float64)
    inside[..., 6:-6, 6:-6] = 1
    measured = ssim(image[None], original[None], inside).item()
    assert measured == pytest.approx(similarity[:, 6:-6, 6:-6].mean(), rel=1e-6)
    assert ssim(image[None], image[None]).item() == pytest.approx(1)


def test_a_panorama_is_recognised_and_from_a_text_when_turned() -> None:
    originals = images(5)
    noisy = originals + 0.2 * (images(5, seed=1) - 0.5)
    assert nearest_originals(noisy, originals).tolist() == [0, 1, 2, 3, 4]
    turned = noisy.roll(12, -1)
    assert nearest_originals(turned, originals, turns=8).tolist() == [0, 1, 2, 3, 4]
    assert nearest_originals(turned, originals).tolist() != [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="a width of 48 pixels is no multiple of 7 turns"):
        nearest_originals(turned, originals, turns=7)
