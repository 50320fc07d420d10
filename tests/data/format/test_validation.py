"""Manifests and indexes of others: a value of the wrong type or a name outside the folder is refused by its key."""

import copy
import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.panoramas import data, shards

from cubediff.data import DataError
from cubediff.data.building.check import check_shards
from cubediff.data.format.validation import is_inside, parse_index, parse_manifest

SHARD = {"file": "train-000000.tar", "samples": 2, "bytes": 2048, "sha256": "0" * 64}
MANIFEST: dict[str, Any] = {
    "format": "cubediff-shards",
    "version": 2,
    "samples": 2,
    "latents": {"face_size": 64, "fov": 95.0, "encoders": "e"},
    "shapes": {"latents": [6, 4, 8, 8]},
    "splits": {"train": {"samples": 2, "shards": [SHARD]}, "val": {"samples": 0, "shards": []}},
    "index": {"file": "index.jsonl", "sha256": "1" * 64},
}
WRONG: list[Any] = [None, True, -1, 1.5, 2**70, float("nan"), "", "x", [], {}, [1], [None], {"a": 1}, "\ud800"]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(path: tuple[Any, ...], new: Any) -> bytes:
    manifest = copy.deepcopy(MANIFEST)
    inner: Any = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return json.dumps(manifest).encode()


# What reading does not use, and values that are right: an empty list of shards, a fov of −1 or 1.5 degrees.
UNUSED = {("samples",), ("splits", "train", "samples"), ("splits", "val", "samples"), ("index", "file")}


@pytest.mark.parametrize("path", list(places(MANIFEST)), ids=lambda path: ".".join(map(str, path)))
def test_every_value_of_the_wrong_type_is_refused_by_its_key(path: tuple[Any, ...]) -> None:
    refused = 0
    for wrong in WRONG:
        try:
            parse_manifest(changed(path, wrong), "m.json")
        except DataError as error:
            refused += 1
            message = str(error)
            assert message.startswith("m.json"), message
            assert message.isascii() or "×" in message
            assert len(message) < 300
            key = next(key for key in reversed(path) if isinstance(key, str))
            assert key in message or "is not a finite number" in message  # JSON has no NaN, at any key
    assert refused >= 8 or path in UNUSED


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"3", b"\xff", b'"x"', b"[" * 100_000, b"1" * 10_000])
def test_what_is_no_object_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^m\.json"):
        parse_manifest(content, "m.json")


NAMES = [
    "../train-000000.tar",
    "/etc/passwd",
    "a/../../b.tar",
    "a//b.tar",
    "./a.tar",
    "..",
    "..\\b.tar",
    "C:b.tar",
    "C:\\b.tar",
    "\\\\host\\b.tar",
    "https://host/b.tar",
    "pipe:rm -r x",
    "%2e%2e/b.tar",
    "b.tar?x",
    "b.tar#x",
    "*.tar",
    "b\n.tar",
    "b\x1b[2J.tar",
    "b\0.tar",
    "",
    "a/",
    ".. /b.tar",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_shard_outside_of_the_folder_is_refused(name: str) -> None:
    assert not is_inside(name)
    with pytest.raises(DataError, match=r"splits\.train\.shards\[0\]\.file must be a file name inside the folder"):
        parse_manifest(changed(("splits", "train", "shards", 0, "file"), name), "m.json")


@pytest.mark.parametrize("name", ["train-000000.tar", "Zürich 1.tar", "part 1/train-000000.tar", "a..b.tar"])
def test_other_names_are_read(name: str) -> None:
    parse_manifest(changed(("splits", "train", "shards", 0, "file"), name), "m.json")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "3",
        "null",
        "[]",
        {},
        {"file": 3, "keys": [], "offsets": [0]},
        {"file": "a", "keys": "ab", "offsets": [0, 1, 2]},
        {"file": "a", "keys": [1], "offsets": [0, 1]},
        {"file": "a", "keys": ["a\0b"], "offsets": [0, 1]},
        {"file": "a", "keys": ["a"], "offsets": [0]},
        {"file": "a", "keys": ["a"], "offsets": [0, 1.5]},
        {"file": "a", "keys": ["a"], "offsets": [True, 1]},
        {"file": "a", "keys": ["a"], "offsets": [-512, 1]},
        {"file": "a", "keys": ["a"], "offsets": [512, 0]},
        {"file": "a", "keys": ["a"], "offsets": [0, 2**63]},
        {"file": "a", "keys": ["a"], "offsets": None},
    ],
)
def test_a_line_of_the_index_with_wrong_types_is_refused(line: Any) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    with pytest.raises(DataError, match=r"^i\.jsonl"):
        parse_index(text.encode(), "i.jsonl")


def test_a_shard_next_to_the_dataset_is_neither_trained_on_nor_checked(tmp_path: Path) -> None:
    """With the check off, the shard outside is read: the manifest, index and checksums are right."""
    path = shards(tmp_path, 4)
    (path / "train-000000.tar").rename(tmp_path / "train-000000.tar")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["file"] = "../train-000000.tar"
    index = (path / "index.jsonl").read_text().replace('"train-000000.tar"', '"../train-000000.tar"')
    (path / "index.jsonl").write_text(index)
    manifest["index"]["sha256"] = hashlib.sha256(index.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"shards\[0\]\.file must be a file name inside the folder, got '\.\./train"):
        data(path)
    (fault,) = check_shards(path).faults
    assert "must be a file name inside the folder" in fault
    with pytest.MonkeyPatch.context() as without_check:
        without_check.setattr("cubediff.data.format.validation.is_inside", lambda name: True)
        assert data(path).samples("train") == 4


@pytest.mark.parametrize("name", ["manifest.json", "index.jsonl"])
def test_a_file_without_end_is_refused(name: str, tmp_path: Path) -> None:
    path = shards(tmp_path, 4)
    (path / name).unlink()
    (path / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a device: expected a regular file"):
        data(path)
    assert check_shards(path).faults
    (path / name).unlink()
    with (path / name).open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(DataError, match=r"more than \d+ bytes"):
        data(path)


def test_prepare_check_names_the_key_of_a_wrong_value(tmp_path: Path) -> None:
    path = shards(tmp_path, 4)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"] = {"file": "x"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    (fault,) = check_shards(path).faults
    assert "splits.train.shards must be a list, got {'file': 'x'}" in fault
    assert tarfile.is_tarfile(path / "train-000000.tar")
