"""What happens around the training step: averaged weights, samples to look at, metrics, progress,
checkpoints, and guards."""

from cubediff.callbacks.checkpoint import RunCheckpoint
from cubediff.callbacks.ema import UNetEMA
from cubediff.callbacks.guards import NonFiniteGuard, Watchdog
from cubediff.callbacks.metrics import StepMetrics
from cubediff.callbacks.progress import StepProgress
from cubediff.callbacks.samples import SampleLogger

__all__ = [
    "NonFiniteGuard",
    "RunCheckpoint",
    "SampleLogger",
    "StepMetrics",
    "StepProgress",
    "UNetEMA",
    "Watchdog",
]
