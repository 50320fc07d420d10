"""The Weights & Biases workspace of cubediff's runs."""

from typing import Any

# The groups of StepMetrics, again: a command's --help loads no torch. The tests compare them with what a run logs.
QUARTERS = ("q1", "q2", "q3", "q4")


CONDITIONS = ("text_photo", "text", "photo", "none")


X_AXIS = "trainer/global_step"


# By section, panels by title: what a line plot shows, or (in "samples") a browser of media.
SECTIONS: dict[str, dict[str, list[str]]] = {
    "train": {
        "loss": ["train/loss_mean", "val/loss"],
        "loss of a batch": ["train/loss"],
        "by noise, q1 has the least": [f"train/loss_{quarter}" for quarter in QUARTERS],
        "by condition": [f"train/loss_{condition}" for condition in CONDITIONS],
    },
    "val": {
        "by noise, q1 has the least": [f"val/loss_{quarter}" for quarter in QUARTERS],
        "by condition": [f"val/loss_{condition}" for condition in CONDITIONS],
    },
    "samples": {
        "from a text": ["samples/text"],
        "from a text and a photo": ["samples/text_photo"],
        "faces, from a text": ["samples/text_faces"],
        "faces, from a text and a photo": ["samples/text_photo_faces"],
        "look around, from a text": ["samples/text_viewer_0"],
        "look around, from a text and a photo": ["samples/text_photo_viewer_0"],
    },
    "optim": {
        "learning rate": ["optim/lr"],
        "gradient norm before clipping": ["optim/grad_norm"],
        "distance of the average": ["optim/ema_distance"],
    },
    "perf": {
        "panoramas per second": ["perf/panoramas_per_s", "perf/panoramas_per_s_per_device"],
        "seconds of a step": ["perf/step_s", "perf/data_wait_s"],
        "share of the arithmetic": ["perf/utilisation"],
        "peak memory, GiB": ["perf/peak_memory_gib"],
    },
    "data": {"skipped samples": ["data/skipped"]},
}


def workspace(entity: str, project: str = "cubediff") -> Any:
    """The workspace, made without a network; its `save()` needs one and an account. Raises ModuleNotFoundError
    without the extra "dashboard"."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    def panel(section: str, title: str, keys: list[str]) -> Any:
        if section == "samples":
            return panels.MediaBrowser(title=title, media_keys=keys)
        return panels.LinePlot(title=title, x=X_AXIS, y=list(keys))

    sections = [
        workspaces.Section(name=name, is_open=True, panels=[panel(name, *each) for each in shown.items()])
        for name, shown in SECTIONS.items()
    ]
    settings = workspaces.WorkspaceSettings(x_axis=X_AXIS)
    return workspaces.Workspace(entity=entity, project=project, name="CubeDiff", sections=sections, settings=settings)
