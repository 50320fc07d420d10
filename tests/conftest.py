"""Shared fixtures (read-only tiny shards, a browser) and the order of the test files."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from support.browser import chromium

from cubediff.data import build_shards, create_example_dataset

# Without tests marked `ddp`, whose files take longest anyway.
LONG_FILES = (
    *("test_engines.py", "test_extensions.py", "test_inflation.py", "test_module.py", "test_packaging.py"),
    *("test_publishing.py", "test_resume.py", "test_start_from_file.py", "test_stopping.py", "test_stream.py"),
    *("test_sweep.py", "test_trainer.py"),
)


def pytest_configure(config: pytest.Config) -> None:
    # omegaconf 2.3's DictConfig, which cubediff.configs takes, is a typing.MutableMapping.
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")
    # Ignored in a shell's background job, or under nohup; tests send them to runs.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that use the browser, and moves the files that take longest to the front.

    xdist hands out files in this order, so that none of those is left to one worker at the end.
    """
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
    long_files = {item.path for item in items if item.get_closest_marker("ddp") or item.path.name in LONG_FILES}
    items.sort(key=lambda item: item.path not in long_files)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of five training and three validation panoramas, procedural, 64 × 128 pixels."""
    folder = tmp_path_factory.mktemp("tiny")
    source = create_example_dataset(8, folder / "panoramas", size=(64, 128))
    manifest = build_shards(source, folder / "shards", source / "captions.jsonl", val_fraction=0.2)
    assert [manifest["splits"][split]["samples"] for split in ("train", "val")] == [5, 3]
    return folder / "shards"
