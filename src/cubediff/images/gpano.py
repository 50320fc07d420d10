"""Google's photo-sphere tags in XMP metadata: whether an image shows a full sphere, or which part of one
(developers.google.com/streetview/spherical-metadata)."""

import codecs
import math
import xml.etree.ElementTree as ET
from typing import NamedTuple, TypeAlias

from cubediff.utils.errors import DataError

_NAMESPACE = "http://ns.google.com/photos/1.0/panorama"
_SIZES = ("CroppedAreaImageWidthPixels", "CroppedAreaImageHeightPixels", "FullPanoWidthPixels", "FullPanoHeightPixels")
_OFFSETS = ("CroppedAreaLeftPixels", "CroppedAreaTopPixels")
_MAX_PIXELS = 10**7
_MAX_VALUE = 40  # characters of a tag that are read; longer ones are not those of a size or projection
_REMEDY = "correct the tags, or remove them if the image shows the full sphere"
_ROUNDED = 2  # pixels that a size may be off
_POSE = ("PoseHeadingDegrees", "PosePitchDegrees", "PoseRollDegrees")
_FULL_SPHERE = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"
 GPano:ProjectionType="equirectangular" GPano:UsePanoramaViewer="True"
 GPano:FullPanoWidthPixels="{width}" GPano:FullPanoHeightPixels="{height}"
 GPano:CroppedAreaImageWidthPixels="{width}" GPano:CroppedAreaImageHeightPixels="{height}"
 GPano:CroppedAreaLeftPixels="0" GPano:CroppedAreaTopPixels="0"
 GPano:PoseHeadingDegrees="{pose[0]:g}" GPano:PosePitchDegrees="{pose[1]:g}" GPano:PoseRollDegrees="{pose[2]:g}"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""

Pose: TypeAlias = tuple[float, float, float]


class SphereArea(NamedTuple):
    """Where an image lies in the equirectangular image of the full sphere, 2·`height` × `height` pixels."""

    height: int
    left: int
    top: int


class _Crop(NamedTuple):
    """The values of the tags, in pixels; missing ones are those of a full sphere."""

    width: int
    height: int
    full_width: int
    full_height: int
    left: int
    top: int

    def __str__(self) -> str:
        place = f"({self.left}, {self.top})"
        return f"{self.width}x{self.height} pixels at {place} of a sphere of {self.full_width}x{self.full_height}"


def full_sphere_xmp(width: int, height: int, pose: Pose = (0.0, 0.0, 0.0)) -> str:
    """The XMP packet of a full sphere, by which viewers recognise a panorama.

    Args:
        width: Width of the image, in pixels.
        height: Its height, in pixels.
        pose: Heading, pitch and roll of the camera, degrees.
    """
    return _FULL_SPHERE.format(width=width, height=height, pose=pose)


def read_pose(xmp: bytes) -> Pose:
    """Heading, pitch and roll of the camera by the GPano tags, degrees; 0 without valid ones.

    Raises:
        DataError: If the tags are unreadable.
    """
    tags = _read_tags(xmp)
    heading, pitch, roll = (_degrees(tags.get(name, "0")) for name in _POSE)
    return heading, pitch, roll


def _degrees(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if abs(value) <= 360 else 0.0


def check_full_sphere(xmp: bytes, width: int, height: int) -> None:
    """Checks that the GPano tags of an image, if it has any, describe a full equirectangular sphere.

    Missing tags have the values of a full sphere in an uncropped image. An image that was scaled after it was tagged is
    accepted: only the tags are compared with each other.

    Args:
        xmp: The XMP packet of the image; empty: none.
        width: Width of the image, in pixels.
        height: Its height, in pixels.

    Raises:
        DataError: If they name another projection or a part of the sphere, contradict each other, or are unreadable.
    """
    crop = _read_crop(_read_tags(xmp), width, height)
    if crop is None:
        return
    if crop.width < crop.full_width or crop.height < crop.full_height:
        raise DataError(
            f"a part of a panorama: its GPano tags say {crop}; use the full panorama, pad it to the full sphere, "
            f"{_REMEDY}"
        )
    if (crop.left, crop.top) != (0, 0) or not _fits(crop):
        raise DataError(f"its GPano tags contradict each other: they say {crop}; {_REMEDY}")


def sphere_area(xmp: bytes, width: int, height: int) -> SphereArea:
    """Which part of the sphere an image shows by its GPano tags; without them a 2:1 image shows all of it.

    Args:
        xmp: The XMP packet of the image; empty: none.
        width: Width of the image, in pixels.
        height: Its height, in pixels.

    Returns:
        The area in pixels of the image, which may have been scaled after it was tagged.

    Raises:
        DataError: If the image is not 2:1 and has no tags, or the tags name another projection, contradict each other
            or the image, or are unreadable.
    """
    crop = _read_crop(_read_tags(xmp), width, height)
    if crop is None:
        if width != 2 * height:
            raise DataError(
                f"{width}x{height} is not 2:1: expected the full sphere, or GPano tags that say which part of it the "
                "image shows"
            )
        return SphereArea(height, 0, 0)
    across, down = width / crop.width, height / crop.height
    scaled_alike = abs(crop.height * across - height) <= _ROUNDED * max(1, across)
    if not _fits(crop) or not scaled_alike:
        raise DataError(
            f"its GPano tags contradict each other or its {width}x{height} pixels: they say {crop}; {_REMEDY}"
        )
    sphere = max(math.ceil(crop.full_width * across / 2 - 1e-6), round(crop.full_height * down))
    left, top = round(crop.left * across), round(crop.top * down)
    return SphereArea(sphere, min(left, 2 * sphere - width), min(top, sphere - height))


def _read_crop(tags: dict[str, str], width: int, height: int) -> _Crop | None:
    """The crop that the tags describe; None if they name no sizes. DataError for another projection."""
    projection = tags.get("ProjectionType", "equirectangular")
    if projection.lower() != "equirectangular":
        raise DataError(f"GPano:ProjectionType is {projection!r}: expected an equirectangular panorama; {_REMEDY}")
    if tags.keys().isdisjoint((*_SIZES, *_OFFSETS)):
        return None
    crop_width, crop_height, full_width, full_height = (_pixels(tags, name, 1) for name in _SIZES)
    left, top = (_pixels(tags, name, 0) or 0 for name in _OFFSETS)
    return _Crop(
        width=crop_width or width,
        height=crop_height or height,
        full_width=full_width or crop_width or width,
        full_height=full_height or crop_height or height,
        left=left,
        top=top,
    )


def _fits(crop: _Crop) -> bool:
    """Whether the crop lies in its sphere, and the sphere is 2:1."""
    inside = crop.left + crop.width <= crop.full_width and crop.top + crop.height <= crop.full_height
    return inside and abs(crop.full_width - 2 * crop.full_height) <= _ROUNDED


def _pixels(tags: dict[str, str], name: str, least: int) -> int | None:
    if name not in tags:
        return None
    try:
        value = float(tags[name])  # some programs write 4096.0
        if least <= value <= _MAX_PIXELS and value == int(value):
            return int(value)
    except ValueError:
        pass
    raise DataError(f"GPano:{name} is {tags[name]!r}: expected an integer from {least} to {_MAX_PIXELS}; {_REMEDY}")


def _read_tags(xmp: bytes) -> dict[str, str]:
    """The GPano tags by name, as attributes or as elements, with any prefix of the namespace."""
    plain = xmp.replace(b"\0", b"")  # of UTF-16, too
    if _NAMESPACE.encode() not in plain:
        return {}
    try:
        if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:
            raise ValueError("a document type, which XMP does not have")
        text = xmp.decode("utf-16" if xmp.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
        root = ET.fromstring(text.strip("\0\ufeff \r\n\t"))
    except (ET.ParseError, ValueError) as error:
        raise DataError(f"its XMP metadata has GPano tags but is not XML ({error}): {_REMEDY}") from None
    found: dict[str, str] = {}
    for element in root.iter():
        for name, value in (*element.attrib.items(), (element.tag, element.text or "")):
            space, _, local = name.rpartition("}")
            if space.strip("{").rstrip("/") == _NAMESPACE and value.strip():
                found.setdefault(local, value.strip()[:_MAX_VALUE])
    return found
