"""Checks config values against the type annotations of their targets, before anything is instantiated."""

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import PurePath
from typing import Any

from hydra._internal.utils import _locate
from omegaconf import DictConfig, ListConfig, Node
from typing_extensions import Unpack

from cubediff.configs.targets import check_module, null_means_default

Scalar = bool | int | float | str | None
Annotation = object  # a class, or an object of `typing`
_TYPE_NAMES: dict[Annotation, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    type(None): "null",
}


def check_types(config: DictConfig) -> None:
    """Checks every `_target_` in a config: its module, and the numbers, strings, booleans and nulls of its arguments.

    The numbers, strings, booleans and nulls in a list are checked, too; nested objects are left to their own targets.

    Raises:
        ValueError: If a module is not on the Python path, or a value does not fit its annotation; names the key, the
            value and what is expected.
    """
    if "_target_" in config:
        check_module(str(config._target_), config._get_full_key("_target_"))
        annotations: dict[str, Annotation] = {}
        with suppress(ImportError, ValueError):  # `instantiate` reports them; hydra.utils.get_method would log them too
            if callable(target := _locate(str(config._target_))):
                annotations = _argument_annotations(target)
        for name, value in config.items():
            expected, key = annotations.get(str(name), object), config._get_full_key(name)
            if value is None and null_means_default(key):
                continue  # stands for the target's own default, see `build`
            _check_value(expected, value, key)
    for value in config.values():
        if isinstance(value, DictConfig):
            check_types(value)


def _check_value(expected: Annotation, value: object, key: str) -> None:
    if isinstance(value, Scalar) and not _accepts(expected, value):
        raise ValueError(f"{key}={'null' if value is None else value}: expected {_type_name(expected)}")
    if isinstance(value, ListConfig):
        origin, arguments = typing.get_origin(expected), typing.get_args(expected)
        options = arguments if origin in (typing.Union, types.UnionType) else (expected,)
        if all(option in _TYPE_NAMES or _is_literal_or_tensor(option) for option in options):
            raise ValueError(f"{key}={value}: expected {_type_name(expected)}")
        items = [typing.get_args(o)[0] for o in options if typing.get_origin(o) in (list, Sequence)]
        for number, item in enumerate(value):
            if len(items) == 1:
                _check_value(items[0], item, f"{key}[{number}]")


def _is_literal_or_tensor(annotation: Annotation) -> bool:
    return typing.get_origin(annotation) is typing.Literal or getattr(annotation, "__name__", "") == "Tensor"


def check_no_nan(config: DictConfig | ListConfig) -> None:
    """Checks that no number in a config is NaN.

    Raises:
        ValueError: If one is; names its key.
    """
    for key in range(len(config)) if isinstance(config, ListConfig) else list(config):
        node = config._get_node(key)
        if isinstance(node, DictConfig | ListConfig):
            if not (node._is_none() or node._is_missing() or node._is_interpolation()):
                check_no_nan(node)
        elif isinstance(value := node._value() if isinstance(node, Node) else None, float) and math.isnan(value):
            raise ValueError(f"{config._get_full_key(key)}=nan: expected a number")


def _argument_annotations(target: Callable[..., object]) -> dict[str, Annotation]:
    """Annotations by argument; a class that takes `**kwargs` also has the arguments of its base classes."""
    functions: list[Callable[..., object]] = [target]
    if isinstance(target, type):
        functions = [vars(kind)["__init__"] for kind in reversed(target.__mro__) if "__init__" in vars(kind)]
    if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(functions[-1]).parameters.values()):
        functions = functions[-1:]
    annotations: dict[str, Annotation] = {}
    for function in functions:
        with suppress(NameError, TypeError):  # annotations that only a type checker can resolve
            annotations |= _resolved_annotations(function)
    return annotations


def _resolved_annotations(function: Callable[..., object]) -> dict[str, Annotation]:
    """Type hints of a function; the keys of `**options: Unpack[SomeTypedDict]` count as arguments."""
    annotations: dict[str, Annotation] = {}
    for name, hint in typing.get_type_hints(function).items():
        if typing.get_origin(hint) is Unpack:
            annotations |= typing.get_type_hints(typing.get_args(hint)[0])
        else:
            annotations[name] = hint
    return annotations


def _accepts(expected: Annotation, value: Scalar) -> bool:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if expected in (Any, object):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(option, value) for option in arguments)
    if origin is typing.Annotated:
        return _accepts(arguments[0], value)
    if origin is typing.Literal:
        return value in arguments
    if value is None:
        return expected is type(None)
    if expected in (int, float, bool):
        return _is_number_of_type(expected, value)
    if expected is str:
        return not isinstance(value, bool)  # a name may look like a number
    if _is_collection(origin):
        return False
    if not isinstance(expected, type) or getattr(expected, "_is_protocol", False):
        return True
    return isinstance(value, expected) or issubclass(expected, PurePath | Enum)  # both are made from strings


def _is_collection(origin: Any) -> typing.TypeGuard[type[Iterable[Any]]]:
    return isinstance(origin, type) and issubclass(origin, Iterable)


def _is_number_of_type(expected: Annotation, value: Scalar) -> bool:
    """Booleans are not numbers; an integer is also a valid float."""
    if expected is bool or isinstance(value, bool):
        return expected is bool and isinstance(value, bool)
    return isinstance(value, int | float) if expected is float else isinstance(value, int)


def _type_name(annotation: Annotation) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        names = [_type_name(option) for option in arguments]
        return " or ".join(dict.fromkeys(name for name in names if name != "Tensor"))  # no config holds tensors
    if origin is typing.Literal:
        return " or ".join(str(option) for option in arguments)
    if _is_collection(origin):
        return "a mapping" if issubclass(origin, Mapping) else "a list"
    return _TYPE_NAMES.get(annotation) or str(getattr(origin or annotation, "__name__", annotation))
