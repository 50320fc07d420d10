"""The panoramas that generation jobs edit: their files and checks. Only `open_panorama` loads torch."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from cubediff.generation.photos import FileVersion, file_version, sha256_of
from cubediff.images.canvas import Canvas, open_canvas

if TYPE_CHECKING:
    from cubediff.geometry.panoramas import Panorama


@dataclass(frozen=True)
class PanoramaFile:
    """A panorama to edit.

    Attributes:
        file: Path of the panorama.
        mask: Path of the mask, white where to repaint; None: transparent and missing pixels alone are repainted.
    """

    file: str
    mask: str | None = None

    def request(self) -> dict[str, object]:
        """Files and their SHA-256, for `generation.json`: a changed file makes another panorama.

        Raises:
            OSError: If a file cannot be read.
        """
        mask_sum = None if self.mask is None else sha256_of(self.mask)
        return {"file": self.file, "sha256": sha256_of(self.file), "mask": self.mask, "mask_sha256": mask_sum}


def read_canvas(panorama: PanoramaFile) -> Canvas:
    """Reads the panorama and its mask; those that were read last are kept.

    Raises:
        ValueError: If a file is unusable, or there is nothing to repaint or to keep.
    """
    try:
        versions = [file_version(file) for file in (panorama.file, panorama.mask) if file is not None]
    except OSError:  # its message follows
        versions = []
    return _read(panorama, *versions)


@lru_cache(maxsize=1)
def _read(panorama: PanoramaFile, *versions: FileVersion) -> Canvas:
    return open_canvas(panorama.file, panorama.mask)


def open_panorama(panorama: PanoramaFile) -> "Panorama":
    """The panorama as an image of the pipeline's call.

    Raises:
        ValueError: As `read_canvas`.
    """
    from cubediff.geometry.panoramas import Panorama  # loads torch, which the checks do not need

    return Panorama(read_canvas(panorama))
