"""Damaged shards: readable samples are shown in the same order, skipped ones are counted, and too many stop the run."""

import io
import json
import logging
import tarfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from support.panoramas import data, fit, keys, shards, spoil

from cubediff.data import DataError
from cubediff.data.streaming.catalog import open_dataset
from cubediff.data.streaming.remote import Cache
from cubediff.data.streaming.skipping import SkipCounter, SkippedSample


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 2)])
def test_the_next_sample_takes_the_position_of_a_damaged_one_and_nothing_shifts(
    tmp_path: Path, world: int, workers: int
) -> None:
    path = shards(tmp_path, 16)

    def stream(world: int, workers: int) -> tuple[list[str], list[float], int]:
        ranks = [data(path, r, world, num_workers=workers, max_skipped_share=1.0) for r in range(world)]
        batches = zip(*(module.train_dataloader() for module in ranks), strict=True)
        flat = [batch for parts in batches for batch in parts]
        return keys(flat), [yaw for b in flat for yaw in b["yaw"].tolist()], sum(m.skipped for m in ranks)

    undamaged, yaws, _ = stream(1, 0)
    bad = [undamaged[i] for i in (3, 8, 9, 15)]
    for tar in path.glob("*.tar"):
        with tarfile.open(tar) as file:
            names = [name for name in file.getnames() if name.endswith(".jpg") and name[:3] in bad]
        spoil(tar, *names)
    damaged, same_yaws, skipped = stream(world, workers)
    assert [key for i, key in enumerate(damaged) if i not in (3, 8, 9, 15)] == [k for k in undamaged if k not in bad]
    assert damaged[3] == undamaged[4]
    assert damaged[8] == damaged[9] == undamaged[10]
    assert damaged[15] not in bad
    assert same_yaws == yaws  # the rotation depends on the position, not on the sample
    assert skipped == 4


def test_a_warning_is_logged_at_1_10_100_skipped_samples(caplog: pytest.LogCaptureFixture) -> None:
    skips = SkipCounter()
    with caplog.at_level(logging.WARNING):
        for i in range(250):
            skips.count_skip("ab"[i % 2], SkippedSample(f"sample {i}"))
    messages = [record.getMessage() for record in caplog.records]
    assert [text.split()[0] for text in messages] == ["1", "10", "100"]
    assert messages[1].endswith("the last one: sample 9")
    assert skips.by_shard == {"a": 125, "b": 125}


def test_the_skipped_share_is_checked_over_whole_windows() -> None:
    skips = SkipCounter()
    skips.requested += 120
    skips.count_skip("b.tar", SkippedSample("x"))
    skips.check(0.01, 200)  # 1 of 120, but 1 of a window of 200 is less than 1 %
    skips.count_skip("b.tar", SkippedSample("x"))
    skips.check(0.01, 200)
    skips.count_skip("a.tar", SkippedSample("x"))
    with pytest.raises(DataError, match=r"3 of 120 samples .*max_skipped_share=0\.01.*\(b\.tar: 2, a\.tar: 1\)"):
        skips.check(0.01, 200)  # even if the other 80 are readable
    skips.requested += 1000
    skips.check(0.01, 200)  # 3 of 1120


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_skipped_samples_stop_training_with_the_count_of_each_shard(tmp_path: Path, workers: int) -> None:
    path = shards(tmp_path, 30, shard_size=10)
    for tar, count in (("train-000000.tar", 2), ("train-000002.tar", 1)):
        with tarfile.open(path / tar) as file:
            images = [name for name in file.getnames() if name.endswith(".jpg")][:count]
        spoil(path / tar, *images)
    message = r"^\d of \d+ samples were skipped, more than data\.max_skipped_share=0\.05: .*train-00000[02]\.tar: [12]"
    with pytest.raises(DataError, match=message):
        fit(path, 100, trainer={"limit_val_batches": 0}, num_workers=workers, max_skipped_share=0.05)
    model, _ = fit(path, 20, trainer={"limit_val_batches": 0}, num_workers=workers, max_skipped_share=0.1)
    assert len(model.steps) == 20


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_corruptions_skip_only_the_samples_they_hit(tmp_path: Path, count: int) -> None:
    """Bit flips, bursts, holes and truncations: a sample whose image or header is hit is counted, one that is not hit
    arrives bit by bit; a change of a caption cannot be detected."""
    path = shards(tmp_path, 12, shard_size=6)
    module = data(path, batch_size=12, yaw="none", panorama_height=32, max_skipped_share=1.0)
    (batch,) = module.train_dataloader()
    clean = dict(zip(batch["key"], batch["panorama"], strict=True))
    shard = path / "train-000001.tar"
    undamaged = shard.read_bytes()
    with tarfile.open(shard) as tar:
        members = [(m.name.partition(".")[0], m.name.endswith(".jpg"), m.offset, m.offset_data, m.size) for m in tar]
    rng = Random(0)
    lost = 0
    for kind, broken in corruptions(undamaged, count, rng):
        shard.write_bytes(broken)
        module.position = 0
        (batch,) = module.train_dataloader()
        skipped = clean.keys() - set(batch["key"])
        both = enumerate(zip(undamaged, broken, strict=False))  # a truncation shows in the length, below
        changed = {i for i, (a, b) in both if a != b}
        must, may = set(), set()
        for key, image, header, start, size in members:
            end = start + size + -size % 512
            touched = changed.intersection(range(header, end)) or end > len(broken)
            checksum = range(header + 148, header + 156)
            in_image = image and (changed.intersection(range(start, start + size)) or start + size > len(broken))
            in_header = kind == "flip" and changed.intersection(set(range(header, start)) - set(checksum))
            may |= {key} if touched else set()
            must |= {key} if in_image or in_header else set()
        assert must <= skipped <= may, kind
        assert module._streams["train"].skips.by_shard == ({str(shard): len(skipped)} if skipped else {}), kind
        assert all(torch.equal(image, clean[key]) for key, image in zip(batch["key"], batch["panorama"], strict=True))
        assert len(batch["key"]) == 12
        lost += len(skipped)
    assert lost > count / 2
    print(f"{count} corruptions cost {lost} samples, all counted")


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_corrupt_tars_without_a_manifest_are_indexed_up_to_the_damage_or_refused(tmp_path: Path, count: int) -> None:
    path = shards(tmp_path, 6, shard_size=6) / "train-000000.tar"
    broken_tar = tmp_path / "broken.tar"
    refused = 0
    for _, broken in corruptions(path.read_bytes(), count, Random(1)):
        broken_tar.write_bytes(broken)
        try:
            (shard,) = open_dataset(str(broken_tar), Cache(tmp_path, 1.0)).splits["train"]
            assert len(shard) <= 12
        except DataError:
            refused += 1
    assert 0 < refused < count


@pytest.mark.parametrize("record", [None, {"caption": "a hall", "width": 64}, ["a hall"]])
def test_tars_of_other_software_are_refused_with_the_command_that_builds_shards(tmp_path: Path, record: object) -> None:
    """Their samples have no checksum, so every one would be skipped."""
    for number in range(2):
        with tarfile.open(tmp_path / f"{number:05d}.tar", "w") as tar:
            for key in ("a", "b"):
                members = {"jpg": b"pixels", "txt": b"a hall"} | (
                    {"json": json.dumps(record).encode()} if record else {}
                )
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    with pytest.raises(
        DataError, match=r"00000\.tar is no shard of cubediff.*python -m cubediff\.prepare SOURCE OUTPUT"
    ):
        data(f"{tmp_path}/{{00000..00001}}.tar")


def corruptions(undamaged: bytes, count: int, rng: Random) -> Iterator[tuple[str, bytes]]:
    for _ in range(count):
        kind = rng.choice(["flip", "burst", "hole", "truncation"])
        broken, start, length = bytearray(undamaged), rng.randrange(len(undamaged)), rng.randrange(1, 3000)
        if kind == "flip":
            broken[start] ^= 1 << rng.randrange(8)
        elif kind == "burst":
            broken[start : start + length] = rng.randbytes(len(broken[start : start + length]))
        elif kind == "hole":
            broken[start : start + length] = bytes(len(broken[start : start + length]))
        else:
            del broken[start:]
        yield kind, bytes(broken)
