"""The report of an evaluation: what it says, that text stays text, its size, and the page in a browser."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser
from support.pages import Page

from cubediff.evaluation.intervals import Estimate
from cubediff.evaluation.measures import DESCRIPTIONS, Description
from cubediff.evaluation.report import Shown, write_report
from cubediff.evaluation.results import Results, Value, results_text
from cubediff.images.writing import encode_jpeg
from cubediff.utils.text import significant

NASTY = '</style><img src=x onerror="document.title=1"> & {{pictures}} \x00 </q></html>'
NASTY_NAME = "<script>document.title=1</script>\"' onclick='x"
NAN = float("nan")


def jpeg(seed: int, width: int = 48) -> bytes:
    """Noise, which no JPEG compresses well."""
    return encode_jpeg(np.random.default_rng(seed).integers(0, 256, (width // 2, width, 3), np.uint8), 90)


def value(name: str, number: float, **changes: Any) -> Value:
    estimate = Estimate(number, 0.9 * number, 1.2 * number, 8)
    return replace(Value(estimate, "panoramas", DESCRIPTIONS[name]), **changes)


def results(terms: Mapping[str, Sequence[float]], **changes: Any) -> Results:
    """Results with these terms, one for each panorama."""
    count = len(next(iter(terms.values())))
    columns = {name: torch.tensor(column, dtype=torch.float64)[:, None] for name, column in terms.items()}
    values = {name: value(name, 0.123456) for name in terms}
    made = Results(values, [f"scene {i}" for i in range(count)], [f"caption {i}" for i in range(count)], columns)
    return replace(made, **changes)


def report(folder: Path, made: Results, *, originals: bool = True, width: int = 48) -> str:
    def shown(index: int) -> Shown:
        link = f"samples/{quote(made.names[index])}/viewer.html"
        return Shown(jpeg(index, width), jpeg(-index % 10**6, width) if originals else None, link)

    return write_report(folder / "report.html", made, shown).read_text(encoding="utf-8")


def cells(page: str, metric: str) -> list[str]:
    """The texts of the metric's row in a table."""
    (row,) = re.findall(rf"<tr><td class=\"name\"><b>{metric.replace('_', '_<wbr>')}</b>.*?</tr>", page)
    return [re.sub(r"<[^>]*>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", row)]


def test_a_table_has_values_with_intervals_those_of_originals_and_reported_ones(tmp_path: Path) -> None:
    made = results({"overlap_psnr": [1e-3] * 8, "retrieval_psnr": [1.0] * 8})
    made.values["overlap_psnr"] = value(
        "overlap_psnr", 23.4567, reference=Estimate(41.26, 39.4, 43.71, 8), reported=25.0
    )
    page = report(tmp_path, made)
    row = cells(page, "overlap_psnr")
    assert row[0].startswith("overlap_psnr ↑")
    assert DESCRIPTIONS["overlap_psnr"].text in row[0]
    assert row[1:3] == ["23.5 dB", "21.1 to 28.1"]
    assert row[4:] == ["41.3 39.4 to 43.7", "25.0"]
    assert cells(page, "retrieval_psnr")[1:3] == ["0.123", "0.111 to 0.148"]
    assert page.index("Consistency") < page.index("overlap_<wbr>psnr") < page.index("Fidelity")
    assert "Captions</h2>" not in page  # no metric of that family


def test_a_terminal_shows_the_same_values_as_text() -> None:
    made = results(
        {"sharpness": [0.5] * 8, "overlap_psnr": [1e-3] * 8},
        left_out={"fid": "no \x1b weights", "kid": "no \x1b weights"},
    )
    made.values["overlap_psnr"] = value("overlap_psnr", 23.4567, reference=Estimate(41.26, 39.4, 43.71, 8))
    made.values["sharpness"] = value("sharpness", 0.5, estimate=Estimate(0.5, NAN, NAN, 1))
    assert results_text(made).splitlines() == [
        "metric        value    95 % interval  originals  better",
        "sharpness     0.500    –                         neither",
        "overlap_psnr  23.5 dB  21.1 to 28.1   41.3       higher",
        "",
        "without a value:",
        "  fid, kid: no \\x1b weights",
    ]


def test_the_overlap_is_beside_what_tells_a_blurred_panorama(tmp_path: Path) -> None:
    order = ["sharpness", "colour_step", "overlap_relative", "overlap_ssim", "overlap_rms"]
    made = results({name: [0.5, 0.25] for name in order})
    made.terms["overlap_relative"] = torch.tensor([[0.5, 0.25], [1.0, 0.25]], dtype=torch.float64)
    page = report(tmp_path, made)
    table = re.findall(r'<td class="name"><b>(.*?)</b>', page)
    position = table.index("overlap_<wbr>rms")
    assert table[position : position + 3] == ["overlap_<wbr>rms", "overlap_<wbr>relative", "sharpness"]
    assert sorted(table) == sorted(name.replace("_", "_<wbr>") for name in order)


def test_an_overlap_without_its_sharpness_says_so(tmp_path: Path) -> None:
    made = results({"overlap_rms": [0.5, 0.25]}, left_out={"sharpness": "not in metrics"})
    page = report(tmp_path, made)
    assert cells(page, "sharpness") == ["sharpness not measured: not in metrics", "–", "", ""]
    assert cells(page, "overlap_relative")[0] == "overlap_relative not measured"


def test_intervals_of_halves_are_explained_under_their_table_alone(tmp_path: Path) -> None:
    made = results({"rest_psnr": [9.0, 8.0]})
    assert "halves" not in report(tmp_path, made)
    distance = Value(Estimate(247.0, 259.0, 269.0, 25), "halves", Description("distances", "lower", "Fréchet distance"))
    page = report(tmp_path, replace(made, values={"fd_tiny": distance, **made.values}))
    assert cells(page, "fd_tiny")[1:3] == ["247", "259 to 269"]
    section = page[page.index("Distances to the reference") : page.index("Fidelity to the condition")]
    assert "intervals can lie above the values of the whole sets" in section
    assert page.count("drawn without replacement") == 1


def test_the_best_and_the_worst_panoramas_are_shown_in_order_with_their_originals(tmp_path: Path) -> None:
    squares = [0.04, 0.01, 0.49, 0.16, 0.25, 0.36, 0.09, 0.64]
    page = report(tmp_path, results({"overlap_rms": squares, "retrieval_psnr": squares, "sharpness": squares}))
    lower, _, higher = (section for section in page.split("<section>")[1:4])
    found = re.findall(r"<figcaption><b>([^<]*)</b> <span class=\"file\" dir=\"auto\">([^<]*)<", lower)
    assert found == [("0.100", "scene 1"), ("0.200", "scene 0"), ("0.300", "scene 6"),
                     ("0.800", "scene 7"), ("0.700", "scene 2"), ("0.600", "scene 5")]  # fmt: skip
    assert re.findall(r'class="picture (\w+)"', lower)[:4] == ["p1", "o1", "p0", "o0"]
    assert 'href="samples/scene%201/viewer.html"' in lower
    assert re.findall(r'"auto">scene (\d)<', higher)[:3] == ["7", "2", "5"]
    sharpness = next(section for section in page.split("<section>") if section.startswith("<h3>sharpness"))
    assert "best" not in sharpness  # neither is better
    assert "<svg" in sharpness


def test_a_distribution_has_a_dot_for_each_panorama_or_bars_for_many(tmp_path: Path) -> None:
    few = report(tmp_path, results({"retrieval_psnr": [0.0, 0.25, 1.0, 0.25]}))
    assert re.findall(r"<title>(scene \d: [^<]*)</title>", few) == [
        "scene 0: 0", "scene 1: 0.250", "scene 3: 0.250", "scene 2: 1.00",
    ]  # fmt: skip
    numbers = np.random.default_rng(0).random(4000).tolist()
    many = report(tmp_path, results({"retrieval_psnr": numbers}))
    bars = re.findall(r"<rect [^>]*><title>(\d+)</title></rect>", many)
    assert sum(map(int, bars)) == 4000
    assert many.count("<circle") == 0


def test_the_page_says_what_was_evaluated_what_is_left_out_and_what_to_be_careful_with(tmp_path: Path) -> None:
    made = results({"rest_psnr": [9.0] * 3}, warnings=["200 views are few"],
                   left_out={"condition_psnr": "no photos", "fid": "no reference", "condition_ssim": "no photos"},
                   record={"samples": {"path": "out/samples", "panoramas": 3000, "height": 512, "sha256": "ab12"},
                           "reference": {"path": "data/real", "panoramas": 1, "height": 512, "sha256": "cd34"},
                           "faces": {"saved": True, "size": 128},
                           "settings": {"pipeline": "models/tiny", "generate": {"steps": 25}},
                           "absent": None})  # fmt: skip
    page = report(tmp_path, made)
    for line in ("<dt>model</dt><dd>models/tiny</dd>",
                 "<dt>samples</dt><dd>out/samples: 3,000 panoramas, 512 rows</dd>",
                 "<dt>reference</dt><dd>data/real: 1 panorama, 512 rows</dd>",
                 "<dt>faces</dt><dd>of 128 pixels, as they were generated, before blending</dd>",
                 "<b>condition_psnr, condition_ssim</b> no photos", "<b>fid</b> no reference",
                 "<tr><td>generate.steps</td><td>25</td></tr>", "<tr><td>sha256</td><td>cd34</td></tr>"):  # fmt: skip
        assert line in page
    assert page.index("200 views are few") < page.index("no photos") < page.index("<table")
    assert "absent" not in page


def test_without_a_reference_the_page_says_so(tmp_path: Path) -> None:
    made = results({"overlap_rms": [0.04, 0.01]}, record={"reference": None, "faces": {"saved": False, "size": 64}})
    page = report(tmp_path, made, originals=False)
    assert "<dd>none: only metrics without a reference have values</dd>" in page
    assert "of 64 pixels, cut from the panoramas" in page
    assert "<th>originals</th>" not in page
    assert set(re.findall(r'class="picture (\w+)"', page)) == {"p0", "p1"}


def test_one_panorama_has_values_and_no_distribution(tmp_path: Path) -> None:
    page = report(tmp_path, results({"overlap_rms": [0.04]}))
    assert "<section>" not in page
    assert re.findall(r'class="picture (\w+)"', page) == ["p0"]


def test_values_that_are_not_finite_are_dashes_and_no_panorama_is_ranked_by_one(tmp_path: Path) -> None:
    made = results({"overlap_psnr": [0.1, NAN, 0.01, 0.0]})  # of a uniform panorama: infinite
    made.values["overlap_psnr"] = value("overlap_psnr", NAN, estimate=Estimate(NAN, NAN, NAN, 4))
    page = report(tmp_path, made)
    assert cells(page, "overlap_psnr")[1:3] == ["–", "–"]
    ranked = page[page.index("<section>") : page.index("Contact sheet")]
    assert re.findall(r'"auto">scene (\d)<', ranked) == ["3", "2", "0"]
    assert "<b>∞</b>" in ranked
    assert "2 of 4 panoramas have no finite value" in ranked
    assert re.search(r"\bnan\b|\binf\b", page, re.IGNORECASE) is None
    assert "no value is finite" in report(tmp_path, results({"overlap_psnr": [NAN, NAN]}))


def test_text_from_users_stays_text(tmp_path: Path) -> None:
    made = results({"overlap_rms": [0.04, 0.01, 0.09]}, names=["a", NASTY_NAME, "c"], captions=["", NASTY, "x"],
                   warnings=[NASTY], left_out={NASTY_NAME: NASTY},
                   record={"samples": {"path": NASTY, "panoramas": 3}, NASTY_NAME: {NASTY_NAME: NASTY},
                           "settings": {"pipeline": NASTY}})  # fmt: skip
    page = Page(report(tmp_path, made))
    assert {"script", "img"}.isdisjoint(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert not any(name == "src" for name, _ in page.attributes)
    assert page.tags.count("style") == 1
    shown = NASTY.replace("\x00", "\u2400")
    assert page.texts["q"].count(shown) == 1
    assert ("title", shown) in page.attributes
    assert page.texts["p"].count(shown) == 1  # the warning
    assert NASTY_NAME in page.texts["summary"]
    assert ("aria-label", f"original of {NASTY_NAME}") in page.attributes
    assert ("href", f"samples/{quote(NASTY_NAME)}/viewer.html") in page.attributes
    assert page.tags.count("q") == 2  # no figure has an empty caption


@pytest.mark.slow
def test_a_page_of_ten_thousand_panoramas_stays_small(tmp_path: Path) -> None:
    """Noise is what JPEG compresses least; thousands of random views are stored, but not all on the page."""
    count, rng = 10_000, np.random.default_rng(0)
    names = [name for name in DESCRIPTIONS if name not in ("overlap_relative", "edge_ratio", "step_beyond_overlap")]
    made = results({name: rng.random(count).tolist() for name in names if name != "erp_wrap"})
    made.captions = ["word " * 2000] * count
    made.record["views"] = {"cubediff_paper": {"yaw_pitch_fov": [[[1.23456789] * 3] * 10] * count}}
    made.record["many"] = {str(i): i for i in range(5000)}
    page = report(tmp_path, made, width=480)
    assert len(page.encode()) < 3_000_000
    assert "48 of 10000" in page
    assert len(re.findall(r"<q ", page)) == 48
    used = set(re.findall(r'class="picture (\w+)"', page))
    assert len(used) > 200
    assert used == set(re.findall(r"\.(\w+) \{ background-image", page))
    assert "4700 more in metrics.json" in page


def test_a_browser_shows_all_pictures_within_a_narrow_window(browser: Browser, tmp_path: Path) -> None:
    made = results({"overlap_rms": np.random.default_rng(0).random(30).tolist(), "rest_psnr": list(range(30))},
                   names=["n" * 300, NASTY_NAME, *map(str, range(28))], captions=["w" * 300, NASTY] + ["text"] * 28,
                   left_out={"x" * 200: "y" * 200}, record={"z" * 100: {"a" * 100: "b" * 1000}})  # fmt: skip
    report(tmp_path, made)
    page = browser.new_page(viewport={"width": 400, "height": 800})
    faults: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    wide = page.evaluate("document.documentElement.scrollWidth")
    sizes = page.evaluate(
        """Promise.all([...document.querySelectorAll('.picture')].map(async part => {
            const image = new Image();
            image.src = getComputedStyle(part).backgroundImage.slice(5, -2);
            await image.decode();
            return image.naturalWidth + 'x' + image.naturalHeight;
        }))"""
    )
    title = page.title()
    page.close()
    assert set(sizes) == {"48x24"}
    assert len(sizes) == 30 + 2 * 6 * 2
    assert (wide, title, faults) == (400, "Evaluation report", [])
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0"), (-0.0, "0"), (0.99999, "1.00"), (999.6, "1000"), (12345.6, "12300"), (2048.0, "2050"),
     (-0.01234, "-0.0123"), (3e-9, "3.00e-09"), (1e12, "1.00e+12"), (None, "–"), (NAN, "–"), (float("-inf"), "-∞")],
)  # fmt: skip
def test_numbers_have_three_digits(number: float | None, text: str) -> None:
    assert significant(number) == text
