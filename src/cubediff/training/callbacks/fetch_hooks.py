"""Hooks around the wait for a batch, which Lightning's callbacks do not have."""

from collections.abc import Callable
from typing import Protocol, cast

import lightning as L
from lightning.pytorch.profilers import Profiler


class FetchHooks:
    """Wraps the run's profiler, which Lightning calls before and after every wait for a batch.

    Args:
        profiler: The profiler to wrap.
        before, after: Called with the name of the action, which ends with train_dataloader_next, val_next or
            predict_next.
    """

    def __init__(
        self, profiler: "Profiler | FetchHooks | None", before: Callable[[str], None], after: Callable[[str], None]
    ) -> None:
        self.profiler, self.before, self.after = profiler, before, after

    def __getattr__(self, name: str) -> object:
        return getattr(self.profiler, name)

    def start(self, action_name: str) -> None:
        """Lightning's hook before an action."""
        if self.profiler is not None:
            self.profiler.start(action_name)
        if action_name.endswith("_next"):
            self.before(action_name)

    def stop(self, action_name: str) -> None:
        """Lightning's hook after an action."""
        if action_name.endswith("_next"):
            self.after(action_name)
        if self.profiler is not None:
            self.profiler.stop(action_name)


def add_fetch_hooks(trainer: L.Trainer, before: Callable[[str], None], after: Callable[[str], None]) -> None:
    """Adds the hooks of `FetchHooks` to a trainer."""
    profiled = cast(_ProfiledTrainer, trainer)
    profiled.profiler = FetchHooks(profiled.profiler, before, after)


class _ProfiledTrainer(Protocol):
    """The attribute of a trainer that its class does not declare."""

    profiler: Profiler | FetchHooks
