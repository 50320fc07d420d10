"""The package's architecture: layers that import only lower ones, thin commands at the top, short functions."""

import ast
import graphlib
import tomllib
from pathlib import Path

import pytest
from support.structure import LINES, PARAMETERS, Package, extent, is_option

ROOT = Path(__file__).parents[1]
PACKAGE = Package(ROOT / "src/cubediff")
# From the lowest; packages of one line do not import each other.
LAYERS = [
    ("utils",),
    ("configs",),
    ("images",),
    ("geometry",),
    ("cubemaps",),
    ("models",),
    ("diffusion",),
    ("pipelines",),
    ("pages",),
    ("data", "generation.options", "generation.outputs", "generation.records"),
    ("evaluation",),
    ("training",),
    ("planning",),
    ("generation",),
    ("runs",),
]
COMMANDS = {"train", "generate", "evaluate", "convert", "view", "prepare", "cache", "plan", "sweep_report", "dashboard"}
# The pipeline is called as those of diffusers are, which pass everything by keyword.
WIDE_FUNCTIONS = {"pipelines.base.CubePipeline.__call__", "pipelines.cubediff.CubeDiffPipeline.__init__"}
# The public names that the package exports, and the pipeline of the family: diffusers compares its components with the
# types that it annotates.
STABLE_DIFFUSION = {"inflate", "", "pipelines.cubediff"}
# Functions that are still too long: this set only shrinks.
LONG_FUNCTIONS_LEFT: set[str] = set()
SCRIPTS = sorted(
    path
    for folder in ("benchmarks", "docs", "examples", "experiments")
    for path in (ROOT / folder).rglob("*.py")
    if "runs" not in path.parts  # git ignores it
)


def layer(module: str) -> int | None:
    """The number of a module's layer; None for the modules at the top of the package."""
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return None


def test_every_module_of_a_subpackage_has_a_layer() -> None:
    inner = [name for name in PACKAGE.files if "." in name]
    assert len(inner) > 80
    assert [name for name in inner if layer(name) is None] == []


@pytest.mark.parametrize("module", [name for name in PACKAGE.files if layer(name) is not None])
def test_imports_go_down(module: str) -> None:
    own = layer(module)
    assert own is not None
    for other in PACKAGE.imports[module]:
        theirs = layer(other)
        assert theirs is not None, f"{module} imports {other}, which is at the top of the package"
        same = module.split(".")[0] == other.split(".")[0]
        assert theirs < own or (theirs == own and same), f"{module} imports {other}, which is no lower"


def test_every_module_that_annotates_shapes_is_checked_at_run_time() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    (packages,) = (option.partition("=")[2].split(",") for option in options if "jaxtyping-packages" in option)
    annotates = [name for name, text in PACKAGE.texts.items() if "from jaxtyping import" in text]
    assert len(annotates) > 40
    assert [name for name in annotates if f"cubediff.{name.partition('.')[0]}" not in packages] == []


def test_imports_have_no_cycle() -> None:
    graphlib.TopologicalSorter({name: others - {name} for name, others in PACKAGE.imports.items()}).prepare()
    assert PACKAGE.cycles == []


@pytest.mark.parametrize("module", PACKAGE.top)
def test_the_top_of_the_package_is_commands_and_old_names(module: str) -> None:
    length, tree = len(PACKAGE.texts[module].splitlines()), PACKAGE.trees[module]
    if module not in COMMANDS | {"cli", "__main__"}:
        assert length <= 5
        assert all(isinstance(node, ast.ImportFrom | ast.Expr) for node in tree.body)
        return
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    options = [node for node in ast.walk(tree) if isinstance(node, ast.arg) and is_option(node)]
    length -= sum(map(extent, [*imports, *options]))
    assert length < 100, f"{module} has {length} lines besides its options and imports: move code to a subpackage"


def test_functions_are_short() -> None:
    new = PACKAGE.long_functions - LONG_FUNCTIONS_LEFT
    assert not new, f"{sorted(new)} have over {LINES} lines: split them"


def test_functions_take_few_parameters() -> None:
    new = PACKAGE.wide_functions - WIDE_FUNCTIONS
    assert not new, f"{sorted(new)} have over {PARAMETERS} parameters: group some in a dataclass"


def test_only_the_model_family_names_the_parts_of_stable_diffusion() -> None:
    general = {name for name in PACKAGE.stable_diffusion if not name.startswith("models.")}
    new = general - STABLE_DIFFUSION
    assert not new, f"{sorted(new)} name classes or layers of Stable Diffusion: ask the backbone"


def test_exceptions_that_are_no_longer_needed_are_removed() -> None:
    fixed = {
        *LONG_FUNCTIONS_LEFT - PACKAGE.long_functions,
        *WIDE_FUNCTIONS - PACKAGE.wide_functions,
        *STABLE_DIFFUSION - PACKAGE.stable_diffusion,
    }
    assert not fixed, f"remove {sorted(fixed)} from the exceptions above"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_import_names_that_the_package_has(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "cubediff":
            exec(compile(ast.Module([node], []), str(script), "exec"), {})
