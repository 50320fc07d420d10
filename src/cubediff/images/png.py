"""PNG files whose EXIF block or ICC profile is damaged, which Pillow refuses (PNG, third edition, section 5.3)."""

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
