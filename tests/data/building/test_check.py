"""`cubediff prepare check`: the summary of undamaged shards, and the faults that it finds in damaged ones."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.builds import panoramas
from typer.testing import CliRunner

from cubediff.data import build_shards
from cubediff.data.building.check import check_shards
from cubediff.data.format.index import index_tar
from cubediff.geometry import FACES
from cubediff.prepare import check_app

SAMPLES = Path(__file__).parents[3] / "data" / "samples"
SHARD = "train-000001.tar"


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    build_shards(panoramas(folder / "in", 8), folder / "shards", val_fraction=0.3, shard_size=2)
    return folder / "shards"


@pytest.fixture
def shards(undamaged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undamaged, tmp_path / "shards"))


def rewritten(shards: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    """Rewrites shard 1 with other members, with a matching manifest and index."""
    path = shards / SHARD
    with tarfile.open(path) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in change(members).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    lines = [json.loads(line) for line in (shards / "index.jsonl").read_text().splitlines()]
    index = "".join(
        json.dumps(line if line["file"] != SHARD else {"file": SHARD, **index_tar(path)._asdict()}) + "\n"
        for line in lines
    )
    (shards / "index.jsonl").write_text(index)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["index"]["sha256"] = hashlib.sha256(index.encode()).hexdigest()
    shard = manifest["splits"]["train"]["shards"][1]
    shard |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (shards / "manifest.json").write_text(json.dumps(manifest))


def with_jpeg(jpeg: bytes) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    """Replaces the JPEG of the first sample, with a matching crc32."""

    def change(members: dict[str, bytes]) -> dict[str, bytes]:
        picture, record = list(members)[:2]
        changed = json.loads(members[record]) | {"crc32": zlib.crc32(jpeg)}
        return members | {picture: jpeg, record: json.dumps(changed).encode()}

    return change


def with_record(**values: object) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def change(members: dict[str, bytes]) -> dict[str, bytes]:
        record = list(members)[1]
        return members | {record: json.dumps(json.loads(members[record]) | values).encode()}

    return change


@pytest.mark.parametrize("workers", [1, 2])
def test_undamaged_shards_have_no_faults_and_training_reads_their_content(tmp_path: Path, workers: int) -> None:
    build_shards(SAMPLES, tmp_path / "shards", val_fraction=0.2, shard_size=9)
    lines, faults = check_shards(tmp_path / "shards", workers)
    assert faults == []
    records = [json.loads(line) for line in (SAMPLES / "captions.jsonl").read_text("utf-8").splitlines()]
    words = [len(r["caption"].split()) for r in records]
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    for split, line, widths, captions in (("train", *lines[:3]), ("val", *lines[3:])):
        number = manifest["splits"][split]["samples"]
        assert line.startswith(f"{split}: {number} panoramas of {number} scenes in ")
        assert f"{number} panoramas with face captions" in captions
        assert sum(int(part.split("(")[1][:-1]) for part in widths.removeprefix("  widths: ").split(", ")) == number
        low, high = captions.removeprefix("  captions: ").split(" words")[0].split(" to ")
        assert min(words) <= int(low) <= int(high) <= max(words)


def test_any_flipped_bit_of_a_shard_is_found(shards: Path) -> None:
    path = shards / SHARD
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.choice(len(good), 40, replace=False):
        damaged = bytearray(good)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        assert any(f"{SHARD} is damaged: its sha256 is" in fault for fault in check_shards(shards).faults)


@pytest.mark.parametrize("length", [0, 100, 512, 3000])
def test_a_truncated_shard_is_found(shards: Path, length: int) -> None:
    with (shards / SHARD).open("r+b") as file:
        file.truncate(length)
    assert any(f"{SHARD} has {length} bytes, expected" in fault for fault in check_shards(shards).faults)


def test_missing_and_additional_shards_are_found(shards: Path) -> None:
    (shards / SHARD).rename(shards / "train-000099.tar")
    faults = check_shards(shards).faults
    assert f"{SHARD} is missing" in faults
    assert "train-000099.tar is not in the manifest: training does not read it" in faults


@pytest.mark.parametrize("change", ["one offset", "no line", "no JSON", "no file"])
def test_an_index_that_differs_from_the_manifest_is_found(shards: Path, change: str) -> None:
    path = shards / "index.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join({"one offset": [*lines[:-1], lines[-1].replace("[0, ", "[512, ")], "no line": lines[1:],
                             "no JSON": ["{", *lines]}.get(change, lines)))  # fmt: skip
    if change == "no file":
        path.unlink()
    faults = check_shards(shards).faults
    assert any("index.jsonl differs from the manifest" in f or "index.jsonl cannot be read" in f for f in faults)
    expected = {
        "one offset": "offsets of its samples differ from index.jsonl",
        "no line": "is not in index.jsonl",
        "no JSON": "an invalid line",
        "no file": "not in",
    }
    assert any(expected[change] in fault for fault in faults)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_jpeg(b"\xff\xd8 no JPEG"), "its JPEG cannot be decoded"),
        (with_jpeg(cv2.imencode(".jpg", np.zeros((32, 65, 3), np.uint8))[1].tobytes()), "65x32"),
        (
            with_jpeg(cv2.imencode(".jpg", np.zeros((64, 128, 3), np.uint8))[1].tobytes()),
            "128x64, expected 2:1 and the 64x32 of its JSON",
        ),
        (with_record(crc32=5), "crc32 differs"),
        (with_record(caption=" "), "its caption is empty"),
        (with_record(faces={"front": "only this"}), "its faces are not a caption for each of front, right"),
        (with_record(faces=dict.fromkeys(FACES, " ")), "its faces are not a caption"),
        (lambda members: dict(list(members.items())[:-1]), "has the members jpg, expected jpg and json"),
        (lambda members: dict(list(members.items())[:-2]), "holds 1 samples, expected 2"),
        (lambda members: {n: b"{" if n.endswith("json") else d for n, d in members.items()}, "sample pano_"),
    ],
)
def test_invalid_samples_with_correct_checksums_are_found(shards: Path, change: Callable, words: str) -> None:
    rewritten(shards, change)
    faults = check_shards(shards).faults
    assert any(SHARD in fault and words in fault for fault in faults), faults
    assert not any("damaged" in fault or "from the manifest" in fault for fault in faults)


def test_a_scene_in_both_splits_and_a_duplicate_key_are_found(shards: Path) -> None:
    with tarfile.open(shards / "val-000000.tar") as tar:
        there = {m.name: tar.extractfile(m).read() for m in tar}
    scene = json.loads(list(there.values())[1])["scene"]
    rewritten(shards, with_record(scene=scene))
    assert "1 scenes are on both sides of the split" in check_shards(shards).faults
    rewritten(shards, lambda members: dict(list(members.items())[:2] + list(there.items())[:2]))
    assert any("1 keys occur more than once, the first is pano_" in fault for fault in check_shards(shards).faults)


def test_an_invalid_manifest_or_another_version_is_one_fault(shards: Path) -> None:
    manifest = shards / "manifest.json"
    old = manifest.read_text()
    for text, words in (
        (old.replace('"version": 2', '"version": 1'), "version 1, this cubediff reads cubediff-shards version 2"),
        ("[]", "must be an object, got []"),
        (old[:50], "is not JSON"),
    ):
        manifest.write_text(text)
        assert [words in fault for fault in check_shards(shards).faults] == [True]
    manifest.write_text(json.dumps(json.loads(old) | {"settings": 3}))
    assert check_shards(shards).faults[0].startswith(f"{manifest}: settings must be an object, got 3: copy the file")
    manifest.unlink()
    assert "manifest.json is missing: the dataset is incomplete" in check_shards(shards).faults[0]
    manifest.mkdir()
    assert check_shards(shards).faults == [
        f"{manifest} cannot be read (Is a directory): copy the folder again, or build it again"
    ]


def test_the_command_lists_the_faults_and_fails(shards: Path) -> None:
    good = subprocess.run(
        [sys.executable, "-m", "cubediff.prepare", "check", str(shards), "--workers", "1"],
        capture_output=True,
        text=True,
    )
    assert good.returncode == 0
    assert good.stdout.splitlines()[-1] == f"{shards}: no faults"
    (shards / SHARD).unlink()
    bad = CliRunner().invoke(check_app, [str(shards), "--workers", "1"])
    assert bad.exit_code == 1
    assert f"fault: {SHARD} is missing" in bad.stderr
    assert "Traceback" not in bad.output
    for path, problem in ((shards / "nowhere", "does not exist"), (shards / "index.jsonl", "is a file")):
        none = CliRunner().invoke(check_app, [str(path)])
        assert none.exit_code == 1
        assert (
            f"fault: {path} {problem}: expected the folder that cubediff prepare or cubediff cache wrote" in none.stderr
        )
