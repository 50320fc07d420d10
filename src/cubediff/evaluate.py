"""Evaluates a model or panoramas, and compares two evaluations.

cubediff evaluate pipeline=MODEL reference=PANORAMAS output=DIR (samples=FOLDER in place of pipeline=MODEL)
cubediff evaluate compare DIR_A DIR_B
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from omegaconf import DictConfig

from cubediff.configs.overrides import command, messages_of_errors
from cubediff.utils.text import printable

compare_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@command("evaluate")
def evaluate(config: DictConfig) -> None:
    """Evaluates, prints the values and the report's path; exits with the message of an error that the user can fix."""
    # Imported here for start-up time.
    from cubediff.evaluation.results import results_text
    from cubediff.runs.evaluation.run import REPORT, evaluate

    with messages_of_errors("the same command resumes"):
        results = evaluate(config)
    if results is not None:
        print(f"{results_text(results)}\n\n{printable(str(Path(config.output) / REPORT))}")


@compare_app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(metavar="DIR_A", help="Output of `cubediff evaluate`.")],
    second: Annotated[Path, typer.Argument(metavar="DIR_B", help="Output of `cubediff evaluate` of the same names.")],
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the comparison as JSON.")] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder with the features of references.", show_default="in the user's cache folder"
        ),
    ] = None,
) -> None:
    """Print the differences B - A of two evaluations with 95 % intervals of pairs of panoramas."""
    # Imported here so that --help does not wait for torch.
    from tqdm import tqdm

    from cubediff.evaluation.comparison import compare, comparison_record, comparison_text
    from cubediff.evaluation.features import default_cache
    from cubediff.evaluation.results import read_results
    from cubediff.utils.files import write_json

    def progress(items: Iterable[int], total: int, title: str) -> Iterable[int]:
        bar: Iterable[int] = tqdm(items, total=total, desc=title, unit="metric", leave=False)
        return bar

    with messages_of_errors("nothing was written"):
        found = compare(read_results(first), read_results(second), cache or default_cache(), progress)
        if json is not None:
            write_json(json, comparison_record(found))
    typer.echo(comparison_text(found))
    if not found.differences:
        sys.exit("error: no metric was measured in the same way in both: see above")


def main() -> None:
    """Runs `compare` if it is the first argument, else the evaluation."""
    if sys.argv[1:2] == ["compare"]:
        compare_app(sys.argv[2:], prog_name="cubediff evaluate compare")
    else:
        evaluate()


if __name__ == "__main__":
    main()
