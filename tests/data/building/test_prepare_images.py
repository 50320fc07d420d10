"""What data/README.md promises of the images that `cubediff prepare` reads, as commands in processes of their own."""

import json
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.builds import panoramas
from support.image_files import EPS, PARTIAL_SPHERE, SRGB, exif_block, exr, gpano, icc, png
from support.pictures import picture, shown
from support.prepare import prepare, rejections, samples
from support.promises import promised

from cubediff.data.building.write import build_shards
from cubediff.utils.errors import DataError


def test_images_are_read_by_the_rules_of_the_table(tmp_path: Path) -> None:
    promised("data/README.md", "converted to sRGB by the profile's transform, not its name; 16-bit images in 16 bits")
    promised("data/README.md", "ignored, with a note in the sample's JSON under `record.notes`")
    promised(
        "data/README.md",
        "GPano tags of a part of a sphere or another projection, or that contradict each other | rejected",
    )
    promised("data/README.md", "black; white, without an effect on the exposure")
    source, srgb = tmp_path / "in", np.asarray(picture(3, 128, 64))
    source.mkdir()
    linear = np.where(srgb <= 0.04045 * 255, srgb / 255 / 12.92, ((srgb / 255 + 0.055) / 1.055) ** 2.4)
    chunk = {b"iCCP": b"x\0\0" + zlib.compress(icc(SRGB, 1.0, "sRGB in name only"))}
    png(source / "linear.png", np.round(linear * 65535).astype(np.uint16), chunk)
    promised("data/README.md", "gamma and primaries of a PNG without ICC profile (gAMA, cHRM) | converted to sRGB")
    png(source / "gamma.png", np.round(linear * 65535).astype(np.uint16), {b"gAMA": struct.pack(">I", 100_000)})
    Image.fromarray(srgb).save(source / "turned.png", exif=exif_block(0x0112, 3, struct.pack("<H", 3)))
    Image.fromarray(srgb).save(source / "damaged.png", icc_profile=bytes(200), exif=b"Exif\0\0nothing")
    picture(4, 128, 64).save(source / "part.jpg", xmp=gpano(PARTIAL_SPHERE))
    for name, hot in (("plain.hdr", 1), ("hot.hdr", 1e8)):
        radiance = linear.astype(np.float32)
        radiance[5, 7:9] = hot
        cv2.imwrite(str(source / name), radiance)
    promised(
        "data/README.md", "OpenEXR luminance and chroma, chromaticities | converted to RGB with the primaries of sRGB"
    )
    radiance = 0.1 + linear
    luminance = radiance @ (0.2126, 0.7152, 0.0722)
    chroma = {name: radiance[..., i] / luminance - 1 for name, i in (("RY", 0), ("BY", 2))}
    exr(source / "colours.exr", {name: radiance[..., i] for i, name in enumerate("RGB")})
    exr(source / "chroma.exr", {"Y": luminance} | {name: values[::2, ::2] for name, values in chroma.items()})
    promised("data/README.md", "alpha | dropped if fully opaque, else rejected: part of the sphere is missing")
    Image.fromarray(np.dstack([srgb, np.full((64, 128), 200, np.uint8)])).save(source / "clear.png")
    for path in list(source.iterdir()):
        path.with_suffix(".txt").write_text("a cloud")
    assert prepare(source, tmp_path / "out").returncode == 0
    built = {record["file"]: (record, shown(jpeg)) for record, jpeg in samples(tmp_path / "out")}
    assert np.abs(built["linear.png"][1] - srgb).mean() < 3
    assert np.abs(built["gamma.png"][1] - srgb).mean() < 3
    assert np.abs(built["turned.png"][1] - srgb[::-1, ::-1]).mean() < 3
    assert np.abs(built["damaged.png"][1] - srgb).mean() < 3
    assert len(built["damaged.png"][0]["record"]["notes"]) == 2
    assert np.abs(built["hot.hdr"][1] - built["plain.hdr"][1]).mean() < 5
    assert np.abs(built["chroma.exr"][1] - built["colours.exr"][1]).mean() < 3
    reasons = {line["file"]: line["reason"] for line in rejections(tmp_path / "out")}
    assert reasons.keys() == {"part.jpg", "clear.png"}
    assert "its GPano tags say 64x32 pixels at (64, 32) of a sphere of 192x96" in reasons["part.jpg"]
    assert "100.00% of its pixels are transparent" in reasons["clear.png"]


def test_files_that_are_not_images_are_rejected_without_a_program_or_a_wait(tmp_path: Path) -> None:
    promised(
        "data/README.md",
        "Other formats under such a name, FIFOs, sockets and devices are rejected, and no program is started.",
    )
    source, programs = panoramas(tmp_path / "in", 2), tmp_path / "programs"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'canary'}\n")
    (programs / "gs").chmod(0o755)
    names = ("eps.jpg", "bitmap.png", "fifo.jpg", "device.png", "folder.jpg")
    with (source / "captions.jsonl").open("a") as file:
        file.writelines(json.dumps({"file": name, "caption": "c"}) + "\n" for name in names[:2])
    (source / "eps.jpg").write_bytes(EPS)
    picture().save(source / "bitmap.png", "BMP")
    os.mkfifo(source / "fifo.jpg")
    (source / "device.png").symlink_to("/dev/zero")
    (source / "folder.jpg").mkdir()
    done = prepare(source, tmp_path / "out", env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"})
    assert done.returncode == 0
    assert sorted({line["file"] for line in rejections(tmp_path / "out")}) == sorted(names)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("width", [0, 31, 32769])
def test_a_limit_of_the_width_that_training_could_not_read_is_refused(tmp_path: Path, width: int) -> None:
    with pytest.raises(DataError, match=f"--max-width {width}: expected 32 to 32768 pixels"):
        build_shards(panoramas(tmp_path / "in", 1), tmp_path / "out", max_width=width)
