"""Creates the Weights & Biases workspace for the training metrics: cubediff dashboard ENTITY.

Without it W&B shows the same metrics, one panel each, in sections by their prefixes.
"""

import sys
from typing import Annotated

import typer

from cubediff.runs.dashboard import workspace

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    entity: Annotated[str, typer.Argument(help="W&B user or team.")],
    project: Annotated[str, typer.Option(help="W&B project, the runs' logger.wandb.project.")] = "cubediff",
) -> None:
    """Create the workspace "CubeDiff" in a W&B project and print its URL."""
    import wandb  # start-up time

    try:
        built = workspace(entity, project)
    except ModuleNotFoundError:
        sys.exit("error: wandb-workspaces is not installed: pip install 'cubediff[dashboard]'")
    if not wandb.login(prompt=False, verify=False):
        sys.exit("error: no W&B credentials: run `wandb login` first")
    print(built.save().url)


if __name__ == "__main__":
    app(prog_name="cubediff dashboard")
