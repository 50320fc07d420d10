"""Sources of panoramas: folders of panoramas or cubemaps, existing shards, dataset folders, and classes of other
packages. Each panorama is listed with its caption or rejected with a reason."""

from cubediff.data.sources.base import Entry, PanoramaJpeg, Rejection, Source, check_source
from cubediff.data.sources.opening import KINDS, open_source
from cubediff.images.hdr import tone_map
from cubediff.images.panorama_jpeg import load_panorama
from cubediff.images.reading import IMAGE_SUFFIXES
from cubediff.utils.errors import DataError

Panorama = PanoramaJpeg  # the name that sources of other packages import

__all__ = [
    "IMAGE_SUFFIXES",
    "KINDS",
    "DataError",
    "Entry",
    "Panorama",
    "PanoramaJpeg",
    "Rejection",
    "Source",
    "check_source",
    "load_panorama",
    "open_source",
    "tone_map",
]
