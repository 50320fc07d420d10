"""What `cubediff convert` and `cubediff view` do: read, project and write one panorama."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from cubediff.cubemaps.conventions import check_layout
from cubediff.cubemaps.conversion import (
    Camera,
    CubeImages,
    PanoramaImage,
    Sphere,
    ViewImage,
    example_pixels,
    face_size,
    to_cube,
    to_panorama,
    to_view,
)
from cubediff.cubemaps.files import CubemapFormat, record_path, remove_cubemap, write_cubemap
from cubediff.data.converting.spheres import FORMS, Described, is_cubemap, open_sphere
from cubediff.data.sources.listing import OTHER_IMAGES
from cubediff.geometry.faces import FACES
from cubediff.images.gpano import full_sphere_xmp
from cubediff.images.hdr import tone_map
from cubediff.images.panorama_jpeg import check_opaque
from cubediff.images.pictures import (
    WRITTEN_SUFFIXES,
    Picture,
    Pixels,
    check_writable,
    encode_picture,
    write_picture,
)
from cubediff.images.reading import IMAGE_SUFFIXES, read_size
from cubediff.pages.viewer import write_viewer
from cubediff.utils.errors import DataError, naming
from cubediff.utils.text import printable

_IMAGES = (*IMAGE_SUFFIXES, *OTHER_IMAGES)
_VIEWER_SIZE = 2048  # pixels of a face; larger ones make pages of over 20 MB


@dataclass(frozen=True)
class Target:
    """What to write; None: the default of its form.

    Args:
        layout: One of FORMS, or an alias.
        convention: Of the faces, one of CONVENTIONS.
        face_fov: Field of view of the faces, in degrees.
        face_size: Side of the faces, in pixels.
        height: Height of a panorama or view, in pixels.
        width: Width of a view, in pixels.
        format: Format of six files, a suffix without its dot.
        tone_map: Whether radiance becomes 8-bit sRGB, by the tone map of `cubediff prepare`.

    Raises:
        DataError: If a value is unknown or out of range.
    """

    layout: str | None = None
    convention: str | None = None
    face_fov: float | None = None
    face_size: int | None = None
    height: int | None = None
    width: int | None = None
    format: str | None = None
    tone_map: bool = False

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in FORMS:
            object.__setattr__(self, "layout", check_layout(self.layout))
        if self.format is not None and f".{self.format}" not in WRITTEN_SUFFIXES:
            raise DataError(f"--format {self.format}: use one of {', '.join(s[1:] for s in WRITTEN_SUFFIXES)}")
        _ = self.cubemap  # checks the values

    @property
    def cubemap(self) -> CubemapFormat:
        """How faces are written."""
        layout = self.layout if self.layout not in (None, "panorama", "view") else "faces"
        return CubemapFormat(layout or "faces", self.convention or "cubediff", self.face_fov or 90.0)

    def check_used(self, form: str) -> None:
        """Raises DataError for a value that has no effect on a form."""
        used = {
            "panorama": {"height"},
            "view": {"height", "width"},
            "faces": {"convention", "face_fov", "face_size", "format"},
        }.get(form, {"convention", "face_fov", "face_size"})
        for name in ("convention", "face_fov", "face_size", "height", "width", "format"):
            if getattr(self, name) is not None and name not in used:
                raise DataError(f"--{name.replace('_', '-')} has no effect on the layout {form}: omit it")


def convert_sphere(source: Path, output: Path, described: Described, camera: Camera | None, target: Target) -> Path:
    """Converts a panorama, six faces or a pinhole view, in the bit depth of the input.

    Args:
        source: An image, or a folder of six.
        output: The file or folder to write.
        described: What is known about the source.
        camera: The camera of the view that is read or written; None: none, or the default.
        target: What to write.

    Returns:
        `output`.

    Raises:
        DataError: If the input, a value or the format of the output is invalid.
        OSError: If a file cannot be read or written.
    """
    _check_paths(source, output)
    if camera is not None and _is_view(source, described, target):
        described, camera = replace(described, layout="view", camera=camera), None
    sphere, profile = open_sphere(source, described)
    form = target.layout or _default_form(sphere, source, output, camera)
    if target.tone_map:
        with naming(source):
            sphere = _tone_mapped(sphere)
    target = replace(target, layout=form)
    target.check_used(form)
    if camera is not None and form != "view":
        raise DataError(f"--fov, --yaw, --pitch and --roll are those of a view: write --layout view, not {form}")
    suffix = _suffix(output, form, target, example_pixels(sphere))
    with naming(output):
        check_writable(suffix, Picture(example_pixels(sphere), profile))
    output.parent.mkdir(parents=True, exist_ok=True)
    if form == "panorama":
        pixels = to_panorama(sphere, target.height).pixels
        xmp = full_sphere_xmp(pixels.shape[1], pixels.shape[0])
        return write_picture(output, Picture(pixels, profile), xmp)
    if form == "view":
        view = to_view(sphere, camera or Camera(), target.width, target.height)
        return write_picture(output, Picture(view.pixels, profile))
    written_as = target.cubemap
    cube = to_cube(sphere, written_as.fov, target.face_size).cube
    _clear(output, form)
    return write_cubemap(output, cube, written_as, lambda p: encode_picture(Picture(p, profile), suffix), suffix)


def write_viewer_of(source: Path, page: Path | None, described: Described) -> Path:
    """Writes the viewer page of a panorama, six faces or a pinhole view.

    Args:
        source: An image, or a folder of six.
        page: The page to write; None: beside an image with its name, or viewer.html in a folder.
        described: What is known about the source.

    Returns:
        The page.

    Raises:
        DataError: If the input is invalid.
        OSError: If a file cannot be read or written.
    """
    page = page or (source / "viewer.html" if source.is_dir() else source.with_suffix(".html"))
    _check_paths(source, page)
    sphere, _ = open_sphere(source, described, as_srgb=True)
    if example_pixels(sphere).dtype == np.float32:
        with naming(source):
            sphere = PanoramaImage(tone_map(to_panorama(sphere).pixels[..., :3])[0])
    fov = sphere.fov if isinstance(sphere, CubeImages) else 90.0
    cube = to_cube(sphere, fov, min(face_size(sphere, fov), _VIEWER_SIZE)).cube
    faces = [Image.fromarray(_on_black(cube[face])) for face in FACES]
    return write_viewer(page, faces, fov=fov, title=printable(source.name))


def _tone_mapped(sphere: Sphere) -> PanoramaImage:
    """The panorama of a sphere of radiance, exposed by all of it."""
    if example_pixels(sphere).dtype != np.float32:
        raise DataError("--tone-map has no effect on levels: omit it")
    pixels = to_panorama(sphere).pixels
    if pixels.shape[2] == 4:
        check_opaque(pixels[..., 3] == 1)
    return PanoramaImage(tone_map(pixels[..., :3])[0])


def _on_black(pixels: Pixels) -> Pixels:
    if pixels.shape[2] == 3:
        return pixels
    return np.rint(pixels[..., :3] * (pixels[..., 3:] / np.float32(255))).astype(np.uint8)


def _check_paths(source: Path, output: Path) -> None:
    if source.resolve() == output.resolve():
        raise DataError(f"{output} is the input itself: write to another file or folder")


def _is_view(source: Path, described: Described, target: Target) -> bool:
    """Whether a camera is that of the input; otherwise it is that of the output."""
    if described.layout is not None or target.layout == "view" or source.is_dir():
        return described.layout == "view"
    if target.layout is not None:
        return True
    if not source.is_file() or record_path(source, "strip").is_file():
        return False
    with naming(source):
        width, height = read_size(source)
        return width != 2 * height and not is_cubemap(source)


def _default_form(sphere: Sphere, source: Path, output: Path, camera: Camera | None) -> str:
    if camera is not None and not isinstance(sphere, ViewImage):
        return "view"
    if output.suffix.lower() not in _IMAGES:
        return "faces"
    if isinstance(sphere, PanoramaImage):
        forms = ", ".join(form for form in FORMS if form != "faces")
        raise DataError(f"{source} is a panorama: say what {output.name} is with --layout {forms}")
    return "panorama"


def _suffix(output: Path, form: str, target: Target, pixels: Pixels) -> str:
    suffix = output.suffix.lower()
    if form != "faces":
        return suffix
    if suffix in _IMAGES:
        raise DataError(f"{output} is the name of an image, and six faces are a folder: omit {suffix}, use --format")
    return f".{target.format}" if target.format is not None else ".exr" if pixels.dtype == np.float32 else ".png"


def _clear(output: Path, form: str) -> None:
    """Removes the cubemap that an earlier call wrote to the same place."""
    if form == "faces" and output.is_dir() and not record_path(output).is_file():
        if any(path.suffix.lower() in IMAGE_SUFFIXES for path in output.iterdir()):
            raise DataError(f"{output} holds other images: choose a new folder")
    elif output.is_dir() and form != "faces":
        raise DataError(f"{output} is a folder: choose the name of an image")
    else:
        remove_cubemap(output)
