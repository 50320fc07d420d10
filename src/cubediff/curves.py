"""A logger that keeps the losses in memory, for a run's result.json, whatever other loggers there are."""

from typing import Any

from lightning.pytorch.loggers import Logger

LOSSES = ("train/loss", "val/loss")
Curves = dict[str, list[tuple[int, float]]]  # of each loss: steps and values


class CurveLogger(Logger):
    """Appends to `curves`, which outlives a run that fails."""

    def __init__(self, curves: Curves) -> None:
        super().__init__()
        self.curves = curves

    @property
    def name(self) -> str | None:
        return None

    @property
    def version(self) -> int | str | None:
        return None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for loss in LOSSES:
            if loss in metrics:
                curve = self.curves.setdefault(loss, [])
                while curve and curve[-1][0] >= (step or 0):  # of a process that came further than its checkpoint
                    curve.pop()
                curve.append((step or 0, float(metrics[loss])))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass
