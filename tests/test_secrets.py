"""No file, log or message of a run holds the password of a URL; plans and dry runs run no command, fetch no shard."""

import functools
import http.server
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.panoramas import shards
from support.runs import composed

from cubediff.pages.html import escape
from cubediff.pipelines.loading import tiny_random
from cubediff.planning.report import plan
from cubediff.runs.dry_run import describe
from cubediff.runs.export import _follow_umask

SECRET = "s3cr3tT0ken"
WORDS = ("experiment=tiny_cpu", "model=tiny_random", "trainer.max_steps=1", "callbacks=none", "data.num_workers=0")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("secrets"), 8, val=0.3)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


@pytest.fixture
def url(dataset: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(dataset))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://me:{SECRET}@127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_the_password_of_a_url_is_in_no_file_and_no_output_of_a_run(url: str, tmp_path: Path) -> None:
    words = [*WORDS, f"data.path={url}", f"run_dir={tmp_path}/run", f"data.cache_dir={tmp_path}/cache"]
    command = [sys.executable, "-m", "cubediff.train", *words, "logger=[csv,wandb,tensorboard]"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    names = {file.name for file in files}
    assert {"overrides.yaml", "config.yaml", "run.json", "result.json"} <= names
    assert any(name.endswith(".wandb") for name in names)
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
    assert f"data.path={url.replace(f'me:{SECRET}', '***')}" in (tmp_path / "run/.hydra/overrides.yaml").read_text()


def test_a_run_that_fails_prints_no_password(tmp_path: Path) -> None:
    words = [*WORDS, f"data.path=http://me:{SECRET}@127.0.0.1:1", f"run_dir={tmp_path}/run", "name=[1]"]
    command = [sys.executable, "-m", "cubediff.train", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 1
    assert "***@127.0.0.1" in done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["pipe", pytest.param("url", marks=pytest.mark.slow)])
def test_a_dry_run_and_a_plan_run_no_command_and_fetch_no_shard(kind: str, url: str, tmp_path: Path) -> None:
    canary, cache = tmp_path / "canary", tmp_path / "cache"
    path = f"pipe:touch {canary} # x.tar" if kind == "pipe" else f"{url}/train-000000.tar"
    words = (*WORDS, f"data.cache_dir={cache}", "trainer=cpu", "plan.memory_gb=0.5")  # counts one batch, quickly
    config = composed(*words)
    config.data.path = path
    text = describe(config, tmp_path / "run")
    assert "not read, because a dry run runs no command and downloads no shard" in text
    assert SECRET not in text
    assert "TFLOP a step" in plan(config).text
    assert not canary.exists()
    assert not cache.exists()


def test_exported_files_follow_the_umask(tmp_path: Path) -> None:
    for mask in (0o022, 0o077, 0o002):
        previous = os.umask(mask)
        try:
            folder = tmp_path / oct(mask)
            tiny_random().save_pretrained(folder)
            (folder / "training.json").write_text("{}")
            _follow_umask(folder, folder / "training.json")
        finally:
            os.umask(previous)
        modes = {stat.S_IMODE(file.stat().st_mode) for file in folder.rglob("*") if file.is_file()}
        assert modes == {0o666 & ~mask}


def test_a_page_shows_what_would_change_the_direction_of_its_text() -> None:
    assert escape("a\u202egpj.exe\u2066") == "a\ufffdgpj.exe\ufffd"
    assert escape("שלום") == "שלום"
