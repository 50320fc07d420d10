"""A Hugging Face dataset folder on disk, as the ImageFolder of the datasets library reads it: images, and
metadata.jsonl with file_name and a caption."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cubediff.data.sources.base import Entry, Listing, Panorama, Rejection
from cubediff.data.sources.captions import match_records, parse_lines
from cubediff.data.sources.listing import list_files
from cubediff.data.sources.names import FileNames
from cubediff.data.sources.records import read_text
from cubediff.images.panorama import load_panorama
from cubediff.images.reading import IMAGE_SUFFIXES
from cubediff.utils.errors import DataError

METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class ImageFolder:
    """The images below a folder, each listed in the metadata.jsonl of its own folder or the nearest one above.

    The caption is `caption` or else `text`; `faces` and `asset` are as in captions.jsonl.

    Args:
        path: The folder.
        captioned: Whether panoramas without a caption are rejected.
    """

    path: Path
    captioned: bool = True

    @property
    def identity(self) -> str:
        return f"{type(self).__qualname__}(path={self.path!r}, captioned={self.captioned!r})"

    def entries(self) -> Listing:
        files, rejected = list_files(self.path, IMAGE_SUFFIXES)
        tables = [name for name in list_files(self.path, (".jsonl",))[0] if PurePosixPath(name).name == METADATA]
        if not tables or (not files and not rejected):
            raise DataError(f"{self.path} holds no {'panorama' if tables else METADATA}")
        entries: dict[str, Entry] = {}
        folders = {name: PurePosixPath(name).parent for name in tables}
        remaining = files
        for table in sorted(tables, key=lambda name: -len(folders[name].parts)):  # the nearest table counts
            below = [f for f in remaining if folders[table] in PurePosixPath(f).parents]
            remaining = [f for f in remaining if f not in set(below)]
            found, refused = match_records(
                table,
                parse_lines(read_text(self.path / table).split("\n")),
                FileNames(below, rejected=rejected),
                key="file_name",
                caption_keys=("caption", "text"),
                captioned=self.captioned,
                folder=folders[table].as_posix(),
            )
            entries |= {entry.file: entry for entry in found}
            rejected += refused
        rejected += [Rejection(f, f"is in no folder with {METADATA}") for f in remaining]
        return [entries[file] for file in sorted(entries)], rejected

    def files(self, entry: Entry) -> list[Path]:
        return [self.path / entry.file]

    def load(self, entry: Entry, max_width: int = 16384, quality: int = 95) -> Panorama:
        return load_panorama(self.path / entry.file, max_width, quality)
