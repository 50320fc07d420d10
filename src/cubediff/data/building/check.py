"""Verifies the bytes and pixels of finished shards against their manifest, and summarises the dataset."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from cubediff.data.building.engines import Progress, open_engine
from cubediff.data.format.index import ShardIndex, index_tar, read_sample
from cubediff.data.format.manifest import INDEX, MANIFEST, SETTINGS, SHARD, LatentsRecord, SampleRecord, ShardSummary
from cubediff.data.format.validation import (
    MAX_INDEX,
    MAX_MANIFEST,
    ReadableManifest,
    caption_text,
    parse_index,
    parse_manifest,
)
from cubediff.geometry.conventions import FACES
from cubediff.images.jpeg import decode_jpeg
from cubediff.utils.errors import DataError, reason
from cubediff.utils.files import open_regular, read_limited, sha256_file
from cubediff.utils.json_text import parse_json


class ShardCheck(NamedTuple):
    """Content and faults of one shard.

    Attributes:
        file: Name of the shard.
        keys: Keys of the samples without faults.
        scenes: First eight bytes of the scenes' SHA-256, so that millions fit in memory.
        widths: Number of panoramas by width in pixels.
        caption_words: Number of words of each caption.
        with_face_captions: Number of panoramas with face captions.
        bytes: Size of the shard.
        faults: Descriptions of its faults.
    """

    file: str
    keys: list[str]
    scenes: set[bytes]
    widths: Counter[int]
    caption_words: list[int]
    with_face_captions: int
    bytes: int
    faults: list[str]


class DatasetCheck(NamedTuple):
    """Summary of a dataset, and its faults: none if it is complete."""

    lines: list[str]
    faults: list[str]


def check_shards(folder: Path, workers: int = 1, progress: Progress | None = None) -> DatasetCheck:
    """Verifies the manifest, the index, the shards' SHA-256, and CRC-32, JSON and pixels of every sample; the CRC-32
    alone of latents.

    Args:
        folder: A folder that `cubediff prepare` or `cubediff cache` wrote.
        workers: Number of processes.
        progress: Wraps the shards, called with (shards, total, "checking").

    Returns:
        The summary and the faults; each names the file, the defect and the expected value.
    """
    try:
        manifest = _read_manifest(folder)
        expected = {s["file"]: (split, s) for split in ("train", "val") for s in manifest["splits"][split]["shards"]}
    except DataError as error:
        return DatasetCheck([], [str(error)])
    latents, settings = manifest.get("latents"), list(manifest.get("settings") or {})
    index, faults = _check_index(folder, manifest)
    faults += [f"{file} is in {INDEX} but not in the manifest" for file in index if file not in expected]
    extra = sorted(p.name for p in folder.iterdir() if SHARD.fullmatch(p.name) and p.name not in expected)
    faults += [f"{file} is not in the manifest: training does not read it" for file in extra]
    tasks = [(shard, index.get(file)) for file, (_, shard) in expected.items()]
    with open_engine(workers=workers) as mapped:
        captioned = "captions" not in settings
        check_sample = _check_latents if latents else partial(_check_panorama, captioned)
        results = mapped(partial(_check_shard, folder, check_sample), tasks)
        shards = list(progress(results, len(tasks), "checking") if progress else results)
    for shard in shards:
        faults += shard.faults
    sides = {split: [s for s in shards if expected[s.file][0] == split] for split in ("train", "val")}
    scenes = {split: {scene for shard in side for scene in shard.scenes} for split, side in sides.items()}
    both = scenes["train"] & scenes["val"]
    if both and "splits" not in settings:  # a declared split may divide scenes
        faults.append(f"{len(both)} scenes are on both sides of the split")
    if repeated := [key for key, n in Counter(key for s in shards for key in s.keys).items() if n > 1]:
        faults.append(f"{len(repeated)} keys occur more than once, the first is {repeated[0]}")
    for split, side in sides.items():
        number, declared = sum(len(s.keys) for s in side), manifest["splits"][split].get("samples")
        if number != declared:
            faults.append(f"{split} holds {number} samples, expected {declared} by the manifest")
    if latents:
        return DatasetCheck([_latents_summary(latents), *(_side(*side) for side in sides.items())], faults)
    lines = [line for split, side in sides.items() for line in _summary(split, side, len(scenes[split]))]
    return DatasetCheck(lines, faults)


def _read_manifest(folder: Path) -> ReadableManifest:
    file = folder / MANIFEST
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {problem}: expected the folder that cubediff prepare or cubediff cache wrote")
    try:
        content = read_limited(file, MAX_MANIFEST)
    except FileNotFoundError:
        command = "cubediff cache" if (folder / SETTINGS).exists() else "cubediff prepare"
        raise DataError(
            f"{file} is missing: the dataset is incomplete, complete it with the same {command} command, or build it "
            "again"
        ) from None
    except (OSError, DataError) as error:
        raise DataError(f"{file} cannot be read ({reason(error)}): copy the folder again, or build it again") from None
    return parse_manifest(content, str(file))


def _check_index(folder: Path, manifest: ReadableManifest) -> tuple[dict[str, ShardIndex], list[str]]:
    """The samples of each shard by the index, and the faults of the index."""
    try:
        content = read_limited(folder / INDEX, MAX_INDEX)
    except (OSError, DataError) as error:
        return {}, [f"{INDEX} cannot be read ({reason(error)})"]
    digest = hashlib.sha256(content).hexdigest()
    faults = []
    if digest != manifest["index"]["sha256"]:
        faults.append(f"{INDEX} differs from the manifest: its sha256 is {digest}")
    try:
        index = parse_index(content, INDEX)
    except DataError as error:
        return {}, [*faults, f"{INDEX} has an invalid line ({error})"]
    return {file: ShardIndex(*samples) for file, samples in index.items()}, faults


def _check_shard(
    folder: Path,
    check_sample: Callable[[dict[str, bytes]], SampleRecord | None],
    task: tuple[ShardSummary, ShardIndex | None],
) -> ShardCheck:
    shard, expected = task
    name, path = shard["file"], folder / shard["file"]
    check = ShardCheck(name, [], set(), Counter(), [], 0, 0, [])
    try:
        digest, size = sha256_file(path), path.stat().st_size
        if size != shard["bytes"]:
            check.faults.append(f"{name} has {size} bytes, expected {shard['bytes']} by the manifest")
        elif digest != shard["sha256"]:
            check.faults.append(f"{name} is damaged: its sha256 is {digest}, expected {shard['sha256']}")
        index = index_tar(path)
    except FileNotFoundError:
        return check._replace(faults=[f"{name} is missing"])
    except Exception as error:  # tarfile raises many types on damaged headers
        return check._replace(faults=[*check.faults, f"{name} cannot be read ({type(error).__name__}: {error})"])
    if expected is None:
        check.faults.append(f"{name} is not in {INDEX}")
    elif index != expected:
        check.faults.append(f"{name}: keys or offsets of its samples differ from {INDEX}")
    if len(index.keys) != shard["samples"]:
        check.faults.append(f"{name} holds {len(index.keys)} samples, expected {shard['samples']} by the manifest")
    with_face_captions = 0
    with open_regular(path) as file:
        for key, (start, end) in zip(index.keys, pairwise(index.offsets), strict=True):
            try:
                record = check_sample(read_sample(file.fileno(), start, end))
            except Exception as error:  # a damaged tar, JSON or JPEG raises many types
                check.faults.append(f"{name}, sample {key}: {str(error) or type(error).__name__}")
                continue
            check.keys.append(key)
            if record is None:
                continue
            check.scenes.add(hashlib.sha256(record["scene"].encode()).digest()[:8])
            check.widths[record["width"]] += 1
            check.caption_words.append(len(record["caption"].split()))
            with_face_captions += bool(record.get("faces"))
    return check._replace(with_face_captions=with_face_captions, bytes=size)


def _check_latents(sample: dict[str, bytes]) -> None:
    if set(sample) != {"safetensors", "json"}:
        raise ValueError(f"has the members {', '.join(sorted(sample))}, expected safetensors and json")
    if zlib.crc32(sample["safetensors"]) != parse_json(sample["json"])["crc32"]:
        raise ValueError("its tensors have changed since they were written (crc32 differs)")


def _check_panorama(captioned: bool, sample: dict[str, bytes]) -> SampleRecord:
    if set(sample) != {"jpg", "json"}:
        raise ValueError(f"has the members {', '.join(sorted(sample))}, expected jpg and json")
    record = cast(SampleRecord, parse_json(sample["json"]))
    if missing := [k for k in ("file", "caption", "scene", "width", "height", "crc32") if k not in record]:
        raise ValueError(f"its JSON has no {', '.join(missing)}")
    caption = caption_text(record["caption"], "caption")
    if captioned and not caption.strip():
        raise ValueError("its caption is empty")
    faces = record.get("faces", dict.fromkeys(FACES, "no face captions"))
    if set(faces) != set(FACES) or not all(caption_text(faces[face], face).strip() for face in FACES):
        raise ValueError(f"its faces are not a caption for each of {', '.join(FACES)}")
    if zlib.crc32(sample["jpg"]) != record["crc32"]:
        raise ValueError("its JPEG has changed since it was written (crc32 differs)")
    image = decode_jpeg(sample["jpg"])
    height, width = image.shape[:2]
    if width != 2 * height or (width, height) != (record["width"], record["height"]):
        size = f"{record['width']}x{record['height']}"
        raise ValueError(f"its JPEG is {width}x{height}, expected 2:1 and the {size} of its JSON")
    return record


def _latents_summary(latents: LatentsRecord) -> str:
    return f"latents of {latents['face_size']}-pixel faces of {latents['fov']:g}°, to train on with data=latents"


def _side(split: str, shards: list[ShardCheck], scenes: str = "") -> str:
    number, size = sum(len(s.keys) for s in shards), sum(s.bytes for s in shards) / 1e6
    if not number:
        return f"{split}: no panoramas"
    return f"{split}: {number} panoramas{scenes} in {len(shards)} shards, {size:.1f} MB"


def _summary(split: str, shards: list[ShardCheck], scenes: int) -> list[str]:
    number = sum(len(s.keys) for s in shards)
    if not number:
        return [f"{split}: no panoramas"]
    widths = sum((s.widths for s in shards), Counter[int]())
    words = np.concatenate([s.caption_words for s in shards])
    return [
        _side(split, shards, f" of {scenes} scenes"),
        f"  widths: {', '.join(f'{width} ({widths[width]})' for width in sorted(widths))}",
        f"  captions: {words.min()} to {words.max()} words, median {np.median(words):g}; "
        f"{sum(s.with_face_captions for s in shards)} panoramas with face captions",
    ]
