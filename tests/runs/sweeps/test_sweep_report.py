"""The report of a sweep: table and page of synthetic results, and the page in a browser."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from support.pages import Page
from typer.testing import CliRunner

from cubediff.pages.charts import Series, _Axis, chart
from cubediff.runs.sweeps.report import compare_overrides, lowest_loss
from cubediff.runs.sweeps.results import Result
from cubediff.sweep_report import app

NASTY = '<img src=x onerror="document.title=1"> & {{body}} \x00'
RATES = ("1e-05", "1e-04", "0.001", "10.0")


def result(job: int, rate: str, norm: str, loss: float | None, **options: Any) -> Result:
    curve: list[tuple[int, float | None]] = [(1, 2.0), (2, None), (3, 0.5), (4, loss)]
    words = [f"model.optimizer.lr={rate}", f"model.pipeline.sync_group_norm={norm}", "seed=0", f"run_dir=r{job}"]
    settings: dict[str, Any] = {"status": "done" if loss is not None else "failed", "seconds": 60.0} | options
    return Result(name="t", job=job, overrides=words, started=0.0, loss=loss,
                  curves={"val/loss": curve, "train/loss": curve[:2]}, **settings)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three jobs done, two of them lower than the third, and one that failed with an error that is HTML."""
    folder = tmp_path_factory.mktemp("sweep")
    for i, (rate, norm, loss) in enumerate(zip(RATES, ("true", "false", "true", NASTY), (0.9, 0.7, 0.8, None),
                                               strict=True)):  # fmt: skip
        (folder / str(i)).mkdir()
        result(i, rate, norm, loss, error=None if loss else NASTY).write(folder / str(i))
    return folder


@pytest.fixture(scope="module")
def out(folder: Path) -> str:
    ran = CliRunner().invoke(app, [str(folder)])
    assert ran.exit_code == 0, ran.output
    return ran.output


def test_the_table_has_the_lowest_loss_first_and_the_keys_that_differ(out: str, folder: Path) -> None:
    rows = [re.split(r"  +", line) for line in out.splitlines()]
    assert rows[0] == ["job", "model.optimizer.lr", "model.pipeline.sync_group_norm", "val/loss", "lowest, at step",
                       "status", "seconds"]  # fmt: skip
    assert rows[1] == ["1", "1e-04", "false", "0.7000", "0.5000 at 3", "done", "60"]
    assert [row[0] for row in rows[1:4]] == ["1", "2", "0"]
    assert rows[4][0] == "3"
    assert "failed" in rows[4]
    assert out.splitlines()[-1] == f"curves and plots: {folder / 'report.html'}"


def test_shared_overrides_are_not_a_column() -> None:
    keys, shared = compare_overrides([result(0, "1", "true", 0.1), result(1, "2", "true", 0.1)])
    assert keys == ["model.optimizer.lr"]
    assert shared == {"model.pipeline.sync_group_norm": "true", "seed": "0"}


def test_the_lowest_loss_ignores_non_finite_values() -> None:
    assert lowest_loss(result(0, "1", "true", 0.4)) == (4, 0.4)
    assert lowest_loss(result(0, "1", "true", None)) == (3, 0.5)
    assert lowest_loss(Result("running", "t", 0, [], 0.0)) is None


def test_the_page_lists_every_run_and_escapes_text_from_users(out: str, folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert {"script", "img"}.isdisjoint(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert NASTY.replace("\x00", "\u2400") in page.texts["td"]
    for tile in ("<b>4</b> jobs", "<b>3</b> done", "<b>1</b> failed", "<b>0.7000</b> lowest final val/loss"):
        assert tile in text
    assert text.count("<svg ") == 4  # two curves, two keys


def test_a_browser_shows_the_page_within_a_narrow_window(browser: Browser, out: str, folder: Path) -> None:
    page = browser.new_page(viewport={"width": 420, "height": 800})
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.goto((folder / "report.html").as_uri())
    wide = page.evaluate("document.documentElement.scrollWidth")
    outside = page.evaluate(
        """[...document.querySelectorAll('svg')].filter(svg => {
            const all = svg.getBoundingClientRect();
            return [...svg.querySelectorAll('circle, path, text')].some(part => {
                const box = part.getBoundingClientRect();
                return box.left < all.left - 1 || box.right > all.right + 1
                    || box.top < all.top - 1 || box.bottom > all.bottom + 1;
            });
        }).length"""
    )
    title = page.title()
    page.close()
    assert (wide, outside, title, faults) == (420, 0, "Comparison of runs", [])


def test_a_chart_places_points_by_their_values_and_rates_by_their_logarithm() -> None:
    points = [(1e-5, 1.0), (1e-4, 2.0), (1e-3, 3.0)]
    svg = chart([Series(points, "red", "a")], "loss", "rate", lines=False)
    xs = [float(x) for x in re.findall(r'cx="([\d.]+)"', svg)]
    ys = [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)


@pytest.mark.parametrize(
    "values", [[0.0, 1.0], [3.0], [0.0], [-5.0, 1e6], [1e-6, 2.0], [0.0919, 0.0928], [1e-30, 1e30]]
)
def test_an_axis_has_a_few_ticks_that_lie_on_it_in_order(values: list[float]) -> None:
    axis = _Axis(values, 100)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 9
    positions = [axis.position(value) for value, _ in ticks]
    assert positions == sorted(positions)
    assert all(-1e-6 <= position <= 100 + 1e-6 for position in positions)
    assert all(0 <= axis.position(value) <= 100 for value in values)
    assert len({text for _, text in ticks}) == len(ticks)


def test_error_of_a_folder_without_results_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, expected_message in (
        (tmp_path, "holds a result.json: pass the run_dir of a sweep"),
        (tmp_path / "no", "is not a folder"),
    ):
        monkeypatch.setattr(sys, "argv", ["report", str(folder)])
        with pytest.raises(SystemExit, match=expected_message):
            app(standalone_mode=False)
