"""Preview of a build (prepare --dry-run): reads the captions and a few panoramas, and writes nothing."""

from typing import NamedTuple

from cubediff.data.building.selecting import select_entries
from cubediff.data.sources import Rejection, Source
from cubediff.utils.errors import DataError

_MAX_READ = 16  # panoramas that a preview reads
_TAR_OVERHEAD = 3072  # bytes of a sample besides its JPEG: two headers, its JSON, padding


class Preview(NamedTuple):
    """Expected result of a build.

    Attributes:
        panoramas: Number of panoramas that the source lists.
        scenes: Number of their scenes.
        with_face_captions: Number of panoramas with face captions.
        rejected: Rejections by name or caption.
        read: Number of panoramas that were read, evenly spread over the source.
        refused: Rejections among the panoramas that were read.
        bytes: Estimated size of all shards.
    """

    panoramas: int
    scenes: int
    with_face_captions: int
    rejected: list[Rejection]
    read: int
    refused: list[Rejection]
    bytes: int


def preview_build(source: Source, limit: int | None, max_width: int, quality: int) -> Preview:
    """Reads the captions and up to 16 panoramas of a source, without writing anything.

    Args:
        source: The panoramas.
        limit: Use only the first panoramas; None: all.
        max_width: Maximum width of a panorama, in pixels.
        quality: JPEG quality of re-encoded panoramas, from 1 to 100.

    Raises:
        DataError: As `build_shards`.
    """
    entries, rejected = select_entries(source, limit)
    sampled = entries
    if len(entries) > _MAX_READ:
        sampled = [entries[i * len(entries) // _MAX_READ] for i in range(_MAX_READ)]
    refused: list[Rejection] = []
    size = 0
    for entry in sampled:
        try:
            size += len(source.load(entry, max_width, quality).jpeg) + _TAR_OVERHEAD
        except DataError as error:
            refused.append(Rejection(entry.file, str(error)))
    return Preview(
        panoramas=len(entries),
        scenes=len({e.scene for e in entries}),
        with_face_captions=sum(e.faces is not None for e in entries),
        rejected=rejected,
        read=len(sampled),
        refused=refused,
        bytes=size * len(entries) // max(1, len(sampled)),
    )
