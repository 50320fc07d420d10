"""Detects the type of a source from the names of its files, and where they say nothing from the sizes of images."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from cubediff.cubemaps.conventions import layout_of
from cubediff.data.sources.captions import find_captions_file
from cubediff.data.sources.cubemap_records import find_scenes
from cubediff.data.sources.imagefolder import list_tables
from cubediff.data.sources.listing import FileTree
from cubediff.data.sources.parquet import list_parquet
from cubediff.data.sources.trees import tree_of
from cubediff.images.reading import IMAGE_SUFFIXES, read_size
from cubediff.utils.errors import DataError

_MAX_MEASURED = 8  # images whose size is read to tell crosses and strips from panoramas


def detect_kind(tree: FileTree, captions: Path | None, is_used: Callable[[str], bool]) -> str:
    """Detects the type of a source.

    Args:
        tree: The files of the source, or a single tar shard.
        captions: As in `open_source`.
        is_used: Whether a file of this name is used.

    Raises:
        DataError: If no or more than one type is detected.
    """
    path = tree.path
    if path.is_file() and path.suffix.lower() == ".tar":
        return "webdataset"
    images, refused = tree.images()
    tars = tree.files(".tar")[0]
    if any(map(is_used, images + tars)):  # otherwise the globs are wrong, which the source says
        images, tars = list(filter(is_used, images)), list(filter(is_used, tars))
    found = {}
    if tars:
        found["webdataset"] = "shards (.tar)"
    dataset, images = tree_of(images)
    if dataset is not None:
        found[dataset] = f"the tree of {dataset}"
    named = captions is not None or find_captions_file(tree) is not None
    if images and (tables := list_tables(tree)):
        found["imagefolder"] = PurePosixPath(next(iter(tables.values()))).name
    if any(map(is_used, list_parquet(tree)[0])):
        found["parquet"] = "Parquet files"
    if images and (named or "imagefolder" not in found):
        groups, broken, rest = find_scenes(tree, images)
        layouts = _are_layouts(path, rest)
        if groups or broken or layouts:
            found["cubemaps"] = "the faces of cubemaps"
        if rest and not layouts:
            found["equirect"] = "other images"
    if not found and refused:
        return "equirect"  # which rejects them
    if not found:
        raise DataError(f"{path} holds no panorama ({', '.join(IMAGE_SUFFIXES)}), no Parquet file and no shard (.tar)")
    if len(found) > 1:
        raise DataError(f"{path} holds {' and '.join(found.values())}: choose with --source {' or '.join(found)}")
    return next(iter(found))


def _are_layouts(path: Path, images: list[str]) -> bool:
    """Whether images are crosses and strips, judged by a few that can be read."""
    sizes = []
    for name in images[:: -(-len(images) // _MAX_MEASURED) or 1]:
        try:
            sizes.append(read_size(path / name))
        except DataError:
            continue
    return bool(sizes) and all(layout_of(*size) is not None for size in sizes)
