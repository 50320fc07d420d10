"""The discontinuity score against a restatement with scipy, and what each form of it sees."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import Tensor

from cubediff.evaluation.discontinuity import (
    discontinuity_as_published_code,
    discontinuity_of_border,
    discontinuity_of_edges,
)
from cubediff.evaluation.face_edges import edge_columns
from cubediff.geometry import equirect_to_cube, face_directions

SCHARR = np.array([[3, 0, -3], [10, 0, -10], [3, 0, -3]]) / 16


def smooth(count: int = 2) -> Tensor:
    """Panoramas without a seam at their border."""
    panorama = torch.rand(count, 3, 64, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(3):
        panorama = (panorama + panorama.roll(1, -1) + panorama.roll(1, -2)) / 3
    return panorama


def score(window: np.ndarray, first: int, mode: str) -> float:
    """Of a window (3, L, W), with the four columns from `first`."""
    grey = 0.2989 * window[0] + 0.5870 * window[1] + 0.1140 * window[2]
    size = abs(correlate(grey, SCHARR, mode=mode))
    a, b, c, d = (size[:, first + k] for k in range(4))
    return float((b / (a + 0.1) + c / (d + 0.1)).mean() / 2)


def test_scores_of_the_border_equal_a_restatement_with_scipy() -> None:
    panoramas = smooth()
    window = torch.cat([panoramas[..., -6:], panoramas[..., :6]], -1).numpy()
    expected = [score(each, 4, "nearest") for each in window]
    assert discontinuity_of_border(panoramas).tolist() == pytest.approx(expected)
    published = [score(each, 1, "constant") * 6 / 64 for each in window]
    assert discontinuity_as_published_code(panoramas).tolist() == pytest.approx(published)


def test_only_the_papers_definition_sees_a_border_that_does_not_meet() -> None:
    whole = smooth()
    broken = whole.clone()
    broken[..., :64] += 0.3
    broken[..., 64:] = whole[..., 64:]
    assert (discontinuity_of_border(broken) > 2 * discontinuity_of_border(whole)).all()
    assert torch.equal(discontinuity_as_published_code(broken), discontinuity_as_published_code(whole))


def test_columns_along_edges_run_across_them_a_pixel_apart() -> None:
    """The faces' pixels are their directions: neighbouring columns differ by the angle of a pixel, edges included."""
    size = 128
    directions = face_directions(size, 95.0, torch.float64).movedim(-1, 1)[None]
    columns = torch.nn.functional.normalize(edge_columns(directions, 3), dim=2)
    assert columns.shape == (1, 12, 3, 128, 6)
    steps = (columns[..., 1:] - columns[..., :-1]).norm(dim=2)
    middle = steps[:, :, 60:68]  # of an edge, where a pixel sees the largest angle
    torch.testing.assert_close(middle, middle.mean().expand_as(middle), rtol=0.05, atol=0)


def test_a_brighter_face_is_seen_at_the_edges() -> None:
    faces = equirect_to_cube(smooth(1), 64)
    brighter = faces.clone()
    brighter[:, 0] += 0.3
    assert (discontinuity_of_edges(brighter) > 1.5 * discontinuity_of_edges(faces)).all()
