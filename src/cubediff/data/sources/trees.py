"""The trees of data sets as they are distributed, which hold more images than the panoramas: Structured3D (rendered
rooms) and Matterport3D (skyboxes of scanned houses)."""

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from cubediff.data.sources.base import Entry, Listing, Rejection
from cubediff.data.sources.captions import read_captions
from cubediff.data.sources.cubemaps import Cubemaps
from cubediff.data.sources.equirect import EquirectFolder
from cubediff.data.sources.listing import FileTree
from cubediff.data.sources.names import FileNames
from cubediff.data.sources.schemes import Group, group_files
from cubediff.images.reading import IMAGE_SUFFIXES
from cubediff.utils.errors import DataError

STRUCTURED3D, MATTERPORT3D = "structured3d", "matterport3d"  # values of --source

# scene_<ID>/2D_rendering/<room>/panorama/<empty, simple, full>/rgb_<cold, raw, warm>light.png
_ROOM = re.compile(
    r"(?P<room>(?:(?P<scene>(?:.*/)?scene_\d+)/)?2D_rendering/[^/]+/panorama)/(?:empty|simple|full)/rgb_\w+\.png",
    re.DOTALL,
)
_RENDERING = "full/rgb_rawlight.png"  # with all furniture, in the light that the renderer computed

# <scan>/matterport_skybox_images/<panorama>_skybox<0 to 5>_sami.jpg
_SKYBOX = re.compile(r"(?:(?P<scan>.*)/)?matterport_skybox_images/[^/]+", re.DOTALL)


def tree_of(files: Iterable[str]) -> tuple[str | None, list[str]]:
    """The data set whose tree holds images of these names, as a value of --source, or None; and the other images."""
    files = list(files)
    for kind, pattern, group in ((STRUCTURED3D, _ROOM, "scene"), (MATTERPORT3D, _SKYBOX, "scan")):
        folders = {match[group] for name in files if (match := pattern.fullmatch(name))}
        if folders:
            return kind, [] if None in folders else [name for name in files if not _is_below(name, folders)]
    return None, files


class Structured3D(EquirectFolder):
    """The panoramas of furnished rooms, `full/rgb_rawlight.png`; rooms of a scene stay on one side of the split.

    Depth, normals, perspective images, and other lightings and furnishings are not read.
    """

    def entries(self) -> Listing:
        tree = self.tree or FileTree(self.path)
        files, rejected = tree.files(*IMAGE_SUFFIXES)
        rooms = sorted({match["room"] for name in files if (match := _ROOM.fullmatch(name))})
        if not rooms and not rejected:
            raise DataError(f"{self.path} holds no scene of Structured3D (scene_00000/2D_rendering/ROOM/panorama)")
        known = set(files)
        panoramas = [f"{room}/{_RENDERING}" for room in rooms if f"{room}/{_RENDERING}" in known]
        missing = [room for room in rooms if f"{room}/{_RENDERING}" not in known]
        rejected += [Rejection(room, f"a room without {_RENDERING}") for room in missing]
        names = FileNames(panoramas, rejected=rejected)
        entries, uncaptioned = read_captions(tree, names, self.captions, self.captioned)
        return [_with_scene(entry) for entry in entries], rejected + uncaptioned


class Matterport3D(Cubemaps):
    """The skyboxes in the folders `matterport_skybox_images` of the scans; those of a scan stay on one side of the
    split.

    The images of the cameras, depth and meshes are not read.
    """

    @cached_property
    def _listing(self) -> tuple[dict[str, Group], dict[str, str], list[str], list[Rejection]]:
        files, rejected = self._tree.files(*IMAGE_SUFFIXES)
        groups, broken, others = group_files([name for name in files if _SKYBOX.fullmatch(name)], "matterport")
        reason = "belongs to no complete skybox: expected PANORAMA_skybox0_sami.jpg to PANORAMA_skybox5_sami.jpg"
        rejected += [Rejection(name, reason) for name in others]
        return {group.name: group for group in groups}, broken, [], rejected


def _is_below(name: str, folders: set[str]) -> bool:
    return any(str(parent) in folders for parent in PurePosixPath(name).parents)


def _with_scene(entry: Entry) -> Entry:
    match = _ROOM.fullmatch(entry.file)
    in_scene = match is not None and match["scene"] and entry.scene == entry.file
    return replace(entry, scene=match["scene"]) if match and in_scene else entry


def open_tree(kind: str, tree: FileTree, captions: Path | None, captioned: bool) -> Structured3D | Matterport3D:
    """Opens the tree of a data set, given as a value of --source."""
    if kind == STRUCTURED3D:
        return Structured3D(tree.path, captions, captioned, tree)
    return Matterport3D(tree.path, captions, captioned, "matterport", tree)
