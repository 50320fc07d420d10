"""`cubediff COMMAND` runs the same module as `python -m cubediff.COMMAND`, in child processes too."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import TINY, TWO

import cubediff
from cubediff.cli import COMMANDS

HYDRA_COMMANDS = {"train", "plan", "cache", "evaluate"}
TYPER_COMMANDS = [*(f"{name} --help" for name in COMMANDS if name not in HYDRA_COMMANDS), "prepare check --help"]
# Runs the script and prints, when the process ends, the libraries that it has imported.
WATCHED_SCRIPT = """
import atexit, json, sys
before = set(sys.modules)
def show():
    names = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
    print(json.dumps(sorted(names)), file=sys.stderr)
atexit.register(show)
from cubediff.cli import main
main()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The file that pip installs for the entry point: unlike `python -m` it has no `__main__.__spec__`."""
    path = tmp_path / "cubediff"
    path.write_text("import sys\nfrom cubediff.cli import main\nsys.exit(main())\n")
    return path


def run(*command: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert result.returncode == status, result.stdout + result.stderr
    return result


def test_help_lists_every_command_in_a_line(script: Path) -> None:
    for output in (run(script, "--help").stdout, run(script).stdout, run("-m", "cubediff", "--help").stdout):
        lines = [line.split() for line in output.splitlines() if re.match(r"  \S", line)]
        assert [words[0] for words in lines] == [*COMMANDS, "--help", "--version"]
        assert all(len(words) > 3 for words in lines)


def test_every_command_of_the_package_is_listed() -> None:
    top = Path(cubediff.__file__).parent
    modules = {path.stem for path in top.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert {name.replace("_", "-") for name in modules} - {"cli", "--main--"} == {*COMMANDS} - {"example"}


def test_version(script: Path) -> None:
    assert run(script, "--version").stdout == f"cubediff {cubediff.__version__}\n"


@pytest.mark.parametrize(("name", "nearest"), [("trian", "train"), ("sweep", "sweep-report"), ("prepar", "prepare")])
def test_unknown_command_exits_with_2_and_names_the_nearest(script: Path, name: str, nearest: str) -> None:
    assert f"unknown command {name!r}: did you mean {nearest}?" in run(script, name, status=2).stderr


def test_unknown_command_that_resembles_none_has_no_suggestion(script: Path) -> None:
    assert "did you mean" not in run(script, "xyz", status=2).stderr


@pytest.mark.parametrize("words", ["--help", "--version", *TYPER_COMMANDS])
def test_help_imports_neither_torch_nor_hydra(words: str) -> None:
    result = run("-c", WATCHED_SCRIPT, *words.split())
    imported = json.loads(result.stderr.splitlines()[-1])
    assert "cubediff" in imported
    assert not {"torch", "diffusers", "transformers", "lightning", "hydra"} & set(imported)


def test_help_of_compare_does_not_import_torch() -> None:
    result = run("-c", WATCHED_SCRIPT, "evaluate", "compare", "--help")
    imported = json.loads(result.stderr.splitlines()[-1])
    assert "hydra" in imported  # of `cubediff evaluate`
    assert not {"torch", "diffusers", "transformers", "lightning"} & set(imported)
    assert "Usage: cubediff evaluate compare [" in result.stdout


@pytest.mark.parametrize("words", TYPER_COMMANDS)
def test_usage_names_the_command_as_it_is_typed(script: Path, words: str) -> None:
    usage = f"Usage: cubediff {words.removesuffix(' --help')} ["
    assert usage in run(script, *words.split()).stdout
    assert usage in run("-m", "cubediff", *words.split()).stdout


@pytest.mark.parametrize("words", [*TYPER_COMMANDS, "evaluate compare --help"])
def test_help_in_a_narrow_terminal_has_the_full_names_of_options(
    script: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for columns in ("80", "400"):
        monkeypatch.setenv("COLUMNS", columns)
        names.append(re.findall(r"^  (--[\w-]+)(?= |$)", run(script, *words.split()).stdout, re.MULTILINE))
    assert names[0] == names[1]
    assert names[0][-1] == "--help"


@pytest.mark.parametrize("words", ["prepare --help", "sweep-report --help", "generate --help"])
def test_defaults_that_are_not_literals_are_shown(script: Path, words: str) -> None:
    assert "[default: (" in run(script, *words.split()).stdout


def test_both_spellings_of_a_command_run_it(script: Path, tmp_path: Path) -> None:
    for name in ("sweep-report", "sweep_report"):
        assert "pass the run_dir of a sweep" in run(script, name, tmp_path / "none", status=1).stderr


def test_arguments_and_exit_status_pass_through(script: Path, tmp_path: Path) -> None:
    run(script, "example", 2, tmp_path / "panoramas", "--height", 32)
    assert len(list((tmp_path / "panoramas").glob("*.jpg"))) == 2
    assert "No such option" in run(script, "example", 2, tmp_path / "more", "--hight", 32, status=2).stderr


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("start", ["script", "python -m"])
def test_launcher_starts_child_ranks_with_the_same_command(
    script: Path, tiny_shards: Path, tmp_path: Path, start: str
) -> None:
    command = [script] if start == "script" else ["-m", "cubediff"]
    words = [*TINY, *TWO, f"data.path={tiny_shards}", f"run_dir={tmp_path / 'run'}", "trainer.max_steps=2"]
    result = subprocess.run(
        [sys.executable, *command, "train", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in result.stderr
    assert (tmp_path / "run/checkpoints/step00000002.ckpt").is_file()
