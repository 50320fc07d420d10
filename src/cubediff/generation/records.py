"""The record of a generated panorama: what determines it, and with what it was generated. Loads no library."""

from pathlib import Path
from typing import Any, Final

from cubediff.utils.errors import DataError
from cubediff.utils.json_text import parse_json

RECORD: Final = "generation.json"  # in the folder of each panorama, written last


def read_record(path: Path) -> dict[str, Any]:
    """The content of a record.

    Args:
        path: A `generation.json`.

    Raises:
        DataError: If it is damaged.
        OSError: If it cannot be read.
    """
    try:
        record = parse_json(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError(f"expected an object, got a {type(record).__name__}")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}): remove {path.parent}, and generate its panorama again") from None
    return record
