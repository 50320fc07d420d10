"""What other packages register in the entry-point groups of this one."""

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import NamedTuple


class Plugin(NamedTuple):
    """An object of another package.

    Attributes:
        name: The name that it is registered by.
        where: What it is, its name and its module, for messages.
        value: The object.
    """

    name: str
    where: str
    value: object


def plugins(group: str, kind: str) -> Iterator[Plugin]:
    """The objects that installed packages register in an entry-point group.

    Args:
        group: The group.
        kind: What they are, for messages: "backbone".

    Raises:
        ValueError: If one cannot be imported.
    """
    for entry in entry_points(group=group):
        where = f"the {kind} {entry.name} = {entry.value}"
        try:
            value = entry.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{where} cannot be imported ({error}): repair or remove its package") from error
        yield Plugin(entry.name, where, value)
