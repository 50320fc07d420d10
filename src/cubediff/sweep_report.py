"""Compares the runs of a folder, such as a sweep's: python -m cubediff.sweep_report DIR prints a table of what differs
and what came out, and writes DIR/report.html with the curves and each swept key's effect."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Where the runs' folders lie: a sweep's run_dir.")],
    output: Annotated[
        Path | None, typer.Option(help="The page. [default: DIR/report.html]", show_default=False)
    ] = None,
) -> None:
    """Compare the runs of a sweep: a table here, and a page with the loss curves and the effect of every swept key."""
    # Imported here so that --help does not wait for Hydra.
    from cubediff.runs.sweeps.report import differing, html, table
    from cubediff.runs.sweeps.results import read_results

    try:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder: give a sweep's run_dir")
        results = read_results(folder)
        if not results:
            raise ValueError(f"no folder in {folder} holds a result.json: give a sweep's run_dir")
    except ValueError as error:
        sys.exit(f"error: {error}")
    ranked = sorted(results.items(), key=lambda item: (item[1].loss is None, item[1].loss or 0.0))
    runs = [(path.name, result) for path, result in ranked]
    keys, _ = differing([result for _, result in runs])
    typer.echo(table(runs, keys))
    page = output or folder / "report.html"
    page.write_text(html(folder, runs), encoding="utf-8")
    typer.echo(f"curves and plots: {page}")


if __name__ == "__main__":
    app(prog_name="cubediff sweep-report")
