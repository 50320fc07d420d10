"""What people bring: folders of panoramas or cubemaps, existing shards, dataset folders, with captions (the paper's
training data). Whatever cannot be trained on is refused here, with the reason."""

from cubediff.data.sources.base import Entry, Panorama, Rejection, Source
from cubediff.data.sources.detect import KINDS, open_source
from cubediff.images.hdr import tone_map
from cubediff.images.reading import IMAGE_SUFFIXES, load_panorama, own_limits
from cubediff.utils.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "KINDS",
    "DataError",
    "Entry",
    "Panorama",
    "Rejection",
    "Source",
    "load_panorama",
    "open_source",
    "own_limits",
    "tone_map",
]
