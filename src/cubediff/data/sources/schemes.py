"""Naming schemes of cubemaps, as tables: which file or part of an image is which face."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from cubediff.cubemaps.conventions import CONVENTIONS, engine_images, layout_of
from cubediff.cubemaps.files import CubemapRecord
from cubediff.cubemaps.layouts import Cube, from_engine, from_layout
from cubediff.data.sources.names import normal_form
from cubediff.geometry.conventions import FACES

# File name endings of front, right, back, left, up, down. In these schemes, faces are upright as seen from inside, and
# the lower edge of up and the upper edge of down touch front, so no face has to be rotated:
# axes: the cube-map tables of OpenGL and Direct3D, with +x to the right of +z (Humus' files; three.js flips x when it
#   samples a cubemap, because its axes are right-handed, so the files are the same: its manual, CubeTextureLoader).
# matterport: skybox 1 to 4 turn right, up's lower and down's upper edge touch 1 (demo_matterport.m of the data set's
#   PanoBasic: yaw −90° −90° 0° 90° 180° −90°; PanFusion's from_mp3d_skybox rotates U and D to 2 accordingly).
# words: as seen by a viewer inside. unity: as written in `CONVENTIONS`, also without the axes in the names.
# quake: `rt` is straight ahead and `bk` to its left (the tables of Quake II's sky code; Half-Life,
#   Source and most packs with these endings follow it). short: the same endings, named by a viewer inside.
_AXES = (("pz", "posz"), ("px", "posx"), ("nz", "negz"), ("nx", "negx"), ("py", "posy"), ("ny", "negy"))
_MATTERPORT = tuple((f"skybox{i}",) for i in (1, 2, 3, 4, 0, 5))
_UP, _DOWN = ("up", "top", "u"), ("down", "bottom", "d")
_WORDS = (("front", "f"), ("right", "r"), ("back", "b"), ("left", "l"), _UP, _DOWN)
_UNITY = (
    ("front", "front+z"),
    ("left", "left+x"),
    ("back", "back-z"),
    ("right", "right-x"),
    ("up", "top", "up+y"),
    ("down", "bottom", "down-y"),
)
_QUAKE = (("rt",), ("ft",), ("lf",), ("bk",), ("up",), ("dn",))
_SHORT = (("ft",), ("rt",), ("bk",), ("lf",), ("up",), ("dn",))

# Conventions with the names of `axes` that show other faces, or rotate them.
_ENGINES = ("three", "unreal", "blender")


def _tokens(convention: str) -> tuple[tuple[str, ...], ...]:
    """The names of a convention and their variants (posx), by face."""
    variants = {name: names for names in _AXES for name in names}
    shown = {image.face: variants[image.name] for image in CONVENTIONS[convention]}
    return tuple(shown[face] for face in FACES)


# If the names of two schemes are equal, the first scheme counts, unless the faces' edges fit the other better.
SCHEMES = {
    "axes": _AXES,
    "matterport": _MATTERPORT,
    "words": _WORDS,
    "unity": _UNITY,
    "quake": _QUAKE,
    "short": _SHORT,
    **{name: _tokens(name) for name in _ENGINES},
}

# Orders of the faces in strips: that of OpenGL (DDS, ffmpeg's c6x1, Unity), py360convert's, and those of engines.
STRIPS = ("opengl", "py360convert", *_ENGINES)

_LAYOUT_NAMES = {"cross": "horizontal_cross", "cross-vertical": "vertical_cross"}  # as shards record them


RECORDED = "recorded"  # the scheme of scenes whose record lists their files


class Group(NamedTuple):
    """A scene of six files: the file of each face, for each scheme in which the names are complete; and its record."""

    name: str
    readings: dict[str, dict[str, str]]
    record: CubemapRecord | None = None

    def cubes(self, pixels: Mapping[str, Shaped[np.ndarray, "s s ..."]]) -> dict[str, Cube]:
        """The upright faces in each scheme, of the pixels of the files."""
        return {
            scheme: upright({face: pixels[file] for face, file in reading.items()}, scheme, self.record)
            for scheme, reading in self.readings.items()
        }


def group_files(files: Iterable[str], only: str | None = None) -> tuple[list[Group], dict[str, str], list[str]]:
    """Groups file names into scenes; a scene is a folder, or a common prefix of names in a folder.

    Args:
        files: Names of image files, relative to the source.
        only: A key of SCHEMES; other values and None: try all schemes.

    Returns:
        The complete scenes; incomplete ones with the reason; and the files that belong to no scene.
    """
    schemes = {only: SCHEMES[only]} if only in SCHEMES else SCHEMES
    patterns = {scheme: _pattern(tokens) for scheme, tokens in schemes.items()}
    candidates: dict[str, dict[str, dict[str, list[str]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    spelt: dict[str, str] = {}  # names of scenes by their normal form
    files = list(files)
    for file in files:
        path = PurePosixPath(file)
        stem = file.removesuffix(path.suffix).rpartition("/")[2]
        for scheme, (pattern, faces) in patterns.items():
            if match := pattern.fullmatch(stem):
                name = scene_name("/".join(part for part in (*path.parent.parts, match["scene"]) if part))
                name = spelt.setdefault(normal_form(name), name)
                candidates[name][scheme][faces[match["token"].lower()]].append(file)
    groups: list[Group] = []
    broken: dict[str, str] = {}
    used: set[str] = set()
    for name, readings in sorted(candidates.items()):
        complete = {
            s: {f: r[f][0] for f in FACES} for s, r in readings.items() if all(len(r.get(f, ())) == 1 for f in FACES)
        }
        most = max(readings.values(), key=len)
        if complete:
            groups.append(Group(name, complete))
        elif len(most) >= 4:  # fewer are names with such an ending by chance
            missing = [face for face in FACES if face not in most]
            double = [face for face in FACES if len(most[face]) > 1]
            defect = f"no file for {', '.join(missing)}" if missing else f"several files for {', '.join(double)}"
            broken[name] = f"a cubemap with {defect}: expected one file for each of the six faces"
        for reading in complete.values() if complete else [most] if len(most) >= 4 else []:
            used.update(f for found in reading.values() for f in ([found] if isinstance(found, str) else found))
    return groups, broken, [f for f in files if f not in used]


def scene_name(path: str) -> str:
    """The name of a scene by its folder and prefix, relative to the source."""
    return "cubemap" if path in ("", ".") else path


def _pattern(tokens: tuple[tuple[str, ...], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    faces = {token: face for face, names in zip(FACES, tokens, strict=True) for token in names}
    long = "|".join(re.escape(t) for t in sorted(faces, key=len, reverse=True) if len(t) > 1)
    letters = "".join(t for t in faces if len(t) == 1)
    separated = rf"|(?<![^ ._-])[{letters}]" if letters else ""  # a lone letter must stand alone
    tail = r"(?:_sami)?"  # of Matterport3D
    return re.compile(rf"(?P<scene>.*?)[ ._-]*(?P<token>{long}{separated}){tail}", re.IGNORECASE | re.DOTALL), faces


def upright(cube: Cube, scheme: str, record: CubemapRecord | None = None) -> Cube:
    """The faces of six files, without the rotations of the scheme or the record."""
    images = record.images if scheme == RECORDED and record is not None else CONVENTIONS.get(scheme)
    if images is None:
        return cube
    return from_engine({image.name: cube[image.face] for image in images}, images)


def cut(
    image: Shaped[np.ndarray, "h w ..."], strip: str, record: CubemapRecord | None = None
) -> tuple[str, Cube, list[Shaped[np.ndarray, "s s ..."]]]:
    """Cuts an image with all six faces.

    Args:
        image: An image that has the shape of a layout.
        strip: Order of the faces in a strip, one of STRIPS.
        record: The record of the image, whose order counts, if it has one.

    Returns:
        Name of the layout, the faces (views), and the empty cells of a cross.
    """
    layout = layout_of(image.shape[1], image.shape[0]) or ""
    if record is not None and record.images is not None:
        return _LAYOUT_NAMES.get(layout, f"strip_{RECORDED}"), *from_layout(image, record.images)
    return _LAYOUT_NAMES.get(layout, f"strip_{strip}"), *from_layout(image, engine_images(strip))


def seam(cube: Cube) -> float:
    """Mean absolute difference along the twelve edges where faces meet, in the units of the faces.

    A few grey levels for a correct cube, tens for a wrongly assembled one.
    """
    front, right, back, left, up, down = (cube[face].astype(np.float32) for face in FACES)
    ring = [(a[:, -1], b[:, 0]) for a, b in ((front, right), (right, back), (back, left), (left, front))]
    above = [(up[-1], front[0]), (up[::-1, -1], right[0]), (up[0, ::-1], back[0]), (up[:, 0], left[0])]
    below = [(down[0], front[-1]), (down[:, -1], right[-1]), (down[-1, ::-1], back[-1]), (down[::-1, 0], left[-1])]
    return float(np.mean([np.abs(a - b).mean() for a, b in ring + above + below]))
