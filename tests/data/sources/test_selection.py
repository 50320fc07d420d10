"""Parts of a source: globs that include and exclude panoramas, and builds without captions."""

import json
import tarfile
from pathlib import Path

import pytest
from support.builds import panoramas
from support.pictures import picture
from support.runs import train
from typer.testing import CliRunner

from cubediff.data.building.check import check_shards
from cubediff.data.building.write import build_shards
from cubediff.data.sources import open_source
from cubediff.data.sources.selection import NO_CAPTIONS, is_selected
from cubediff.prepare import app
from cubediff.utils.errors import DataError


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("*.jpg", ["a.jpg", "in/a.jpg", "in/deep/a.jpg"], ["a.JPG", "a.jpg.png"]),
        ("indoor", ["indoor/a.jpg", "x/indoor/b/a.jpg", "indoor"], ["indoors/a.jpg"]),
        ("indoor/", ["indoor/a.jpg"], ["outdoor/a.jpg"]),
        ("indoor/*", ["indoor/a.jpg", "indoor/b/a.jpg"], ["x/indoor/a.jpg"]),
        ("indoor/*.jpg", ["indoor/a.jpg"], ["indoor/b/a.jpg", "indoor/a.png"]),
        ("./indoor/**/a?.jpg", ["indoor/a1.jpg", "indoor/b/c/a2.jpg"], ["indoor/a.jpg", "indoor/a12.jpg"]),
        ("**/full/rgb_*.png", ["full/rgb_raw.png", "x/y/full/rgb_raw.png"], ["x/empty/rgb_raw.png"]),
        ("room_[0-2].jpg", ["room_1.jpg"], ["room_3.jpg", "room_-.jpg"]),
        ("room_[!0-2].jpg", ["room_3.jpg"], ["room_1.jpg"]),
        ("a[b.jpg", ["a[b.jpg"], ["ab.jpg"]),
        ("a[]]b.jpg", ["a]b.jpg"], ["a[b.jpg"]),
        ("a.b+(c).jpg", ["a.b+(c).jpg"], ["aXb+(c).jpg"]),
        ("caf\u00e9*", ["cafe\u0301.jpg"], ["cafe.jpg"]),
    ],
)
def test_a_glob_matches_names_and_all_below_a_folder(glob: str, matching: list[str], others: list[str]) -> None:
    for name in matching:
        assert is_selected(name, [glob], [])
        assert not is_selected(name, [], [glob])
    for name in others:
        assert not is_selected(name, [glob], [])
        assert is_selected(name, [], [glob])


def files_of(output: Path) -> set[str]:
    found = set()
    for path in output.glob("*.tar"):
        with tarfile.open(path) as tar:
            found |= {json.load(tar.extractfile(m))["file"] for m in tar if m.name.endswith("json")}  # type: ignore[arg-type]
    return found


def test_include_and_exclude_select_what_is_built_and_what_is_rejected(tmp_path: Path) -> None:
    source = panoramas(tmp_path / "in", 4)
    for name in ("sub/a.png", "sub/a small.png", "sub/uncaptioned.png", "other/uncaptioned.png"):
        (source / name).parent.mkdir(exist_ok=True)
        picture(9).save(source / name)
    with (source / "captions.jsonl").open("a") as file:
        for name in ("sub/a.png", "sub/a small.png", "gone.png"):
            file.write(json.dumps({"file": name, "caption": "c"}) + "\n")
        file.write("no JSON\n")
    words = ["--include", "sub", "--include", "pano [12].png", "--exclude", "*small*", "--workers", "1"]
    result = CliRunner().invoke(app, [str(source), str(tmp_path / "out"), *words])
    assert result.exit_code == 0, result.stderr
    assert files_of(tmp_path / "out") == {"sub/a.png", "pano 1.png", "pano 2.png"}
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [line["file"] for line in rejected] == ["captions.jsonl:8", "sub/uncaptioned.png"]
    with pytest.raises(DataError, match=r"--include nothing/\* leaves none of the 6 panoramas, such as pano 0\.png"):
        open_source(source, include=["nothing/*"]).entries()


def test_an_excluded_type_of_file_does_not_make_a_folder_ambiguous(tmp_path: Path) -> None:
    source = panoramas(tmp_path / "in", 2)
    build_shards(source, source / "old", val_fraction=0.0)
    with pytest.raises(DataError, match="--source webdataset or equirect"):
        open_source(source)
    entries, _ = open_source(source, exclude=["*.tar"]).entries()
    assert [entry.file for entry in entries] == ["pano 0.png", "pano 1.png"]


def test_an_interrupted_build_resumes_only_with_the_same_globs(tmp_path: Path) -> None:
    source = panoramas(tmp_path / "in", 2)
    identities = [open_source(source, include=include).identity for include in ((), ("a",), ("b",))]
    assert len(set(identities)) == 3
    assert identities[0] == open_source(source).identity


@pytest.mark.parametrize("kind", ["none", "lines", "sidecars", "tars", "imagefolder"])
def test_captions_none_builds_every_panorama_without_text(tmp_path: Path, kind: str) -> None:
    source = panoramas(tmp_path / "in", 3)
    lines = (source / "captions.jsonl").read_text()
    if kind == "tars":
        build_shards(source, tmp_path / "tars", val_fraction=0.0)
        source = tmp_path / "tars"
    elif kind != "lines":
        (source / "captions.jsonl").unlink()
    if kind == "sidecars":
        (source / "pano 1.txt").write_text("a caption")
        (source / "orphan.txt").write_text("of none")
    if kind == "imagefolder":
        (source / "metadata.jsonl").write_text(lines.replace('"file"', '"file_name"'))
    output = tmp_path / "out"
    result = CliRunner().invoke(app, [str(source), str(output), "--captions", "none", "--workers", "1"])
    assert result.exit_code == 0, result.stderr
    assert "none rejected" in result.stdout
    assert not check_shards(output).faults
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["samples"] == 3
    assert manifest["settings"]["captions"] == "none"
    entries, _ = open_source(output, captioned=False).entries()
    assert {entry.caption for entry in entries} == {""}
    light = {entry.metadata.get("light") for entry in entries}
    assert light == ({None} if kind in ("none", "sidecars") else {"day"})


def test_scenes_of_captions_stay_together_without_captions(tmp_path: Path) -> None:
    source = panoramas(tmp_path / "in", 2)
    lines = [json.dumps({"file": f"pano {i}.png", "asset": "hall"}) for i in range(2)]
    (source / "captions.jsonl").write_text("\n".join(lines))
    entries, rejected = open_source(source, NO_CAPTIONS).entries()
    assert {entry.scene for entry in entries} == {"hall"}
    assert rejected == []


def test_captions_that_are_missing_by_mistake_are_still_a_fault(tmp_path: Path) -> None:
    """Only a dataset that was built without captions may have empty ones."""
    build_shards(panoramas(tmp_path / "in", 2), tmp_path / "out", NO_CAPTIONS, val_fraction=0.0)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    del manifest["settings"]["captions"]
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert sum("its caption is empty" in fault for fault in check_shards(tmp_path / "out").faults) == 2


def test_training_on_panoramas_without_captions(tmp_path: Path) -> None:
    build_shards(panoramas(tmp_path / "in", 5), tmp_path / "out", NO_CAPTIONS, val_fraction=0.2)
    run = train(tmp_path / "out", tmp_path / "run")
    assert (run / "export" / "model_index.json").is_file()
