"""A Hugging Face dataset folder on disk, as the ImageFolder of the datasets library reads it: images, and
metadata.jsonl, .csv or .parquet with file_name and a caption."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cubediff.data.sources.base import Entry, Listing, PanoramaJpeg, Rejection
from cubediff.data.sources.captioned_path import CaptionedPath
from cubediff.data.sources.captions import match_records
from cubediff.data.sources.listing import FileTree
from cubediff.data.sources.names import FileNames
from cubediff.data.sources.splits import declare_splits
from cubediff.data.sources.tables import TABLES, read_table
from cubediff.images.limits import MAX_WIDTH, QUALITY
from cubediff.images.panorama_jpeg import load_panorama
from cubediff.utils.errors import DataError


@dataclass(frozen=True)
class ImageFolder(CaptionedPath):
    """The images below a folder, each listed in the metadata table of its own folder or the nearest one above.

    Folders named train, validation or test declare the split. The caption is `caption` or else `text`; `faces` and
    `asset` are as in captions.jsonl.

    Args:
        path: The folder.
        captioned: Whether panoramas without a caption are rejected.
        tree: The files below `path`, if they have been listed already.
    """

    def entries(self) -> Listing:
        tree = self._listed()
        files, rejected = tree.images()
        tables = list_tables(tree)
        if not tables or (not files and not rejected):
            raise DataError(f"{self.path} holds no {'panorama' if tables else ' and no '.join(TABLES)}")
        entries: dict[str, Entry] = {}
        remaining = files
        for folder in sorted(tables, key=lambda folder: -len(folder.parts)):  # the nearest table counts
            table = tables[folder]
            below = [f for f in remaining if folder in PurePosixPath(f).parents]
            remaining = [f for f in remaining if f not in set(below)]
            found, refused = match_records(
                table,
                read_table(self.path / table),
                FileNames(below, rejected=rejected),
                key="file_name",
                caption_keys=("caption", "text"),
                captioned=self.captioned,
                folder=folder.as_posix(),
            )
            entries |= {entry.file: entry for entry in found}
            rejected += refused
        rejected += [Rejection(f, f"is in no folder with {' or '.join(TABLES)}") for f in remaining]
        return declare_splits([entries[file] for file in sorted(entries)]), rejected

    def files(self, entry: Entry) -> list[Path]:
        return [self.path / entry.file]

    def load(self, entry: Entry, max_width: int = MAX_WIDTH, quality: int = QUALITY) -> PanoramaJpeg:
        return load_panorama(self.path / entry.file, max_width, quality)


def list_tables(tree: FileTree) -> dict[PurePosixPath, str]:
    """The metadata tables below a folder, by their folders.

    Raises:
        DataError: If a folder has several.
    """
    tables: dict[PurePosixPath, str] = {}
    for name in tree.files(*(PurePosixPath(table).suffix for table in TABLES))[0]:
        file = PurePosixPath(name)
        if file.name.lower() in TABLES:
            if file.parent in tables:
                raise DataError(f"{tree.path} holds {tables[file.parent]} and {name}: keep one of them")
            tables[file.parent] = name
    return tables
