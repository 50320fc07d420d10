"""Moved to cubediff.geometry.photos and cubediff.pipelines.prompts."""

from cubediff.geometry.photos import Photo, exif_fov  # noqa: F401
from cubediff.geometry.photos import project_photos as known_faces  # noqa: F401
from cubediff.pipelines.prompts import photos_by_panorama, prompts_by_panorama, six_prompts  # noqa: F401
