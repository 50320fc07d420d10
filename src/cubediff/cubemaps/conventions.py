"""Six faces as the images that engines and viewers take: names, order and rotation of each; loads no library.

A convention lists six images in the order in which its engine takes them. Each shows one of FACES, rotated by quarter
turns; none is flipped. Cube maps are looked up by the table "Selection of cube map images" of the OpenGL specification,
which Direct3D shares; s grows along a row of the image, t from its first row on:
+x s = −z t = −y, −x s = z t = −y, +y s = x t = z, −y s = x t = −z, +z s = x t = −y, −z s = −x t = −y.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from cubediff.geometry.faces import FACE_ORDERS, FACES
from cubediff.utils.errors import DataError


class FaceImage(NamedTuple):
    """An image of a convention.

    Attributes:
        name: Name of its file, without suffix.
        face: The face that it shows, one of FACES.
        quarter_turns: Rotation of the face in the image, counterclockwise, in quarter turns.
    """

    name: str
    face: str
    quarter_turns: int = 0


Images = tuple[FaceImage, ...]  # the six of a convention, in its order

_AXES = ("px", "nx", "py", "ny", "pz", "nz")
_WORDS = tuple(FaceImage(face, face) for face in FACES)


def _axes(faces: str, turns: tuple[int, ...] = (0,) * 6) -> Images:
    """Images named by the axes +x −x +y −y +z −z that show these faces."""
    return tuple(map(FaceImage, _AXES, faces.split(), turns))


CONVENTIONS: Final[Mapping[str, Images]] = {
    "cubediff": _WORDS,
    # three.js looks a direction (x, y, z) up as (−x, y, z): its scenes are right-handed, cube maps are left-handed
    # (manual of CubeTextureLoader). Its camera looks along −z, so this project's (x, y, z) is (x, y, −z) there, and the
    # camera of a new scene sees the front face.
    "three": _axes("left right up down back front", (0, 0, 2, 2, 0, 0)),
    # A lookup in this project's axes by the table above. Right-handed scenes that look along −z negate z first.
    "opengl": _axes(" ".join(FACE_ORDERS["opengl"])),
    # This project's axes. "Skybox/6 Sided" has Left on +x and Right on −x (manual, shader-skybox-6sided); a single
    # image is a cross, or +x −x +y −y +z −z (manual, texture-type-cubemap).
    "unity": (
        FaceImage("Left+X", "right"),
        FaceImage("Right-X", "left"),
        FaceImage("Up+Y", "up"),
        FaceImage("Down-Y", "down"),
        FaceImage("Front+Z", "front"),
        FaceImage("Back-Z", "back"),
    ),
    # Unreal's x is forward, y right and z up; it looks its directions up by the table above. The rotations are those
    # of its manual (Creating Cubemaps): +x 90° counterclockwise, −x 90° clockwise, +y 180°, −y none, and ±z with the
    # side that touches +y at the top.
    "unreal": _axes("front back right left up down", (1, 3, 2, 0, 1, 1)),
    # "front, right, back, left, up, down" (manual, json-config-parameters, cubeMap), looked up with +z in front and +x
    # to its right (libpannellum.js).
    "pannellum": _WORDS,
    # Blender has no cube maps. Its Environment Texture shows the centre of a panorama along +x, the right half along −y
    # and the top along +z (gpu_shader_material_tex_environment.glsl); images named by these axes agree with it.
    "blender": _axes("front back left right up down"),
}

LAYOUTS: Final = ("faces", "cross", "cross-vertical", "strip")
LAYOUT_ALIASES: Final = {"dice": "cross"}  # py360convert's name

# A cross is the cube unfolded as seen from inside, in which no face is rotated but the lowest of the vertical one: it
# continues below down, upside down (HDRShop and its successors). All engines that read crosses read these.
CROSSES: Final[Mapping[str, tuple[tuple[str | None, ...], ...]]] = {
    "cross": ((None, "up", None, None), ("left", "front", "right", "back"), (None, "down", None, None)),
    "cross-vertical": ((None, "up", None), ("left", "front", "right"), (None, "down", None), (None, "back", None)),
}


def engine_images(convention: str) -> Images:
    """The images of a convention, in its order.

    Args:
        convention: A key of CONVENTIONS, or one of FACE_ORDERS, whose images are upright.

    Raises:
        DataError: If it is unknown.

    Example:
        >>> [image.face for image in engine_images("opengl")]
        ['right', 'left', 'up', 'down', 'front', 'back']
    """
    if convention in CONVENTIONS:
        return CONVENTIONS[convention]
    if convention in FACE_ORDERS:
        return tuple(FaceImage(face, face) for face in FACE_ORDERS[convention])
    raise DataError(f"unknown convention {convention!r}: use one of {', '.join(CONVENTIONS)}")


def check_layout(layout: str) -> str:
    """The name of a layout in LAYOUTS, for a name or an alias.

    Raises:
        DataError: If it is unknown.

    Example:
        >>> check_layout("dice")
        'cross'
    """
    layout = LAYOUT_ALIASES.get(layout, layout)
    if layout not in LAYOUTS:
        raise DataError(f"unknown layout {layout!r}: use one of {', '.join((*LAYOUTS, *LAYOUT_ALIASES))}")
    return layout


def layout_images(layout: str, images: Images) -> Images:
    """The images in one image, row by row: those of a cross do not depend on the convention.

    Args:
        layout: One of LAYOUTS.
        images: Those of the convention, which "strip" and "faces" use.
    """
    if layout not in CROSSES:
        return images
    faces = [face for row in CROSSES[layout] for face in row if face is not None]
    is_vertical = layout == "cross-vertical"
    return tuple(FaceImage(face, face, 2 if is_vertical and face == "back" else 0) for face in faces)


def layout_of(width: int, height: int) -> str | None:
    """The layout of an image with six faces by its size; None for other shapes.

    Example:
        >>> layout_of(400, 300), layout_of(300, 400), layout_of(100, 600), layout_of(400, 200)
        ('cross', 'cross-vertical', 'strip', None)
    """
    if 3 * width == 4 * height:
        return "cross"
    if 4 * width == 3 * height:
        return "cross-vertical"
    return "strip" if width == 6 * height or height == 6 * width else None
