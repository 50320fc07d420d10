"""The commands without what Windows lacks: POSIX modules, functions and signals, and processes that start by fork."""

from pathlib import Path

import pytest
from support.processes import python

SUPPORT = Path(__file__).parent / "support/no_posix"
IMPORT_ALL = """
import importlib, pkgutil, cubediff
for module in pkgutil.walk_packages(cubediff.__path__, "cubediff."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
TRY_HIDDEN = """
source = '''
import os, signal
missing = [hasattr(os, "pread"), hasattr(signal, "SIGUSR1")]
try:
    import fcntl
    missing.append(True)
except ImportError:
    missing.append(False)
'''
namespace = {"__name__": "cubediff.probe"}
exec(source, namespace)
import fcntl, os
print(namespace["missing"], hasattr(os, "pread"))
"""


def without_posix(*arguments: object, cwd: Path) -> str:
    """Runs Python with the reduced modules; returns its output."""
    return python(*arguments, cwd=cwd, PYTHONPATH=str(SUPPORT)).stdout


def test_the_support_module_hides_names_from_cubediff_alone(tmp_path: Path) -> None:
    assert without_posix("-c", TRY_HIDDEN, cwd=tmp_path) == "[False, False, False] True\n"


@pytest.mark.slow
def test_every_module_imports_without_posix(tmp_path: Path) -> None:
    without_posix("-W", "ignore", "-c", IMPORT_ALL, cwd=tmp_path)


@pytest.mark.slow
def test_prepare_train_cache_plan_and_generate_without_posix(tmp_path: Path) -> None:
    """Two processes read the panoramas, one loads batches."""

    def cubediff(*words: object) -> str:
        return without_posix("-m", "cubediff", *words, cwd=tmp_path)

    cubediff("example", 6, "panoramas")
    cubediff("prepare", "panoramas", "shards", "--workers", 2, "--val-fraction", 0.3)
    cubediff("prepare", "check", "shards")
    words = ("experiment=tiny_cpu", "model=tiny_random", "data.path=shards", "data.batch_size=1")
    steps = ("trainer.max_steps=2", "trainer.val_check_interval=2", "data.num_workers=1")
    cubediff("train", *words, *steps, "callbacks.samples.steps=1", "run_dir=run")
    assert "resuming from" in cubediff("train", *words, *steps, "trainer.max_steps=3", "run_dir=run")
    cubediff("cache", *words, "cache.output=latents", "cache.turns=1")
    cubediff("plan", *words)
    cubediff("generate", "--model", "run/export", "--prompt", "a red room", "--steps", 2, "--output", "out")
    assert (tmp_path / "out/panorama.jpg").is_file()
    assert (tmp_path / "latents/manifest.json").is_file()
