"""High dynamic range: the exposure does not depend on the scale of the file, and all formats give the same image."""

from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest
from support.pictures import shown

from cubediff.images.hdr import read_radiance, tone_map
from cubediff.images.panorama_jpeg import load_panorama
from cubediff.utils.errors import DataError


def scene() -> np.ndarray:
    """Soft radiance over three decades, with a sun."""
    coarse = np.exp(np.random.default_rng(0).normal(0, 1.5, (4, 8, 3))).astype(np.float32)
    radiance = cv2.resize(coarse, (128, 64), interpolation=cv2.INTER_CUBIC).clip(0.01)
    radiance[8:10, 20:22] = 5e3
    return radiance


def write_exr(path: Path, channels: dict[str, np.ndarray], **header: object) -> Path:
    settings = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage} | header
    OpenEXR.File(settings, channels).write(str(path))
    return path


def test_tone_mapping_does_not_depend_on_the_scale_of_the_radiance() -> None:
    radiance = scene()
    picture, record = tone_map(radiance)
    brighter, scaled = tone_map(1000 * radiance)
    np.testing.assert_allclose(brighter.astype(int), picture, atol=1)
    assert scaled["exposure"] == pytest.approx(record["exposure"] / 1000, rel=1e-4)
    assert scaled["white"] == pytest.approx(record["white"], rel=1e-4)
    assert 70 < np.median(picture) < 160
    assert picture.max() == 255


@pytest.mark.parametrize(("height", "pixels"), [(64, 1), (64, 20), (64, 80), (256, 1), (256, 200)])
@pytest.mark.parametrize("radiance", [1e4, 1e7, 3e38])
def test_defective_pixels_and_suns_do_not_change_the_exposure_of_the_others(
    height: int, pixels: int, radiance: float
) -> None:
    coarse = np.exp(np.random.default_rng(1).normal(0, 1, (8, 16, 3)))
    scene = cv2.resize(coarse.astype(np.float32), (2 * height, height), interpolation=cv2.INTER_LINEAR)
    plain = tone_map(scene)[0].astype(int)
    places = np.random.default_rng(2).choice(2 * height * height, pixels, replace=False)
    hot = scene.copy()
    hot.reshape(-1, 3)[places] = radiance
    mapped = tone_map(hot)[0].astype(int)
    others = np.ones(len(mapped) * 2 * height, bool)
    others[places] = False
    assert (mapped.reshape(-1, 3)[places] == 255).all()
    assert abs(np.median(mapped) - np.median(plain)) < 20
    assert np.abs(mapped - plain).reshape(-1, 3)[others].mean() < 25


def test_a_black_background_does_not_turn_the_rest_white() -> None:
    """Two thirds of the sphere are black, as around a studio."""
    studio = np.zeros((64, 128, 3), np.float32)
    studio[20:40] = scene()[20:40]
    mapped = tone_map(studio)[0]
    assert (mapped[:20] == 0).all()
    assert 60 < np.median(mapped[20:40]) < 250


def test_negative_radiance_is_black() -> None:
    negative, black = scene(), scene()
    negative[:4, :, 1], black[:4, :, 1] = -3, 0
    np.testing.assert_array_equal(tone_map(negative)[0], tone_map(black)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_radiance_that_is_not_finite_is_refused(value: float) -> None:
    broken = scene()
    broken[3, 5, 2] = value
    with pytest.raises(DataError, match="1 pixels are NaN or infinite"):
        tone_map(broken)


def test_the_record_suffices_to_repeat_the_tone_mapping() -> None:
    """The tone map is repeated from the record alone, in float64."""
    radiance = scene()
    picture, record = tone_map(radiance)
    assert record["curve"] == "reinhard_extended"
    luminance = radiance.astype(np.float64) @ (0.2126, 0.7152, 0.0722)
    exposed = record["exposure"] * luminance
    mapped = exposed * (1 + exposed / record["white"] ** 2) / (1 + exposed)
    linear = (radiance * (mapped / luminance)[..., None]).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(picture, 255 * srgb, atol=0.51)


def test_hdr_exr_and_tiff_of_the_same_radiance_show_the_same(tmp_path: Path) -> None:
    radiance = scene()
    assert cv2.imwrite(str(tmp_path / "a.hdr"), radiance[..., ::-1])
    assert cv2.imwrite(str(tmp_path / "a.tif"), radiance[..., ::-1])
    write_exr(tmp_path / "a.exr", {"RGB": radiance})
    write_exr(tmp_path / "half.exr", {"RGBA": np.dstack([radiance, np.ones((64, 128, 1))]).astype(np.float16)})
    rgbe = read_radiance(tmp_path / "a.hdr")
    step = radiance.max(-1, keepdims=True) / 128  # a shared exponent leaves 8 bits to the largest channel
    assert (np.abs(rgbe - radiance) <= step).all()
    expected = tone_map(radiance)[0]
    bright = radiance > 10 * step  # less than 1/10 off, and a level is the 2.4th root of the radiance
    assert bright.mean() > 0.75
    np.testing.assert_allclose(tone_map(rgbe)[0][bright].astype(int), expected[bright], atol=255 / 10 / 2.4)
    for name, mean in (("a.exr", 2.5), ("a.tif", 2.5), ("half.exr", 2.5), ("a.hdr", 3.0)):  # JPEG alone: about 1
        result = load_panorama(tmp_path / name)
        assert result.original is None
        assert result.record["tone_map"]["exposure"] == pytest.approx(tone_map(radiance)[1]["exposure"], rel=0.01)
        assert np.abs(shown(result.jpeg) - expected).mean() < mean, name
    jpegs = [load_panorama(tmp_path / name).jpeg for name in ("a.exr", "a.tif")]
    assert jpegs[0] == jpegs[1]


def test_grey_exr_and_grey_tiff_are_grey(tmp_path: Path) -> None:
    grey = scene()[..., 0].copy()
    write_exr(tmp_path / "a.exr", {"Y": grey})
    assert cv2.imwrite(str(tmp_path / "a.tif"), grey)
    for name in ("a.exr", "a.tif"):
        colours = shown(load_panorama(tmp_path / name).jpeg)
        assert np.ptp(colours, axis=-1).max() <= 2
        assert np.ptp(colours) > 150


def test_invalid_hdr_images_are_refused(tmp_path: Path) -> None:
    radiance = scene()
    broken = radiance.copy()
    broken[3, 4], broken[5, 6, 1] = np.nan, np.inf
    window = (np.array([0, 0], np.int32), np.array([255, 127], np.int32))
    alpha = np.dstack([radiance, np.ones((64, 128))]).astype(np.float32)
    alpha[:32, ..., 3] = 0
    whole = write_exr(tmp_path / "whole.exr", {"RGB": radiance}).read_bytes()
    (tmp_path / "cut.exr").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "magic.exr").write_bytes(b"v/1\x01")
    for name, channels, header in (
        ("nan.exr", {"RGB": broken}, {}),
        ("black.exr", {"RGB": 0 * radiance}, {}),
        ("depth.exr", {"Z": radiance[..., 0].copy()}, {}),
        ("square.exr", {"RGB": radiance[:, :64].copy()}, {}),
        ("part.exr", {"RGB": radiance}, {"displayWindow": window}),
        ("open.exr", {"RGBA": alpha}, {}),
    ):
        write_exr(tmp_path / name, channels, **header)
    for name, words in {
        "nan.exr": "2 pixels are NaN or infinite",
        "black.exr": "all one colour",
        "depth.exr": "channels Z: R, G, B or Y are needed",
        "square.exr": "64x64 is not 2:1",
        "part.exr": "data window is not its display window",
        "open.exr": "50.00% of its pixels are transparent",
        "cut.exr": "truncated or unreadable",
        "magic.exr": "truncated or unreadable",
    }.items():
        with pytest.raises(DataError, match=words):
            load_panorama(tmp_path / name)


def test_error_of_an_exr_without_openexr_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_exr(tmp_path / "a.exr", {"RGB": scene()})
    monkeypatch.setitem(__import__("sys").modules, "OpenEXR", None)
    with pytest.raises(DataError, match=r"pip install 'cubediff\[exr\]'"):
        load_panorama(tmp_path / "a.exr")
