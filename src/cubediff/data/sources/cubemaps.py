"""Cubemaps in six files or in one image, converted to equirectangular panoramas.

The paper's training data includes Humus' cubemaps (arXiv 2501.17162, section 3)."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch

from cubediff.cubemaps.conventions import layout_of
from cubediff.cubemaps.files import read_record, record_path
from cubediff.cubemaps.layouts import Cube
from cubediff.data.sources.base import Entry, Listing, PanoramaJpeg, Rejection
from cubediff.data.sources.captions import read_captions
from cubediff.data.sources.cubemap_records import find_scenes
from cubediff.data.sources.listing import FileTree
from cubediff.data.sources.names import FileNames
from cubediff.data.sources.readings import check_reading, check_width, in_levels
from cubediff.data.sources.schemes import RECORDED, SCHEMES, STRIPS, Group, cut
from cubediff.geometry.conventions import FACES, tan_half
from cubediff.geometry.projections import cube_to_equirect
from cubediff.images.decoding import decoding
from cubediff.images.levels import DecodedImage
from cubediff.images.limits import MAX_WIDTH, MIN_WIDTH, QUALITY
from cubediff.images.panorama_jpeg import check_opaque, encode_panorama
from cubediff.images.reading import decode
from cubediff.utils.errors import DataError
from cubediff.utils.files import open_regular


class _Read(NamedTuple):
    """The faces of a scene, the scheme that names them, their field of view if a record says it, and notes."""

    scheme: str
    cube: Cube
    fov: float | None
    notes: list[str]


@dataclass(frozen=True)
class Cubemaps:
    """Scenes of six files, and single images with six faces, below a folder.

    Args:
        path: The folder.
        captions: A captions file, see `read_captions`; None: look for one.
        captioned: Whether scenes without a caption are rejected.
        scheme: The naming scheme of the files (a key of SCHEMES) or the order of strips (one of STRIPS). None: try all,
            and reject a scene if its faces fit together better by another scheme with the same names.
        tree: The files below `path`, if they have been listed already.
    """

    path: Path
    captions: Path | None = None
    captioned: bool = True
    scheme: str | None = None
    tree: FileTree | None = field(default=None, repr=False, compare=False)

    @property
    def identity(self) -> str:
        options = f"captions={self.captions!r}, captioned={self.captioned!r}, scheme={self.scheme!r}"
        return f"{type(self).__qualname__}(path={self.path!r}, {options})"

    def entries(self) -> Listing:
        groups, broken, images, rejected = self._listing
        names = sorted({*groups, *images})
        if not names and not broken and not rejected:
            raise DataError(f"{self.path} holds no cubemap: six files with endings such as {_endings()}, or one image")
        rejected = rejected + [Rejection(name, reason) for name, reason in broken.items()]
        file_names = FileNames(names, rejected=rejected)
        entries, refused = read_captions(self._tree, file_names, self.captions, self.captioned)
        return [_with_house(entry) for entry in entries], rejected + refused

    def files(self, entry: Entry) -> list[Path]:
        group = self._listing[0].get(entry.file)
        if group is None:
            image = self.path / entry.file
            return [image, *_existing(record_path(image, "strip"))]
        files = [self.path / file for file in sorted(next(iter(group.readings.values())).values())]
        return files if group.record is None else [*files, *_existing(record_path(files[0].parent))]

    def load(self, entry: Entry, max_width: int = MAX_WIDTH, quality: int = QUALITY) -> PanoramaJpeg:
        group = self._listing[0].get(entry.file)
        with decoding():
            read = self._read_layout(entry.file, max_width) if group is None else self._read_files(group, max_width)
            if read.fov is None:
                check_width(read.cube)
            # Four faces of 90° and S pixels go around, so the panorama is 4 S wide. That is 0.64 S pixels a radian; a
            # face has S/2 at its centre and S at the middle of an edge.
            faces = np.stack([read.cube[face] for face in FACES])
            size, fov = faces.shape[1], read.fov or 90.0
            height = round(2 * size / tan_half(fov))
            tensor = torch.from_numpy(faces).permute(0, 3, 1, 2)[None].contiguous()
            panorama = cube_to_equirect(tensor, height, fov=fov, mode="bicubic")[0].permute(1, 2, 0).numpy()
            jpeg, record = encode_panorama(panorama, quality)
        described: dict[str, object] = {"cubemap": read.scheme, "face_size": size}
        described |= {} if fov == 90 else {"face_fov": fov}
        return PanoramaJpeg(
            jpeg, 2 * height, height, None, described | record | ({"notes": read.notes} if read.notes else {})
        )

    @cached_property
    def _listing(self) -> tuple[dict[str, Group], dict[str, str], list[str], list[Rejection]]:
        files, rejected = self._tree.images()
        groups, broken, images = find_scenes(self._tree, files, self.scheme)
        return {group.name: group for group in groups}, broken, images, rejected

    @cached_property
    def _tree(self) -> FileTree:
        return self.tree or FileTree(self.path)

    def _read_files(self, group: Group, max_width: int) -> _Read:
        scheme, files = next(iter(group.readings.items()))
        images: dict[str, DecodedImage] = {}
        for file in files.values():
            try:
                with decoding(), open_regular(self.path / file) as opened:
                    images[file] = decode(opened, file, lambda w, h: _check_face(w, h, max_width))
                    check_opaque(images[file].opaque)
            except DataError as error:
                raise DataError(f"{PurePosixPath(file).name}: {error}") from None
        if len({(p.pixels.shape, p.pixels.dtype) for p in images.values()}) > 1:
            sizes = (f"{PurePosixPath(f).name} {p.pixels.shape[1]} {p.pixels.dtype}" for f, p in images.items())
            raise DataError(f"its faces differ in size or type: {', '.join(sizes)}")
        readings = group.cubes({file: image.pixels for file, image in images.items()})
        notes = [f"{PurePosixPath(file).name}: {note}" for file, image in images.items() for note in image.notes]
        fov = None if group.record is None else group.record.fov
        return _Read(
            scheme, check_reading(scheme, readings if self.scheme is None else {scheme: readings[scheme]}), fov, notes
        )

    def _read_layout(self, file: str, max_width: int) -> _Read:
        with open_regular(self.path / file) as opened:
            image = decode(opened, file, lambda w, h: _check_layout(w, h, max_width))
        strip = self.scheme if self.scheme in STRIPS else STRIPS[0]
        record = read_record(record_path(self.path / file, "strip"))
        name, cube, empty = cut(image.pixels, strip, record if self.scheme is None else None)
        if image.opaque is not None:
            _, opaque, blank = cut(image.opaque, strip, record)
            for mask in opaque.values():
                check_opaque(mask)
            empty = [cell for cell, mask in zip(empty, blank, strict=True) if mask.all()]
        if any(np.ptp(in_levels(cell), axis=(0, 1)).max() > 16 for cell in empty):
            height, width, _ = image.pixels.shape
            raise DataError(f"{width}x{height} has the shape of a cubemap's cross, but its corners are not empty")
        fov, notes = None if record is None else record.fov, list(image.notes)
        if not name.startswith("strip") or name == f"strip_{RECORDED}":
            return _Read(name, cube, fov, notes)
        readings = {strip: cube} | {o: cut(image.pixels, o)[1] for o in STRIPS}
        return _Read(name, check_reading(strip, readings if self.scheme is None else {strip: cube}), fov, notes)


def _existing(path: Path) -> list[Path]:
    return [path] if path.is_file() else []


def _check_face(width: int, height: int, max_width: int) -> None:
    if width != height:
        raise DataError(f"{width}x{height}: a face of a cubemap is square")
    _check_size(width, max_width)


def _check_layout(width: int, height: int, max_width: int) -> None:
    if layout_of(width, height) is None:
        raise DataError(f"{width}x{height} is not a cubemap: a cross is 4:3 or 3:4, a strip 6:1 or 1:6")
    across = {True: 4, False: 3}[width > height]
    _check_size(min(width, height) if 6 * min(width, height) == max(width, height) else width // across, max_width)


def _check_size(size: int, max_width: int) -> None:
    if 4 * size > max_width:
        raise DataError(
            f"faces of {size} make a panorama {4 * size} wide: shrink them, or raise --max-width {max_width}"
        )
    if 4 * size < MIN_WIDTH:
        raise DataError(f"faces of {size} are too small: at least {MIN_WIDTH // 4}")


def _with_house(entry: Entry) -> Entry:
    """An entry of Matterport3D gets its house as scene, the folder above matterport_skybox_images."""
    parent = PurePosixPath(entry.file).parent
    inside = parent.name == "matterport_skybox_images" and entry.scene == entry.file
    return replace(entry, scene=parent.parent.as_posix()) if inside and parent.parent.name else entry


def _endings() -> str:
    return "; ".join(" ".join(names[0] for names in tokens) for tokens in SCHEMES.values())
