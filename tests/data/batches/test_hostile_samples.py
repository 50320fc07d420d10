"""Samples whose record or image is not what it should be are skipped and counted; all others arrive."""

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.panoramas import data, keys, shards

from cubediff.data.batches import decoding
from cubediff.data.format.index import MAX_SAMPLE, index_tar, read_sample
from cubediff.data.latent_cache.format import CachedPanorama, pack_sample
from cubediff.data.latent_cache.reading import LatentDecoder
from cubediff.geometry import FACES
from cubediff.images import jpeg as jpeg_files

Members = dict[str, bytes]


def rewrite(shard: Path, number: int, change: Callable[[Members], Members]) -> None:
    """Changes the members of a sample of a tar, whose names end in their suffixes."""
    with tarfile.open(shard) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    samples = sorted({name.partition(".")[0] for name, _ in members})
    with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as tar:
        for key in samples:
            own = {name.partition(".")[2]: content for name, content in members if name.partition(".")[0] == key}
            for suffix, content in (change(own) if key == samples[number] else own).items():
                info = tarfile.TarInfo(suffix if "/" in suffix else f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def record(**changes: Any) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        return members | {"json": json.dumps(json.loads(members["json"]) | changes).encode()}

    return change


def raw(content: bytes) -> Callable[[Members], Members]:
    return lambda members: members | {"json": content}


def jpeg(content: bytes) -> Callable[[Members], Members]:
    return lambda members: record(crc32=zlib.crc32(content))(members) | {"jpg": content}


def encoded(format: str, size: tuple[int, int] = (64, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, format)
    return buffer.getvalue()


def enlarged(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    content = bytearray(encoded("JPEG"))
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(content)


CAPTIONS: list[Any] = [3, 1.5, True, None, ["a"], {"a": "b"}, "\ud800", "a\udfffb", "x" * 100_000]
HOSTILE = {
    **{f"caption {ascii(value)[:20]}": record(caption=value) for value in CAPTIONS},
    **{f"faces {ascii(value)[:20]}": record(faces=value) for value in (3, "abc", ["a"] * 6, {}, {"front": "a"})},
    **{f"front {ascii(v)[:20]}": record(faces=dict.fromkeys(FACES, "a") | {"front": v}) for v in CAPTIONS},
    "json of a number": raw(b"3"),
    "json null": raw(b"null"),
    "json list": raw(b"[]"),
    "json broken": raw(b"{"),
    "json nested": raw(b'{"a":' * 100_000),
    "json huge": raw(b'{"caption": "' + b"x" * (5 << 20) + b'"}'),
    "crc32 text": record(crc32="1"),
    "png": jpeg(encoded("PNG")),
    "gif": jpeg(encoded("GIF")),
    "tiff": jpeg(encoded("TIFF")),
    "square": jpeg(encoded("JPEG", (32, 32))),
    "enlarged": jpeg(enlarged(65000, 32500)),
    "no jpg": lambda members: {"json": members["json"]},
    "outside": lambda members: {"../../x.jpg": members["jpg"], "../../x.json": members["json"]},
    "absolute": lambda members: {"/tmp/x.jpg": members["jpg"], "/tmp/x.json": members["json"]},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_sample_is_skipped_and_counted(kind: str, tmp_path: Path) -> None:
    shard = shards(tmp_path, 4) / "train-000000.tar"
    rewrite(shard, 1, HOSTILE[kind])
    assert len(index_tar(shard).keys) == 4
    module = data(shard, batch_size=1, max_skipped_share=1.0)
    seen = keys(module.train_dataloader())
    assert {"000", "002", "003"} == {*seen}
    assert module.skipped == 1
    assert data(shard, batch_size=1, max_skipped_share=1.0).samples("train") == 4


def test_the_same_shards_without_a_hostile_sample_lose_nothing(tmp_path: Path) -> None:
    shard = shards(tmp_path, 4, faces=True) / "train-000000.tar"
    rewrite(shard, 1, record(caption="größer 永 🌍", faces=dict.fromkeys(FACES, "")))
    module = data(shard, batch_size=1)
    assert sorted(keys(module.train_dataloader())) == ["000", "001", "002", "003"]
    assert module.skipped == 0


def test_pixels_are_bounded_by_the_header_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_files, "MAX_PIXELS", 64 * 32 - 1)
    monkeypatch.setattr(jpeg_files.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="64x32 pixels, more than 2047"):
        decoding.decode_image(encoded("JPEG"))


# ---- tars -----------------------------------------------------------------------------------------------------


def sparse_member(size: int) -> bytes:
    """A tar of a few kilobytes, whose only image is `size` bytes of zeros."""
    info = tarfile.TarInfo("a.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386 : 386 + 24] = b"%011o\0%011o\0" % (0, 0)
    header[483 : 483 + 12] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def test_a_sparse_member_is_not_expanded(tmp_path: Path) -> None:
    """With the check off, tarfile returns the zeros."""
    content = sparse_member(1 << 24)
    shard = tmp_path / "a.tar"
    shard.write_bytes(content)
    with shard.open("rb") as file:
        with pytest.raises(tarfile.ReadError, match=r"a\.jpg' is sparse"):
            read_sample(file.fileno(), 0, 512)
        with pytest.MonkeyPatch.context() as without_check:
            without_check.setattr("cubediff.data.format.index.check_member", lambda member: None)
            assert len(read_sample(file.fileno(), 0, 512)["jpg"]) == 1 << 24


def test_a_header_that_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 33)
    with pytest.raises(tarfile.ReadError, match="a header of 4294967296 bytes"):
        index_tar(tmp_path / "a.tar")


def test_a_sample_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("w+b") as file:
        file.truncate(1 << 40)
        with pytest.raises(tarfile.ReadError, match="the sample takes"):
            read_sample(file.fileno(), 0, MAX_SAMPLE + 1)


# ---- latents --------------------------------------------------------------------------------------------------


def sample(**changes: Any) -> dict[str, Any]:
    """A cached panorama of two rotations and three captions, with other values."""
    panorama = CachedPanorama(
        yaws=[0.0, 90.0],
        latents=torch.zeros(2, 6, 4, 8, 8),
        text={"text": torch.zeros(3, 7, 32)},
        captions=torch.zeros(2, 6, dtype=torch.int64),
        texts=["a", "b", "c"],
    )
    return {"__key__": "a", **pack_sample("a", panorama._replace(**changes))}


def with_yaws(yaws: Any) -> dict[str, Any]:
    members = sample()
    return members | {"json": json.dumps(json.loads(members["json"]) | {"yaws": yaws})}


HOSTILE_LATENTS = {
    "height": sample(latents=torch.zeros(2, 6, 4, 8, 4)),
    "channels": sample(latents=torch.zeros(2, 6, 3, 8, 8)),
    "five faces": sample(latents=torch.zeros(2, 5, 4, 8, 8)),
    "one rotation": sample(latents=torch.zeros(1, 6, 4, 8, 8)),
    "one dimension": sample(latents=torch.zeros(5)),
    "no dimension": sample(latents=torch.zeros(())),
    "integers": sample(latents=torch.zeros(2, 6, 4, 8, 8, dtype=torch.int64)),
    "nan": sample(latents=torch.full((2, 6, 4, 8, 8), torch.nan)),
    "text width": sample(text={"text": torch.zeros(3, 7, 16)}),
    "text name": sample(text={"other": torch.zeros(3, 7, 32)}),
    "no text": sample(text={}),
    "text integers": sample(text={"text": torch.zeros(3, 7, 32, dtype=torch.int32)}),
    "text infinite": sample(text={"text": torch.full((3, 7, 32), torch.inf)}),
    "text scalar": sample(text={"text": torch.zeros(())}),
    "captions shape": sample(captions=torch.zeros(2, 5, dtype=torch.int64)),
    "captions floats": sample(captions=torch.zeros(2, 6)),
    "captions above": sample(captions=torch.full((2, 6), 3)),
    "captions below": sample(captions=torch.full((2, 6), -1)),
    "yaws text": with_yaws("ab"),
    "yaws texts": with_yaws(["a", "b"]),
    "yaws none": with_yaws(None),
    "yaws too many": with_yaws([0, 1, 2]),
    "yaws empty": with_yaws([]),
    "yaws nan": with_yaws([float("nan"), 0]),
    "yaws bool": with_yaws([True, False]),
    "damaged": sample() | {"safetensors": b"\xff" * 100},
}


@pytest.mark.parametrize("kind", HOSTILE_LATENTS)
@pytest.mark.parametrize("shapes", [{"latents": [6, 4, 8, 8], "text": [7, 32]}, None], ids=["manifest", "first sample"])
def test_latents_of_another_type_or_shape_are_refused(kind: str, shapes: dict[str, list[int]] | None) -> None:
    decoder = LatentDecoder(shapes)
    good = decoder.decode(sample(), None)
    with pytest.raises(Exception, match=r".") as refused:
        decoder.decode(HOSTILE_LATENTS[kind], None)
    assert "has no attribute" not in str(refused.value)
    assert decoder.collate([good, decoder.decode(sample(), None)])["latents"].shape == (2, 6, 4, 8, 8)
