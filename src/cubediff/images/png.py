"""Metadata of PNG files: damaged EXIF blocks and ICC profiles, which Pillow refuses; profiles and XMP to write (PNG,
third edition, sections 5.3 and 11.3)."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_MAX_PROFILE = 1 << 20  # bytes; Pillow refuses larger ones
_CONTENTS = {b"eXIf": "EXIF block", b"iCCP": "ICC profile"}


def without_damaged_metadata(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Removes damaged eXIf and iCCP chunks from the content of a PNG file; other files are returned as they are.

    Returns:
        The content, which is `data` itself if none is damaged in front of the pixels; and a note on each of them.
    """
    if not data.startswith(SIGNATURE):
        return data, ()
    kept, notes, position = [SIGNATURE], [], len(SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":  # Pillow skips damaged ones behind the pixels
            break
        chunk = data[position : position + 12 + length]
        if kind in _CONTENTS and len(chunk) == 12 + length and not _is_intact(kind, chunk):
            notes.append(f"its {_CONTENTS[kind]} is damaged: ignored")
        else:
            kept.append(chunk)
        position += 12 + length
    return b"".join([*kept, data[position:]]) if notes else data, tuple(notes)


def with_metadata(data: bytes, profile: bytes | None = None, xmp: str = "") -> bytes:
    """Adds metadata to the content of a PNG file that has none of its kind.

    Args:
        data: The content.
        profile: An ICC profile; None for none.
        xmp: An XMP packet; empty for none.
    """
    chunks = b""
    if profile is not None:
        chunks += _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))
    if xmp:
        # The keyword of XMP in PNG (Adobe's XMP specification, part 3); neither compressed nor in a language.
        chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.encode())
    header = len(SIGNATURE) + 25  # of the first chunk, IHDR
    return data[:header] + chunks + data[header:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _is_intact(kind: bytes, chunk: bytes) -> bool:
    if struct.pack(">I", zlib.crc32(chunk[4:-4])) != chunk[-4:]:
        return False
    if kind == b"eXIf":
        return True
    _, separator, compressed = chunk[8:-4].partition(b"\0")
    try:
        zlib.decompressobj().decompress(compressed[1:], _MAX_PROFILE)
    except zlib.error:
        return False
    return bool(separator and compressed)
