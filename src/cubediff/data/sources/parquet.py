"""Parquet files of a Hugging Face dataset: one row per panorama, with the bytes of its image and its caption."""

import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cubediff.data.sources.base import Entry, Listing, PanoramaJpeg, Rejection
from cubediff.data.sources.captioned_path import CaptionedPath
from cubediff.data.sources.listing import FileTree
from cubediff.data.sources.parquet_files import image_column, open_parquet, path_column, read_image
from cubediff.data.sources.records import entry_from
from cubediff.data.sources.splits import declare_splits
from cubediff.data.sources.tables import TABLES, json_record
from cubediff.images.decoding import decoding
from cubediff.images.limits import MAX_WIDTH, QUALITY
from cubediff.images.panorama_jpeg import as_panorama, check_panorama
from cubediff.images.reading import decode
from cubediff.utils.errors import DataError

_LEVELS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class ParquetRows(CaptionedPath):
    """The rows of the Parquet files below a folder; entries are named FILE.parquet/ROW.SUFFIX.

    The image is a column of bytes, or of records with `bytes`, as the datasets library stores it. The caption is
    `caption` or else `text`; `faces` and `asset` are as in captions.jsonl.

    Args:
        path: The folder.
        captioned: Whether panoramas without a caption are rejected.
        tree: The files below `path`, if they have been listed already.
    """

    def entries(self) -> Listing:
        names, rejected = list_parquet(self._listed())
        if not names and not rejected:
            raise DataError(f"{self.path} holds no Parquet file")
        entries: list[Entry] = []
        for name in names:
            try:
                found, refused = self._rows(name)
            except DataError as error:
                found, refused = [], [Rejection(name, str(error))]
            entries += found
            rejected += refused
        return declare_splits(entries), rejected

    def files(self, entry: Entry) -> list[Path]:
        return [self.path / PurePosixPath(entry.file).parent]

    def load(self, entry: Entry, max_width: int = MAX_WIDTH, quality: int = QUALITY) -> PanoramaJpeg:
        file = PurePosixPath(entry.file)
        path = self.path / file.parent
        with decoding():
            image = read_image(path, int(file.stem))

            def check(width: int, height: int) -> None:
                check_panorama(width, height, max_width)

            return as_panorama(decode(io.BytesIO(image), file.name, check), quality)

    def _rows(self, name: str) -> tuple[list[Entry], list[Rejection]]:
        table = open_parquet(self.path / name)
        column = image_column(table)
        others = [key for key in table.schema_arrow.names if key != column]
        paths = path_column(table, column)
        entries, rejected = [], []
        row = 0
        for batch in table.iter_batches(columns=others + paths):
            for record in batch.to_pylist():
                stored = record.pop(column, None) or {}
                suffix = PurePosixPath(str(stored.get("path"))).suffix.lower()
                file = f"{name}/{row:08d}{suffix if suffix in _LEVELS else '.jpg'}"
                row += 1
                try:
                    values = json_record(record)
                    if "caption" not in values and "text" in values:
                        values["caption"] = values.pop("text")
                    entries.append(entry_from(file, values, self.captioned))
                except DataError as error:
                    rejected.append(Rejection(file, str(error)))
        return entries, rejected


def list_parquet(tree: FileTree) -> tuple[list[str], list[Rejection]]:
    """The Parquet files below a folder that are no tables of an image folder, and rejections."""
    names, rejected = tree.files(".parquet")
    return [name for name in names if PurePosixPath(name).name.lower() not in TABLES], rejected
