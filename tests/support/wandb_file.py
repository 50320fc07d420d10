"""Reads what an offline run of Weights & Biases left in its own file, by the library's protocol alone."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768  # bytes; no record's header lies across two of them


def records(path: Path) -> Iterator[Any]:
    """The records in order: 7 bytes of the file's own, then chunks (sum, length, and whether a record begins or ends),
    as in LevelDB's logs."""
    from wandb.proto import wandb_internal_pb2

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        place += 7
        if place + length > len(content):
            return
        parts = (b"" if kind in (1, 2) else parts) + content[place : place + length]
        place += length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record


def nested(items: Any) -> dict[str, Any]:
    """The values of a record by their keys, those of an object by KEY.PART."""
    return {".".join([item.key] if item.key else item.nested_key): json.loads(item.value_json) for item in items}


class OfflineRun:
    """`config`; `history`, a dict a row; `artifacts`, of each (type, name) the files. Waits until the file is whole,
    for W&B's own process goes on writing it after `wandb.finish()`."""

    def __init__(self, run_dir: Path) -> None:
        (self.path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
        self.files = self.path.parent / "files"
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.artifacts: dict[tuple[str, str], set[str]] = {}
        until = time.monotonic() + 60
        while not (whole := list(records(self.path))) or whole[-1].WhichOneof("record_type") != "exit":
            assert time.monotonic() < until, f"{self.path} has no end"
            time.sleep(0.1)
        for record in whole:
            kind = record.WhichOneof("record_type")
            if kind in ("run", "config"):
                self.config |= nested((record.run.config if kind == "run" else record.config).update)
            elif kind == "history":
                self.history.append(nested(record.history.item))
            elif kind == "artifact":
                artifact = record.artifact
                self.artifacts[artifact.type, artifact.name] = {entry.path for entry in artifact.manifest.contents}
