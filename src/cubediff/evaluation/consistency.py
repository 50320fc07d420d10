"""How well six generated faces agree, and a panorama with itself across its border; no metric needs a reference.

CubeDiff reports no number for the consistency of faces; these are this project's definitions. They are measured on the
faces before blending: a panorama that is blended from overlapping faces has no seam to measure.

A metric's terms are means over the pixels of one panorama. Its value for a set of panoramas is computed from the means
of the terms over the set (`value_of`), so that squares are pooled before a root is taken, and ratios are ratios of
means; a ratio of panoramas without any contrast is NaN. A blurred or grey panorama agrees with itself: read
`overlap_rms` beside `sharpness`, or use `overlap_relative`.

Legend: B panoramas, 6 faces, C channels, S face size, K terms, H height of a panorama.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cubediff.evaluation.face_edges import corner_rays, sides, strips, too_small
from cubediff.geometry.conventions import FACE_FOV, tan_half
from cubediff.geometry.cubes import sample_faces
from cubediff.geometry.overlap import OverlapSamples, sample_overlaps

LEVEL = 2 / 255  # of two 8-bit pixels' difference: detail and disagreement below it count as nothing
_BAND = 1 / 32  # width of the band beside an edge, relative to the distance between the edge and the face's centre
_BAND_SAMPLES = 4  # across a band
_WINDOW = 7  # of SSIM, as scikit-image's default


@dataclass(frozen=True)
class Metric:
    """A metric of faces.

    Attributes:
        terms: Maps faces (B, 6, C, S, S) in [0, 1] and their field of view in degrees to the terms (B, K).
        finish: Maps the means of the terms over panoramas (K) to the value.
        rises: Whether faces that agree less have larger values.
    """

    terms: Callable[[Tensor, float], Tensor]
    finish: Callable[[Tensor], Tensor]
    rises: bool = True


def value_of(metric: Metric, terms: Float[Tensor, "b k"]) -> float:
    """The value of a metric for panoramas with these terms."""
    return metric.finish(_in_float64(terms).mean(0)).item()


def values_of(metric: Metric, terms: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """The value of a metric for each panorama."""
    return torch.stack([metric.finish(each) for each in _in_float64(terms)])


def _in_float64(terms: Tensor) -> Tensor:
    """The terms on the CPU: some devices have no float64."""
    return torch.tensor(terms.tolist(), dtype=torch.float64)


def _overlaps(faces: Tensor, fov: float) -> OverlapSamples:
    """The pixels that another face sees too.

    Raises:
        ValueError: If there are none.
    """
    samples = sample_overlaps(faces, fov)
    if not samples.inside.any():
        raise too_small(faces.shape[-1], fov)
    return samples


def overlap_error(faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV) -> Float[Tensor, "b 1"]:
    """Mean squared difference between pixels of a face and the bilinear samples of others in the same directions.

    Faces of one scene have the error of this interpolation.

    Args:
        faces: Faces in [0, 1].
        fov: Field of view of the faces, degrees.

    Raises:
        ValueError: If the faces do not overlap, because `fov` is not between 90° and 180°, or by less than a pixel.
    """
    return _mean_square(_overlaps(faces, fov))[:, None]


def relative_overlap(faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV) -> Float[Tensor, "b 2"]:
    """`overlap_error`, and the mean squared detail of the same pixels; both increased by the square of two levels.

    Detail is the fourth difference of pixels. Faces of one scene differ by the error of interpolation, and blur lowers
    the fourth difference faster than that error (the second difference it lowers more slowly, which would favour
    slightly blurred panoramas). As both terms fall to the level that they are increased by, the ratio rises towards 1.
    """
    samples = _overlaps(faces, fov)
    detail = _detail(faces).transpose(1, 2).flatten(2)[..., samples.indices[samples.inside]].mean((1, 2))
    return torch.stack([_mean_square(samples), detail], 1) + LEVEL**2


def _mean_square(samples: OverlapSamples) -> Tensor:
    """Of the differences of each panorama, (B,)."""
    mean: Tensor = (samples.other - samples.own)[..., samples.inside].square().mean((1, 2))
    return mean


def _detail(faces: Tensor) -> Tensor:
    """The mean of the squared fourth differences along rows and along columns, (B, 6, C, S, S)."""
    padded = F.pad(faces.flatten(0, 1), (2, 2, 2, 2), mode="reflect").unflatten(0, faces.shape[:2])
    across = padded[..., 2:-2, :].diff(n=4, dim=-1)
    down = padded[..., 2:-2].diff(n=4, dim=-2)
    detail: Tensor = (across.square() + down.square()) / 2
    return detail


def colour_steps(faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV) -> Float[Tensor, "b 1"]:
    """Mean squared difference of mean colours: of the pixels of a face that a neighbour sees, and that neighbour there.

    Unlike `overlap_error` it does not see differences of detail.
    """
    samples = _overlaps(faces, fov)
    pairs = samples.pairs[samples.inside]
    difference = (samples.other - samples.own)[..., samples.inside]
    sums = difference.new_zeros(*difference.shape[:2], 36).index_add_(2, pairs, difference)
    counts = pairs.bincount(minlength=36)
    means: Tensor = (sums / counts.clamp_min(1))[..., counts > 0]  # (B, C, 24)
    return means.square().mean((1, 2))[:, None]


def overlap_similarity(faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV) -> Float[Tensor, "b 1"]:
    """Mean SSIM of neighbouring faces in the strips along the twelve edges that both see.

    Both faces are sampled bilinearly at the same directions, about a pixel apart, at least 11 across a strip. Windows
    are those of Wang et al. (2004) as scikit-image has them by default: 7 × 7 with equal weights.
    """
    first, second = strips(faces, fov)
    means = [F.avg_pool2d(x, _WINDOW, 1) for x in (first, second, first * first, second * second, first * second)]
    a, b, aa, bb, ab = means
    unbiased = _WINDOW**2 / (_WINDOW**2 - 1)
    var_a, var_b, cov = (unbiased * (x - y) for x, y in ((aa, a * a), (bb, b * b), (ab, a * b)))
    c1, c2 = 0.01**2, 0.03**2
    similarity: Tensor = (2 * a * b + c1) * (2 * cov + c2) / ((a * a + b * b + c1) * (var_a + var_b + c2))
    each: Tensor = similarity.unflatten(0, (len(faces), 12)).mean((1, 2, 3, 4))
    return each[:, None]


def edge_steps(faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV) -> Float[Tensor, "b 1"]:
    """Mean absolute difference between the colours on both sides of the cube's edges, for faces of 90° too.

    At 128 places along each of the twelve edges, the mean colour of a narrow band on one side is compared with that on
    the other; a band reaches 1/32 of the way to the centre of the face, and is sampled from that face alone. Panoramas
    without seams have the small value that their gradients make.
    """
    depths = _BAND * (torch.arange(_BAND_SAMPLES, dtype=torch.float64) + 0.5) / _BAND_SAMPLES
    bands = sides(faces, fov, depths).mean(4)  # (B, C, 12, 2, places)
    return (bands[:, :, :, 0] - bands[:, :, :, 1]).abs().mean((1, 2, 3))[:, None]


def edge_gradients(faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV) -> Float[Tensor, "b 4"]:
    """Mean absolute differences of samples a pixel apart: across edges, beside them, and the same at cuts elsewhere.

    The two sides of an edge are sampled from their own faces. The cuts elsewhere are the lines through the faces'
    centres, moved so that samples lie between pixels as those at the edges do.
    """
    size, tan = faces.shape[-1], tan_half(fov)
    pixel = 2 * tan / size
    depths = pixel * (torch.arange(2, dtype=torch.float64) + 0.5)
    phase = pixel * ((size / tan + size) / 2 % 1 - size / 2 % 1)
    terms = []
    for samples in (sides(faces, fov, depths), sides(faces, fov, depths, cut=phase)):
        across = (samples[:, :, :, 0, 0] - samples[:, :, :, 1, 0]).abs().mean((1, 2, 3))
        beside = (samples[:, :, :, :, 0] - samples[:, :, :, :, 1]).abs().mean((1, 2, 3, 4))
        terms += [across, beside]
    return torch.stack(terms, 1)


def corner_errors(faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV) -> Float[Tensor, "b 1"]:
    """Mean squared difference between two of the three faces around a corner of the cube, where all three see it.

    Raises:
        ValueError: If no direction is seen by three faces.
    """
    rays, seen = corner_rays(faces.shape[-1], fov)
    samples = sample_faces(faces, rays, seen, fov).unflatten(2, (8, 3, -1))
    error: Tensor = (samples - samples.roll(1, 3)).square().mean((1, 2, 3, 4))
    return error[:, None]


def steps_beyond(faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV) -> Float[Tensor, "b 2"]:
    """Squared differences of mean colours on both sides of the upright edges, and on both sides of the faces' centres.

    A side is a block from 3.5° to 12° away, beyond the overlap of 95° faces, and 10° high, at elevations within ±35°.
    The terms are mean squares of the differences of mean colours.
    """
    away = torch.linspace(3.5, 12, 18, dtype=torch.float64)
    pitch = torch.arange(-34.5, 35, 1, dtype=torch.float64).deg2rad()
    terms = []
    for centre in (45.0, 0.0):
        rays, seen = [], []
        for turn in range(4):
            for side in (-1, 1):
                yaw = (90 * turn + centre + side * away).deg2rad()
                y, p = torch.meshgrid(yaw, pitch, indexing="ij")
                rays.append(torch.stack([p.cos() * y.sin(), p.sin(), p.cos() * y.cos()], -1).flatten(0, 1))
                seen.append(torch.full((y.numel(),), (turn + (centre > 0 and side > 0)) % 4))
        samples = sample_faces(faces, torch.cat(rays), torch.cat(seen), fov)
        blocks = samples.unflatten(2, (4, 2, len(away), 7, 10)).mean((4, 6))  # (B, C, 4, 2, 7)
        terms.append((blocks[:, :, :, 0] - blocks[:, :, :, 1]).square().mean((1, 2, 3)))
    return torch.stack(terms, 1)


def gradients(faces: Float[Tensor, "b 6 c s s"], fov: float = FACE_FOV) -> Float[Tensor, "b 1"]:
    """Mean magnitude of the gradient inside faces, by forward differences of pixels."""
    corner = faces[..., :-1, :-1]
    across, down = faces[..., :-1, 1:] - corner, faces[..., 1:, :-1] - corner
    return (across.square() + down.square()).sqrt().mean((1, 2, 3, 4))[:, None]


def wrap_gradients(panoramas: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2"]:
    """Mean absolute differences of neighbouring columns: across the border of an equirectangular panorama, and inside.

    Rows count by the solid angle of their pixels. In a panorama of six faces the border is the middle of the back face,
    and says nothing about the faces' edges.
    """
    height = panoramas.shape[-2]
    weights = ((torch.arange(height, dtype=torch.float64) + 0.5) / height * math.pi).sin().to(panoramas)
    weights = weights / weights.mean()
    difference = (panoramas.roll(-1, -1) - panoramas).abs() * weights[:, None]
    return torch.stack([difference[..., -1].mean((1, 2)), difference[..., :-1].mean((1, 2, 3))], 1)


def _ratio(terms: Tensor) -> Tensor:
    return terms[0] / terms[1]


def _root(terms: Tensor) -> Tensor:
    return terms[0].sqrt()


def _first(terms: Tensor) -> Tensor:
    return terms[0]


METRICS = {
    "overlap_rms": Metric(overlap_error, _root),
    "overlap_psnr": Metric(overlap_error, lambda terms: -10 * terms[0].log10(), rises=False),
    "overlap_ssim": Metric(overlap_similarity, _first, rises=False),
    "overlap_relative": Metric(relative_overlap, lambda terms: _ratio(terms).sqrt()),
    "colour_step": Metric(colour_steps, _root),
    "edge_step": Metric(edge_steps, _first),
    "edge_ratio": Metric(edge_gradients, lambda terms: _ratio(terms[:2]) / _ratio(terms[2:])),
    "corner_rms": Metric(corner_errors, _root),
    "step_beyond_overlap": Metric(steps_beyond, lambda terms: _ratio(terms).sqrt()),
    "sharpness": Metric(gradients, _first, rises=False),
}
# Of panoramas (B, C, H, W) instead of faces; the field of view is not used.
ERP_WRAP = Metric(lambda panoramas, fov: wrap_gradients(panoramas), _ratio)
