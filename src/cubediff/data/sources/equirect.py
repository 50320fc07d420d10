"""A folder of equirectangular panoramas, each an image twice as wide as high (the paper's training data)."""

from dataclasses import dataclass
from pathlib import Path

from cubediff.data.sources.base import Entry, Panorama, list_files
from cubediff.data.sources.captions import Listing, read_captions
from cubediff.images.panorama import load_panorama
from cubediff.images.reading import IMAGE_SUFFIXES
from cubediff.utils.errors import DataError


@dataclass(frozen=True)
class EquirectFolder:
    """Images below `path`, with captions as in read_captions."""

    path: Path
    captions: Path | None = None
    captioned: bool = True

    @property
    def identity(self) -> str:
        options = f"captions={self.captions!r}, captioned={self.captioned!r}"
        return f"{type(self).__qualname__}(path={self.path!r}, {options})"

    def entries(self) -> Listing:
        files, bad = list_files(self.path, IMAGE_SUFFIXES)
        if not files:
            raise DataError(f"{self.path} holds no panorama ({', '.join(IMAGE_SUFFIXES)})")
        entries, rejected = read_captions(self.path, files, self.captions, self.captioned, self._exists)
        return entries, bad + rejected

    def files(self, entry: Entry) -> list[Path]:
        return [self.path / entry.file]

    def load(self, entry: Entry, max_width: int = 16384, quality: int = 95) -> Panorama:
        return load_panorama(self.path / entry.file, max_width, quality)

    def _exists(self, file: str) -> bool:
        try:
            return (self.path / file).is_file()
        except OSError:  # a name longer than the file system takes
            return False
