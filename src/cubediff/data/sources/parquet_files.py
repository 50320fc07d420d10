"""Reading Parquet files with pyarrow, which is imported when one is opened."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cubediff.utils.errors import DataError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile


def open_parquet(path: Path) -> "ParquetFile":
    """Opens a Parquet file.

    Raises:
        DataError: If it is damaged, or pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile  # an optional extra
    except ImportError:
        raise DataError(f"{path} needs pyarrow: pip install 'cubediff[parquet]'") from None
    try:
        return ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file ({str(error).splitlines()[0]}): copy it again") from None


def image_column(table: "ParquetFile") -> str:
    """The column of images: the only one of bytes or of records with `bytes`, or the one named image.

    Raises:
        DataError: If there is none, or several.
    """
    import pyarrow.types  # the file is open, so it is installed

    schema = table.schema_arrow
    found = [
        field.name
        for field in schema
        if pyarrow.types.is_binary(field.type)
        or pyarrow.types.is_large_binary(field.type)
        or (pyarrow.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
    ]
    if len(found) != 1 and "image" in found:
        return "image"
    if len(found) != 1:
        raise DataError(f"has {len(found)} image columns among {', '.join(schema.names)}: expected one, named image")
    return str(found[0])


def path_column(table: "ParquetFile", column: str) -> list[str]:
    """The column of the images' names, if images are records with `path`; else none."""
    import pyarrow.types  # the file is open, so it is installed

    field = table.schema_arrow.field(column).type
    return [f"{column}.path"] if pyarrow.types.is_struct(field) and field.get_field_index("path") >= 0 else []


def read_image(path: Path, row: int) -> bytes:
    """The bytes of the image of a row, which counts from 0.

    Raises:
        DataError: If the row has none.
    """
    stat = path.stat()
    first = 0
    groups = _group_sizes(path, stat.st_mtime_ns)
    for group, size in enumerate(groups):
        if row < first + size:
            image = _read_group(path, stat.st_mtime_ns, group)[row - first]
            if image is None:
                raise DataError("its image has no bytes: datasets with paths only are read as an image folder")
            return bytes(image)
        first += size
    raise DataError(f"row {row} is missing: the file has {first} rows")


@lru_cache(maxsize=4)
def _group_sizes(path: Path, mtime: int) -> list[int]:
    metadata = open_parquet(path).metadata
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


@lru_cache(maxsize=1)  # entries come row by row, and a row cannot be read without its group
def _read_group(path: Path, mtime: int, group: int) -> list[bytes | None]:
    table = open_parquet(path)
    column = image_column(table)
    values = table.read_row_group(group, columns=[column]).column(column).to_pylist()
    return [value.get("bytes") if isinstance(value, dict) else value for value in values]
