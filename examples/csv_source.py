r"""A data source: panoramas listed in a CSV file with the columns `file` and `caption`.

`cubediff prepare` calls the class as `CsvTable(folder, captions_file_or_None, captioned)`. From the repository's
folder:

    PYTHONPATH=examples cubediff prepare data/samples experiments/runs/csv_shards \
        --source csv_source:CsvTable --captions examples/panoramas.csv
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from cubediff.data.sources import DataError, Entry, PanoramaJpeg, Rejection, load_panorama


@dataclass(frozen=True)
class CsvTable:
    """The panoramas of a CSV file.

    Args:
        folder: The folder that `file` is relative to.
        table: The CSV file; None: `panoramas.csv` in the folder.
        captioned: Whether panoramas without a caption are rejected.
    """

    folder: Path
    table: Path | None = None
    captioned: bool = True

    @property
    def identity(self) -> str:
        """Decides whether an interrupted build resumes: equal for the same panoramas, and no address of an object."""
        return repr(self)

    def entries(self) -> tuple[list[Entry], list[Rejection]]:
        """Every row is an entry, or a rejection with a reason."""
        table = self.table or self.folder / "panoramas.csv"
        with table.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if missing := {"file", "caption"} - {*(rows.fieldnames or ())}:
                raise DataError(f"{table} has no column {' and no column '.join(sorted(missing))}: add a header line")
            entries: dict[str, Entry] = {}
            rejected: list[Rejection] = []
            for row in rows:
                name, caption = row["file"], row["caption"] or ""
                if not (self.folder / name).is_file():
                    rejected.append(Rejection(name, f"listed in {table}, but not in {self.folder}"))
                elif name in entries:
                    rejected.append(Rejection(name, f"listed twice in {table}"))
                elif self.captioned and not caption:
                    rejected.append(Rejection(name, f"no caption in {table}"))
                else:
                    entries[name] = Entry(name, caption, faces=None, scene=name)
        return list(entries.values()), rejected

    def files(self, entry: Entry) -> list[Path]:
        return [self.folder / entry.file]

    def load(self, entry: Entry, max_width: int = 16384, quality: int = 95) -> PanoramaJpeg:
        return load_panorama(self.folder / entry.file, max_width, quality)
