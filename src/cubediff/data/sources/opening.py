"""Opens a source by its type, which is named or detected; an ambiguous folder is an error."""

from collections.abc import Sequence
from pathlib import Path

from cubediff.data.sources.base import Source
from cubediff.data.sources.cubemaps import Cubemaps
from cubediff.data.sources.custom import installed_sources, is_class_path, open_custom
from cubediff.data.sources.detection import detect_kind
from cubediff.data.sources.equirect import EquirectFolder
from cubediff.data.sources.imagefolder import ImageFolder
from cubediff.data.sources.listing import FileTree
from cubediff.data.sources.parquet import ParquetRows
from cubediff.data.sources.schemes import SCHEMES, STRIPS
from cubediff.data.sources.selection import NO_CAPTIONS, Selected, Uncaptioned, is_selected
from cubediff.data.sources.trees import MATTERPORT3D, STRUCTURED3D, open_tree
from cubediff.data.sources.webdataset import Shards
from cubediff.utils.errors import DataError

_FORMATS = ("equirect", "cubemaps", "webdataset", "imagefolder", "parquet", STRUCTURED3D, MATTERPORT3D)
KINDS = tuple(dict.fromkeys((*_FORMATS, *SCHEMES, *STRIPS)))


def open_source(
    path: Path,
    captions: Path | None = None,
    kind: str | None = None,
    captioned: bool = True,
    output: Path | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Source:
    """Opens the panoramas at a path as a source.

    Args:
        path: Folder, or a single tar shard.
        captions: Captions file for a folder of panoramas or cubemaps; None: look for one; `NO_CAPTIONS`: build without
            captions.
        kind: One of `KINDS`, `module:Class`, or the name of an entry point in the group `cubediff.sources`; None:
            detect one of `KINDS`.
        captioned: Whether panoramas without a caption are rejected; otherwise their caption is empty.
        output: Folder of the shards to write; if it lies in `path`, the files in it are not part of the source.
        include: Use only panoramas whose names match one of these globs, as `is_selected` reads them.
        exclude: Leave out panoramas whose names match one of these globs.

    Raises:
        DataError: If `kind` is unknown or does not fulfil `Source`, or if no or more than one kind is detected.

    >>> open_source(Path("panoramas"), kind="equirect").identity
    "EquirectFolder(path=PosixPath('panoramas'), captions=None, captioned=True)"
    """
    if captions == NO_CAPTIONS:
        return Uncaptioned(open_source(path, None, kind, False, output, include, exclude))
    tree = FileTree(path, output)
    if kind is None:
        kind = detect_kind(tree, captions, lambda name: is_selected(name, include, exclude))
    source = _open(tree, captions, kind, captioned)
    return Selected(source, tuple(include), tuple(exclude)) if include or exclude else source


def _open(tree: FileTree, captions: Path | None, kind: str, captioned: bool) -> Source:
    path = tree.path
    if kind not in KINDS:
        installed = installed_sources()
        if kind not in installed and not is_class_path(kind):
            raise DataError(
                f"--source {kind} is unknown: use one of {', '.join((*KINDS, *installed))}; or module:Class, a class "
                "that fulfils cubediff.data.sources.Source"
            )
        return open_custom(kind, path, captions, captioned)
    if captions is not None and kind in ("webdataset", "imagefolder", "parquet"):
        raise DataError(f"{path} is read as {kind}, which contains its captions: omit --captions {captions}")
    if kind == "webdataset":
        return Shards(path, captioned, tree)
    if kind == "imagefolder":
        return ImageFolder(path, captioned, tree)
    if kind == "parquet":
        return ParquetRows(path, captioned, tree)
    if kind in (STRUCTURED3D, MATTERPORT3D):
        return open_tree(kind, tree, captions, captioned)
    if kind == "equirect":
        return EquirectFolder(path, captions, captioned, tree)
    return Cubemaps(path, captions, captioned, None if kind == "cubemaps" else kind, tree)
