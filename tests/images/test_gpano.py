"""Images whose GPano tags say that they are not a full equirectangular sphere are refused, in every format."""

from pathlib import Path

import numpy as np
import pytest
from support.image_files import PARTIAL_SPHERE, gpano, png, tiff
from support.pictures import picture

from cubediff.images.gpano import SphereArea, check_full_sphere, full_sphere_xmp, read_pose, sphere_area
from cubediff.images.panorama_jpeg import load_panorama
from cubediff.utils.errors import DataError

FULL = PARTIAL_SPHERE | {
    "CroppedAreaImageWidthPixels": 192,
    "CroppedAreaImageHeightPixels": 96,
    "CroppedAreaLeftPixels": 0,
    "CroppedAreaTopPixels": 0,
}


def save(path: Path, packet: bytes) -> Path:
    """Writes a 64 × 32 image with an XMP packet."""
    text = {b"iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + packet}
    if path.suffix == ".png":
        return png(path, np.asarray(picture()), *([{}, text] if path.stem == "behind" else [text]))
    if path.suffix == ".tif":
        pixels = np.asarray(picture())
        return tiff(path, (pixels / 255).astype(np.float32) if path.stem == "float" else pixels, tags={700: packet})
    picture().save(path, xmp=packet)
    return path


@pytest.mark.parametrize("elements", [False, True])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "behind.png", "a.webp", "a.avif", "a.tif", "float.tif"])
def test_a_part_of_a_sphere_is_refused_in_every_format(tmp_path: Path, name: str, elements: bool) -> None:
    words = r"a part of a panorama: its GPano tags say 64x32 pixels at \(64, 32\) of a sphere of 192x96; use the full"
    with pytest.raises(DataError, match=words):
        load_panorama(save(tmp_path / name, gpano(PARTIAL_SPHERE, elements=elements)))
    assert (
        load_panorama(save(tmp_path / name, gpano(FULL, elements=elements))).width == 64
    )  # scaled after it was tagged


def test_a_part_that_is_not_2_to_1_is_called_a_part(tmp_path: Path) -> None:
    picture(width=96).save(tmp_path / "a.jpg", xmp=gpano(PARTIAL_SPHERE | {"CroppedAreaImageWidthPixels": 96}))
    with pytest.raises(DataError, match="a part of a panorama: its GPano tags say 96x32"):
        load_panorama(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "tags",
    [
        {},
        FULL,
        FULL | {"UsePanoramaViewer": "False", "InitialViewHeadingDegrees": "170", "PoseRollDegrees": "3"},
        FULL | {"FullPanoWidthPixels": "192.0", "CroppedAreaTopPixels": " 0 "},
        {"ProjectionType": "Equirectangular"},
        {"UsePanoramaViewer": "True"},
        {"FullPanoWidthPixels": 64, "FullPanoHeightPixels": 32},
        {"CroppedAreaImageWidthPixels": 64, "CroppedAreaImageHeightPixels": 32},
        FULL | {"FullPanoWidthPixels": 191, "CroppedAreaImageWidthPixels": 191},  # rounded
    ],
)
def test_tags_of_a_full_sphere_are_accepted(tags: dict) -> None:
    check_full_sphere(gpano(tags), 64, 32)
    check_full_sphere(gpano(tags, prefix="g", elements=True), 64, 32)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (
            PARTIAL_SPHERE | {"ProjectionType": "cubestrip"},
            "ProjectionType is 'cubestrip': expected an equirectangular",
        ),
        ({"ProjectionType": "cylindrical"}, "ProjectionType is 'cylindrical'"),
        (PARTIAL_SPHERE | {"CroppedAreaImageHeightPixels": 96}, r"a part .* 64x96 pixels"),
        (PARTIAL_SPHERE | {"CroppedAreaImageWidthPixels": 192}, r"a part .* 192x32 pixels"),
        ({"FullPanoWidthPixels": 192, "FullPanoHeightPixels": 96}, r"a part .* 64x32 pixels at \(0, 0\)"),
        (FULL | {"CroppedAreaLeftPixels": 5}, r"contradict each other: they say 192x96 pixels at \(5, 0\)"),
        (FULL | {"CroppedAreaImageWidthPixels": 400}, "contradict each other: they say 400x96"),
        (FULL | {"FullPanoHeightPixels": 10, "CroppedAreaImageHeightPixels": 10}, "contradict each other"),
        ({"CroppedAreaTopPixels": 7}, "contradict each other"),
        (FULL | {"FullPanoWidthPixels": "wide"}, "FullPanoWidthPixels is 'wide': expected an integer from 1"),
        (FULL | {"FullPanoWidthPixels": "-192"}, "FullPanoWidthPixels is '-192'"),
        (FULL | {"FullPanoWidthPixels": "0"}, "FullPanoWidthPixels is '0'"),
        (FULL | {"FullPanoWidthPixels": "1e300"}, "FullPanoWidthPixels is '1e300'"),
        (FULL | {"FullPanoWidthPixels": "inf"}, "FullPanoWidthPixels is 'inf'"),
        (FULL | {"CroppedAreaTopPixels": "nan"}, "CroppedAreaTopPixels is 'nan': expected an integer from 0"),
        (FULL | {"CroppedAreaTopPixels": "0.5"}, "CroppedAreaTopPixels is '0.5'"),
    ],
)
def test_other_tags_are_refused_with_the_reason(tags: dict, words: str) -> None:
    for prefix, elements in (("GPano", False), ("other", True)):
        with pytest.raises(DataError, match=words):
            check_full_sphere(gpano(tags, prefix, elements), 64, 32)


def test_unreadable_tags_are_refused_and_unreadable_metadata_without_tags_is_not() -> None:
    packet = gpano(FULL)
    for damaged in (packet[:-60], packet.replace(b"<rdf:RDF", b"<!DOCTYPE x><rdf:RDF", 1), packet + b"\xff<"):
        with pytest.raises(DataError, match="its XMP metadata has GPano tags but is not XML"):
            check_full_sphere(damaged, 64, 32)
    for other in (b"", b"\xff\x00", b"<x:xmpmeta>", b"<!DOCTYPE x><x/>"):
        check_full_sphere(other, 64, 32)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tags_are_read_in_every_encoding_of_xmp(encoding: str) -> None:
    with pytest.raises(DataError, match="a part of a panorama"):
        check_full_sphere(gpano(PARTIAL_SPHERE).decode().encode(encoding) + b"\n" * (encoding != "utf-16"), 64, 32)


def test_the_pose_is_read_and_written() -> None:
    pose = {"PoseHeadingDegrees": "123.5", "PosePitchDegrees": "-2", "PoseRollDegrees": "0.25"}
    assert read_pose(gpano(FULL | pose)) == (123.5, -2.0, 0.25)
    assert read_pose(full_sphere_xmp(128, 64, (123.5, -2.0, 0.25)).encode()) == (123.5, -2.0, 0.25)
    for invalid in ({}, {"PoseHeadingDegrees": "north"}, {"PoseHeadingDegrees": "nan"}, {"PoseHeadingDegrees": "1e9"}):
        assert read_pose(gpano(FULL | invalid)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("full", "crop", "expected"),
    [
        ((192, 96), (64, 32, 64, 32), (96, 64, 32)),
        ((384, 192), (128, 64, 10, 20), (96, 5, 10)),  # scaled by a half after it was tagged
        ((96, 48), (32, 16, 10, 20), (96, 20, 40)),  # by two
        ((191, 96), (64, 32, 127, 0), (96, 127, 0)),  # a width that was rounded
        ((192, 97), (64, 32, 0, 65), (97, 0, 65)),
    ],
)
def test_the_area_of_a_crop(
    full: tuple[int, int], crop: tuple[int, int, int, int], expected: tuple[int, int, int]
) -> None:
    names = ("FullPanoWidthPixels", "FullPanoHeightPixels", "CroppedAreaImageWidthPixels")
    names += ("CroppedAreaImageHeightPixels", "CroppedAreaLeftPixels", "CroppedAreaTopPixels")
    tags = dict(zip(names, (*full, *crop), strict=True))
    assert sphere_area(gpano(tags), 64, 32) == SphereArea(*expected)


def test_an_image_without_tags_shows_the_full_sphere_if_it_is_2_to_1() -> None:
    assert sphere_area(b"", 64, 32) == sphere_area(gpano(FULL), 64, 32) == SphereArea(32, 0, 0)
    with pytest.raises(DataError, match="64x31 is not 2:1"):
        sphere_area(b"", 64, 31)
