"""The numbers a run is watched by: losses by noise level and by condition, speed, memory, skipped samples.

They gather on the device and are read, and reduced over the ranks, at the steps that the loggers log and at no other.
"""

import resource
import sys
import time
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from cubediff.diffusion.objective import CONDITIONS
from cubediff.training.module import CubeDiffModule

# Quarters of the noise schedule, q1 with the least noise; then what a panorama was conditioned on.
GROUPS = ("q1", "q2", "q3", "q4", *CONDITIONS)


class StepMetrics(Callback):
    """Logs, over all ranks:

    - train/loss_mean, of all panoramas since it was logged last, where train/loss is of one device's last batch;
    - train/loss_GROUP likewise, and val/loss_GROUP, of each of `GROUPS` that had a panorama;
    - perf/panoramas_per_s, perf/panoramas_per_s_per_device, and of an optimizer step perf/step_s and perf/data_wait_s,
      for which the rank that waits longest waits for its batches; validation does not count;
    - perf/utilisation, the share of the devices' arithmetic that is used, where `flops` is set;
    - perf/peak_memory_gib: of the device that uses most, on a CPU of the process;
    - data/skipped: samples that could not be read so far.
    """

    def __init__(self) -> None:
        self.flops: tuple[float, float] | None = None  # of a panorama, and that a device can do in a second
        self._train = self._val = _nothing()
        self._waited = _Waited(None)
        self._logged_step = 0
        self._begin(None)

    def on_train_start(self, trainer: L.Trainer, pl_module: CubeDiffModule) -> None:
        self._logged_step = trainer.global_step
        any_trainer: Any = trainer  # whose profiler mypy does not find
        any_trainer.profiler = self._waited = _Waited(any_trainer.profiler)
        self._begin(None)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: CubeDiffModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._train = self._train.to(pl_module.device) + _by_group(outputs, pl_module)
        self._batches += 1
        self._panoramas += len(batch["key"])
        if self._began is None:
            self._begin(time.monotonic())  # the first batch also pays for what is made once
        if trainer.global_step > self._logged_step and logs_now(trainer):
            self._logged_step = trainer.global_step
            self._log(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: CubeDiffModule) -> None:
        self._stopped = time.monotonic()
        self._val = _nothing()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: CubeDiffModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._val = self._val.to(pl_module.device) + _by_group(outputs, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: CubeDiffModule) -> None:
        if trainer.loggers and not trainer.sanity_checking:
            sums = over_ranks(trainer, self._val.to(pl_module.device).flatten()).sum(0)
            write(trainer, _means("val/loss", sums.tolist()))

    def on_validation_end(self, trainer: L.Trainer, pl_module: CubeDiffModule) -> None:
        if self._began is not None:
            self._began += time.monotonic() - self._stopped

    def _begin(self, now: float | None) -> None:
        self._began, self._batches, self._panoramas, self._waited.seconds = now, 0, 0, 0.0

    def _log(self, trainer: L.Trainer, module: CubeDiffModule) -> None:
        skipped = float(trainer.datamodule.skipped)  # type: ignore[attr-defined]
        own = [float(self._panoramas), self._waited.seconds, _peak_memory(module.device), skipped]
        row = torch.cat([self._train.flatten(), torch.tensor(own, device=module.device)])
        ranks = over_ranks(trainer, row).cpu()  # waits for the device, so that the clock is read when all is done
        now = time.monotonic()
        panoramas, waits, memories, skips = ranks[:, -4:].double().unbind(1)
        sums = ranks[:, :-4].sum(0).tolist()
        count = len(GROUPS)
        metrics = _means("train/loss", sums)
        metrics["train/loss_mean"] = sum(sums[:4]) / sum(sums[count : count + 4])  # each is in one of the quarters
        metrics |= {"perf/peak_memory_gib": memories.max().item() / 2**30, "data/skipped": skips.sum().item()}
        if self._began is not None and self._batches:
            elapsed, steps = now - self._began, self._batches / trainer.accumulate_grad_batches
            speed = panoramas.sum().item() / elapsed
            metrics |= {
                "perf/panoramas_per_s": speed,
                "perf/panoramas_per_s_per_device": speed / trainer.world_size,
                "perf/step_s": elapsed / steps,
                "perf/data_wait_s": waits.max().item() / steps,
            }
            if self.flops is not None:
                each, can = self.flops
                metrics["perf/utilisation"] = speed / trainer.world_size * each / can
        write(trainer, metrics)
        self._train = torch.zeros_like(self._train)
        self._begin(now)


def logs_now(trainer: Any) -> bool:
    """Whether the step just done is one that the loggers log; the same on every rank."""
    every = trainer.log_every_n_steps
    return bool(trainer.loggers) and every > 0 and trainer.global_step % every == 0


class _Waited:
    """The run's profiler, that also adds up how long the training loop waits for its next batch; only Lightning's
    profilers hear when the loop begins to wait."""

    def __init__(self, profiler: Any) -> None:
        self.profiler = profiler
        self.seconds = 0.0
        self._since = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.profiler, name)

    def start(self, action_name: str) -> None:
        self.profiler.start(action_name)
        if action_name.endswith("train_dataloader_next"):
            self._since = time.monotonic()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.monotonic() - self._since
        self.profiler.stop(action_name)


def _nothing() -> Float[Tensor, "2 g"]:
    return torch.zeros(2, len(GROUPS))


def _by_group(outputs: dict[str, Tensor], module: CubeDiffModule) -> Float[Tensor, "2 g"]:
    """Of each group the sum of the losses and the number of panoramas, which are in two groups each."""
    losses = outputs["losses"]
    quarters = outputs["timesteps"] * 4 // module.noise_scheduler.config.num_train_timesteps
    groups = torch.arange(len(GROUPS), device=losses.device)
    member = (quarters[:, None] == groups) | (outputs["conditions"][:, None] + 4 == groups)  # (B, groups)
    return torch.stack([torch.where(member, losses[:, None], 0.0).sum(0), member.sum(0).float()])


def _means(prefix: str, sums: list[float]) -> dict[str, float]:
    """Of the groups that had a panorama, from `_by_group` flattened."""
    losses, counts = sums[: len(GROUPS)], sums[len(GROUPS) :]
    return {
        f"{prefix}_{group}": loss / count for group, loss, count in zip(GROUPS, losses, counts, strict=True) if count
    }


def over_ranks(trainer: L.Trainer, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "ranks *shape"]:
    """A tensor of every rank, of the same shape on all; all must call it."""
    tensors: Tensor = trainer.strategy.all_gather(tensor)
    return tensors.reshape(trainer.world_size, *tensor.shape)


def _peak_memory(device: torch.device) -> float:
    """Bytes."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def write(trainer: L.Trainer, metrics: dict[str, float]) -> None:
    """Past `self.log`, which would log a group's old mean again where the group had no panorama since."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)  # Lightning's own count
