"""The record of a panorama, as a line of a captions file or a JSON file of its own has it, and the entry made of it."""

import json
import unicodedata
from difflib import get_close_matches
from pathlib import Path

from cubediff.data.sources.base import Entry
from cubediff.geometry.conventions import FACES
from cubediff.utils.errors import DataError
from cubediff.utils.json_text import parse_json


def parse_object(text: str) -> dict[str, object]:
    """Parses a JSON object that can be written as UTF-8 again.

    Raises:
        DataError: If it is something else; the message is the reason.
    """
    try:
        record: object = parse_json(text)
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError("half a surrogate pair, which is not Unicode text") from None
    except (ValueError, RecursionError) as error:
        raise DataError(str(error).splitlines()[0]) from None
    if not isinstance(record, dict):
        raise DataError("expected an object {…}")
    return record


def entry_from(file: str, record: dict[str, object], captioned: bool = True) -> Entry:
    """An entry with a record's `caption`, `faces` and `asset`; its other values are metadata.

    Control characters other than tab and newline are removed from captions.

    Args:
        file: Name of the panorama.
        record: The record of a captions file.
        captioned: As in `read_captions`.

    Raises:
        DataError: If a value is invalid, or the caption is empty and `captioned` is on.
    """
    record = dict(record)
    caption, faces, asset = (record.pop(key, None) for key in ("caption", "faces", "asset"))
    text = _clean(caption)
    if not text and captioned:
        near = [] if caption is not None else get_close_matches("caption", record, 1)
        raise DataError(f"empty caption; is {near[0]!a} meant as caption?" if near else "empty caption")
    captions = None if faces is None else face_captions(faces)
    if asset is not None and (not isinstance(asset, str) or not asset):
        raise DataError(f"asset must be the scene's name, not {asset!r}")
    return Entry(file, text, captions, asset or file, record)


def face_captions(faces: object) -> dict[str, str]:
    """The captions of all six faces by name, without control characters.

    Args:
        faces: The value `faces` of a record or an entry.

    Raises:
        DataError: If a face has no caption, or there is another key; the message is the reason.
    """
    if not isinstance(faces, dict) or set(faces) != set(FACES):
        raise DataError(f"faces must be a caption for each of {', '.join(FACES)}, or omitted")
    captions = {face: _clean(faces[face]) for face in FACES}
    if empty := [face for face in FACES if not captions[face]]:
        raise DataError(f"empty caption of face {empty[0]}")
    return captions


def _clean(text: object) -> str:
    """A caption without control characters, which terminals and logs would interpret."""
    if not isinstance(text, str):
        return ""
    return "".join(c for c in text if c in "\t\n" or unicodedata.category(c) != "Cc").strip()


def read_text(path: Path) -> str:
    """Reads a UTF-8 text file, with or without a byte order mark.

    Raises:
        DataError: If it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def has_caption(record: dict[str, object]) -> bool:
    """Whether a record has a caption that is not empty; metadata next to a text file often has none."""
    return bool(_clean(record.get("caption")))
