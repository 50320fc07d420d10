"""Captions in a .json or .txt file with the name of each panorama (a sidecar)."""

from collections import defaultdict
from pathlib import Path, PurePosixPath

from cubediff.cubemaps.files import RECORD, read_record
from cubediff.data.sources.base import Entry, Listing, Rejection
from cubediff.data.sources.listing import OTHER_IMAGES, FileTree
from cubediff.data.sources.names import FileNames, normal_form
from cubediff.data.sources.records import entry_from, has_caption, parse_object, read_text
from cubediff.images.reading import IMAGE_SUFFIXES
from cubediff.utils.errors import DataError

_SUFFIXES = (".json", ".txt")
_NO_CAPTIONS = ("readme", "license", "licence", "copying", "credits")  # texts about a folder


def read_sidecars(tree: FileTree, names: FileNames, captioned: bool) -> Listing:
    """Matches panoramas with the sidecars next to them, in any case of the suffix and any Unicode normal form.

    Args:
        tree: The folder of the panoramas.
        names: Names of the panoramas, or of cubemaps.
        captioned: As in `read_captions`.

    Returns:
        The entries; panoramas without a sidecar, and sidecars without a panorama in the folder of one.

    Raises:
        DataError: If `captioned` is on and there are no sidecars at all.
    """
    files = names.files
    found: dict[str, dict[str, str]] = defaultdict(dict)  # names of sidecars by stem and suffix
    for name in tree.files(*_SUFFIXES)[0]:
        suffix = PurePosixPath(name).suffix
        found[normal_form(name.removesuffix(suffix))].setdefault(suffix.lower(), name)
    sidecars = [found.get(normal_form(_stem(file)), {}) for file in files]
    if captioned and files and not any(sidecars):
        raise DataError(
            f"{tree.path} has no captions.jsonl, no prompts.txt and no .json or .txt next to a panorama, such as "
            f"{_stem(files[0])}.txt: pass a captions file with --captions FILE, or --captions none to build without"
        )
    entries: list[Entry] = []
    rejected: list[Rejection] = []
    for file, sidecar in zip(files, sidecars, strict=True):
        try:
            if not sidecar and captioned:
                stem = PurePosixPath(_stem(file)).name
                raise DataError(f"has no .json and no .txt next to it: expected {stem}.json or {stem}.txt")
            entries.append(entry_from(file, _read_record(tree.path, sidecar), captioned))
        except DataError as error:
            rejected.append(Rejection(file, str(error)))
    if captioned:
        rejected += _unmatched(tree.path, names, found)
    return entries, rejected


def _unmatched(source: Path, names: FileNames, found: dict[str, dict[str, str]]) -> list[Rejection]:
    """Sidecars without a panorama of their name, in folders with panoramas."""
    stems = {normal_form(_stem(file)) for file in (*names.files, *names.refused)}
    examples = {str(PurePosixPath(normal_form(file)).parent): _stem(file) for file in reversed(names.files)}
    rejected = []
    for stem in sorted(set(found) - stems):
        path = PurePosixPath(stem)
        example = examples.get(str(path.parent))
        if _is_cubemap_record(source, found[stem]):
            continue
        if example is not None and not path.name.lower().startswith(_NO_CAPTIONS):
            for name in found[stem].values():
                suffix = PurePosixPath(name).suffix
                reason = f"no panorama has this name: a file that would match is {PurePosixPath(example).name}{suffix}"
                rejected.append(Rejection(name, reason))
    return rejected


def _is_cubemap_record(source: Path, sidecar: dict[str, str]) -> bool:
    """Whether a sidecar is the record of a cubemap, which other readers check."""
    name = sidecar.get(".json", "")
    if PurePosixPath(name).name != RECORD and not name.endswith(f".{RECORD}"):
        return False
    try:
        return read_record(source / name) is not None
    except DataError:
        return True


def _stem(file: str) -> str:
    suffix = PurePosixPath(file).suffix
    return file.removesuffix(suffix) if suffix.lower() in (*IMAGE_SUFFIXES, *OTHER_IMAGES) else file


def _read_record(source: Path, sidecar: dict[str, str]) -> dict[str, object]:
    record: dict[str, object] = {}
    if ".json" in sidecar:
        text = _read(source / sidecar[".json"])
        try:
            record = parse_object(text)
        except DataError as error:
            name = PurePosixPath(sidecar[".json"]).name
            raise DataError(f"{name} next to it is not JSON: {error}") from None
    if ".txt" in sidecar and not has_caption(record):
        record["caption"] = _read(source / sidecar[".txt"])
    return record


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except DataError:
        raise DataError(f"{path.name} next to it is not UTF-8 text: save it as UTF-8") from None
