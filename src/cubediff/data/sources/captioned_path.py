"""What sources that contain their captions share."""

from dataclasses import dataclass, field
from pathlib import Path

from cubediff.data.sources.listing import FileTree


@dataclass(frozen=True)
class CaptionedPath:
    """What sources that contain their captions share.

    Args:
        path: The folder or file.
        captioned: Whether panoramas without a caption are rejected.
        tree: The files below `path`, if they have been listed already.
    """

    path: Path
    captioned: bool = True
    tree: FileTree | None = field(default=None, repr=False, compare=False)

    @property
    def identity(self) -> str:
        return f"{type(self).__qualname__}(path={self.path!r}, captioned={self.captioned!r})"

    def _listed(self) -> FileTree:
        return self.tree or FileTree(self.path)
