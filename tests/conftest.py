"""Tiny shards that many tests read and none changes, and one warning that is about a library's own types."""

from pathlib import Path

import pytest

from cubediff.data import build_shards, create_example_dataset


def pytest_configure(config: pytest.Config) -> None:
    # omegaconf 2.3's DictConfig, which cubediff.configs takes, is a typing.MutableMapping.
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five procedural panoramas to train on and three to validate with, 64 × 128 pixels."""
    folder = tmp_path_factory.mktemp("tiny")
    source = create_example_dataset(8, folder / "panoramas", size=(64, 128))
    manifest = build_shards(source, folder / "shards", source / "captions.jsonl", val_fraction=0.2)
    assert [manifest["splits"][split]["samples"] for split in ("train", "val")] == [5, 3]
    return folder / "shards"
