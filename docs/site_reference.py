"""Sphinx directives that write a reference when the site is built.

`command-help` runs every command with `--help`, `config-keys` lists the keys of `conf/` with their values and comments.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from cubediff.cli import COMMANDS

CONF = Path(__file__).resolve().parents[1] / "conf"
SUBCOMMANDS = {"prepare": ["check"], "evaluate": ["compare"]}


class CommandHelp(SphinxDirective):
    """A section for each command, with the text of its `--help`."""

    def run(self) -> list[nodes.Node]:
        for path in ("src/cubediff/cli.py", "conf/hydra/help"):
            self.env.note_dependency(CONF.parent / path)
        text = ""
        for command, summary in COMMANDS.items():
            text += f"## cubediff {command}\n{summary[0].upper()}{summary[1:]}.\n"
            for words in ([command], *([command, name] for name in SUBCOMMANDS.get(command, []))):
                text += f"```text\n$ cubediff {' '.join(words)} --help\n{help_of(*words)}\n```\n"
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def help_of(*command: str) -> str:
    """The help of a command in plain text of 80 columns."""
    environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "cubediff", *command, "--help"]
        done = subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True, encoding="utf-8")
    return done.stdout.strip()


class ConfigKeys(SphinxDirective):
    """A section for each group of `conf/`, with the keys of its choices."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        files = sorted(CONF.glob("*.yaml")) + sorted(CONF.glob("*/*.yaml"))
        text = ""
        for group, choices in groupby(files, lambda file: file.parent):
            text += f"## {'Commands' if group == CONF else group.name}\n"
            for file in choices:
                name = file.name if group == CONF else f"{group.name}={file.stem}"
                text += f"### {name}\n" + "\n".join(config_page(file)) + "\n"
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def config_page(file: Path) -> Iterator[str]:
    """The keys of a config file as Markdown: comments of whole lines as paragraphs, the keys between them as tables."""
    text = file.read_text(encoding="utf-8")
    package = re.search(r"^# @package (\S+)$", text, re.MULTILINE)
    prefix = package[1] if package else file.parent.name
    prefix = "" if prefix == "_global_" or file.parent == CONF else f"{prefix}."
    parts: dict[int, str] = {}  # by line
    for number, line in enumerate(text.splitlines()):
        if (comment := re.match(r" *#(?! @package) ?(.*)", line)) and not is_inside_text(number, text):
            parts[number] = comment[1]
    root = yaml.compose(text)  # None for a file of comments
    rows = {line: row for line, *row in keys(root, text, prefix)} if isinstance(root, yaml.MappingNode) else {}
    for is_row, numbers in groupby(sorted({*parts, *rows}), lambda number: number in rows):
        if not is_row:
            yield from paragraphs([parts[number] for number in numbers])
            continue
        yield "\n| key | value | meaning |\n|---|---|---|"
        yield from (f"| {' | '.join(rows[number])} |" for number in numbers)
        yield ""


def is_inside_text(number: int, text: str) -> bool:
    """Whether a line belongs to a scalar that began on an earlier line."""
    return any(
        isinstance(token, yaml.ScalarToken) and token.start_mark.line < number < token.end_mark.line
        for token in yaml.scan(text)
    )


def keys(node: yaml.MappingNode, text: str, prefix: str) -> Iterator[tuple[int, str, str, str]]:
    """Line, name, value and comment of every key of a mapping and of the mappings in it."""
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from keys(value, text, f"{prefix}{key.value}.")
            continue
        source = text[value.start_mark.index : value.end_mark.index]
        if isinstance(value, yaml.ScalarNode) and value.style in ("|", ">"):
            source = value.value
        elif isinstance(value, yaml.SequenceNode) and not value.flow_style:
            source = ", ".join(re.findall(r"^ *-? *(.*?) *(?:#.*)?$", source.strip(), re.MULTILINE))
        comment = re.match(r" *# ?(.*)", text[value.end_mark.index :])
        yield key.start_mark.line, code(f"{prefix}{key.value}"), code(source), escaped(comment[1] if comment else "")


def code(text: str) -> str:
    """A code span for a cell of a table, on one line."""
    fence = "``" if "`" in text else "`"
    return fence + " ".join(text.split()).replace("|", "\\|") + fence


def escaped(text: str) -> str:
    """Markdown of a comment: characters of markup stand for themselves, except in code spans."""
    spans = re.split(r"(`[^`]*`)", text)
    return "".join(span if i % 2 else re.sub(r"([*_<\[|$])", r"\\\1", span) for i, span in enumerate(spans))


def paragraphs(comment: list[str]) -> Iterator[str]:
    """Markdown of the lines of a comment; indented lines are commands."""
    for is_command, group in groupby(comment, lambda line: line.startswith(("  ", "cubediff "))):
        lines = list(group)
        yield from ["```text", *lines, "```"] if is_command else ["", *map(escaped, lines)]


def parsable_signature(*event: object) -> tuple[str, str | None] | None:
    """A signature without `<factory>`, the default of some fields of dataclasses, which is no Python."""
    *_, signature, returns = event
    return (signature.replace("<factory>", "..."), returns) if signature else None


def setup(app: Sphinx) -> ExtensionMetadata:
    """Registers the directives."""
    app.add_directive("command-help", CommandHelp)
    app.add_directive("config-keys", ConfigKeys)
    app.connect("autodoc-process-signature", parsable_signature)
    return {"parallel_read_safe": True}
