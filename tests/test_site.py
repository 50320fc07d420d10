"""The documentation site: it builds without warnings, its links resolve, it loads nothing, all is in its reference."""

import html
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from playwright.sync_api import Browser, Route

import cubediff
from cubediff.cli import COMMANDS

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
CONFIGS = sorted(
    file for file in CONF.rglob("*.yaml") if file.parent.name != "help"
)  # those are on the page of commands
SUBPACKAGES = ("cubediff.geometry", "cubediff.data", "cubediff.data.sources", "cubediff.training.callbacks")
MISSING = [name for name in ("furo", "myst_nb", "sphinx") if find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}: install the extra docs, as `make setup` does"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as by `make docs`."""
    folder = tmp_path_factory.mktemp("site")
    options = ("-W", "--keep-going", "-n", "-q", "-c", ROOT / "docs", "-d", folder / "doctrees")
    command = [sys.executable, "-m", "sphinx", *options, ROOT, folder / "html"]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


class Page(HTMLParser):
    """The anchors, links and loaded files of an HTML page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.anchors |= {given["id"]} if "id" in given else set()
        if "href" in given:
            (self.links if tag == "a" else self.loads).add(given["href"])
        self.loads |= {given[name] for name in ("src", "data", "poster") if name in given}
        self.loads |= {candidate.split()[0] for candidate in given.get("srcset", "").split(",") if candidate.strip()}


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in sorted(site.rglob("*.html"))}


def test_every_page_of_the_repository_is_in_the_site(pages: dict[Path, Page], site: Path) -> None:
    sources = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "experiments").glob("*/README.md"),
        ROOT / "data/README.md",
    ]
    expected = {site / path.relative_to(ROOT).with_suffix(".html") for path in sources}
    assert expected - {site / "docs/README.html"} <= set(pages)  # docs/index.html includes docs/README.md


def test_links_and_anchors_within_the_site_resolve(pages: dict[Path, Page], site: Path) -> None:
    broken = []
    for file, page in pages.items():
        for link in page.links | page.loads:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data"):
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchors = pages[target].anchors if target in pages else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{file.relative_to(site)}: {link}")
    assert broken == []
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_no_page_loads_anything_from_a_network(pages: dict[Path, Page], site: Path) -> None:
    loads = {load for page in pages.values() for load in page.loads}
    styles = [*site.rglob("*.css"), *pages]
    loads |= {url for file in styles for url in re.findall(r"url\(\s*[\"']?([^\"')]+)", file.read_text())}
    loads |= {url for file in styles for url in re.findall(r"@import\s+[\"']([^\"']+)", file.read_text())}
    assert len(loads) > 10
    assert [load for load in loads if re.match(r"(https?:)?//", load)] == []


def key_values(node: object, prefix: str) -> Iterator[tuple[str, object]]:
    """Name and value of every key of a config, and of the mappings in it."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from key_values(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, node


@pytest.fixture(scope="module")
def config_rows(site: Path) -> dict[str, dict[str, str]]:
    """The keys and values that the page of the configuration shows for each file, by the title of its section."""
    page = (site / "docs/configuration.html").read_text(encoding="utf-8")
    _, *parts = re.split(r"<h3>(.*?)<a ", page)
    rows = {}
    for title, section in zip(parts[::2], parts[1::2], strict=True):
        cells = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in section.split("<tr")]
        texts = [[html.unescape(re.sub(r"<.*?>", "", cell)).strip() for cell in row] for row in cells if row]
        rows[title] = {key: value for key, value, _ in texts}
    return rows


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(CONF)))
def test_the_configuration_lists_every_key_and_its_value(config_rows: dict[str, dict[str, str]], file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    package = re.search(r"@package (\S+)", text)
    group = "" if file.parent == CONF else file.parent.name
    prefix = package[1].replace("_global_", "") if package else group
    rows = config_rows[f"{group}={file.stem}" if group else file.name]
    for key, value in key_values(yaml.safe_load(text), prefix):
        parents = [key.rsplit(".", n)[0] for n in range(key.count(".") + 1)]  # a mapping in braces is one value
        shown = next((parent for parent in parents if parent in rows), None)
        assert shown is not None, f"{key} is not on the page"
        if shown != key:
            assert key.rsplit(".", 1)[1] in rows[shown]
        elif isinstance(value, str):
            assert rows[key].split() == value.split() or yaml.safe_load(rows[key]) == value
        elif not isinstance(value, list) or not any(isinstance(item, dict | str) for item in value):
            assert yaml.safe_load(rows[key]) == value


def test_comments_of_the_configs_are_on_the_page(site: Path) -> None:
    page = (site / "docs/configuration.html").read_text(encoding="utf-8")
    words = " ".join(html.unescape(re.sub(r"<.*?>", "", page)).split())
    for comment in (
        "newest checkpoints",  # behind a value
        "degrees around the multiple of 90 that such a panorama is rotated by",
        "Micro-batch and checkpointing are within 1 % of the fastest that fit into 22 GiB",  # a line between keys
        "Random weights, no files, 64-pixel faces",  # at the head of a file
    ):
        assert comment in words


def test_every_command_shows_its_help(site: Path) -> None:
    page = html.unescape(re.sub(r"<.*?>", "", (site / "docs/commands.html").read_text(encoding="utf-8")))
    for command in (*COMMANDS, "prepare check", "evaluate compare"):
        _, found, text = page.partition(f"$ cubediff {command} --help")
        assert found
        assert f"Usage: cubediff {command}" in text.partition("$ cubediff")[0]


@pytest.fixture(scope="module")
def documented(site: Path) -> set[str]:
    """The names of Sphinx's inventory of the site."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(inventory).decode().splitlines()
    return {line.split(" ")[0] for line in lines if " py:" in line}


@pytest.mark.parametrize("name", cubediff.__all__)
def test_every_public_name_has_an_entry(documented: set[str], pages: dict[Path, Page], site: Path, name: str) -> None:
    assert f"cubediff.{name}" in documented
    assert f"cubediff.{name}" in pages[site / "docs/api/cubediff.html"].anchors


@pytest.mark.parametrize("package", SUBPACKAGES)
def test_every_public_name_of_a_subpackage_has_an_entry(documented: set[str], package: str) -> None:
    module = import_module(package)
    assert len(module.__all__) > 5
    for name in module.__all__:
        value = getattr(module, name)
        name = getattr(value, "__qualname__", name)  # of an old name, the current one
        names = {f"{owner}.{name}" for owner in ("cubediff", package, getattr(value, "__module__", package))}
        assert names & documented, f"{package}.{name} is on no page of docs/api"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site's address on a local server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            """Prints nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize(
    ("query", "page", "explanation"),
    [
        ("resume", "docs/resume.html", "The same command with the same run_dir resumes"),
        ("face order", "docs/conventions.html", "front, right, back, left, up, down"),
        ("negative prompt", "docs/generation.html", "text that guidance leads away from"),
    ],
)
def test_search_leads_to_the_page_that_explains_it(
    browser: Browser, address: str, query: str, page: str, explanation: str
) -> None:
    elsewhere: list[str] = []

    def only_the_site(route: Route) -> None:
        if route.request.url.startswith(address):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    context = browser.new_context()
    context.route("**/*", only_the_site)
    tab = context.new_page()
    tab.goto(address)  # leads to the root document
    tab.wait_for_url("**/docs/index.html")
    tab.get_by_role("textbox").first.fill(query)
    tab.keyboard.press("Enter")
    tab.wait_for_function("document.querySelector('.search-summary')?.textContent.includes('found')")
    results = tab.locator("#search-results li > a")
    first = [urlsplit(link.get_attribute("href") or "").path for link in results.all()[:3]]
    assert page in first
    results.nth(first.index(page)).click()
    tab.wait_for_url(f"{address}{page}*")
    assert explanation in tab.locator("article").inner_text()
    assert elsewhere == []
    context.close()


def test_the_calls_of_components_are_in_the_reference_with_their_shapes(site: Path) -> None:
    page = (site / "docs/api/diffusion.html").read_text(encoding="utf-8")
    for name in ("weightings.LossWeighting", "weightings.MinSNR", "timesteps.TimestepSampler"):
        _, found, text = page.partition(f'id="cubediff.diffusion.{name}.__call__"')
        assert found, name
        assert "of shape (B,)" in re.sub(r"<.*?>", "", text[:8000]), name
