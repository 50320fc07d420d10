"""Whether the values of a configuration have the types that the objects made of it are annotated with; what does not is
told by its key before anything is made."""

import inspect
import types
import typing
from contextlib import suppress
from enum import Enum
from pathlib import PurePath
from typing import Any

from hydra.utils import get_method
from omegaconf import DictConfig
from typing_extensions import Unpack

SCALARS = (bool, int, float, str)


def check_types(config: DictConfig) -> None:
    """Raises ValueError where a number, a text or nothing (null) stands for an argument that is annotated otherwise.

    Looks at every object that `config` makes; lists and objects are left to what takes them.
    """
    if "_target_" in config:
        expected = {}
        with suppress(ImportError):  # told where it is made
            expected = _annotations(get_method(config._target_))
        for name, value in config.items():
            if isinstance(value, (*SCALARS, type(None))) and not _accepts(expected.get(str(name), Any), value):
                key = config._get_full_key(name)
                raise ValueError(f"{key}={'null' if value is None else value}: give {_told(expected[str(name)])}")
    for value in config.values():
        if isinstance(value, DictConfig):
            check_types(value)


def _annotations(target: Any) -> dict[str, Any]:
    """Of the arguments of a function or class, and of its bases where it passes others on to them."""
    made: list[Any] = (
        [vars(c).get("__init__") for c in reversed(target.__mro__)] if isinstance(target, type) else [target]
    )
    made = [function for function in made if function is not None]
    if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(made[-1]).parameters.values()):
        made = made[-1:]
    expected: dict[str, Any] = {}
    for function in made:
        with suppress(NameError, TypeError):  # annotations that a type checker alone can read
            hints = typing.get_type_hints(function)
            unpacked = [hints.pop(name) for name, hint in list(hints.items()) if typing.get_origin(hint) is Unpack]
            for hint in unpacked:
                expected |= typing.get_type_hints(typing.get_args(hint)[0])
            expected |= hints
    return expected


def _accepts(expected: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected in (Any, object):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(one, value) for one in arguments)
    if origin is typing.Annotated:
        return _accepts(arguments[0], value)
    if origin is typing.Literal:
        return value in arguments
    if value is None:
        return expected is type(None)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if expected is bool:
        return isinstance(value, bool)
    if expected is str:
        return not isinstance(value, bool)  # a name may look like a number
    if origin in (list, tuple, dict, set):
        return False
    if not isinstance(expected, type) or getattr(expected, "_is_protocol", False):
        return True
    return isinstance(value, expected) or issubclass(expected, PurePath | Enum)  # which are made of texts


def _told(expected: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_told(one) for one in arguments))
    if origin is typing.Literal:
        return " or ".join(str(one) for one in arguments)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return names.get(expected) or str(getattr(origin or expected, "__name__", expected))
