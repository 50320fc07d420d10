"""The table of metrics that a run logs, with the panels of the dashboard that show them.

One entry of `LOSS_GROUPS` or `GRADIENT_NORMS` adds a loss group or a gradient norm: it is computed, logged and shown.
Loads no torch, so that commands that only print the table start fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cubediff.diffusion.conditions import CONDITIONS

if TYPE_CHECKING:
    from torch import Tensor

Curves = dict[str, list[tuple[int, float | None]]]
"""Loss → (optimizer step, value); None for a value that is not finite, which JSON lacks."""


@dataclass(frozen=True)
class Metric:
    """A logged metric.

    Attributes:
        name: Its key in every logger.
        panel: Title of the panel that shows it; metrics of a section with the same title share a panel.
        description: One line for the documentation.
        unit: The unit of its values, "" for a plain number.
        section: Section of the dashboard, by default the name's part before the slash.
        media: Images or HTML pages, not a number.
    """

    name: str
    panel: str
    description: str
    unit: str = ""
    section: str = ""
    media: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "section", self.section or self.name.partition("/")[0])


@dataclass(frozen=True)
class LossGroup:
    """A subset of panoramas whose mean loss is logged, as train/loss_NAME and val/loss_NAME.

    Attributes:
        name: The suffix of the metrics' names.
        panel: Title of the panels that show it.
        description: Its panoramas, as the end of "Mean loss of …".
        contains: Membership (B,) of the panoramas of a batch from their timesteps (B,), the indices (B,) of their
            `CONDITIONS`, and the number of training timesteps.
    """

    name: str
    panel: str
    description: str
    contains: Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class GradientNorm:
    """An L2 norm of gradients before clipping.

    Attributes:
        name: The metric's name.
        parameters: Regular expression that matches a part of the names of its parameters; "" is in every name.
        description: One line for the documentation.
    """

    name: str
    parameters: str
    description: str


def _in_quarter(number: int, timesteps: Tensor, conditions: Tensor, num_train_timesteps: int) -> Tensor:
    return timesteps * 4 // num_train_timesteps == number


def _has_condition(number: int, timesteps: Tensor, conditions: Tensor, num_train_timesteps: int) -> Tensor:
    return conditions == number


# The quarters of the noise schedule; every panorama is in exactly one.
QUARTERS = tuple(
    LossGroup(f"q{number + 1}", "by noise level, q1 is the least noisy", f"quarter {number + 1} of the noise schedule",
              partial(_in_quarter, number))
    for number in range(4)
)  # fmt: skip
LOSS_GROUPS = (
    *QUARTERS,
    *(
        LossGroup(name, "by condition", f"panoramas conditioned on {name.replace('_', ' and ')}",
                  partial(_has_condition, number))
        for number, name in enumerate(CONDITIONS)
    ),
)  # fmt: skip

# The norm over all trainable parameters, which clipping uses, comes first.
GRADIENT_NORMS: tuple[GradientNorm, ...] = (
    GradientNorm("optim/grad_norm", "", "L2 norm of all gradients before clipping"),
)

# Metrics of `cubediff.evaluation.consistency` that are logged as val/NAME, of the panoramas that samples are.
CONSISTENCY = {
    "overlap_rms": "RMS difference of neighbouring faces where they overlap, of pixels in [0, 1]",
    "overlap_relative": "The same relative to the detail of the pixels; about 0.1 for real panoramas",
    "colour_step": "RMS difference of the mean colours of neighbouring faces where they overlap",
    "edge_ratio": "Gradient across the cube's edges relative to that elsewhere; 1 for real panoramas",
    "step_beyond_overlap": "Colour differences across the edges, beyond the overlap; about 1 for real panoramas",
    "sharpness": "Mean magnitude of the gradient",
}


def logged_metrics() -> list[Metric]:
    """Every metric of a run in the order of the dashboard, one row each."""
    return [
        Metric("train/loss_mean", "loss", "Mean loss of all panoramas since the last logged step, over all ranks"),
        Metric("val/loss", "loss", "Mean loss of the validation panoramas with the EMA weights", section="train"),
        Metric("train/loss", "loss of one batch", "Mean loss of the last batch of rank 0"),
        *_group_metrics("train"),
        *_group_metrics("val"),
        *(
            Metric(f"val/{name}", f"{name.replace('_', ' ')} of samples", description)
            for name, description in CONSISTENCY.items()
        ),
        *_sample_metrics(),
        Metric("optim/lr", "learning rate", "Learning rate of the step"),
        *(Metric(norm.name, "gradient norm before clipping", norm.description) for norm in GRADIENT_NORMS),
        Metric("optim/ema_distance", "distance of the EMA", "Norm of (EMA − weights), relative to the norm of weights"),
        Metric("perf/panoramas_per_s", "panoramas per second", "Throughput of all devices", "1/s"),
        Metric("perf/panoramas_per_s_per_device", "panoramas per second", "Throughput of one device", "1/s"),
        Metric("perf/step_s", "seconds of a step", "Duration of an optimizer step without validation", "s"),
        Metric("perf/data_wait_s", "seconds of a step", "Waiting for batches in a step, of the slowest rank", "s"),
        Metric("perf/utilisation", "MFU", "Model FLOPs utilisation, relative to the GPUs' dense bf16 FLOP/s"),
        Metric("perf/peak_memory_gib", "peak memory, GiB", "Peak memory of the fullest device", "GiB"),
        Metric("data/skipped", "skipped samples", "Damaged samples that were skipped since the start of the run"),
    ]


def sections() -> dict[str, dict[str, list[str]]]:
    """The dashboard: section → panel's title → names of its metrics."""
    shown: dict[str, dict[str, list[str]]] = {}
    for metric in logged_metrics():
        shown.setdefault(metric.section, {}).setdefault(metric.panel, []).append(metric.name)
    return shown


def _group_metrics(split: str) -> list[Metric]:
    return [
        Metric(f"{split}/loss_{group.name}", group.panel, f"Mean loss of {group.description}") for group in LOSS_GROUPS
    ]


def _sample_metrics() -> list[Metric]:
    kinds = {"text": "from text", "text_photo": "from text and a photo"}
    forms = {"": ("panoramas", "Panoramas"), "_faces": ("faces", "The six faces"), "_viewer_0": ("viewer", "Viewer")}
    return [
        Metric(f"samples/{kind}{suffix}", f"{panel} {source}", f"{form} generated {source}", media=True)
        for suffix, (panel, form) in forms.items()
        for kind, source in kinds.items()
    ]
