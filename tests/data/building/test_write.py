"""What prepare accepts, refuses and writes."""

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from typer.testing import CliRunner

from cubediff.data.building import splitting, write
from cubediff.data.building.write import build_shards
from cubediff.data.format.index import read_sample
from cubediff.data.sources import Entry, PanoramaJpeg
from cubediff.data.sources.equirect import EquirectFolder
from cubediff.geometry import FACES
from cubediff.prepare import app
from cubediff.utils.errors import DataError

SAMPLES = Path(__file__).parents[3] / "data" / "samples"
FACE_CAPTIONS = {face: f"the {face}" for face in FACES}


def picture(seed: int = 0, width: int = 64, height: int = 32) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def folder(path: Path, count: int = 5, **extra: object) -> Path:
    """A source folder of small JPEG panoramas with a caption each."""
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(i).save(path / f"pano {i}.jpg", quality=90)
    captions(path, [{"file": f"pano {i}.jpg", "caption": f"caption {i}", **extra} for i in range(count)])
    return path


def captions(path: Path, records: list[dict]) -> None:
    (path / "captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def contents(output: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in output.iterdir()}


def refusals(output: Path) -> dict[str, str]:
    lines = (output / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {r["file"]: r["reason"] for r in map(json.loads, lines)}


# ---- what is written ---------------------------------------------------------------------------------------


def test_the_sample_panoramas_become_shards_that_hold_their_own_bytes(tmp_path: Path) -> None:
    manifest = build_shards(SAMPLES, tmp_path / "out", val_fraction=0.2)
    records = [json.loads(line) for line in (SAMPLES / "captions.jsonl").read_text("utf-8").splitlines()]
    assert manifest["samples"] == len(records) == manifest["with_face_captions"]
    assert sum(manifest["widths"].values()) == len(records)
    assert refusals(tmp_path / "out") == {}
    stored = {}
    for shard in (tmp_path / "out").glob("*.tar"):
        stored |= members(shard)
    for record in records:
        key = Path(record["file"]).stem
        assert stored[f"{key}.jpg"] == (SAMPLES / record["file"]).read_bytes()
        sample = json.loads(stored[f"{key}.json"])
        assert sample["caption"] == record["caption"]
        assert list(sample["faces"]) == list(FACES)
        assert sample["faces"] == record["faces"]
        assert sample["metadata"]["licence"] == record["licence"]


def test_the_manifest_describes_the_shards(tmp_path: Path) -> None:
    manifest = build_shards(folder(tmp_path / "in", 7), tmp_path / "out", val_fraction=0.3, shard_size=2)
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    for name, split in manifest["splits"].items():
        sizes = [shard["samples"] for shard in split["shards"]]
        assert sum(sizes) == split["samples"]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= 2
        for i, shard in enumerate(split["shards"]):
            data = (tmp_path / "out" / shard["file"]).read_bytes()
            assert shard["file"] == f"{name}-{i:06d}.tar"
            assert shard["bytes"] == len(data)
            assert shard["sha256"] == hashlib.sha256(data).hexdigest()
            assert len(members(tmp_path / "out" / shard["file"])) == 2 * shard["samples"]


def test_the_index_finds_every_sample(tmp_path: Path) -> None:
    manifest = build_shards(folder(tmp_path / "in", 7), tmp_path / "out", val_fraction=0.3, shard_size=2)
    data = (tmp_path / "out" / "index.jsonl").read_bytes()
    assert manifest["index"] == {"file": "index.jsonl", "sha256": hashlib.sha256(data).hexdigest()}
    lines = [json.loads(line) for line in data.splitlines()]
    assert [line["file"] for line in lines] == [s["file"] for p in manifest["splits"].values() for s in p["shards"]]
    for line in lines:
        whole = members(tmp_path / "out" / line["file"])
        with (tmp_path / "out" / line["file"]).open("rb") as file:
            for key, place in zip(line["keys"], itertools.pairwise(line["offsets"]), strict=True):
                sample = read_sample(file.fileno(), *place)
                assert sample == {part: whole.pop(f"{key}.{part}") for part in ("jpg", "json")}
        assert not whole


@pytest.mark.slow
def test_a_second_build_has_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 6)
    picture(9).save(source / "pano 0.jpg", progressive=True)  # re-encoded
    build_shards(source, tmp_path / "a", shard_size=2)
    for file in source.iterdir():
        file.touch()
    build_shards(source, tmp_path / "b", shard_size=2, workers=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with tarfile.open(tmp_path / "a" / "train-000000.tar") as tar:
        assert all((m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) == (0, 0, 0, "", "", 0o644) for m in tar)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files to the GC
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_plain_webdataset_reads_the_shards(tmp_path: Path) -> None:
    build_shards(folder(tmp_path / "in", 5), tmp_path / "out", val_fraction=0.0, shard_size=2)
    urls = sorted(str(f) for f in (tmp_path / "out").glob("train-*.tar"))
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert sorted(s["json"]["caption"] for s in samples) == [f"caption {i}" for i in range(5)]
    assert {s["jpg"].shape for s in samples} == {(32, 64, 3)}


def test_keys_suit_tar_and_webdataset_and_stay_unique(tmp_path: Path) -> None:
    source = tmp_path / "in"
    names = ["a b.v2.jpg", "a_b_v2.jpg", "sub/x.jpg", "sub_x.png", "草原.jpg", "山.jpg", "n" * 120 + ".jpg"]
    for i, name in enumerate(names):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(source / name)
    captions(source, [{"file": n, "caption": n} for n in names])
    build_shards(source, tmp_path / "out", val_fraction=0.0)
    stored = members(tmp_path / "out" / "train-000000.tar")
    keys = [name[:-5] for name in stored if name.endswith(".json")]
    assert len(keys) == len({k.lower() for k in keys}) == len(names)
    assert all(k.isascii() and "." not in k and "/" not in k and len(k) < 95 for k in keys)
    assert {json.loads(stored[f"{k}.json"])["caption"] for k in keys} == set(names)


# ---- the split ---------------------------------------------------------------------------------------------


def split_of(output: Path, name: str) -> set[str]:
    stored = [members(f) for f in output.glob(f"{name}-*.tar")]
    return {json.loads(d)["file"] for shard in stored for n, d in shard.items() if n.endswith(".json")}


def test_a_scene_stays_on_one_side_of_the_split(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 12)
    captions(source, [{"file": f"pano {i}.jpg", "caption": "c", "asset": f"room {i % 3}"} for i in range(12)])
    build_shards(source, tmp_path / "out", val_fraction=0.4)
    sides = [{int(f[5:-4]) % 3 for f in split_of(tmp_path / "out", s)} for s in ("train", "val")]
    assert sides[0].isdisjoint(sides[1])
    assert sides[0]
    assert sides[1]


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_two_scenes_are_split_into_training_and_validation(tmp_path: Path, fraction: float) -> None:
    manifest = build_shards(folder(tmp_path / "in", 2), tmp_path / "out", val_fraction=fraction)
    assert [manifest["splits"][s]["samples"] for s in ("train", "val")] == [1, 1]


def test_a_single_scene_or_a_zero_fraction_gives_no_validation_split(tmp_path: Path) -> None:
    one = build_shards(folder(tmp_path / "one", 3, asset="same"), tmp_path / "a", val_fraction=0.5)
    none = build_shards(folder(tmp_path / "in", 3), tmp_path / "b", val_fraction=0.0)
    for manifest in (one, none):
        assert manifest["splits"]["train"]["samples"] == 3
        assert manifest["splits"]["val"] == {"samples": 0, "with_face_captions": 0, "shards": []}


def test_more_panoramas_move_no_scene_across_the_split(tmp_path: Path) -> None:
    build_shards(folder(tmp_path / "in", 30), tmp_path / "a", val_fraction=0.3)
    build_shards(folder(tmp_path / "in", 40), tmp_path / "b", val_fraction=0.3)
    assert split_of(tmp_path / "a", "val") < split_of(tmp_path / "b", "val")
    assert split_of(tmp_path / "a", "train") < split_of(tmp_path / "b", "train")


def test_near_duplicates_are_listed_and_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    """Each sample and a renamed copy that is rotated, halved and re-encoded, at many fractions."""
    source = Path(shutil.copytree(SAMPLES, tmp_path / "in"))
    lines = []
    paths = sorted(SAMPLES.glob("*.jpg"))
    for i, path in enumerate(paths):
        image = cv2.resize(cv2.imread(str(path)), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        turned = np.roll(image, 13 * i, axis=1)
        cv2.imwrite(str(source / f"again {path.name}"), turned, [cv2.IMWRITE_JPEG_QUALITY, 60])
        lines += [{"file": name, "caption": "c"} for name in (path.name, f"again {path.name}")]
    captions(source, lines)
    for fraction in (0.1, 0.5):
        build_shards(source, tmp_path / "out", val_fraction=fraction, overwrite=True)
        train, val = (split_of(tmp_path / "out", side) for side in ("train", "val"))
        assert len(train) + len(val) == 50
        assert val
        assert {f.removeprefix("again ") for f in train}.isdisjoint(f.removeprefix("again ") for f in val)
    pairs = [json.loads(line) for line in (tmp_path / "out" / "duplicates.jsonl").read_text().splitlines()]
    assert {frozenset(p["files"]) for p in pairs} == {frozenset((p.name, f"again {p.name}")) for p in paths}
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["near_duplicates"]["pairs"] == 25


def test_scenes_are_joined_through_chains_of_near_duplicates(tmp_path: Path) -> None:
    """b belongs to scene 1 and equals a; c belongs to scene 1 and equals d: all four are one scene."""
    source = folder(tmp_path / "in", 8)
    for copy, of in (("a", 0), ("d", 1)):
        shutil.copy(source / f"pano {of}.jpg", source / f"{copy}.jpg")
    lines = [{"file": f"pano {i}.jpg", "caption": "c", "asset": "one" if i < 2 else f"of {i}"} for i in range(8)]
    captions(source, [*lines, {"file": "a.jpg", "caption": "c"}, {"file": "d.jpg", "caption": "c"}])
    sides = set()
    for fraction in np.linspace(0.05, 0.95, 7):
        build_shards(source, tmp_path / "out", val_fraction=float(fraction), overwrite=True)
        val = split_of(tmp_path / "out", "val")
        sides.add(len(val & {"a.jpg", "d.jpg", "pano 0.jpg", "pano 1.jpg"}))
    assert sides == {0, 4}


# ---- bad input ---------------------------------------------------------------------------------------------


def test_each_unusable_panorama_is_listed_with_its_reason(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 2)
    picture(0, 100, 40).save(source / "wide.png")
    picture(0, 16, 8).save(source / "tiny.png")
    picture(0, 512, 256).save(source / "huge.png")
    (source / "text.jpg").write_text("no image")
    (source / "empty.jpg").write_bytes(b"")
    whole = (source / "pano 0.jpg").read_bytes()
    (source / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    picture().save(source / "cut.png")
    (source / "cut.png").write_bytes((source / "cut.png").read_bytes()[:900])
    Image.new("RGB", (64, 32), (5, 90, 7)).save(source / "plain.jpg")
    radiance = np.random.default_rng(0).random((32, 64, 3), np.float32)
    cv2.imwrite(str(source / "sky.hdr"), radiance)
    (source / "cut.hdr").write_bytes((source / "sky.hdr").read_bytes()[:700])
    (source / "head.hdr").write_bytes(b"#?RADIANCE\n")
    (source / "black.hdr").write_bytes((source / "sky.hdr").read_bytes())
    cv2.imwrite(str(source / "black.hdr"), 0 * radiance)
    radiance[3, 4] = np.nan
    radiance[5, 6] = np.inf
    cv2.imwrite(str(source / "nan.tif"), radiance)
    (source / "movie.exr").write_bytes(b"v/1\x01")
    files = [f.name for f in source.iterdir() if f.name != "captions.jsonl"]
    captions(source, [{"file": f, "caption": "c"} for f in files])
    manifest = build_shards(source, tmp_path / "out", max_width=256, workers=1)
    reasons = refusals(tmp_path / "out")
    assert manifest["samples"] == 3  # two JPEG and sky.hdr
    assert manifest["rejected"] == len(reasons) == len(files) - 3
    for file, words in {
        "wide.png": "100x40 is not 2:1: a full sphere 100 wide is 50 high",
        "tiny.png": "too small",
        "huge.png": "512x256 is too large: shrink it, or raise --max-width 256",
        "text.jpg": "unreadable",
        "empty.jpg": "unreadable",
        "cut.jpg": "truncated",
        "cut.png": "truncated",
        "plain.jpg": "all one colour",
        "cut.hdr": "truncated",
        "head.hdr": "unreadable: no resolution",
        "black.hdr": "all one colour",
        "nan.tif": "2 pixels are NaN or infinite",
        "movie.exr": "truncated or unreadable",
    }.items():
        assert words in reasons[file], (file, reasons[file])


# ---- never half a dataset ----------------------------------------------------------------------------------


def test_an_interrupted_build_leaves_no_shard_and_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tmp_path / "in", 5)
    real, calls = write.write_shard, []

    def fails_at_the_third(*args: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(write, "write_shard", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build_shards(source, tmp_path / "out", shard_size=1)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".building"]


def test_a_failed_rebuild_leaves_the_old_shards_and_a_good_one_replaces_them(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 6)
    build_shards(source, tmp_path / "out", shard_size=1)
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match=r"already holds shards.*--overwrite"):
        build_shards(source, tmp_path / "out")
    with pytest.raises(DataError, match="val-fraction"):
        build_shards(source, tmp_path / "out", val_fraction=1.0, overwrite=True)
    assert contents(tmp_path / "out") == before
    build_shards(source, tmp_path / "out", shard_size=6, val_fraction=0.0, overwrite=True)
    assert sorted(contents(tmp_path / "out")) == [
        "duplicates.jsonl",
        "index.jsonl",
        "manifest.json",
        "rejected.jsonl",
        "report.html",
        "train-000000.tar",
    ]


def test_a_source_that_changes_during_the_build_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tmp_path / "in", 2)

    def changes(*args: object) -> set[str]:
        picture(99).save(source / "pano 1.jpg")
        return set()

    with monkeypatch.context() as patch:
        patch.setattr(splitting, "_val_scenes", changes)
        with pytest.raises(DataError, match=r"pano 1\.jpg changed while"):
            build_shards(source, tmp_path / "out")
    build_shards(source, tmp_path / "out")
    build_shards(source, tmp_path / "anew")
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")


# ---- parts of a source -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded(EquirectFolder):
    """A source that converts every panorama and records the conversion."""

    def load(self, entry: Entry, max_width: int, quality: int) -> PanoramaJpeg:
        return replace(super().load(entry, max_width, quality), record={"exposure": 1.5, "steps": [1, "é"]})


def test_the_conversion_record_of_a_source_is_stored_with_the_sample(tmp_path: Path) -> None:
    build_shards(Recorded(folder(tmp_path / "in", 2)), tmp_path / "out", val_fraction=0.0, workers=1)
    stored = members(tmp_path / "out" / "train-000000.tar")
    for name in ("pano_0.json", "pano_1.json"):
        assert json.loads(stored[name])["record"] == {"exposure": 1.5, "steps": [1, "é"]}
    build_shards(tmp_path / "in", tmp_path / "plain", val_fraction=0.0)
    assert "record" not in json.loads(members(tmp_path / "plain" / "train-000000.tar")["pano_0.json"])


def test_a_limit_takes_the_first_panoramas(tmp_path: Path) -> None:
    manifest = build_shards(folder(tmp_path / "in", 9), tmp_path / "out", limit=4)
    assert manifest["samples"] == 4
    assert split_of(tmp_path / "out", "train") | split_of(tmp_path / "out", "val") == {
        f"pano {i}.jpg" for i in range(4)
    }
    with pytest.raises(DataError, match="--limit 0"):
        build_shards(tmp_path / "in", tmp_path / "b", limit=0)
    assert not (tmp_path / "b").exists()


def test_a_dry_run_prints_the_expected_build_and_writes_nothing(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 40, faces=FACE_CAPTIONS)
    for i in range(40):
        picture(i, 512, 256).save(source / f"pano {i}.png")
    lines = (source / "captions.jsonl").read_text()
    (source / "captions.jsonl").write_text(lines.replace(".jpg", ".png"))
    before = sorted(f.name for f in tmp_path.rglob("*"))
    result = CliRunner().invoke(app, [str(source), str(tmp_path / "out"), "--dry-run"])
    assert result.exit_code == 0
    assert sorted(f.name for f in tmp_path.rglob("*")) == before
    *left_out, last = result.stdout.splitlines()
    assert left_out[0] == "left out: pano 0.jpg: has no caption in captions.jsonl"
    assert left_out[-1] == "left out: 20 more"
    assert last.startswith("40 panoramas of 40 scenes (40 with face captions), 40 left out")
    assert "of 16 that were read 0 would be rejected" in last
    build_shards(source, tmp_path / "out")
    written = sum(f.stat().st_size for f in (tmp_path / "out").glob("*.tar")) / 1e6
    assert float(last.split(" about ")[1].split(" MB")[0]) == pytest.approx(written, rel=0.1, abs=0.05)


# ---- the command -------------------------------------------------------------------------------------------


def test_the_command_prints_a_summary_of_one_line(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 4, faces=FACE_CAPTIONS)
    picture(0, 60, 20).save(source / "bad.png")
    result = CliRunner().invoke(app, [str(source), str(tmp_path / "out"), "--val-fraction", "0.25", "--workers", "1"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert "4 with face captions" in result.stdout
    assert f"1 rejected, reasons in {tmp_path / 'out' / 'rejected.jsonl'}" in result.stdout
    again = CliRunner().invoke(app, [str(source), str(tmp_path / "out")])
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    assert CliRunner().invoke(app, [str(source), str(tmp_path / "out"), "--workers", "1", "--overwrite"]).exit_code == 0


def test_errors_of_the_command_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bad = tmp_path / "bad"
    bad.mkdir()
    picture(0, 60, 20).save(bad / "a.png")
    picture(0).save(bad / "b.png")
    bare = tmp_path / "bare"
    bare.mkdir()
    picture(0).save(bare / "a.png")
    captions(bad, [{"file": "a.png", "caption": "c"}])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for arguments, words in (
        ([tmp_path / "nowhere"], "is not a folder"),
        ([tmp_path / "empty"], "holds no panorama"),
        ([bare], "pass a captions file with --captions FILE"),
        ([bare, "--captions", tmp_path / "no.jsonl"], "does not exist"),
        ([bare, "--captions", tmp_path / "latin.txt"], "not UTF-8"),
        ([bad], "the first is a.png: 60x20 is not 2:1"),
        ([bad, "--shard-size", 0], "--shard-size 0"),
    ):
        command = [str(arguments[0]), str(tmp_path / "out"), "--workers", "1", *map(str, arguments[1:])]
        result = CliRunner().invoke(app, command)
        lines = [line for line in result.stderr.splitlines() if not line.lstrip().startswith("reading")]
        assert result.exit_code == 1
        assert len([line for line in lines if line.startswith("error: ")]) == 1
        assert words in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert set(refusals(tmp_path / "out")) == {"a.png", "b.png"}


def test_help_imports_no_heavy_libraries() -> None:
    code = "import sys, cubediff.prepare, cubediff.data.example as e; print({'torch', 'cv2'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
