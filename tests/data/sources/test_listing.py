"""A source is listed in one walk: detecting its type and listing its panoramas read every folder once."""

import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.source_folders import SOURCE_FOLDERS, write_source_folder

from cubediff.data.sources import open_source
from cubediff.data.sources.listing import FileTree
from cubediff.data.sources.selection import NO_CAPTIONS


@pytest.mark.parametrize("options", [{}, {"include": ["*"], "exclude": ["*.gif"]}, {"captions": NO_CAPTIONS}])
@pytest.mark.parametrize("kind", SOURCE_FOLDERS)
def test_detecting_and_listing_a_source_read_each_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any]
) -> None:
    count = write_source_folder(tmp_path, kind)
    folders = [str(tmp_path), *(str(path) for path in tmp_path.rglob("*") if path.is_dir())]
    read: Counter[str] = Counter()
    real = {name: getattr(os, name) for name in ("scandir", "listdir")}
    for name in real:

        def counted(path: Any, real: Any = real[name]) -> Any:
            read[str(path)] += 1
            return real(path)

        monkeypatch.setattr(os, name, counted)
    source = open_source(tmp_path, **options)
    entries, rejected = source.entries()
    for entry in entries:
        assert source.files(entry)
    monkeypatch.undo()
    assert (len(entries), rejected) == (count, [])
    assert len(folders) >= 2
    assert read == Counter(folders)


def test_a_folder_that_is_left_out_is_known_by_any_name(tmp_path: Path) -> None:
    for name in ("a.jpg", "out/b.jpg", "out/deep/c.jpg", "other/out/d.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in" / "out")
    for skipped in ("in/out", "link/out", "in/other/../out", "in/again"):
        assert FileTree(tmp_path / "in", tmp_path / skipped).files(".jpg") == (["a.jpg", "other/out/d.jpg"], [])
    assert FileTree(tmp_path / "in", tmp_path / "new").files(".jpg")[0] == [
        "a.jpg", "again/b.jpg", "again/deep/c.jpg", "other/out/d.jpg", "out/b.jpg", "out/deep/c.jpg"
    ]  # fmt: skip


def test_the_names_are_not_sent_to_other_processes(tmp_path: Path) -> None:
    for i in range(500):
        (tmp_path / f"{i}.jpg").touch()
    tree = FileTree(tmp_path, tmp_path / "out")
    names = tree.files(".jpg")
    sent = pickle.dumps(tree)
    assert len(sent) < 1000
    assert pickle.loads(sent).files(".jpg") == names
