"""OpenEXR images with luminance and chroma, alpha and other primaries become linear radiance with sRGB's primaries."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.image_files import exr

from cubediff.images.exr import read_exr
from cubediff.images.panorama_jpeg import load_panorama
from cubediff.utils.errors import DataError

BT709 = (0.2126, 0.7152, 0.0722)
SRGB = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329)
BT2020 = (0.708, 0.292, 0.17, 0.797, 0.131, 0.046, 0.3127, 0.329)
ACES = (0.7347, 0.2653, 0.0, 1.0, 0.0001, -0.077, 0.32168, 0.33767)


def scene(seed: int = 0) -> np.ndarray:
    """Soft radiance with colours that are not far from grey (64, 128, 3)."""
    coarse = np.random.default_rng(seed).uniform(0.5, 1.5, (4, 8, 3))
    return 3 * cv2.resize(coarse, (128, 64), interpolation=cv2.INTER_CUBIC)


def read(path: Path) -> np.ndarray:
    return read_exr(path, lambda width, height: None)[0].astype(np.float64)


@pytest.mark.parametrize("step", [1, 2])
def test_luminance_and_chroma_become_colours(tmp_path: Path, step: int) -> None:
    """By the definition of the chroma channels: RY = (R - Y) / Y and BY = (B - Y) / Y, at every `step`th pixel."""
    colours = scene()
    luminance = colours @ BT709
    red, blue = ((colours[..., i] / luminance - 1)[::step, ::step] for i in (0, 2))
    path = exr(tmp_path / "a.exr", {"Y": luminance, "RY": red, "BY": blue})
    np.testing.assert_allclose(read(path), colours, rtol=0.005 if step == 1 else 0.1)
    assert np.abs(read(path) / colours - 1).mean() < 0.01
    assert load_panorama(path).width == 128


def test_chroma_is_interpolated_linearly(tmp_path: Path) -> None:
    red = np.zeros((4, 8))
    red[:, 3] = 0.5
    path = exr(tmp_path / "a.exr", {"Y": np.ones((8, 16)), "RY": red, "BY": np.zeros((4, 8))})
    np.testing.assert_allclose(read(path)[0, 4:9, 0], [1, 1.25, 1.5, 1.25, 1], atol=1e-3)


def test_the_luminance_of_chroma_is_that_of_the_files_primaries(tmp_path: Path) -> None:
    red, blue = np.full((8, 16), 0.5), np.full((8, 16), -0.25)
    path = exr(tmp_path / "a.exr", {"Y": np.ones((8, 16)), "RY": red, "BY": blue}, BT2020)
    green = (1 - 0.2627 * 1.5 - 0.0593 * 0.75) / 0.6780  # ITU-R BT.2020
    # BT.2020 to BT.709, ITU-R BT.2087, appendix 2
    matrix = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    np.testing.assert_allclose(read(path)[0, 0], np.array(matrix) @ [1.5, green, 0.75], atol=2e-3)


def test_primaries_of_bt_2020_become_those_of_srgb(tmp_path: Path) -> None:
    matrix = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
    colours = scene()
    path = exr(tmp_path / "a.exr", {name: colours[..., i] for i, name in enumerate("RGB")}, BT2020)
    np.testing.assert_allclose(read(path), colours @ matrix.T, atol=0.01)


def test_primaries_of_aces_become_those_of_srgb_and_white_stays_white(tmp_path: Path) -> None:
    """Expected: the matrix of ACES 2065-1 to linear BT.709 with Bradford's adaptation (OpenColorIO's ACES config)."""
    matrix = np.array([[2.5217, -1.1341, -0.3876], [-0.2765, 1.3727, -0.0962], [-0.0154, -0.1530, 1.1684]])
    colours = scene()
    path = exr(tmp_path / "a.exr", {name: colours[..., i] for i, name in enumerate("RGB")}, ACES)
    np.testing.assert_allclose(read(path), colours @ matrix.T, atol=0.02)
    white = exr(tmp_path / "white.exr", dict.fromkeys("RGB", np.ones((8, 16))), ACES)
    np.testing.assert_allclose(read(white), 1, atol=1e-3)


def test_primaries_of_srgb_change_nothing(tmp_path: Path) -> None:
    channels = {name: scene()[..., i] for i, name in enumerate("RGB")}
    plain, tagged = exr(tmp_path / "a.exr", channels), exr(tmp_path / "b.exr", channels, SRGB)
    np.testing.assert_array_equal(read(plain), read(tagged))


@pytest.mark.parametrize("values", [(0.0,) * 8, (0.3,) * 8, (float("nan"),) * 8])
def test_primaries_that_are_no_colour_space_are_refused(tmp_path: Path, values: tuple) -> None:
    path = exr(tmp_path / "a.exr", dict.fromkeys("RGB", np.ones((16, 32))), values)
    with pytest.raises(DataError, match="its chromaticities are"):
        load_panorama(path)


def test_alpha_of_luminance_counts(tmp_path: Path) -> None:
    grey, alpha = scene()[..., 0], np.ones((64, 128))
    assert load_panorama(exr(tmp_path / "a.exr", {"Y": grey, "A": alpha})).width == 128
    alpha[:16] = 0
    with pytest.raises(DataError, match=r"25\.00% of its pixels are transparent"):
        load_panorama(exr(tmp_path / "a.exr", {"Y": grey, "A": alpha}))


@pytest.mark.parametrize(("width", "height"), [(60000, 30000), (16384, 8192), (2**31 - 1, 2**30)])
def test_sizes_that_the_file_does_not_hold_are_refused(tmp_path: Path, width: int, height: int) -> None:
    path = exr(tmp_path / "a.exr", dict.fromkeys("RGB", np.ones((16, 32))))
    window, other = struct.pack("<4i", 0, 0, 31, 15), struct.pack("<4i", 0, 0, width - 1, height - 1)
    path.write_bytes(path.read_bytes().replace(window, other))
    with pytest.raises(DataError, match="too large" if width == 60000 else "truncated or unreadable"):
        load_panorama(path)
