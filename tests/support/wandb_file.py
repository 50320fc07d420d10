"""Reads the file of an offline run of Weights & Biases with the protocol buffers of the library."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768  # bytes; no record's header lies across two of them


def records(path: Path) -> Iterator[Any]:
    """Yields the records in order.

    The file has LevelDB's log format: a header of 7 bytes, then chunks of checksum, length and kind (a full record, or
    the first, middle or last part of one).
    """
    from wandb.proto import wandb_internal_pb2

    content, offset, parts = path.read_bytes(), 7, b""
    while offset + 7 <= len(content):
        if BLOCK - offset % BLOCK < 7:
            offset += BLOCK - offset % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, offset)
        offset += 7
        if offset + length > len(content):
            return
        parts = (b"" if kind in (1, 2) else parts) + content[offset : offset + length]
        offset += length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record


def nested(items: Any) -> dict[str, Any]:
    """The values of a record by key; the keys of nested values are joined by dots."""
    return {".".join([item.key] if item.key else item.nested_key): json.loads(item.value_json) for item in items}


class OfflineRun:
    """The `config`, the `history` (a dict for each row), and the files of the `artifacts` by (type, name).

    Waits until the file is complete: W&B's own process still writes to it after `wandb.finish()`.
    """

    def __init__(self, run_dir: Path) -> None:
        (self.path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
        self.files = self.path.parent / "files"
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.artifacts: dict[tuple[str, str], set[str]] = {}
        until = time.monotonic() + 60
        while not (complete := list(records(self.path))) or complete[-1].WhichOneof("record_type") != "exit":
            assert time.monotonic() < until, f"{self.path} has no end"
            time.sleep(0.1)
        for record in complete:
            kind = record.WhichOneof("record_type")
            if kind in ("run", "config"):
                self.config |= nested((record.run.config if kind == "run" else record.config).update)
            elif kind == "history":
                self.history.append(nested(record.history.item))
            elif kind == "artifact":
                artifact = record.artifact
                self.artifacts[artifact.type, artifact.name] = {entry.path for entry in artifact.manifest.contents}
