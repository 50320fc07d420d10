"""The documentation: its commands parse and run, its links resolve, and it uses the terms of the field."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from support.runs import composed

from cubediff.cli import COMMANDS
from cubediff.training.logged_metrics import LOSS_GROUPS, logged_metrics

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs/tutorial.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = sorted(
    [
        README,
        *DOCS,
        *(ROOT / name for name in ("data/README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
        ROOT / "examples/README.md",
        *(ROOT / "experiments").glob("*/README.md"),
    ]
)
IMAGES = sorted((ROOT / "docs/images").iterdir())
IMAGE_LIMIT = 300_000  # bytes
README_LIMIT = 150  # lines
PARAGRAPH_LIMIT = 4  # lines of a README paragraph
NO_RUN_LIMIT = 15  # blocks that carry a marker `<!-- no-run: REASON -->`
FEW_STEPS = {"train": ["trainer.max_steps=2", "callbacks.samples.steps=1"], "generate": ["--steps", "2"]}
HYDRA = ("train", "plan", "cache", "evaluate")
TYPER = {
    "prepare": ("cubediff.prepare", "app"),
    "prepare check": ("cubediff.prepare", "check_app"),
    "evaluate compare": ("cubediff.evaluate", "compare_app"),
    "generate": ("cubediff.generate", "app"),
    "convert": ("cubediff.convert", "app"),
    "view": ("cubediff.view", "app"),
    "sweep-report": ("cubediff.sweep_report", "app"),
    "dashboard": ("cubediff.dashboard", "app"),
}
# Programs that are not part of this project, which a page may start.
OTHERS = {"cd", "docker", "find", "gcloud", "git", "mkdir", "pre-commit", "sbatch", "sed", "source", "torchrun"}
# Wordings with a better equivalent in the terms of diffusers, PyTorch and Lightning.
REPLACED = (
    *("average of the weights", "averaged weights", "goes on", "go on from", "went on"),
    *("was cut", "is told", "are told", "by its sum", " sums of", "left-out steps", "left out steps"),
    *("passed over", "folders of ours", "in parts", "of those that", "what is trained", "share of the gpu"),
    *("place in the stream", "mirrored", "unheard", "none but", "whatever", "wishes", "a room of"),
    *("what keeps", "what a run", "turned by"),
)
SOURCES = sorted(
    path
    for folder, pattern in (
        ("src", "*.py"),
        ("src", "*.html"),
        ("conf", "*.yaml"),
        ("examples", "*.py"),
        ("examples", "*.yaml"),
    )
    for path in (ROOT / folder).rglob(pattern)
)


class Block(NamedTuple):
    """A fenced block of a page, and why it cannot run: the REASON of a comment `<!-- no-run: REASON -->` above it."""

    no_run: str
    language: str
    code: str


def blocks(page: Path, language: str = "") -> list[Block]:
    """The fenced blocks of a page in a language; without one, shell commands."""
    text = page.read_text(encoding="utf-8")
    fence = r"(?:^<!-- no-run: (.*?) -->\n)?^```(.*?)\n(.*?)^```$"
    found = [Block(*groups) for groups in re.findall(fence, text, re.MULTILINE | re.DOTALL)]
    return [block for block in found if block.language == language]


def command_lines(shell: Iterable[Block]) -> list[list[str]]:
    """The words of each shell command, continued lines joined; lines that expand shell variables are not parsed."""
    lines = [line for block in shell for line in block.code.replace("\\\n", " ").splitlines()]
    parsed = [shlex.split(part, comments=True) for line in lines if "$" not in line for part in line.split(" && ")]
    return [words for words in parsed if words]


def project_commands(shell: Iterable[Block]) -> Iterator[tuple[str, list[str]]]:
    """The commands of this project in shell blocks, as the name of the subcommand and its arguments."""
    for words in command_lines(shell):
        words = words[next((i for i, word in enumerate(words) if "=" not in word or word.startswith("-")), 0) :]
        if words[0] == "torchrun":
            words = ["python", *words[words.index("-m") :]]
        if words[:2] == ["python", "-m"] and words[2].startswith("cubediff."):
            words = ["cubediff", words[2].removeprefix("cubediff.").removeprefix("data."), *words[3:]]
        if words[0] == "cubediff":
            name, *arguments = words[1:]
            if (name, arguments[:1]) in (("prepare", ["check"]), ("evaluate", ["compare"])):
                name, arguments = f"{name} {arguments[0]}", arguments[1:]
            yield name.replace("_", "-"), arguments


COMMAND_LINES = [(page, *command) for page in PAGES for command in project_commands(blocks(page))]


def test_pages_hold_commands_of_every_subcommand() -> None:
    assert {name.split()[0] for _, name, _ in COMMAND_LINES} == set(COMMANDS)
    assert len(COMMAND_LINES) > 40


def compose(name: str, arguments: list[str]) -> None:
    """Composes the config of a Hydra command; of a sweep, that of its first job."""
    plain = [argument for argument in arguments if argument not in ("-m", "--help") and "…" not in argument]
    first_of_each = [re.sub(r"^([^\[]*?=[^,\[]+),.*", r"\1", argument) for argument in plain]
    composed(*first_of_each, name=name)


@pytest.mark.parametrize(
    ("page", "name", "arguments"),
    COMMAND_LINES,
    ids=[f"{page.relative_to(ROOT)}: {' '.join([name, *arguments])[:80]}" for page, name, arguments in COMMAND_LINES],
)
def test_command_parses(page: Path, name: str, arguments: list[str]) -> None:
    if name in HYDRA:
        compose(name, arguments)
    elif "--help" not in arguments:
        if name == "example":
            app = typer.Typer()
            app.command()(import_module("cubediff.data.example").main)
        else:
            module, attribute = TYPER[name]
            app = getattr(import_module(module), attribute)
        typer.main.get_command(app).make_context(name, arguments)


def test_other_commands_start_files_and_targets_that_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for words in command_lines(blocks(page)):
            words = words[next((i for i, word in enumerate(words) if "=" not in word), 0) :]
            if words[0] == "make":
                assert words[1] in targets, f"{page}: make {words[1]}"
            elif words[0] == "python" and words[1] != "-m":
                assert (ROOT / words[1]).is_file(), f"{page}: {words[1]}"
            elif words[0].startswith(".venv/"):
                continue
            else:
                assert words[0] in {"cubediff", "pip", "python", "pytest", "wandb", *OTHERS} or "=" in words[0], (
                    page,
                    words,
                )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = " ".join(re.findall(r"`([^`\n]+)`", text))
    for name in re.findall(r"(?<![\w/])(?:benchmarks|conf|docs|examples|src/cubediff|tests)/[\w./-]*", code):
        assert (ROOT / name).exists(), f"{page} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_test_selections_that_a_page_names_exist(page: Path) -> None:
    for name, keyword in re.findall(r"`pytest (tests/[\w/.]+)(?: -k (\w+))?", page.read_text(encoding="utf-8")):
        assert re.search(rf"def test_\w*{keyword}", (ROOT / name).read_text(encoding="utf-8")), f"{name} -k {keyword}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page} links to {target}"


def test_readme_is_short_and_begins_with_a_picture() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LIMIT
    assert lines[2].startswith("![")
    prose = re.sub(r"^```.*?^```$", "", "\n".join(lines), flags=re.MULTILINE | re.DOTALL)
    paragraphs = [part for part in prose.split("\n\n") if not part.lstrip().startswith(("|", "-"))]
    for paragraph in paragraphs:
        body = [line for line in paragraph.strip().splitlines() if not line.startswith("#")]
        assert len(body) <= PARAGRAPH_LIMIT, paragraph


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_pictures_are_small_and_shown(image: Path) -> None:
    assert image.stat().st_size < IMAGE_LIMIT
    assert any(f"images/{image.name})" in page.read_text(encoding="utf-8") for page in PAGES)


def replaced_phrases(path: Path) -> list[str]:
    """The phrases of REPLACED in a file, also over a line end within a comment."""
    text = " ".join(path.read_text(encoding="utf-8").lower().replace("#", " ").split())
    return [phrase for phrase in REPLACED for _ in range(text.count(phrase))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_the_terms_of_the_field(page: Path) -> None:
    assert replaced_phrases(page) == []


def test_docstrings_messages_and_configs_use_the_terms_of_the_field() -> None:
    found = {str(path.relative_to(ROOT)): replaced_phrases(path) for path in SOURCES}
    assert {name: phrases for name, phrases in found.items() if phrases} == {}


def is_runnable(arguments: list[str]) -> bool:
    """False for a command with a placeholder, such as SHARDS, and for one that needs Stable Diffusion's weights."""
    placeholder = any(re.fullmatch(r"(?:[\w.]+=)?[A-Z_0-9]*[A-Z]{3}[A-Z_0-9]*(?:/\w+)?", word) for word in arguments)
    return not placeholder and "--help" not in arguments


def test_monitoring_describes_every_metric() -> None:
    page = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    single = [metric for metric in logged_metrics() if not metric.media and "/loss_" not in metric.name]
    assert len(single) > 8
    assert [metric.name for metric in single if f"`{metric.name}`" not in page] == []
    groups = {group.name for group in LOSS_GROUPS}
    named = {"q1", "q2", "q3", "q4", *re.findall(r"…/loss_(\w+)", page)}
    assert groups == named


def test_blocks_that_cannot_run_are_few_and_their_overrides_compose() -> None:
    marked = [(page, block) for page in PAGES for block in (*blocks(page), *blocks(page, "python")) if block.no_run]
    for page, block in marked:
        print(f"{page.relative_to(ROOT)}: not run, {block.no_run}:\n{block.code}")
        assert len(block.no_run.split()) > 2, f"{page} gives no reason: {block}"
        for name, arguments in project_commands([block] if not block.language else []):
            if name in HYDRA:
                compose(name, arguments)
    assert 3 < len(marked) <= NO_RUN_LIMIT
    markers = sum(page.read_text(encoding="utf-8").count("<!-- no-run") for page in PAGES)
    assert markers == len(marked), "a marker stands directly above a fence: <!-- no-run: REASON -->"


def run_commands(page: Path, folder: Path) -> set[str]:
    """Runs the commands of a page that belong to this project, with few steps and in the order of the page.

    Blocks that are marked `no-run` and commands with placeholders are left out.

    Returns:
        The names of the commands.
    """
    (folder / "data").symlink_to(ROOT / "data")
    (folder / "experiments/runs").mkdir(parents=True)
    for name in ("cubediff_tiny", "tiny_sd"):
        (folder / "experiments" / name).symlink_to(ROOT / "experiments" / name)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = set()
    for name, arguments in project_commands(block for block in blocks(page) if not block.no_run):
        if is_runnable(arguments):
            command = [sys.executable, "-m", "cubediff", *name.split(), *arguments, *FEW_STEPS.get(name, [])]
            subprocess.run(command, cwd=folder, env=environment, check=True)
            ran.add(name)
    return ran


def run_python(page: Path, folder: Path) -> None:
    """Runs the Python blocks of a page with few steps, but those that are marked `no-run`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for block in blocks(page, "python"):
        if not block.no_run:
            code = re.sub(r"num_inference_steps=\d+", "num_inference_steps=2", block.code)
            subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)


@pytest.mark.slow
def test_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    commands = {"prepare", "prepare check", "train", "generate", "evaluate", "convert", "view", "plan", "example"}
    assert run_commands(README, tmp_path) == commands
    run_python(README, tmp_path)
    for folder in ("out/text", "out/photo", "out/first"):
        assert (tmp_path / folder / "panorama.jpg").is_file()
        assert (tmp_path / folder / "viewer.html").is_file()


@pytest.mark.slow
def test_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    assert run_commands(TUTORIAL, tmp_path) == {"generate", "example", "prepare", "prepare check", "train"}
    for folder in ("out/text", "out/photo", "out/first"):
        assert (tmp_path / folder / "panorama.jpg").is_file()
    assert (tmp_path / "experiments/runs/first/result.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_python_examples_of_the_docs_run(page: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    run_python(page, tmp_path)
