"""Reading single samples of a shard, compared with tar and plain webdataset."""

import io
import tarfile
from pathlib import Path

import pytest
from webdataset.tariterators import group_by_keys, tar_file_iterator

from cubediff.data.format.index import index_tar, read_sample


def write(path: Path, members: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


MEMBERS = {f"{key}.{part}": f"{key} {part}".encode() * n for n, key in enumerate(("a", "b", "d/e", "v1.0/e"), 500)
           for part in ("jpg", "json", "seg.png")}  # fmt: skip


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_sample_read_by_offset_equals_the_one_that_webdataset_reads(tmp_path: Path, format: int) -> None:
    long = {f"{'long/' * 30}{n:0120d}.jpg": bytes([n]) * n for n in range(3)} if format != tarfile.USTAR_FORMAT else {}
    path = write(tmp_path / "x.tar", {**MEMBERS, **long}, format)
    index = index_tar(path)
    with path.open("rb") as file:
        theirs = list(group_by_keys({**f, "__url__": ""} for f in tar_file_iterator(file)))
    assert index.keys == [sample["__key__"] for sample in theirs]
    with path.open("rb") as file:
        for i in reversed(range(len(index.keys))):
            sample = read_sample(file.fileno(), *index.offsets[i : i + 2])
            assert sample == {name: content for name, content in theirs[i].items() if not name.startswith("__")}


def test_folders_are_not_samples_and_an_empty_shard_has_none(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        assert index_tar(write(tmp_path / "empty.tar", {})) == ([], [0])
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        member = tarfile.TarInfo("a/b.txt")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    index = index_tar(path)
    assert index.keys == ["a/b"]
    with path.open("rb") as file:
        assert read_sample(file.fileno(), *index.offsets) == {"txt": b"abc"}


def test_complete_samples_of_a_truncated_shard_can_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", MEMBERS)
    index = index_tar(path)
    with path.open("r+b") as file:
        file.truncate(index.offsets[2] - 1)
    with path.open("rb") as file:
        assert set(read_sample(file.fileno(), *index.offsets[0:2])) == {"jpg", "json", "seg.png"}
        with pytest.raises(EOFError, match="ends early"):
            read_sample(file.fileno(), *index.offsets[1:3])


def test_a_file_that_is_not_a_tar_raises(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"x" * 2000)
    with pytest.raises(tarfile.TarError):
        index_tar(path)
