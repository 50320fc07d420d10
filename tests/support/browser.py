"""Starts the machine's Chromium for tests of pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--use-angle=swiftshader",  # WebGL without a graphics card
    "--enable-unsafe-swiftshader",
    "--force-color-profile=srgb",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yields a headless Chromium that renders WebGL in software; skips the test if none is installed."""
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path = next((name for name in found if name), None)
    if path is None:
        pytest.skip("no Chromium on the PATH: install one, for example with `apt-get install chromium`")
    with sync_playwright() as playwright:
        # Not closed: that waits without a limit for a Chromium that does not exit. The driver, which is stopped here,
        # gives it 30 seconds and kills it.
        yield playwright.chromium.launch(executable_path=path, args=FLAGS)
