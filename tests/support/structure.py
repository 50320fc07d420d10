"""Facts about a package's source code. `python tests/support/structure.py src/cubediff …` prints them side by side."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cached_property
from itertools import permutations
from pathlib import Path

LINES, PARAMETERS = 60, 8  # limits of a function; its docstring and `self` do not count
STABLE_DIFFUSION = re.compile(
    r"UNet2D|AutoencoderKL|CLIPText|CLIPTokenizer|attn[12]|\bto_(q|k|v|out)\b|conv_in|BasicTransformerBlock|ResnetBlock2D"
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Package:
    """The modules of a package, by names relative to it: "" is its own `__init__`, "data" that of a subpackage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {
            ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
            for path in sorted(folder.rglob("*.py"))
        }
        self.texts = {name: path.read_text(encoding="utf-8") for name, path in self.files.items()}
        self.trees = {name: ast.parse(text) for name, text in self.texts.items()}

    @property
    def top(self) -> list[str]:
        """The modules at the top of the package."""
        return [name for name in self.files if name and self.files[name].parent == self.folder]

    @property
    def subpackages(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("*/__init__.py"))

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """For every module the modules that it imports, also inside functions and for type checkers."""
        return {name: {*self._imports(tree)} for name, tree in self.trees.items()}

    def _imports(self, tree: ast.Module) -> Iterator[str]:
        prefix = f"{self.folder.name}."
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name[len(prefix) :] for alias in node.names if alias.name.startswith(prefix))
            elif isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(prefix):
                module = (node.module or "")[len(prefix) :]
                names = {f"{module}.{alias.name}".removeprefix(".") for alias in node.names} - {"__version__"}
                yield from (names & self.files.keys()) or ({module} if module else names)

    @cached_property
    def arrows(self) -> set[tuple[str, str]]:
        """Imports between the parts of the package: its subpackages and the modules at its top."""
        parts = {name: name.split(".")[0] for name in self.files}
        found = {(parts[name], parts[other]) for name, others in self.imports.items() for other in others if name}
        return {(a, b) for a, b in found if a != b}

    @property
    def cycles(self) -> list[list[str]]:
        """Sets of parts that import each other, directly or not."""
        reached = {a: {b for x, b in self.arrows if x == a} for a, _ in self.arrows}
        for middle in list(reached):
            for part in reached:
                if middle in reached[part]:
                    reached[part] |= reached[middle]
        cyclic = {part for part in reached if part in reached[part]}
        groups = {frozenset(b for b in cyclic if b in reached[a] and a in reached.get(b, ())) for a in cyclic}
        return sorted(sorted(group) for group in groups)

    @property
    def upward_arrows(self) -> int:
        """The fewest arrows that go up, over all orders of the parts; 0 without cycles."""
        return sum(
            min(sum((a, b) in self.arrows for i, a in enumerate(order) for b in order[i + 1 :]) for order in orders)
            for orders in (permutations(group) for group in self.cycles)
        )

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Every function and method under its qualified name, but those inside functions."""
        queue: list[tuple[str, ast.Module | ast.ClassDef]] = [*self.trees.items()]
        for prefix, node in queue:
            for child in node.body:
                if isinstance(child, Function):
                    yield f"{prefix}.{child.name}", child
                elif isinstance(child, ast.ClassDef):
                    queue.append((f"{prefix}.{child.name}", child))

    @property
    def long_functions(self) -> set[str]:
        return {name for name, function in self.functions() if lines(function) > LINES}

    @property
    def wide_functions(self) -> set[str]:
        return {name for name, function in self.functions() if parameters(function) > PARAMETERS}

    @property
    def stable_diffusion(self) -> set[str]:
        """Modules that name a class or layer of Stable Diffusion."""
        return {name for name, text in self.texts.items() if STABLE_DIFFUSION.search(text)}

    @property
    def mypy_overrides(self) -> int:
        """mypy's overrides in pyproject.toml that name this package's own modules."""
        project = (self.folder.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
        sections = project.split("[[tool.mypy.overrides]]")[1:]
        return sum(f'"{self.folder.name}.' in section.split("\n[")[0] for section in sections)

    def count(self, identifier: str) -> int:
        """How often code names an identifier, imports not counted."""
        nodes = (node for tree in self.trees.values() for node in ast.walk(tree))
        return sum(isinstance(node, ast.Name) and node.id == identifier for node in nodes)


def lines(function: Function) -> int:
    """Lines of a function without its docstring and the declarations of a command's options."""
    left_out: list[ast.stmt | ast.arg] = [arg for arg in arguments(function) if is_option(arg)]
    if ast.get_docstring(function):
        left_out.append(function.body[0])
    return extent(function) - sum(map(extent, left_out))


def extent(node: ast.stmt | ast.arg) -> int:
    """Lines that a node spans."""
    return 1 + (node.end_lineno or node.lineno) - node.lineno


def parameters(function: Function) -> int:
    """Parameters of a function without `self` and a command's options; `*args` and `**kwargs` count as one each."""
    named = [arg for arg in arguments(function) if arg.arg not in ("self", "cls") and not is_option(arg)]
    return len(named) + sum(arg is not None for arg in (function.args.vararg, function.args.kwarg))


def arguments(function: Function) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def is_option(argument: ast.arg) -> bool:
    """Whether an argument is an option or argument of a Typer command."""
    return argument.annotation is not None and "typer." in ast.unparse(argument.annotation)


def facts(package: Package) -> dict[str, int]:
    return {
        "modules": len(package.files),
        "modules at the top": len(package.top),
        "subpackages": len(package.subpackages),
        "import arrows between parts": len(package.arrows),
        "upward arrows": package.upward_arrows,
        "cycles": len(package.cycles),
        f"functions over {LINES} lines": len(package.long_functions),
        f"functions over {PARAMETERS} parameters": len(package.wide_functions),
        "Any": package.count("Any"),
        "type: ignore": sum(text.count("# type: ignore") for text in package.texts.values()),
        "mypy overrides of own modules": package.mypy_overrides,
        "modules that name Stable Diffusion's parts": len(package.stable_diffusion),
    }


def main() -> None:
    packages = [Package(Path(folder).resolve()) for folder in sys.argv[1:]]
    columns = [facts(package) for package in packages]
    for name in columns[0]:
        print(f"{name:44}", *(f"{column[name]:6}" for column in columns))
    for package in packages:
        print(f"\n{package.folder}")
        for title, names in (
            ("cycles", [" ↔ ".join(cycle) for cycle in package.cycles]),
            (f"over {LINES} lines", sorted(package.long_functions)),
            (f"over {PARAMETERS} parameters", sorted(package.wide_functions)),
            ("name Stable Diffusion's parts", sorted(package.stable_diffusion)),
        ):
            print(f"  {title}: {', '.join(names) or 'none'}")


if __name__ == "__main__":
    main()
