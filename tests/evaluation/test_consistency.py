"""Consistency metrics against float64 references and closed forms."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import correlate1d, uniform_filter
from torch import Tensor

from cubediff.evaluation import consistency, face_edges
from cubediff.evaluation.consistency import ERP_WRAP, METRICS, value_of, values_of
from cubediff.geometry import equirect_to_cube, face_directions

SAMPLES = Path(__file__).parents[2] / "data/samples"
FRONT, RIGHT, BACK, LEFT, UP, DOWN = range(6)
# The edges of a cube: a face and a side of its image, and those of its neighbour.
EDGES = [
    (FRONT, "right", RIGHT, "left"), (RIGHT, "right", BACK, "left"), (BACK, "right", LEFT, "left"),
    (LEFT, "right", FRONT, "left"), (UP, "bottom", FRONT, "top"), (UP, "right", RIGHT, "top"),
    (UP, "top", BACK, "top"), (UP, "left", LEFT, "top"), (DOWN, "top", FRONT, "bottom"),
    (DOWN, "right", RIGHT, "bottom"), (DOWN, "bottom", BACK, "bottom"), (DOWN, "left", LEFT, "bottom"),
]  # fmt: skip
# Edges along which the images of the two faces run in opposite directions.
REVERSED = {(UP, RIGHT), (UP, BACK), (DOWN, BACK), (DOWN, LEFT)}


def each(name: str, faces: Tensor, fov: float = 95.0) -> Tensor:
    """A metric's value for each panorama."""
    return values_of(METRICS[name], METRICS[name].terms(faces, fov))


def pooled(name: str, faces: Tensor, fov: float = 95.0) -> float:
    """A metric's value for all panoramas."""
    return value_of(METRICS[name], METRICS[name].terms(faces, fov))


def noise(size: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 6, 3, size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)


def direction_coded(size: int) -> Tensor:
    return face_directions(size, 95.0, torch.float64).movedim(-1, 1)[None] / 2 + 0.5


def band(face: Tensor, side: str, width: int) -> Tensor:
    return {
        "left": face[..., :width],
        "right": face[..., -width:],
        "top": face[..., :width, :],
        "bottom": face[..., -width:, :],
    }[side]


def test_edge_step_of_90_degree_faces_is_that_of_their_outer_pixels() -> None:
    """On 256 pixels a band has 4, and a place along the edge has 2. Sides are listed so that both run the same way."""
    faces = noise(256)[0]
    steps = []
    for a, here, b, there in EDGES:
        first, second = (
            F.avg_pool2d(band(faces[face], side, 4), (2, 4) if side in ("left", "right") else (4, 2)).flatten(1)
            for face, side in ((a, here), (b, there))
        )
        if (a, b) in REVERSED:
            second = second.flip(1)
        steps.append((first - second).abs().mean())
    torch.testing.assert_close(each("edge_step", faces[None], 90.0)[0], torch.stack(steps).mean(), rtol=0, atol=1e-9)


def test_a_face_of_another_brightness_is_a_step_at_its_four_edges() -> None:
    faces = torch.full((2, 6, 3, 64, 64), 0.25, dtype=torch.float64)
    for face in range(6):
        brighter = faces.clone()
        brighter[1, face] += 0.3
        torch.testing.assert_close(each("edge_step", brighter), torch.tensor([0.0, 0.3 * 4 / 12], dtype=torch.float64))
        torch.testing.assert_close(
            each("overlap_rms", brighter), torch.tensor([0.0, 0.3 * math.sqrt(4 / 12)], dtype=torch.float64)
        )


def test_overlap_rms_of_consistent_faces_is_the_error_of_interpolation() -> None:
    assert pooled("overlap_rms", direction_coded(64)) < 1e-3
    assert pooled("overlap_rms", direction_coded(128)) < 0.3 * pooled("overlap_rms", direction_coded(64))
    assert pooled("overlap_rms", direction_coded(64).roll(1, 1)) > 0.2


def test_overlap_rms_grows_with_noise_as_its_standard_deviation() -> None:
    """The difference of two independent pixels; interpolation averages away some noise of the second."""
    size, sigma = 128, 0.1
    shaken = direction_coded(size) + sigma * torch.randn(
        1, 6, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    assert sigma * 1.1 < pooled("overlap_rms", shaken) < sigma * math.sqrt(2)
    with pytest.raises(ValueError, match=r"faces of 8 pixels and 95.0° overlap by less than a pixel"):
        pooled("overlap_rms", noise(8))


def test_sharpness_of_a_ramp_is_its_slope() -> None:
    rows, columns = torch.meshgrid(*[torch.arange(32, dtype=torch.float64)] * 2, indexing="ij")
    ramp = (0.003 * rows + 0.004 * columns).expand(1, 6, 3, 32, 32)
    assert pooled("sharpness", ramp) == pytest.approx(0.005)
    assert pooled("sharpness", torch.ones(1, 6, 3, 8, 8)) == 0
    blurred = F.avg_pool2d(noise(64)[0], 3, 1, 1)[None]
    assert pooled("sharpness", blurred) < 0.7 * pooled("sharpness", noise(64))


def test_values_are_those_of_each_panorama_in_any_dtype() -> None:
    faces = noise(64, batch=3)
    for name, metric in METRICS.items():
        joint = each(name, faces)
        assert joint.shape == (3,)
        for i in range(3):
            torch.testing.assert_close(each(name, faces[i : i + 1])[0], joint[i])
        torch.testing.assert_close(each(name, faces.float()), joint, rtol=1e-4, atol=1e-5)
        terms = metric.terms(faces, 95.0)
        assert value_of(metric, terms) == pytest.approx(metric.finish(terms.mean(0)).item())


# ---- where faces overlap -------------------------------------------------------------------------------------


def looks(face: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right, top and forward of a face, by its yaw and pitch."""
    if face < 4:
        yaw = math.radians(90 * face)
        forward = np.array([math.sin(yaw), 0, math.cos(yaw)])
        return np.array([math.cos(yaw), 0, -math.sin(yaw)]), np.array([0.0, 1, 0]), forward
    up = 1.0 if face == UP else -1.0
    return np.array([1.0, 0, 0]), np.array([0, 0, -up]), np.array([0, up, 0])


def bilinear(image: np.ndarray, row: float, column: float) -> np.ndarray:
    """The value of an image (C, S, S) between four pixel centres."""
    i, j = min(int(row), image.shape[1] - 2), min(int(column), image.shape[2] - 2)
    y, x = row - i, column - j
    top = (1 - x) * image[:, i, j] + x * image[:, i, j + 1]
    bottom = (1 - x) * image[:, i + 1, j] + x * image[:, i + 1, j + 1]
    result: np.ndarray = (1 - y) * top + y * bottom
    return result


def differences(faces: np.ndarray, fov: float) -> dict[tuple[int, int], np.ndarray]:
    """By pairs of faces: pixels of the first minus the second where their rays fall between its pixel centres."""
    size, tan = faces.shape[-1], math.tan(math.radians(fov / 2))
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for face, row, column in np.ndindex(6, size, size):
        right, top, forward = looks(face)
        ray = forward + tan * ((2 * column + 1) / size - 1) * right - tan * ((2 * row + 1) / size - 1) * top
        for other in range(6):
            axes = looks(other)
            if other == face or ray @ axes[2] <= 0:
                continue
            x, y = ray @ axes[0] / (ray @ axes[2]) / tan, -(ray @ axes[1]) / (ray @ axes[2]) / tan
            j, i = (((place + 1) * size - 1) / 2 for place in (x, y))
            if min(i, j) >= -1e-9 and max(i, j) <= size - 1 + 1e-9:
                sample = bilinear(faces[other], max(i, 0), max(j, 0))
                found.setdefault((face, other), []).append(faces[face][:, row, column] - sample)
    return {pair: np.array(values) for pair, values in found.items()}


def test_overlap_and_colour_step_equal_a_restatement_pixel_by_pixel() -> None:
    faces = noise(48)[0] + torch.arange(6)[:, None, None, None] / 10
    pairs = differences(faces.numpy(), 95.0)
    assert len(pairs) == 24
    every = np.concatenate(list(pairs.values()))
    rms = math.sqrt((every**2).mean())
    assert pooled("overlap_rms", faces[None]) == pytest.approx(rms, rel=1e-6)
    assert pooled("overlap_psnr", faces[None]) == pytest.approx(-20 * math.log10(rms), rel=1e-6)
    means = np.array([values.mean(0) for values in pairs.values()])
    assert pooled("colour_step", faces[None]) == pytest.approx(math.sqrt((means**2).mean()), rel=1e-6)


def test_squares_are_pooled_over_panoramas_before_the_root() -> None:
    faces = direction_coded(64).repeat(2, 1, 1, 1, 1)
    faces[1, 0] += 0.3
    first, second = each("colour_step", faces).tolist()
    assert second == pytest.approx(0.3 * math.sqrt(8 / 24), rel=1e-2)
    assert pooled("colour_step", faces) == pytest.approx(math.sqrt((first**2 + second**2) / 2))


def test_ssim_of_the_strips_equals_a_restatement_with_scipy() -> None:
    faces = noise(64)
    strips = [strip.numpy() for strip in face_edges.strips(faces, 95.0)]

    def mean(x: np.ndarray) -> np.ndarray:
        filtered: np.ndarray = uniform_filter(x, (0, 0, 7, 7))[..., 3:-3, 3:-3]
        return filtered

    a, b = strips
    variance = [49 / 48 * (mean(x * y) - mean(x) * mean(y)) for x, y in ((a, a), (b, b), (a, b))]
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mean(a) * mean(b) + c1) * (2 * variance[2] + c2)
    expected /= (mean(a) ** 2 + mean(b) ** 2 + c1) * (variance[0] + variance[1] + c2)
    assert pooled("overlap_ssim", faces) == pytest.approx(expected.mean(), rel=1e-9)
    assert pooled("overlap_ssim", direction_coded(128)) > 0.999


def test_strips_look_in_the_same_directions_from_both_faces() -> None:
    """The faces' pixels are their own directions; bilinear samples of them differ from directions by curvature."""
    size = 256
    first, second = face_edges.strips(face_directions(size, 95.0, torch.float64).movedim(-1, 1)[None], 95.0)
    assert first.shape[2] == 20
    normalised = [F.normalize(strip, dim=1) for strip in (first, second)]
    torch.testing.assert_close(*normalised, rtol=0, atol=1e-5)


def test_corner_rms_of_a_brighter_face() -> None:
    """It takes part in two of the three pairs at four of the eight corners."""
    faces = torch.full((1, 6, 3, 64, 64), 0.25, dtype=torch.float64)
    faces[0, 3] += 0.3
    assert pooled("corner_rms", faces) == pytest.approx(0.3 * math.sqrt(2 / 3 * 4 / 8))
    assert pooled("corner_rms", direction_coded(128)) < 1e-3
    with pytest.raises(ValueError, match=r"faces of 8 pixels and 95.0° overlap by less than a pixel"):
        pooled("corner_rms", noise(8))


def test_edge_ratio_of_one_scene_is_one_and_a_seam_raises_it() -> None:
    """The brighter face adds its step to the differences across its four edges."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(
        torch.rand(4, 3, 32, 64, generator=generator, dtype=torch.float64), (256, 512), mode="bicubic"
    )
    faces = equirect_to_cube(smooth, 128, mode="bicubic")
    assert 0.9 < pooled("edge_ratio", faces) < 1.1
    brighter = faces.clone()
    brighter[:, 0] += 0.3
    terms = METRICS["edge_ratio"].terms(brighter, 95.0).mean(0)
    assert terms[0].item() == pytest.approx(0.3 * 4 / 12, rel=0.3)
    assert pooled("edge_ratio", brighter) > 3


def test_step_beyond_the_overlap_of_a_scene_whose_blocks_are_known() -> None:
    """A wave of one period a face differs as much at edges as at centres; a brighter face adds to two edges alone."""

    def block(centre: float, side: int) -> float:
        yaw = np.radians(centre + side * np.linspace(3.5, 12, 18))
        mean: float = np.sin(4 * yaw + 0.3).mean()
        return mean

    yaw = torch.atan2(*face_directions(256, 95.0, torch.float64)[..., [0, 2]].unbind(-1))
    faces = (0.5 + 0.2 * (4 * yaw + 0.3).sin())[None, :, None].expand(1, 6, 3, 256, 256).clone()
    edge, centre = (0.2 * (block(at, 1) - block(at, -1)) for at in (45, 0))
    assert pooled("step_beyond_overlap", faces) == pytest.approx(abs(edge / centre), rel=1e-3)
    faces[:, RIGHT] += 0.1
    expected = math.sqrt((2 * edge**2 + (edge + 0.1) ** 2 + (edge - 0.1) ** 2) / 4) / abs(centre)
    assert pooled("step_beyond_overlap", faces) == pytest.approx(expected, rel=1e-3)


def test_a_border_that_does_not_meet_is_seen_by_the_wrap_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(8, 3, 64, 128, generator=generator, dtype=torch.float64)
    panoramas = rough + rough.roll(1, -1)
    assert 0.95 < value_of(ERP_WRAP, ERP_WRAP.terms(panoramas, 95.0)) < 1.05
    cut = panoramas + torch.linspace(0, 3, 128)
    assert value_of(ERP_WRAP, ERP_WRAP.terms(cut, 95.0)) > 3


# ---- real panoramas, with the values that were measured when the definitions were made -----------------------------


@pytest.fixture(scope="module")
def real() -> Tensor:
    """The faces of the 25 panoramas of data/samples, 128 pixels, by bilinear samples."""
    lines = (SAMPLES / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    images = [cv2.imread(str(SAMPLES / json.loads(line)["file"])) for line in lines]
    assert len(images) == 25
    pixels = [torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).movedim(-1, 0) for image in images]
    return torch.cat([equirect_to_cube(panorama[None].float() / 255, 128, mode="bilinear") for panorama in pixels])


def test_values_of_real_panoramas(real: Tensor) -> None:
    assert pooled("overlap_rms", real) == pytest.approx(0.011, rel=0.05)
    assert pooled("colour_step", real) == pytest.approx(0.0002, abs=0.00005)
    assert 0.9 < pooled("edge_ratio", real) < 1.1
    assert 0.94 < pooled("step_beyond_overlap", real[:8]) < pooled("step_beyond_overlap", real) < 1.2


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_any_blur_of_a_panorama_raises_the_relative_overlap(mode: str) -> None:
    """Faces of blurred panoramas agree better by `overlap_rms`, from a blur below a pixel of the panorama on."""
    lines = (SAMPLES / "captions.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    images = [cv2.imread(str(SAMPLES / json.loads(line)["file"])) for line in lines]
    relative, absolute = [], []
    for sigma in (0, 0.4, 0.6, 1, 2, 4):
        blurred = [image if not sigma else cv2.GaussianBlur(image, (0, 0), sigma) for image in images]
        pixels = [torch.from_numpy(image).movedim(-1, 0)[None].float() / 255 for image in blurred]
        faces = torch.cat([equirect_to_cube(each, 128, mode=mode) for each in pixels])
        relative.append(pooled("overlap_relative", faces))
        absolute.append(pooled("overlap_rms", faces))
    assert relative == sorted(relative)
    assert absolute == sorted(absolute, reverse=True)


def test_detail_is_the_fourth_difference_of_pixels() -> None:
    """By scipy; where the ratio is taken, all pixels that another face sees count as often as they are seen."""
    faces = noise(64)
    kernel = [1, -4, 6, -4, 1]
    rows, columns = (correlate1d(faces.numpy(), kernel, axis=axis, mode="mirror") for axis in (-2, -1))
    detail = torch.from_numpy((rows**2 + columns**2) / 2)
    torch.testing.assert_close(consistency._detail(faces), detail)
    samples = consistency._overlaps(faces, 95.0)
    seen = detail.transpose(1, 2).flatten(2)[..., samples.indices[samples.inside]].mean()
    error, scale = METRICS["overlap_relative"].terms(faces, 95.0)[0]
    assert scale.item() == pytest.approx(seen.item() + (2 / 255) ** 2)
    assert error.item() == pytest.approx(pooled("overlap_rms", faces) ** 2 + (2 / 255) ** 2)


def test_only_less_agreement_raises_the_relative_overlap(real: Tensor) -> None:
    """Blurred and grey panoramas agree with themselves better than real ones, by `overlap_rms`; not by the relative."""
    real = real[:8]
    own = pooled("overlap_relative", real)
    assert 0.08 < own < 0.09
    last = own
    for sigma in (1, 2, 4):
        kernel = torch.exp(-((torch.arange(-12.0, 13) / sigma) ** 2) / 2)
        kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
        rows = F.conv2d(F.pad(real.flatten(0, 1).flatten(0, 1)[:, None], (12,) * 4, mode="reflect"), kernel)
        blurred = F.conv2d(rows, kernel.transpose(2, 3)).view_as(real)
        assert pooled("overlap_relative", blurred) > last, sigma
        last = pooled("overlap_relative", blurred)
    assert pooled("overlap_relative", torch.full_like(real, 0.5)) == pytest.approx(1)
    brighter = real.clone()
    brighter[:, 2] += 0.02
    assert pooled("overlap_relative", brighter) > own
    shaken = real + 0.01 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    assert pooled("overlap_relative", shaken) > own
