"""The commands that the docstrings of the files in examples/ document, and runs of them."""

import ast
import os
import shlex
import tomllib
from itertools import chain
from pathlib import Path

from support.processes import python

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
# Documented by every example that reads shards; a test's folder has them already.
PREPARE = "cubediff prepare data/samples experiments/runs/shards --captions data/samples/captions.jsonl"


def documented(name: str) -> list[list[str]]:
    """The words of each shell command in the docstring of an example, continued lines joined."""
    text = ast.get_docstring(ast.parse((EXAMPLES / name).read_text(encoding="utf-8"))) or ""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    commands = [shlex.split(line) for line in lines]
    return [words for words in commands if {"cubediff", "python", "pip", "curl"} & {*words[:2]}]


def run_documented(name: str, folder: Path, *more: object) -> str:
    """Runs an example as it documents, in a folder like a checkout, but for the shards that are there already.

    Args:
        name: The file in examples/.
        folder: The working directory.
        *more: Further arguments of the first command.

    Returns:
        What the commands print to stdout.
    """
    printed = []
    for words in documented(name):
        if words != PREPARE.split():
            environment, arguments = as_python(words)
            printed.append(python(*arguments, *more, cwd=folder, **environment).stdout)
            more = ()
    return "".join(printed)


def entry_points_of(folder: Path) -> str:
    """The entry_points.txt that an installation of the package in a folder has."""
    groups = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    lines = ([f"[{group}]", *(f"{name} = {value}" for name, value in own.items())] for group, own in groups.items())
    return "\n".join(chain.from_iterable(lines)) + "\n"


def as_python(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The environment variables of a `cubediff` or `python` command, and its arguments for Python."""
    environment = {}
    if words[0].startswith("PYTHONPATH="):
        paths = [words[0].partition("=")[2], os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        words = words[1:]
    assert words[0] in ("cubediff", "python"), words
    return environment, [*(["-m", "cubediff"] if words[0] == "cubediff" else []), *words[1:]]
