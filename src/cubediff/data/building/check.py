"""Whether a folder of shards is what its manifest says, to the last byte and pixel, and what a training run will see of
it."""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from cubediff.data.building.engines import Progress, open_engine
from cubediff.data.format.index import index_tar, read_sample
from cubediff.data.format.layout import FORMAT, INDEX, MANIFEST, SHARD, VERSION
from cubediff.geometry.conventions import FACES
from cubediff.utils.files import sha256_file


class Seen(NamedTuple):
    """What one shard holds; `scenes` by the first eight bytes of their SHA-256, so that millions fit in memory."""

    file: str
    keys: list[str]
    scenes: set[bytes]
    widths: Counter[int]
    caption_words: list[int]
    with_face_captions: int
    bytes: int
    faults: list[str]


class Checked(NamedTuple):
    """`lines` say what training will see; without `faults` the dataset is whole."""

    lines: list[str]
    faults: list[str]


def check_shards(folder: Path, workers: int = 1, progress: Progress | None = None) -> Checked:
    """Reads everything: manifest, index, each shard's SHA-256, each sample's crc32, JSON and pixels.

    `progress(iterable, total, what)` wraps the shards. A fault names the file, what is wrong and what was expected.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {manifest['format']} {manifest['version']}, not {FORMAT} {VERSION}")
        expected = {s["file"]: (split, s) for split in ("train", "val") for s in manifest["splits"][split]["shards"]}
    except FileNotFoundError:
        return Checked([], [f"{folder / MANIFEST} is missing: no whole dataset, build it again"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Checked([], [f"{folder / MANIFEST} cannot be used ({type(error).__name__}: {error}): build it again"])
    places, faults = _index(folder, manifest)
    faults += [f"{file} is in {INDEX} but not in the manifest" for file in places if file not in expected]
    loose = sorted(p.name for p in folder.iterdir() if SHARD.fullmatch(p.name) and p.name not in expected)
    faults += [f"{f} is not in the manifest: it is not trained on" for f in loose]
    tasks = [(shard, places.get(file)) for file, (_, shard) in expected.items()]
    with open_engine(workers=workers) as mapped:
        results: Iterable[Seen] = mapped(partial(_check_shard, folder), tasks)
        seen = list(progress(results, len(tasks), "checking") if progress else results)
    for shard in seen:
        faults += shard.faults
    sides = {split: [s for s in seen if expected[s.file][0] == split] for split in ("train", "val")}
    scenes = {split: set().union(*(s.scenes for s in side)) for split, side in sides.items()}
    if both := scenes["train"] & scenes["val"]:
        faults.append(f"{len(both)} scenes are on both sides of the split")
    if twice := [key for key, n in Counter(key for s in seen for key in s.keys).items() if n > 1]:
        faults.append(f"{len(twice)} keys come more than once, the first {twice[0]}")
    for split, side in sides.items():
        number, told = sum(len(s.keys) for s in side), manifest["splits"][split].get("samples")
        if number != told:
            faults.append(f"{split} holds {number} samples, not the {told} of the manifest")
    return Checked([line for split, side in sides.items() for line in _lines(split, side, len(scenes[split]))], faults)


def _index(folder: Path, manifest: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    try:
        text = (folder / INDEX).read_bytes()
    except OSError as error:
        return {}, [f"{INDEX} cannot be read ({error.strerror})"]
    digest = hashlib.sha256(text).hexdigest()
    faults = []
    if digest != manifest.get("index", {}).get("sha256"):
        faults.append(f"{INDEX} is not the manifest's: its sha256 is {digest}")
    try:
        return {line["file"]: line for line in map(json.loads, text.splitlines())}, faults
    except (ValueError, KeyError, TypeError) as error:
        return {}, [*faults, f"{INDEX} has a line that is none ({type(error).__name__}: {error})"]


def _check_shard(folder: Path, task: tuple[dict[str, Any], dict[str, Any] | None]) -> Seen:
    shard, place = task
    name, path = shard["file"], folder / shard["file"]
    seen = Seen(name, [], set(), Counter(), [], 0, 0, [])
    try:
        digest, size = sha256_file(path), path.stat().st_size
        if size != shard["bytes"]:
            seen.faults.append(f"{name} is {size} bytes long, not the {shard['bytes']} of the manifest")
        elif digest != shard["sha256"]:
            seen.faults.append(f"{name} is damaged: its sha256 is {digest}, not {shard['sha256']}")
        index = index_tar(path)
    except FileNotFoundError:
        return seen._replace(faults=[f"{name} is missing"])
    except Exception as error:
        return seen._replace(faults=[*seen.faults, f"{name} cannot be read ({type(error).__name__}: {error})"])
    if place is None:
        seen.faults.append(f"{name} is not in {INDEX}")
    elif (index.keys, index.offsets) != (place.get("keys"), place.get("offsets")):
        seen.faults.append(f"{name} holds its samples elsewhere than {INDEX} says")
    if len(index.keys) != shard["samples"]:
        seen.faults.append(f"{name} holds {len(index.keys)} samples, not the {shard['samples']} of the manifest")
    faces = 0
    with path.open("rb") as file:
        for key, (offset, end) in zip(index.keys, pairwise(index.offsets), strict=True):
            try:
                record = _check_sample(read_sample(file.fileno(), offset, end))
            except Exception as error:  # a damaged tar, JSON or JPEG raises whatever it likes
                seen.faults.append(f"{name}, sample {key}: {str(error) or type(error).__name__}")
                continue
            seen.keys.append(key)
            seen.scenes.add(hashlib.sha256(record["scene"].encode()).digest()[:8])
            seen.widths[record["width"]] += 1
            seen.caption_words.append(len(record["caption"].split()))
            faces += bool(record.get("faces"))
    return seen._replace(with_face_captions=faces, bytes=size)


def _check_sample(sample: dict[str, bytes]) -> dict[str, Any]:
    if set(sample) != {"jpg", "json"}:
        raise ValueError(f"has the parts {', '.join(sorted(sample))}, not jpg and json")
    record = json.loads(sample["json"])
    if missing := [k for k in ("file", "caption", "scene", "width", "height", "crc32") if k not in record]:
        raise ValueError(f"its JSON has no {', '.join(missing)}")
    if not record["caption"].strip():
        raise ValueError("its caption is empty")
    faces = record.get("faces", dict.fromkeys(FACES, "none told"))
    if set(faces) != set(FACES) or not all(caption.strip() for caption in faces.values()):
        raise ValueError(f"its faces are not a caption for each of {', '.join(FACES)}")
    if zlib.crc32(sample["jpg"]) != record["crc32"]:
        raise ValueError("its JPEG is not the one that was written (crc32 differs)")
    image = cv2.imdecode(np.frombuffer(sample["jpg"], np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ValueError("its JPEG cannot be decoded")
    height, width = image.shape[:2]
    if width != 2 * height or (width, height) != (record["width"], record["height"]):
        raise ValueError(
            f"its JPEG is {width}x{height}, not the {record['width']}x{record['height']} of its JSON or 2:1"
        )
    return record


def _lines(split: str, side: list[Seen], scenes: int) -> list[str]:
    number = sum(len(s.keys) for s in side)
    if not number:
        return [f"{split}: no panoramas"]
    widths = sum((s.widths for s in side), Counter[int]())
    size = sum(s.bytes for s in side) / 1e6
    words = np.concatenate([s.caption_words for s in side])
    return [
        f"{split}: {number} panoramas of {scenes} scenes in {len(side)} shards, {size:.1f} MB",
        f"  widths: {', '.join(f'{width} ({widths[width]})' for width in sorted(widths))}",
        f"  captions: {words.min()} to {words.max()} words, half of them {np.median(words):g} or fewer; "
        f"{sum(s.with_face_captions for s in side)} panoramas with face captions",
    ]
