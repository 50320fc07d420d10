"""A folder like a checkout, in which the documented commands of the examples run."""

import shutil
from pathlib import Path

import pytest
from support.examples import EXAMPLES, ROOT

from cubediff.data import build_shards


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, data and small models of the checkout, shards of data/samples, and room for runs."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "experiments/runs").mkdir(parents=True)
    for name in ("data", "experiments/cubediff_tiny", "experiments/tiny_sd"):
        (folder / name).symlink_to(ROOT / name)
    samples = folder / "data/samples"
    build_shards(samples, folder / "experiments/runs/shards", samples / "captions.jsonl")
    return folder
