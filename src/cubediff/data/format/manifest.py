"""The files of a dataset folder and the JSON that they hold (documented for users in data/README.md)."""

import re
from typing import NotRequired, TypedDict

MANIFEST = "manifest.json"
INDEX = "index.jsonl"
REJECTED = "rejected.jsonl"
DUPLICATES = "duplicates.jsonl"
REPORT = "report.html"
SETTINGS = "settings.json"  # in a folder of latents while its caching is not finished
BUILDING = ".building"  # folder of an unfinished build; holds a manifest while a finished one moves to the dataset

FORMAT = "cubediff-shards"
VERSION = 2

SHARD = re.compile(r"(train|val)-\d{6}\.tar")


class ShardSummary(TypedDict):
    """A shard in the manifest; `bytes` is the size of the tar."""

    file: str
    samples: int
    bytes: int
    sha256: str


class IndexLine(TypedDict):
    """A line of index.jsonl: sample i has the key keys[i] and the bytes offsets[i] to offsets[i + 1] of the tar."""

    file: str
    keys: list[str]
    offsets: list[int]  # one more than keys


class SplitManifest(TypedDict):
    """One side of the train/val split; datasets of latents do not count face captions."""

    samples: int
    with_face_captions: NotRequired[int]
    shards: list[ShardSummary]


class NearDuplicates(TypedDict):
    """Number of near-duplicate pairs, and the maximum distance of a pair in bits."""

    pairs: int
    threshold: int


class BuildRecord(TypedDict):
    """The settings that the content of the samples depends on."""

    val_fraction: float
    max_width: int
    quality: int
    limit: int | None


class SettingsRecord(BuildRecord):
    """The settings of a build, and what follows from its source.

    `captions` is present if samples have an empty caption: "none" if all have, else "optional". `splits` is "declared"
    if the source declares the side of the split of some samples.
    """

    captions: NotRequired[str]
    splits: NotRequired[str]


class IndexReference(TypedDict):
    """Name and SHA-256 of the index."""

    file: str
    sha256: str


class Manifest(TypedDict):
    """manifest.json of a dataset of panoramas; `widths` counts panoramas by their width in pixels."""

    format: str
    version: int
    samples: int
    rejected: int
    with_face_captions: int
    widths: dict[str, int]
    near_duplicates: NearDuplicates
    settings: SettingsRecord
    splits: dict[str, SplitManifest]
    index: IndexReference


class LatentsRecord(TypedDict):
    """The settings that the latents of a dataset were encoded with."""

    turns: int  # yaw rotations of each panorama
    dtype: str
    face_size: int  # pixels
    fov: float  # degrees
    encoders: str  # fingerprint
    source: str
    seed: int
    yaw: str
    flip: float
    face_caption_probability: float
    face_caption_jitter: float
    jpeg_scaling: NotRequired[bool]  # absent from latents of JPEGs that were decoded at full size
    stages: NotRequired[object]  # the config of `data.stages`


class LatentManifest(TypedDict):
    """manifest.json of a dataset of latents; `shapes` are those of a sample's tensors without the first dimension.

    `panoramas` is the fingerprint of the shards of panoramas; the first latents have none.
    """

    format: str
    version: int
    samples: int
    latents: LatentsRecord
    panoramas: NotRequired[str]
    shapes: dict[str, list[int]]
    splits: dict[str, SplitManifest]
    index: IndexReference


class RejectedLine(TypedDict):
    """A line of rejected.jsonl."""

    file: str
    reason: str


class DuplicateLine(TypedDict):
    """A line of duplicates.jsonl: two source files, and the distance of their perceptual hashes in bits."""

    files: list[str]
    distance: int


class SampleRecord(TypedDict):
    """The .json member of a sample. `crc32` is that of the .jpg member; `record` describes the image's conversion."""

    file: str
    caption: str
    scene: str
    faces: NotRequired[dict[str, str]]
    width: int
    height: int
    crc32: int
    record: NotRequired[dict[str, object]]
    metadata: NotRequired[dict[str, object]]
