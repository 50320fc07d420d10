"""Everything that a source holds is either built or in rejected.jsonl with a reason, and the counts add up: for every
source, with the names, links and captions that people have."""

import io
import json
import os
import sys
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest
from PIL import Image
from support.pictures import picture

from cubediff.data.building.write import build_shards
from cubediff.data.sources import Entry, PanoramaJpeg, Rejection, load_panorama, open_source
from cubediff.data.sources.schemes import SCHEMES
from cubediff.utils.errors import DataError

LATIN = os.fsdecode(b"latin\xe9")  # no text in a file system whose encoding is UTF-8
CAFE, ANGSTROM = (unicodedata.normalize(form, name) for form, name in (("NFD", "Café Zürich"), ("NFC", "Ångström")))

Write = Callable[[Path, int], None]  # writes the image of a panorama; the suffix is that of the path


def write_levels(path: Path, seed: int) -> None:
    picture(seed).save(path)


def write_radiance(path: Path, seed: int) -> None:
    radiance = np.asarray(picture(seed), np.float32) / 99
    plain = path.with_name(f"x{path.suffix.lower()}")  # the libraries do not write every name
    if plain.suffix == ".exr":
        OpenEXR.File({"type": OpenEXR.scanlineimage}, {"RGB": radiance}).write(str(plain))
    else:
        cv2.imwrite(str(plain), radiance)
    plain.rename(path)


def write_sheet(columns: int, rows: int) -> Write:
    def write(path: Path, seed: int) -> None:
        sheet = Image.new("RGB", (16 * columns, 16 * rows))
        cells = [(x, y) for y in range(rows) for x in range(columns)]
        if (columns, rows) in ((4, 3), (3, 4)):
            cells = [(1, y) for y in range(rows)] + [(x, 1) for x in range(columns)]
        for x, y in cells:
            sheet.paste(picture(seed, 16, 16), (16 * x, 16 * y))
        sheet.save(path)

    return write


def six_files(scheme: str) -> Write:
    def write(path: Path, seed: int) -> None:
        for i, names in enumerate(SCHEMES[scheme]):
            picture(6 * seed + i, 16, 16).save(path.with_name(f"{path.stem}_{names[0]}{path.suffix}"))

    return write


FOLDERS: dict[str, tuple[str | None, str, Write]] = {  # --source, suffix, images
    "jpeg": (None, ".jpg", write_levels),
    "png": ("equirect", ".png", write_levels),
    "radiance": (None, ".hdr", write_radiance),
    "exr": (None, ".exr", write_radiance),
    "float tiff": (None, ".tif", write_radiance),
    "imagefolder": ("imagefolder", ".jpg", write_levels),
    **{scheme: (scheme, ".png", six_files(scheme)) for scheme in SCHEMES},
    "horizontal cross": ("cubemaps", ".png", write_sheet(4, 3)),
    "vertical cross": ("cubemaps", ".png", write_sheet(3, 4)),
    "strip": ("opengl", ".png", write_sheet(6, 1)),
    "vertical strip": ("py360convert", ".png", write_sheet(1, 6)),
}
CASES = [
    (layout, captions)
    for layout in FOLDERS
    for captions in ("lines", "sidecars")
    if not (layout == "imagefolder" and captions == "sidecars")
]


@pytest.mark.parametrize(("layout", "captions"), CASES)
def test_everything_in_a_folder_is_built_or_rejected(tmp_path: Path, layout: str, captions: str) -> None:
    kind, suffix, write = FOLDERS[layout]
    source, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    good = ["plain", CAFE, ANGSTROM, "UPPER", "deep/er/x", "link/a", "link/b"]
    bad = ["damaged", "empty caption", "no caption", *([LATIN] if sys.platform == "linux" else [])]
    (elsewhere / "set").mkdir(parents=True)
    source.mkdir()
    (source / "link").symlink_to(elsewhere / "set")
    (elsewhere / "set" / "loop").symlink_to(source)
    named = {}
    for seed, stem in enumerate([*good, *bad]):
        path = source / f"{stem}{suffix.upper() if stem == 'UPPER' else suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, seed)
        named[stem] = stem if layout in SCHEMES else f"{stem}{path.suffix}"
    for path in source.glob("damaged*"):
        path.write_bytes(path.read_bytes()[:40])
    (source / f"dangling{suffix}").symlink_to(tmp_path / "nowhere")
    (source / "phone.HEIC").write_bytes(b"of a format that is not read")
    texts = {stem: f"caption of {stem}" for stem in (*good, "damaged")} | {"empty caption": " \n", "orphan": "of none"}
    named["orphan"] = "orphan" if layout in SCHEMES else f"orphan{suffix}"
    texts |= {"phone": "of an image that is rejected anyway"}
    named["phone"] = "phone.HEIC"
    write_captions(source, captions if layout != "imagefolder" else "metadata", texts, named)

    manifest = build_shards(open_source(source, kind=kind), tmp_path / "out", max_width=64)

    built = {unicodedata.normalize("NFC", file): caption for file, caption in captions_of(tmp_path / "out").items()}
    assert built == {
        unicodedata.normalize("NFC", named[stem]): unicodedata.normalize("NFC", f"caption of {stem}") for stem in good
    }
    rejected = rejections(tmp_path / "out")
    orphan = "orphan.txt" if captions == "sidecars" else named["orphan"]
    expected = {"link/loop": "a link to a folder that contains it", orphan: ""}
    expected |= {f"dangling{suffix}": "a link to a file that is missing", "phone.HEIC": ".HEIC is not supported"}
    expected |= {named["damaged"]: "", named["no caption"]: "no", named["empty caption"]: "empty caption"}
    if LATIN in bad:
        tokens = [f"_{names[0]}" for names in SCHEMES[layout]] if layout in SCHEMES else [""]
        expected |= {f"latin\\xe9{token}{suffix}": "not UTF-8" for token in tokens}
    assert {file: file in expected and expected[file] in reason for file, reason in rejected} == dict.fromkeys(
        expected, True
    )
    assert len(rejected) == len(expected) == manifest["rejected"]
    assert manifest["samples"] == len(good)


def write_captions(source: Path, style: str, texts: dict[str, str], named: dict[str, str]) -> None:
    """Captions whose names are typed in NFC, or sidecars with suffixes in upper and lower case, where a .json without a
    caption lies next to every second .txt."""
    if style == "sidecars":
        for number, (stem, text) in enumerate(texts.items()):
            stem = unicodedata.normalize("NFC", stem)
            (source / f"{stem}{'.TXT' if stem in ('UPPER', 'plain') else '.txt'}").write_text(text, encoding="utf-8")
            if number % 2 and stem != "orphan":
                (source / f"{stem}{'.JSON' if stem == 'UPPER' else '.json'}").write_text('{"width": 64}')
        return
    name, key = ("captions.jsonl", "file") if style == "lines" else ("metadata.jsonl", "file_name")
    lines = [
        json.dumps({key: unicodedata.normalize("NFC", named[stem]), "caption": text}) for stem, text in texts.items()
    ]
    (source / name).write_text("\n".join(lines), encoding="utf-8")


def captions_of(output: Path) -> dict[str, str]:
    """The captions in the shards by the panoramas' files."""
    found = {}
    for path in output.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    record = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                    assert record["file"] not in found
                    found[record["file"]] = unicodedata.normalize("NFC", record["caption"])
    return found


def rejections(output: Path) -> list[tuple[str, str]]:
    lines = (output / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["file"], line["reason"]) for line in map(json.loads, lines)]


# ---- tars --------------------------------------------------------------------------------------------------


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], links: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for number, (name, target) in enumerate((links or {}).items()):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (tarfile.LNKTYPE, tarfile.SYMTYPE)[number % 2], target
            tar.addfile(member)


def sample(key: str, seed: int, **texts: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", jpeg(seed)), *((f"{key}.{suffix}", text.encode()) for suffix, text in texts.items())]


def test_everything_in_tars_is_built_or_rejected(tmp_path: Path) -> None:
    source = tmp_path / "in"
    decomposed = unicodedata.normalize("NFD", "café")
    write_tar(
        source / "UPPER.TAR",
        [
            *sample("a", 0, txt="first"),
            *sample("b", 1, json='{"width": 64}', txt="beside metadata"),
            *sample("c", 2, json='{"caption": ""}', txt="beside an empty caption"),
            *sample("A-UP", 3, TXT="upper case"),
            *sample("a", 4, txt="second"),  # as after tar -A
            *sample("b", 5, json='{"caption": "third"}'),
            (f"{decomposed}.jpg", jpeg(6)),
            ("café.txt", b"normal forms"),
            *sample("silent", 7, txt=" "),
            ("text only.txt", b"no image"),
            ("damaged.jpg", jpeg(8)[:300]),
            ("damaged.txt", b"a caption"),
            *sample(LATIN, 9, txt="a caption"),
            *sample("list", 10, json="[]", txt="a caption"),
        ],
        {"hard.jpg": "a.jpg", "soft.jpg": "a.jpg"},
    )
    write_tar(tmp_path / "elsewhere" / "000.tar", sample("linked", 11, txt="in a linked folder"))
    (source / "link").symlink_to(tmp_path / "elsewhere")
    (source / "link" / "loop").symlink_to(source)
    write_tar(source / "apart.tar", [(f"{k}.jpg", jpeg(s)) for s, k in enumerate("xy", 12)])
    write_tar(
        source / "apart.tar",
        [*((f"{k}.jpg", jpeg(s)) for s, k in enumerate("xy", 12)), ("x.txt", b"x"), ("y.txt", b"y")],
    )
    (source / "dangling.tar").symlink_to(tmp_path / "nowhere")

    manifest = build_shards(source, tmp_path / "out")

    built = captions_of(tmp_path / "out")
    in_order = ["beside an empty caption", "beside metadata", "first", "in a linked folder", "normal forms"]
    assert sorted(built.values()) == [*in_order, "upper case", "x", "y"]
    again = "its key occurs again in this tar"
    expected = [
        ("UPPER.TAR/a.jpg", again),
        ("UPPER.TAR/b.jpg", again),
        ("UPPER.TAR/silent.jpg", "empty caption"),
        ("UPPER.TAR/text only", "a sample without image"),
        ("UPPER.TAR/damaged.jpg", ""),
        ("UPPER.TAR/latin\\xe9.jpg", "its key is not UTF-8"),
        ("UPPER.TAR/list.jpg", "its .json is not JSON"),
        ("UPPER.TAR/hard.jpg", "a link or device in the tar"),
        ("UPPER.TAR/soft.jpg", "a link or device in the tar"),
        ("link/loop", "a link to a folder that contains it"),
        ("dangling.tar", "a link to a file that is missing"),
    ]
    rejected = rejections(tmp_path / "out")
    assert sorted(file for file, _ in rejected) == sorted(file for file, _ in expected)
    for file, words in expected:
        assert words in dict(rejected)[file], file
    assert (manifest["samples"], manifest["rejected"]) == (len(built), len(expected))


@pytest.mark.parametrize(
    ("order", "captions"),
    [
        ("0.jpg 0.txt 1.jpg 1.txt 0.jpg 0.txt 1.jpg 1.txt", ["0.txt 1", "1.txt 3"]),  # merged shards
        ("0.jpg 0.txt 0.jpg 0.txt", ["0.txt 1"]),
        ("0.jpg 1.jpg 0.txt 1.txt", ["0.txt 2", "1.txt 3"]),  # by suffix
        ("0.jpg 1.jpg 0.jpg 0.txt 1.txt", ["1.txt 4"]),  # the first image of 0 has no caption
        ("0.txt 0.jpg 0.jpg", ["0.txt 0"]),
    ],
)
def test_the_images_of_a_tar_and_the_counts_add_up_in_any_order_of_its_members(
    tmp_path: Path, order: str, captions: list[str]
) -> None:
    """A caption never moves to the image of another sample."""
    members = [(name, f"{name} {i}".encode() if "txt" in name else jpeg(i)) for i, name in enumerate(order.split())]
    write_tar(tmp_path / "in" / "a.tar", members)
    manifest = build_shards(tmp_path / "in", tmp_path / "out")
    assert sorted(captions_of(tmp_path / "out").values()) == captions
    assert manifest["samples"] + manifest["rejected"] == order.count("jpg")


# ---- sources of other packages -----------------------------------------------------------------------------


class Careless:
    """A source that lists a panorama twice, and texts that are none."""

    identity = "careless"

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> tuple[list[Entry], list[Rejection]]:
        entries = [Entry(name, name, None, name) for name in ("a.png", "b.png", "a.png", "half \ud800.png")]
        entries += [Entry("c.png", "\ud800", None, "c"), Entry("d.png", "d", None, "d", {"path": self.path})]
        return entries, [Rejection("e.png", "too dark")]

    def files(self, entry: Entry) -> list[Path]:
        return [self.path / entry.file]

    def load(self, entry: Entry, max_width: int = 16384, quality: int = 95) -> PanoramaJpeg:
        return load_panorama(self.path / entry.file, max_width, quality)


def test_everything_of_a_custom_source_is_built_or_rejected(tmp_path: Path) -> None:
    for seed, name in enumerate("abcd"):
        picture(seed).save(tmp_path / f"{name}.png")
    manifest = build_shards(Careless(tmp_path), tmp_path / "out")
    assert captions_of(tmp_path / "out") == {"a.png": "a.png", "b.png": "b.png"}
    rejected = rejections(tmp_path / "out")
    assert Counter(file for file, _ in rejected) == Counter(["a.png", "half \\ud800.png", "c.png", "d.png", "e.png"])
    assert "listed twice" in dict(rejected)["a.png"]
    assert "not JSON text in UTF-8" in dict(rejected)["c.png"]
    assert manifest["samples"] + manifest["rejected"] == 7


# ---- messages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["A.JPG", "a.png", "a", "images/a.jpg"])
def test_a_caption_that_matches_no_file_names_the_similar_one(tmp_path: Path, name: str) -> None:
    picture(0).save(tmp_path / "a.jpg")
    picture(1).save(tmp_path / "b.jpg")
    lines = [{"file": name, "caption": "c"}, {"file": "other", "caption": "c"}, {"file": "b.jpg", "caption": "c"}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    reasons = {r.file: r.reason for r in open_source(tmp_path).entries()[1]}
    assert reasons[name] == "has a caption but the file is missing; did you mean a.jpg?"
    assert reasons["other"].endswith("the file is missing; names are relative to SOURCE, such as a.jpg")


def test_names_that_differ_in_their_normal_form_only_are_told_apart(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD")]
    for seed, name in enumerate(names):
        picture(seed).save(tmp_path / name)
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("the file system takes them for one name")
    lines = [json.dumps({"file": name, "caption": form}) for name, form in zip(names, ("NFC", "NFD"), strict=True)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    assert {e.file: e.caption for e in open_source(tmp_path).entries()[0]} == dict(
        zip(names, ("NFC", "NFD"), strict=True)
    )


def test_a_folder_with_unreadable_names_only_is_rejected_name_by_name(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("the file system takes text only")
    (tmp_path / "in").mkdir()
    picture(0).save(tmp_path / "in" / f"{LATIN}.jpg")
    with pytest.raises(DataError, match=r"no panorama can be used .*latin\\xe9\.jpg.*rename it"):
        build_shards(tmp_path / "in", tmp_path / "out")
    assert rejections(tmp_path / "out") == [("latin\\xe9.jpg", "its name is not UTF-8 text: rename it")]


def test_panoramas_in_a_folder_whose_own_name_is_no_text(tmp_path: Path) -> None:
    """OpenCV and OpenEXR end the process on such a path."""
    if sys.platform != "linux":
        pytest.skip("the file system takes text only")
    source = tmp_path / LATIN
    source.mkdir()
    picture(0).save(source / "a.jpg")
    for name in ("b.hdr", "c.exr"):
        write_radiance(tmp_path / name, 1)
        (tmp_path / name).rename(source / name)
    lines = [{"file": name, "caption": "c"} for name in ("a.jpg", "b.hdr", "c.exr")]
    (source / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert build_shards(source, tmp_path / f"out {LATIN}")["samples"] == 1
    reason = "the name of its folder is not UTF-8 text: rename the folder"
    assert rejections(tmp_path / f"out {LATIN}") == [("b.hdr", reason), ("c.exr", reason)]
