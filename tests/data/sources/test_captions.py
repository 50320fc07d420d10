"""Captions from JSON lines, prompts.txt and sidecar files: how they match panoramas, and which are rejected."""

import json
from pathlib import Path

import pytest
from support.pictures import picture

from cubediff.data.sources import Entry, open_source
from cubediff.geometry import FACES
from cubediff.utils.errors import DataError

FACE_CAPTIONS = {face: f"the {face}" for face in FACES}


def panoramas(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(path / name)
    return path


def read(path: Path, captions: Path | None = None, **options: bool) -> tuple[dict[str, Entry], dict[str, str]]:
    entries, rejected = open_source(path, captions, "equirect", **options).entries()
    assert len({entry.file for entry in entries}) == len(entries)
    return {entry.file: entry for entry in entries}, {r.file: r.reason for r in rejected}


def test_json_lines_and_files_that_do_not_match_are_listed(tmp_path: Path) -> None:
    source = panoramas(tmp_path, *(f"pano {i}.jpg" for i in range(8)))
    lines = [
        {"file": "pano 0.jpg", "caption": " first ", "faces": FACE_CAPTIONS, "asset": "hall", "light": "day"},
        {"file": "./pano 0.jpg", "caption": "again"},
        {"file": "gone.jpg", "caption": "c"},
        {"file": "pano 1.jpg", "caption": "  "},
        {"file": "pano 2.jpg", "caption": "c", "faces": {"front": "only this"}},
        {"file": "pano 3.jpg", "caption": "c", "faces": FACE_CAPTIONS | {"up": ""}},
        {"file": "../outside.jpg", "caption": "c"},
        {"file": "/etc/passwd", "caption": "c"},
        {"file": "C:\\windows\\a.jpg", "caption": "c"},
        {"file": "pano 4.jpg", "caption": "c", "asset": 7},
        {"caption": "of what?"},
        {"file": "nul\0.jpg", "caption": "c"},
        {"file": "long" * 999, "caption": "c"},
        {"file": "pano 6.jpg", "caption": ["a", "list"]},
        {"file": "pano 7.jpg", "capton": "c"},
    ]
    text = "\ufeff" + "".join(json.dumps(line) + "\n" for line in lines)
    text += (
        '\n{"file": \n[1]\n{"file": "pano 5.jpg", "caption": "\\ud800"}\n{"file": "x.jpg", "caption": "c", "n": NaN}\n'
    )
    (source / "captions.jsonl").write_text(text + "[" * 100000 + "\n", encoding="utf-8")
    entries, reasons = read(source)
    assert entries == {"pano 0.jpg": Entry("pano 0.jpg", "first", FACE_CAPTIONS, "hall", {"light": "day"})}
    for file, words in {
        "pano 0.jpg": "listed twice (again in line 2): the first entry counts",
        "gone.jpg": "has a caption but the file is missing",
        "pano 1.jpg": "empty caption",
        "pano 2.jpg": "faces must be a caption for each of front, right",
        "pano 3.jpg": "empty caption of face up",
        "../outside.jpg": "is outside SOURCE",
        "/etc/passwd": "is outside SOURCE",
        "C:/windows/a.jpg": "is outside SOURCE",
        "pano 4.jpg": "asset must be the scene's name, not 7",
        "captions.jsonl:11": "names no panorama",
        "nul\0.jpg": "the file is missing",
        "long" * 999: "the file is missing",
        "pano 6.jpg": "empty caption",
        "pano 7.jpg": "empty caption; is 'capton' meant as caption?",
        "captions.jsonl:17": "not a JSON object",
        "captions.jsonl:18": "expected an object",
        "captions.jsonl:19": "half a surrogate pair",
        "captions.jsonl:20": "NaN is not a finite number",
        "captions.jsonl:21": "not a JSON object",
        "pano 5.jpg": "has no caption in captions.jsonl",
    }.items():
        assert words in reasons.pop(file), file
    assert reasons == {}


def test_prompts_txt_goes_line_by_line_with_the_sorted_files(tmp_path: Path) -> None:
    source = panoramas(tmp_path, "b.jpg", "a/z.jpg", "c.png")
    (source / "prompts.txt").write_text("zero\r\n\r\ntwo\n\n")
    entries, reasons = read(source)
    assert {file: entry.caption for file, entry in entries.items()} == {"a/z.jpg": "zero", "c.png": "two"}
    assert reasons == {"b.jpg": "empty caption"}
    (tmp_path / "short.txt").write_text("zero\none\n")
    with pytest.raises(DataError, match=r"short\.txt has 2 lines but there are 3 panoramas.*from a/z\.jpg to c\.png"):
        read(source, tmp_path / "short.txt")
    (source / "d.heic").touch()
    with pytest.raises(DataError, match=r"from a/z\.jpg to c\.png; rejected files have no line: d\.heic$"):
        read(source, tmp_path / "short.txt")


def test_sidecar_files_caption_their_panoramas(tmp_path: Path) -> None:
    source = panoramas(tmp_path, "a.jpg", "b.v2.jpg", "sub/c.jpg", "d.jpg", "e.jpg", "f.jpg", "g.jpg")
    (source / "a.txt").write_text("a hall\nwith two lines\n")
    (source / "b.v2.json").write_text(json.dumps({"caption": "b", "faces": FACE_CAPTIONS, "asset": "s", "n": 1}))
    (source / "b.v2.txt").write_text("ignored, since there is a .json")
    (source / "sub" / "c.txt").write_text("c")
    (source / "d.txt").write_bytes(b"caf\xe9")
    (source / "e.json").write_text("{")
    (source / "f.json").write_text("[]")
    entries, reasons = read(source)
    assert entries == {
        "a.jpg": Entry("a.jpg", "a hall\nwith two lines", None, "a.jpg"),
        "b.v2.jpg": Entry("b.v2.jpg", "b", FACE_CAPTIONS, "s", {"n": 1}),
        "sub/c.jpg": Entry("sub/c.jpg", "c", None, "sub/c.jpg"),
    }
    assert set(reasons) == {"d.jpg", "e.jpg", "f.jpg", "g.jpg"}
    assert "d.txt next to it is not UTF-8" in reasons["d.jpg"]
    assert "e.json next to it is not JSON" in reasons["e.jpg"]
    assert "expected an object" in reasons["f.jpg"]
    assert reasons["g.jpg"] == "has no .json and no .txt next to it: expected g.json or g.txt"


def test_markup_is_kept_as_text_and_control_characters_are_removed(tmp_path: Path) -> None:
    source = panoramas(tmp_path, "a.jpg")
    caption = "<script>alert('x')</script> &amp;\x00 a\x1b[31mred\x1b[0m\x7f\u0085 hall,\tone\nand é, 草原, 🙂"
    (source / "captions.jsonl").write_text(json.dumps({"file": "a.jpg", "caption": caption}))
    entries, _ = read(source)
    assert entries["a.jpg"].caption == "<script>alert('x')</script> &amp; a[31mred[0m hall,\tone\nand é, 草原, 🙂"
    (source / "captions.jsonl").write_text(json.dumps({"file": "a.jpg", "caption": "\x00\x07"}))
    assert read(source) == ({}, {"a.jpg": "empty caption"})


@pytest.mark.parametrize("kind", ["none", "lines", "prompts", "beside"])
def test_without_captioned_panoramas_without_captions_are_entries(tmp_path: Path, kind: str) -> None:
    source = panoramas(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    if kind == "lines":
        lines = [{"file": "a.jpg", "caption": "a", "asset": "hall"}, {"file": "b.jpg", "caption": ""}]
        (source / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif kind == "prompts":
        (source / "prompts.txt").write_text("a\n\nc\n")
    elif kind == "beside":
        (source / "a.txt").write_text("a")
    entries, reasons = read(source, captioned=False)
    assert list(entries) == ["a.jpg", "b.jpg", "c.jpg"]
    assert reasons == {}
    assert entries["a.jpg"].caption == ("" if kind == "none" else "a")
    assert entries["b.jpg"] == Entry("b.jpg", "", None, "b.jpg")
    assert entries["a.jpg"].scene == ("hall" if kind == "lines" else "a.jpg")


def test_missing_or_unreadable_captions_are_an_error(tmp_path: Path) -> None:
    source = panoramas(tmp_path / "in", "a.jpg")
    with pytest.raises(DataError, match=r"no captions\.jsonl, no prompts\.txt and no \.json or \.txt"):
        read(source)
    with pytest.raises(DataError, match="does not exist"):
        read(source, tmp_path / "no.jsonl")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 text \(byte 3\)"):
        read(source, tmp_path / "latin.txt")
