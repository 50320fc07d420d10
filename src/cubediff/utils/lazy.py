"""Lazy attributes of packages (PEP 562): importing a package stays fast, and a name is imported on first use."""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def lazy_attributes(
    package: str, locations: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose attributes are imported from their modules on first use.

    Args:
        package: Name of the package, for the error message.
        locations: For every attribute the module that defines it, or "module:name" where its name differs there.

    Returns:
        The two functions, to be assigned to `__getattr__` and `__dir__` of the package.
    """

    def get(attribute: str) -> object:
        if attribute not in locations:
            raise AttributeError(f"module {package!r} has no attribute {attribute!r}")
        module, _, name = locations[attribute].partition(":")
        value: object = getattr(import_module(module), name or attribute)
        return value

    def names() -> list[str]:
        return sorted({*vars(import_module(package)), *locations})

    return get, names


def extend_module(name: str, find: Callable[[str], object]) -> None:
    """Gives a module of another package further attributes: at once if it is imported already, else when it is.

    Args:
        name: Name of the module.
        find: Called with the name of an attribute that the module does not have; raises AttributeError if it has no
            such attribute either.
    """
    if (module := sys.modules.get(name)) is not None:
        _extend(module, find)
    else:
        sys.meta_path.insert(0, _ExtendedModule(name, find))


class _ExtendedModule(MetaPathFinder):
    """Finds one module as the other finders do, and extends it after its import."""

    def __init__(self, name: str, find: Callable[[str], object]) -> None:
        self.name, self.find = name, find
        self.searching = False

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the module, whose loader extends it; None for other modules."""
        if fullname != self.name or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_extend(module: ModuleType) -> None:
                execute(module)
                _extend(sys.modules[fullname], self.find)  # a module may have replaced itself by a lazy one

            setattr(spec.loader, "exec_module", execute_and_extend)  # noqa: B010 (a method of an instance)
        return spec


def _extend(module: ModuleType, find: Callable[[str], object]) -> None:
    own: Callable[[ModuleType, str], object] | None = getattr(type(module), "__getattr__", None)

    def get(module: ModuleType, name: str) -> object:
        if own is not None:
            with suppress(AttributeError):
                return own(module, name)
        return find(name)

    module.__class__ = type("ExtendedModule", (type(module),), {"__getattr__": get})
