"""Checkpoints are written atomically, damaged ones and those of other runs are refused, and a run finds its own."""

import csv
import errno
import io
import math
import os
import re
import shutil
import subprocess
import zipfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from support.panoramas import shards
from support.processes import ONE, Run, difference, saved
from support.runs import QUICK, composed

from cubediff.configs import targets
from cubediff.pipelines.loading import tiny_random
from cubediff.runs import resume
from cubediff.runs.fit import fit
from cubediff.runs.identity import differing_settings, run_identity
from cubediff.runs.resume import find_checkpoint
from cubediff.training import checkpoint_errors
from cubediff.training.callbacks import RunCheckpoint, checkpoint
from cubediff.training.checkpoint_errors import CheckpointError
from cubediff.training.checkpoint_io import (
    AtomicCheckpointIO,
    file_name,
    find_damage,
    link_last,
    list_checkpoints,
)
from cubediff.training.loaded_checkpoint import LoadedCheckpoint, _ChecksummedFile
from cubediff.training.module import CubeDiffModule

CONTENT = {"state_dict": {"weight": torch.arange(50_000.0)}, "global_step": 3}
NO_SAMPLES = ("callbacks.samples=null", "trainer.limit_val_batches=0", "face_size=64")


def write(folder: Path, *numbers: int) -> list[Path]:
    for number in numbers:
        AtomicCheckpointIO().save_checkpoint(CONTENT, folder / "checkpoints" / file_name(number))
    return [folder / "checkpoints" / file_name(number) for number in numbers]


def spoil(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"damage")


def damage_of(file: Path) -> str | None:
    """The damage of a checkpoint, which both ways to read it find."""
    loaded = LoadedCheckpoint()
    damage = find_damage(file)
    assert (loaded.verify(file) is None) == (damage is None)
    assert (loaded.content(file) is None) == (damage is not None)
    return damage


# ---- writing ---------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = write(tmp_path, 3)
    before = file.read_bytes()

    def fails(checkpoint: Any, opened: Any) -> None:
        opened.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(CheckpointError, match=r"step00000003\.ckpt cannot be written .*No space left.*free disk space"):
        AtomicCheckpointIO().save_checkpoint(CONTENT, file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_on_a_full_disk_the_last_checkpoint_stays_and_the_error_names_the_remedy(
    begun: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    size = int(1.5 * (begun / "checkpoints/last.ckpt").stat().st_size)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    try:
        words = (
            *QUICK,
            *NO_SAMPLES,
            f"data.path={tiny_shards}",
            "trainer.max_steps=9",
            f"callbacks.checkpoint.folder={disk}",
        )
        with pytest.raises(CheckpointError, match=r"step0000000.*cannot be written .*free disk space or choose"):
            fit(composed(*words, "callbacks.checkpoint.every_n_steps=1", run_dir=tmp_path / "run"), tmp_path / "run")
        left = list_checkpoints(disk)
        assert len(left) == 1
        assert find_damage(next(iter(left.values()))) is None
        assert not list(disk.glob(".*.part"))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_newest_checkpoints_and_those_at_multiples_are_kept(tmp_path: Path) -> None:
    saver, trainer = RunCheckpoint(str(tmp_path), keep=2, keep_every_n_steps=20), Mock(spec=L.Trainer)
    trainer.save_checkpoint = lambda path, weights_only: AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    for trainer.global_step in range(5, 75, 5):
        saver.save(trainer)
        assert (tmp_path / "last.ckpt").resolve() == tmp_path / file_name(trainer.global_step)
    assert list(list_checkpoints(tmp_path)) == [70, 65, 60, 40, 20]


def test_without_symbolic_links_the_last_checkpoint_is_a_hard_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, target: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refused)
    for file in write(tmp_path, 9, 10):
        link_last(file)
        assert (file.parent / "last.ckpt").samefile(file)


# ---- choosing --------------------------------------------------------------------------------------------------


def test_damage_is_found_at_any_position(tmp_path: Path) -> None:
    (file,) = write(tmp_path, 1)
    assert damage_of(file) is None
    whole = file.read_bytes()
    for length in (len(whole) // 3, len(whole) // 2, len(whole) - 300):
        file.write_bytes(whole[:length])
        assert damage_of(file) is not None
    spoil(write(tmp_path, 2)[0])
    assert "checksum" in str(damage_of(tmp_path / "checkpoints" / file_name(2)))


def test_a_run_resumes_from_the_last_undamaged_checkpoint(tmp_path: Path) -> None:
    assert find_checkpoint("auto", tmp_path) is None
    assert find_checkpoint("never", tmp_path) is None
    first, second, third = write(tmp_path, 9, 10, 100)
    assert find_checkpoint("auto", tmp_path) == third
    spoil(third)
    assert find_checkpoint("auto", tmp_path) == second
    assert third.exists()  # a dry run, or another rank than 0, renames nothing
    spoil(first)
    spoil(second)
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged .*step00000010.*remove them"):
        find_checkpoint("auto", tmp_path, rename_damaged=True)
    assert list(list_checkpoints(first.parent).values()) == [third, second, first]


@pytest.mark.parametrize("content", [b"", b"\0" * 50_000, b"PK", b"[]"])
def test_a_damaged_checkpoint_is_renamed_and_never_overwrites_an_earlier_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    first, second = write(tmp_path, 9, 10)
    for name in ("step00000010.ckpt.damaged", "step00000010.ckpt.damaged.2"):
        second.write_bytes(content)
        assert find_checkpoint("auto", tmp_path, rename_damaged=True) == first
        assert second.with_name(name).read_bytes() == content
        printed = capsys.readouterr().out
        assert printed.startswith("WARNING: step00000010.ckpt is damaged (")
        assert printed.endswith(f") and renamed to {name}: resuming from step00000009.ckpt\n")
    assert (first.parent / "last.ckpt").resolve() == first
    assert find_checkpoint("auto", tmp_path, rename_damaged=True) == first
    assert capsys.readouterr().out == ""


def test_a_flipped_bit_anywhere_is_damage_unless_torch_reads_the_same(tmp_path: Path) -> None:
    """A flip that find_damage accepts changes nothing that torch reads."""
    content = {"state_dict": {"weight": torch.arange(10.0)}, "global_step": 3}
    file = tmp_path / "step00000001.ckpt"
    torch.save(content, file)
    whole = file.read_bytes()
    accepted = 0
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        if damage_of(file) is None:
            accepted += 1
            loaded = torch.load(file, weights_only=True)
            assert loaded["global_step"] == 3
            assert torch.equal(loaded["state_dict"]["weight"], content["state_dict"]["weight"])
    assert 0 < accepted < len(whole) / 7 / 2


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_an_error_of_the_storage_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Reading is tried again; if it fails for good, the run stops and the checkpoint keeps its name."""
    _, newest = write(tmp_path, 9, 10)
    monkeypatch.setattr(checkpoint_errors, "_RETRY_AFTER", (0.0, 0.0))
    failures, read = 2, zipfile.ZipFile

    def unreliable(file: Path) -> zipfile.ZipFile:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError(code, os.strerror(code), str(file))
        return read(file)

    monkeypatch.setattr(zipfile, "ZipFile", unreliable)
    assert find_checkpoint("auto", tmp_path, rename_damaged=True) == newest
    failures = 3
    with pytest.raises(
        CheckpointError, match=rf"{newest} cannot be read .*{os.strerror(code)}.*3 attempts: the storage"
    ):
        find_checkpoint("auto", tmp_path, rename_damaged=True)
    assert list(list_checkpoints(newest.parent)) == [10, 9]


@pytest.mark.parametrize("failures", [1, 9])
def test_an_error_of_the_storage_while_tensors_are_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    _, newest = write(tmp_path, 9, 10)
    monkeypatch.setattr(checkpoint_errors, "_RETRY_AFTER", (0.0, 0.0))
    note, left = _ChecksummedFile._note, failures

    def fails(self: _ChecksummedFile, position: int, data: bytes | memoryview) -> None:
        nonlocal left
        if len(data) > 10_000 and left > 0:
            left -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        note(self, position, data)

    monkeypatch.setattr(_ChecksummedFile, "_note", fails)
    loaded = LoadedCheckpoint()
    if failures == 1:
        assert find_checkpoint("auto", tmp_path, rename_damaged=True, loaded=loaded) == newest
        assert loaded.content(newest) is not None
    else:
        with pytest.raises(CheckpointError, match=r"cannot be read .*3 attempts: the storage fails"):
            find_checkpoint("auto", tmp_path, rename_damaged=True, loaded=loaded)
    assert list(list_checkpoints(newest.parent)) == [10, 9]


def test_a_folder_of_checkpoints_that_cannot_be_read_is_not_taken_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 9)
    monkeypatch.setattr(checkpoint_errors, "_RETRY_AFTER", ())
    monkeypatch.setattr(os, "listdir", Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/checkpoints cannot be read .*Permission denied"):
        find_checkpoint("auto", tmp_path)


def test_a_checkpoint_that_rank_0_renames_meanwhile_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = write(tmp_path, 9, 10)
    listed = {10: second, 9: first}
    second.unlink()
    monkeypatch.setattr(resume, "list_checkpoints", lambda folder: listed)
    assert find_checkpoint("auto", tmp_path) == first


def test_ranks_that_resume_at_different_steps_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "all_reduce_max", lambda step, group: max(step, 7))
    trainer = Mock(spec=L.Trainer, global_step=5, world_size=1)
    with pytest.raises(CheckpointError, match=r"resume at different steps, .*to 7: .* put run_dir on a file system"):
        RunCheckpoint(str(tmp_path)).on_train_start(trainer, Mock(spec=L.LightningModule))


def test_a_run_resumes_past_damaged_checkpoints_and_finishes(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damaged checkpoints are renamed, and the newest intact one is resumed."""
    words = (*QUICK, *NO_SAMPLES, f"data.path={tiny_shards}", "trainer.max_steps=6")
    every = ("callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep=9")
    config = composed(*words, *every, run_dir=tmp_path / "run")
    fit(config, tmp_path / "run")
    folder, expected = tmp_path / "run/checkpoints", saved(tmp_path / "run")
    (folder / file_name(6)).write_bytes(b"")
    whole = (folder / file_name(5)).read_bytes()
    (folder / file_name(5)).write_bytes(whole[: len(whole) // 2])
    spoil(folder / file_name(4))
    capsys.readouterr()
    fit(config, tmp_path / "run")
    printed = capsys.readouterr().out
    for step in (4, 5, 6):
        assert f"{file_name(step)} is damaged (" in printed
        assert (folder / f"{file_name(step)}.damaged").is_file()
    assert f"resuming from {folder / file_name(3)}" in printed
    assert list(list_checkpoints(folder)) == [6, 5, 4, 3, 2, 1]
    assert difference(expected, saved(tmp_path / "run")) == []
    with (tmp_path / "run/logs/metrics.csv").open() as file:
        steps = {int(row["step"]) for row in csv.DictReader(file)}
    assert sorted(steps) == [0, 1, 2, 3, 4, 5]


def test_a_resume_path_is_used_only_without_own_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (other,) = write(tmp_path / "other", 5)
    assert find_checkpoint(str(other), tmp_path / "run") == other
    (own,) = write(tmp_path / "run", 7)
    assert find_checkpoint(str(other), tmp_path / "run") == own
    assert "WARNING" not in capsys.readouterr().out
    assert find_checkpoint(str(tmp_path / "nowhere"), tmp_path / "run") == own  # as a scheduler restarts the run
    words = f"WARNING: resume={tmp_path}/nowhere is not a file: resuming from the checkpoints of {tmp_path}/run"
    assert words in capsys.readouterr().out
    with pytest.raises(
        CheckpointError, match=r"resume=.*nowhere is not a file: choose a checkpoint file, auto or never"
    ):
        find_checkpoint(str(tmp_path / "nowhere"), tmp_path / "new")
    spoil(other)
    with pytest.raises(CheckpointError, match=r"is damaged .*choose another checkpoint"):
        find_checkpoint(str(other), tmp_path / "new")


def test_resume_never_refuses_a_folder_with_checkpoints(tmp_path: Path) -> None:
    write(tmp_path, 7)
    with pytest.raises(CheckpointError, match=r"resume=never, but .* holds checkpoints up to step 7: choose"):
        find_checkpoint("never", tmp_path)


# ---- the same run ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("begun") / "run"
    fit(composed(*QUICK, *NO_SAMPLES, f"data.path={tiny_shards}", run_dir=run_dir), run_dir)
    return run_dir


def test_resuming_reads_the_newest_checkpoint_once(
    begun: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = Path(shutil.copytree(begun, tmp_path / "run", symlinks=True))
    file = next(iter(list_checkpoints(run_dir / "checkpoints").values()))
    opened: list[str] = []
    size, read = file.stat().st_size, 0

    class Counted(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            return self._count(super().read(size))

        def readinto(self, buffer: Any, /) -> int:
            nonlocal read
            count = super().readinto(buffer)
            read += count
            return count

        def _count(self, data: bytes) -> bytes:
            nonlocal read
            read += len(data)
            return data

    real = io.open

    def counted(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(path, str | Path) and Path(path).name == file.name and "r" in mode:
            opened.append(mode)
            return Counted(io.FileIO(path, "r"))
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", counted)
    monkeypatch.setattr(io, "open", counted)
    fit(composed(*QUICK, *NO_SAMPLES, f"data.path={tiny_shards}", "trainer.max_steps=4", run_dir=run_dir), run_dir)
    assert opened == ["rb"]
    assert size <= read < 1.2 * size  # a record that is no tensor is verified before torch interprets it
    assert saved(run_dir)["global_step"] == 4


def test_the_content_that_is_kept_is_that_of_the_file_as_it_is(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1, 2)
    loaded = LoadedCheckpoint()
    assert loaded.content(first) is None
    assert loaded.verify(first) is None
    assert loaded.content(second) is None
    content = AtomicCheckpointIO()
    content.loaded = loaded
    torch.save({"state_dict": {}, "global_step": 4}, first)
    assert content.load_checkpoint(first)["global_step"] == 4  # it has changed since
    assert loaded.verify(second) is None
    kept = loaded.content(second)
    assert content.load_checkpoint(second) is kept
    assert torch.equal(kept["state_dict"]["weight"], CONTENT["state_dict"]["weight"])
    assert loaded.content(second) is None  # the memory is free
    assert content.load_checkpoint(second) is not kept


@pytest.mark.parametrize("where", ["state_dict", "callbacks", "optimizer_states"])
def test_a_checkpoint_with_values_that_are_not_finite_is_refused_with_their_place(
    begun: Path, tiny_shards: Path, tmp_path: Path, where: str
) -> None:
    run_dir = Path(shutil.copytree(begun, tmp_path / "run", symlinks=True))
    file = next(iter(list_checkpoints(run_dir / "checkpoints").values()))
    content = torch.load(file, weights_only=True)
    tensors = {
        "state_dict": content["state_dict"],
        "callbacks": content["callbacks"]["UNetEMA"]["shadow_params"],
        "optimizer_states": content["optimizer_states"][0]["state"][3],
    }[where]
    key = next(iter(tensors)) if isinstance(tensors, dict) else 0
    tensors["exp_avg" if where == "optimizer_states" else key].view(-1)[-1] = math.nan
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=rf"{file.name}: {where}\..* is NaN or infinite: remove this checkpoint"):
        fit(composed(*QUICK, *NO_SAMPLES, f"data.path={tiny_shards}", run_dir=run_dir), run_dir)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["name=other"], "holds a run named train, this run is named other: choose another run_dir"),
        (
            ["model.optimizer.lr=1e-3"],
            r"has model\.optimizer\.lr .*, not 0\.001: a run resumes only with the same settings",
        ),
        (["model.trainable=full"], r"has model\.trainable attention, not full"),
        (
            ["model.lora_rank=4", "seed=5"],
            r"model\.lora_rank 16, not 4; seed 0, not 5",
        ),
        (["callbacks.ema=null"], r"has callbacks\.ema"),
        (["callbacks.ema.decay=0.5"], r"has callbacks\.ema\.decay 0\.9999, not 0\.5"),
        (["face_size=128"], "has .*face_size 64, not 128"),
        (["objective=v_prediction"], r"model\.pipeline\.scheduler"),
        (
            ["+model.pipeline.seed=1"],
            r"has model\.pipeline\.seed None, not 1; other encoders than model\.pipeline\.path; other frozen weights",
        ),
    ],
)
def test_error_of_another_run_lists_the_differing_settings(
    begun: Path, tiny_shards: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(begun, run_dir, symlinks=True)
    with pytest.raises(CheckpointError, match=message):
        fit(composed(*QUICK, *NO_SAMPLES, f"data.path={tiny_shards}", *words, run_dir=run_dir), run_dir)


def test_a_refused_run_names_the_export_to_start_from(begun: Path, tiny_shards: Path, tmp_path: Path) -> None:
    """Also of a run that was stopped, which has none yet."""
    run_dir = tmp_path / "run"
    shutil.copytree(begun, run_dir, symlinks=True)
    words = (*QUICK, *NO_SAMPLES, f"data.path={tiny_shards}", "seed=5")

    def refused() -> str:
        with pytest.raises(CheckpointError) as caught:
            fit(composed(*words, run_dir=run_dir), run_dir)
        return str(caught.value)

    assert refused().endswith(f"model.pipeline.path={run_dir}/export")
    shutil.rmtree(run_dir / "export")
    step = max(list_checkpoints(run_dir / "checkpoints"))
    assert refused().endswith(f"{run_dir}/export, which the run's own command writes with trainer.max_steps={step}")
    fit(composed(*words[:-1], f"trainer.max_steps={step}", run_dir=run_dir), run_dir)
    assert (run_dir / "export/model_index.json").is_file()


def test_a_checkpoint_without_a_key_that_was_added_later_resumes_at_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`model.lora_rank` stands for such a key; the checkpoint was written before it existed."""
    monkeypatch.setitem(targets.ADDED, "model.lora_rank", 16)
    module: Any = Mock(spec=CubeDiffModule, frozen={}, backbone=Mock(), pipeline=tiny_random())
    module.backbone.fingerprint.return_value = "0" * 12
    default, changed = (
        run_identity(composed("model=tiny_random", "data.path=x", f"model.lora_rank={rank}"), module)
        for rank in (16, 4)
    )
    assert "model.lora_rank" not in default
    assert differing_settings(default, default) == []
    assert differing_settings(default, changed) == ["model.lora_rank 16, not 4"]


def test_an_old_name_of_a_target_is_the_same_setting() -> None:
    old, new = next(iter(targets.RENAMED.items()))
    assert differing_settings({"name": "a", "model._target_": old}, {"name": "a", "model._target_": new}) == []


def test_checkpoints_of_other_programs_or_models_are_refused(begun: Path, tiny_shards: Path, tmp_path: Path) -> None:
    (foreign,) = write(tmp_path, 3)
    words = (*QUICK, *NO_SAMPLES, f"data.path={tiny_shards}")
    with pytest.raises(
        CheckpointError, match=r"is not a checkpoint of this version of cubediff .*model\.pipeline\.path=RUN/export"
    ):
        fit(composed(*words, f"resume={foreign}", run_dir=tmp_path / "run"), tmp_path / "run")
    content = torch.load(begun / "checkpoints/last.ckpt", weights_only=True)
    content["state_dict"]["unet.conv_in.bias"] = torch.zeros(3)
    other = tmp_path / "other.ckpt"
    torch.save(content, other)
    with pytest.raises(
        CheckpointError, match=r"belongs to another model: 1 of its weights .*, such as unet\.conv_in\.bias"
    ):
        fit(composed(*words, f"resume={other}", run_dir=tmp_path / "run"), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.ddp
def test_the_command_resumes_after_a_full_disk(tiny_shards: Path, tmp_path: Path) -> None:
    """docs/resume.md: "the same command resumes, also if the last line of `metrics.csv` is incomplete …"."""
    words = (*ONE, "trainer.max_steps=2")
    run = Run(tiny_shards, tmp_path / "run", *words)
    assert run.ended() == 0, run.output
    metrics = tmp_path / "run/logs/metrics.csv"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole[:-5])
    (tmp_path / "run/result.json").write_bytes(b"")
    again = Run(tiny_shards, tmp_path / "run", *words, "trainer.max_steps=4")
    assert again.ended() == 0, again.output
    assert "Traceback" not in again.output
    assert "result.json is damaged" in again.output
    assert (tmp_path / "run/result.json.damaged").is_file()
    with metrics.open() as file:
        assert {row["step"] for row in csv.DictReader(file)} >= {"0", "2", "3"}


def resumed(begun: Path, run_dir: Path, *words: str, **changed: Any) -> str:
    """Resumes a copy of a run for one step; keys of its checkpoint are changed before, or removed for None."""
    shutil.copytree(begun, run_dir, symlinks=True)
    file = (run_dir / "checkpoints/last.ckpt").resolve()
    content = torch.load(file, weights_only=True)
    for key, value in changed.items():
        content.pop(key) if value is None else content.update({key: value})
    AtomicCheckpointIO().save_checkpoint(content, file)
    output = io.StringIO()
    with redirect_stdout(output):
        fit(composed(*QUICK, *NO_SAMPLES, "trainer.max_steps=3", *words, run_dir=run_dir), run_dir)
    return output.getvalue()


def test_changes_of_data_order_augmentation_and_clipping_are_announced(
    begun: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    data = f"data.path={tiny_shards}"
    printed = resumed(
        begun, tmp_path / "a", data, "data.yaw=none", "data.flip=0.5", "data.shuffle_buffer=3", "data.batch_size=1",
        "trainer.gradient_clip_val=0.5", "callbacks.checkpoint.keep=5", "data.num_workers=1",
    )  # fmt: skip
    (line,) = (line for line in printed.splitlines() if line.startswith("WARNING: resuming with other settings"))
    assert line == (
        "WARNING: resuming with other settings than those of step00000002.ckpt: data.batch_size 2 → 1; data.flip 0.0 → "
        "0.5; data.shuffle_buffer 1024 → 3; data.yaw uniform → none; trainer.gradient_clip_val 1.0 → 0.5; "
        "trainer.max_steps 2 → 3"
    )


def test_another_dataset_of_the_same_size_is_announced_and_a_copy_of_the_same_is_not(
    begun: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_shards, tmp_path / "copy")
    assert "data.path" not in resumed(begun, tmp_path / "a", f"data.path={tmp_path / 'copy'}")
    other = shards(tmp_path / "other", 5, val=0.0)
    printed = resumed(begun, tmp_path / "b", f"data.path={other}")
    assert re.search(rf"data\.path {tiny_shards} \(manifest \w+\) → {other} \(manifest \w+\): other data", printed)


def test_a_checkpoint_of_the_first_form_resumes(begun: Path, tiny_shards: Path, tmp_path: Path) -> None:
    """It has no format version and no settings that are only announced; its fingerprints cover the weights alone."""
    identity = torch.load(begun / "checkpoints/last.ckpt", weights_only=True)["cubediff"]
    first = {
        key: value for key, value in identity.items() if key.startswith(("name", "face_size", "fov", "model", "call"))
    }
    first |= {key: identity[key].partition("-")[0] for key in ("encoders", "frozen weights")}
    assert len(identity["encoders"]) > len(first["encoders"]) == 12
    words = (f"data.path={tiny_shards}", "data.yaw=none")
    printed = resumed(begun, tmp_path / "a", *words, cubediff=first, format_version=None)
    assert "resuming from" in printed
    assert "other settings" not in printed


def test_another_noise_schedule_is_refused(begun: Path, tiny_shards: Path, tmp_path: Path) -> None:
    """A model folder may change while its path, and with it the config, stays the same."""
    identity = torch.load(begun / "checkpoints/last.ckpt", weights_only=True)["cubediff"]
    identity["noise schedule"]["beta_end"] = 0.02
    with pytest.raises(CheckpointError, match=r"noise schedule: beta_end 0\.02, not 0\.012"):
        resumed(begun, tmp_path / "a", f"data.path={tiny_shards}", cubediff=identity)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format_version": 2}, r"was written by a newer version of cubediff \(format 2, this one reads up to 1\)"),
        ({"format_version": "1"}, "is damaged: expected a positive integer as its format's version, got '1'"),
        ({"state_dict": [1]}, "state_dict: expected dict, got list"),
        ({"state_dict": {"a": 1}}, r"state_dict\.a: expected a tensor"),
        ({"cubediff": None}, "is not a checkpoint of this version of cubediff"),
        ({"global_step": "2"}, "global_step: expected int, got str"),
        ({"loops": None}, "is not a checkpoint of this version of cubediff"),
        ({"optimizer_states": 3}, "optimizer_states: expected list, got int"),
    ],
)
def test_checkpoints_of_newer_versions_or_with_other_types_are_refused(
    begun: Path, tiny_shards: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resumed(begun, tmp_path / "a", f"data.path={tiny_shards}", **changed)


def test_a_run_starts_from_another_runs_checkpoint_and_a_finished_run_can_be_extended(
    begun: Path, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*QUICK, *NO_SAMPLES, f"data.path={tiny_shards}", "name=fork", f"resume={begun}/checkpoints/last.ckpt")
    run_dir = tmp_path / "run"
    fit(composed(*words, "trainer.max_steps=3", run_dir=run_dir), run_dir)
    assert list(list_checkpoints(run_dir / "checkpoints")) == [3]
    assert "resuming from" in capsys.readouterr().out
    fit(composed(*words, "trainer.max_steps=3", run_dir=run_dir), run_dir)  # nothing is left to do
    assert (run_dir / "export/model_index.json").is_file()
    fit(composed(*words, "trainer.max_steps=5", run_dir=run_dir), run_dir)
    assert list(list_checkpoints(run_dir / "checkpoints")) == [5, 3]
    rows = (run_dir / "logs/metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("step")
    logged = [int(row.split(",")[column]) for row in rows[1:]]
    assert sorted(set(logged)) == [2, 3, 4]  # by one file, each once; of the two steps before the other run has its own
