"""Calls of `cubediff generate` in this process, and what they write."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from click.testing import Result
from typer.testing import CliRunner

from cubediff.generate import app
from support.awake import awake_pipeline

SAMPLES = Path(__file__).parents[2] / "data" / "samples"


def save_model(folder: Path) -> Path:
    """Saves a CubeDiff folder whose weights are random, so that prompt, photo and seed all have an effect."""
    awake_pipeline().save_pretrained(folder)
    return folder


def save_photo(path: Path) -> Path:
    """Saves a square crop of a sample panorama, 64 pixels wide, lighter above than below."""
    with PIL.Image.open(SAMPLES / "courtyard.jpg") as panorama:
        side = panorama.height // 2
        panorama.crop((side, side // 2, 2 * side, side + side // 2)).resize((64, 64)).save(path)
    return path


def run(model: Path | str, output: Path, *arguments: object, prompt: str | None = None) -> Result:
    """Runs the command, with two steps unless the arguments say otherwise."""
    words = ["--model", model, "--output", output, "--steps", 2, *(["--prompt", prompt] if prompt else []), *arguments]
    return CliRunner().invoke(app, [str(word) for word in words])


def succeed(*arguments: Any, **options: Any) -> Result:
    """Runs the command as `run` does; fails if it ends with an error."""
    result = run(*arguments, **options)
    assert result.exit_code == 0, result.output
    return result


def refused(result: Result, message: str, code: int = 1) -> None:
    """Fails unless the command has ended with an exit code and a message in place of a traceback."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert message in result.stderr, result.stderr
    if code == 1:
        assert "error: " in result.stderr


def jobs_file(folder: Path, *lines: Mapping[str, object] | str) -> Path:
    """Writes a jobs file; texts are written as they are."""
    path = folder / "jobs.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def picture(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.array(image)


def pixels(folder: Path) -> np.ndarray:
    """The panorama of a folder."""
    (path,) = folder.glob("panorama.*")
    return picture(path)


def record(folder: Path) -> dict[str, Any]:
    """The record of a folder's panorama."""
    content: dict[str, Any] = json.loads((folder / "generation.json").read_text(encoding="utf-8"))
    return content
