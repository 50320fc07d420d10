"""Keys of the samples, their train/val split by scene, and their distribution over shards; all of it by hashes, so that
the same panoramas always produce the same shards."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import count

from cubediff.data.building.duplicates import Pairs
from cubediff.data.building.shards import Sample, Split
from cubediff.data.sources import Entry


def sample_keys(files: Iterable[str]) -> list[str]:
    """A key for each file: ASCII without dots and slashes, as tar and WebDataset need it, unique without regard to
    case."""
    keys: list[str] = []
    used: set[str] = set()
    for file in files:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", file.rpartition(".")[0] or file)[:80].strip("_") or "panorama"
        key = next(k for n in count(1) if (k := stem if n == 1 else f"{stem}-{n}").lower() not in used)
        used.add(key.lower())
        keys.append(key)
    return keys


def split_samples(samples: list[Sample], pairs: Pairs, val_fraction: float) -> list[Sample]:
    """Assigns each sample to a side of the split.

    Scenes and near-duplicates are never divided, except by a split that the source declares: it is kept, and the other
    samples of such a scene go to the training side if one of it is there, else to the validation side.

    Args:
        samples: The samples; their own `split` is ignored.
        pairs: Near-duplicates, as positions in `samples`. Scenes with a common pair count as one scene.
        val_fraction: Fraction of the scenes without a declared side for validation, in [0, 1).
    """
    parent = {s.entry.scene: s.entry.scene for s in samples}  # union-find; the root is the first name

    def root(scene: str) -> str:
        while parent[scene] != scene:
            parent[scene] = scene = parent[parent[scene]]
        return scene

    for i, j in zip(pairs.first, pairs.second, strict=True):
        first, second = sorted(root(samples[k].entry.scene) for k in (i, j))
        parent[second] = first
    sides: dict[str, Split] = {}  # of scenes with declared samples
    for entry in (s.entry for s in samples):
        if (declared := _declared(entry)) is not None and sides.get(root(entry.scene)) != "train":
            sides[root(entry.scene)] = declared
    val = _val_scenes({root(scene) for scene in parent} - set(sides), val_fraction)

    def side(entry: Entry) -> Split:
        scene = root(entry.scene)
        return _declared(entry) or sides.get(scene) or ("val" if scene in val else "train")

    return [replace(s, split=side(s.entry)) for s in samples]


def assign_shards(samples: list[Sample], split: Split, shard_size: int) -> list[tuple[str, list[Sample]]]:
    """File names and samples of a split's shards: shuffled by hash, with sizes that differ by one at most."""
    shuffled = sorted((s for s in samples if s.split == split), key=lambda s: _hash(s.key))
    total = -(-len(shuffled) // shard_size)
    parts = [shuffled[i * len(shuffled) // total : (i + 1) * len(shuffled) // total] for i in range(total)]
    return [(f"{split}-{i:06d}.tar", part) for i, part in enumerate(parts)]


def _declared(entry: Entry) -> Split | None:
    return entry.split if entry.split != "test" else None  # `select_entries` leaves no test split


def _val_scenes(scenes: set[str], fraction: float) -> set[str]:
    """The scenes with a hash below `fraction`, so that more panoramas move no scene to the other side; if one side
    would be empty, it gets the scene with the nearest hash."""
    if fraction == 0 or len(scenes) < 2:
        return set()
    ordered = sorted(scenes, key=_hash)
    count = sum(_hash(s) < fraction * 2.0**64 for s in scenes)
    return set(ordered[: min(max(count, 1), len(scenes) - 1)])


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
