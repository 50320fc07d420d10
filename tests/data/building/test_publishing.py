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

import pytest
from support.builds import build, contents, panoramas

from cubediff.data import DataError, build_shards
from cubediff.data.building import journal as journal_module
from cubediff.data.building.check import check_shards
from cubediff.data.format.folders import LOCK, folder_lock
from cubediff.images import panorama as images

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


@pytest.mark.parametrize("before", [False, True])
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
