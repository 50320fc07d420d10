"""Detection of source types, existing shards and dataset folders, and a folder with every kind of invalid file."""

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest
from PIL import Image
from support.pictures import SAMPLES, picture, shown

from cubediff.data.building.selecting import select_entries
from cubediff.data.building.write import build_shards
from cubediff.data.sources import KINDS, Entry, Source, open_source
from cubediff.data.sources.cubemaps import Cubemaps
from cubediff.data.sources.equirect import EquirectFolder
from cubediff.data.sources.imagefolder import ImageFolder
from cubediff.data.sources.webdataset import Shards
from cubediff.geometry import FACES
from cubediff.utils.errors import DataError

FACE_CAPTIONS = {face: f"the {face}" for face in FACES}


def jpeg(seed: int = 0, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


# ---- detection of the type ---------------------------------------------------------------------------------


def test_the_type_of_a_source_is_detected_from_its_files(tmp_path: Path) -> None:
    put(tmp_path / "folder" / "front.jpg", jpeg())  # one name that ends like a face makes no cubemap
    put(tmp_path / "folder" / "photo.jpg", jpeg())
    for face in ("px", "nx", "py", "ny", "pz", "nz"):
        put(tmp_path / "cubes" / "a" / f"{face}.png", b"")
    Image.new("RGB", (256, 192)).save(tmp_path / "cross.png")
    put(tmp_path / "crosses" / "a.png", (tmp_path / "cross.png").read_bytes())
    put(tmp_path / "hub" / "train" / "metadata.jsonl", "")
    put(tmp_path / "hub" / "train" / "a.jpg", jpeg())
    tar(tmp_path / "shards" / "a.tar", {})
    for name, kind in {
        "folder": EquirectFolder,
        "cubes": Cubemaps,
        "crosses": Cubemaps,
        "hub": ImageFolder,
        "shards": Shards,
        "shards/a.tar": Shards,
    }.items():
        source = open_source(tmp_path / name)
        assert type(source) is kind
        assert isinstance(source, Source)
        assert pickle.loads(pickle.dumps(source)) == source


def test_an_ambiguous_folder_is_an_error_that_asks_for_source(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", jpeg())
    put(tmp_path / "captions.jsonl", "")
    tar(tmp_path / "b.tar", {})
    with pytest.raises(
        DataError, match=r"shards \(\.tar\) and other images: choose with --source webdataset or equirect"
    ):
        open_source(tmp_path)
    (tmp_path / "b.tar").unlink()
    put(tmp_path / "metadata.jsonl", "")
    with pytest.raises(DataError, match="--source imagefolder or equirect"):
        open_source(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    for face in ("px", "nx", "py", "ny", "pz", "nz"):
        put(tmp_path / f"{face}.png", b"")
    with pytest.raises(
        DataError, match="the faces of cubemaps and other images: choose with --source cubemaps or equirect"
    ):
        open_source(tmp_path)
    assert type(open_source(tmp_path, kind="equirect")) is EquirectFolder
    assert type(open_source(tmp_path, kind="unity")) is Cubemaps


def test_empty_folders_and_unknown_types_are_errors(tmp_path: Path) -> None:
    put(tmp_path / "notes.txt", "")
    put(tmp_path / ".hidden" / "a.jpg", jpeg())
    with pytest.raises(DataError, match=r"holds no panorama \(\.jpg, .*and no shard"):
        open_source(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        open_source(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="--source sphere is unknown: use one of equirect, cubemaps"):
        open_source(tmp_path, kind="sphere")
    with pytest.raises(DataError, match="contains its captions: omit --captions"):
        open_source(tmp_path, tmp_path / "notes.txt", "imagefolder")
    for kind in KINDS:
        with pytest.raises(DataError, match="holds no"):
            open_source(tmp_path, kind=kind, captioned=False).entries()


# ---- existing shards ---------------------------------------------------------------------------------------


def test_shards_of_this_project_can_be_built_again(tmp_path: Path) -> None:
    build_shards(SAMPLES, tmp_path / "first", val_fraction=0.2, shard_size=4)
    build_shards(tmp_path / "first", tmp_path / "second", val_fraction=0.2, shard_size=8)
    records = {r["caption"]: r for r in map(json.loads, (SAMPLES / "captions.jsonl").read_text("utf-8").splitlines())}
    source = open_source(tmp_path / "second")
    entries, rejected = source.entries()
    assert rejected == []
    assert len(entries) == len(records)
    for entry in entries:
        record = records[entry.caption]
        original = (SAMPLES / record["file"]).read_bytes()
        assert source.load(entry).jpeg == original
        assert source.load(entry).original is None  # its bytes are part of a tar
        assert (entry.faces, entry.scene) == (record["faces"], record["asset"])
        assert entry.metadata == {k: v for k, v in record.items() if k not in ("file", "caption", "faces", "asset")}
        assert source.files(entry)[0].suffix == ".tar"


def test_shards_of_other_projects_are_read(tmp_path: Path) -> None:
    caption = json.dumps({"text": "from json", "url": "http://x", "scene": "s"}).encode()
    png = io.BytesIO()
    picture(1).save(png, "PNG")
    tar(
        tmp_path / "sub" / "000.tar",
        {
            "./a.jpg": jpeg(0),
            "./a.txt": b"from text",
            "./b.PNG": png.getvalue(),
            "./b.json": caption,
            "dir.v1/c.seg.png": b"no image",
            "dir.v1/c.jpeg": jpeg(2),
            "dir.v1/c.txt": "草原".encode(),
            "none.json": caption,
            "silent.jpg": jpeg(3),
            "bad.jpg": b"no image",
            "bad.txt": b"a caption",
            "latin.jpg": jpeg(4),
            "latin.txt": b"caf\xe9",
            "list.jpg": jpeg(4),
            "list.json": b"[]",
        },
    )
    put(tmp_path / "cut.tar", (tmp_path / "sub" / "000.tar").read_bytes()[:2000])
    put(tmp_path / "zip.tar", b"PK\x03\x04" * 400)
    source = open_source(tmp_path)
    entries, rejected = source.entries()
    assert entries[:3] == [
        Entry("sub/000.tar/./a.jpg", "from text", None, "sub/000.tar/./a.jpg"),
        Entry("sub/000.tar/./b.png", "from json", None, "s", {"url": "http://x"}),
        Entry("sub/000.tar/dir.v1/c.jpeg", "草原", None, "sub/000.tar/dir.v1/c.jpeg"),
    ]
    for seed, entry in enumerate(entries[:3]):
        image = shown(source.load(entry).jpeg)
        assert np.abs(image - np.asarray(picture(seed), np.float64)).mean() < 6
    with pytest.raises(DataError, match="not an image of a known kind"):
        source.load(entries[3])
    reasons = {r.file: r.reason for r in rejected}
    for name, words in {
        "sub/000.tar/none": "a sample without image",
        "sub/000.tar/silent.jpg": "empty caption",
        "sub/000.tar/latin.jpg": "its .txt is not UTF-8",
        "sub/000.tar/list.jpg": "its .json is not JSON: expected an object",
        "cut.tar": "truncated or not an uncompressed tar: truncated: the shard ends early",
        "cut.tar/./a.jpg": "empty caption",
        "zip.tar": "truncated or not an uncompressed tar",
    }.items():
        assert words in reasons.pop(name), name
    assert reasons == {}
    listed, _ = open_source(tmp_path, captioned=False).entries()
    assert "sub/000.tar/silent.jpg" in {e.file for e in listed if not e.caption}


# ---- dataset folders ---------------------------------------------------------------------------------------


def test_a_dataset_folder_is_read_as_the_datasets_library_does(tmp_path: Path) -> None:
    for name in ("train/a.jpg", "train/deep/b.jpg", "test/c.jpg", "test/d.jpg", "e.jpg"):
        put(tmp_path / name, jpeg())
    lines = [
        {"file_name": "a.jpg", "text": "a", "faces": FACE_CAPTIONS, "asset": "s", "year": 2020},
        {"file_name": "deep/b.jpg", "caption": "b", "text": "kept"},
        {"file_name": "../e.jpg", "text": "e"},
        {"file_name": "gone.jpg", "text": "e"},
        {"file": "a.jpg", "text": "e"},
    ]
    put(tmp_path / "train" / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    put(tmp_path / "test" / "metadata.jsonl", json.dumps({"file_name": "c.jpg", "text": "c"}) + "\n")
    source = open_source(tmp_path)
    entries, rejected = source.entries()
    assert entries == [
        Entry("test/c.jpg", "c", None, "test/c.jpg", split="test"),
        Entry("train/a.jpg", "a", FACE_CAPTIONS, "s", {"year": 2020}, "train"),
        Entry("train/deep/b.jpg", "b", None, "train/deep/b.jpg", {"text": "kept"}, "train"),
    ]
    selected, left_out = select_entries(source, None)
    assert [entry.split for entry in selected] == ["val", "train", "train"]  # no validation split is declared
    assert left_out == rejected
    assert source.load(entries[0]).original == tmp_path / "test" / "c.jpg" == source.files(entries[0])[0]
    reasons = {r.file: r.reason for r in rejected}
    for name, words in {
        "train/../e.jpg": "outside SOURCE",
        "train/gone.jpg": "missing",
        "train/metadata.jsonl:5": 'names no panorama: expected {"file_name": NAME',
        "test/d.jpg": "has no caption in test/metadata.jsonl",
        "e.jpg": "is in no folder with metadata.jsonl",
    }.items():
        assert words in reasons.pop(name), name
    assert reasons == {}


# ---- invalid files -----------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT"


def save(path: Path, image: Image.Image, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def nasty(source: Path) -> tuple[set[str], dict[str, str]]:
    """A folder of valid and invalid panoramas and captions: the accepted ones, and the reasons for the others."""
    exif = Image.Exif()
    exif[0x0112] = 6
    radiance = np.random.default_rng(0).random((32, 64, 3), np.float32)
    broken = radiance.copy()
    broken[3, 4] = np.nan
    good = {
        "plain.jpg": {},
        "cmyk.jpg": {"mode": "CMYK"},
        "grey.jpg": {"mode": "L"},
        "grey.png": {"mode": "L"},
        "progressive.jpg": {"progressive": True},
        "palette.png": {"mode": "P"},
        "opaque.png": {"mode": "RGBA"},
        "alpha.webp": {"mode": "RGBA", "lossless": True},
        "two bits.tif": {"mode": "LA"},
        "草原/山 🏔.jpg": {},
        "new\nline\t.jpg": {},
        "-rf *;$(x)`y`'\".jpg": {},
        "dots...and.more.jpg": {},
        "JPEG.JPG": {},
        "<img src=x onerror=alert(1)>.png": {},
    }
    for name, options in good.items():
        options = dict(options)
        mode = options.pop("mode", "RGB")
        save(source / name, picture().quantize(256) if mode == "P" else picture().convert(mode), **options)
    Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257).save(source / "sixteen grey.png")
    cv2.imwrite(str(source / "sixteen.png"), np.asarray(picture())[..., ::-1].astype(np.uint16) * 257)
    save(source / "turned.jpg", picture().rotate(90, expand=True), exif=exif)
    cv2.imwrite(str(source / "sky.hdr"), radiance)
    cv2.imwrite(str(source / "float.tif"), radiance)
    OpenEXR.File({"type": OpenEXR.scanlineimage}, {"RGB": radiance}).write(str(source / "sky.exr"))
    put(source / "png in a jpg.jpg", (source / "opaque.png").read_bytes())
    put(source / "duplicate.jpg", (source / "plain.jpg").read_bytes())
    accepted = {*good, "sixteen grey.png", "sixteen.png", "turned.jpg", "sky.hdr", "float.tif", "sky.exr"}
    accepted |= {"png in a jpg.jpg", "duplicate.jpg", "markup.jpg"}
    save(source / "markup.jpg", picture())

    save(source / "wide.png", picture(0, 100, 40))
    save(source / "turned away.jpg", picture(), exif=exif)
    save(source / "pixel.png", Image.new("RGB", (1, 1)))
    save(source / "icon.png", picture(0, 16, 8))
    save(source / "black.png", Image.new("RGB", (64, 32)))
    save(source / "hole.png", picture().convert("RGBA").rotate(30))
    for name in ("frames.png", "frames.webp", "pages.tif"):
        save(source / name, picture(0), save_all=True, append_images=[picture(1), picture(2)])
    save(source / "frames.gif", picture(0), save_all=True, append_images=[picture(1)])
    put(source / "gif in a jpg.jpg", (source / "frames.gif").read_bytes())
    put(source / "empty.jpg", b"")
    put(source / "text.jpg", "no image")
    put(source / "cut.jpg", (source / "plain.jpg").read_bytes()[:500])
    put(source / "cut.png", (source / "opaque.png").read_bytes()[:500])
    put(source / "cut.webp", (source / "alpha.webp").read_bytes()[:300])
    put(source / "cut.hdr", (source / "sky.hdr").read_bytes()[:700])
    put(source / "cut.exr", (source / "sky.exr").read_bytes()[:700])
    put(source / "bomb.png", png_header(30000, 15000))
    put(source / "bomb.hdr", "#?RADIANCE\n\n-Y 15000 +X 30000\n")
    put(source / "negative.hdr", "#?RADIANCE\n\n-Y -32 +X -64\n")
    put(source / "letters.hdr", "#?RADIANCE\n\n-Y many +X more\n")
    put(source / "program.jpg", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 32\n(%stdout) (w) file\n")
    cv2.imwrite(str(source / "nan.tif"), broken)
    cv2.imwrite(str(source / "bits.tif"), (1e6 * radiance[..., 0]).astype(np.int32))
    (source / "folder.jpg").mkdir()
    (source / "dangling.jpg").symlink_to(source / "nowhere.jpg")
    put(Path(os.fsdecode(os.fsencode(source) + b"/latin\xe9.jpg")), jpeg())
    refused = {
        "wide.png": "100x40 is not 2:1",
        "turned away.jpg": "32x64 is not 2:1",
        "pixel.png": "1x1 is not 2:1",
        "icon.png": "16x8 is too small",
        "black.png": "all one colour (0, 0, 0)",
        "hole.png": "of its pixels are transparent",
        "frames.png": "3 frames",
        "frames.webp": "3 frames",
        "pages.tif": "3 frames",
        "frames.gif": ".gif is not supported",
        "gif in a jpg.jpg": "not an image of a known kind",
        "empty.jpg": "unreadable: the file is empty",
        "text.jpg": "not an image of a known kind",
        "cut.jpg": "truncated",
        "cut.png": "truncated",
        "cut.webp": "unreadable",
        "cut.hdr": "truncated",
        "cut.exr": "truncated",
        "bomb.png": "30000x15000 is too large",
        "bomb.hdr": "30000x15000 is too large",
        "negative.hdr": "-64x-32 is too small",
        "letters.hdr": "unreadable",
        "program.jpg": "not an image of a known kind",
        "nan.tif": "1 pixels are NaN",
        "bits.tif": "32-bit integer pixels",
        "latin\\xe9.jpg": "its name is not UTF-8",
        "dangling.jpg": "missing",
        "folder.jpg": "an empty folder",
        "../../escape.jpg": "outside SOURCE",
        "/tmp/escape.jpg": "outside SOURCE",
        "silent.jpg": "empty caption",
        "control.jpg": "empty caption",
        "forgotten.jpg": "has no caption",
    }
    for name in ("silent.jpg", "control.jpg", "forgotten.jpg"):
        save(source / name, picture())
    captions = {name: "a caption" for name in [*accepted, *refused] if name not in ("forgotten.jpg", "latin\\xe9.jpg")}
    captions |= {"markup.jpg": "<script>x</script>\x00\x1b[2J&\u2028 {{7*7}}", "silent.jpg": " ", "control.jpg": "\x01"}
    lines = [json.dumps({"file": name, "caption": caption}) for name, caption in captions.items()]
    put(source / "captions.jsonl", "\n".join([*lines, json.dumps({"file": "plain.jpg", "caption": "again"})]))
    return accepted, refused


def test_every_invalid_file_is_rejected_with_its_reason(tmp_path: Path) -> None:
    """Valid panoramas are in the shards, others in rejected.jsonl with the reason, and nothing is written elsewhere."""
    source = tmp_path / "outer" / "in"
    accepted, refused = nasty(source)
    assert len(accepted) + len(refused) > 55
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    build_shards(source, tmp_path / "out", val_fraction=0.0, workers=1)
    after = {
        path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*") if tmp_path / "out" not in [path, *path.parents]
    }
    assert after == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "duplicates.jsonl",
        "index.jsonl",
        "manifest.json",
        "rejected.jsonl",
        "report.html",
        "train-000000.tar",
    ]
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as shard:
        names = shard.getnames()
        stored = {m.name: shard.extractfile(m).read() for m in shard}
    assert all("/" not in name and ".." not in name for name in names)
    records = {
        r["file"]: (key, r) for key, r in ((n[:-5], json.loads(stored[n])) for n in names if n.endswith(".json"))
    }
    assert set(records) == accepted
    colour, grey = np.asarray(picture(), np.float64), np.asarray(picture().convert("L").convert("RGB"), np.float64)
    for name, (key, record) in records.items():
        image = shown(stored[f"{key}.jpg"])
        assert image.shape == (32, 64, 3) == (record["height"], record["width"], 3)
        if not name.startswith(("sky", "float")):
            expected = grey if name.startswith(("grey", "two bits", "sixteen grey")) else colour
            assert np.abs(image - expected).mean() < 9, name
    assert records["markup.jpg"][1]["caption"] == "<script>x</script>[2J&\u2028 {{7*7}}"
    reasons = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text("utf-8").splitlines()]
    assert sorted(r["file"] for r in reasons) == sorted([*refused, "plain.jpg"])
    for reason in reasons:
        words = refused.get(reason["file"], "listed twice")
        assert words in reason["reason"], reason
        assert reason["reason"].strip()
        assert str(tmp_path) not in reason["reason"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".hdr", ".exr"])
def test_damaged_files_are_read_or_rejected_and_raise_nothing_else(tmp_path: Path, suffix: str) -> None:
    radiance = np.asarray(picture(), np.float32) / 99
    file = tmp_path / f"a{suffix}"
    if suffix == ".exr":
        OpenEXR.File({"type": OpenEXR.scanlineimage}, {"RGB": radiance}).write(str(file))
    elif suffix == ".hdr":
        cv2.imwrite(str(file), radiance)
    else:
        picture().save(file)
    whole = file.read_bytes()
    draw = random.Random(0)
    source = EquirectFolder(tmp_path)
    entry = Entry(file.name, "c", None, "s")
    reasons = []
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 3, 30))):
            data[draw.randrange(min(len(data), draw.choice((64, 400, 10**6))))] = draw.randrange(256)
        file.write_bytes(data[: draw.choice((len(data), len(data), draw.randrange(len(data))))])
        try:
            panorama = source.load(entry)
        except DataError as error:
            reasons.append(str(error))
        else:
            assert shown(panorama.jpeg).shape == (panorama.height, panorama.width, 3)
    assert len(reasons) > 10
    assert all(reason and "\n" not in reason and "Type-check" not in reason for reason in reasons)
