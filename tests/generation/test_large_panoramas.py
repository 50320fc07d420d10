"""The largest panoramas, by the whole command."""

import os
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

GIB = 2**30


@pytest.mark.slow
def test_a_panorama_of_8192_pixels_from_faces_of_1024_takes_less_than_4_gib(model: Path, tmp_path: Path) -> None:
    """Of main memory, with a model of 64-pixel faces whose own weights take almost none."""
    words = ("--prompt", "a hall", "--steps", 1, "--guidance-scale", 1, "--face-size", 1024, "--height", 4096)
    command = ["-m", "cubediff.generate", "--model", model, "--output", tmp_path / "out", *words, "--vae-tiling"]
    process = subprocess.Popen([sys.executable, *map(str, command)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    with PIL.Image.open(tmp_path / "out/panorama.jpg") as panorama:
        assert panorama.size == (8192, 4096)
    assert usage.ru_maxrss * 1024 < 4 * GIB
