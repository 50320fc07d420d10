"""Gains of faces that agree, that were made darker, and that are fixed; against a general least-squares solver."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cubediff.geometry import correct_gains, equirect_to_cube
from cubediff.geometry.overlap import sample_overlaps

SIZE = 48


@pytest.fixture(scope="module")
def faces() -> Tensor:
    """Faces (2, 6, 3, 48, 48) of smooth panoramas in [0.2, 0.8], which agree in their overlaps."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 8, 16, generator=generator) * 0.6 + 0.2
    panoramas = torch.nn.functional.interpolate(coarse, scale_factor=16, mode="bilinear")
    return equirect_to_cube(panoramas, SIZE, 95.0)


def overlap_rms(faces: Tensor) -> float:
    samples = sample_overlaps(faces)
    return (samples.own - samples.other)[..., samples.inside].square().mean().sqrt().item()


def test_faces_that_agree_stay(faces: Tensor) -> None:
    assert (correct_gains(faces) - faces).abs().max() < 0.01


def test_faces_of_other_brightness_and_hue_agree_afterwards(faces: Tensor) -> None:
    brightness = torch.tensor([1.0, 1.15, 0.9, 0.85, 1.05, 1.0])[:, None, None, None]
    changed = faces * brightness * torch.tensor([1.0, 0.95, 1.05])[:, None, None]
    assert overlap_rms(changed) > 0.07
    assert overlap_rms(correct_gains(changed)) < 0.02


def test_a_fixed_face_stays_and_its_neighbours_follow_it(faces: Tensor) -> None:
    changed, fixed = faces.clone(), torch.zeros(2, 6, dtype=torch.bool)
    changed[:, 0] *= 0.8
    fixed[0, 0] = True
    even = correct_gains(changed, fixed=fixed)
    assert (even[0, 0] - changed[0, 0]).abs().max() < 1e-4
    assert ((even[0, 1:5] / changed[0, 1:5]).mean() < 0.9).item()
    assert (even[1, 0] > changed[1, 0] * 1.1).all()


def test_gains_minimize_the_weighted_squares(faces: Tensor) -> None:
    """numpy's solver on one row for each pair of faces and one for each face."""
    changed = (faces * torch.tensor([1.0, 1.2, 0.9, 1.0, 1.0, 1.1])[:, None, None, None])[:1, :, :1].double()
    samples = sample_overlaps(changed)
    rows, values = [], []
    counts = np.zeros(6)
    for pair in samples.pairs.unique().tolist():
        chosen = (samples.pairs == pair) & samples.inside
        n, row = int(chosen.sum()), np.zeros(6)
        row[pair // 6] = samples.own[0, 0, chosen].mean() * n**0.5 / 0.01
        row[pair % 6] = -samples.other[0, 0, chosen].mean() * n**0.5 / 0.01
        rows.append(row)
        values.append(0.0)
        counts[pair // 6] += n
    for face in range(6):
        rows.append(np.eye(6)[face] * counts[face] ** 0.5 / 0.1)
        values.append(counts[face] ** 0.5 / 0.1)
    expected = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    gains = (correct_gains(changed) / changed)[0, :, 0, 0, 0]
    np.testing.assert_allclose(gains.numpy(), expected, rtol=1e-9)


def test_faces_without_overlap_are_refused(faces: Tensor) -> None:
    with pytest.raises(ValueError, match="fov is 90"):
        correct_gains(faces, 90.0)
