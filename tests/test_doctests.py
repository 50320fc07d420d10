"""The examples in the package's docstrings run and print the documented output."""

import ast
import doctest
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"


def examples() -> Iterator[tuple[str, str]]:
    """Module and qualified name of every docstring with an example.

    They are found in the source, so that modules without an example are not imported and no decorator hides one.
    """
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        yield from ((module, name) for name in documented(ast.parse(path.read_text(encoding="utf-8"))))


def documented(node: ast.Module | ast.ClassDef | ast.FunctionDef, prefix: str = "") -> Iterator[str]:
    """Qualified names of a node and its members whose docstrings hold an example."""
    if ">>>" in (ast.get_docstring(node) or ""):
        yield prefix.removesuffix(".")
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield from documented(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize(("module", "name"), list(examples()))
def test_example(module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples may write files
    owner = imported = import_module(module)
    for part in filter(None, name.split(".")):
        owner = getattr(owner, part)
    report: list[str] = []
    example = doctest.DocTestParser().get_doctest(owner.__doc__ or "", vars(imported).copy(), name, module, 0)
    assert example.examples
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=report.append)
    assert report == []
