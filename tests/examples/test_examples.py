"""All examples: the table of the README, a test for each, and the message for an older Python."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from support.examples import EXAMPLES, documented
from support.processes import python

FILES = sorted(path.name for path in EXAMPLES.glob("*.py"))
SCRIPTS = [name for name in FILES if '__name__ == "__main__"' in (EXAMPLES / name).read_text()]


@pytest.mark.parametrize("name", FILES)
def test_table_of_the_readme_has_the_documented_command(name: str) -> None:
    (row,) = (
        line for line in (EXAMPLES / "README.md").read_text().splitlines() if line.startswith(f"| [{name}]({name})")
    )
    commands = [shlex.split(code) for code in re.findall(r"`([^`]+)`", row.split("|")[3])]
    assert commands
    assert all(words in documented(name) for words in commands)


@pytest.mark.parametrize("name", FILES)
def test_every_example_is_run_by_a_test(name: str) -> None:
    tests = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    assert any(f'("{name}"' in text for text in tests)


@pytest.mark.parametrize("name", SCRIPTS)
def test_older_python_gets_one_clear_sentence(name: str) -> None:
    ast.parse((EXAMPLES / name).read_text(), feature_version=(3, 8))
    code = "import runpy, sys; sys.version_info = (3, 10); sys.version = '3.10.4 (main)'; runpy.run_path(sys.argv[1])"
    (line,) = python("-c", code, EXAMPLES / name, cwd=EXAMPLES, code=1).stderr.splitlines()
    assert line.startswith("expected Python 3.11 or newer, got 3.10.4")
