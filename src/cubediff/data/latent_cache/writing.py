"""Encodes panoramas into shards of latents in Lightning's predict loop; each device encodes complete shards (CubeDiff,
section 4.1: both encoders stay frozen)."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

import lightning as L
import safetensors.torch
import torch
from lightning.pytorch.callbacks import Callback
from webdataset import TarWriter

from cubediff.data.batches.types import CubeBatch
from cubediff.data.format.folders import foreign_files, name_some
from cubediff.data.format.index import read_sample
from cubediff.data.format.manifest import (
    FORMAT,
    INDEX,
    MANIFEST,
    SETTINGS,
    VERSION,
    IndexLine,
    LatentManifest,
    LatentsRecord,
    SplitManifest,
)
from cubediff.data.format.tars import describe_shard, shard_writer, write_sample
from cubediff.data.format.validation import MAX_MANIFEST, parse_manifest
from cubediff.data.latent_cache.format import CachedPanorama, find_fault, pack_sample, sample_shapes
from cubediff.data.latent_cache.reading import LatentDataModule
from cubediff.data.latent_cache.source import CachedShard, file_name
from cubediff.models.backbone import Backbone
from cubediff.models.encoders import same_fingerprint
from cubediff.utils.errors import DataError
from cubediff.utils.files import read_limited, remove_partial, write_atomic
from cubediff.utils.json_text import parse_json


class LatentEncoder(L.LightningModule):
    """Encodes the rotations of one panorama, and its captions.

    Args:
        backbone: The model family, whose frozen components encode.
        dtype: The precision of the stored latents and text states.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone, self.stored_dtype = backbone, dtype

    def setup(self, stage: str) -> None:
        """Moves the encoders to the device."""
        self.backbone.to(self.trainer.strategy.root_device)

    def predict_step(self, batch: CubeBatch, batch_idx: int) -> CachedPanorama:
        """Encodes a batch of one panorama.

        Raises:
            FloatingPointError: If a latent is not finite.
        """
        captions = list(dict.fromkeys(caption for prompts in batch["prompts"] for caption in prompts))
        indices = torch.tensor([[captions.index(caption) for caption in prompts] for prompts in batch["prompts"]])
        text, latents = self.backbone.encode_captions(captions, truncate=True), self.backbone.encode(batch["faces"])
        if not latents.isfinite().all():
            raise FloatingPointError(
                f"the latents of {batch['key'][0]} in {batch['shard']} are not finite: check the panorama and the "
                "autoencoder's weights"
            )
        stored = {name: tensor.to("cpu", self.stored_dtype) for name, tensor in text.items()}
        return CachedPanorama(batch["yaw"].tolist(), latents.to("cpu", self.stored_dtype), stored, indices, captions)


class ShardWriter(Callback):
    """Writes one shard of latents for each shard of panoramas, under a temporary name until it is complete.

    Args:
        output: The folder of the shards.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._file: BinaryIO | None = None
        self._tar: TarWriter | None = None
        self._name = ""

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: CubeBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Appends a panorama to its shard."""
        name = file_name(batch["shard"])
        if name != self._name:
            self._finish()
            self._name = name
            self._file = self._part.open("wb")
            self._tar = shard_writer(self._file)
        key = batch["key"][0]
        assert self._tar is not None
        assert isinstance(outputs, CachedPanorama)
        write_sample(self._tar, key, pack_sample(key, outputs))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Completes the last shard."""
        self._finish()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Removes the shard that is not complete."""
        if self._tar is not None and self._file is not None:
            with suppress(OSError):  # the disk may be full
                self._tar.close()
                self._file.close()
            self._part.unlink(missing_ok=True)
            self._tar = self._file = None

    @property
    def _part(self) -> Path:
        return self.output / f".{self._name}.part"

    def _finish(self) -> None:
        if self._tar is not None and self._file is not None:
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())  # a shard under its final name is complete, even after a power failure
            self._file.close()
            os.replace(self._part, self.output / self._name)
            self._tar = self._file = None


def begin_or_resume(
    output: Path, record: LatentsRecord, shards: Mapping[str, CachedShard], verify: bool
) -> frozenset[str]:
    """Prepares the output folder.

    Args:
        output: The folder of the dataset of latents.
        record: The settings of the latents; a run resumes only with the same settings.
        shards: The shards to cache by file name, as `shards_to_cache` returns them.
        verify: Whether to read the shards that are there and to remove temporary files of killed processes; one process
            suffices.

    Returns:
        The file names of the shards that an interrupted run has completed.

    Raises:
        DataError: As `check_output`; or if a shard in the folder is damaged or has other samples.
    """
    check_output(output, record, shards)
    output.mkdir(parents=True, exist_ok=True)
    if not (output / SETTINGS).is_file():
        write_atomic(output / SETTINGS, json.dumps(record), sync=True)
    for name in (SETTINGS, INDEX, MANIFEST) if verify else ():
        remove_partial(output / name)
    done = frozenset(name for name in shards if (output / name).is_file())
    for name in sorted(done) if verify else ():
        if fault := find_fault(output / name, shards[name].keys):
            raise DataError(
                f"{output / name} is not a complete shard of latents ({fault}): move it elsewhere or remove it, then "
                "run the same command again"
            )
    return done


def find_finished(output: Path, record: LatentsRecord, shards: Mapping[str, CachedShard]) -> LatentManifest | None:
    """The manifest of the latents that an earlier run with the same settings has completed.

    Args:
        output: The folder, which need not exist.
        record: The settings of the latents.
        shards: The shards to cache by file name.

    Returns:
        The manifest; None if the folder holds no manifest of latents.

    Raises:
        DataError: If the latents have other settings or are of other shards, or a file is missing or has another size.
    """
    file = output / MANIFEST
    if not file.exists():
        return None
    manifest = parse_manifest(read_limited(file, MAX_MANIFEST), str(file))
    if (latents := manifest.get("latents")) is None:
        return None
    _check_settings(output, dict(latents), record)
    finished = cast(LatentManifest, manifest)
    count = sum(len(shard.keys) for shard in shards.values())
    is_same = finished.get("samples") == count
    if "panoramas" in finished:
        is_same = finished["panoramas"] == _fingerprint(shards)
    if not is_same:
        raise DataError(
            f"{output} holds the latents of {finished.get('samples')} panoramas of other shards than the {count} of "
            "data.path, or of these shards before they changed: choose another cache.output, or remove it"
        )
    LatentDataModule(output, 1, latents["face_size"], latents["fov"]).setup()  # checks the index and the shards' sizes
    return finished


def check_output(output: Path, record: LatentsRecord, shards: Mapping[str, CachedShard]) -> None:
    """Checks that latents may be written to a folder without losing anything.

    Args:
        output: The folder, which need not exist.
        record: The settings of the latents.
        shards: The shards to cache by file name.

    Raises:
        DataError: If the folder holds a dataset, files of others, or shards that were cached with other settings.
    """
    if output.exists() and not output.is_dir():
        raise DataError(f"{output} is a file: cache.output is the folder to write latents into")
    if (output / MANIFEST).exists():
        raise DataError(f"{output} already holds a dataset ({MANIFEST}): choose another cache.output, or remove it")
    own = {SETTINGS}
    if (output / SETTINGS).is_file():
        own |= {INDEX, *shards, *(f".{name}.part" for name in shards)}
        _check_settings(output, _read_settings(output / SETTINGS), record)
    foreign = foreign_files(output, own)
    if foreign:
        raise DataError(
            f"{output} holds {name_some(foreign)}, which no interrupted caching of these panoramas wrote: choose an "
            "empty folder for cache.output, or move these files elsewhere"
        )


def _read_settings(file: Path) -> dict[str, object]:
    try:
        earlier: object = parse_json(file.read_text(encoding="utf-8"))
    except ValueError:
        earlier = None
    if not isinstance(earlier, dict):
        raise DataError(f"{file} does not hold the settings of latents: choose another cache.output, or remove it")
    return earlier


def _check_settings(output: Path, earlier: dict[str, object], record: LatentsRecord) -> None:
    if same_fingerprint(str(earlier.get("encoders")), record["encoders"]):
        earlier["encoders"] = record["encoders"]  # the first ones covered the weights only
    differing = sorted(name for name in {**record, **earlier} if earlier.get(name) != record.get(name))
    if differing:
        values = ", ".join(f"{name} ({earlier.get(name)}, now {record.get(name)})" for name in differing)
        raise DataError(
            f"{output} holds shards that were cached with other settings, {values}: choose another cache.output, or "
            "remove it"
        )


def _fingerprint(shards: Mapping[str, CachedShard]) -> str:
    return hashlib.sha256(json.dumps(sorted(shards.items())).encode()).hexdigest()


def write_manifest(output: Path, record: LatentsRecord, shards: Mapping[str, CachedShard]) -> LatentManifest:
    """Completes a dataset of latents: writes index.jsonl and then manifest.json.

    Args:
        output: The folder of the shards.
        record: The settings of the latents.
        shards: The shards of the dataset by file name; one whose samples were all skipped need not be there.

    Returns:
        The manifest.
    """
    written = [describe_shard(output / name, name) for name in sorted(shards) if (output / name).is_file()]
    splits: dict[str, SplitManifest] = {}
    for split in ("train", "val"):
        part = [shard for shard, _ in written if shards[shard["file"]].split == split]
        splits[split] = {"samples": sum(shard["samples"] for shard in part), "shards": part}
    content = "".join(json.dumps(line) + "\n" for _, line in written)
    write_atomic(output / INDEX, content, sync=True)
    manifest = LatentManifest(
        format=FORMAT,
        version=VERSION,
        samples=sum(split["samples"] for split in splits.values()),
        latents=record,
        panoramas=_fingerprint(shards),
        shapes=_shapes(output, [line for _, line in written]),
        splits=splits,
        index={"file": INDEX, "sha256": hashlib.sha256(content.encode()).hexdigest()},
    )
    write_atomic(output / MANIFEST, json.dumps(manifest, indent=2) + "\n", sync=True)
    (output / SETTINGS).unlink(missing_ok=True)
    return manifest


def _shapes(output: Path, index: list[IndexLine]) -> dict[str, list[int]]:
    """The shapes of the first sample, which those of all others equal; none if there is no sample."""
    for line in index:
        if line["keys"]:
            with (output / line["file"]).open("rb") as file:
                packed = read_sample(file.fileno(), *line["offsets"][:2])["safetensors"]
            return sample_shapes(safetensors.torch.load(packed))
    return {}
