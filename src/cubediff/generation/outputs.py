"""The files of a generated panorama: image with photo-sphere tags, faces, viewer page and record."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch

from cubediff.cubemaps.files import CubemapFormat, remove_cubemap, write_cubemap
from cubediff.cubemaps.layouts import Cube
from cubediff.generation.options import MAX_HEIGHTS
from cubediff.generation.records import RECORD
from cubediff.geometry.conventions import FACES
from cubediff.geometry.cubes import cube_to_cube
from cubediff.images.colour import Levels
from cubediff.images.gpano import Pose, full_sphere_xmp
from cubediff.images.writing import encode_png
from cubediff.pages.viewer import write_viewer
from cubediff.utils.files import remove_partial, write_json


class EditedPanorama(NamedTuple):
    """A panorama that was edited.

    Attributes:
        levels: (h, 2h, 3) in the bit depth of its input.
        profile: The ICC profile of the levels; None for sRGB.
        pose: Heading, pitch and roll of the camera, degrees.
    """

    levels: Levels
    profile: bytes | None
    pose: Pose


def write_panorama(path: Path, panorama: PIL.Image.Image | EditedPanorama) -> Path:
    """Writes an equirectangular panorama of the full sphere with photo-sphere (GPano) tags.

    Args:
        path: The file to write; its suffix is .jpg, .webp (both of quality 95) or .png. An edited panorama is a .png.
        panorama: RGB image, twice as wide as high.

    Returns:
        `path`.
    """
    if isinstance(panorama, EditedPanorama):
        height, width, _ = panorama.levels.shape
        xmp = full_sphere_xmp(width, height, panorama.pose)
        path.write_bytes(encode_png(panorama.levels, panorama.profile, xmp))
        return path
    xmp = full_sphere_xmp(panorama.width, panorama.height)
    if path.suffix == ".png":
        path.write_bytes(encode_png(np.asarray(panorama), xmp=xmp))
    elif path.suffix == ".webp":
        panorama.save(path, quality=95, xmp=xmp.encode())
    else:
        panorama.save(path, quality=95, subsampling=0, xmp=xmp.encode())
    return path


def write_generation(
    folder: Path,
    panorama: PIL.Image.Image | EditedPanorama,
    faces: Sequence[PIL.Image.Image],
    record: Mapping[str, object],
    *,
    fov: float,
    prompt: str,
    save_faces: CubemapFormat | None,
    format: str = "jpg",
) -> list[Path]:
    """Writes a panorama, its faces, a viewer page and the record of its generation.

    `generation.json` is written last and atomically: where it exists the other files are complete. The files of an
    earlier panorama are removed first.

    Args:
        folder: Folder to write to; it is created.
        panorama: Equirectangular RGB image.
        faces: Six square images, in FACES order.
        record: Content of `generation.json`.
        fov: Field of view of the faces, in degrees.
        prompt: Text that the viewer page shows.
        save_faces: Also write the faces: to the folder `faces`, or as the image `cubemap.png`.
        format: Of the panorama's file, one of `MAX_HEIGHTS`.

    Returns:
        The written files, with the folder `faces` in place of its six.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_earlier(folder)
    written = [write_panorama(folder / f"panorama.{format}", panorama)]
    if save_faces is not None:
        path = folder / ("faces" if save_faces.layout == "faces" else "cubemap.png")
        written.append(write_cubemap(path, _with_fov(faces, fov, save_faces.fov), save_faces, encode_png))
    written.append(write_viewer(folder / "viewer.html", faces, fov=fov, prompt=prompt))
    write_json(folder / RECORD, record, sync=True)
    return [*written, folder / RECORD]


def _remove_earlier(folder: Path) -> None:
    """Removes the files of another panorama, its record first: an interruption must not leave files of both."""
    for name in (RECORD, *(f"panorama.{suffix}" for suffix in MAX_HEIGHTS), "viewer.html"):
        (folder / name).unlink(missing_ok=True)
        remove_partial(folder / name)
    for name in ("faces", "cubemap.png"):
        remove_cubemap(folder / name)


def _with_fov(faces: Sequence[PIL.Image.Image], own: float, fov: float) -> Cube:
    """Faces with a field of view, resampled unless it is their own: then the pixels stay as they are."""
    pixels = np.stack([np.asarray(face) for face in faces])
    if fov != own:
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)[None]
        pixels = cube_to_cube(tensor, pixels.shape[1], fov, own)[0].permute(0, 2, 3, 1).numpy()
    return dict(zip(FACES, pixels, strict=True))
