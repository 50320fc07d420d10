"""The command `cubediff sweep-report FOLDER`: compares the runs of a folder, such as the run_dir of a sweep."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cubediff.utils.files import write_atomic
from cubediff.utils.text import error_line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of the runs: the run_dir of a sweep.")],
    output: Annotated[
        Path | None, typer.Option(help="HTML file to write.", show_default="report.html in FOLDER")
    ] = None,
) -> None:
    """Compare the runs of a sweep: a table, and a page with loss curves and the effect of every swept key."""
    # Imported here so that --help does not wait for Hydra.
    from cubediff.runs.sweeps.report import compare_overrides, report_page, text_table
    from cubediff.runs.sweeps.results import read_results

    try:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: pass the run_dir of a sweep")
        results = read_results(folder)
        if not results:
            raise ValueError(f"no folder in {folder} holds a result.json: pass the run_dir of a sweep")
    except ValueError as error:
        sys.exit(error_line(error))
    ranked = sorted(results.items(), key=lambda item: (item[1].loss is None, item[1].loss or 0.0))
    runs = [(path.name, result) for path, result in ranked]
    keys, _ = compare_overrides([result for _, result in runs])
    typer.echo(text_table(runs, keys))
    page = output or folder / "report.html"
    write_atomic(page, report_page(folder, runs))
    typer.echo(f"curves and plots: {page}")


if __name__ == "__main__":
    app(prog_name="cubediff sweep-report")
