"""The perceptual distance against a restatement in float64, and that it rises with what disturbs images."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cubediff.evaluation.extractors import EfficientNetLite0
from cubediff.evaluation.perceptual import perceptual_distance
from cubediff.geometry import equirect_to_cube

SAMPLES = Path(__file__).parents[2] / "data/samples"


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def faces() -> Tensor:
    """Each face of the cube from another panorama, (6, 3, 128, 128)."""
    lines = (SAMPLES / "captions.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    images = [cv2.imread(str(SAMPLES / json.loads(line)["file"])) for line in lines]
    pixels = [torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).movedim(-1, 0) for image in images]
    cubes = [equirect_to_cube(each[None].float() / 255, 128)[0] for each in pixels]
    return torch.stack([cube[face] for face, cube in enumerate(cubes)]).clamp(0, 1)


def test_it_equals_a_restatement_in_float64_at_the_last_block_of_each_resolution(
    network: EfficientNetLite0, faces: Tensor
) -> None:
    """Of blocks 0, 2, 4, 10 and 14 + 1, before which the next stride of 2 or the head comes."""
    double = EfficientNetLite0().double()
    images, originals = faces[:1, :, :64, :96].double(), faces[1:2, :, :64, :96].double()
    outputs: dict[str, list[np.ndarray]] = {"images": [], "originals": []}
    for name, pixels in (("images", images), ("originals", originals)):
        hooks = [
            double.network._blocks[block].register_forward_hook(
                lambda module, arguments, output, name=name: outputs[name].append(output[0].numpy())
            )
            for block in (0, 2, 4, 10, 15)
        ]
        double.network.extract_features((pixels * 255 - 127) / 128)
        for hook in hooks:
            hook.remove()
    where = np.zeros((64, 96))
    where[32:, :32] = 1
    expected, weighted = [], []
    for a, b in zip(outputs["images"], outputs["originals"], strict=True):
        a, b = (x / np.sqrt((x**2).sum(0)) for x in (a, b))
        error = ((a - b) ** 2).sum(0)
        expected.append(error.mean())
        rows, columns = error.shape
        weights = where.reshape(rows, 64 // rows, columns, 96 // columns).mean((1, 3))
        weighted.append((error * weights).sum() / weights.sum())
    assert [len(x) for x in outputs["images"]] == [16, 24, 40, 112, 320]
    assert perceptual_distance(double, images, originals).item() == pytest.approx(np.mean(expected), rel=1e-9)
    mask = torch.from_numpy(where)[None, None]
    assert perceptual_distance(double, images, originals, mask).item() == pytest.approx(np.mean(weighted), rel=1e-9)
    single = perceptual_distance(network, images.float(), originals.float(), mask.float()).item()
    assert single == pytest.approx(np.mean(weighted), rel=1e-3)


def test_equal_images_have_no_distance_and_each_image_its_own(network: EfficientNetLite0, faces: Tensor) -> None:
    images = faces.clone()
    images[3] = images[3].flip(-1)
    distances = perceptual_distance(network, images, faces)
    assert distances.shape == (6,)
    assert (distances > 0).nonzero().flatten().tolist() == [3]
    assert 0.05 < distances[3].item() < 4
    torch.testing.assert_close(perceptual_distance(network, images[3:4], faces[3:4])[0], distances[3])


def test_only_pixels_that_count_matter_but_for_those_beside_them(network: EfficientNetLite0, faces: Tensor) -> None:
    image = faces[:1].clone()
    image[..., 64:] = 0.5
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 64:] = 1
    inside, everywhere, outside = (perceptual_distance(network, image, faces[:1], m) for m in (mask, None, 1 - mask))
    assert inside > everywhere > 3 * outside > 0
    assert perceptual_distance(network, image, faces[:1], 0 * mask).isnan().all()


def blur(images: Tensor, sigma: float) -> Tensor:
    kernel = torch.exp(-((torch.arange(-12.0, 13) / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    rows = F.conv2d(F.pad(images.flatten(0, 1)[:, None], (12,) * 4, mode="reflect"), kernel)
    return F.conv2d(rows, kernel.transpose(2, 3)).view_as(images)


def noise(images: Tensor, deviation: float) -> Tensor:
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + deviation * drawn).clamp(0, 1)


def jpeg(images: Tensor, quality: float) -> Tensor:
    decoded = []
    for image in (images * 255).round().byte().permute(0, 2, 3, 1).numpy():
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
        decoded.append(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy())
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(
    ("disturb", "strengths"),
    [(blur, (0.5, 1, 2, 4, 8)), (noise, (0.01, 0.02, 0.05, 0.1, 0.2)), (jpeg, (95, 75, 50, 25, 5))],
    ids=["blur", "noise", "jpeg"],
)
def test_it_rises_with_blur_noise_and_compression(
    network: EfficientNetLite0, faces: Tensor, disturb: Callable[[Tensor, float], Tensor], strengths: tuple[float, ...]
) -> None:
    """Of every image."""
    distances = torch.stack([perceptual_distance(network, disturb(faces, x), faces) for x in strengths])
    assert (distances[0] > 0).all()
    assert (distances.diff(dim=0) > 0).all()
    assert (distances[-1] > 3 * distances[0]).all()
