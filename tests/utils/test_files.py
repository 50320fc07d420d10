"""Atomic files: complete or unchanged, without leftovers."""

import math
from pathlib import Path

import pytest

from cubediff.utils.files import atomic_file, json_lines, read_json_lines, write_atomic, write_json


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_replaced_only_when_the_block_ends(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_file(path, sync=sync) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_written_as_utf8(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", "größer")
    assert (tmp_path / "file").read_bytes() == "größer".encode()


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_json_without_finite_numbers_is_refused_and_writes_nothing(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"loss": number})
    assert list(tmp_path.iterdir()) == []


def test_json_lines_are_read_as_they_were_written() -> None:
    records = [{"prompt": "line\u2028separator"}, [1, None], "text"]
    assert list(read_json_lines(json_lines(records))) == list(enumerate(records, 1))


def test_an_invalid_json_line_is_named() -> None:
    lines = read_json_lines('{}\n\n{"a": ')
    assert next(lines) == (1, {})
    with pytest.raises(ValueError, match="line 3: not JSON"):
        next(lines)
