"""Opens sets of panoramas to evaluate: what `cubediff generate` wrote, or any source that `cubediff prepare` reads.

Legend: H height of a panorama.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from os.path import relpath
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cubediff.cubemaps.conversion import CubeImages, PanoramaImage
from cubediff.data.building.splitting import sample_keys
from cubediff.data.converting.spheres import Described, open_sphere
from cubediff.data.sources import Entry, Rejection, Source, open_source
from cubediff.data.sources.equirect import EquirectFolder
from cubediff.evaluation.sets import PanoramaSet, Prompts, SavedFaces, Selected, to_tensor
from cubediff.generation.options import MAX_HEIGHTS
from cubediff.generation.records import RECORD, read_record
from cubediff.geometry.faces import FACES
from cubediff.images.jpeg import decode_jpeg
from cubediff.pipelines.face_prompts import six_prompts
from cubediff.utils.errors import DataError
from cubediff.utils.files import sha256_file

_SHOWN = 5  # rejections in a message
_LEVELS = (".png", ".webp", ".avif")  # formats of levels without loss, or with less than a JPEG of them
_HIGHEST_QUALITY = 100  # of JPEG, for tone-mapped radiance and panoramas that are made of faces


def open_set(path: Path, count: int | None = None) -> PanoramaSet:
    """Opens a set of panoramas.

    Args:
        path: A folder that `cubediff generate` wrote, or what `cubediff prepare` reads: a folder of panoramas or
            cubemaps, with or without captions, or shards.
        count: Use only the first; None: all.

    Raises:
        DataError: If it holds no panorama, fewer than `count`, or a panorama that cannot be used.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist: pass a folder of panoramas, of `cubediff generate`, or of shards")
    opened: PanoramaSet = Generated(path) if _records(path) else Originals(path)
    if count is None:
        return opened
    if count > len(opened.names):
        raise DataError(f"{path} holds {len(opened.names)} panoramas, and count={count}: use a smaller count")
    return Selected(opened, range(count))


class Generated:
    """What `cubediff generate` wrote: a folder for each panorama, or the files of one.

    Args:
        path: The folder.

    Raises:
        DataError: If a record is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folders = [record.parent for record in _records(path)]
        self.names = [folder.name for folder in self._folders]
        self._records = [read_record(folder / RECORD) for folder in self._folders]
        self.prompts = [_prompts_of(record.get("prompt")) for record in self._records]

    def panorama(self, index: int) -> Float[Tensor, "3 h w"]:
        return _equirect(self._file(index))

    def has_faces(self, index: int) -> bool:
        return self._saved(index) is not None

    def faces(self, index: int) -> SavedFaces | None:
        if (saved := self._saved(index)) is None:
            return None
        sphere, _ = open_sphere(saved, Described(), as_srgb=True)
        if not isinstance(sphere, CubeImages):
            raise DataError(f"{saved} is no cubemap: generate the panorama again")
        return SavedFaces(torch.stack([to_tensor(sphere.cube[face]) for face in FACES]), sphere.fov)

    def photos(self, index: int) -> list[dict[str, object]]:
        photos = self._records[index].get("images", [])
        if not isinstance(photos, list) or not all(isinstance(photo, dict) and "file" in photo for photo in photos):
            raise DataError(f"{self._folders[index] / RECORD} is damaged: generate the panorama again")
        return photos

    def page(self, index: int) -> Path | None:
        page = self._folders[index] / "viewer.html"
        return page if page.is_file() else None

    @cached_property
    def _digest(self) -> str:
        files = {
            f"{name}/{file.relative_to(folder)}": file
            for name, folder in zip(self.names, self._folders, strict=True)
            for file in (*folder.glob("panorama.*"), *folder.glob("faces/*"), *folder.glob("cubemap.*"))
        }
        return _digest(self.names, files)

    def digest(self) -> str:
        return self._digest

    def _saved(self, index: int) -> Path | None:
        """The folder or image of a panorama's faces."""
        folder = self._folders[index]
        return next((path for path in (folder / "faces", folder / "cubemap.png") if path.exists()), None)

    def _file(self, index: int) -> Path:
        folder = self._folders[index]
        found = [file for suffix in MAX_HEIGHTS if (file := folder / f"panorama.{suffix}").is_file()]
        if len(found) != 1:
            raise DataError(f"{folder}: expected one panorama, found {len(found)}: generate it again")
        return found[0]


class Originals:
    """The panoramas of a source, with or without captions.

    Args:
        path: The folder or shard.

    Raises:
        DataError: If the source is ambiguous, or one of its panoramas cannot be used; the message names all of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._source: Source = open_source(path, captioned=False)
        self._entries, rejected = self._source.entries()
        if rejected:
            raise _unusable(path, rejected)
        self.names = sample_keys(_without_shard(entry) for entry in self._entries)
        self.prompts = [_prompts_of_entry(entry) for entry in self._entries]

    def panorama(self, index: int) -> Float[Tensor, "3 h w"]:
        entry = self._entries[index]
        try:
            loaded = self._source.load(entry, quality=_HIGHEST_QUALITY)
            if loaded.original is None and isinstance(self._source, EquirectFolder):
                (file,) = self._source.files(entry)
                if file.suffix.lower() in _LEVELS:  # not through a JPEG
                    return _equirect(file)
            return to_tensor(decode_jpeg(loaded.jpeg))
        except DataError as error:
            raise DataError(f"{self.path}/{entry.file}: {error}") from None

    def has_faces(self, index: int) -> bool:
        return False

    def faces(self, index: int) -> SavedFaces | None:
        return None

    def photos(self, index: int) -> list[dict[str, object]]:
        return []

    def page(self, index: int) -> Path | None:
        return None

    @cached_property
    def _digest(self) -> str:
        files = {relpath(file, self.path): file for entry in self._entries for file in self._source.files(entry)}
        return _digest([entry.file for entry in self._entries], files)

    def digest(self) -> str:
        return self._digest


def _equirect(file: Path) -> Float[Tensor, "3 h w"]:
    """The pixels of an image file as sRGB."""
    sphere, _ = open_sphere(file, Described("panorama"), as_srgb=True)
    assert isinstance(sphere, PanoramaImage)
    return to_tensor(sphere.pixels)


def _records(path: Path) -> list[Path]:
    """The records of the panoramas in a folder, sorted by name."""
    return [path / RECORD] if (path / RECORD).is_file() else sorted(path.glob(f"*/{RECORD}"))


def _prompts_of(prompt: object) -> Prompts:
    if prompt is None:
        return Prompts()
    texts = six_prompts(prompt)
    return Prompts(texts[0]) if isinstance(prompt, str) else Prompts("", tuple(texts))


def _prompts_of_entry(entry: Entry) -> Prompts:
    return Prompts(entry.caption, None if entry.faces is None else tuple(entry.faces[face] for face in FACES))


def _without_shard(entry: Entry) -> str:
    """The file's name, for a sample of a shard without that of the shard."""
    return entry.file.partition(".tar/")[2] or entry.file


def _unusable(path: Path, rejected: Sequence[Rejection]) -> DataError:
    shown = "; ".join(f"{each.file}: {each.reason}" for each in rejected[:_SHOWN])
    more = f"; and {len(rejected) - _SHOWN} more" if len(rejected) > _SHOWN else ""
    return DataError(
        f"{path}: {len(rejected)} panoramas or lines cannot be used: {shown}{more}: correct or remove them"
    )


def _digest(names: Sequence[str], files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256("\0".join(names).encode())
    for name, file in sorted(files.items()):
        digest.update(f"\0{name}\0{sha256_file(file)}".encode())
    return digest.hexdigest()
