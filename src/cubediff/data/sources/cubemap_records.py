"""Scenes of six files, by the records beside them (faces.json) and by the names of the files."""

from collections.abc import Iterable
from pathlib import PurePosixPath

from cubediff.cubemaps.files import RECORD, CubemapRecord, read_record
from cubediff.data.sources.listing import FileTree
from cubediff.data.sources.schemes import RECORDED, Group, group_files, scene_name
from cubediff.utils.errors import DataError


def find_scenes(
    tree: FileTree, files: Iterable[str], only: str | None = None
) -> tuple[list[Group], dict[str, str], list[str]]:
    """Groups the images of a folder into scenes as `group_files` does, by their records where they have one.

    Args:
        tree: The folder.
        files: Names of its image files.
        only: As in `group_files`; records then give the field of view alone.

    Returns:
        The complete scenes; incomplete ones, and those whose record is invalid, with the reason; and the files that
        belong to no scene.
    """
    files = list(files)
    records: dict[str, CubemapRecord] = {}
    groups: list[Group] = []
    broken: dict[str, str] = {}
    for folder in sorted(str(PurePosixPath(f).parent) for f in tree.files(".json")[0] if _is_record(f)):
        within = [file for file in files if str(PurePosixPath(file).parent) == folder]
        try:
            record = read_record(tree.path / folder / RECORD)
            if record is None or not within:
                continue
            records[folder] = record
            if record.images is None or only is not None:
                continue
            group = _recorded_group(folder, within, record)
            groups.append(group)
            used = {*group.readings[RECORDED].values()}
        except DataError as error:
            broken[scene_name(folder)] = str(error)
            used = {*within}
        files = [file for file in files if file not in used]
    named, incomplete, rest = group_files(files, only)
    for group in named:
        folders = {str(PurePosixPath(file).parent) for file in next(iter(group.readings.values())).values()}
        record = records.get(folders.pop()) if len(folders) == 1 else None
        groups.append(group._replace(record=record))
    return sorted(groups), broken | incomplete, rest


def _is_record(file: str) -> bool:
    return PurePosixPath(file).name == RECORD


def _recorded_group(folder: str, files: list[str], record: CubemapRecord) -> Group:
    """The scene of a record.

    Raises:
        DataError: If one of its files is missing, or there are several of its name.
    """
    found: dict[str, list[str]] = {}
    for file in files:
        found.setdefault(PurePosixPath(file).stem, []).append(file)
    reading: dict[str, str] = {}
    for image in record.images or ():
        matches = found.get(image.name, [])
        if len(matches) != 1:
            number = "no file" if not matches else f"{len(matches)} files"
            raise DataError(f"{RECORD} lists {image.name}, and there is {number} of this name: correct or remove it")
        reading[image.face] = matches[0]
    return Group(scene_name(folder), {RECORDED: reading}, record)
