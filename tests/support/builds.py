"""Folders of panoramas to build shards from, builds in processes that can be killed, and what a build left."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cubediff.data.building.write import build_shards


def panoramas(folder: Path, count: int, width: int = 64, suffix: str = ".png") -> Path:
    """Different panoramas with a caption each; PNG has to be re-encoded, JPEG has not."""
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
    """Every file below the folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def build(source: Path, output: Path, options: dict[str, Any]) -> None:
    """To be another process's whole work."""
    build_shards(source, output, **options)
