"""A folder of equirectangular panoramas: images twice as wide as high."""

from dataclasses import dataclass, field
from pathlib import Path

from cubediff.data.sources.base import Entry, Listing, PanoramaJpeg
from cubediff.data.sources.captions import read_captions
from cubediff.data.sources.listing import FileTree
from cubediff.data.sources.names import FileNames
from cubediff.images.limits import MAX_WIDTH, QUALITY
from cubediff.images.panorama_jpeg import load_panorama
from cubediff.images.reading import IMAGE_SUFFIXES
from cubediff.utils.errors import DataError


@dataclass(frozen=True)
class EquirectFolder:
    """The images below a folder.

    Args:
        path: The folder.
        captions: A captions file, see `read_captions`; None: look for one.
        captioned: Whether panoramas without a caption are rejected.
        tree: The files below `path`, if they have been listed already.
    """

    path: Path
    captions: Path | None = None
    captioned: bool = True
    tree: FileTree | None = field(default=None, repr=False, compare=False)

    @property
    def identity(self) -> str:
        options = f"captions={self.captions!r}, captioned={self.captioned!r}"
        return f"{type(self).__qualname__}(path={self.path!r}, {options})"

    def entries(self) -> Listing:
        tree = self.tree or FileTree(self.path)
        files, rejected = tree.images()
        if not files and not rejected:
            raise DataError(f"{self.path} holds no panorama ({', '.join(IMAGE_SUFFIXES)})")
        names = FileNames(files, self.path, rejected)
        entries, uncaptioned = read_captions(tree, names, self.captions, self.captioned)
        return entries, rejected + uncaptioned

    def files(self, entry: Entry) -> list[Path]:
        return [self.path / entry.file]

    def load(self, entry: Entry, max_width: int = MAX_WIDTH, quality: int = QUALITY) -> PanoramaJpeg:
        return load_panorama(self.path / entry.file, max_width, quality)
