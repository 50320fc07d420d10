"""Lazy attributes of packages (PEP 562): importing a package stays fast, and a name is imported on first use."""

from collections.abc import Callable, Mapping
from importlib import import_module


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
