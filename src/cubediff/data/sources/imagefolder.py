"""A Hugging Face dataset folder on disk, as the datasets library's ImageFolder reads it: images, and metadata.jsonl
with file_name and a caption (the paper is silent on formats)."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cubediff.data.sources.base import Entry, Panorama, Rejection, list_files
from cubediff.data.sources.captions import Listing, read_json_lines, read_text
from cubediff.images.panorama import load_panorama
from cubediff.images.reading import IMAGE_SUFFIXES
from cubediff.utils.errors import DataError

METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class ImageFolder:
    """Images below `path`, each named by the metadata.jsonl of its own or a higher folder; `caption`, or else `text`,
    is the caption, `faces` and `asset` are as in captions.jsonl."""

    path: Path
    captioned: bool = True

    @property
    def identity(self) -> str:
        return f"{type(self).__qualname__}(path={self.path!r}, captioned={self.captioned!r})"

    def entries(self) -> Listing:
        files, rejected = list_files(self.path, IMAGE_SUFFIXES)
        tables = [name for name in list_files(self.path, (".jsonl",))[0] if PurePosixPath(name).name == METADATA]
        if not files or not tables:
            raise DataError(f"{self.path} holds no {'panorama' if tables else METADATA}")
        entries: dict[str, Entry] = {}
        folders = {name: PurePosixPath(name).parent for name in tables}
        left = files
        for table in sorted(tables, key=lambda name: -len(folders[name].parts)):  # the nearest one names an image
            below = [f for f in left if folders[table] in PurePosixPath(f).parents]
            left = [f for f in left if f not in set(below)]
            found, refused = read_json_lines(
                table,
                read_text(self.path / table).split("\n"),
                below,
                key="file_name",
                caption_keys=("caption", "text"),
                captioned=self.captioned,
                folder=folders[table].as_posix(),
            )
            entries |= {entry.file: entry for entry in found}
            rejected += refused
        rejected += [Rejection(f, f"lies below no folder with {METADATA}") for f in left]
        return [entries[file] for file in sorted(entries)], rejected

    def files(self, entry: Entry) -> list[Path]:
        return [self.path / entry.file]

    def load(self, entry: Entry, max_width: int = 16384, quality: int = 95) -> Panorama:
        return load_panorama(self.path / entry.file, max_width, quality)
