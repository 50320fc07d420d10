"""The interface of a source: entries to choose from, and their panoramas as JPEG."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from cubediff.images.limits import MAX_WIDTH, QUALITY
from cubediff.images.panorama_jpeg import PanoramaJpeg
from cubediff.utils.errors import DataError

__all__ = ["Entry", "Listing", "PanoramaJpeg", "Rejection", "Source", "check_source"]


@dataclass(frozen=True)
class Entry:
    """A panorama with its caption.

    Attributes:
        file: Name of the panorama, relative to the source and unique in it, with forward slashes.
        caption: Caption of the panorama.
        faces: Captions of all six faces by their names in `FACES`, or None; a build rejects an entry with fewer.
        scene: Group of panoramas that stay on one side of the train/val split.
        metadata: Other values of the captions file, copied to the shards.
        split: The split that the source declares, or None: by the hash of the scene. Shards have no test split, see
            `select_entries`.
    """

    file: str
    caption: str
    faces: dict[str, str] | None
    scene: str
    metadata: dict[str, object] = field(default_factory=dict)
    split: Literal["train", "val", "test"] | None = None


@dataclass(frozen=True)
class Rejection:
    """A panorama, or a line of a captions file, that is left out, and why; `file` is encodable as UTF-8."""

    file: str
    reason: str


Listing = tuple[list[Entry], list[Rejection]]


@runtime_checkable
class Source(Protocol):
    """A set of panoramas with captions.

    The command line creates one as `Class(folder, captions_file_or_None, captioned)`: without `captioned`, panoramas
    without a caption are entries too. Instances are pickled for worker processes. Every panorama is either an entry or
    a rejection with a reason.
    """

    @property
    def identity(self) -> str:
        """Text that is equal for sources with the same panoramas, such as class name, folder and options.

        An interrupted build resumes only with the same identity.
        """
        ...

    def entries(self) -> Listing:
        """The panoramas in a fixed order, and the rejections by name or caption.

        Raises:
            DataError: If the source holds no panorama at all.
        """
        ...

    def files(self, entry: Entry) -> list[Path]:
        """The files that the panorama is read from; it is read again if their sizes or modification times change."""
        ...

    def load(self, entry: Entry, max_width: int = MAX_WIDTH, quality: int = QUALITY) -> PanoramaJpeg:
        """Reads a panorama.

        Args:
            entry: One of `entries`.
            max_width: Maximum width, in pixels.
            quality: JPEG quality if the panorama has to be encoded, from 1 to 100.

        Raises:
            DataError: If the panorama cannot be used; the message is its reason.
            OSError: If the machine fails to read it.
        """
        ...


def check_source(source: object, name: str | None = None) -> Source:
    """Checks that an object fulfils `Source`, and returns it.

    Args:
        source: The object.
        name: Its name in error messages; by default its class.

    Raises:
        DataError: If an attribute is missing or of the wrong kind; the message names it.
    """
    name = name or f"{type(source).__module__}:{type(source).__qualname__}"
    needed = {"identity": "a property of type str", "entries": "a method", "files": "a method", "load": "a method"}
    missing = [f"{key} ({kind})" for key, kind in needed.items() if not hasattr(source, key)]
    if missing:
        raise DataError(f"source {name} has no {', no '.join(missing)}: implement cubediff.data.sources.Source")
    for key in ("entries", "files", "load"):
        if not callable(getattr(source, key)):
            raise DataError(f"source {name}: {key} is not a method: implement cubediff.data.sources.Source")
    assert isinstance(source, Source)
    if not isinstance(source.identity, str) or not source.identity:
        raise DataError(f"source {name}: identity is {source.identity!r}, expected a non-empty text")
    return source
