"""What people bring: folders of panoramas, and captions as JSON lines or as prompts.txt (the paper's
training data: one caption per panorama or one per face). Whatever cannot be trained on is refused here,
with the reason."""

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, UnidentifiedImageError

from cubediff.geometry import FACES

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".hdr")
MIN_WIDTH = 32  # below this an image is an icon, not a panorama

_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257


class DataError(ValueError):
    """Something about the data that the user has to change; its message is one line and says what."""


@dataclass(frozen=True)
class Entry:
    """A panorama that a captions file names. `file` is relative to the source folder, `scene` the group of
    panoramas that must stay on one side of the train/val split, `metadata` the keys that cubediff does not
    read."""

    file: str
    caption: str
    faces: dict[str, str] | None
    scene: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejection:
    file: str
    reason: str


@dataclass(frozen=True)
class Panorama:
    """A readable panorama as JPEG bytes: those of the file `original`, where they are a file's own. `record`: what was
    done to it."""

    jpeg: bytes
    width: int
    height: int
    original: Path | None
    record: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """Where panoramas come from. Instances are pickled to other processes, and their repr says what they read."""

    def entries(self) -> tuple[list[Entry], list[Rejection]]: ...

    def files(self, entry: Entry) -> list[Path]: ...

    def load(self, entry: Entry, max_width: int, quality: int) -> Panorama: ...


@dataclass(frozen=True)
class PanoramaFolder:
    folder: Path
    captions: Path | None = None

    def entries(self) -> tuple[list[Entry], list[Rejection]]:
        return read_entries(self.folder, self.captions)

    def files(self, entry: Entry) -> list[Path]:
        return [self.folder / entry.file]

    def load(self, entry: Entry, max_width: int, quality: int) -> Panorama:
        with own_limits():
            return load_panorama(self.folder / entry.file, max_width, quality)


def open_source(path: Path, captions: Path | None = None) -> Source:
    return PanoramaFolder(path, captions)


# ---- captions ----------------------------------------------------------------------------------------------


def read_entries(source: Path, captions: Path | None = None) -> tuple[list[Entry], list[Rejection]]:
    """The captioned panoramas of a folder, and what its captions file and its images leave unmatched.

    `captions` is a .txt with one line per panorama in sorted order, or else JSON lines with `file`,
    `caption`, optional `faces` and `asset`; by default captions.jsonl or prompts.txt of the folder. Raises
    DataError where the folder, the captions file or the panoramas are missing altogether.
    """
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: SOURCE is the folder that holds the panoramas")
    paths = (p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    relative = (p.relative_to(source) for p in paths)
    files = sorted(p.as_posix() for p in relative if not any(part.startswith(".") for part in p.parts))
    if not files:
        raise DataError(f"{source} holds no panorama ({', '.join(IMAGE_SUFFIXES)})")
    if captions is None:
        found = [f for f in (source / "captions.jsonl", source / "prompts.txt") if f.is_file()]
        if not found:
            raise DataError(f"{source} has no captions.jsonl and no prompts.txt: name one with --captions FILE")
        captions = found[0]
    if not captions.is_file():
        raise DataError(f"captions file {captions} does not exist")
    try:
        lines = captions.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{captions} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    if captions.suffix.lower() == ".txt":
        return _read_prompts(captions, lines, files)
    return _read_json_lines(source, captions, lines, files)


def _read_prompts(captions: Path, lines: list[str], files: list[str]) -> tuple[list[Entry], list[Rejection]]:
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) != len(files):
        raise DataError(
            f"{captions} has {len(lines)} lines but there are {len(files)} panoramas: give one for each, "
            f"in sorted file order, from {files[0]} to {files[-1]}"
        )
    entries = [Entry(f, line.strip(), None, f) for f, line in zip(files, lines, strict=True) if line.strip()]
    rejected = [Rejection(f, "empty caption") for f, line in zip(files, lines, strict=True) if not line.strip()]
    return entries, rejected


def _read_json_lines(
    source: Path, captions: Path, lines: list[str], files: list[str]
) -> tuple[list[Entry], list[Rejection]]:
    entries: dict[str, Entry] = {}
    rejected: list[Rejection] = []
    named: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{captions.name}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            rejected.append(Rejection(where, f"not a line of JSON: {error}"))
            continue
        if not isinstance(record, dict) or not isinstance(record.get("file"), str) or not record["file"].strip():
            rejected.append(Rejection(where, 'names no panorama: give {"file": NAME, "caption": TEXT}'))
            continue
        path = PurePosixPath(record.pop("file").replace("\\", "/"))
        file = path.as_posix()
        duplicate = file in named
        named.add(file)
        try:
            if path.is_absolute() or ".." in path.parts:
                raise DataError("lies outside SOURCE: give its path relative to that folder")
            if duplicate:
                raise DataError(f"listed twice (again in line {number}): the first entry counts")
            if not (source / path).is_file():
                raise DataError("has a caption but the file is missing")
            entries[file] = _entry(file, record)
        except DataError as error:
            rejected.append(Rejection(file, str(error)))
    rejected += [Rejection(f, f"has no caption in {captions.name}") for f in files if f not in named]
    return [entries[f] for f in sorted(entries)], rejected


def _entry(file: str, record: dict[str, Any]) -> Entry:
    caption, faces, asset = (record.pop(key, None) for key in ("caption", "faces", "asset"))
    if not isinstance(caption, str) or not caption.strip():
        raise DataError("empty caption")
    if faces is not None:
        if not isinstance(faces, dict) or set(faces) != set(FACES):
            raise DataError(f"faces must be a caption for each of {', '.join(FACES)}, or left out")
        if empty := [f for f in FACES if not isinstance(faces[f], str) or not faces[f].strip()]:
            raise DataError(f"empty caption of face {empty[0]}")
        faces = {f: faces[f].strip() for f in FACES}
    if asset is not None and (not isinstance(asset, str) or not asset):
        raise DataError(f"asset must be the scene's name, not {asset!r}")
    return Entry(file, caption.strip(), faces, asset or file, record)


# ---- images ------------------------------------------------------------------------------------------------


@contextmanager
def own_limits() -> Iterator[None]:
    """Pillow refuses large images by its own count of pixels and warns of odd metadata; inside, neither:
    --max-width and the checks below decide. Both settings are the process's own, so this wraps the threads
    that load."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def load_panorama(path: Path, max_width: int = 16384, quality: int = 95) -> Panorama:
    """Checks a panorama and gives it as an RGB JPEG: the file's own bytes where it is a baseline sRGB one,
    else encoded at `quality` without chroma subsampling. Raises DataError with the reason where it cannot
    be used."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{path.suffix or 'a file without suffix'} is not read: use {', '.join(IMAGE_SUFFIXES)}")
    try:
        with path.open("rb") as file:
            _check_size(*_read_size(file, path.suffix.lower()), max_width)
            file.seek(0)
            data = file.read()
        image: Image.Image
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            image = Image.fromarray(tone_map(_decode_wide_range(data)))  # .hdr and floating-point TIFF
        with image:
            return _as_jpeg(image, path, data, max_width, quality)
    except DataError:
        raise
    except Exception as error:  # decoders raise whatever they like; one bad file must not end the whole build
        text = (str(error).splitlines() or [""])[0].replace(str(path), "it") or type(error).__name__
        known = not isinstance(error, UnidentifiedImageError)
        kind = "truncated" if "truncated" in text.lower() else "unreadable"
        raise DataError(f"{kind}: {text}" if known else "unreadable: not an image of a known kind") from error


def _as_jpeg(image: Image.Image, path: Path, data: bytes, max_width: int, quality: int) -> Panorama:
    image.load()
    turned = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
    profile = image.info.get("icc_profile")
    if profile and "srgb" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).lower():
        profile = None
    baseline = image.format == "JPEG" and image.mode == "RGB" and not image.info.get("progressive")
    original = baseline and not turned and not profile
    rgb = image if original else _to_srgb(ImageOps.exif_transpose(image), profile)
    _check_size(*rgb.size, max_width)
    if np.ptp(rgb.getextrema(), axis=1).max() <= 2:  # JPEG of one colour may stray by a level
        raise DataError(f"all one colour {rgb.getpixel((0, 0))}: not a photograph")
    if not original:
        buffer = io.BytesIO()
        rgb.save(buffer, "JPEG", quality=quality, subsampling=0)
        data = buffer.getvalue()
    return Panorama(data, *rgb.size, path if original else None)


def tone_map(radiance: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Linear radiance of a panorama as sRGB: exposure set by the sphere's mean log luminance, then
    Reinhard's curve with the brightest thousandth as white. Raises DataError on NaN, infinity and
    darkness."""
    if not np.isfinite(radiance).all():
        bad = int((~np.isfinite(radiance)).any(-1).sum())
        raise DataError(f"{bad} pixels are NaN or infinite: repair the HDR file")
    radiance = np.maximum(radiance, 0)
    luminance = radiance @ np.array([0.2126, 0.7152, 0.0722], dtype=radiance.dtype)
    if luminance.max() <= 0:
        raise DataError("all one colour (0, 0, 0): not a photograph")
    area = np.cos((0.5 - (np.arange(len(luminance)) + 0.5) / len(luminance)) * np.pi)
    floor = max(0.01 * float(np.median(luminance)), 1e-6 * float(luminance.max()))
    log_mean = np.exp(np.average(np.log(luminance + floor).mean(1), weights=area))
    exposed = float(0.18 / log_mean) * luminance
    white = max(1.0, float(np.quantile(exposed, 0.999)))
    mapped = exposed * (1 + exposed / white**2) / (1 + exposed)
    linear = np.clip(radiance * (mapped / np.maximum(luminance, 1e-12))[..., None], 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(srgb * 255).astype(np.uint8)


def _read_size(file: BinaryIO, suffix: str) -> tuple[int, int]:
    """Width and height from a file's header alone."""
    if suffix == ".hdr":
        for line in iter(lambda: file.readline(256), b""):
            if line.startswith((b"-Y", b"+Y")):
                height, width = line.split()[1::2]
                return int(width), int(height)
        raise SyntaxError("no resolution in its Radiance header")
    try:
        with Image.open(file) as image:
            return image.size
    except UnidentifiedImageError:
        if suffix not in (".tif", ".tiff"):
            raise
    file.seek(0)
    directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
    file.seek(directory.next)
    directory.load(file)
    return int(directory[_TIFF_WIDTH]), int(directory[_TIFF_HEIGHT])


def _check_size(width: int, height: int, max_width: int) -> None:
    if width > max_width or height > max_width:
        raise DataError(f"{width}x{height} is too large: shrink it, or raise --max-width {max_width}")
    if width != 2 * height:
        near = max(1, round(width / 2))
        raise DataError(f"{width}x{height} is not 2:1: a full sphere {width} wide is {near} high; pad or crop it")
    if width < MIN_WIDTH:
        raise DataError(f"{width}x{height} is too small: at least {MIN_WIDTH}x{MIN_WIDTH // 2}")


def _decode_wide_range(data: bytes) -> Float[np.ndarray, "h w 3"]:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None:
        raise DataError("truncated or unreadable: OpenCV cannot decode it")
    if image.dtype != np.float32:
        raise DataError(f"unreadable: {image.dtype} pixels of a kind that Pillow does not know; save it as PNG")
    return image


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip it at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if profile and image.mode in ("RGB", "CMYK", "L"):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert converted is not None  # None only when converting in place
        return converted
    return image.convert("RGB")
