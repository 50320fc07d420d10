"""Callbacks of a run: EMA, samples, metrics, progress, checkpoints, signals, guards."""

from cubediff.training.callbacks.checkpoint import RunCheckpoint
from cubediff.training.callbacks.ema import UNetEMA
from cubediff.training.callbacks.guards import NonFiniteGuard
from cubediff.training.callbacks.progress import StepProgress
from cubediff.training.callbacks.samples import SampleLogger
from cubediff.training.callbacks.step_metrics import StepMetrics
from cubediff.training.callbacks.watchdog import Watchdog

__all__ = [
    "NonFiniteGuard",
    "RunCheckpoint",
    "SampleLogger",
    "StepMetrics",
    "StepProgress",
    "UNetEMA",
    "Watchdog",
]
