"""Errors of files and disks end a command with one message, the last line on the screen, without a traceback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
from support.panoramas import data, keys
from support.runs import QUICK, composed

import cubediff.train
from cubediff.data import DataError
from cubediff.runs.fit import fit
from cubediff.utils.errors import storage_message

ALONE = ("model=tiny_random", "trainer=cpu", "face_size=64", "callbacks=none")


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """The error message of `cubediff train`, which Python prints last."""
    monkeypatch.setattr(sys, "argv", ["cubediff train", *ALONE, *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cubediff.train.main()
    return str(ended.value.code)


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of `request.param` bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", folder]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_run_dir_inside_a_file_is_named(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    message = command(monkeypatch, f"data.path={tiny_shards}", f"run_dir={tmp_path}/file/run")
    assert message.startswith(f"error: {tmp_path}/file/run: Not a directory: a file is where a folder is expected")
    assert "Traceback" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("disk", [4096], indirect=True)
def test_a_disk_that_is_full_at_the_start(
    tiny_shards: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk / "fill").write_bytes(bytes(4096))
    message = command(monkeypatch, f"data.path={tiny_shards}", f"run_dir={disk}/run")
    assert message.startswith("error: No space left on device: free disk space")
    assert "Traceback" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("disk", ["700k"], indirect=True)
def test_a_disk_that_is_full_at_the_export(tiny_shards: Path, disk: Path) -> None:
    run_dir = disk / "run"
    words = (*QUICK, *ALONE, f"data.path={tiny_shards}", "trainer.limit_val_batches=0", "trainer.max_steps=1")
    with pytest.raises(DataError, match=rf"{run_dir}/export cannot be written \(.*No space left.*exports again"):
        fit(composed(*words, run_dir=run_dir), run_dir)


def test_a_cache_dir_that_is_a_file_is_named(tiny_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = f"pipe:cat {tiny_shards}/train-000000.tar #.tar"
    with pytest.raises(DataError, match=rf"^data\.cache_dir={tmp_path}/file cannot be used \(.*: set"):
        keys(data(path, cache_dir=tmp_path / "file").train_dataloader())


DAMAGED = [("unet", "cut"), ("vae", "missing"), ("text_encoder", "cut"), ("unet", "one tensor"),
           ("text_encoder", "one tensor")]  # fmt: skip


@pytest.mark.parametrize(("part", "damage"), DAMAGED)
def test_a_model_with_incomplete_weights_is_named(
    trained: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, damage: str
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "model"))
    weights = next((folder / part).glob("*.safetensors"))
    if damage == "one tensor":
        content = safetensors.torch.load_file(weights)
        del content[sorted(content)[2]]
        safetensors.torch.save_file(content, weights, metadata={"format": "pt"})
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        weights.unlink()
    words = (f"data.path={tiny_shards}", f"run_dir={tmp_path}/run", "model=sd15", f"model.pipeline.path={folder}")
    message = command(monkeypatch, *words)
    assert message.startswith(
        f"error: model.pipeline.path={folder} cannot be loaded: {folder} is incomplete or damaged ("
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cubediff.pipelines.loading import tiny_random

    folder = tmp_path_factory.mktemp("trained") / "model"
    tiny_random().save_pretrained(folder)
    return folder


def test_an_error_without_a_number_is_its_own_message() -> None:
    assert storage_message(OSError("the server hung up")) == "the server hung up"
    assert storage_message(PermissionError(13, "Permission denied", "run")).startswith("run: Permission denied: choose")
