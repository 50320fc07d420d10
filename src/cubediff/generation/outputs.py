"""What a generation leaves in its folder: the panorama as a photo sphere, faces, a page to look around in, a record."""

from pathlib import Path
from typing import Any

import PIL.Image

from cubediff.geometry.conventions import FACES
from cubediff.pages.viewer import write_viewer
from cubediff.utils.files import write_json

# Google's photo-sphere XMP metadata (developers.google.com/streetview/spherical-metadata), by which viewers know a
# panorama that covers the whole sphere.
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
    """A JPEG with photo-sphere (GPano) tags, of an equirectangular image of the whole sphere."""
    xmp = _GPANO.format(width=panorama.width, height=panorama.height).encode()
    panorama.save(path, quality=95, subsampling=0, xmp=xmp)
    return path


def write_generation(
    folder: Path,
    panorama: PIL.Image.Image,
    faces: list[PIL.Image.Image],
    record: dict[str, Any],
    *,
    fov: float,
    prompt: str,
    save_faces: bool,
) -> list[Path]:
    """Writes panorama.jpg, viewer.html, if asked faces/NAME.png, and last, in one go, generation.json: where it is, the
    others are whole. Returns what it wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [write_panorama(folder / "panorama.jpg", panorama)]
    if save_faces:
        (folder / "faces").mkdir(exist_ok=True)
        for name, face in zip(FACES, faces, strict=True):
            face.save(folder / "faces" / f"{name}.png")
        written.append(folder / "faces")
    written.append(write_viewer(folder / "viewer.html", faces, fov=fov, prompt=prompt))
    write_json(folder / "generation.json", record)
    return [*written, folder / "generation.json"]
