"""Training on cached latents, compared with training that encodes."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import safetensors.torch
import torch
from support.builds import contents
from support.losses import losses_of
from support.panoramas import keys, shards, spoil
from support.runs import composed

from cubediff import CubeDiffPipeline
from cubediff.configs import build
from cubediff.data import DataError, LatentDataModule, PanoramaDataModule
from cubediff.data.building.check import check_shards
from cubediff.data.format.folders import folder_lock
from cubediff.data.latent_cache.source import CachingDataModule
from cubediff.data.latent_cache.writing import ShardWriter, check_output
from cubediff.data.streaming.reader import ShardReader
from cubediff.pipelines.loading import tiny_random
from cubediff.runs.cache_latents import cache
from cubediff.runs.fit import fit
from cubediff.utils.signals import Stopped

WORDS = ("model=tiny_random", "trainer=cpu", "face_size=64", "data.num_workers=0")


def cached(source: Path, output: Path, *words: str) -> dict[str, Any]:
    return cache(composed(*WORDS, f"data.path={source}", f"cache.output={output}", *words, name="cache"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("source"), 10, val=0.3, shard_size=3, faces=True)


@pytest.fixture(scope="module")
def latents(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("latents") / "out"
    cached(source, output, "cache.turns=3", "cache.dtype=float32")
    return output


def test_every_panorama_is_cached_once_in_a_shard_of_the_same_name(source: Path, latents: Path) -> None:
    latent, original = (json.loads((path / "manifest.json").read_text()) for path in (latents, source))
    for split in ("train", "val"):
        names = [[s["file"] for s in manifest["splits"][split]["shards"]] for manifest in (latent, original)]
        assert names[0] == names[1]
    data = LatentDataModule(latents, batch_size=1, face_size=64)
    data.setup()
    old = PanoramaDataModule(source, batch_size=1, face_size=64)
    assert sorted(keys(data.train_dataloader())) == sorted(keys(old.train_dataloader()))
    assert keys(data.val_dataloader()) == keys(old.val_dataloader())


def batches_of_the_same(source: Path, latents: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch of latents, and the same rotations of the same panoramas with the same captions, not yet encoded."""
    stored = next(iter(LatentDataModule(latents, batch_size=4, face_size=64).train_dataloader()))
    data = PanoramaDataModule(source, batch_size=1, face_size=64)
    panoramas = {batch["key"][0]: batch["panorama"] for batch in data.train_dataloader()}
    prompts = []
    for key, yaw in zip(stored["key"], stored["yaw"].tolist(), strict=True):
        members = next(m for tar in latents.glob("train-*.tar") if (m := members_of(tar, key)))
        record, tensors = json.loads(members["json"]), safetensors.torch.load(members["safetensors"])
        rotation = record["yaws"].index(pytest.approx(yaw))
        prompts.append([record["captions"][i] for i in tensors["captions"][rotation]])
    online = {
        "panorama": torch.cat([panoramas[key] for key in stored["key"]]),
        "yaw": stored["yaw"],
        "prompts": prompts,
        "cameras": [None] * 4,
        "key": stored["key"],
    }
    return stored, dict(data.on_after_batch_transfer(online, 0))


def members_of(tar: Path, key: str) -> dict[str, bytes]:
    with tarfile.open(tar) as opened:
        names = [name for name in opened.getnames() if name.startswith(f"{key}.")]
        return {name.partition(".")[2]: opened.extractfile(name).read() for name in names}  # type: ignore[union-attr]


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("float16", 2e-3)])
def test_the_loss_on_cached_latents_equals_the_loss_of_encoding_the_same_rotations(
    source: Path, tmp_path: Path, dtype: str, near: float
) -> None:
    cached(source, tmp_path / "out", "cache.turns=2", f"cache.dtype={dtype}")
    module = build(composed(*WORDS, f"data.path={source}").model)
    module.encode_null_text()
    stored, online = batches_of_the_same(source, tmp_path / "out")
    with torch.no_grad():
        for place in range(3):
            torch.testing.assert_close(
                losses_of(module, stored, (place,)), losses_of(module, online, (place,)), rtol=near, atol=0
            )


def test_training_shows_all_cached_rotations_at_random(latents: Path) -> None:
    data = LatentDataModule(latents, batch_size=1, face_size=64)
    loader = data.train_dataloader()
    yaws_by_key: dict[str, set[float]] = {}
    for _ in range(20):
        for batch in loader:
            yaws_by_key.setdefault(batch["key"][0], set()).add(batch["yaw"].item())
    assert {len(yaws) for yaws in yaws_by_key.values()} == {3}
    assert len(set().union(*yaws_by_key.values())) == 3 * len(yaws_by_key)


def test_the_order_and_rotations_follow_the_seed_of_the_run(latents: Path) -> None:
    def drawn(seed: int) -> list[tuple[str, float]]:
        config = composed(*WORDS, "data=latents", f"data.path={latents}", "data.batch_size=1", f"seed={seed}")
        return [(batch["key"][0], batch["yaw"].item()) for batch in build(config.data).train_dataloader()]

    assert drawn(5) == drawn(5) != drawn(6)


def test_a_run_on_latents_needs_no_encoders_and_exports_a_complete_model(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*WORDS, "data=latents", f"data.path={latents}", "data.batch_size=2", "trainer.max_steps=3")
    config = composed(*words, "trainer.log_every_n_steps=1", run_dir=tmp_path / "run")
    devices: list[str] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            encoders = pl_module.backbone.encoders
            devices.extend(p.device.type for m in (encoders.vae, encoders.text_encoder) for p in m.parameters())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cubediff.runs.trainer.build", lambda c, **o: build(c, **watched(o, Look())))
        fit(config, tmp_path / "run")
    assert set(devices) == {"meta"}
    assert "no samples are generated" in capsys.readouterr().out
    exported = CubeDiffPipeline.from_pretrained(tmp_path / "run" / "export")
    exported.set_progress_bar_config(disable=True)
    initial = tiny_random()
    assert torch.equal(exported.vae.decoder.conv_in.weight, initial.vae.decoder.conv_in.weight)
    assert exported("a hall", num_inference_steps=1, output_type="pt").faces.isfinite().all()
    assert (exported.unet.conv_in.weight != initial.unet.conv_in.weight).any()


def watched(options: dict[str, Any], callback: L.Callback) -> dict[str, Any]:
    """The options of a trainer with one more callback."""
    return {**options, "callbacks": [*options["callbacks"], callback]} if "callbacks" in options else options


def test_interrupted_caching_resumes_and_writes_the_same_files(source: Path, latents: Path, tmp_path: Path) -> None:
    words = ("cache.turns=3", "cache.dtype=float32")
    whole = {file.name: file.read_bytes() for file in latents.iterdir()}
    written: list[str] = []
    finish = ShardWriter._finish

    def stop(self: ShardWriter) -> None:
        finish(self)
        if self._name and self._name not in written:
            written.append(self._name)
        if len(written) == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWriter, "_finish", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            cached(source, tmp_path / "out", *words)
    left = {file.name for file in (tmp_path / "out").glob("*.tar")}
    assert left
    (tmp_path / f"out/.manifest.json.{'0' * 32}.part").write_bytes(b"{")  # of a process that was killed at its end
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(DataError, match=r"were cached with other settings, turns \(3, now 2\): choose"):
        cached(source, tmp_path / "out", "cache.turns=2", "cache.dtype=float32")
    cached(source, tmp_path / "out", *words)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == whole


def test_a_finished_caching_is_left_as_it_is_by_the_same_command_and_refused_by_another(
    source: Path, latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, output = ("cache.turns=3", "cache.dtype=float32"), tmp_path / "out"
    shutil.copytree(latents, output)
    whole = contents(output)
    manifest = json.loads((latents / "manifest.json").read_text())
    assert cached(source, output, *words) == manifest
    assert f"nothing to do: {output} holds the latents of these panoramas already" in capsys.readouterr().out
    with pytest.raises(
        DataError, match=r"cached with other settings, flip \(0\.0, now 0\.5\), turns \(3, now 2\): choose"
    ):
        cached(source, output, "cache.turns=2", "cache.dtype=float32", "data.flip=0.5")
    assert contents(output) == whole
    changed = json.loads((source / "manifest.json").read_text())
    changed["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    before = (source / "manifest.json").read_text()
    try:
        (source / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(DataError, match=r"of 10 panoramas of other shards than the 10 of data\.path, or of these"):
            cached(source, output, *words)
        old = {name: value for name, value in manifest.items() if name != "panoramas"}  # of the first latents
        (output / "manifest.json").write_text(json.dumps(old))
        assert cached(source, output, *words) == old
        (output / "manifest.json").write_text(json.dumps(old | {"samples": 9}))
        with pytest.raises(DataError, match="of 9 panoramas of other shards than the 10"):
            cached(source, output, *words)
    finally:
        (source / "manifest.json").write_text(before)
    (output / "manifest.json").write_text(json.dumps(manifest))
    (output / "train-000000.tar").unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar is missing although manifest\.json lists it"):
        cached(source, output, *words)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_stops_caching_during_a_stalled_read_and_the_same_command_resumes(
    source: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    words = ("cache.turns=3", "cache.dtype=float32", f"data.num_workers={workers}")
    reads, read, never = itertools.count(1), ShardReader.read, threading.Event()

    def stall(*arguments: Any) -> Any:
        if (number := next(reads)) == 15:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        if number >= 15:
            never.wait()
        return read(*arguments)

    monkeypatch.setattr(ShardReader, "read", stall)
    with pytest.raises(Stopped) as stopped:
        cached(source, tmp_path / "out", *words)
    assert stopped.value.code == 143
    assert list((tmp_path / "out").glob("*.tar"))
    assert not list((tmp_path / "out").glob(".*.part"))
    monkeypatch.undo()
    never.set()
    cached(source, tmp_path / "out", *words)
    whole = {file.name: file.read_bytes() for file in latents.iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == whole


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_write_the_same_as_one(source: Path, latents: Path, tmp_path: Path) -> None:
    words = [*WORDS, "cache.turns=3", "cache.dtype=float32", "trainer.devices=2", "+trainer.strategy=ddp"]
    command = [sys.executable, "-m", "cubediff.cache", *words, f"data.path={source}", f"cache.output={tmp_path}/out"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("yaw rotations each") == 1  # on the first rank only
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == {
        file.name: file.read_bytes() for file in latents.iterdir()
    }


def test_damaged_panoramas_are_skipped_up_to_the_allowed_share(source: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(source, tmp_path / "broken"))
    with tarfile.open(broken / "train-000000.tar") as tar:
        damaged = next(name for name in tar.getnames() if name.endswith("jpg"))
    spoil(broken / "train-000000.tar", damaged)
    with pytest.raises(DataError, match=r"1 of \d+ samples were skipped"):
        cached(broken, tmp_path / "none", "cache.turns=2")
    manifest = cached(broken, tmp_path / "most", "cache.turns=2", "data.max_skipped_share=0.2")
    assert manifest["samples"] == 9


def is_even(sample: dict[str, Any]) -> bool:
    return int(sample["__key__"]) % 2 == 0


def test_stages_choose_what_is_cached_and_an_interrupted_run_resumes_only_with_the_same(
    source: Path, tmp_path: Path
) -> None:
    predicate = f"{{_target_:hydra.utils.get_method,path:{__name__}.is_even}}"
    stages = f"data.stages=[{{_target_:webdataset.select,predicate:{predicate}}}]"
    words = (stages, "data.max_skipped_share=1.0", "cache.turns=1")
    manifest = cached(source, tmp_path / "out", *words)
    assert manifest["samples"] == 5
    assert manifest["latents"]["stages"][0]["_target_"] == "webdataset.select"
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "settings.json").write_text(json.dumps(manifest["latents"]))
    with pytest.raises(DataError, match="were cached with other settings, stages"):
        cached(source, tmp_path / "out", "cache.turns=1")
    assert cached(source, tmp_path / "out", *words) == manifest
    data = LatentDataModule(tmp_path / "out", batch_size=1, face_size=64)
    assert all(int(key) % 2 == 0 for key in keys(data.train_dataloader()))


def test_caching_resumes_only_with_the_same_decoding(source: Path, tmp_path: Path) -> None:
    """Also if it was interrupted before JPEGs were decoded at reduced sizes: its settings lack the key."""
    full, scaled = "data.jpeg_scaling=false", "data.jpeg_scaling=true"
    for name, own, other in (("full", full, scaled), ("scaled", scaled, full)):
        output = tmp_path / name
        manifest = cached(source, output, "cache.turns=1", own)
        assert manifest["latents"].get("jpeg_scaling") == (True if own == scaled else None)
        for file in ("manifest.json", "train-000000.tar"):
            (output / file).unlink()
        (output / "settings.json").write_text(json.dumps(manifest["latents"]))
        with pytest.raises(DataError, match="were cached with other settings, jpeg_scaling"):
            cached(source, output, "cache.turns=1", other)
        assert cached(source, output, "cache.turns=1", own) == manifest


@pytest.mark.parametrize("scaling", [False, True])
def test_caching_decodes_as_training_does(source: Path, scaling: bool) -> None:
    options: dict[str, Any] = {"batch_size": 1, "face_size": 8, "yaw": "none", "jpeg_scaling": scaling}
    training = PanoramaDataModule(source, **options)
    expected = {batch["key"][0]: batch["panorama"][0] for batch in training.train_dataloader()}
    caching = CachingDataModule(source, turns=1, **options)
    for batch in caching.predict_dataloader():
        if (key := batch["key"][0]) in expected:
            assert torch.equal(batch["panorama"][0], expected.pop(key))
    assert not expected
    assert caching.decoder("train").jpeg_scaling == scaling


def test_damaged_latents_are_skipped_and_counted(source: Path, latents: Path, tmp_path: Path) -> None:
    shutil.copytree(latents, tmp_path / "out")
    shard = next((tmp_path / "out").glob("train-*.tar"))
    with tarfile.open(shard) as tar:
        damaged = next(name for name in tar.getnames() if name.endswith("safetensors"))
    spoil(shard, damaged)
    data = LatentDataModule(tmp_path / "out", batch_size=1, face_size=64, max_skipped_share=1.0)
    assert len(keys(data.train_dataloader())) == data.samples("train")
    assert data.skipped == 1


def test_prepare_check_verifies_a_folder_of_latents(latents: Path, tmp_path: Path) -> None:
    lines, faults = check_shards(latents)
    assert faults == []
    assert lines[0] == "latents of 64-pixel faces of 95°, to train on with data=latents"
    assert lines[1].startswith("train: 10 panoramas in 4 shards, ")
    assert lines[2] == "val: no panoramas"
    output = Path(shutil.copytree(latents, tmp_path / "out"))
    with (output / "train-000000.tar").open("r+b") as file:
        file.truncate(4000)
    key = json.loads((output / "index.jsonl").read_text().splitlines()[1])["keys"][0]
    spoil(output / "train-000001.tar", f"{key}.safetensors")
    faults = check_shards(output).faults
    assert any(fault.startswith("train-000000.tar has 4000 bytes, expected") for fault in faults)
    assert any(fault.startswith("train-000001.tar is damaged: its sha256 is") for fault in faults)
    assert f"train-000001.tar, sample {key}: its tensors have changed since they were written (crc32 differs)" in faults
    (output / "manifest.json").rename(output / "settings.json")
    assert [fault.partition(": ")[2] for fault in check_shards(output).faults] == [
        "the dataset is incomplete, complete it with the same cubediff cache command, or build it again"
    ]


def refit(latents: Path, run_dir: Path, encoders: str) -> Path:
    """Trains a step on a copy of latents whose manifest has another fingerprint of the encoders."""
    shutil.copytree(latents, run_dir / "latents")
    manifest = json.loads((latents / "manifest.json").read_text())
    manifest["latents"]["encoders"] = encoders
    (run_dir / "latents/manifest.json").write_text(json.dumps(manifest))
    words = (*WORDS, "data=latents", f"data.path={run_dir / 'latents'}", "trainer.max_steps=1", "callbacks=none")
    return fit(composed(*words, "trainer.limit_val_batches=0", run_dir=run_dir), run_dir)


def test_latents_of_the_first_form_load_and_those_of_another_scaling_or_tokenizer_are_refused(
    latents: Path, tmp_path: Path
) -> None:
    weights, settings = json.loads((latents / "manifest.json").read_text())["latents"]["encoders"].split("-")
    assert refit(latents, tmp_path / "first", weights).is_dir()
    with pytest.raises(ValueError, match=r"come from other encoders .*\(weights, scaling or tokenizer\): train from"):
        refit(latents, tmp_path / "other", f"{weights}-{settings[::-1]}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("data=latents", "data.path=LATENTS", "face_size=32"),
            "face_size=64, the run has face_size=32: set face_size=64",
        ),
        (("data=latents", "data.path=LATENTS", "fov=90.0"), "have fov=95.0"),
        (("data=latents", "data.path=SOURCE"), "holds panoramas, not latents: set data=panoramas"),
        (("data.path=LATENTS",), "holds latents, not panoramas: set data=latents"),
        (("data.path=[SOURCE,LATENTS]",), r"both panoramas and latents: \S+ \(panoramas\), \S+ \(latents\); list only"),
        (("data=latents", "data.path=[LATENTS,SOURCE]"), r"latents: \S+ \(latents\), \S+ \(panoramas\); list only"),
        (("data=latents", "data.path=LATENTS", "+model.pipeline.seed=1"), "come from other encoders"),
    ],
)
def test_latents_that_do_not_match_the_run_are_refused(
    source: Path, latents: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    words = tuple(word.replace("LATENTS", str(latents)).replace("SOURCE", str(source)) for word in words)
    with pytest.raises(ValueError, match=message):
        fit(composed(*WORDS, *words, "data.batch_size=2", run_dir=tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cache.dtype=int8",), "must be float16 or float32"),
        (("cache.dtype=bfloat16",), "must be float16 or float32, got bfloat16"),
        (("cache.turns=0",), "^cache.turns must be at least 1, an integer, got 0"),
        (("cache.turns=1.5",), "^cache.turns must be at least 1, an integer, got 1.5"),
        (("cache.turns=many",), "^cache.turns must be at least 1, an integer, got many"),
        (("data=photos",), "cache with data=panoramas"),
    ],
)
def test_invalid_cache_settings_are_refused_before_anything_is_written(
    source: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cached(source, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def empty_tar(path: Path) -> None:
    tarfile.open(path, "w").close()


def photographs(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        tar.add(__file__, "a photograph.jpg")


@pytest.mark.parametrize("settings", [False, True])
@pytest.mark.parametrize("content", [Path.touch, empty_tar, photographs])
def test_a_tar_that_caching_did_not_complete_is_never_taken_as_done(
    source: Path, latents: Path, tmp_path: Path, content: Callable[[Path], None], settings: bool
) -> None:
    """Also if it lies next to the settings of an interrupted run; it is refused by name and stays as it is."""
    output = tmp_path / "out"
    output.mkdir()
    content(output / "train-000000.tar")
    if settings:
        record = json.loads((latents / "manifest.json").read_text())["latents"]
        (output / "settings.json").write_text(json.dumps(record))
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    with pytest.raises(DataError, match=r"train-000000\.tar.*move") as caught:
        cached(source, output, "cache.turns=3", "cache.dtype=float32")
    assert ("not a complete shard of latents" in str(caught.value)) == settings
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before


@pytest.mark.parametrize("damage", ["cut within a sample", "cut after a sample", "changed", "another dataset's"])
def test_a_damaged_shard_of_an_interrupted_run_is_not_taken_as_done(
    source: Path, latents: Path, tmp_path: Path, damage: str
) -> None:
    output = tmp_path / "out"
    shutil.copytree(latents, output)
    (output / "settings.json").write_text(json.dumps(json.loads((output / "manifest.json").read_text())["latents"]))
    (output / "manifest.json").unlink()
    shard = output / "train-000000.tar"
    index = json.loads((output / "index.jsonl").read_text().splitlines()[0])
    assert index["file"] == shard.name
    if damage == "changed":
        spoil(shard, f"{index['keys'][1]}.safetensors")
    elif damage == "another dataset's":
        shutil.copy(output / "train-000001.tar", shard)
    else:
        end = index["offsets"][1] + (700 if "within" in damage else 0)
        shard.write_bytes(shard.read_bytes()[:end])
    with pytest.raises(DataError, match=r"train-000000\.tar is not a complete shard of latents"):
        cached(source, output, "cache.turns=3", "cache.dtype=float32")


def test_files_of_others_in_the_output_are_refused(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds notes\.txt, which no interrupted caching"):
        cached(source, output)
    with pytest.raises(DataError, match=r"is a file: cache\.output is the folder"):
        cached(source, output / "notes.txt")
    assert [path.name for path in output.iterdir()] == ["notes.txt"]


def test_an_output_that_is_or_contains_the_panoramas_is_refused_and_one_inside_is_not(
    source: Path, tmp_path: Path
) -> None:
    panoramas = tmp_path / "above" / "shards"
    shutil.copytree(source, panoramas)
    (tmp_path / "link").symlink_to(panoramas)
    (tmp_path / "tars").mkdir()
    shutil.copy(panoramas / "train-000000.tar", tmp_path / "tars")
    before = contents(tmp_path)
    data = CachingDataModule(panoramas, batch_size=1, face_size=64, turns=1)
    for output, words in (
        ("above/shards", "already holds a dataset"),
        ("link", "already holds a dataset"),
        ("above/../link", "already holds a dataset"),
        ("above", "holds shards, which no interrupted caching"),
        ("tars", r"holds train-000000\.tar, which no interrupted caching"),
    ):
        with pytest.raises(DataError, match=words):
            check_output(tmp_path / output, {}, data.shards_to_cache())
    check_output(panoramas / "latents", {}, data.shards_to_cache())
    assert contents(tmp_path) == before


def test_two_runs_at_once_in_one_folder_are_an_error(source: Path, tmp_path: Path) -> None:
    with folder_lock(tmp_path / "out"), pytest.raises(DataError, match="another process is building"):
        cached(source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_tars_of_any_name_are_cached_for_training(source: Path, tmp_path: Path) -> None:
    """A brace range has no manifest, and its names do not start with train-."""
    tars = tmp_path / "tars"
    tars.mkdir()
    for i in range(2):
        shutil.copy(source / f"train-00000{i}.tar", tars / f"0000{i}.tar")
    manifest = cached(Path(f'"{tars}/{{00000..00001}}.tar"'), tmp_path / "out")
    sizes = [s["samples"] for s in json.loads((source / "manifest.json").read_text())["splits"]["train"]["shards"]]
    assert manifest["splits"]["train"]["samples"] == manifest["samples"] == sum(sizes[:2])
    (tars / "sub").mkdir()
    shutil.copy(tars / "00000.tar", tars / "sub" / "00000.tar")
    with pytest.raises(DataError, match=r"names several shards 00000\.tar"):
        cached(Path(f'"{tars}/{{.,sub}}/00000.tar"'), tmp_path / "both")


def test_an_experiment_that_sets_augmentations_trains_on_latents(
    latents: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They were drawn when the latents were cached: another value is announced."""
    words = ("experiment=cubediff_tiny", "data=latents", *WORDS, "fov=95.0", "data.batch_size=2", "trainer.max_steps=1")
    fit(composed(*words, f"data.path={latents}", run_dir=tmp_path), tmp_path)
    assert (tmp_path / "export/model_index.json").is_file()
    warning = f"data.face_caption_probability=0.3 has no effect: the latents of {latents} were cached with 0.5"
    assert caplog.messages.count(warning) == 1


def test_options_that_latents_do_not_have_are_refused(latents: Path) -> None:
    config = composed("data=latents", f"data.path={latents}", "+data.photos={_target_: cubediff.data.RandomPhotos}")
    with pytest.raises(ValueError, match=r"^data: unknown options photos: remove them, or choose another data module"):
        build(config.data)
