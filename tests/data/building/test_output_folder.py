"""A build neither overwrites nor removes files that it did not write, and does not write into its source."""

import json
import os
import shutil
import tarfile
from itertools import product
from pathlib import Path

import pytest
from support.builds import contents, panoramas
from support.source_folders import SOURCE_FOLDERS, write_source_folder
from typer.testing import CliRunner

from cubediff.data import DataError, build_shards
from cubediff.data.building import write
from cubediff.data.building.captioning import caption_source
from cubediff.data.building.check import check_shards
from cubediff.data.sources import open_source
from cubediff.data.sources.webdataset import Shards
from cubediff.prepare import app

OPTIONS = {"val_fraction": 0.3, "shard_size": 2}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return panoramas(tmp_path / "in", 4)


def put(path: Path, content: str = "mine") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


LISTED = ("train-000000.tar", "report.html", "index.jsonl", "duplicates.jsonl", "rejected.jsonl")  # by the manifest
OTHERS = (
    "val-000007.tar",
    "captions.jsonl",
    "manifest.json",
    ".building/notes.txt",
    ".building/plan.json",
    ".building",
    "panorama.jpg",
    "folder/notes.txt",
    ".hidden",
)


@pytest.mark.parametrize(("name", "finished"), [*((name, False) for name in LISTED), *product(OTHERS, (False, True))])
def test_an_output_with_a_file_of_someone_else_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path, name: str, finished: bool
) -> None:
    output = tmp_path / "out"
    if finished:
        build_shards(source, output, **OPTIONS)
    put(output / name)
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"no cubediff build wrote: choose an empty folder.*or move") as caught:
            build_shards(source, output, overwrite=overwrite)
        assert name.partition("/")[0] in str(caught.value)
    assert contents(tmp_path) == before


def test_files_of_others_are_found_behind_a_folder_that_does_not_exist_yet(source: Path, tmp_path: Path) -> None:
    put(tmp_path / "out" / "notes.txt")
    with pytest.raises(DataError, match=r"holds notes\.txt, which no cubediff build wrote"):
        build_shards(source, tmp_path / "new" / ".." / "out")
    assert not (tmp_path / "new").exists()


def test_the_error_names_three_of_the_files(source: Path, tmp_path: Path) -> None:
    for name in "edcba":
        put(tmp_path / "out" / name)
    with pytest.raises(DataError, match=r"holds a, b, c and 2 more, which no cubediff build wrote"):
        build_shards(source, tmp_path / "out", overwrite=True)


def test_files_of_the_operating_system_and_of_a_failed_build_are_no_obstacle(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (source / "captions.jsonl").write_text(json.dumps({"file": "gone.png", "caption": "c"}) + "\n")
    with pytest.raises(DataError, match="no panorama can be used"):
        build_shards(source, output)
    assert files_of(output) == ["rejected.jsonl"]
    put(output / ".DS_Store")
    put(output / "Thumbs.db")
    captions = "".join(
        json.dumps({"file": f"pano {i}.png", "caption": "c", "captioned_by": "a model"}) + "\n" for i in range(4)
    )
    put(output / "captions.jsonl", captions + '{"file": "pano')  # its writer was killed
    build_shards(source, output, output / "captions.jsonl", val_fraction=0.0)
    assert {".DS_Store", "Thumbs.db", "captions.jsonl", "manifest.json"} < set(files_of(output))


def test_files_that_appear_during_a_build_are_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, real = tmp_path / "out", write.publish

    def slow(*args: Path) -> object:
        put(output / "report.html")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(write, "publish", slow)
        with pytest.raises(DataError, match=r"report\.html"):
            build_shards(source, output, **OPTIONS)
    assert (output / "report.html").read_text() == "mine"
    (output / "report.html").unlink()
    build_shards(source, output, **OPTIONS)  # resumes
    assert not check_shards(output).faults


def test_an_interrupted_replacement_can_be_replaced_by_another_build(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While shards move to OUTPUT no manifest lists them; all of them are still known and replaced."""
    output = tmp_path / "out"
    build_shards(source, output, shard_size=1)
    real, moved = os.replace, []

    def stops(old: Path, new: Path) -> None:
        if Path(new).parent == output:
            moved.append(new)
        if len(moved) >= 3:
            raise KeyboardInterrupt
        real(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stops)
        with pytest.raises(KeyboardInterrupt):
            build_shards(source, output, shard_size=2, val_fraction=0.5, overwrite=True)
    assert not (output / "manifest.json").exists()
    build_shards(source, output, val_fraction=0.0, overwrite=True)
    assert not check_shards(output).faults
    assert [path.name for path in output.glob("*.tar")] == ["train-000000.tar"]


def test_cached_latents_are_not_replaced_by_shards(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    manifest = {"format": "cubediff-shards", "version": 2, "latents": {}, "splits": {}}
    put(output / "manifest.json", json.dumps(manifest))
    with pytest.raises(DataError, match="holds cached latents"):
        build_shards(source, output, overwrite=True)


# ---- OUTPUT and SOURCE -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling", ["same", "dots", "dots after a new folder", "link", "above", "link to above", "tar", "relative"]
)
def test_an_output_that_is_or_contains_the_source_is_refused(
    source: Path, tmp_path: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path.parent / f"{tmp_path.name} link"
    link.symlink_to(tmp_path)
    arguments = {
        "same": (source, source),
        "dots": (source, tmp_path / "other" / ".." / "in"),
        "dots after a new folder": (source, tmp_path / "new" / ".." / "in"),
        "link": (link / "in", source),
        "above": (source, tmp_path),
        "link to above": (source, link),
        "relative": (Path("."), source),
    }
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(source)
    if spelling == "tar":
        build_shards(source, tmp_path / "built", val_fraction=0.0)
        arguments["tar"] = (tmp_path / "built" / "train-000000.tar", tmp_path / "built")
    before = contents(tmp_path)
    for words in ([], ["--overwrite"]):
        result = CliRunner().invoke(app, [*map(str, arguments[spelling]), "--workers", "1", *words])
        assert result.exit_code == 1
        assert "SOURCE" in result.stderr
        assert "choose another folder" in result.stderr
    assert contents(tmp_path) == before
    link.unlink()


@pytest.mark.parametrize("kind", SOURCE_FOLDERS)
@pytest.mark.parametrize("relation", ["same", "above"])
def test_every_type_of_source_is_refused_as_or_below_the_output(tmp_path: Path, kind: str, relation: str) -> None:
    source = tmp_path / "above" / "in"
    write_source_folder(source, kind)
    before = contents(tmp_path)
    output = source if relation == "same" else source.parent
    for words in (["--dry-run"], [], ["--overwrite"], ["--captions", "none"], ["--caption", "any"]):
        result = CliRunner().invoke(app, [str(source), str(output), "--workers", "1", *words])
        assert result.exit_code == 1
        assert f"OUTPUT {output} {'is' if relation == 'same' else 'contains'} SOURCE" in result.stderr
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["IN", "Above/in", "ABOVE"])
def test_a_name_in_another_case_is_the_same_folder_where_the_file_system_ignores_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Such a file system resolves a name without correcting its case; links that are not resolved stand for it."""
    source = tmp_path / "above" / "in"
    panoramas(source, 2)
    (tmp_path / "above" / "IN").symlink_to(source)
    (tmp_path / "Above").symlink_to(source.parent)
    (tmp_path / "ABOVE").symlink_to(source.parent)
    monkeypatch.setattr(Path, "resolve", Path.absolute)
    output = tmp_path / "above" / "IN" if name == "IN" else tmp_path / name
    before = contents(tmp_path)
    result = CliRunner().invoke(app, [str(source), str(output), "--workers", "1"])
    assert result.exit_code == 1
    assert "choose another folder" in result.stderr
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", SOURCE_FOLDERS)
@pytest.mark.parametrize("place", ["in/shards", "in/a/b/shards", "in/shards.tar", "link/shards", "in/../in/shards"])
def test_an_output_inside_the_source_is_not_read(tmp_path: Path, kind: str, place: str) -> None:
    source, output = tmp_path / "in", tmp_path / place
    source.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (source / "linked").symlink_to(tmp_path / "elsewhere")  # through which link/shards lies inside SOURCE
    count = write_source_folder(source, kind)
    before = contents(source)
    first = build_shards(source, output, **OPTIONS)
    (output / "rejected.jsonl").rename(tmp_path / "rejected.jsonl")
    assert first["samples"] == count
    assert (tmp_path / "rejected.jsonl").read_bytes() == b""
    again = build_shards(source, output, **OPTIONS, overwrite=True)
    assert again == first
    assert not check_shards(output).faults
    assert {name: content for name, content in contents(source).items() if name in before} == before


def test_shards_inside_the_source_are_built_again_without_reading_them(tmp_path: Path) -> None:
    source = panoramas(tmp_path / "in", 3)
    output = source / "shards"
    build_shards(source, output, **OPTIONS)
    panoramas(source / "more", 4)
    (source / "more" / "captions.jsonl").unlink()
    lines = [{"file": f"more/pano {i}.png", "caption": "c"} for i in range(4)]
    with (source / "captions.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    assert build_shards(source, output, **OPTIONS, overwrite=True)["samples"] == 7
    assert not check_shards(output).faults
    assert len(list(source.rglob("*.png"))) == 7


def test_tars_in_the_source_are_read_and_kept_when_shards_are_built_next_to_them(source: Path, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    build_shards(source, tmp_path / "first", val_fraction=0.0)
    tars.mkdir()
    shutil.copy(tmp_path / "first" / "train-000000.tar", tars / "train-000000.tar")
    before = (tars / "train-000000.tar").read_bytes()
    for overwrite in (False, True):
        assert build_shards(tars, tars / "out", overwrite=overwrite)["samples"] == 4
    assert (tars / "train-000000.tar").read_bytes() == before
    with tarfile.open(tars / "train-000000.tar") as tar:
        assert len(tar.getmembers()) == 8


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_link_in_the_source_to_the_output_is_refused_or_not_read(source: Path, tmp_path: Path, link: str) -> None:
    output, tars = tmp_path / "out", tmp_path / "tars"
    build_shards(source, output, val_fraction=0.0)
    shutil.copytree(output, tars / "part", ignore=shutil.ignore_patterns("*.json*", "*.html"))
    before = contents(output)
    if link == "file":
        (tars / "again.tar").symlink_to(output / "train-000000.tar")
        with pytest.raises(DataError, match=r"SOURCE reads files in .*belongs to OUTPUT"):
            build_shards(tars, output, val_fraction=0.0, overwrite=True)
        with pytest.raises(DataError, match=r"SOURCE reads files in .*belongs to OUTPUT"):
            caption_source(open_source(tars), output / "captions.jsonl", "any")
        assert contents(output) == before
    else:
        (tars / "again").symlink_to(output)
        assert build_shards(tars, output, val_fraction=0.0, overwrite=True)["samples"] == 4


def test_shards_cannot_be_replaced_by_what_is_read_from_them(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    build_shards(source, output, **OPTIONS)
    before = contents(output)
    with pytest.raises(DataError, match=r"SOURCE reads files in .*belongs to OUTPUT.*choose another folder"):
        build_shards(Shards(output), tmp_path / "in" / ".." / "out", overwrite=True)
    assert contents(output) == before
