"""Sources of other packages, named on the command line as `module:Class` or by the entry-point group
`cubediff.sources`."""

import inspect
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from cubediff.data.sources.base import Source, check_source
from cubediff.utils.errors import DataError

GROUP = "cubediff.sources"


def is_class_path(name: str) -> bool:
    """Whether a name has the form `package.module:Class`."""
    return re.fullmatch(r"[\w.]+:[\w.]+", name) is not None


def installed_sources() -> dict[str, EntryPoint]:
    """The entry points that installed packages register in the group `cubediff.sources`, by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def open_custom(name: str, path: Path, captions: Path | None, captioned: bool) -> Source:
    """Creates the source `Class(path, captions, captioned)` of another package.

    Args:
        name: `module:Class`, where the module may be in the working directory, or the name of an entry point.
        path: The folder of the panoramas.
        captions: A captions file, or None.
        captioned: Whether panoramas without a caption are rejected.

    Raises:
        DataError: If the class cannot be imported, takes other arguments, or does not fulfil `Source`.
    """
    source_class = _load(name)
    try:
        inspect.signature(source_class).bind(path, captions, captioned)
    except TypeError as error:
        raise DataError(
            f"--source {name}: the class is called as Class(folder, captions_file_or_None, captioned), "
            f"which its signature does not allow ({error})"
        ) from None
    return check_source(source_class(path, captions, captioned), name)


def _load(name: str) -> Callable[..., object]:
    point = EntryPoint(name, name, GROUP) if is_class_path(name) else installed_sources()[name]
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:  # a console script has its own folder there instead
        sys.path.insert(0, folder)
    try:
        loaded: object = point.load()
    except (ImportError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and f"{point.module}.".startswith(f"{error.name}."):
            raise DataError(
                f"--source {name}: there is no module {error.name} in the working directory or on the Python path: "
                "start the command with PYTHONPATH=FOLDER, the folder that holds it"
            ) from None
        raise DataError(f"--source {name}: {point.value} cannot be imported ({error})") from error
    if not callable(loaded):
        raise DataError(f"--source {name}: {point.value} is not a class")
    return loaded
