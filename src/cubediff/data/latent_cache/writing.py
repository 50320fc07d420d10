"""Encodes every panorama of some shards at several turns, with its captions, into shards of latents: Lightning's
predict loop, each device taking whole shards (CubeDiff, section 4.1: both encoders stay frozen)."""

import hashlib
import json
import os
import random
import tarfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from cubediff.data.batches.panoramas import PanoramaDataModule
from cubediff.data.format.layout import FORMAT, INDEX, MANIFEST, VERSION
from cubediff.data.format.tars import add_sample, described
from cubediff.data.latent_cache.format import CachedPanorama, pack_sample
from cubediff.data.streaming.loader import Loader
from cubediff.data.streaming.stream import Damaged, Stream
from cubediff.models.encoders import FrozenEncoders
from cubediff.utils.errors import DataError
from cubediff.utils.files import write_atomic

SETTINGS = "settings.json"


class TurnsDataModule(PanoramaDataModule):
    """Each panorama of a folder of shards as one batch of `turns` views, drawn as training draws them from the seed and
    the panorama's key; without the shards whose names are put into `done`. Validation panoramas stay unturned, and so
    have one."""

    def __init__(self, *args: Any, turns: int, **options: Any) -> None:
        super().__init__(*args, **options)
        if turns < 1:
            raise ValueError(f"cache.turns={turns}: give at least 1")
        if self.augmentation.photos is not None:
            raise ValueError("data=photos draws its conditions anew in every step: cache with data=panoramas")
        if len(self.paths) != 1:
            raise ValueError("data.path names several datasets: cache one after the other")
        self.turns = turns
        self.done: frozenset[str] = frozenset()

    def predict_dataloader(self) -> Any:
        rank, world = self._place()
        streams: dict[str, Stream] = {}
        places = []
        for split in ("train", "val"):
            reader = self._reader(split)
            samples = range(int(reader.firsts[-1]))
            streams[split] = Stream(reader, samples, self.decoder(split), 1)
            left = [n for n, shard in enumerate(reader.shards) if file_name(shard.name) not in self.done]
            for shard in left[rank::world]:
                places += [(split, shard, number) for number in range(len(reader.shards[shard]))]

        def taken() -> None:
            for stream in streams.values():
                stream.skips.check(self.max_skipped_share, enough=max(1, self.samples("train") + self.samples("val")))

        return Loader(
            _Turns(streams, places, self.turns, self.seed).__getitem__, range(len(places)), self.num_workers, taken
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**super().on_after_batch_transfer(batch, dataloader_idx), "shard": batch["shard"]}


class _Turns:
    def __init__(self, streams: dict[str, Stream], places: list[tuple[str, int, int]], turns: int, seed: int) -> None:
        self.streams, self.places, self.turns, self.seed = streams, places, turns, seed

    def __getitem__(self, i: int) -> Any:
        split, shard, number = self.places[i]
        stream = self.streams[split]
        reader = stream.reader
        key, position = reader.key(shard, number), int(reader.firsts[shard]) + number
        draws: list[random.Random | None] = [None]
        if split == "train":
            draws = [random.Random(f"{self.seed} {key} {turn}") for turn in range(self.turns)]
        try:
            views = [stream.decoded(position, rng, count=rng is draws[0]) for rng in draws]
        except Damaged:
            return None
        return {**stream.decoder.batch(views), "shard": reader.shards[shard].name}


class Encoder(L.LightningModule):
    """Latents and text states of a batch, on the host in `dtype`."""

    def __init__(self, encoders: FrozenEncoders, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoders, self.stored_dtype = encoders, dtype

    def setup(self, stage: str) -> None:
        self.encoders.to(self.trainer.strategy.root_device)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> CachedPanorama:
        captions = list(dict.fromkeys(caption for six in batch["prompts"] for caption in six))
        which = torch.tensor([[captions.index(caption) for caption in six] for six in batch["prompts"]])
        text, latents = self.encoders.encode_text(captions, truncate=True), self.encoders.encode_faces(batch["faces"])
        if not latents.isfinite().all():
            raise FloatingPointError(f"the latents of {batch['key'][0]} in {batch['shard']} are not finite: encode in "
                                     "trainer.precision=32-true")  # fmt: skip
        latents, text = (tensor.to("cpu", self.stored_dtype) for tensor in (latents, text))
        return CachedPanorama(batch["yaw"].tolist(), latents, text, which, captions)


class ShardWriter(Callback):
    """Writes what each device encodes, a shard for every shard that was read, under a temporary name until it is
    whole."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self._tar: tarfile.TarFile | None = None
        self._name = ""

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        name = file_name(batch["shard"])
        if name != self._name:
            self._finish()
            self._name = name
            self._tar = tarfile.open(self._part, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by _finish
        key = batch["key"][0]
        assert self._tar is not None
        add_sample(self._tar, key, pack_sample(key, outputs))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._finish()

    @property
    def _part(self) -> Path:
        return self.output / f".{self._name}.part"

    def _finish(self) -> None:
        if self._tar is not None:
            self._tar.close()
            os.replace(self._part, self.output / self._name)
            self._tar = None


def file_name(shard: str) -> str:
    return shard.rpartition("/")[2]


def whole_shards(output: Path, settings: dict[str, Any]) -> frozenset[str]:
    """The shards that an earlier, unfinished caching with the same settings has left in `output`. Raises DataError
    where the settings were others, or the caching was finished."""
    if (output / MANIFEST).exists():
        raise DataError(f"{output} already holds a dataset ({MANIFEST}): give another cache.output, or remove it")
    file = output / SETTINGS
    if file.is_file():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        if differing := sorted(name for name in settings if earlier.get(name) != settings[name]):
            raise DataError(f"{output} was begun with another {', '.join(differing)}: give another cache.output, or "
                            "remove it")  # fmt: skip
    else:
        output.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(settings).encode())
    return frozenset(path.name for path in output.glob("*.tar"))


def write_manifest(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Makes a dataset of the shards in `output`: manifest.json, written last, and index.jsonl; returns the manifest."""
    written = [described(path, path.name) for path in sorted(output.glob("*.tar"))]
    splits: dict[str, Any] = {}
    for split in ("train", "val"):
        shards = [shard.summary for shard in written if shard.summary["file"].startswith(f"{split}-")]
        splits[split] = {"samples": sum(shard["samples"] for shard in shards), "shards": shards}
    content = "".join(json.dumps(shard.places) + "\n" for shard in written)
    write_atomic(output / INDEX, content.encode(), sync=True)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "samples": sum(split["samples"] for split in splits.values()),
        "latents": settings,
        "splits": splits,
        "index": {"file": INDEX, "sha256": hashlib.sha256(content.encode()).hexdigest()},
    }
    write_atomic(output / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode(), sync=True)
    (output / SETTINGS).unlink(missing_ok=True)
    return manifest
