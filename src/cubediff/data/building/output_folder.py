"""The output folder of a build: which files in it this project wrote, and the refusal of all others, so that no build
overwrites or removes a file of the user's."""

from collections.abc import Iterable
from pathlib import Path

from cubediff.data.format.folders import foreign_files, name_some
from cubediff.data.format.manifest import BUILDING, DUPLICATES, FORMAT, INDEX, MANIFEST, REJECTED, REPORT
from cubediff.utils.errors import DataError
from cubediff.utils.json_text import parse_json

PLAN = "plan.json"  # in BUILDING: everything that the bytes of the build depend on
REPLACED = "replaced.json"  # in BUILDING: the files of earlier builds in OUTPUT
CAPTIONS = "captions.jsonl"  # what --caption wrote


def check_output(output: Path, overwrite: bool) -> None:
    """Checks that shards may be written to a folder without losing anything.

    Args:
        output: The folder, which need not exist.
        overwrite: Whether a dataset of this project in it is replaced.

    Raises:
        DataError: If it is a file, or holds files that no build wrote; or if it holds latents, or a dataset and
            `overwrite` is off.
    """
    folder = output.resolve()  # also where `..` follows a folder that does not exist yet
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{output} is a file: OUTPUT is the folder to write shards into")
    refuse_foreign_files(output)
    manifest = _read_object(folder / MANIFEST)
    if manifest is not None and "latents" in manifest:
        raise DataError(f"{output} holds cached latents, which prepare does not replace: choose another folder")
    if manifest is not None and not overwrite and not (folder / BUILDING / MANIFEST).exists():
        raise DataError(f"{output} already holds shards ({MANIFEST}): choose another folder or pass --overwrite")


def refuse_foreign_files(output: Path) -> None:
    """Raises DataError if a folder holds files that neither a manifest nor the plan of a build of this project lists,
    since the build could replace them."""
    folder = output.resolve()
    foreign = [name for name in foreign_files(folder, listed_files(folder)) if not _is_own(folder / name)]
    if foreign:
        raise DataError(
            f"{output} holds {name_some(foreign)}, which no cubediff build wrote: choose an empty folder for OUTPUT, "
            "or move these files elsewhere (--overwrite replaces only shards that cubediff prepare built)"
        )


def check_separate(source: Path, output: Path) -> None:
    """Checks that a build does not write into its own source.

    Folders are compared by identity, so links, `..` and the case of names on some file systems do not matter.

    Raises:
        DataError: If `output` is `source`, or a folder above it.
    """
    inside, folder = source.resolve(), output.resolve()
    if _is_within(inside, folder):
        relation = "is SOURCE" if inside.samefile(folder) else f"contains SOURCE, {source}"
        raise DataError(
            f"OUTPUT {output} {relation}: the build would replace files that it reads; choose another folder, "
            f"such as {source.parent / (source.stem + '-shards')}"
        )


def check_files_outside(files: Iterable[Path], output: Path) -> None:
    """Raises DataError if one of a source's files, or the file that it is a link to, lies in the output folder."""
    own = output.resolve()
    if not own.exists():
        return
    folders: dict[Path, None] = {}
    for file in files:
        folders[file.parent] = None
        if file.is_symlink():
            folders[file.resolve().parent] = None
    known: dict[Path, bool] = {}
    for folder in folders:
        if _is_within(folder.resolve(), own, known):
            raise DataError(
                f"SOURCE reads files in {folder}, which belongs to OUTPUT {output}: choose another folder for OUTPUT"
            )


def _is_within(path: Path, output: Path, known: dict[Path, bool] | None = None) -> bool:
    """Whether an absolute path is `output` or lies below it; `known` keeps the answers for folders."""
    known = {} if known is None else known
    if path not in known:
        same = path.exists() and output.exists() and path.samefile(output)
        known[path] = same or (path != path.parent and _is_within(path.parent, output, known))
    return known[path]


def listed_files(output: Path) -> set[str]:
    """The names of the files in OUTPUT that the manifest of a dataset lists: of the finished one, of one that was
    replaced, and of one that is being moved there, as far as it has been moved."""
    build = output / BUILDING
    moved = {name for name in _manifest_files(build / MANIFEST) if not (build / name).exists()}
    names = _manifest_files(output / MANIFEST) | moved
    if names > moved:
        return names  # what was replaced is gone
    try:
        replaced: object = parse_json((build / REPLACED).read_bytes())
    except (OSError, ValueError):
        replaced = []
    return names | ({name for name in replaced if isinstance(name, str)} if isinstance(replaced, list) else set())


def _manifest_files(path: Path) -> set[str]:
    manifest = _read_object(path)
    if manifest is None or manifest.get("format") != FORMAT:
        return set()
    names = {MANIFEST, INDEX, REJECTED, DUPLICATES, REPORT}
    splits = manifest.get("splits")
    for split in splits.values() if isinstance(splits, dict) else ():
        shards = split.get("shards") if isinstance(split, dict) else None
        names |= {str(shard.get("file")) for shard in shards or () if isinstance(shard, dict)}
    return names


def _is_own(path: Path) -> bool:
    """Whether a file that no manifest lists was left by a build that failed or was interrupted."""
    if path.name == BUILDING:
        return _is_build_folder(path)
    if path.name == REJECTED:
        return all(set(line) == {"file", "reason"} for line in _read_lines(path))
    if path.name == CAPTIONS:
        return path.stat().st_size == 0 or any("captioned_by" in line for line in _read_lines(path))
    return False


def _is_build_folder(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    plan = _read_object(folder / PLAN)
    if plan is not None:
        return {"source", "val_fraction", "shard_size"} <= set(plan)
    started = folder / "panoramas"  # made before the plan
    return not foreign_files(folder, {started.name}) and not (started.is_dir() and any(started.iterdir()))


def _read_object(path: Path) -> dict[str, object] | None:
    """The JSON object in a file; None if there is no such file, or something else in it."""
    try:
        value: object = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _read_lines(path: Path) -> list[dict[str, object]]:
    """The objects in a file of JSON lines, where {} stands for other lines; an incomplete last line is left out."""
    lines: list[dict[str, object]] = []
    try:
        content = path.read_bytes()
    except OSError:
        return [{}]
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        try:
            value: object = parse_json(line)
        except ValueError:
            value = None
        lines.append(value if isinstance(value, dict) else {})
    return lines if lines or not content else [{}]
