"""The Weights & Biases workspace in which cubediff's runs read well: python -m cubediff.dashboard ENTITY.

Without it W&B shows the same metrics, a panel each, in sections by their prefixes.
"""

import sys
from typing import Annotated

import typer

from cubediff.runs.dashboard import workspace

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    entity: Annotated[str, typer.Argument(help="your W&B user or team")],
    project: Annotated[str, typer.Option(help="logger.wandb.project of the runs")] = "cubediff",
) -> None:
    """Makes the workspace "CubeDiff" in a W&B project and prints where it is."""
    import wandb

    try:
        made = workspace(entity, project)
    except ModuleNotFoundError:
        sys.exit("error: wandb-workspaces is not installed: pip install 'cubediff[dashboard]'")
    if not wandb.login(prompt=False, verify=False):
        sys.exit("error: no W&B credentials: run `wandb login` first; the layout is in cubediff.training.metric_table")
    print(made.save().url)


if __name__ == "__main__":
    app(prog_name="cubediff dashboard")
