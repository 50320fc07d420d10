"""Tars of others: prepare and training read what is right in them, write nothing outside of OUTPUT, and stay small."""

import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from support.panoramas import data

from cubediff.data import DataError, build_shards
from cubediff.data.format.index import index_tar, read_sample
from cubediff.data.sources.webdataset import Shards

Edit = Callable[[tarfile.TarInfo], None]


def link(kind: bytes, target: str) -> Edit:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, target, 0

    return change


def device(kind: bytes) -> Edit:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.size, info.devmajor, info.devminor = kind, 0, 1, 5  # /dev/zero

    return change


def named(name: str) -> Edit:
    return lambda info: setattr(info, "name", name.format(suffix=info.name.rpartition(".")[2]))


def attribute(name: str, value: str) -> Edit:
    return lambda info: info.pax_headers.update({name: value})


def edits(canary: Path) -> dict[str, Edit]:
    """What an attacker changes in the members of a sample; `canary` is outside of every output."""
    return {
        "a name above": named("../" * 12 + str(canary)[1:] + ".{suffix}"),
        "an absolute name": named(f"{canary}.{{suffix}}"),
        "a name of Windows": named("..\\..\\canary.{suffix}"),
        "a drive": named("C:\\canary.{suffix}"),
        "a control character": named("a\x1b[2Jb.{suffix}"),
        "a line break": named("a\nb.{suffix}"),
        "a long name": named("x" * 5000 + ".{suffix}"),
        "an empty name": named(".{suffix}"),
        "a symbolic link": link(tarfile.SYMTYPE, str(canary)),
        "a hard link": link(tarfile.LNKTYPE, "/etc/passwd"),
        "a link to a folder above": link(tarfile.SYMTYPE, "../../.."),
        "a FIFO": device(tarfile.FIFOTYPE),
        "a device": device(tarfile.CHRTYPE),
        "a block device": device(tarfile.BLKTYPE),
        "a PAX path": attribute("path", str(canary)),
        "a PAX size": attribute("size", str(1 << 50)),
        "a negative PAX size": attribute("size", "-512"),
        "a PAX sparse size": attribute("GNU.sparse.realsize", str(1 << 45)),
        "a PAX link": attribute("linkpath", str(canary)),
    }


def jpeg(seed: int) -> bytes:
    from support.pictures import picture

    content = io.BytesIO()
    picture(seed).save(content, "JPEG")
    return content.getvalue()


def hostile_tar(path: Path, changes: list[Edit], count: int = 4) -> None:
    """A tar of `count` samples; the changes are made to both members of the second."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(count):
            image = jpeg(i)
            for suffix, content in (("jpg", image), ("json", json.dumps({"caption": f"panorama {i}"}).encode())):
                info = tarfile.TarInfo(f"{i:03d}.{suffix}")
                info.size = len(content)
                for change in changes if i == 1 else []:
                    change(info)
                try:
                    tar.addfile(info, io.BytesIO(content))
                except (ValueError, OSError):  # this attack needs bytes that tarfile does not write
                    return


def survives(tar: Path, folder: Path) -> None:
    """Reads a tar in each way of the package; it may be refused as a whole, but nothing else may happen."""
    output = folder / "shards"
    try:
        Shards(tar).entries()
        build_shards(Shards(tar), output, val_fraction=0.0)
        assert data(output, max_skipped_share=1.0).samples("train") <= 4
    except DataError:
        pass
    try:
        keys, offsets = index_tar(tar)
    except (tarfile.TarError, OSError):
        return
    with tar.open("rb") as file:
        for start, end in pairwise(offsets):
            try:
                read_sample(file.fileno(), start, end)
            except (tarfile.TarError, EOFError, OSError):
                continue
    assert len(keys) <= 8  # one for each member, if damage has changed the names of both members of a sample


def outside(folder: Path) -> set[Path]:
    return {file for file in folder.iterdir() if file.name not in ("in", "work")}


@pytest.mark.parametrize("kind", edits(Path("/canary")))
def test_a_hostile_member_writes_nothing_outside_of_output(kind: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "work").mkdir()
    tar = tmp_path / "in" / "a.tar"
    hostile_tar(tar, [edits(tmp_path / "canary")[kind]])
    survives(tar, tmp_path / "work")
    assert outside(tmp_path) == set()


def test_control_tarfile_writes_outside_of_the_output(tmp_path: Path) -> None:
    """The same tars, extracted without a filter, create the canary."""
    for kind in ("an absolute name", "a name above"):
        hostile_tar(tmp_path / "a.tar", [edits(tmp_path / "canary")[kind]])
        with tarfile.open(tmp_path / "a.tar") as tar:
            tar.extractall(tmp_path / "out", filter="fully_trusted")
        assert (tmp_path / "canary.jpg").exists()
        (tmp_path / "canary.jpg").unlink()
        (tmp_path / "canary.json").unlink()


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_random_combinations_and_damages_win_nothing(count: int, tmp_path: Path) -> None:
    rng = random.Random(0)
    (tmp_path / "in").mkdir()
    kinds = list(edits(tmp_path / "canary").values())
    for i in range(count):
        tar, work = tmp_path / "in" / f"{i}.tar", tmp_path / "work" / str(i)
        work.mkdir(parents=True)
        hostile_tar(tar, rng.sample(kinds, rng.randrange(1, 4)))
        content = bytearray(tar.read_bytes())
        for _ in range(rng.randrange(0, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        tar.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        survives(tar, work)
        assert outside(tmp_path) == set(), i
    assert psutil.Process().memory_info().rss < 4 << 30


def test_a_fifo_or_device_is_no_tar(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.tar")
    (tmp_path / "zero.tar").symlink_to("/dev/zero")
    for name in ("fifo.tar", "zero.tar"):
        with pytest.raises(DataError, match=f"{name} cannot be read as a tar .*expected a regular file"):
            data(tmp_path / name)
        with pytest.raises(DataError):
            build_shards(Shards(tmp_path / name), tmp_path / "out")
