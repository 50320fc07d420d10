"""StepMetrics: losses by noise level and condition, throughput, memory, skipped samples.

The values are accumulated on the device; they are read, and reduced over the ranks, at logging steps only.
"""

import sys
import time
from typing import cast

import lightning as L
import psutil
import torch
from lightning.pytorch.callbacks import Callback
from torchmetrics import MaxMetric, Metric, SumMetric

from cubediff.training.callbacks.fetch_hooks import add_fetch_hooks
from cubediff.training.callbacks.hooks import KeyedBatch, cube_module
from cubediff.training.metric_reduction import GroupedLosses, compute_over_ranks, is_logging_step, log_to_loggers
from cubediff.training.module import CubeDiffModule, StepOutput
from cubediff.training.protocols import TrainerAttributes


class StepMetrics(Callback):
    """Logs the metrics of `cubediff.training.logged_metrics` under train/, val/loss_*, perf/ and data/, over all ranks.

    A loss group is logged only if it had a panorama. Throughput excludes validation and the first batch, which includes
    initialisation; the data wait is the maximum over the ranks. perf/utilisation (MFU) is logged if `set_flops` was
    called, which a run does on GPUs with a known peak rate.
    """

    def __init__(self) -> None:
        self._flops: tuple[float, float] | None = None
        self._train = GroupedLosses("train/loss", with_mean=True)
        self._val = GroupedLosses("val/loss")
        self._perf: dict[str, Metric] = {
            "perf/panoramas": SumMetric("disable", sync_on_compute=False),
            "perf/data_wait_s": MaxMetric("disable", sync_on_compute=False),
            "perf/peak_memory": MaxMetric("disable", sync_on_compute=False),
            "data/skipped": SumMetric("disable", sync_on_compute=False),
        }
        self._waiting_since = 0.0
        self._logged_step = 0
        self._restart_clock(None)

    def set_flops(self, per_panorama: float, device_per_second: float) -> None:
        """Sets the values that MFU is computed from.

        Args:
            per_panorama: FLOPs of a training step per panorama.
            device_per_second: Peak FLOPs per second of one device.
        """
        self._flops = (per_panorama, device_per_second)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._logged_step = trainer.global_step
        add_fetch_hooks(trainer, self._before_fetch, self._after_fetch)
        self._restart_clock(None)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: KeyedBatch,
        batch_idx: int,
    ) -> None:
        module = cube_module(pl_module)
        _update(self._train, outputs, module)
        self._batches += 1
        self._panoramas += len(batch["key"])
        if self._started is None:
            self._restart_clock(time.monotonic())  # the first batch includes initialisation
        if trainer.global_step > self._logged_step and is_logging_step(trainer):
            self._logged_step = trainer.global_step
            self._log(trainer, module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_started = time.monotonic()
        self._val.reset()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        _update(self._val, outputs, cube_module(pl_module))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.loggers and not trainer.sanity_checking:
            log_to_loggers(trainer, compute_over_ranks(self._val.metrics, trainer, pl_module.device))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._started is not None:
            self._started += time.monotonic() - self._validation_started

    def _before_fetch(self, action: str) -> None:
        self._waiting_since = time.monotonic()

    def _after_fetch(self, action: str) -> None:
        if action.endswith("train_dataloader_next"):
            self._data_wait += time.monotonic() - self._waiting_since

    def _restart_clock(self, now: float | None) -> None:
        self._started, self._batches, self._panoramas, self._data_wait = now, 0, 0, 0.0

    def _log(self, trainer: L.Trainer, module: CubeDiffModule) -> None:
        values = self._compute(trainer, module)
        now = time.monotonic()  # after waiting for the device
        panoramas, data_wait = values.pop("perf/panoramas"), values.pop("perf/data_wait_s")
        values["perf/peak_memory_gib"] = values.pop("perf/peak_memory") / 2**30
        if self._started is not None and self._batches:
            elapsed, steps = now - self._started, self._batches / trainer.accumulate_grad_batches
            speed = panoramas / elapsed
            values |= {
                "perf/panoramas_per_s": speed,
                "perf/panoramas_per_s_per_device": speed / trainer.world_size,
                "perf/step_s": elapsed / steps,
                "perf/data_wait_s": data_wait / steps,
            }
            if self._flops is not None:
                per_panorama, device_per_second = self._flops
                values["perf/utilisation"] = speed / trainer.world_size * per_panorama / device_per_second
        log_to_loggers(trainer, values)
        self._train.reset()
        self._restart_clock(now)

    def _compute(self, trainer: L.Trainer, module: CubeDiffModule) -> dict[str, float]:
        """All metrics over all ranks; waits for the device."""
        measured = {
            "perf/panoramas": float(self._panoramas),
            "perf/data_wait_s": self._data_wait,
            "perf/peak_memory": _peak_memory(module.device),
            "data/skipped": float(cast(TrainerAttributes, trainer).datamodule.skipped),
        }
        for name, metric in self._perf.items():
            metric.reset()
            metric.update(measured[name])
        return compute_over_ranks({**self._train.metrics, **self._perf}, trainer, module.device)


def _update(losses: GroupedLosses, outputs: object, module: CubeDiffModule) -> None:
    step = cast(StepOutput, outputs)
    losses.update(step["losses"], step["timesteps"], step["conditions"], module.process.num_timesteps)


def _peak_memory(device: torch.device) -> float:
    """In bytes; on a CPU, of the process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        memory = psutil.Process().memory_info()
        return float(getattr(memory, "peak_wset", memory.rss))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
