"""The report page: its counts, escaped text from users, and its rendering in a browser."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser
from support.builds import panoramas
from support.pages import Page

from cubediff.data import build_shards
from cubediff.data.building.rejections import MAX_REJECTIONS, group_by_reason, rejections_html
from cubediff.data.building.report import _histogram
from cubediff.data.sources import Rejection

SAMPLES = Path(__file__).parents[3] / "data" / "samples"
NASTY = '<img src=x onerror="document.title=1"> & {{rejected}} \x00\x1b </q></html>'
NASTY_FILE = "<script>document.title=1<&\"'>.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the samples, of a rotated copy of one with a hostile caption, and two rejected files."""
    tmp_path = tmp_path_factory.mktemp("report")
    source = Path(shutil.copytree(SAMPLES, tmp_path / "in"))
    image = cv2.imread(str(source / "courtyard.jpg"))
    cv2.imwrite(str(source / "turned.png"), np.roll(image, 300, axis=1))
    cv2.imwrite(str(source / NASTY_FILE), image[:100])
    (source / "cut.jpg").write_bytes((source / "lebombo.jpg").read_bytes()[:5000])
    with (source / "captions.jsonl").open("a") as file:
        for name, caption in (("turned.png", NASTY), (NASTY_FILE, "c"), ("cut.jpg", "c")):
            file.write(json.dumps({"file": name, "caption": caption}) + "\n")
    build_shards(source, tmp_path / "out", val_fraction=0.2)
    return tmp_path / "out"


def test_it_counts_what_the_manifest_counts(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    page = (folder / "report.html").read_text(encoding="utf-8")
    splits = manifest["splits"]
    for number, what in (
        (26, "panoramas"),
        (splits["train"]["samples"], "training panoramas"),
        (splits["val"]["samples"], "validation panoramas"),
        (26, "scenes"),
        (25, "with face captions"),
        (2, "rejected"),
        (1, "near-duplicate pairs"),
    ):
        assert f"<li><b>{number}</b> {what}</li>" in page
    assert page.count("data:image/jpeg;base64,") == 26 + 2
    assert page.count('<span class="train">') - splits["train"]["samples"] in (0, 2)  # the pair is on one side
    assert re.search(r"turned.png.*courtyard.jpg|courtyard.jpg.*turned.png", page.split("Near-duplicates")[1])
    assert len(page) < 1_000_000


def test_text_from_users_stays_text(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert all(value is not None and value.startswith("data:image/jpeg") for n, value in page.attributes if n == "src")
    assert not any(name.startswith("on") for name, _ in page.attributes)
    shown = NASTY.replace("\x00", "").replace("\x1b", "")  # captions lose control characters
    assert sum(text == shown for text in page.texts["q"]) == 2  # on the sheet and in the pair
    assert ("title", shown) in page.attributes
    assert NASTY_FILE in page.texts["td"]
    assert any("1024x100 is not 2:1" in text for text in page.texts["td"])


def test_a_browser_shows_all_pictures_and_runs_no_script(browser: Browser, folder: Path) -> None:
    page = browser.new_page(viewport={"width": 420, "height": 800})
    requests, faults = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: faults.append(message.text))
    page.goto((folder / "report.html").as_uri())
    page.eval_on_selector_all("img", "images => images.forEach(i => i.loading = 'eager')")
    page.wait_for_function("[...document.images].every(i => i.complete)")
    sizes = page.eval_on_selector_all("img", "images => images.map(i => [i.naturalWidth, i.naturalHeight])")
    wide = page.evaluate("document.documentElement.scrollWidth")
    title = page.title()
    page.close()
    assert sizes == [[288, 144]] * 28
    assert wide <= 420  # nothing sticks out on a phone
    assert title == "Dataset report"
    assert faults == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}


def test_long_lists_are_truncated_and_the_page_says_so(tmp_path: Path) -> None:
    source = panoramas(tmp_path / "in", 60, suffix=".jpg")
    for i in range(510):
        (source / f"bad {i}.jpg").touch()
    build_shards(source, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "48 of 60 panoramas" in page
    assert "500 of 510 rejections" in page
    assert "10 more in rejected.jsonl" in page
    assert page.count("<img ") == 48
    assert page.count("<tr>") == 500


def test_rejections_are_grouped_by_reason_the_most_frequent_first() -> None:
    """Numbers, the names of faces and what to do differ from file to file."""
    reasons = {
        "unreadable: not an image of a known kind": 2,
        "a_px.png: 16x8: a face of a cubemap is square": 1,
        "b_nx.png: 64x8: a face of a cubemap is square": 1,
        "100x40 is not 2:1: a full sphere 100 wide is 50 high; pad or crop it": 2,
        "64x40 is not 2:1: a full sphere 64 wide is 32 high; pad or crop it": 3,
        "has a caption but the file is missing; did you mean a.jpg?": 1,
        "has a caption but the file is missing; names are relative to SOURCE, such as b.jpg": 1,
        "all one colour (5, 9, 7): not a photograph": 1,
    }
    rejected = [Rejection(f"{i}", reason) for i, (reason, count) in enumerate(reasons.items()) for _ in range(count)]
    groups = {reason: len(files) for reason, files in group_by_reason(rejected)}
    assert groups == {
        "100x40 is not 2:1": 5,
        "unreadable: not an image of a known kind": 2,
        "16x8: a face of a cubemap is square": 2,
        "has a caption but the file is missing": 2,
        "all one colour": 1,
    }
    assert next(iter(groups)) == "100x40 is not 2:1"


def test_many_reasons_are_listed_within_the_limit_of_a_page() -> None:
    rejected = [Rejection(f"{i}", f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}") for i in range(MAX_REJECTIONS + 300)]
    rejected += [Rejection(f"frequent {i}", "frequent") for i in range(300)]
    page = rejections_html(rejected)
    assert page.count("<tr>") <= MAX_REJECTIONS
    assert page.count("<details>") == len({rejection.reason for rejection in rejected})
    assert page.index("frequent") < page.index(" aa<")


def bars(svg: str) -> dict[str, int]:
    labels = re.findall(r'<text class="axis"[^>]*>([^<]*)<', svg)
    counts = re.findall(r"<text x=[^>]*>(\d*)<", svg)
    return {label: int(count or 0) for label, count in zip(labels, counts, strict=True)}


def test_histograms_count_every_value_once() -> None:
    assert bars(_histogram("t", [512, 1024, 512], per_value=True)) == {"512": 2, "1024": 1}
    assert bars(_histogram("t", [3])) == {"3": 1}
    rng = np.random.default_rng(0)
    for high in (5, 40, 3000, 10**6):
        values = rng.integers(0, high, 500)
        counts_by_bin = bars(_histogram("t", values.tolist()))
        assert len(counts_by_bin) <= 12
        assert sum(counts_by_bin.values()) == 500
        for label, count in counts_by_bin.items():
            low, _, top = label.partition("–")
            assert count == ((values >= int(low)) & (values <= int(top or low))).sum()
