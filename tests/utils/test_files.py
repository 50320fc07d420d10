"""Atomic files: complete or unchanged, without leftovers."""

import math
import os
from pathlib import Path

import pytest

from cubediff.utils.errors import DataError
from cubediff.utils.files import (
    atomic_file,
    atomic_folder,
    json_lines,
    open_regular,
    read_json_lines,
    write_atomic,
    write_json,
)


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


# ---- folders ---------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_is_replaced_only_when_the_block_ends_and_other_files_in_it_stay(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    (folder / "unet").mkdir(parents=True)
    for name in ("unet/weights", "unet/stale", "notes"):
        (folder / name).write_text("old")
    before = contents(folder)

    def write_half() -> None:
        with atomic_folder(folder) as part:
            (part / "index").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert contents(folder) == before
    with atomic_folder(folder) as part:
        (part / "unet").mkdir()
        (part / "unet/weights").write_text("new")
        assert contents(folder) == before
    assert contents(folder) == {"unet/weights": "new", "notes": "old"}
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("moved", [False, True])
def test_a_folder_is_written_after_a_process_was_killed_at_any_place(tmp_path: Path, moved: bool) -> None:
    """It leaves .export.part, and between the two renames the earlier folder as .export.old."""
    for name, text in ((".export.part", "half"), (".export.old" if moved else "export", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes").write_text(text)
    with atomic_folder(tmp_path / "export") as part:
        (part / "index").write_text("new")
    assert contents(tmp_path) == {"export/index": "new", "export/notes": "old"}


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "export").symlink_to(tmp_path / "disk")
    with atomic_folder(tmp_path / "export") as part:
        (part / "index").write_text("new")
    assert (tmp_path / "export").is_symlink()
    assert contents(tmp_path / "disk") == {"index": "new"}


def test_only_regular_files_are_opened_and_none_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "device").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"
    for name, kind in (("fifo", r"a FIFO \(named pipe\)"), ("device", "a device")):
        with pytest.raises(DataError, match=f"{tmp_path / name} is {kind}: expected a regular file"):
            open_regular(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")


def test_a_fifo_that_replaces_a_checked_file_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    regular = os.stat(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(os, "stat", lambda path: regular)
    with pytest.raises(DataError, match="is a FIFO"):
        open_regular(tmp_path / "fifo")
