"""A data source of another package: panoramas in .npy files, captioned by their names."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cubediff.data.sources import Entry, PanoramaJpeg, Rejection


@dataclass(frozen=True)
class ArrayFolder:
    """A folder of uint8 arrays (H, 2H, 3)."""

    folder: Path
    captions: Path | None = None
    captioned: bool = True

    @property
    def identity(self) -> str:
        return f"ArrayFolder({self.folder})"

    def entries(self) -> tuple[list[Entry], list[Rejection]]:
        names = sorted(path.name for path in self.folder.glob("*.npy"))
        return [Entry(name, name.removesuffix(".npy").replace("_", " "), None, name) for name in names], []

    def files(self, entry: Entry) -> list[Path]:
        return [self.folder / entry.file]

    def load(self, entry: Entry, max_width: int = 16384, quality: int = 95) -> PanoramaJpeg:
        image = Image.fromarray(np.load(self.folder / entry.file))
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=quality)
        return PanoramaJpeg(jpeg.getvalue(), image.width, image.height)
