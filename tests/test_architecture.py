"""The package's layers: every import, also one inside a function, goes to a lower layer, and none closes a cycle."""

import ast
import graphlib
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src/cubediff"
# From the lowest; packages of one line do not import each other.
LAYERS = [
    ("utils",),
    ("configs",),
    ("images",),
    ("geometry",),
    ("models",),
    ("diffusion",),
    ("pipelines",),
    ("pages",),
    ("data", "generation.outputs"),
    ("training",),
    ("planning",),
    ("runs", "generation.jobs", "generation.run"),
]
COMMANDS = {"train", "generate", "prepare", "cache", "plan", "sweep_report", "dashboard"}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.parent.name != "conf"
)


def source(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the package that a module imports, those for type checkers and inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("cubediff")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cubediff"):
            assert node.level == 0
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in inner if name.removeprefix("cubediff.") in MODULES}
            found |= known or {str(node.module)}
    return frozenset(name.removeprefix("cubediff").removeprefix(".") for name in found) - {""}


def layer(module: str) -> int | None:
    """The number of a module's layer; None for the modules at the top of the package."""
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return None


def test_every_module_of_a_subpackage_has_a_layer() -> None:
    below = [name for name in MODULES if "." in name]
    assert len(below) > 80
    assert [name for name in below if layer(name) is None] == []


@pytest.mark.parametrize("module", [name for name in MODULES if name and layer(name) is not None])
def test_imports_go_down(module: str) -> None:
    own = layer(module)
    assert own is not None
    for other in imports(module):
        theirs = layer(other)
        assert theirs is not None, f"{module} imports {other}, which is at the top of the package"
        same = module.split(".")[0] == other.split(".")[0]
        assert theirs < own or (theirs == own and same), f"{module} imports {other}, which is no lower"


def test_no_import_closes_a_cycle() -> None:
    def behind(module: str) -> set[str]:
        """A package's own __init__ is run first, but a module of it is no part of what the package imports."""
        return {other for other in imports(module) if other != module}

    graphlib.TopologicalSorter({module: behind(module) for module in MODULES}).prepare()


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name and "." not in name and source(name).stem != "__init__"]
)
def test_the_top_of_the_package_is_commands_and_old_names(module: str) -> None:
    text = source(module).read_text(encoding="utf-8")
    tree = ast.parse(text)
    if module not in COMMANDS | {"cli", "__main__"}:
        assert len(text.splitlines()) <= 5
        assert all(isinstance(node, ast.ImportFrom | ast.Expr) for node in tree.body)
        return
    other = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    lines = len(text.splitlines()) - sum(1 + (node.end_lineno or 0) - node.lineno for node in other)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            options = [
                arg for arg in node.args.args if "typer." in (ast.unparse(arg.annotation) if arg.annotation else "")
            ]
            lines -= sum(1 + (arg.end_lineno or 0) - arg.lineno for arg in options)
    assert lines < 100, f"{module} has {lines} lines besides its options and imports"
