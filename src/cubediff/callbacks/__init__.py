"""What happens around the training step: averaged weights, samples to look at, metrics, progress, and guards."""

from cubediff.callbacks.ema import UNetEMA
from cubediff.callbacks.guards import NonFiniteGuard
from cubediff.callbacks.metrics import StepMetrics
from cubediff.callbacks.progress import StepProgress
from cubediff.callbacks.samples import SampleLogger

__all__ = ["NonFiniteGuard", "SampleLogger", "StepMetrics", "StepProgress", "UNetEMA"]
