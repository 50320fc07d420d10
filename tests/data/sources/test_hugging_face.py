"""Hugging Face datasets on disk: metadata tables in every format, declared splits, and Parquet files with images."""

import csv
import io
import json
import shlex
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.pictures import picture, psnr, shown
from typer.testing import CliRunner

from cubediff.data.building.check import check_shards
from cubediff.data.building.console import build_summary
from cubediff.data.building.write import build_shards
from cubediff.data.sources import open_source
from cubediff.data.sources.equirect import EquirectFolder
from cubediff.data.sources.imagefolder import ImageFolder
from cubediff.geometry import FACES
from cubediff.prepare import app
from cubediff.utils.errors import DataError

TEXT = 'a "hall",\nwith a comma'
FACE_CAPTIONS = {face: f"the {face}" for face in FACES}


def put_images(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(folder / name)
    return folder


def put_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".csv":
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for row in rows:
                writer.writerow({k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items()})
    elif path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def sides(output: Path) -> dict[str, set[str]]:
    """The files of the panoramas on each side of the split."""
    found: dict[str, set[str]] = {"train": set(), "val": set()}
    for path in output.glob("*.tar"):
        with tarfile.open(path) as tar:
            records = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith("json")]  # type: ignore[arg-type]
        found[path.name.split("-")[0]] |= {record["file"] for record in records}
    return found


@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv", "METADATA.CSV", "metadata.parquet"])
def test_a_table_in_every_format_names_images_in_subfolders(tmp_path: Path, table: str) -> None:
    source = put_images(tmp_path / "in", "a.jpg", "sub/b.jpg", "sub/deep/c d.jpg", "plain.jpg", "none.jpg")
    rows: list[dict[str, Any]] = [
        {
            "file_name": "a.jpg",
            "text": 'a "hall",\nwith a comma',
            "faces": FACE_CAPTIONS,
            "asset": "scene",
            "year": "1990",
        },
        {"file_name": "sub/b.jpg", "text": "b"},
        {"file_name": "sub/deep/c d.jpg", "text": "größer 草原"},
        {"file_name": "plain.jpg", "text": ""},
        {"file_name": "gone.jpg", "text": "of none"},
    ]
    write_table(source / table, rows)
    opened = open_source(source)
    assert isinstance(opened, ImageFolder)
    entries, rejected = opened.entries()
    assert [(e.file, e.caption) for e in entries] == [
        ("a.jpg", TEXT),
        ("sub/b.jpg", "b"),
        ("sub/deep/c d.jpg", "größer 草原"),
    ]
    assert (entries[0].faces, entries[0].scene, entries[0].metadata) == (FACE_CAPTIONS, "scene", {"year": "1990"})
    assert (entries[1].faces, entries[1].scene, entries[1].metadata) == (None, "sub/b.jpg", {})
    reasons = {r.file: r.reason for r in rejected}
    assert set(reasons) == {"plain.jpg", "gone.jpg", "none.jpg"}
    assert "empty caption" in reasons["plain.jpg"]
    assert "the file is missing" in reasons["gone.jpg"]
    assert f"has no caption in {table}" in reasons["none.jpg"]


def test_rows_that_are_no_rows_are_rejected_by_their_number(tmp_path: Path) -> None:
    source = put_images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    lines = [
        "file_name,caption,faces",
        "a.jpg,fine,",
        "b.jpg,a hall, with two lamps,",
        "c.jpg,c,{front",
        "",
        ",nothing,",
    ]
    (source / "metadata.csv").write_text("\n".join(lines))
    entries, rejected = open_source(source).entries()
    assert [entry.file for entry in entries] == ["a.jpg"]
    reasons = {r.file: r.reason for r in rejected}
    assert "more values than the header has columns: quote" in reasons["metadata.csv:3"]
    assert "faces are not JSON" in reasons["metadata.csv:4"]
    assert "names no panorama" in reasons["metadata.csv:6"]
    assert {"b.jpg", "c.jpg"} < set(reasons)


def test_two_tables_in_one_folder_are_an_error(tmp_path: Path) -> None:
    source = put_images(tmp_path, "a.jpg")
    for table in ("metadata.csv", "metadata.jsonl"):
        write_table(source / table, [{"file_name": "a.jpg", "text": "a"}])
    with pytest.raises(DataError, match=r"holds metadata\.csv and metadata\.jsonl: keep one of them"):
        open_source(source)


# ---- declared splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "val", "rejected"),
    [
        (("train", "validation"), "validation", None),
        (("Training", "Val"), "Val", None),
        (("data/train", "data/dev"), "data/dev", None),
        (("train", "test"), "test", None),
        (("train", "validation", "test"), "validation", "test"),
    ],
)
@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_declared_splits_are_kept_whatever_the_fraction(
    tmp_path: Path, folders: tuple[str, ...], val: str, rejected: str | None, fraction: float
) -> None:
    source = tmp_path / "in"
    names = [f"{folder}/{i}.jpg" for folder in folders for i in range(4)]
    put_images(source, *names)
    for folder in folders:
        rows = [{"file_name": f"{i}.jpg", "text": f"{folder} {i}"} for i in range(4)]
        write_table(source / folder / "metadata.csv", rows)
    manifest = build_shards(source, tmp_path / "out", val_fraction=fraction)
    expected = {"val": {n for n in names if n.startswith(f"{val}/")}}
    expected["train"] = {n for n in names if n.lower().startswith(("train", "data/train"))}
    assert sides(tmp_path / "out") == expected
    assert manifest["settings"]["splits"] == "declared"
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {line["file"] for line in lines} == ({f"{rejected}/{i}.jpg" for i in range(4)} if rejected else set())
    assert all(line["reason"].startswith("belongs to the test split") for line in lines)
    assert not check_shards(tmp_path / "out").faults


@pytest.mark.parametrize("layout", ["tables in the splits", "one table", "parquet"])
def test_a_test_split_beside_a_validation_split_is_left_out_with_one_line_that_says_how_to_build_it(
    tmp_path: Path, layout: str
) -> None:
    source = tmp_path / "in"
    counts = {"train": 4, "validation": 2, "Test set": 3} if layout == "parquet" else {"train": 4, "dev": 2, "Test": 3}
    for number, (split, count) in enumerate(counts.items()):
        if layout == "parquet":
            rows = [{"image": encoded(10 * number + i), "text": "c"} for i in range(count)]
            write_parquet(source / f"data/{split}-00000-of-00001.parquet", rows)
            continue
        for i in range(count):
            put_image(source / f"data/{split}/{i}.jpg", 10 * number + i)
        if layout == "tables in the splits":
            rows = [{"file_name": f"{i}.jpg", "text": "c"} for i in range(count)]
            write_table(source / f"data/{split}/metadata.csv", rows)
    if layout == "one table":
        rows = [{"file_name": f"data/{s}/{i}.jpg", "text": "c"} for s, count in counts.items() for i in range(count)]
        write_table(source / "metadata.csv", rows)

    def prepared(*words: str) -> str:
        result = CliRunner().invoke(app, [str(source), *words, "--workers", "1"])
        assert result.exit_code == 0, result.output
        return result.stdout

    line = "3 panoramas of the test split were left out: build it into another folder with --include "
    preview, summary = prepared(str(tmp_path / "out"), "--dry-run"), prepared(str(tmp_path / "out"))
    assert [text.startswith(line) for text in summary.splitlines()] == [False, True]
    assert sum(text.startswith(line) for text in preview.splitlines()) == 1
    assert {side: len(files) for side, files in sides(tmp_path / "out").items()} == {"train": 4, "val": 2}
    (glob,) = shlex.split(summary.splitlines()[1].removeprefix(line))
    assert "left out" not in prepared(str(tmp_path / "test"), "--include", glob)
    assert {side: len(files) for side, files in sides(tmp_path / "test").items()} == {"train": 0, "val": 3}
    for output in ("out", "test"):
        assert not check_shards(tmp_path / output).faults


def test_other_sources_may_declare_a_test_split_too(tmp_path: Path) -> None:
    class Declared(EquirectFolder):
        def entries(self) -> Any:
            entries, rejected = super().entries()
            names: tuple[Any, ...] = ("train", "val", "test", None)
            return [replace(entry, split=names[i]) for i, entry in enumerate(entries)], rejected

    for seed, name in enumerate("abcd"):
        put_image(tmp_path / "in" / f"{name}.jpg", seed)
        (tmp_path / "in" / f"{name}.txt").write_text("c")
    manifest = build_shards(Declared(tmp_path / "in"), tmp_path / "out", val_fraction=0.0)
    assert sides(tmp_path / "out") == {"train": {"a.jpg", "d.jpg"}, "val": {"b.jpg"}}
    assert "test split were left out: build it into another folder" in build_summary(tmp_path / "out", manifest)


def test_a_declared_split_may_divide_near_duplicates_and_others_follow_it(tmp_path: Path) -> None:
    """The same picture in train and validation stays in both, as declared; a third copy joins the training side."""
    source = put_images(tmp_path / "in", "train/a.jpg", "validation/b.jpg", "c.jpg", "d.jpg")
    for copy in ("validation/a.jpg", "z copy.jpg"):
        (source / copy).write_bytes((source / "train" / "a.jpg").read_bytes())
    (source / "y copy.jpg").write_bytes((source / "validation" / "b.jpg").read_bytes())
    names = ["train/a.jpg", "validation/b.jpg", "validation/a.jpg", "c.jpg", "d.jpg", "y copy.jpg", "z copy.jpg"]
    write_table(source / "metadata.csv", [{"file_name": name, "text": "c", "asset": "hall"} for name in names[:3]]
                + [{"file_name": name, "text": "c", "asset": ""} for name in names[3:]])  # fmt: skip
    build_shards(source, tmp_path / "out", val_fraction=0.0)
    found = sides(tmp_path / "out")
    assert found["val"] == {"validation/b.jpg", "validation/a.jpg"}
    assert found["train"] == {"train/a.jpg", "c.jpg", "d.jpg", "y copy.jpg", "z copy.jpg"}
    assert not check_shards(tmp_path / "out").faults


def test_a_training_folder_alone_declares_no_split(tmp_path: Path) -> None:
    source = put_images(tmp_path / "in", *(f"train/{i}.jpg" for i in range(6)))
    write_table(source / "train" / "metadata.csv", [{"file_name": f"{i}.jpg", "text": "c"} for i in range(6)])
    manifest = build_shards(source, tmp_path / "out", val_fraction=0.3)
    assert manifest["splits"]["val"]["samples"] > 0
    assert "splits" not in manifest["settings"]


# ---- Parquet with images -----------------------------------------------------------------------------------


def encoded(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, kind, quality=95)
    return buffer.getvalue()


def write_parquet(path: Path, rows: list[dict[str, Any]], row_group_size: int = 2) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=row_group_size)


@pytest.mark.parametrize("stored", ["record", "bytes", "record without a path"])
def test_rows_with_images_are_panoramas(tmp_path: Path, stored: str) -> None:
    def cell(seed: int) -> object:
        data = encoded(seed, "JPEG" if seed == 0 else "PNG")
        if stored == "bytes":
            return data
        return {"bytes": data, "path": (f"{seed}.png" if seed else "0.jpg") if stored == "record" else None}

    rows = [{"image": cell(i), "text": f"caption {i}", "year": float("nan") if i else 1990.0} for i in range(7)]
    source = tmp_path / "in"
    write_parquet(source / "data" / "train-00000-of-00002.parquet", rows[:5])
    write_parquet(source / "data" / "validation-00001-of-00002.parquet", rows[5:])
    opened = open_source(source)
    entries, rejected = opened.entries()
    assert rejected == []
    assert [entry.caption for entry in entries] == [f"caption {i}" for i in range(7)]
    assert [entry.split for entry in entries] == ["train"] * 5 + ["val"] * 2
    assert [entry.metadata for entry in entries] == [{"year": 1990.0}] + [{}] * 6
    for seed, entry in enumerate(entries):
        assert psnr(shown(opened.load(entry).jpeg), shown(encoded(seed))) > 30
    assert opened.load(entries[0]).jpeg == encoded(0, "JPEG")
    build_shards(opened, tmp_path / "out", workers=1)
    assert {side: len(files) for side, files in sides(tmp_path / "out").items()} == {"train": 5, "val": 2}
    assert not check_shards(tmp_path / "out").faults


def test_every_row_is_built_or_rejected(tmp_path: Path) -> None:
    source = tmp_path / "in"
    rows: list[dict[str, Any]] = [
        {"image": {"bytes": encoded(0)}, "caption": "fine"},
        {"image": {"bytes": encoded(1)}, "caption": " "},
        {"image": {"bytes": encoded(2)}, "caption": None},
        {"image": {"bytes": encoded(3)[:200]}, "caption": "damaged"},
        {"image": {"bytes": None}, "caption": "a path only"},
        {"image": None, "caption": "no image"},
    ]
    write_parquet(source / "a.parquet", rows)
    (source / "b.parquet").write_bytes(b"PAR1 and no more")
    write_parquet(source / "c.parquet", [{"caption": "no column of images"}])
    write_parquet(source / "d.parquet", [{"left": encoded(4), "right": encoded(5), "caption": "two images"}])
    manifest = build_shards(source, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    reasons = {line["file"]: line["reason"] for line in lines}
    assert (manifest["samples"], manifest["rejected"]) == (1, 8)
    assert "is not a Parquet file" in reasons.pop("b.parquet")
    assert "has 0 image columns" in reasons.pop("c.parquet")
    assert "has 2 image columns among left, right, caption" in reasons.pop("d.parquet")
    assert sorted(reasons) == [f"a.parquet/{row:08d}.jpg" for row in range(1, 6)]


def test_images_alone_are_built_without_captions(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "a.parquet", [{"image": encoded(seed)} for seed in range(3)])
    assert build_shards(tmp_path / "in", tmp_path / "out", Path("none"))["samples"] == 3
    with pytest.raises(DataError, match="empty caption"):
        build_shards(tmp_path / "in", tmp_path / "captioned")


def test_a_missing_pyarrow_is_an_error_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_images(tmp_path, "a.jpg")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow: pip install 'cubediff\[parquet\]'"):
        open_source(tmp_path).entries()
