"""`cubediff prepare` as a process, and what it writes."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from support.memory import measured


def prepare(
    *words: object, env: dict[str, str] | None = None, peak: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process with one worker, whose peak memory is written to a file."""
    command = [sys.executable, "-m", "cubediff", "prepare", *map(str, words), "--workers", "1"]
    if peak is not None:
        command = measured(command, peak)
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=env, timeout=300)


def samples(folder: Path) -> list[tuple[dict[str, Any], bytes]]:
    """The record and the JPEG of every sample of a dataset."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        found += [(json.loads(members[n]), members[f"{n[:-5]}.jpg"]) for n in members if n.endswith(".json")]
    return found


def rejections(folder: Path) -> list[dict[str, str]]:
    """The lines of a dataset's rejected.jsonl."""
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
