"""Metrics over panoramas and ranks: torchmetrics objects that one collective call reduces, and what loggers receive."""

import re
from collections.abc import Mapping
from typing import cast

import lightning as L
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchmetrics import Metric

from cubediff.training.fsdp import full_tensor
from cubediff.training.logged_metrics import GRADIENT_NORMS, LOSS_GROUPS, QUARTERS
from cubediff.training.protocols import TrainerAttributes


class MeanLoss(Metric):
    """Mean loss per panorama, over the steps since the last reset and over all ranks.

    Args:
        parts: Number of float32 sums that it is accumulated in.
    """

    total: Tensor
    count: Tensor

    def __init__(self, parts: int = 1) -> None:
        super().__init__(sync_on_compute=False)  # `compute_over_ranks` reduces all metrics together
        self.add_state("total", torch.zeros(parts), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(parts), dist_reduce_fx="sum")

    def update(self, total: Float[Tensor, " parts"], count: Float[Tensor, " parts"]) -> None:
        """Adds `count` panoramas whose losses have the sum `total`."""
        self.total += total
        self.count += count

    def compute(self) -> Tensor:
        """The mean in float64; empty if there was no panorama."""
        total, count = sum(self.total.tolist()), sum(self.count.tolist())
        return torch.tensor([total / count] if count else [], dtype=torch.float64)


class GroupedLosses:
    """The mean loss of every group of `LOSS_GROUPS`, and of all panoramas if `with_mean`, as `metrics` by name."""

    def __init__(self, prefix: str, with_mean: bool = False) -> None:
        self.groups = LOSS_GROUPS
        self.of_group = {f"{prefix}_{group.name}": MeanLoss() for group in self.groups}
        # Every panorama is in one quarter.
        self.of_all = {f"{prefix}_mean": MeanLoss(len(QUARTERS))} if with_mean else {}

    @property
    def metrics(self) -> dict[str, Metric]:
        return {**self.of_group, **self.of_all}

    def update(
        self,
        losses: Float[Tensor, " b"],
        timesteps: Int[Tensor, " b"],
        conditions: Int[Tensor, " b"],
        num_train_timesteps: int,
    ) -> None:
        """Adds the panoramas of a batch on its own device; nothing is read from the device."""
        members = [group.contains(timesteps, conditions, num_train_timesteps) for group in self.groups]
        member: Bool[Tensor, "b groups"] = torch.stack(members, dim=1)
        totals, counts = torch.where(member, losses[:, None], 0.0).sum(0), member.sum(0).float()
        for metric in self.metrics.values():
            if metric.device != losses.device:
                metric.to(losses.device)
        for number, metric in enumerate(self.of_group.values()):
            metric.update(totals[number : number + 1], counts[number : number + 1])
        for metric in self.of_all.values():
            metric.update(totals[: len(QUARTERS)], counts[: len(QUARTERS)])

    def reset(self) -> None:
        for metric in self.metrics.values():
            metric.reset()


def compute_over_ranks(metrics: Mapping[str, Metric], trainer: L.Trainer, device: torch.device) -> dict[str, float]:
    """Values of metrics over all ranks, by one collective call and one read from the device; every rank must call it.

    Args:
        metrics: Metrics by name, created with `sync_on_compute=False`, whose states are float32 tensors.
        trainer: The run's trainer.
        device: The device of the collective call.

    Returns:
        The values by name, without metrics that have none (`compute` returns an empty tensor).
    """
    states = [state for metric in metrics.values() for state in metric.metric_state.values()]
    row = torch.cat([torch.as_tensor(state, device=device).flatten() for state in states])
    ranks = gather_ranks(trainer, row).cpu()
    shares = iter(torch.split(ranks, [torch.as_tensor(state).numel() for state in states], dim=1))
    values = {}
    for name, metric in metrics.items():
        metric.sync(
            dist_sync_fn=lambda state, group: [share.view(state.shape) for share in next(shares)],
            distributed_available=lambda: True,
        )
        value = metric.compute()  # also restores the states of this rank
        if value.numel():
            values[name] = float(value)
    return values


def gradient_norms(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The norms of `GRADIENT_NORMS` except the first, which gradient clipping returns."""
    norms = {}
    for norm in GRADIENT_NORMS[1:]:
        matching = [p.grad for name, p in parameters.items() if p.grad is not None and re.search(norm.parameters, name)]
        each = [torch.linalg.vector_norm(gradient) for gradient in matching]
        norms[norm.name] = full_tensor(torch.linalg.vector_norm(torch.stack(each)))
    return norms


def gather_ranks(trainer: L.Trainer, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, " ranks *shape"]:
    """Gathers a tensor from all ranks; collective.

    Args:
        trainer: The run's trainer.
        tensor: This rank's tensor, of the same shape on all ranks.
    """
    tensors: Tensor = trainer.strategy.all_gather(tensor)
    return tensors.reshape(trainer.world_size, *tensor.shape)


def is_logging_step(trainer: L.Trainer) -> bool:
    """Whether the loggers log the step that has just ended; the same on every rank."""
    every = cast(TrainerAttributes, trainer).log_every_n_steps
    return bool(trainer.loggers) and every > 0 and trainer.global_step % every == 0


def log_to_loggers(trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
    """Logs without `LightningModule.log`, which would repeat the last mean of a group without new panoramas."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.fit_loop.epoch_loop._batches_that_stepped)  # as Lightning counts
