"""Google's photo-sphere tags in XMP metadata: whether an image shows a full sphere
(developers.google.com/streetview/spherical-metadata)."""

import codecs
import xml.etree.ElementTree as ET

from cubediff.utils.errors import DataError

_NAMESPACE = "http://ns.google.com/photos/1.0/panorama"
_SIZES = ("CroppedAreaImageWidthPixels", "CroppedAreaImageHeightPixels", "FullPanoWidthPixels", "FullPanoHeightPixels")
_OFFSETS = ("CroppedAreaLeftPixels", "CroppedAreaTopPixels")
_MAX_PIXELS = 10**7
_MAX_VALUE = 40  # characters of a tag that are read; longer ones are not those of a size or projection
_REMEDY = "correct the tags, or remove them if the image shows the full sphere"


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
    tags = _read_tags(xmp)
    projection = tags.get("ProjectionType", "equirectangular")
    if projection.lower() != "equirectangular":
        raise DataError(f"GPano:ProjectionType is {projection!r}: expected an equirectangular panorama; {_REMEDY}")
    if tags.keys().isdisjoint((*_SIZES, *_OFFSETS)):
        return
    crop_width, crop_height, full_width, full_height = (_pixels(tags, name, 1) for name in _SIZES)
    left, top = (_pixels(tags, name, 0) or 0 for name in _OFFSETS)
    full_width, full_height = full_width or crop_width or width, full_height or crop_height or height
    crop_width, crop_height = crop_width or width, crop_height or height
    crop = f"{crop_width}x{crop_height} pixels at ({left}, {top}) of a sphere of {full_width}x{full_height}"
    if crop_width < full_width or crop_height < full_height:
        raise DataError(f"a part of a panorama: its GPano tags say {crop}; use the full panorama, or {_REMEDY}")
    rounded = 2  # pixels that a size may be off
    if (crop_width, crop_height, left, top) != (full_width, full_height, 0, 0) or (
        abs(full_width - 2 * full_height) > rounded
    ):
        raise DataError(f"its GPano tags contradict each other: they say {crop}; {_REMEDY}")


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
