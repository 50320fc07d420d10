"""An ICC profile counts by its transform, not its name; a profile that cannot be used is ignored with a note."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from support.image_files import ADOBE_RGB, DISPLAY_P3, SRGB, cmyk_profile, icc, png, tiff
from support.pictures import picture, shown

from cubediff.images.panorama_jpeg import load_panorama
from cubediff.images.reading import read_image

SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PROFILES = {
    "Display P3": icc(DISPLAY_P3, 2.2),
    "Adobe RGB": icc(ADOBE_RGB, 563 / 256),
    "linear": icc(SRGB, 1.0, "Linear sRGB"),
    "gamma 1.8": icc(SRGB, 1.8, "sRGB IEC61966-2.1"),
}


def in_srgb(levels: np.ndarray, primaries: tuple, gamma: float, full: float = 255) -> np.ndarray:
    """sRGB levels of levels with other primaries and another gamma, by the formulas in float64."""
    xyz = (levels.astype(np.float64) / full) ** gamma @ np.array(primaries)
    linear = (xyz @ np.linalg.inv(SRGB)).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def by_littlecms(image: Image.Image, profile: bytes) -> np.ndarray:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    return np.asarray(ImageCms.profileToProfile(image, source, target, outputMode="RGB"), np.float64)


def read(path: Path) -> np.ndarray:
    return np.asarray(read_image(path), np.float64)


@pytest.mark.parametrize(
    ("primaries", "gamma"), [(DISPLAY_P3, 2.2), (ADOBE_RGB, 563 / 256), (SRGB, 1.0), (SRGB, 1.8), (SRGB, 2.2)]
)
def test_the_primaries_and_gamma_of_a_profile_count(tmp_path: Path, primaries: tuple, gamma: float) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png", icc_profile=icc(primaries, gamma))
    np.testing.assert_allclose(read(tmp_path / "a.png"), in_srgb(levels, primaries, gamma), atol=2.1)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
def test_a_profile_counts_in_every_format(tmp_path: Path, suffix: str, name: str) -> None:
    path, profile = tmp_path / f"a{suffix}", PROFILES[name]
    picture().save(path, icc_profile=profile, **({"lossless": True} if suffix == ".webp" else {"quality": 100}))
    with Image.open(path) as stored:
        expected = by_littlecms(stored.convert("RGB"), profile)
    np.testing.assert_allclose(read(path), expected, atol=1)
    result = load_panorama(path)
    assert result.original is None
    assert result.record == {}
    assert np.abs(shown(result.jpeg) - expected).mean() < 3


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_a_profile_counts_in_palettes_and_with_alpha(tmp_path: Path, mode: str) -> None:
    image = picture().quantize(64) if mode == "P" else picture().convert(mode)
    image.save(tmp_path / "a.png", icc_profile=PROFILES["Adobe RGB"])
    expected = by_littlecms(image.convert("RGB"), PROFILES["Adobe RGB"])
    np.testing.assert_allclose(read(tmp_path / "a.png"), expected, atol=1)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_profile_of_grey_counts(tmp_path: Path, mode: str) -> None:
    grey = picture().convert("L")
    grey.convert(mode).save(tmp_path / "a.png", icc_profile=icc(None, 1.0))
    linear = np.asarray(grey, np.float64)[..., None].repeat(3, -1)
    np.testing.assert_allclose(read(tmp_path / "a.png"), in_srgb(linear, SRGB, 1.0), atol=1.1)


def test_a_printers_profile_counts(tmp_path: Path) -> None:
    image, profile = picture().convert("CMYK"), cmyk_profile()
    image.save(tmp_path / "a.tif", icc_profile=profile)
    expected = by_littlecms(image, profile)
    np.testing.assert_allclose(read(tmp_path / "a.tif"), expected, atol=1)
    assert np.abs(expected - np.asarray(image.convert("RGB"), np.float64)).mean() > 10  # of Pillow without profile


def test_cielab_is_converted(tmp_path: Path) -> None:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    ImageCms.profileToProfile(picture(), srgb, lab, outputMode="LAB").save(tmp_path / "a.tif")
    assert np.abs(read(tmp_path / "a.tif") - np.asarray(picture(), np.float64)).mean() < 2


@pytest.mark.parametrize("name", ["sRGB IEC61966-2.1", "another name"])
def test_a_jpeg_with_the_colours_of_srgb_keeps_its_bytes(tmp_path: Path, name: str) -> None:
    profile = SRGB_PROFILE.replace("sRGB built-in".encode("utf-16-be"), name[:13].encode("utf-16-be"))
    picture().save(tmp_path / "a.jpg", icc_profile=profile)
    assert load_panorama(tmp_path / "a.jpg").original == tmp_path / "a.jpg"


@pytest.mark.parametrize("kind", ["grey.png", "grey and alpha.png", "colours.png", "colours.tif"])
def test_the_dark_tones_of_linear_16_bit_images_keep_their_steps(tmp_path: Path, kind: str) -> None:
    """2048 dark levels of 65536 are 8 of 256, but 43 of 256 in sRGB."""
    ramp = np.arange(2048, dtype=np.uint16).reshape(32, 64)
    colours = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1)
    levels = {"g": ramp, "c": colours}[kind[0]]
    if "alpha" in kind:
        levels = np.stack([ramp, np.full_like(ramp, 65535)], -1)
    path, profile = tmp_path / kind, icc(None if kind.startswith("grey") else SRGB, 1.0)
    if path.suffix == ".png":
        png(path, levels, {b"iCCP": b"linear\0\0" + zlib.compress(profile)})
    else:
        tiff(path, levels, tags={34675: profile})
    expected = colours if kind.startswith("colours") else ramp[..., None].repeat(3, -1)
    got = read(path)
    np.testing.assert_allclose(got, in_srgb(expected, SRGB, 1.0, 65535), atol=1.1)
    assert len(np.unique(got)) > 40


UNUSABLE = {
    "zeros": bytes(200),
    "text": b"no profile",
    "header alone": SRGB_PROFILE[:128],
    "half": SRGB_PROFILE[: len(SRGB_PROFILE) // 2],
    "flat curves": icc(SRGB, 2.2).replace(b"curv\0\0\0\0\0\0\0\1", b"curv\0\0\0\0\0\0\0\2"),
    "of grey": icc(None, 1.0),
    "of CMYK": cmyk_profile(),
    "of Lab": icc(SRGB, 1.0).replace(b"mntrRGB ", b"mntrLab "),
    "device link": icc(SRGB, 1.0).replace(b"mntrRGB ", b"linkRGB "),
}


@pytest.mark.parametrize("name", UNUSABLE)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_unusable_profile_is_ignored_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, name: str
) -> None:
    path, plain = tmp_path / f"a{suffix}", tmp_path / f"plain{suffix}"
    picture().save(path, icc_profile=UNUSABLE[name])
    picture().save(plain)
    np.testing.assert_array_equal(read(path), read(plain))
    assert f"{path}: its ICC profile is" in caplog.text
    result = load_panorama(path)
    assert result.record["notes"] == [record.args[1] for record in caplog.records]
    assert (result.original is None) == (suffix == ".png")


def test_a_grey_jpeg_with_a_profile_of_colours_is_read_as_srgb(tmp_path: Path) -> None:
    picture().convert("L").save(tmp_path / "a.jpg", icc_profile=icc(DISPLAY_P3))
    picture().convert("L").save(tmp_path / "plain.jpg")
    np.testing.assert_array_equal(read(tmp_path / "a.jpg"), read(tmp_path / "plain.jpg"))
    assert "is for RGB (class mntr), its pixels are L" in str(load_panorama(tmp_path / "a.jpg").record["notes"])


DAMAGED = zlib.compress(SRGB_PROFILE, 0)[:-20] + b"\xff" * 20  # the checksum at its end is wrong


@pytest.mark.parametrize(
    "content", [b"x", b"x\0\0junk", b"x\0\0" + zlib.compress(SRGB_PROFILE)[:-40], b"x\0\0" + DAMAGED]
)
def test_a_damaged_profile_chunk_of_a_png_is_ignored(tmp_path: Path, content: bytes) -> None:
    path = png(tmp_path / "a.png", np.asarray(picture()), {b"iCCP": content})
    np.testing.assert_array_equal(read(path), np.asarray(picture()))
    assert load_panorama(path).record.get("notes")


def test_a_png_whose_profile_has_a_wrong_checksum_is_read(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", np.asarray(picture()), {b"iCCP": b"x\0\0" + zlib.compress(PROFILES["linear"])})
    data = path.read_bytes()
    end = data.index(b"IDAT") - 5
    path.write_bytes(data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :])
    np.testing.assert_array_equal(read(path), np.asarray(picture()))
    assert load_panorama(path).record["notes"] == ["its ICC profile is damaged: ignored"]


def gama(gamma: float) -> dict[bytes, bytes]:
    return {b"gAMA": struct.pack(">I", round(gamma * 100_000))}


def chrm(*red_green_blue_white: float) -> dict[bytes, bytes]:
    values = (*red_green_blue_white[6:], *red_green_blue_white[:6])
    return {b"cHRM": struct.pack(">8I", *(round(value * 100_000) for value in values))}


SRGB_CHROMATICITIES = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06, 0.3127, 0.329)
P3_CHROMATICITIES = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("gamma", [1.0, 0.55556])
def test_the_gamma_of_a_png_without_profile_counts(tmp_path: Path, gamma: float, channels: int, bits: int) -> None:
    full = 2**bits - 1
    levels = np.random.default_rng(0).integers(0, full + 1, (32, 64, channels)).astype(f"uint{bits}")
    path = png(
        tmp_path / "a.png", levels[..., 0] if channels == 1 else levels, gama(gamma) | chrm(*SRGB_CHROMATICITIES)
    )
    expected = in_srgb(np.broadcast_to(levels, (32, 64, 3)), SRGB, 1 / gamma, full)
    np.testing.assert_allclose(read(path), expected, atol=0.6)


def test_the_primaries_of_a_png_without_profile_count(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    path = png(tmp_path / "a.png", levels, gama(0.45455) | chrm(*P3_CHROMATICITIES))
    np.testing.assert_allclose(read(path), in_srgb(levels, DISPLAY_P3, 2.2), atol=1.5)


@pytest.mark.parametrize(
    "chunks",
    [
        gama(0.45455),
        gama(0.45),
        gama(0.45455) | chrm(*SRGB_CHROMATICITIES),
        gama(1.0) | {b"sRGB": b"\0"},
        gama(1.0) | {b"iCCP": b"x\0\0" + zlib.compress(SRGB_PROFILE)},
        gama(0),
        gama(0.45455) | chrm(*[0.0] * 8),
    ],
)
def test_other_chunks_of_a_png_change_nothing(tmp_path: Path, chunks: dict[bytes, bytes]) -> None:
    path = png(tmp_path / "a.png", np.asarray(picture()), chunks)
    np.testing.assert_array_equal(read(path), np.asarray(picture()))
    nonsense = chunks in (gama(0), gama(0.45455) | chrm(*[0.0] * 8))
    assert ("notes" in load_panorama(path).record) == nonsense
