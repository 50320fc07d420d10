"""The Weights & Biases workspace for runs, whose panels derive from the table of metrics."""

from typing import TYPE_CHECKING

from cubediff.training.logged_metrics import logged_metrics, sections

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

X_AXIS = "trainer/global_step"


def workspace(entity: str, project: str = "cubediff") -> "Workspace":
    """Builds the workspace "CubeDiff"; only its `save()` needs a network and an account.

    Args:
        entity: W&B user or team.
        project: W&B project.

    Raises:
        ModuleNotFoundError: Without the extra "dashboard".
    """
    import wandb_workspaces.workspaces as workspaces  # an optional extra
    from wandb_workspaces.reports.v2.interface import LinePlot, MediaBrowser

    media = {metric.name for metric in logged_metrics() if metric.media}

    def panel(title: str, names: list[str]) -> LinePlot | MediaBrowser:
        if media.issuperset(names):
            return MediaBrowser(title=title, media_keys=names)
        return LinePlot(title=title, x=X_AXIS, y=list(names))

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="CubeDiff",
        sections=[
            workspaces.Section(name=name, is_open=True, panels=[panel(*each) for each in shown.items()])
            for name, shown in sections().items()
        ],
        settings=workspaces.WorkspaceSettings(x_axis=X_AXIS),
    )
