"""Opens a source by its type, which is named or detected from the files in the folder; an ambiguous folder is an
error."""

from pathlib import Path

from cubediff.data.sources.base import Source
from cubediff.data.sources.captions import find_captions_file
from cubediff.data.sources.cubemaps import Cubemaps
from cubediff.data.sources.custom import installed_sources, is_class_path, open_custom
from cubediff.data.sources.equirect import EquirectFolder
from cubediff.data.sources.imagefolder import METADATA, ImageFolder
from cubediff.data.sources.listing import list_files
from cubediff.data.sources.schemes import SCHEMES, STRIPS, group_files, is_layout
from cubediff.data.sources.webdataset import Shards
from cubediff.images.reading import IMAGE_SUFFIXES, read_size
from cubediff.utils.errors import DataError

KINDS = ("equirect", "cubemaps", "webdataset", "imagefolder", *SCHEMES, *STRIPS)

_MAX_MEASURED = 8  # images whose size is read to tell crosses and strips from panoramas


def open_source(
    path: Path,
    captions: Path | None = None,
    kind: str | None = None,
    captioned: bool = True,
    output: Path | None = None,
) -> Source:
    """Opens the panoramas at a path as a source.

    Args:
        path: Folder, or a single tar shard.
        captions: Captions file for a folder of panoramas or cubemaps; None: look for one.
        kind: One of `KINDS`, `module:Class`, or the name of an entry point in the group `cubediff.sources`; None:
            detect one of `KINDS`.
        captioned: Whether panoramas without a caption are rejected; otherwise their caption is empty.
        output: Folder of the shards to write; if it lies in `path`, the shards in it are not part of the source.

    Raises:
        DataError: If `kind` is unknown or does not fulfil `Source`, or if no or more than one kind is detected.

    >>> open_source(Path("panoramas"), kind="equirect").identity
    "EquirectFolder(path=PosixPath('panoramas'), captions=None, captioned=True)"
    """
    if kind is not None and kind not in KINDS:
        installed = installed_sources()
        if kind not in installed and not is_class_path(kind):
            raise DataError(
                f"--source {kind} is unknown: use one of {', '.join((*KINDS, *installed))}; or module:Class, a class "
                "that fulfils cubediff.data.sources.Source"
            )
        return open_custom(kind, path, captions, captioned)
    kind = kind or _detect(path, captions, output)
    if captions is not None and kind in ("webdataset", "imagefolder"):
        raise DataError(f"{path} is read as {kind}, which contains its captions: omit --captions {captions}")
    if kind == "webdataset":
        return Shards(path, captioned, output)
    if kind == "imagefolder":
        return ImageFolder(path, captioned)
    if kind == "equirect":
        return EquirectFolder(path, captions, captioned)
    return Cubemaps(path, captions, captioned, None if kind == "cubemaps" else kind)


def _detect(path: Path, captions: Path | None, output: Path | None) -> str:
    if path.is_file() and path.suffix.lower() == ".tar":
        return "webdataset"
    images, refused = list_files(path, IMAGE_SUFFIXES)
    found = {}
    if Shards(path, skipped=output).tars()[0]:
        found["webdataset"] = "shards (.tar)"
    named = captions is not None or find_captions_file(path) is not None
    if images and any(name.rpartition("/")[2] == METADATA for name in list_files(path, (".jsonl",))[0]):
        found["imagefolder"] = METADATA
    if images and (named or "imagefolder" not in found):
        groups, broken, rest = group_files(images)
        layouts = _are_layouts(path, rest)
        if groups or broken or layouts:
            found["cubemaps"] = "the faces of cubemaps"
        if rest and not layouts:
            found["equirect"] = "other images"
    if not found and refused:
        return "equirect"  # which rejects them
    if not found:
        raise DataError(f"{path} holds no panorama ({', '.join(IMAGE_SUFFIXES)}) and no shard (.tar)")
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
    return bool(sizes) and all(is_layout(*size) for size in sizes)
