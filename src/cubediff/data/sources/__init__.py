"""What people bring: folders of panoramas or cubemaps, existing shards, dataset folders, with captions (the paper's
training data). Whatever cannot be trained on is refused here, with the reason."""

from cubediff.data.sources.base import IMAGE_SUFFIXES, DataError, Entry, Panorama, Rejection, Source
from cubediff.data.sources.detect import KINDS, open_source
from cubediff.data.sources.hdr import tone_map
from cubediff.data.sources.images import load_panorama, own_limits

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
