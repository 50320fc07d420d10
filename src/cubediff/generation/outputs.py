"""The files of a generated panorama: JPEG with photo-sphere tags, faces, viewer page and record."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import PIL.Image

from cubediff.geometry.conventions import FACES
from cubediff.pages.viewer import write_viewer
from cubediff.utils.files import write_json

# Google's photo-sphere XMP metadata (developers.google.com/streetview/spherical-metadata): by these tags viewers
# recognise a panorama of the full sphere.
_GPANO = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"
 GPano:ProjectionType="equirectangular" GPano:UsePanoramaViewer="True"
 GPano:FullPanoWidthPixels="{width}" GPano:FullPanoHeightPixels="{height}"
 GPano:CroppedAreaImageWidthPixels="{width}" GPano:CroppedAreaImageHeightPixels="{height}"
 GPano:CroppedAreaLeftPixels="0" GPano:CroppedAreaTopPixels="0"
 GPano:PoseHeadingDegrees="0" GPano:PosePitchDegrees="0" GPano:PoseRollDegrees="0"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""


def write_panorama(path: Path, panorama: PIL.Image.Image) -> Path:
    """Writes an equirectangular panorama of the full sphere as a JPEG with photo-sphere (GPano) tags.

    Args:
        path: The file to write; its suffix must be that of a JPEG.
        panorama: RGB image, twice as wide as high.

    Returns:
        `path`.
    """
    xmp = _GPANO.format(width=panorama.width, height=panorama.height).encode()
    panorama.save(path, quality=95, subsampling=0, xmp=xmp)
    return path


def write_generation(
    folder: Path,
    panorama: PIL.Image.Image,
    faces: Sequence[PIL.Image.Image],
    record: Mapping[str, object],
    *,
    fov: float,
    prompt: str,
    save_faces: bool,
) -> list[Path]:
    """Writes a panorama, its faces, a viewer page and the record of its generation.

    `generation.json` is written last and atomically: where it exists the other files are complete.

    Args:
        folder: Folder to write to; it is created.
        panorama: Equirectangular RGB image.
        faces: Six square images, in FACES order.
        record: Content of `generation.json`.
        fov: Field of view of the faces, in degrees.
        prompt: Text that the viewer page shows.
        save_faces: Also write `faces/NAME.png`.

    Returns:
        The written files, with the folder `faces` in place of its six.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [write_panorama(folder / "panorama.jpg", panorama)]
    if save_faces:
        (folder / "faces").mkdir(exist_ok=True)
        for name, face in zip(FACES, faces, strict=True):
            face.save(folder / "faces" / f"{name}.png")
        written.append(folder / "faces")
    written.append(write_viewer(folder / "viewer.html", faces, fov=fov, prompt=prompt))
    write_json(folder / "generation.json", record, sync=True)
    return [*written, folder / "generation.json"]
