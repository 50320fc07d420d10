"""Damages the content of files as a full disk, a power loss or another program does."""

import copy
import json
from collections.abc import Iterator
from typing import Any

VALUES: tuple[Any, ...] = (None, True, -1, 0.5, "", "text", [], [1], {}, {"a": 1}, "\udcff", [[[1]]])


def cuts(content: bytes, count: int = 50) -> Iterator[bytes]:
    """The content cut at `count` places, and with zeros in place of the rest."""
    for place in sorted({len(content) * number // count for number in range(count)}):
        yield content[:place]
        yield content[:place] + b"\0" * (len(content) - place)
        yield b"\0" * place + content[place:]


def other_types(content: bytes) -> Iterator[bytes]:
    """A JSON file with every value, at any depth, replaced by values of other types, or removed."""
    whole = json.loads(content)
    yield from (json.dumps(value).encode() for value in VALUES)
    for path in list(_paths(whole)):
        for value in VALUES:
            changed = copy.deepcopy(whole)
            _container(changed, path)[path[-1]] = value
            yield json.dumps(changed).encode()
        changed = copy.deepcopy(whole)
        del _container(changed, path)[path[-1]]
        yield json.dumps(changed).encode()


def _container(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path[:-1]:
        value = value[name]
    return value


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (*path, name)
        yield from _paths(inner, (*path, name))
