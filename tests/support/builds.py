"""Writes folders of panoramas to build shards from, and builds them in processes that a test may kill."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cubediff.data.building.write import build_shards


def panoramas(folder: Path, count: int, width: int = 64, suffix: str = ".png") -> Path:
    """Writes `count` different panoramas with captions. PNG files are re-encoded by a build, JPEG files are copied."""
    folder.mkdir(parents=True)
    lines = []
    for i in range(count):
        coarse = np.random.default_rng(i).integers(0, 256, (8, 16, 3), np.uint8)
        image = cv2.resize(coarse, (width, width // 2), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"pano {i}{suffix}"), image)
        lines.append(json.dumps({"file": f"pano {i}{suffix}", "caption": f"caption {i}", "light": "day"}) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below the folder, by relative path."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def build(source: Path, output: Path, options: dict[str, Any]) -> None:
    """Builds shards; the target of another process."""
    build_shards(source, output, **options)
