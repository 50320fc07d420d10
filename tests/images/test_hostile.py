"""Files that are not the images they pretend to be start no program, do not block and are not decoded."""

import io
import json
import os
import socket
import stat
import struct
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile
from support.image_files import EPS, chunk, tiff
from support.memory import peak_bytes
from support.pictures import picture
from support.prepare import prepare, rejections, samples

from cubediff.images.panorama_jpeg import load_panorama
from cubediff.images.reading import IMAGE_SUFFIXES, MAX_PHOTO_PIXELS, read_image, read_size
from cubediff.utils.errors import DataError


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_postscript_under_the_name_of_an_image_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    canary, script = tmp_path / "canary", tmp_path / "gs"
    script.write_text(f"#!/bin/sh\ntouch {canary}\nexit 1\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(script))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(EPS)
    for read in (load_panorama, read_image, read_size):
        with pytest.raises(DataError, match="unreadable"):
            read(path)
    assert not canary.exists()
    with pytest.raises(subprocess.CalledProcessError), Image.open(path) as opened:
        opened.load()  # the control: Pillow alone starts it
    assert canary.exists()


@pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "PDF", "BMP", "GIF"])
def test_other_formats_under_the_name_of_an_image_are_refused(tmp_path: Path, kind: str) -> None:
    picture().save(tmp_path / "a.jpg", format=kind)
    with pytest.raises(DataError, match="not an image of a known kind: save it as JPEG or PNG"):
        load_panorama(tmp_path / "a.jpg")


def test_only_radiance_files_reach_the_decoder_of_hdr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PPM file with the resolution line of a Radiance file."""
    monkeypatch.setattr("cv2.imread", lambda *_: pytest.fail("decoded"))
    (tmp_path / "a.hdr").write_bytes(b"P6\n-Y 32 +X 64\n64 32 255\n" + bytes(3 * 64 * 32))
    with pytest.raises(DataError, match="unreadable: not a Radiance file"):
        load_panorama(tmp_path / "a.hdr")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".hdr", ".exr"])
def test_special_files_are_refused_without_waiting(tmp_path: Path, suffix: str) -> None:
    fifo, device, folder = (tmp_path / f"{name}{suffix}" for name in ("fifo", "device", "folder"))
    os.mkfifo(fifo)
    device.symlink_to("/dev/zero")
    folder.mkdir()
    for read in (load_panorama, read_image, read_size):
        with pytest.raises(DataError, match=r"is a FIFO \(named pipe\): expected a regular file"):
            read(fifo)
        with pytest.raises(DataError, match="is a device: expected a regular file"):
            read(device)
        with pytest.raises(DataError, match=r"Is a directory|truncated or unreadable"):
            read(folder)


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("a.jpg")
        with pytest.raises(DataError, match="is a socket: expected a regular file"):
            load_panorama(Path("a.jpg"))


def bomb(suffix: str, width: int, height: int) -> bytes:
    """A file whose header has a size, without the pixels."""
    if suffix == ".png":
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    if suffix == ".hdr":
        return f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n".encode()
    if suffix == ".jpg":
        buffer = io.BytesIO()
        picture().save(buffer, "JPEG")
        size, other = struct.pack(">HH", 32, 64), struct.pack(">HH", height, width)
        return buffer.getvalue().replace(b"\xff\xc0\0\x11\x08" + size, b"\xff\xc0\0\x11\x08" + other)
    entries = [(256, width), (257, height), (258, 8), (262, 1), (273, 8), (277, 1), (278, height), (279, 1)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + bytes(4)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".hdr"])
def test_large_images_are_refused_by_their_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr("cv2.imread", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("decoded"))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(bomb(suffix, 60_000, 30_000))
    with pytest.raises(DataError, match="60000x30000 is too large: shrink it, or raise --max-width 16384"):
        load_panorama(path)
    if suffix != ".hdr":
        with pytest.raises(DataError, match=f"60000x30000 is more than {MAX_PHOTO_PIXELS} pixels"):
            read_image(path)


def test_a_floating_point_tiff_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("decoded"))
    path = tiff(tmp_path / "a.tif", np.ones((32, 64, 3), np.float32))
    with pytest.raises(DataError, match="64x32 is too large"):
        load_panorama(path, max_width=32)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif", ".tif", ".hdr"])
@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.95])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".hdr":
        cv2.imwrite(str(path), (np.asarray(picture()) / 255).astype(np.float32))
    else:
        picture(width=256, height=128).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"truncated|unreadable"):
        load_panorama(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".avif", ".tif"])
def test_damaged_files_raise_no_other_exception(tmp_path: Path, suffix: str) -> None:
    """A few bytes are changed, half of the time among the first ones."""
    path, rng = tmp_path / f"a{suffix}", np.random.default_rng(0)
    picture().save(path)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for number in range(40):
        damaged = content.copy()
        places = rng.integers(len(content) if number % 2 else min(len(content), 200), size=3)
        damaged[places] = rng.integers(256, size=3)
        path.write_bytes(damaged.tobytes())
        for read in (load_panorama, read_image):
            try:
                read(path)
            except DataError:
                refused += 1
    assert refused


@pytest.mark.slow
def test_hundreds_of_hostile_images_reach_nothing(tmp_path: Path) -> None:
    """PostScript, sizes without pixels, bits changed at random, and images of other formats under every suffix.

    Each is built or rejected; no program is started, nothing is written outside of OUTPUT, and memory is bounded.
    """
    source, programs, canary = tmp_path / "in", tmp_path / "programs", tmp_path / "canary"
    source.mkdir()
    programs.mkdir()
    for name in ("gs", "convert", "djpeg", "cjpeg", "ffmpeg", "sh"):
        (programs / name).write_text(f"#!/bin/bash\necho {name} >> {canary}\nexit 1\n")
        (programs / name).chmod(0o755)
    rng = np.random.default_rng(0)
    picture(9).save(source / "good.jpg")
    for number, suffix in enumerate(IMAGE_SUFFIXES):
        (source / f"eps{number}{suffix}").write_bytes(EPS)
        (source / f"both{number}{suffix}").write_bytes((source / "good.jpg").read_bytes()[:100] + EPS)
        for kind in ("ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "PDF", "BMP", "GIF", "EPS", "ICNS"):
            picture().save(source / f"{kind}{number}{suffix}", kind)
        if suffix in (".png", ".jpg", ".tif", ".hdr"):
            for width, height in ((60_000, 30_000), (65_000, 32_500), (16_384, 8192)):
                (source / f"bomb{width}{suffix}").write_bytes(bomb(suffix, width, height))
        if suffix not in (".hdr", ".exr"):
            picture().save(source / f"whole{number}{suffix}")
            content = np.frombuffer((source / f"whole{number}{suffix}").read_bytes(), np.uint8)
            for copy in range(50):
                damaged = content.copy()
                damaged[rng.integers(len(content), size=4)] = rng.integers(256, size=4)
                (source / f"damaged{number}-{copy}{suffix}").write_bytes(damaged.tobytes())
    files = sorted(path.name for path in source.iterdir())
    assert len(files) > 450
    (source / "captions.jsonl").write_text("".join(json.dumps({"file": f, "caption": "c"}) + "\n" for f in files))
    peak = tmp_path / "peak"
    peak.touch()
    before = set(tmp_path.iterdir())
    path = f"{programs}:{os.environ['PATH']}"
    done = prepare(source, tmp_path / "out", env=os.environ | {"PATH": path}, peak=peak)
    assert done.returncode == 0, done.stderr[-2000:]
    built = [record["file"] for record, _ in samples(tmp_path / "out")]
    refused = [line["file"] for line in rejections(tmp_path / "out")]
    assert sorted(built + refused) == files
    assert "good.jpg" in built
    assert not any(file.startswith(("eps", "both", "bomb6")) for file in built)
    assert set(tmp_path.iterdir()) == {*before, tmp_path / "out"}
    assert peak_bytes(peak) < 4 << 30
