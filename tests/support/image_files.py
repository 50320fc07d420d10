"""Image files made by hand: PNG, TIFF and OpenEXR, ICC profiles, and EXIF and XMP metadata."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))  # XYZ at D50 of R, G and B
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))
ADOBE_RGB = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
D50 = (0.9642, 1.0, 0.8249)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 32\n%%EndComments\nshowpage\n%%EOF\n"
GPANO = "http://ns.google.com/photos/1.0/panorama/"
PARTIAL_SPHERE = {
    "ProjectionType": "equirectangular",
    "FullPanoWidthPixels": 192,
    "FullPanoHeightPixels": 96,
    "CroppedAreaImageWidthPixels": 64,
    "CroppedAreaImageHeightPixels": 32,
    "CroppedAreaLeftPixels": 64,
    "CroppedAreaTopPixels": 32,
}


def icc(primaries: Sequence[Sequence[float]] | None = SRGB, gamma: float = 2.2, name: str = "drawn") -> bytes:
    """A display's ICC profile, version 2: primaries and one gamma, or of grey if `primaries` is None."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    if primaries is None:
        return _profile({b"kTRC": curve}, device=b"mntr", space=b"GRAY", name=name)
    tags = {b"rXYZ": _xyz(primaries[0]), b"gXYZ": _xyz(primaries[1]), b"bXYZ": _xyz(primaries[2])}
    return _profile(tags | {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}, device=b"mntr", space=b"RGB ", name=name)


def _profile(tags: Mapping[bytes, bytes], device: bytes, space: bytes, name: str, connection: bytes = b"XYZ ") -> bytes:
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name.encode() + bytes(79),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz(D50),
        **tags,
    }
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for key, content in tags.items():
        table += key + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = bytearray(128)
    struct.pack_into(">I", head, 0, 132 + len(table) + len(data))
    head[8:12], head[12:16], head[16:20], head[20:24] = b"\x02\x40\0\0", device, space, connection
    head[36:40], head[68:80] = b"acsp", b"".join(struct.pack(">i", round(value * 65536)) for value in D50)
    return bytes(head) + struct.pack(">I", len(tags)) + table + data


def png(path: Path, levels: np.ndarray, before: Mapping[bytes, bytes] = {}, after: Mapping[bytes, bytes] = {}) -> Path:
    """Writes uint8 or uint16 levels (h, w[, channels]) as PNG, with further chunks before and after the pixels."""
    channels = 1 if levels.ndim == 2 else levels.shape[2]
    bits, colour = 8 * levels.dtype.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(f">u{levels.dtype.itemsize}").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *before.items(), (b"IDAT", zlib.compress(rows)), *after.items(), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in chunks))
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tiff(path: Path, levels: np.ndarray, orientation: int = 1, tags: Mapping[int, bytes] = {}) -> Path:
    """Writes uint8, uint16 or float32 levels (h, w[, channels]) as an uncompressed TIFF; a fourth channel is alpha.

    `tags` are further tags of the type UNDEFINED.
    """
    rows, columns = levels.shape[:2]
    channels = 1 if levels.ndim == 2 else levels.shape[2]
    kind = 3 if levels.dtype.kind == "f" else 1
    pixels = levels.astype(levels.dtype.newbyteorder("<")).tobytes()
    short, long, undefined = 3, 4, 7
    entries: list[tuple[int, int, list[int] | bytes]] = [
        (256, long, [columns]),
        (257, long, [rows]),
        (258, short, [8 * levels.dtype.itemsize] * channels),
        (259, short, [1]),
        (262, short, [1 if channels < 3 else 2]),
        (273, long, [8]),
        (274, short, [orientation]),
        (277, short, [channels]),
        (278, long, [rows]),
        (279, long, [len(pixels)]),
        (284, short, [1]),
        *([(338, short, [2])] if channels in (2, 4) else []),
        (339, short, [kind] * channels),
        *((tag, undefined, content) for tag, content in tags.items()),
    ]
    entries.sort(key=lambda entry: entry[0])
    start = 8 + len(pixels) + len(pixels) % 2
    directory, extra = struct.pack("<H", len(entries)), b""
    for tag, code, values in entries:
        packed = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{'HI'[code == long]}", *values)
        where = start + 2 + 12 * len(entries) + 4 + len(extra)
        inline = len(packed) <= 4
        extra += b"" if inline else packed + bytes(len(packed) % 2)
        directory += struct.pack("<HHI", tag, code, len(values)) + (
            packed.ljust(4, b"\0") if inline else struct.pack("<I", where)
        )
    path.write_bytes(
        b"II*\0" + struct.pack("<I", start) + pixels + bytes(len(pixels) % 2) + directory + bytes(4) + extra
    )
    return path


def exr(path: Path, channels: Mapping[str, np.ndarray], chromaticities: Sequence[float] = ()) -> Path:
    """Writes an uncompressed OpenEXR file of half floats; channels that are smaller than the largest are subsampled."""
    height, width = np.max([pixels.shape for pixels in channels.values()], axis=0)
    ordered = [(name, pixels, height // len(pixels)) for name, pixels in sorted(channels.items())]
    layout = b"".join(name.encode() + b"\0" + struct.pack("<iBxxxii", 1, 0, s, s) for name, _, s in ordered) + b"\0"
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    header = struct.pack("<II", 20000630, 2)
    for name, kind, value in (
        ("channels", "chlist", layout),
        ("compression", "compression", b"\0"),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\0"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", bytes(8)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
        *([("chromaticities", "chromaticities", struct.pack("<8f", *chromaticities))] if chromaticities else []),
    ):
        header += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<I", len(value)) + value
    header += b"\0"
    lines = []
    for y in range(height):
        data = b"".join(pixels[y // s].astype("<f2").tobytes() for _, pixels, s in ordered if y % s == 0)
        lines.append(struct.pack("<ii", y, len(data)) + data)
    starts = np.cumsum([len(header) + 8 * height, *map(len, lines[:-1])])
    path.write_bytes(header + starts.astype("<u8").tobytes() + b"".join(lines))
    return path


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def cmyk_profile() -> bytes:
    """A printer's ICC profile, version 2: a table from CMYK to CIELAB with multiplied inks."""
    inks = np.array([[1 - c, 1 - m, 1 - y] for c in (0, 1) for m in (0, 1) for y in (0, 1) for _ in (0, 1)], float)
    inks *= np.tile([[1.0], [0.15]], (8, 1))  # without and with black
    xyz = (0.02 + 0.93 * inks) @ np.array(SRGB) / D50
    f = np.cbrt(xyz)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)
    table = np.round(lab * [2.55, 1, 1] + [0, 128, 128]).clip(0, 255).astype(np.uint8)
    matrix = struct.pack(">9i", *(np.eye(3).ravel() * 65536).astype(int).tolist())
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + table.tobytes() + ramp * 3
    return _profile({b"A2B0": lut, b"A2B1": lut}, device=b"prtr", space=b"CMYK", connection=b"Lab ", name="press")


def gpano(tags: dict, prefix: str = "GPano", elements: bool = False) -> bytes:
    """An XMP packet with GPano tags as attributes or as elements; those that are None are left out."""
    tags = {name: value for name, value in tags.items() if value is not None}
    attributes = "" if elements else " ".join(f'{prefix}:{name}="{value}"' for name, value in tags.items())
    inner = "".join(f"<{prefix}:{n}>{v}</{prefix}:{n}>" for n, v in tags.items()) if elements else ""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:{prefix}="{GPANO}" {attributes}>{inner}</rdf:Description></rdf:RDF>'
        '</x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def exif_block(tag: int, kind: int, value: bytes) -> bytes:
    """An EXIF block with one tag, whose value has at most 4 bytes."""
    count = len(value) // {2: 1, 3: 2, 4: 4}[kind]
    return b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")[:4] + bytes(4)
