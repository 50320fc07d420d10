"""A build that is interrupted at any moment leaves the previous dataset or nothing that looks complete, and resumes to
the same bytes."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support.builds import build, contents, panoramas

from cubediff.data import DataError, build_shards
from cubediff.data.building import journal as journal_module
from cubediff.data.building import shards as shards_module
from cubediff.data.building import write as write_module
from cubediff.data.building.check import check_shards
from cubediff.data.format.folders import LOCK, folder_lock
from cubediff.data.streaming.catalog import open_dataset
from cubediff.data.streaming.remote import Cache
from cubediff.images import panorama_jpeg as images

OPTIONS = {"val_fraction": 0.3, "shard_size": 3}


class Cut(BaseException):
    """Ends a build without any cleanup, as far as this can be simulated in one process."""


def cut_at(step: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Raises `Cut` instead of the `step`-th change of the file system and all later ones.

    Returns:
        The changes so far, which the build appends to.
    """
    done: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            if len(done) >= step:
                raise Cut
            done.append(f"{name} {Path(args[0]).name}")
            return real(*args, **kwargs)

        return change

    for module, name in ((os, "replace"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return done


@pytest.mark.parametrize("before", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_build_interrupted_at_any_file_system_change_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    source, output = panoramas(tmp_path / "in", 4), tmp_path / "out"
    build_shards(source, tmp_path / "whole", **OPTIONS)
    expected = contents(tmp_path / "whole")
    build_shards(panoramas(tmp_path / "other", 3, suffix=".jpg"), tmp_path / "old", shard_size=1)
    for step in range(1000):
        shutil.rmtree(output, ignore_errors=True)
        if before:
            shutil.copytree(tmp_path / "old", output)
        with monkeypatch.context() as patch:
            done = cut_at(step, patch)
            try:
                build_shards(source, output, **OPTIONS, overwrite=before)
            except Cut:
                pass
            else:
                break
        manifest = output / "manifest.json"
        if manifest.exists():
            assert not check_shards(output).faults, done
        if not manifest.exists() or manifest.read_bytes() != expected["manifest.json"]:
            build_shards(source, output, **OPTIONS, overwrite=before)
        left = contents(output)
        left.pop(".building/plan.json", None)  # if only the last removals were interrupted
        left.pop(".building/replaced.json", None)
        left.pop(LOCK, None)
        assert left == expected, done
    assert step > 25  # of 4 panoramas, 2 shards, and the moves
    assert contents(output) == expected


@pytest.mark.slow
def test_a_build_killed_repeatedly_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """SIGKILL ten times, a random while after some more panoramas are read; each time the build resumes."""
    source, output = panoramas(tmp_path / "in", 30, width=512), tmp_path / "out"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cubediff.data.building.write"])
    build(source, tmp_path / "whole", OPTIONS)

    def read() -> int:
        return len(list(output.glob(".building/panoramas/*.json")))

    rng, killed, finished = random.Random(0), [], [0]
    for _ in range(10):
        enough = finished[-1] + rng.randint(1, 3)
        run = context.Process(target=build, args=(source, output, OPTIONS))
        run.start()
        while run.is_alive() and read() < enough:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        if (output / "manifest.json").exists():
            run.join()
            break
        run.kill()
        run.join()
        killed.append(run.exitcode)
        finished.append(read())
    else:
        build(source, output, OPTIONS)
    assert len(killed) >= 5
    assert set(killed) == {-signal.SIGKILL}
    assert finished == sorted(finished)  # nothing that was finished was lost
    assert finished[-1] >= len(killed)
    assert contents(output) == contents(tmp_path / "whole")


def test_finished_work_is_kept_and_changed_panoramas_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = panoramas(tmp_path / "in", 6), tmp_path / "out"
    read: list[str] = []
    real = journal_module.hash_jpeg

    def counted(jpeg: bytes, width: int) -> Any:
        if len(read) == 4:
            raise Cut
        read.append("")
        return real(jpeg, width)

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "hash_jpeg", counted)
        with pytest.raises(Cut):
            build_shards(source, output)
    (source / "pano 1.png").write_bytes(
        (source / "pano 5.png").read_bytes()
    )  # a panorama that was read already changes
    copies = sorted(output.glob(".building/panoramas/*.jpg"))
    copies[0].write_bytes(b"")  # as after a power failure
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "hash_jpeg", lambda *args: read.append("") or real(*args))
        build_shards(source, output)
    assert len(read) in (4 + 3, 4 + 4)  # two unread, the changed, perhaps the lost copy
    build_shards(source, tmp_path / "anew")
    assert contents(output) == contents(tmp_path / "anew")


def unfinished(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        cut_at(8, patch)
        with pytest.raises(Cut):
            build_shards(source, output)
    (output / LOCK).unlink(missing_ok=True)


def test_another_unfinished_build_is_an_error_that_names_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other, output = panoramas(tmp_path / "in", 5), panoramas(tmp_path / "other", 4), tmp_path / "out"
    unfinished(source, output, monkeypatch)
    before = contents(output)
    for options, words in (
        ({"quality": 90}, "quality 95, not 90.*--overwrite"),
        ({"limit": 2}, "limit None, not 2"),
        ({"shard_size": 2}, "shard-size 256, not 2"),
    ):
        with pytest.raises(DataError, match=words):
            build_shards(source, output, **options)
    with pytest.raises(DataError, match=r"source .*in.*, not .*other"):
        build_shards(other, output)
    assert contents(output) == before
    build_shards(other, output, overwrite=True)
    build_shards(other, tmp_path / "anew")
    assert contents(output) == contents(tmp_path / "anew")


def test_two_builds_at_once_in_one_folder_are_an_error(tmp_path: Path) -> None:
    source, output = panoramas(tmp_path / "in", 2), tmp_path / "out"
    with folder_lock(output):
        before = contents(output)
        with pytest.raises(DataError, match="another process is building"):
            build_shards(source, output)
        assert contents(output) == before
    build_shards(source, output)
    assert not (output / LOCK).exists()


def test_the_lock_of_a_killed_build_locks_nobody_out(tmp_path: Path) -> None:
    source, output = panoramas(tmp_path / "in", 2), tmp_path / "out"
    output.mkdir()
    (output / LOCK).touch()
    build_shards(source, output)
    assert not (output / LOCK).exists()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_the_command_killed_ten_times_ends_with_the_same_bytes(tmp_path: Path, engine: str) -> None:
    """Main process and workers are new each time; no worker of a killed process continues to write."""
    source, output = panoramas(tmp_path / "in", 400, width=1024), tmp_path / "out"
    build_shards(source, tmp_path / "whole", val_fraction=0.3, shard_size=50)
    command = [sys.executable, "-m", "cubediff.prepare", str(source), str(output), "--workers", "2"]
    command += ["--engine", engine, "--val-fraction", "0.3", "--shard-size", "50"]
    rng, finished = random.Random(1), []
    for _ in range(10):
        run = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
        begun = len(list(output.glob(".building/panoramas/*.json")))
        while run.poll() is None and len(list(output.glob(".building/panoramas/*.json"))) == begun < 400:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        run.kill()
        assert run.wait() == -signal.SIGKILL
        time.sleep(2)
        finished.append(len(list(output.glob(".building/panoramas/*.json"))))
        time.sleep(1)
        assert len(list(output.glob(".building/panoramas/*.json"))) == finished[-1]  # the workers have ended too
    assert finished == sorted(finished)
    assert finished[0] > 0
    subprocess.run(command, check=True, capture_output=True)
    assert contents(output) == contents(tmp_path / "whole")
    assert json.loads((output / "manifest.json").read_text())["samples"] == 400


def test_an_io_error_stops_the_build_which_resumes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The panorama is not at fault and must not be missing from the dataset."""
    source, output = panoramas(tmp_path / "in", 3), tmp_path / "out"

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(images, "decode", fails)
        with pytest.raises(
            OSError, match=r"\.png cannot be read \(Input/output error\): once it can be read .* resumes"
        ):
            build_shards(source, output, **OPTIONS)
    build_shards(source, output, **OPTIONS)
    build_shards(source, tmp_path / "whole", **OPTIONS)
    assert contents(output) == contents(tmp_path / "whole")


# ---- an existing dataset ------------------------------------------------------------------------------------


def without_captions(source: Path, patch: pytest.MonkeyPatch) -> None:
    (source / "captions.jsonl").write_text(json.dumps({"file": "pano 0.png", "caption": ""}) + "\n")


def too_small(source: Path, patch: pytest.MonkeyPatch) -> None:
    for path in source.glob("*.png"):
        cv2.imwrite(str(path), np.zeros((4, 8, 3), np.uint8))


def unreadable(source: Path, patch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    patch.setattr(images, "decode", fails)


def full_disk(source: Path, patch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(shards_module, "describe_shard", fails)


def interrupted(source: Path, patch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    patch.setattr(write_module, "report_html", fails)


def empty(source: Path, patch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(source)
    source.mkdir()


@pytest.mark.parametrize("fault", [without_captions, too_small, unreadable, full_disk, interrupted, empty])
def test_a_build_that_fails_leaves_the_dataset_that_it_would_replace_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    source, output = panoramas(tmp_path / "in", 3), tmp_path / "out"
    cv2.imwrite(str(source / "no caption.png"), np.zeros((32, 64, 3), np.uint8))
    build_shards(source, output, **OPTIONS)
    before = contents(output)
    assert b"no caption.png" in before["rejected.jsonl"]
    with monkeypatch.context() as patch:
        fault(source, patch)
        with pytest.raises((DataError, OSError, KeyboardInterrupt)) as caught:
            build_shards(source, output, **OPTIONS, overwrite=True)
    after = contents(output)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith(".building/") for name in set(after) - set(before) - {LOCK})
    assert not check_shards(output).faults
    if fault in (without_captions, too_small):
        assert str(output / ".building" / "rejected.jsonl") in str(caught.value)
        reasons = [json.loads(line) for line in (output / ".building" / "rejected.jsonl").read_text().splitlines()]
        assert {line["file"] for line in reasons} >= {"pano 0.png", "pano 1.png", "pano 2.png"}
    shutil.rmtree(source)
    build_shards(panoramas(source, 4), output, **OPTIONS, overwrite=True)
    build_shards(source, tmp_path / "anew", **OPTIONS)
    assert contents(output) == contents(tmp_path / "anew")


def test_an_interrupted_move_is_completed_before_another_build_replaces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older dataset is gone by then, so a build that fails would otherwise leave none."""
    source, output = panoramas(tmp_path / "in", 4), tmp_path / "out"
    build_shards(panoramas(tmp_path / "old", 3), output, shard_size=1)
    build_shards(source, tmp_path / "whole", **OPTIONS)
    with monkeypatch.context() as patch:
        real = os.replace

        def stops(old: Path, new: Path) -> None:
            if Path(new).name == "index.jsonl" and Path(new).parent == output:
                raise Cut
            real(old, new)

        patch.setattr(os, "replace", stops)
        with pytest.raises(Cut):
            build_shards(source, output, **OPTIONS, overwrite=True)
    assert not (output / "manifest.json").exists()
    with pytest.raises(DataError, match=r"holds no manifest\.json yet.*complete it with the same cubediff prepare"):
        open_dataset(str(output), Cache(tmp_path / "cache", 1.0))
    without_captions(tmp_path / "old", monkeypatch)
    with pytest.raises(DataError, match="no panorama can be used"):
        build_shards(tmp_path / "old", output, overwrite=True)
    after = contents(output)
    expected = contents(tmp_path / "whole")
    assert {name: after[name] for name in expected} == expected


def test_ctrl_c_during_the_move_leaves_a_complete_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = panoramas(tmp_path / "in", 3), tmp_path / "out"
    build_shards(panoramas(tmp_path / "old", 2), tmp_path / "replaced", shard_size=1)
    build_shards(source, tmp_path / "new", **OPTIONS)
    whole = [contents(tmp_path / "replaced"), contents(tmp_path / "new")]
    publish, calls = write_module.publish, 0

    def interrupted_at(step: int, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return change

    for step in range(1, 100):
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(tmp_path / "replaced", output)
        calls = 0
        with monkeypatch.context() as patch:

            def observed(*args: Path, patch: pytest.MonkeyPatch = patch, step: int = step) -> Any:
                for name in ("replace", "unlink", "rmdir"):
                    patch.setattr(os, name, interrupted_at(step, getattr(os, name)))
                return publish(*args)

            patch.setattr(write_module, "publish", observed)
            try:
                build_shards(source, output, **OPTIONS, overwrite=True)
            except KeyboardInterrupt:
                pass
            else:
                break
        after = contents(output)
        assert any({name: after.get(name) for name in dataset} == dataset for dataset in whole), step
        assert not check_shards(output).faults
    assert step > 10
