"""Which kind of source a path is, said by name or found by what lies there; what could be two kinds is asked about."""

from pathlib import Path

from cubediff.data.sources.base import Source, list_files
from cubediff.data.sources.captions import CAPTION_FILES
from cubediff.data.sources.cubemaps import Cubemaps
from cubediff.data.sources.equirect import EquirectFolder
from cubediff.data.sources.imagefolder import METADATA, ImageFolder
from cubediff.data.sources.schemes import SCHEMES, STRIPS, group_files, is_layout
from cubediff.data.sources.webdataset import Shards
from cubediff.images.reading import IMAGE_SUFFIXES, read_size
from cubediff.utils.errors import DataError

KINDS = ("equirect", "cubemaps", "webdataset", "imagefolder", *SCHEMES, *STRIPS)

_LOOKED_AT = 8  # images whose size is read to tell crosses and strips from panoramas


def open_source(path: Path, captions: Path | None = None, kind: str | None = None, captioned: bool = True) -> Source:
    """The source at `path`: of a `kind` of KINDS, or as what it looks like.

    `captions` names the captions file of a folder of panoramas or cubemaps. Without `captioned` panoramas without
    caption are entries too. Raises DataError where nothing or more than one kind is found.
    """
    if kind is not None and kind not in KINDS:
        raise DataError(f"--source {kind} is not known: use one of {', '.join(KINDS)}")
    kind = kind or _kind(path, captions)
    if captions is not None and kind in ("webdataset", "imagefolder"):
        raise DataError(f"{path} is read as {kind}, which brings its captions: leave --captions {captions} out")
    if kind == "webdataset":
        return Shards(path, captioned)
    if kind == "imagefolder":
        return ImageFolder(path, captioned)
    if kind == "equirect":
        return EquirectFolder(path, captions, captioned)
    return Cubemaps(path, captions, captioned, None if kind == "cubemaps" else kind)


def _kind(path: Path, captions: Path | None) -> str:
    if path.is_file() and path.suffix.lower() == ".tar":
        return "webdataset"
    images = list_files(path, IMAGE_SUFFIXES)[0]
    found = {}
    if list_files(path, (".tar",))[0]:
        found["webdataset"] = "shards (.tar)"
    named = captions is not None or any((path / name).is_file() for name in CAPTION_FILES)
    if images and any(name.rpartition("/")[2] == METADATA for name in list_files(path, (".jsonl",))[0]):
        found["imagefolder"] = METADATA
    if images and (named or "imagefolder" not in found):
        groups, broken, rest = group_files(images)
        layouts = _layouts(path, rest)
        if groups or broken or layouts:
            found["cubemaps"] = "the faces of cubemaps"
        if rest and not layouts:
            found["equirect"] = "other images"
    if not found:
        raise DataError(f"{path} holds no panorama ({', '.join(IMAGE_SUFFIXES)}) and no shard (.tar)")
    if len(found) > 1:
        raise DataError(
            f"{path} holds {' and '.join(found.values())}: say with --source {' or '.join(found)} what to read"
        )
    return next(iter(found))


def _layouts(path: Path, images: list[str]) -> bool:
    """Whether images, by those that are looked at and can be read, are crosses and strips."""
    sizes = []
    for name in images[:: -(-len(images) // _LOOKED_AT) or 1]:
        try:
            sizes.append(read_size(path / name))
        except DataError:
            continue
    return bool(sizes) and all(is_layout(*size) for size in sizes)
